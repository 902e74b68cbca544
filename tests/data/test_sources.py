import csv
import json
import shutil

import numpy as np
import pytest
import soundfile

from data.clips import Clips, Problem, find_usable, format_problems, write_problems
from data.sources import (
    Recording,
    count_labels,
    filter_licences,
    licence_matches,
    normalise_licence,
    read_metadata,
    read_source,
)

HEADER = "file,label,split,licence,source_group\n"


def write_csv(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metadata.csv"
    path.write_text(text, encoding="utf-8")
    return path


def write_tone(path, *, rate=16000, channels=1, seconds=0.2, level=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = level * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(str(path), np.stack([tone] * channels, 1), rate)


def recording(label="rain", file="a.wav", split="train", licence="CC0-1.0", group="g"):
    return Recording(path=None, file=file, label=label, split=split, licence=licence, source_group=group)


# --- metadata.csv ---


def test_rows_become_recordings(tmp_path):
    path = write_csv(tmp_path, HEADER + "audio/a.wav,dog barking,train,CC0-1.0,g1\naudio/b.wav,rain,valid,CC-BY-4.0,\n")
    first, second = read_metadata(path)
    assert (first.label, first.split, first.licence, first.source_group) == ("dog barking", "train", "CC0-1.0", "g1")
    assert first.path == tmp_path / "audio/a.wav"
    assert second.source_group == "audio/b.wav"
    assert count_labels([first, second, second]) == {"dog barking": 1, "rain": 2}


@pytest.mark.parametrize("column", ["file", "label", "licence"])
def test_missing_column_is_named(tmp_path, column):
    columns = [c for c in HEADER.strip().split(",") if c != column]
    path = write_csv(tmp_path, ",".join(columns) + "\n" + ",".join("x" for _ in columns) + "\n")
    with pytest.raises(ValueError, match=f"lacks the column '{column}'") as error:
        read_metadata(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER, "has no rows"),
        ("", "lacks the column"),
        (HEADER + "a.wav,,train,CC0-1.0,g\n", "line 2: column 'label' is empty"),
        (HEADER + "a.wav,dog\n", "line 2: it has fewer columns"),
        (HEADER + "a.wav,dog,train,CC0-1.0,g\nb.wav,dog,test,CC0-1.0,g\n", "line 3: split = 'test'"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(write_csv(tmp_path, text))


def test_missing_file_and_bad_encoding_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_metadata(tmp_path / "metadata.csv")
    (tmp_path / "metadata.csv").write_bytes(b"file,label\n\xff\xfe\n")
    with pytest.raises(ValueError, match="not a readable CSV"):
        read_metadata(tmp_path / "metadata.csv")


# --- splits ---


def own_clips(tmp_path, rows):
    return read_source(write_csv(tmp_path, "file,label,licence,source_group\n" + rows).parent)


def test_sources_without_split_are_split_whole_and_stay_where_they_are(tmp_path):
    rows = [f"{label}{i}.wav,{label},own,{label}{i // 2}\n" for label in ("rain", "siren") for i in range(40)]
    found = own_clips(tmp_path, "".join(rows))
    split_of = {}
    for r in found:
        assert split_of.setdefault(r.source_group, r.split) == r.split
    for label in ("rain", "siren"):
        assert sum(r.split == "valid" for r in found if r.label == label) == 4  # 2 of 20 sources
    again = own_clips(tmp_path, "".join(rows[:40]))  # without the sirens
    assert [r.split for r in again] == [r.split for r in found[:40]]


def test_a_dozen_clips_leave_one_source_for_validation(tmp_path):
    found = own_clips(tmp_path, "".join(f"{i}.wav,{'ab'[i % 2]},own,\n" for i in range(8)))
    assert sum(r.split == "valid" for r in found) == 1


def test_one_source_in_two_splits_is_an_error(tmp_path):
    path = write_csv(tmp_path, HEADER + "a.wav,rain,train,CC0,g1\nb.wav,rain,valid,CC0,g1\n")
    with pytest.raises(ValueError, match="source_group = 'g1': a.wav is in train, b.wav in valid"):
        read_source(path.parent)


# --- licences ---


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/licenses/by/3.0/", "CC-BY-3.0"),
        ("https://creativecommons.org/licenses/by-nc/4.0/", "CC-BY-NC-4.0"),
        ("http://creativecommons.org/licenses/sampling+/1.0/", "CC-Sampling+-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("Creative Commons 0", "CC0"),
        ("cc-by-nc-sa 3.0", "CC-BY-NC-SA-3.0"),
        ("CC0", "CC0"),
        ("my own", "my own"),
        ("", "not stated"),
    ],
)
def test_licences_have_one_spelling(text, short):
    assert normalise_licence(text) == short


def test_licence_matches_any_version_but_no_further_condition():
    assert licence_matches("CC-BY-3.0", "cc-by") and licence_matches("CC-BY", "CC-BY")
    assert licence_matches("http://creativecommons.org/licenses/by/3.0/", "CC-BY-3.0")
    assert not licence_matches("CC-BY-4.0", "CC-BY-3.0")
    assert not licence_matches("CC-BY-NC-3.0", "CC-BY") and not licence_matches("not stated", "CC0")


def test_filter_keeps_wanted_licences_and_names_what_there_is():
    clips = [recording(licence=x) for x in ("CC0-1.0", "CC-BY-3.0", "CC-BY-NC-3.0", "CC-BY-NC-3.0")]
    assert [r.licence for r in filter_licences(clips, ("CC0", "CC-BY"))] == ["CC0-1.0", "CC-BY-3.0"]
    assert filter_licences(clips, ()) == clips
    with pytest.raises(ValueError, match=r"there are CC-BY-NC-3.0 \(2\), CC0-1.0 \(1\)"):
        filter_licences(clips, ("CC-BY-SA",))
    with pytest.raises(ValueError, match="an empty name"):
        filter_licences(clips, ("CC0", ""))


# --- published layouts, in miniature ---


def make_esc50(root):
    (root / "meta").mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold, source, category in ((1, 100032, "dog"), (2, 55, "vacuum_cleaner"), (5, 208030, "dog")):
        name = f"{fold}-{source}-A-0.wav"
        rows.append(f"{name},{fold},0,{category},{category == 'dog'},{source},A")
        write_tone(root / "audio" / name, rate=44100)
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    (root / "LICENSE").write_text(  # it names files without the class number that meta/esc50.csv adds
        "The dataset as a whole is available under (http://creativecommons.org/licenses/by-nc/3.0/).\n\n101 - Dog:\n"
        "- [1-100032-A.ogg]: clip derived from rose_bark.wav (http://www.freesound.org/people/x/) by x [CC0]\n"
        "- [5-208030-A.ogg]: clip derived from bark [2].wav (http://www.freesound.org/people/y/) by y [CC-BY]\n"
    )
    return root


def make_urbansound8k(root):
    (root / "metadata").mkdir(parents=True)
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold, source, name in ((5, 100032, "dog_bark"), (5, 100263, "children_playing"), (10, 7, "gun_shot")):
        file = f"{source}-3-0-0.wav"
        rows.append(f"{file},{source},0.0,0.317551,1,{fold},3,{name}")
        write_tone(root / "audio" / f"fold{fold}" / file, rate=48000, channels=2)
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")
    return root


def make_fsd50k(root):
    for folder in ("FSD50K.ground_truth", "FSD50K.metadata"):
        (root / folder).mkdir(parents=True)
    (root / "FSD50K.ground_truth" / "dev.csv").write_text(
        "fname,labels,mids,split\n"
        '64760,"Electric_guitar,Guitar,Plucked_string_instrument,Musical_instrument,Music","/m/02sgy,/m/0342h",train\n'
        '16399,"Bark,Dog,Domestic_animals_and_pets,Animal","/m/05tny_,/m/0bt9lr",val\n'
    )
    base = {"title": "x", "description": "", "tags": []}
    (root / "FSD50K.metadata" / "dev_clips_info_FSD50K.json").write_text(
        json.dumps(
            {
                "64760": base | {"license": "http://creativecommons.org/licenses/by/3.0/", "uploader": "a"},
                "16399": base | {"license": "http://creativecommons.org/publicdomain/zero/1.0/", "uploader": "b"},
            }
        )
    )
    for name in ("64760", "16399"):
        write_tone(root / "FSD50K.dev_audio" / f"{name}.wav", rate=44100)
    return root


def summary(recordings):
    return [(r.file, r.label, r.split, r.licence, r.source_group) for r in recordings]


ESC50 = [
    ("audio/1-100032-A-0.wav", "dog barking", "train", "CC0", "freesound-100032"),
    ("audio/2-55-A-0.wav", "vacuum cleaner", "train", "CC-BY-NC-3.0", "freesound-55"),
    ("audio/5-208030-A-0.wav", "dog barking", "valid", "CC-BY", "freesound-208030"),
]
URBANSOUND8K = [
    ("audio/fold5/100032-3-0-0.wav", "dog barking", "train", "CC-BY-NC-3.0", "freesound-100032"),
    ("audio/fold5/100263-3-0-0.wav", "children playing", "train", "CC-BY-NC-3.0", "freesound-100263"),
    ("audio/fold10/7-3-0-0.wav", "gunshot", "valid", "CC-BY-NC-3.0", "freesound-7"),
]
FSD50K = [
    ("FSD50K.dev_audio/64760.wav", "electric guitar", "train", "CC-BY-3.0", "freesound-64760"),
    ("FSD50K.dev_audio/16399.wav", "dog barking", "valid", "CC0-1.0", "freesound-16399"),
]


@pytest.mark.parametrize(
    ("make", "expected"), [(make_esc50, ESC50), (make_urbansound8k, URBANSOUND8K), (make_fsd50k, FSD50K)]
)
def test_published_layouts(tmp_path, make, expected):
    recordings = read_source(make(tmp_path / "set"))
    assert summary(recordings) == expected
    kept, problems = find_usable(recordings)
    assert len(kept) == len(expected) and not problems


def test_a_folder_may_hold_several_collections(tmp_path):
    make_esc50(tmp_path / "ESC-50-master")
    make_fsd50k(tmp_path / "FSD50K")
    write_csv(tmp_path / "mine", "file,label,licence\na.wav,kettle,own\nb.wav,kettle,own\n")
    (tmp_path / "hrtf").mkdir()
    found = read_source(tmp_path)
    assert len(found) == 7
    assert found[0].file == "ESC-50-master/audio/1-100032-A-0.wav" and found[-1].source_group == "mine/b.wav"
    assert len(read_source(tmp_path, ("CC0",))) == 2


def test_a_recording_in_two_collections_is_in_one_split(tmp_path):
    make_urbansound8k(tmp_path / "UrbanSound8K")  # 100032 is for training there
    esc50 = make_esc50(tmp_path / "ESC-50")
    table = esc50 / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("1-100032-A-0.wav,1,", "5-100032-A-0.wav,5,"))
    assert {r.split for r in read_source(tmp_path) if r.source_group == "freesound-100032"} == {"train"}
    assert {r.split for r in read_source(esc50) if r.source_group == "freesound-100032"} == {"valid"}


def test_a_folder_without_a_collection_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="is no source folder: metadata.csv or meta/esc50.csv or"):
        read_source(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_source(tmp_path / "none")


# --- clips ---


def test_unusable_clips_are_skipped_and_listed_by_reason(tmp_path, caplog):
    write_tone(tmp_path / "good.wav")
    write_tone(tmp_path / "stereo.wav", channels=2)
    write_tone(tmp_path / "rate.wav", rate=22050)
    write_tone(tmp_path / "empty.wav", seconds=0)
    write_tone(tmp_path / "silent.wav", level=0)
    write_tone(tmp_path / "faint.wav", level=5e-4)
    write_tone(tmp_path / "clipped.wav", level=3.0)
    (tmp_path / "broken.wav").write_bytes(b"broken")
    names = ["good", "stereo", "rate", "empty", "silent", "faint", "clipped", "broken", "gone"]
    rows = "".join(f"{n}.wav,tone,train,CC0-1.0,{n}\n" for n in names)
    recordings = read_source(write_csv(tmp_path, HEADER + rows).parent)
    kept, problems = find_usable(recordings)
    assert [r.file for r in kept] == ["good.wav", "stereo.wav", "rate.wav"]
    assert {p.file[:-4]: p.kind for p in problems} == {
        "empty": "empty", "silent": "silent", "faint": "silent", "clipped": "clipped", "broken": "unreadable",
        "gone": "unreadable",
    }  # fmt: skip
    (record,) = caplog.records
    assert record.message == format_problems(problems, 9)
    assert "skipped 6 of 9 clips" in record.message and "silent.wav, faint.wav" in record.message
    write_problems(tmp_path / "table.csv", problems)
    with open(tmp_path / "table.csv", newline="") as file:
        assert [(row["file"], row["reason"]) for row in csv.DictReader(file)] == [(p.file, p.kind) for p in problems]
    kept, problems = find_usable(recordings, min_peak=0.0, max_clipped=None)
    assert len(kept) == 5


def test_table_counts_reasons_and_names_a_few():
    table = format_problems([Problem(f"{i}.wav", "silent", "") for i in range(5)] + [Problem("x", "empty", "")], 20)
    assert table.splitlines()[2].split() == ["silent", "5", "0.wav,", "1.wav,", "2.wav,", "..."]
    assert table.splitlines()[3].split() == ["empty", "1", "x"]


def test_no_usable_clip_is_an_error(tmp_path):
    recordings = read_metadata(write_csv(tmp_path, HEADER + "gone.wav,tone,train,CC0-1.0,g\n"))
    with pytest.raises(ValueError, match=r"no usable clip is left of 1: .*gone\.wav"):
        find_usable(recordings)


def test_clips_load_when_asked_and_stay(tmp_path):
    write_tone(tmp_path / "a.wav")
    (first,) = read_metadata(write_csv(tmp_path, HEADER + "a.wav,tone,train,CC0-1.0,g\n"))
    clips = Clips([first])
    loaded = clips[0]
    assert len(clips) == 1 and loaded.dtype == np.float32 and len(loaded) == 3200
    shutil.rmtree(tmp_path)
    assert clips[0] is loaded
