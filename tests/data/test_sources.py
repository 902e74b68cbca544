import logging

import numpy as np
import pytest
import soundfile

from data.sources import count_labels, load_clips, read_metadata

HEADER = "file,label,split,licence,source_group\n"


def write_csv(folder, text):
    path = folder / "metadata.csv"
    path.write_text(text, encoding="utf-8")
    return path


def write_tone(path, *, rate=16000, channels=1, seconds=0.2, level=0.1):
    tone = level * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    soundfile.write(str(path), np.stack([tone] * channels, 1), rate)


def test_rows_become_recordings(tmp_path):
    path = write_csv(tmp_path, HEADER + "audio/a.wav,dog barking,train,CC0-1.0,g1\naudio/b.wav,rain,valid,CC-BY-4.0,\n")
    first, second = read_metadata(path)
    assert (first.label, first.split, first.licence, first.source_group) == ("dog barking", "train", "CC0-1.0", "g1")
    assert first.path == tmp_path / "audio/a.wav"
    assert second.source_group == "audio/b.wav"
    assert count_labels([first, second, second]) == {"dog barking": 1, "rain": 2}


@pytest.mark.parametrize("column", ["file", "label", "split", "licence"])
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


def test_unusable_clips_are_skipped_with_one_summary(tmp_path, caplog):
    write_tone(tmp_path / "good.wav")
    write_tone(tmp_path / "stereo.wav", channels=2)
    write_tone(tmp_path / "rate.wav", rate=22050)
    write_tone(tmp_path / "empty.wav", seconds=0)
    write_tone(tmp_path / "silent.wav", level=0)
    (tmp_path / "broken.wav").write_bytes(b"broken")
    names = ["good", "stereo", "rate", "empty", "silent", "broken", "gone"]
    rows = "".join(f"{n}.wav,tone,train,CC0-1.0,g\n" for n in names)
    recordings = read_metadata(write_csv(tmp_path, HEADER + rows))
    with caplog.at_level(logging.WARNING):
        kept, clips = load_clips(recordings)
    assert [r.file for r in kept] == ["good.wav"]
    assert clips[0].dtype == np.float32 and len(clips[0]) == 3200
    (record,) = caplog.records
    assert "skipped 6 of 7" in record.message
    assert all(f"{n}.wav" in record.message for n in names[1:])


def test_no_usable_clip_is_an_error(tmp_path):
    recordings = read_metadata(write_csv(tmp_path, HEADER + "gone.wav,tone,train,CC0-1.0,g\n"))
    with pytest.raises(ValueError, match=r"no usable clip is left of 1: .*gone\.wav"):
        load_clips(recordings)
