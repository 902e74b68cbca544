"""Read collections of labelled mono clips: `metadata.csv`, and the layouts of ESC-50, UrbanSound8K and FSD50K.

A collection is told by the file that lists its clips (`READERS`); a source folder is one collection or holds several.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

REQUIRED = ("file", "label", "licence")
VALID_SHARE = 0.1  # of the recordings of a label, where the collection has no split
NOT_STATED = "not stated"

# Classes that sounds.json words under another name; the others keep theirs, with spaces.
_ESC50_LABELS = {
    "dog": "dog barking", "rooster": "rooster crowing", "cow": "cow mooing", "frog": "frog croaking",
    "cat": "cat meowing", "hen": "chicken clucking", "insects": "insect buzzing", "sheep": "sheep bleating",
    "crow": "crow cawing", "crackling_fire": "fire crackling", "chirping_birds": "birds chirping",
    "crying_baby": "baby crying", "door_wood_knock": "door knocking", "door_wood_creaks": "door creaking",
    "clock_tick": "clock ticking", "hand_saw": "hand sawing", "water_drops": "water dripping",
    "pouring_water": "water pouring", "thunderstorm": "thunder", "mouse_click": "mouse clicking",
    "clock_alarm": "alarm clock", "train": "train passing",
}  # fmt: skip
_URBANSOUND_LABELS = {"dog_bark": "dog barking", "gun_shot": "gunshot", "engine_idling": "engine idling"}
_FSD50K_LABELS = {
    "Bark": "dog barking", "Crow": "crow cawing", "Meow": "cat meowing", "Crackle": "fire crackling",
    "Tick-tock": "clock ticking", "Crying_and_sobbing": "crying and sobbing", "Laughter": "laughing",
    "Gunshot_and_gunfire": "gunshot", "Church_bell": "church bells", "Walk_and_footsteps": "footsteps",
    "Sneeze": "sneezing", "Waves_and_surf": "sea waves", "Knock": "door knocking", "Bicycle_bell": "bicycle bell",
    "Chicken_and_rooster": "chicken clucking", "Ocean": "sea waves",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recording:
    """Hold one clip of a collection.

    Attributes:
      path: of the audio file.
      file: the path as its collection writes it; with several collections, the folder's name comes first.
      label: class, as plain words ("dog barking").
      split: `train` or `valid`.
      licence: as stated by the collection.
      source_group: recordings with the same value come from one source; `file` where nothing is known.
    """

    path: Path
    file: str
    label: str
    split: str
    licence: str
    source_group: str


# --- a source folder ----------------------------------------------------------------------------------------------


def read_source(root, licences: Sequence[str] = ()) -> list[Recording]:
    """Read every collection in a folder: the folder itself, or else its subfolders, sorted by name.

    Args:
      licences: keep only clips under these, such as ("CC0", "CC-BY"); see `licence_matches`. Empty keeps all.

    Raises:
      ValueError: no collection is there, one is malformed, no clip has a wanted licence, or a collection has
        recordings of one source in both splits.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"source folder {root} does not exist")
    folders = [root] if _reader(root) else sorted(p for p in root.iterdir() if p.is_dir() and _reader(p))
    if not folders:
        raise ValueError(f"{root} is no source folder: {' or '.join(READERS)} is missing, in it and in its subfolders")
    recordings = []
    for folder in folders:
        found = _assign_splits(_reader(folder)(folder))
        _check_splits(found)
        if len(folders) > 1:
            found = [_prefix(r, f"{folder.name}/") for r in found]
        recordings += found
    # One Freesound recording may be in several collections, and in different splits of them.
    train = {r.source_group for r in recordings if r.split == "train"}
    recordings = [dataclasses.replace(r, split="train") if r.source_group in train else r for r in recordings]
    return filter_licences(recordings, licences)


def _prefix(recording: Recording, name: str) -> Recording:
    """Put the collection's name before the file and the source; Freesound's numbers hold for all collections."""
    group = recording.source_group
    group = group if group.startswith("freesound-") else name + group
    return dataclasses.replace(recording, file=name + recording.file, source_group=group)


def _reader(folder: Path) -> Callable[[Path], list[Recording]] | None:
    return next((read for name, read in READERS.items() if (folder / name).is_file()), None)


