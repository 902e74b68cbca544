"""Swap left and right in the words of a direction."""

import re

from dualspec_jax.spatial import vocabulary
from dualspec_jax.spatial.direction import (
    STRAIGHT,
    DirectionError,
    circular_difference,
    parse_directions,
    read_hour,
    wrap_azimuth,
)


def mirror_directions(text: str) -> str:
    """Return the text with left and right swapped: every direction becomes its mirror image, in the same words.

    "at 60 degrees" becomes "at 300 degrees", "60 degrees to the left" "60 degrees to the right", "at 10 o'clock" "at 2
    o'clock". Words that are no direction ("a right-handed guitar") stay.

    Raises:
      DirectionError: one of the directions is invalid, or the mirrored text does not read back.
    """
    directions = parse_directions(text)
    mirrored, end = "", 0
    for direction in directions:
        start, stop = direction.span
        mirrored += text[end:start] + _MIRRORS[direction.style](text[start:stop])
        end = stop
    mirrored += text[end:]
    back = parse_directions(mirrored)
    off = [circular_difference(a.azimuth_deg, -b.azimuth_deg) for a, b in zip(back, directions, strict=False)]
    if len(back) != len(directions) or any(abs(x) > 1e-6 for x in off):
        raise DirectionError(text, f"cannot be mirrored: {mirrored!r} reads otherwise")
    return mirrored


def _swap_words(words: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """Exchange words of a pair, keeping a capital first letter."""
    table = {a: b for pair in pairs for a, b in (pair, pair[::-1])}

    def swap(match: re.Match) -> str:
        new = table[match.group().lower()]
        return new.capitalize() if match.group()[0].isupper() else new

    longest_first = sorted(table, key=len, reverse=True)
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, longest_first))})(?=\b|wards?\b)", swap, words, flags=re.IGNORECASE)


_SIDES = (("left", "right"),)
_TURNS = (("anticlockwise", "clockwise"), ("ccw", "cw"))


def _mirror_sides(words: str) -> str:
    return _swap_words(words, _SIDES)


def _mirror_angle(words: str) -> str:
    """Mirror "60 degrees", "minus sixty degrees", "60 degrees to the left" or "60 degrees clockwise"."""
    low = words.lower().translate(STRAIGHT)
    if turn := re.search(r"(?:counter|anti|contra)[\s-]?clockwise", low):
        return words[: turn.start()] + "clockwise" + words[turn.end() :]
    if re.search(r"\bc?cw\b|\bclockwise\b", low):
        return _swap_words(words, _TURNS)
    match = vocabulary.ANGLE.search(low)
    place = match.span("az") if match["az"] else match.span("num")
    value = vocabulary.read_number(low[slice(*place)])
    if value <= 180.0 and re.search(r"\b(?:left|right)", low):
        return _mirror_sides(words)
    new = -value if value < 0.0 else wrap_azimuth(-value)
    number = f"{new:g}" if any(c.isdigit() for c in low[slice(*place)]) else vocabulary.spell_number(new)
    return _mirror_sides(words[: place[0]] + number + words[place[1] :])


def _mirror_hour(words: str) -> str:
    """Mirror "10 o'clock", "half past ten", "10:30 o'clock"."""
    low = words.lower().translate(STRAIGHT)
    match = vocabulary.CLOCK.search(low)
    hour = read_hour(match)
    new = (12.0 - hour) % 12.0
    whole = int(new) or 12
    group = "hour" if match["hour"] else "bare"
    digits = any(c.isdigit() for c in match[group])
    name = str(whole) if digits else vocabulary.UNITS[whole]
    if new % 1.0 and ":" in match[group]:
        name = f"{whole}:30"
    elif new % 1.0 and "thirty" in match[group]:
        name += " thirty"
    return words[: match.start(group)] + name + words[match.end(group) :]


_MIRRORS = {"doa": _mirror_angle, "clock": _mirror_hour, "general": _mirror_sides}
