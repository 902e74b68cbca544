"""What is asked for: requests, the direction that their words name, and files of many of them. Needs no JAX."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dualspec_jax.spatial.direction import circular_difference, parse_direction, validate_azimuth
from dualspec_jax.spatial.sounds import match_sound

MAX_CHARACTERS = 1000
FIELDS = ("prompt", "azimuth", "seed", "name", "negative_prompt")
_NAME = re.compile(r"\w[\w .+-]*(?:/\w[\w .+-]*)*")


@dataclass(frozen=True)
class Request:
    """One clip to make.

    Attributes:
      azimuth_deg: degrees in [0, 360); None leaves the direction to the words.
      negative_prompt: what guidance moves away from; "" is the plain null condition.
      text_only: the words go to the text encoder as they are, and are not read by rule too (see `complete`); the
        direction is what the bundle's reader, a network, makes of them, if it has one.
    """

    prompt: str
    seed: int = 0
    azimuth_deg: float | None = None
    negative_prompt: str = ""
    text_only: bool = False


def complete(request: Request, sounds: Sequence[str] | None = None) -> Request:
    """Say what the words name as the model understands it best.

    Direction: both ways. Words that name one give the azimuth, an azimuth without words gets them. The model is trained
    on both together, and does best with both: 2 deg off (median of 120 clips) instead of 7 by the text encoder alone,
    for which "at 3 o'clock" is any direction within some degrees of 270, as in training captions.

    Sound: words that the text encoder was not trained on become the label that they come nearest to, of `sounds`
    (`spatial.sounds.match_sound`). The small encoder tells the sound of 87 % of such wordings, the matching of words
    that of 99 %: docs/training.md.

    Args:
      sounds: the model's labels; None leaves the words for the sound as they are, as a model of several sources needs.

    Raises:
      ValueError: contradictory or unknown words of direction.
    """
    if request.text_only:
        return request
    direction = parse_direction(request.prompt)
    if direction is not None and request.azimuth_deg is None:
        request = replace(request, azimuth_deg=float(direction.azimuth_deg))
    start, end = (0, 0) if direction is None else direction.span
    match = None if sounds is None else match_sound(f"{request.prompt[:start]} {request.prompt[end:]}", sounds)
    if match is not None and match.label in sounds and not match.trained:
        request, direction = replace(request, prompt=match.label), None
    if direction is not None or request.azimuth_deg is None or not request.prompt.strip():
        return request
    degrees = round(request.azimuth_deg) % 360
    return replace(request, prompt=f"{request.prompt.strip().rstrip('.!;,')}, at {degrees} degrees")


@dataclass(frozen=True)
class Scene:
    """What a request says of the place of its sound.

    Attributes:
      azimuth_deg: asked for, by number or by words, degrees in [0, 360); None where the direction is free.
      parsed_azimuth_deg, style: of the words; None where they name no direction.
    """

    prompt: str
    azimuth_deg: float | None
    parsed_azimuth_deg: float | None
    style: str | None


def read_scene(prompt: str, azimuth_deg: float | None = None) -> Scene:
    """Read the direction of a prompt.

    Raises:
      ValueError: an empty prompt, an azimuth that is no angle, contradictory or unknown words of direction, or words
        that contradict the numeric azimuth.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt = {prompt!r}: must name a sound, a direction or both")
    azimuth = None if azimuth_deg is None else validate_azimuth(azimuth_deg)
    direction = parse_direction(prompt)
    if direction is None:
        return Scene(prompt, azimuth, None, None)
    if azimuth is not None:
        off = abs(circular_difference(direction.azimuth_deg, azimuth))
        if off > direction.tolerance_deg + 1e-6:
            words = f"{direction.text!r} ({direction.azimuth_deg:g} deg)"
            raise ValueError(f"azimuth = {azimuth:g}: contradicts {words} in the prompt")
    asked = direction.azimuth_deg if azimuth is None else azimuth
    return Scene(prompt, asked, direction.azimuth_deg, direction.style)


def slug(prompt: str) -> str:
    """Return a file name for a prompt: lower-case letters, digits and dashes, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "prompt"


@dataclass(frozen=True)
class Row:
    """One line of a prompts file, or one --prompt.

    Attributes:
      line: number in the file, from 1; 0 for the command line.
      name: of the output, without suffix; None makes one from prompt and seed.
      seed: None counts on from the first seed.
      problem: why the line cannot be used, else None.
    """

    line: int
    prompt: str = ""
    azimuth_deg: float | None = None
    seed: int | None = None
    name: str | None = None
    negative_prompt: str | None = None
    problem: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """Read a prompts file line by line; a line that cannot be used comes with its `problem`.

    Formats, by the file's suffix: .jsonl (one object a line) and .csv (with a header), both with `prompt` and, if
    wanted, `azimuth` (degrees), `seed`, `name` and `negative_prompt`; anything else is text with one prompt a line, in
    which empty lines and those that start with # are skipped.

    Raises:
      ValueError: the file cannot be read, or a CSV's header lacks `prompt` or has an unknown column.
    """
    kind = path.suffix.lower()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                yield from _read_csv(path, file)
            else:
                for number, line in enumerate(file, 1):
                    line = line.strip()
                    if line and kind == ".jsonl":
                        yield _read_json(number, line)
                    elif line and not line.startswith("#"):
                        yield Row(number, line)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"prompts-file = {str(path)!r}: cannot be read ({e})") from e


def count_rows(path: Path) -> int:
    """Return how many rows a prompts file has; see `read_rows`."""
    return sum(1 for _ in read_rows(path))


def _read_csv(path: Path, file: io.TextIOBase) -> Iterator[Row]:
    reader = csv.DictReader(file)
    names = reader.fieldnames or ()
    unknown = [name for name in names if name not in FIELDS]
    if "prompt" not in names or unknown:
        found = ", ".join(names)
        raise ValueError(f"prompts-file = {str(path)!r}: columns are {found}; prompt is needed, of {', '.join(FIELDS)}")
    for fields in reader:
        if None in fields or None in fields.values():
            yield Row(reader.line_num, problem="has another number of fields than the header")
        else:
            yield _read_fields(reader.line_num, fields)


def _read_json(number: int, line: str) -> Row:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as e:
        return Row(number, problem=f"is no JSON ({e})")
    if not isinstance(fields, dict) or set(fields) - set(FIELDS):
        return Row(number, problem=f"must be an object of {', '.join(FIELDS)}")
    return _read_fields(number, fields)


def _read_fields(number: int, fields: dict) -> Row:
    value = {name: None if fields.get(name) in ("", None) else fields[name] for name in FIELDS}
    row = Row(number, str(value["prompt"] or "").strip())
    try:
        if value["azimuth"] is not None:
            row = replace(row, azimuth_deg=validate_azimuth(value["azimuth"]))
        if value["seed"] is not None:
            row = replace(row, seed=_read_seed(value["seed"]))
        for name in ("name", "negative_prompt"):
            if value[name] is not None:
                row = replace(row, **{name: str(value[name])})
        if row.name is not None and not _NAME.fullmatch(row.name):
            raise ValueError(f"name = {row.name!r}: letters, digits, spaces and . + - _, with / between folders")
    except ValueError as e:
        row = replace(row, problem=str(e))
    return row


def _read_seed(value) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,10}", str(value)) or int(value) >= 2**32:
        raise ValueError(f"seed = {value!r}: must be a whole number in [0, 2^32)")
    return int(value)
