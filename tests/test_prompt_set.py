import collections

import numpy as np
import pytest

from dualspec_jax import prompt_set
from dualspec_jax.prompt_set import AZIMUTHS_DEG, LABELS, MORE_LABELS, PROMPT_SET_VERSION, limit_evenly, make_prompts
from dualspec_jax.spatial.direction import circular_difference, parse_direction
from dualspec_jax.spatial.sounds import event_wordings, heldout_wordings, labels, match_sound

DIGESTS = {  # a changed prompt set needs a new version, and a line here
    1: {
        "ten": "38539b4c5a209eb1cf5fca2722b4aea78f7ec0f17d91bc24f0f5fd79d70d2aee",
        "full": "41d20bbd6e8dff6ec10913ebf4fcde48bf8d213029f9a988a3b9781482c5725f",
        "quick": "04ac7c38c2d20a00dcd1bdff182c55cb2a2c510258d24a64e9f9a31763b1c9e4",
        "heldout": "f340006abaedc407f5edf3ad8b2b0c403c0d6f4d0bebf7f52ae133075b82e598",
        "heldout_full": "3ab9a8ce01f44db2c8c94956ad622bc0553717d90d0bed2b6bdfad147d7daf99",
    }
}


@pytest.mark.parametrize("name", prompt_set.SETS)
def test_a_set_is_what_its_version_says(name):
    assert prompt_set.to_json(name)["sha256"] == DIGESTS[PROMPT_SET_VERSION][name]


def test_quick_asks_for_the_same_directions_in_three_wordings():
    words, numeric = (make_prompts(row, "quick") for row in ("words", "numeric"))
    assert len(words) + len(numeric) == 120
    requests = collections.Counter((p.label, p.azimuth_deg) for p in words)
    assert set(requests.values()) == {3} and len(requests) == 30
    assert set(requests) == {(p.label, p.azimuth_deg) for p in numeric}
    assert {azimuth for _, azimuth in requests} == {45.0 * k for k in range(8)}


def test_full_covers_the_circle_for_every_well_populated_sound():
    prompts = make_prompts("words", "full")
    assert len(prompts) == 27 * 24 * 3 and len(make_prompts("numeric", "full")) == 27 * 24
    some = prompts[::7]
    assert np.mean([match_sound(p.text).label == p.label for p in some]) > 0.9  # "crunching wood" may be steps
    for prompt in some:
        direction = parse_direction(prompt.text)
        assert abs(circular_difference(direction.azimuth_deg, prompt.azimuth_deg)) < 1e-6, prompt
        assert direction.style == prompt.style
    assert {p.azimuth_deg for p in prompts if p.style == "clock"} == {15.0 * k for k in range(24)}


@pytest.mark.parametrize(("name", "sounds"), [("heldout", LABELS), ("heldout_full", (*LABELS, *MORE_LABELS))])
def test_heldout_has_thirty_new_wordings_of_each_sound_all_around(name, sounds):
    prompts = make_prompts("words", name)
    assert prompt_set.labels_of(name) == sounds
    assert collections.Counter(p.label for p in prompts) == dict.fromkeys(sounds, prompt_set.HELDOUT_WORDINGS)
    assert len({p.azimuth_deg for p in prompts}) > 200
    for prompt in prompts:
        assert any(w.lower() in prompt.text.lower() for w in heldout_wordings(prompt.label)), prompt
        assert parse_direction(prompt.text).azimuth_deg == prompt.azimuth_deg
    assert all(parse_direction(p.text) is None for p in make_prompts("numeric", name))


@pytest.mark.parametrize("row", prompt_set.ROWS)
def test_heldout_full_has_every_wording_once_and_none_of_training(row):
    wordings = [w for label in prompt_set.labels_of("heldout_full") for w in heldout_wordings(label)]
    prompts = make_prompts(row, "heldout_full")
    assert len({w.lower() for w in wordings}) == len(wordings) == len(prompts) == 27 * 30
    for prompt, wording in zip(prompts, wordings, strict=True):
        assert wording.lower() in prompt.text.lower(), prompt
    trained = {w.lower() for label in labels() for w in event_wordings(label)}
    assert not trained & {w.lower() for w in wordings}


@pytest.mark.parametrize("row", prompt_set.ROWS)
def test_every_sound_at_every_azimuth_once(row):
    prompts = make_prompts(row)
    assert [p.index for p in prompts] == list(range(120))
    wanted = {(label, azimuth) for label in LABELS for azimuth in AZIMUTHS_DEG}
    assert {(p.label, p.azimuth_deg) for p in prompts} == wanted
    assert all(match_sound(p.text).label == p.label for p in prompts)


def test_words_name_exactly_their_azimuth():
    for prompt in make_prompts("words"):
        direction = parse_direction(prompt.text)
        assert abs(circular_difference(direction.azimuth_deg, prompt.azimuth_deg)) < 1e-6, prompt
        assert direction.style == prompt.style


def test_numeric_prompts_name_no_direction():
    assert all(parse_direction(p.text) is None for p in make_prompts("numeric"))


def test_styles_take_turns():
    count = collections.Counter(p.style for p in make_prompts("words"))
    assert min(count.values()) >= 13 and count["doa"] >= 50 and count["clock"] >= 50
    for azimuth in AZIMUTHS_DEG:
        styles = {p.style for p in make_prompts("words") if p.azimuth_deg == azimuth}
        assert styles == {"doa", "clock"} | ({"general"} if azimuth % 90 == 0 else set())


def test_unknown_row():
    with pytest.raises(ValueError, match="row = 'real': must be one of"):
        make_prompts("real")
    with pytest.raises(ValueError, match="prompt set = 'all': must be one of"):
        make_prompts("words", "all")


def test_limit_keeps_the_order_and_spreads():
    prompts = make_prompts("words")
    some = limit_evenly(prompts, 24)
    assert [p.index for p in some] == sorted(p.index for p in some) and len(some) == 24
    assert len({p.label for p in some}) >= 7 and len({p.azimuth_deg for p in some}) >= 7
    assert limit_evenly(prompts, None) == limit_evenly(prompts, 500) == list(prompts)