def _assign_splits(recordings: list[Recording]) -> list[Recording]:
    """Give recordings without a split one: whole sources go to `valid`, about a tenth of those of each label.

    Which ones depends on the name of the source alone, so that more clips of other labels change nothing. Labels with
    fewer than 5 sources are for training; if that leaves `valid` empty, the label with most sources gives one.
    """
    groups = collections.defaultdict(set)
    for r in recordings:
        if not r.split:
            groups[r.label].add(r.source_group)
    if not groups:
        return recordings
    by_hash = lambda names: sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    valid = set()
    for names in groups.values():
        if len(names) >= 5:
            valid.update(by_hash(names)[: max(1, round(VALID_SHARE * len(names)))])
    if not valid and not any(r.split == "valid" for r in recordings):
        largest = max(sorted(groups), key=lambda label: len(groups[label]))
        if len(groups[largest]) > 1:
            valid.add(by_hash(groups[largest])[0])
    split_of = lambda r: r.split or ("valid" if r.source_group in valid else "train")
    return [dataclasses.replace(r, split=split_of(r)) for r in recordings]


def _check_splits(recordings: Sequence[Recording]) -> None:
    first = {}
    for r in recordings:
        other = first.setdefault(r.source_group, r)
        if other.split != r.split:
            raise ValueError(
                f"source_group = {r.source_group!r}: {other.file} is in {other.split}, {r.file} in {r.split}; "
                "recordings of one source must be in one split"
            )


def count_labels(recordings: Sequence[Recording]) -> dict[str, int]:
    """Return the number of recordings of each label, sorted by label."""
    return dict(sorted(collections.Counter(r.label for r in recordings).items()))


# --- licences -----------------------------------------------------------------------------------------------------

_CC_URL = re.compile(r"creativecommons\.org/(?:licenses/([a-z+-]+)/([\d.]+)|publicdomain/(zero|mark)/([\d.]+))", re.I)
_CC_NAME = re.compile(r"(?:creative\s+commons|cc)[\s-]*((?:(?:by|nc|sa|nd|sampling\+?|0|zero)[\s-]*)+)([\d.]+)?", re.I)


def normalise_licence(text: str) -> str:
    """Return a licence as its short name: URLs and spellings of Creative Commons become "CC0-1.0", "CC-BY-NC-3.0"."""
    if match := _CC_URL.search(text):
        kind, version, public, public_version = match.groups()
        if public:
            return ("CC0-" if public.lower() == "zero" else "PDM-") + public_version
        kind = "Sampling+" if kind.lower().startswith("sampling") else kind.upper()
        return f"CC-{kind}-{version}"
    if match := _CC_NAME.fullmatch(text.strip()):
        parts = [p for p in re.split(r"[\s-]+", match[1].upper()) if p]
        name = "CC0" if parts[0] in ("0", "ZERO") else "-".join(["CC", *parts]).replace("SAMPLING", "Sampling")
        return name + (f"-{match[2]}" if match[2] else "")
    return " ".join(text.split()) or NOT_STATED


def licence_matches(licence: str, wanted: str) -> bool:
    """Tell whether a licence is the wanted one, of any version unless `wanted` names one; CC-BY-NC is not CC-BY."""
    short, wanted = (normalise_licence(x).lower() for x in (licence, wanted))
    return wanted in (short, re.sub(r"-[\d.]+$", "", short))


def filter_licences(recordings: Sequence[Recording], licences: Sequence[str]) -> list[Recording]:
    """Keep the recordings under one of the licences; all, if none is named.

    Raises:
      ValueError: an empty name, or nothing is left.
    """
    if not all(name.strip() for name in licences):
        raise ValueError(f"licences = {','.join(licences)!r}: an empty name; write for instance CC0,CC-BY")
    if not licences:
        return list(recordings)
    verdict = {x: any(licence_matches(x, name) for name in licences) for x in {r.licence for r in recordings}}
    kept = [r for r in recordings if verdict[r.licence]]
    if not kept:
        found = collections.Counter(normalise_licence(r.licence) for r in recordings).most_common(8)
        listed = ", ".join(f"{name} ({n})" for name, n in found)
        raise ValueError(f"licences = {','.join(licences)!r}: no clip has one of them; there are {listed}")
    return kept


# --- the layouts --------------------------------------------------------------------------------------------------


def read_metadata(path) -> list[Recording]:
    """Read metadata.csv; audio paths are relative to its folder. Rows without a split get "".

    Raises:
      ValueError: naming the file and the missing column, the row with an empty or unknown value, or that there is no
        row.
    """
    path = Path(path)
    rows = _read_csv(path, REQUIRED)
    recordings = []
    for number, row in enumerate(rows, start=2):
        for column in ("file", "label"):
            if not (row[column] or "").strip():
                raise ValueError(f"{path}, line {number}: column {column!r} is empty")
        split = (row.get("split") or "").strip()
        if split not in ("train", "valid", ""):
            raise ValueError(f"{path}, line {number}: split = {split!r}, it must be train, valid or empty")
        recordings.append(
            Recording(
                path=path.parent / row["file"],
                file=row["file"],
                label=row["label"].strip(),
                split=split,
                licence=row["licence"] or NOT_STATED,
                source_group=row.get("source_group") or row["file"],
            )
        )
    return recordings


