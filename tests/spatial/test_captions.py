"""Tests of dualspec_jax.spatial.captions: captions name what they were given."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualspec_jax.spatial import captions
from dualspec_jax.spatial.captions import STYLES, make_caption
from dualspec_jax.spatial.direction import circular_difference, parse_direction

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
