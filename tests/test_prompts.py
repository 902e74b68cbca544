import pytest

from dualspec_jax.prompt_set import make_prompts
from dualspec_jax.prompts import Request, Row, Scene, complete, count_rows, read_rows, read_scene, slug
from dualspec_jax.spatial.sounds import event_wordings, labels, match_sound


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text_has_a_prompt_a_line(tmp_path):
    path = write(tmp_path, "p.txt", "# two\na dog, on my left\n\n  rain behind me \n")
    assert list(read_rows(path)) == [Row(2, "a dog, on my left"), Row(4, "rain behind me")]
    assert count_rows(path) == 2


def test_csv_columns_are_read_and_empty_cells_are_absent(tmp_path):
    text = 'prompt,azimuth,seed,name\n"rain, heavy",-90,7,wet/one\nrain,,,\n'
    rows = list(read_rows(write(tmp_path, "p.csv", text)))
    assert rows == [Row(2, "rain, heavy", 270.0, 7, "wet/one"), Row(3, "rain")]


def test_jsonl_fields_are_read(tmp_path):
    text = '{"prompt": "rain", "azimuth": 12.5, "seed": 3, "negative_prompt": "wind"}\n\n{"prompt": "a dog"}\n'
    rows = list(read_rows(write(tmp_path, "p.jsonl", text)))
    assert rows == [Row(1, "rain", 12.5, 3, negative_prompt="wind"), Row(3, "a dog")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is no JSON"),
        ("[]", "must be an object"),
        ('{"prompt": "rain", "azimut": 3}', "must be an object of prompt, azimuth"),
        ('{"prompt": "rain", "azimuth": "x"}', "azimuth"),
        ('{"prompt": "rain", "seed": -1}', "seed = -1"),
        ('{"prompt": "rain", "seed": 1.5}', "seed = 1.5"),
        ('{"prompt": "rain", "name": "../x"}', "name = '../x'"),
        ('{"prompt": "rain", "name": "/etc/x"}', "name = '/etc/x'"),
    ],
)
def test_bad_line_has_its_problem_and_the_next_is_read(tmp_path, line, problem):
    bad, good = read_rows(write(tmp_path, "p.jsonl", f'{line}\n{{"prompt": "rain"}}\n'))
    assert problem in bad.problem and bad.line == 1
    assert good == Row(2, "rain")


def test_csv_line_of_another_length_has_its_problem(tmp_path):
    short, good, long = read_rows(write(tmp_path, "p.csv", "prompt,seed\nrain\nrain,1\nrain,1,2\n"))
    assert "number of fields" in short.problem and good.problem is None and "number of fields" in long.problem


@pytest.mark.parametrize("header", ["text,seed", "prompt,loudness"])
def test_wrong_header_is_named(tmp_path, header):
    with pytest.raises(ValueError, match=f"columns are {header.replace(',', ', ')}"):
        list(read_rows(write(tmp_path, "p.csv", f"{header}\nrain,1\n")))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"prompts-file = .*none\.txt"):
        list(read_rows(tmp_path / "none.txt"))


def test_scene_takes_the_number_before_the_words():
    assert read_scene("a dog at 10 o'clock") == Scene("a dog at 10 o'clock", 60.0, 60.0, "clock")
    assert read_scene("a dog at 10 o'clock", 65.0).azimuth_deg == 65.0
    assert read_scene("a dog", -90.0).azimuth_deg == 270.0
    assert read_scene("a dog").azimuth_deg is None
    with pytest.raises(ValueError, match="azimuth = 200: contradicts"):
        read_scene("a dog at 10 o'clock", 200.0)
    with pytest.raises(ValueError, match="prompt = ' '"):
        read_scene(" ")


def test_slug_is_a_file_name():
    assert slug("A dog: 10 o'clock!") == "a-dog-10-o-clock" and slug("???") == "prompt" and len(slug("x" * 99)) == 60


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("rain at 3 o'clock"), ("rain at 3 o'clock", 270.0)),
        (Request("rain at 3 o'clock", azimuth_deg=280.0), ("rain at 3 o'clock", 280.0)),
        (Request("It rains. ", azimuth_deg=37.6), ("It rains, at 38 degrees", 37.6)),
        (Request("rain", azimuth_deg=359.7), ("rain, at 0 degrees", 359.7)),
        (Request("rain"), ("rain", None)),
        (Request("", azimuth_deg=90.0), ("", 90.0)),
        (Request("rain at 3 o'clock", text_only=True), ("rain at 3 o'clock", None)),
        (Request("rain", azimuth_deg=90.0, text_only=True), ("rain", 90.0)),
    ],
)
def test_direction_is_said_in_words_and_as_a_number(request_, expected):
    completed = complete(request_)
    assert (completed.prompt, completed.azimuth_deg) == expected
    assert completed.seed == request_.seed and complete(completed) == completed


SOUNDS = ("dog barking", "rain", "kettle whistling")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request("a watchful hound woofing at 10 o'clock"), ("dog barking, at 60 degrees", 60.0)),
        (Request("my old kettle is whistling", azimuth_deg=37.6), ("kettle whistling, at 38 degrees", 37.6)),
        (Request("raindrops all over my tin roof"), ("rain", None)),
        (Request("dogs barking at 10 o'clock"), ("dogs barking at 10 o'clock", 60.0)),  # as training has it
        (Request("a rooster crows at 3 o'clock"), ("a rooster crows at 3 o'clock", 270.0)),  # the model has none
        (Request("at 3 o'clock"), ("at 3 o'clock", 270.0)),
        (Request("a hound at 3 o'clock", text_only=True), ("a hound at 3 o'clock", None)),
    ],
)
def test_words_for_a_known_sound_become_its_label(request_, expected):
    completed = complete(request_, SOUNDS)
    assert (completed.prompt, completed.azimuth_deg) == expected
    assert complete(completed, SOUNDS) == completed
    assert complete(request_).prompt.startswith(request_.prompt)  # without sounds, words stay


def test_every_label_is_taken_for_itself():
    assert [complete(Request(label), labels()).prompt for label in labels()] == list(labels())


def test_training_wordings_stay():
    for label in labels():
        for wording in event_wordings(label)[::9]:
            assert complete(Request(wording), labels()).prompt in (wording, label)
            match = match_sound(wording)
            assert match.label != label or match.trained


def test_heldout_wordings_are_taken_for_their_sound_and_training_wordings_stay():
    share = {}
    for name, right in (("heldout_full", 0.98), ("full", 0.99)):
        prompts = make_prompts("words", name)
        completed = [complete(Request(p.text), labels()).prompt for p in prompts]
        changed = [done != p.text for done, p in zip(completed, prompts, strict=True)]
        share[name] = sum(changed) / len(prompts)
        new = [done.split(", at ")[0] == p.label for done, c, p in zip(completed, changed, prompts, strict=True) if c]
        assert sum(new) / len(prompts) > right - (1 - share[name])
    assert share["heldout_full"] > 0.85 and share["full"] < 0.1