def _read_esc50(root: Path) -> list[Recording]:
    """Read ESC-50: meta/esc50.csv, audio/*.wav; the last fold is for validation; licences clip by clip from LICENSE.

    Source: K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", 2015.
    """
    rows = _read_csv(root / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file", "esc10"))
    stated = {}
    if (root / "LICENSE").is_file():
        lines = (root / "LICENSE").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if match := re.match(r"\s*-?\s*\[?(\d-\d+-[A-Z])\.\w+\]?:.*\[([^\]]+)\]\s*$", line):
                stated[match[1]] = match[2]
    last = max(row["fold"] for row in rows)
    return [
        Recording(
            path=root / "audio" / row["filename"],
            file=f"audio/{row['filename']}",
            label=_plain(row["category"], _ESC50_LABELS),
            split="valid" if row["fold"] == last else "train",
            licence=stated.get(
                re.sub(r"-\d+\.\w+$", "", row["filename"]), "CC-BY-NC-3.0"
            ),  # that of the set as a whole
            source_group=f"freesound-{row['src_file']}",
        )
        for row in rows
    ]


def _read_urbansound8k(root: Path) -> list[Recording]:
    """Read UrbanSound8K: metadata/UrbanSound8K.csv, audio/fold*/*.wav; fold 10 is for validation.

    Source: J. Salamon, C. Jacoby, J. P. Bello, "A Dataset and Taxonomy for Urban Sound Research", 2014. The set states
    one licence, CC BY-NC 3.0, for all.
    """
    rows = _read_csv(root / "metadata" / "UrbanSound8K.csv", ("slice_file_name", "fsID", "fold", "class"))
    last = max(int(row["fold"]) for row in rows)
    return [
        Recording(
            path=root / "audio" / f"fold{row['fold']}" / row["slice_file_name"],
            file=f"audio/fold{row['fold']}/{row['slice_file_name']}",
            label=_plain(row["class"], _URBANSOUND_LABELS),
            split="valid" if int(row["fold"]) == last else "train",
            licence="CC-BY-NC-3.0",
            source_group=f"freesound-{row['fsID']}",
        )
        for row in rows
    ]


def _read_fsd50k(root: Path) -> list[Recording]:
    """Read the development set of FSD50K: FSD50K.ground_truth/dev.csv, FSD50K.dev_audio/*.wav.

    The most specific class of a clip, which the set writes first, is its label; `val` is for validation, and clips of
    one uploader stay together, as the set's own split has it. Licences come from
    FSD50K.metadata/dev_clips_info_FSD50K.json. The evaluation set is left out: it stays unseen.

    Source: E. Fonseca et al., "FSD50K: an Open Dataset of Human-Labeled Sound Events", 2022.
    """
    rows = _read_csv(root / "FSD50K.ground_truth" / "dev.csv", ("fname", "labels", "split"))
    info_path = root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json"
    info = {}
    if info_path.is_file():
        try:
            info = json.loads(info_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{info_path} cannot be read: {error}") from error
    recordings = []
    for row in rows:
        clip = info.get(row["fname"], {})
        file = f"FSD50K.dev_audio/{row['fname']}.wav"
        recordings.append(
            Recording(
                path=root / file,
                file=file,
                label=_plain(row["labels"].split(",")[0], _FSD50K_LABELS),
                split="valid" if row["split"] == "val" else "train",
                licence=normalise_licence(clip.get("license", "")),
                source_group=f"freesound-{row['fname']}",
            )
        )
    return recordings


READERS: dict[str, Callable[[Path], list[Recording]]] = {
    "metadata.csv": lambda root: read_metadata(root / "metadata.csv"),
    "meta/esc50.csv": _read_esc50,
    "metadata/UrbanSound8K.csv": _read_urbansound8k,
    "FSD50K.ground_truth/dev.csv": _read_fsd50k,
}


def _read_csv(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or [], list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for column in required:
        if column not in columns:
            raise ValueError(f"{path} lacks the column {column!r}; it has {', '.join(columns) or 'none'}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in required):
            raise ValueError(f"{path}, line {number}: it has fewer columns than the header")
    return rows


def _plain(name: str, labels: dict[str, str]) -> str:
    """Return a class name as plain words: "vacuum_cleaner" -> "vacuum cleaner"."""
    return labels.get(name, re.sub(r"[_\s]+", " ", name).strip().lower())
