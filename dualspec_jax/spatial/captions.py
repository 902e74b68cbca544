"""Write captions that name a sound event, a direction, or both.

Every caption with a direction reads back with `parse_direction`; every caption without one reads back as None.

Paper: a caption names event and direction in one of three styles (abstract and demo page); the templates are ours.
"""

from collections.abc import Sequence

import numpy as np

from dualspec_jax.spatial.direction import (
    STYLES,
    DirectionError,
    circular_difference,
    describe_direction,
    parse_direction,
)
from dualspec_jax.spatial.mirror import mirror_directions

__all__ = ["STYLES", "make_caption", "make_scene_caption", "mirror_caption"]

mirror_caption = mirror_directions  # the words of a scene whose ears are swapped

DRAWS = 100  # of a caption, until one reads back
# Fine for any event: "a dog barking", "dog barks", "a man speaks while a car passes".
_EVENT_DIRECTION = (
    "{event} {direction}", "{event} {direction}", "{event}, {direction}", "{direction}, {event}",
    "{direction}: {event}", "{event} - {direction}", "{event} ({direction})", "{event}; {direction}",
    "sound: {event}, {direction}", "{event}, heard {direction}", "{event}, somewhere {direction}",
)  # fmt: skip
# Only for a noun phrase: "a dog barking", "the barking of a dog", "rain".
_NOUN_DIRECTION = (
    "I hear {event} {direction}", "you hear {event} {direction}", "we can hear {event} {direction}",
    "the sound of {event} {direction}", "sound of {event}, {direction}", "{event} can be heard {direction}",
    "{event} is heard {direction}", "there is {event} {direction}", "{direction} there is {event}",
    "{direction} I hear {event}", "{direction}, the sound of {event}", "listen to {event} {direction}",
    "{event} located {direction}", "a recording of {event} {direction}",
)  # fmt: skip
# Only for a noun phrase and a direction that starts with "from".
_NOUN_FROM = (
    "the sound of {event} coming {direction}", "I hear {event} coming {direction}", "{event} reaches me {direction}",
    "the sound of {event} arrives {direction}", "{event} coming {direction}", "{direction} comes the sound of {event}",
)  # fmt: skip
_EVENT = ("{event}", "{event}", "{event}", "sound: {event}")
_NOUN = (
    "I hear {event}", "you hear {event}", "the sound of {event}", "sound of {event}", "{event} can be heard",
    "there is {event}", "a recording of {event}", "listen to {event}",
)  # fmt: skip
_DIRECTION = (
    "a sound {direction}", "something {direction}", "a noise {direction}", "I hear something {direction}",
    "there is a sound {direction}", "{direction}", "{direction}, a sound", "some sound {direction}",
    "a sound can be heard {direction}", "sound, {direction}",
)  # fmt: skip
# One part of a caption for several sources. The event comes first, so that each direction ends its part.
_PART = ("{event} {direction}", "{event} {direction}", "{event}, {direction}", "{event} ({direction})")
_NOUN_PART = ("{event} {direction}", "{event} heard {direction}", "{event} located {direction}")
_NOUN_FROM_PART = ("{event} coming {direction}", "{event} {direction}")
# Parts in the order in which their sounds start.
_JOINED = {
    2: (
        "{0} and {1}", "{0}, and {1}", "{0}; {1}", "{0} while {1}", "{0}. {1}", "{0}, with {1}", "{0}, plus {1}",
        "two sounds: {0} and {1}", "first {0}, then {1}", "{0}, followed by {1}", "{0}; meanwhile {1}",
    ),
    3: (
        "{0}, {1} and {2}", "{0}, {1}, and {2}", "{0}; {1}; {2}", "{0}. {1}. {2}", "three sounds: {0}, {1} and {2}",
        "first {0}, then {1}, and then {2}", "{0} while {1} and {2}", "{0}, followed by {1} and {2}",
    ),
}  # fmt: skip
_JOINED_NOUNS = {
    2: ("I hear {0} and {1}", "the sound of {0}, and of {1}", "there is {0} and {1}", "a scene with {0} and {1}"),
    3: ("I hear {0}, {1} and {2}", "there is {0}, {1} and {2}", "a scene with {0}, {1}, and {2}"),
}


