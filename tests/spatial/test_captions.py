"""Tests of dualspec_jax.spatial.captions: captions name what they were given."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualspec_jax.spatial import captions
from dualspec_jax.spatial.captions import STYLES, make_caption, make_scene_caption, mirror_caption
from dualspec_jax.spatial.direction import (
    TOLERANCE_DEG,
    DirectionError,
    circular_difference,
    describe_direction,
    parse_direction,
    parse_directions,
    wordings,
)
from dualspec_jax.spatial.sounds import labels, sample_event

EVENTS = (
    "a dog barking",
    "the barking of a dog",
    "dog barks",
    "church bells",
    "rain",
    "a right-handed guitar",
    "someone left the room",
    "an alarm clock ringing",
    "a wheel spinning",
    "a choir of twenty",
    "a man says all right",
    "the train has left",
    "glass breaking in the back yard",
    "a clock ticking",
)


@pytest.mark.parametrize("event", EVENTS)
def test_captions_read_back(event):
    for seed in range(250):
        rng = np.random.default_rng(seed)
        azimuth_deg, style = seed * 7 % 360, STYLES[seed % 3]
        caption = make_caption(event, azimuth_deg, rng, style)
        direction = parse_direction(caption)
        assert direction is not None and direction.style == style, caption
        assert abs(circular_difference(direction.azimuth_deg, azimuth_deg)) <= direction.tolerance_deg, caption
        assert event in caption.lower()
        free = make_caption(event, None, rng)
        assert parse_direction(free) is None, free
        assert event in free.lower()


@settings(max_examples=200, deadline=None)
@given(st.none() | st.sampled_from(EVENTS), st.floats(0, 359.9), st.integers(0, 2**32 - 1))
def test_any_azimuth_and_style_read_back(event, azimuth_deg, seed):
    caption = make_caption(event, azimuth_deg, np.random.default_rng(seed))
    direction = parse_direction(caption)
    assert direction is not None, caption
    # 0.05: doa wordings round to 0.1 degrees.
    assert abs(circular_difference(direction.azimuth_deg, azimuth_deg)) <= direction.tolerance_deg + 0.0500001, caption


def test_a_number_before_the_direction_is_no_range():
    """This seed once gave "a choir of twenty - 0 degrees", which cannot be read."""
    caption = make_caption("a choir of twenty", 0.0, np.random.default_rng(1362339))
    assert parse_direction(caption).azimuth_deg == 0.0


def test_who_left_can_be_behind_and_to_the_left():
    assert parse_direction("the train has left behind and to the left").azimuth_deg == 135.0
    assert parse_direction("the train was left behind") is None


def test_styles_are_drawn_uniformly():
    rng = np.random.default_rng(0)
    counts = Counter(parse_direction(make_caption("rain", 75.0, rng)).style for _ in range(900))
    assert set(counts) == set(STYLES)
    assert min(counts.values()) > 240  # 300 +- 14 expected


def test_templates_are_many_and_well_formed():
    groups = [v for k, v in vars(captions).items() if re.fullmatch(r"_[A-Z_]+", k) and isinstance(v, tuple)]
    assert sum(len(set(group)) for group in groups) >= 25
    for template in (t for group in groups for t in group):
        assert set(re.findall(r"{(\w+)}", template)) <= {"event", "direction"}
        assert "  " not in template and template == template.strip()


def test_captions_vary_in_case_and_stop():
    drawn = [make_caption("a dog barking", 60, np.random.default_rng(seed)) for seed in range(200)]
    assert len(set(drawn)) > 150
    assert 0.3 < np.mean([caption[0].isupper() for caption in drawn]) < 0.7
    assert 0.3 < np.mean([caption.endswith(".") for caption in drawn]) < 0.7
    assert not any("  " in caption or ".." in caption for caption in drawn)


@pytest.mark.parametrize("event", ["dog barks", "a man speaks", "it is raining", "a dog is barking"])
def test_clauses_get_only_templates_that_fit(event):
    for seed in range(100):
        rng = np.random.default_rng(seed)
        for caption in (make_caption(event, 60, rng), make_caption(event, None, rng)):
            assert not re.search(r"sound of|can be|hear |is heard|there is|coming|located|listen", caption, re.I), (
                caption
            )


def test_event_is_fitted_into_the_sentence():
    rng = np.random.default_rng(0)
    drawn = [make_caption("  Dog barking. ", None, rng) for _ in range(50)]
    assert all(re.search(r"(^Dog|\bdog) barking\.?( |$)", caption) for caption in drawn)
    assert any("TV playing" in make_caption("TV playing", None, rng) for _ in range(5))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((None, None), "event"),
        (("  ", 60), "event"),
        (("a dog on my left", 60), "event"),
        (("rain", 400), "azimuth_deg"),
        (("rain", float("nan")), "azimuth_deg"),
        (("rain", 60, "words"), "style"),
    ],
)
def test_bad_arguments_raise(arguments, field):
    event, azimuth_deg, *style = arguments
    with pytest.raises(ValueError, match=field):
        make_caption(event, azimuth_deg, np.random.default_rng(0), *style)


# --- the grammar runs both ways ---

# Without "the train has left behind on the left": is that left, or behind?
PLAIN_EVENTS = [event for event in EVENTS if event != "the train has left"]
STYLE_WORDINGS = [(style, i) for style in STYLES for i in range(len(wordings(style)))]


def read_both_ways(event, azimuth_deg, style, wording):
    """Word a direction, read it back, mirror it, and mirror it back."""
    words = describe_direction(azimuth_deg, style, None, wording)
    text = f"{event} {words}"
    direction, mirrored = parse_direction(text), mirror_caption(text)
    assert direction.style == style
    assert abs(circular_difference(direction.azimuth_deg, azimuth_deg)) <= TOLERANCE_DEG[style], text
    assert parse_direction(mirrored).azimuth_deg == -direction.azimuth_deg % 360, (text, mirrored)
    assert parse_direction(mirror_caption(mirrored)).azimuth_deg == direction.azimuth_deg, (text, mirrored)
    assert mirrored.startswith(event)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLAIN_EVENTS), st.integers(0, 359), st.sampled_from(STYLE_WORDINGS))
def test_every_wording_reads_back_and_mirrors(event, azimuth_deg, style_wording):
    read_both_ways(event, azimuth_deg, *style_wording)


@pytest.mark.slow
@pytest.mark.parametrize(("style", "wording"), STYLE_WORDINGS)
def test_all_azimuths_read_back_and_mirror_in_every_wording(style, wording):
    for azimuth_deg in range(360):
        read_both_ways("a dog barking", azimuth_deg, style, wording)


def test_four_ways_to_say_one_place():
    for words in ("60 degrees to the right", "at -60 degrees", "at 300 degrees", "at 2 o'clock"):
        assert parse_direction(f"a dog barking {words}").azimuth_deg == 300.0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(labels()), st.integers(0, 359)), min_size=2, max_size=3),
    st.sampled_from([None, *STYLES]),
    st.integers(0, 2**32 - 1),
)
def test_captions_of_several_sources_give_all_directions_back_in_order(sources, style, seed):
    rng = np.random.default_rng(seed)
    worded = [(sample_event(label, rng), azimuth) for label, azimuth in sources]
    caption = make_scene_caption(worded, rng, style)
    found = parse_directions(caption)
    assert len(found) == len(sources), caption
    for direction, (event, azimuth) in zip(found, worded, strict=True):
        assert abs(circular_difference(direction.azimuth_deg, azimuth)) <= direction.tolerance_deg, caption
        assert style in (None, direction.style) and event.lower() in caption.lower()
    mirrored = parse_directions(mirror_caption(caption))
    assert [d.azimuth_deg for d in mirrored] == [-d.azimuth_deg % 360 for d in found], caption


def test_one_source_is_captioned_as_ever():
    assert make_scene_caption([("rain", 60.0)], np.random.default_rng(3)) == make_caption(
        "rain", 60.0, np.random.default_rng(3)
    )


def test_captions_of_several_sources_vary():
    sources = [("a dog barking", 60.0), ("rain", 200.0)]
    drawn = {make_scene_caption(sources, np.random.default_rng(seed)) for seed in range(200)}
    assert len(drawn) > 190


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("A dog barking at 60 degrees.", "A dog barking at 300 degrees."),
        ("rain 60 degrees to the left", "rain 60 degrees to the right"),
        ("rain at minus sixty degrees", "rain at sixty degrees"),
        ("rain (at 40.4 degrees to the right)", "rain (at 40.4 degrees to the left)"),
        ("rain at 319.6 degrees", "rain at 40.4 degrees"),
        ("a bell at 10:30 o'clock", "a bell at 1:30 o'clock"),
        ("Left: a right-handed guitar", "Right: a right-handed guitar"),
        ("rain 30 degrees anticlockwise", "rain 30 degrees clockwise"),
        ("someone left the room", "someone left the room"),
        ("rain on my left at 11 o'clock", "rain on my right at 1 o'clock"),
        ("rain on my left while a dog barks right behind me", "rain on my right while a dog barks right behind me"),
    ],
)
def test_mirrored_captions_keep_their_words(text, mirrored):
    assert mirror_caption(text) == mirrored


def test_bad_scenes_are_named():
    with pytest.raises(ValueError, match="a caption names 1 to 3"):
        make_scene_caption([("rain", 0.0)] * 4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="style: 'words'"):
        make_scene_caption([("rain", 0.0)] * 2, np.random.default_rng(0), "words")
    with pytest.raises(DirectionError):
        mirror_caption("rain at 400 degrees")
