"""Tests of dualspec_jax.spatial.direction: words to degrees and back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualspec_jax.spatial.direction import (
    STYLES,
    Direction,
    DirectionError,
    circular_difference,
    describe_direction,
    parse_direction,
    validate_azimuth,
    wordings,
    wrap_azimuth,
)

DOA = {
    "a dog barks at 60 degrees": 60,
    "60°": 60,
    "dog bark, 60 deg": 60,
    "rain at azimuth 60": 60,
    "azimuth=275.5": 275.5,
    "a siren at an azimuth of 60 degrees": 60,
    "at an angle of 60": 60,
    "at an angle of sixty degrees": 60,
    "at a 60-degree angle": 60,
    "60deg": 60,
    "60\N{MASCULINE ORDINAL INDICATOR}": 60,
    "siren, DOA 60": 60,
    "30 degrees off-center to the right": 330,
    "SIXTY DEGREES": 60,
    "thirty-seven point five degrees": 37.5,
    "at three hundred and fifteen degrees": 315,
    "at a hundred and twenty degrees": 120,
    "at twenty two and a half degrees": 22.5,
    "at 37.5 degrees": 37.5,
    "at -60 degrees": 300,
    "at \N{MINUS SIGN}60 degrees": 300,
    "a dog - 60 degrees": 60,
    "minus sixty degrees": 300,
    "at 360 degrees": 0,
    "60 degrees to the right": 300,
    "60 degrees to the left": 60,
    "60° left": 60,
    "30 degrees right": 330,
    "30 degrees left of front": 30,
    "30 degrees left of centre": 30,
    "30 degrees to the right of center": 330,
    "a voice turned 20 degrees to my right": 340,
    "20 degrees right of behind": 200,
    "20 degrees left of directly behind": 160,
    "20 degrees off the back to the right": 200,
    "60 degrees off the front to the left": 60,
    "60 degrees clockwise": 300,
    "60 degrees clockwise from the front": 300,
    "60 degrees counter-clockwise": 60,
    "60 degrees anticlockwise": 60,
    "to the right by 30 degrees": 330,
    "120 degrees on my right": 240,
    "at 300 degrees on my right": 300,
    "at 180 degrees behind me": 180,
    "azimuth 60 degrees, elevation 0 degrees": 60,
    "a choir of twenty at sixty degrees": 60,
    "a kettle boiling at 100 degrees Celsius at 60 degrees": 60,
}
CLOCK = {
    "a dog barks at 10 o'clock": 60,
    "at ten o'clock": 60,
    "10 o clock": 60,
    "10 oclock": 60,
    "10 O\N{RIGHT SINGLE QUOTATION MARK}CLOCK": 60,
    "at 10:00 o'clock position": 60,
    "in the ten o'clock direction": 60,
    "at your 3 o'clock": 270,
    "a clock ticking at 3 o'clock": 270,
    "the clock chimes, at 9 o'clock": 90,
    "at 12 o'clock": 0,
    "at six o'clock": 180,
    "at half past two": 285,
    "at half past 2 o'clock": 285,
    "2:30 o'clock": 285,
    "two thirty o'clock": 285,
    "at 12:30 o'clock": 345,
    "on the left at 9 o'clock": 90,
    "on my left, at 11 o'clock": 30,
}
GENERAL = {
    "a cat in front of me": 0,
    "straight ahead": 0,
    "ahead of you": 0,
    "dead ahead": 0,
    "from the front": 0,
    "right in front of you": 0,
    "to the front left": 45,
    "front-left": 45,
    "ahead and to the left": 45,
    "in front on the left": 45,
    "in front of me, slightly to the right": 315,
    "slightly to the left": 45,
    "left of centre": 45,
    "dogs bark on my left": 90,
    "on the left hand side": 90,
    "on the left-hand side": 90,
    "to your left": 90,
    "left side": 90,
    "from the left": 90,
    "leftwards": 90,
    "to the left of me": 90,
    "beside me on the left": 90,
    "next to me on my left": 90,
    "in my left ear": 90,
    "a dog barking, left": 90,
    "Left: a dog barking.": 90,
    "someone left the room on the left": 90,
    "over my left shoulder": 135,
    "to the back left": 135,
    "on my left, behind me": 135,
    "behind me": 180,
    "from behind": 180,
    "at the back": 180,
    "behind you": 180,
    "directly behind": 180,
    "right behind me": 180,
    "from right behind me": 180,
    "to the rear": 180,
    "behind me on the right": 225,
    "rear right": 225,
    "from the right rear": 225,
    "back and to the right": 225,
    "right and behind": 225,
    "from the right, behind me": 225,
    "over your right shoulder": 225,
    "at my right ear": 270,
    "on the right": 270,
    "to the right a man speaks": 270,
    "a door slams right now on the right": 270,
    "a right-handed guitar on the right": 270,
    "in front and to the right": 315,
    "front right": 315,
}
FREE = (
    "",
    "a dog barks",
    "a right-handed guitar",
    "left-over food sizzling",
    "the clock ticks",
    "an alarm clock ringing",
    "three dogs bark",
    "a bright bell",
    "footsteps in the back yard",
    "a kettle at a temperature of 40 degrees",
    "temperature 40 degrees celsius",
    "40 degrees Fahrenheit",
    "water at 60 °C",
    "a skater spins 360 degrees",
    "a door slams right now",
    "all right",
    "that sounds all right.",
    "someone left the room",
    "a toy left behind",
    "knocking on the front door",
    "a man plays with his right hand",
    "a bird sings at the right time",
    "children in the back seat",
    "a dog behind the house",
    "a fountain in front of the church",
    "the clock strikes ten o'clock",
    "the news at 6 o'clock in the morning",
    "a plane flying overhead",
    "the south wind howls",
    "background music",
    "go ahead, said the man",
    "wind blowing the leaves",
    "a bass drum and ten violins",
    "I will be right back",
    "someone turned left",
)
ERRORS = (
    "on my left at 3 o'clock",
    "from left to right",
    "in front of me and behind me",
    "on the right at 60 degrees",
    "a dog in front of me and a cat on my left",
    "at 60 degrees and at 61 degrees",
    "at 9 o'clock and 10 o'clock",
    "at 10 o'clock or 11 o'clock",
    "from 10 to 20 degrees",
    "at 14 o'clock",
    "at 0 o'clock",
    "at half past zero",
    "at 10:15 o'clock",
    "quarter past two o'clock",
    "at -3 o'clock",
    "at 400 degrees",
    "at -360 degrees",
    "at nan degrees",
    "azimuth inf",
    "at 1e999 degrees",
    "-60 degrees to the right",
    "20 degrees off the back",
    "from the north east",
    "from the west",
    "above me",
    "a bee below my feet",
    "over my head",
    "at an elevation of 30 degrees",
    "30 degrees above the horizon",
    "to the north of me",
)


@pytest.mark.parametrize(
    ("text", "azimuth_deg", "style"),
    [
        pytest.param(text, azimuth_deg, style, id=text)
        for style, table in (("doa", DOA), ("clock", CLOCK), ("general", GENERAL))
        for text, azimuth_deg in table.items()
    ],
)
def test_wordings_give_degrees_and_span(text, azimuth_deg, style):
    direction = parse_direction(text)
    assert direction is not None
    assert (direction.azimuth_deg, direction.style) == (azimuth_deg, style)
    assert direction.tolerance_deg == {"doa": 0.0, "clock": 15.0, "general": 22.5}[style]
    start, end = direction.span
    assert direction.text == text[start:end] == direction.text.strip()
    assert direction.text


@pytest.mark.parametrize("text", FREE)
def test_event_words_are_no_direction(text):
    assert parse_direction(text) is None


@pytest.mark.parametrize("text", ERRORS)
def test_contradictory_or_invalid_directions_raise(text):
    with pytest.raises(DirectionError, match="direction ['\"].+['\"]: .+; .+"):
        parse_direction(text)


def test_error_names_words_and_rule():
    with pytest.raises(DirectionError) as info:
        parse_direction("a dog at 14 o'clock")
    assert "14 o'clock" in str(info.value)
    assert "hours are 1 to 12" in str(info.value)
    assert isinstance(info.value, ValueError)


@pytest.mark.parametrize("style", STYLES)
def test_every_wording_of_every_degree_reads_back(style):
    rng = np.random.default_rng(0)
    for wording in range(len(wordings(style))):
        for azimuth_deg in range(360):
            text = describe_direction(azimuth_deg, style, rng, wording)
            direction = parse_direction(text)
            assert direction is not None and direction.style == style, text
            assert abs(circular_difference(direction.azimuth_deg, azimuth_deg)) <= direction.tolerance_deg, text
            assert direction.text in text


@settings(max_examples=200, deadline=None)
@given(st.integers(-3599, 3600), st.integers(0, 2**32 - 1))
def test_tenths_of_a_degree_read_back_exactly(tenths, seed):
    text = describe_direction(tenths / 10, "doa", np.random.default_rng(seed))
    assert parse_direction(text).azimuth_deg == pytest.approx(wrap_azimuth(tenths / 10), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-360, 360, exclude_min=True), st.sampled_from(STYLES), st.integers(0, 2**32 - 1), st.sampled_from("ULT")
)
def test_any_azimuth_reads_back_within_tolerance_in_any_case(azimuth_deg, style, seed, case):
    text = describe_direction(azimuth_deg, style, np.random.default_rng(seed))
    text = {"U": text.upper(), "L": text.lower(), "T": text.title()}[case]
    direction = parse_direction(text)
    slack = 0.0500001 if style == "doa" else 1e-9  # doa wordings round to 0.1 degrees
    assert abs(circular_difference(direction.azimuth_deg, azimuth_deg)) <= direction.tolerance_deg + slack


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_parses_or_raises_direction_error(text):
    try:
        direction = parse_direction(text)
    except DirectionError:
        return
    assert direction is None or (isinstance(direction, Direction) and 0 <= direction.azimuth_deg < 360)


def test_half_hours_are_used_only_between_hours():
    rng = np.random.default_rng(0)
    assert describe_direction(285, "clock", rng, 0) == "at 2:30 o'clock"
    assert describe_direction(285, "clock", rng, 1) == "at half past two o'clock"
    assert describe_direction(284, "clock", rng, 0) == "at 3 o'clock"
    assert describe_direction(345, "clock", rng, 0) == "at 12:30 o'clock"
    assert parse_direction("at 12:30 o'clock").azimuth_deg == 345


def test_wording_is_drawn_from_rng():
    drawn = {describe_direction(60, "doa", np.random.default_rng(seed)) for seed in range(40)}
    assert len(drawn) > 10
    assert {describe_direction(60, "doa", np.random.default_rng(1)) for _ in range(3)} <= drawn


def test_parse_cost_does_not_explode():
    text = "on the left and " * 200 + "twenty " * 500 + "one hundred and " * 200 + "- 10 " * 500
    assert parse_direction(text).azimuth_deg == 90
    direction = parse_direction("60 degrees" + " " * 20000 + "to \n the  right")
    assert (direction.azimuth_deg, direction.span) == (300, (0, 20025))


def test_validate_azimuth_wraps_and_names_the_field():
    assert [validate_azimuth(v) for v in (0, -90, 360, 359.5, -359.5, "60")] == [0, 270, 0, 359.5, 0.5, 60]
    assert math.copysign(1.0, validate_azimuth(-0.0)) == 1.0
    for bad in (float("nan"), float("inf"), -360, 361, "left", None):
        with pytest.raises(ValueError, match="azimuth_deg"):
            validate_azimuth(bad)


@pytest.mark.parametrize("bad", [{"style": "words"}, {"wording": 999}, {"wording": -1}, {"azimuth_deg": 400}])
def test_describe_rejects_bad_arguments(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        describe_direction(**({"azimuth_deg": 60, "style": "doa", "rng": np.random.default_rng(0)} | bad))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_circular_difference_is_the_short_way(a, b):
    difference = circular_difference(a, b)
    assert -180 < difference <= 180
    assert 0 <= wrap_azimuth(a) < 360
    assert np.cos(np.deg2rad(difference)) == pytest.approx(np.cos(np.deg2rad(a - b)), abs=1e-6)


def test_circle_functions_take_arrays():
    np.testing.assert_allclose(wrap_azimuth(np.array([-90.0, 360.0, 725.0, -1e-20])), [270, 0, 5, 0])
    np.testing.assert_allclose(circular_difference(np.array([10.0, 350.0, 180.0]), [350, 10, 0]), [20, -20, 180])