def make_scene_caption(sources: Sequence[tuple[str, float]], rng: np.random.Generator, style: str | None = None) -> str:
    """Return one of many captions for one to three sources; `parse_directions` gives their directions back in order.

    Args:
      sources: (event, azimuth in degrees) in the order in which the sounds start; see `make_caption`.
      style: of all directions; None draws one for each.

    Raises:
      ValueError: no source or more than three, or as `make_caption`.
    """
    if not 1 <= len(sources) <= 3:
        raise ValueError(f"sources: {len(sources)} given; a caption names 1 to 3")
    if len(sources) == 1:
        return make_caption(*sources[0], rng, style)
    if style is not None and style not in STYLES:
        raise ValueError(f"style: {style!r} must be one of {STYLES} or None")
    parts, nouns = [], True
    for event, azimuth_deg in sources:
        event = _clean(event)
        direction = describe_direction(azimuth_deg, style or _choose(STYLES, rng), rng)
        templates = _PART
        if _is_noun_phrase(event):
            templates += _NOUN_PART + (_NOUN_FROM_PART if direction.startswith("from ") else ())
        else:
            nouns = False
        parts.append(_choose(templates, rng).format(event=event, direction=direction))
    joined = _JOINED[len(parts)] + (_JOINED_NOUNS[len(parts)] if nouns else ())
    return _finish(_choose(joined, rng).format(*parts), rng)


def make_caption(
    event: str | None, azimuth_deg: float | None, rng: np.random.Generator, style: str | None = None
) -> str:
    """Return one of many captions for an event, an azimuth, or both.

    Args:
      event: a phrase such as "a dog barking", "the barking of a dog" or "dog barks"; None to name the direction only.
      azimuth_deg: in (-360, 360] degrees; None to leave the direction free.
      style: 'doa', 'clock' or 'general'; None draws one of them uniformly.

    Raises:
      ValueError: neither an event nor an azimuth, an empty event, one that names a direction itself or reads as a part
        of any, an invalid azimuth, or an unknown style.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"style: {style!r} must be one of {STYLES} or None")
    if event is None and azimuth_deg is None:
        raise ValueError("event, azimuth_deg: None and None; give at least one of them")
    event = event if event is None else _clean(event)
    if azimuth_deg is None:
        template = _choose(_EVENT + (_NOUN if _is_noun_phrase(event) else ()), rng)
        return _finish(template.format(event=event), rng)
    style = style or _choose(STYLES, rng)
    if event is None:
        direction = describe_direction(azimuth_deg, style, rng)
        return _finish(_choose(_DIRECTION, rng).format(direction=direction), rng)
    for _ in range(DRAWS):
        direction = describe_direction(azimuth_deg, style, rng)
        templates = _EVENT_DIRECTION
        if _is_noun_phrase(event):
            templates += _NOUN_DIRECTION + (_NOUN_FROM if direction.startswith("from ") else ())
        caption = _finish(_choose(templates, rng).format(event=event, direction=direction), rng)
        if _reads_back(caption, azimuth_deg):
            return caption
    raise ValueError(f"event: {event!r} cannot be told from a direction beside it; word it otherwise")


def _reads_back(caption: str, azimuth_deg: float) -> bool:
    """Tell whether a caption names the azimuth: not so "a choir of twenty - 0 degrees", which reads as a range."""
    try:
        direction = parse_direction(caption)
    except DirectionError:
        return False
    rounding = 0.05 + 1e-6  # degrees are worded to a tenth
    apart = 360.0 if direction is None else abs(circular_difference(direction.azimuth_deg, azimuth_deg))
    return direction is not None and apart <= direction.tolerance_deg + rounding


def _choose(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _clean(event: str) -> str:
    """Return an event ready for the middle of a sentence: no outer spaces, full stop or capital."""
    cleaned = " ".join(event.split()).rstrip(".,;: ")
    if not cleaned:
        raise ValueError(f"event: {event!r} must not be empty; use None for no event")
    if (direction := parse_direction(cleaned)) is not None:
        raise ValueError(f"event: {event!r} names a direction itself ({direction.text!r}); give the event alone")
    first = cleaned.split()[0]
    return cleaned if first == "I" or first[1:] != first[1:].lower() else cleaned[0].lower() + cleaned[1:]


def _is_noun_phrase(event: str) -> bool:
    """Tell whether an event surely has no finite verb: "a dog barking" or "rain", not "dog barks" or "it is raining".

    Plurals such as "church bells" look like verbs here and count as unsure: they get the templates that fit anything.
    """
    words = event.lower().replace(",", " ").split()
    if {"is", "are", "was", "were", "has", "have", "can", "and", "while", "as", "then"} & set(words):
        return False
    sure = any(word.endswith("ing") and len(word) > 4 for word in words[1:]) or "of" in words[1:] or len(words) == 1
    return sure or not any(word.endswith("s") and not word.endswith("ss") for word in words)


def _finish(caption: str, rng: np.random.Generator) -> str:
    """Return the caption with or without a capital and a full stop."""
    capital, stop = rng.integers(2, size=2)
    caption = caption[0].upper() + caption[1:] if capital else caption
    return caption + "." if stop else caption
