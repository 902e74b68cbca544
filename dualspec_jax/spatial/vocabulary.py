"""Hold the words that `direction.py` reads: numbers in words, and the patterns of angles, hours and sides.

All patterns expect lower case, straight apostrophes and ASCII minus signs. They decide what is a direction ("on the
left") and what is not ("someone left", "at the right time"); what a match means is decided in `direction.py`.
"""

import math
import re

# --- numbers in words ----------------------------------------------------------------------------------------------

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: i for i, word in enumerate(UNITS)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_DIGIT = "|".join(UNITS[:10])
_SMALL = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-]+(?:{_DIGIT})\b)?|(?:{'|'.join(reversed(UNITS))})\b)"
_WORDS = (
    rf"(?:(?:an?|{_DIGIT})[\s-]+hundred(?:(?:\s+and)?[\s-]+{_SMALL})?|{_SMALL})"
    rf"(?:\s+point(?:\s+(?:{_DIGIT}))+|\s+and\s+a\s+half)?"
)
_DIGITS = r"(?:\d+(?:\.\d+|,\d{1,2}(?!\d))?|\.\d+)(?:e[-+]?\d+)?"
# The sign touches its digits, so that the dash of "a dog - 60 degrees" is no minus.
_SIGN = r"(?:[-+]|(?:minus|negative|plus)\s+)"
_NUM = rf"(?<![\w.])(?<!\d,)(?:{_SIGN}?(?:{_DIGITS}|{_WORDS}|nan|inf(?:init[ey])?))(?!(?!deg)\w)"


def read_number(words: str) -> float:
    """Return the value of a match of `_NUM`, which may be NaN or infinite."""
    sign = -1.0 if re.match(r"-|minus|negative", words) else 1.0
    words = re.sub(rf"^{_SIGN}", "", words)
    if re.match(r"[\d.]", words):
        return sign * float(words.replace(",", "."))
    if re.match(r"nan|inf", words):
        return sign * (math.nan if words == "nan" else math.inf)
    total, scale = 0.0, None
    for word in re.split(r"[\s-]+", words):
        if word == "hundred":
            total = 100.0 * max(total, 1.0)  # "a hundred" has no value before it
        elif word == "half":
            total += 0.5
        elif word == "point":
            scale = 1.0
        elif word in _VALUES and scale is None:
            total += _VALUES[word]
        elif word in _VALUES:
            scale /= 10.0
            total += scale * _VALUES[word]
    return sign * round(total, 6)


def spell_number(value: float) -> str:
    """Return a number with at most one decimal in words, as `read_number` reads them."""
    whole, tenths = divmod(round(10.0 * abs(value)), 10)
    hundreds, rest = divmod(whole, 100)
    small = UNITS[rest] if rest < 20 else _TENS[rest // 10 - 2] + (f"-{UNITS[rest % 10]}" if rest % 10 else "")
    words = small if not hundreds else f"{UNITS[hundreds]} hundred" + (f" and {small}" if rest else "")
    return ("minus " if value < 0 else "") + words + (f" point {UNITS[tenths]}" if tenths else "")


# --- the vocabulary ------------------------------------------------------------------------------------------------

_LISTENER = (
    r"(?:me|you|us|the\s+(?:listener|hearer|viewer|user|microphones?|camera)|"
    r"(?:my|your|our)\s+(?:head|face|body|back|eyes|nose|seat|chair))\b"
)
_OWN = r"(?:(?:the|my|your|our|one's|(?:the\s+)?(?:listener|hearer|viewer)'s)\s+)"
_PREP = r"\b(?:on|to|from|at|towards?|in|into|onto|near|by)\s+"
_MOD = r"(?:(?:far|hard|extreme|very|immediate|directly|straight|slightly|slight)\s+)"
# Words that make "left" or "right" part of a thing or of a phrase such as "at the right time".
_THING = (
    r"(?!(?:-|\s+)(?:handed\w*|over\b(?!\s+there)|hand(?:s|ed)?\b(?!-?\s*side)|foot|feet|leg|arm|wing|lane|time|moment|"
    r"place|track|way|thing|one|note|key|pitch|speed|answer|person|people|wheel|tire|tyre|door|window|turn|click|mouse|"
    r"button|pedal|knee|brain|lung|eye|tempo|spot|order|volume|level|hook|boot|shoe|paw|field|bank|pocket|tooth|fist)s?\b)"
)
_SIDE = rf"(?:left|right)\b{_THING}"
# Without an article, "right" may only stress what follows: "from right behind me".
_BARE = (
    rf"(?:left|right)\b{_THING}(?!\s+(?:now|away|behind|in|ahead|here|there|next|beside|above|below|after|at|beneath|"
    r"outside|inside|by|up|down|through|over|around|before|then|when|as|the|an?|his|her|their|its)\b)"
)
_HAND = (
    rf"(?:[\s-]hand)?(?:[\s-]+side|\s+(?:ear|channel|speaker|headphone|earphone)\b)?(?:\s+of\s+{_LISTENER})?"
    r"(?!\s+of\s+(?:an?|the|his|her|their|its)\b(?!\s+(?:room|scene|stage|cent(?:re|er)|front)))"
)
_FRONT_THING = (
    r"(?!(?:-|\s+)(?:doors?|yards?|porch|gardens?|rooms?|seats?|rows?|lawn|desk|page|lines?|alley|street|gate|steps?|"
    r"wheels?|bench|stage|loader|of|to|and\s+forth)\b)"
)
_END_WORD = rf"(?:front|back|rear)\b(?:(?:\s+side)?(?:\s+of\s+{_LISTENER})|\s+side\b(?!\s+of)|{_FRONT_THING})"
_REF = (
    rf"{_OWN}?(?:straight\s+|dead\s+|directly\s+)?"
    r"(?P<ref{n}>front|cent(?:re|er)|ahead|middle|midline|axis|forward|nose|behind|back|rear)\b"
)

_UNIT = r"[\s-]*(?:°|degrees?\b|degs?\b\.?)"
_JOIN = r"\s*(?:-|to|and|or|/)\s*"
ANGLE = re.compile(
    rf"\b(?:azimuth(?:al)?(?:\s+angle)?|angle|doa|direction\s+of\s+arrival|theta|az(?=\s*[=:]))(?:\s+(?:of|is|at))?\s*[=:]?\s*(?P<az>{_NUM})(?:{_UNIT})?"
    rf"|(?:(?P<low>{_NUM}){_JOIN})??(?P<num>{_NUM}){_UNIT}"
)
TAIL = re.compile(
    rf"\s*,?\s*(?:(?:out|off|over|away|round|around)\s+)?(?:(?:to|towards?|on|onto|in)\s+)?"
    rf"(?P<side>{_OWN}{_SIDE}|{_BARE}|(?:left|right)wards?\b)(?:[\s-]hand)?(?:\s+side\b)?"
    rf"(?:\s+(?:of|from)\s+(?:{_REF.format(n=1)}|{_LISTENER}))?"
    rf"|\s*,?\s*(?P<turn>(?:counter|anti|contra)[\s-]?clockwise|ccw|clockwise|cw)\b"
    rf"(?:\s+(?:of|from)\s+(?:{_REF.format(n=2)}|{_LISTENER}))?"
    rf"|\s*(?:off|from|away\s+from)[\s-]+{_REF.format(n=3)}"
    rf"(?:\s*,?\s*(?:to|towards?|on)\s+{_OWN}?(?P<then>left|right)\b)?"
)
HEAT = re.compile(
    r"[\s-]*(?:[cfk]\b|celsius|centigrade|fahrenheit|kelvin|(?:below|above)\s+(?:zero|freezing)|outside\b|hot|cold|"
    r"warm|cool|heat|oven|weather|spins?\b|turns?\b|rotations?\b|views?\b|videos?\b|camera|panorama|arc\b|burns?\b|"
    r"(?:of|in)\s+(?:heat|freedom|separation|temperature))"
)
HEATING = re.compile(
    r"(?:\b(?:temperature|thermometer|fever)(?:\s+(?:of|is|was|reads?|reading))*|\bheat\w*\s+to|\bby|\bthrough|"
    r"\b(?:spin|rotat|pivot|swivel|twist|tilt|turn)\w*(?:\s+(?:by|around))?)\s+(?:an?\s+)?$"
)
RAISED = re.compile(
    rf"\s*(?:(?:of\s+|in\s+)?elevation|(?:up|down)(?:wards?)?\b(?!\s+the)|(?:above|below)\s+(?:the\s+horizon|{_LISTENER}))"
)

_OCLOCK = r"o[\s'`-]*clock\b"
CLOCK = re.compile(
    rf"(?P<quarter>\b(?:a\s+)?quarter\s+(?:past|to)\s+)?(?P<past>\bhalf[\s-]+past\s+)?"
    rf"(?:(?P<low>{_NUM}){_JOIN})??(?P<hour>-?\d+:\d\d|{_NUM}[\s-]+thirty|{_NUM}|(?<![\w.])\d+)[\s-]*{_OCLOCK}"
    rf"(?:\s+(?:direction|position))?"
    rf"|\bhalf[\s-]+past\s+(?P<bare>{_NUM})"
)
TIME = re.compile(
    r"\s*(?:in\s+the\s+(?:morning|afternoon|evening)|at\s+night|[ap]\.?m\b|news\b|train\b|shadow\b|bells?\b|whistle\b|"
    r"tea\b|show\b|bus\b|rush\b)"
)
STRIKING = re.compile(r"\b(?:strik|chim|struck|toll)\w*\s+$")

MENTION = re.compile(
    "|".join(
        (
            # two words for one diagonal: front left, back and right, right rear
            rf"{_PREP}{_OWN}?{_MOD}?(?:front|back|rear|ahead|behind)(?:[\s/-]*|\s*,?\s+and\s+){_SIDE}{_HAND}",
            rf"(?<!\bcome\s)(?<!\bgo\s)\b(?:front|back|rear|ahead|behind|forward)(?:[\s/-]*|\s+and\s+){_BARE}{_HAND}",
            rf"{_PREP}{_OWN}?{_MOD}?(?:left|right)(?:[\s/-]+|\s+and\s+){_END_WORD}",
            rf"\b(?:left|right)[\s-](?:rear|front)\b{_FRONT_THING}",
            rf"\b(?:left|right)\s+and\s+(?:behind|ahead|in\s+front)\b(?:\s+(?:of\s+)?{_LISTENER}|(?=\s*(?:$|[.,;:)])))",
            rf"\b(?:over|behind|past)\s+{_OWN}(?:left|right)\s+shoulder\b",
            # sides
            rf"(?:{_PREP}{_OWN}{_MOD}?{_SIDE}|{_PREP}{_MOD}?{_BARE}|\b(?:my|your|our)\s+{_MOD}?{_SIDE}){_HAND}"
            rf"(?:\s+of\s+(?:the\s+)?(?:cent(?:re|er)|front)\b)?",
            r"\b(?:left|right)(?:(?:[\s-]hand)?\s+side|\s+ear|\s+channel)\b(?!\s+of\s+(?:an?|the|his|her)\b)|\b(?:left|right)wards?\b",
            rf"\b(?:left|right)\s+of\s+(?:{_LISTENER}|(?:the\s+)?(?:cent(?:re|er)|front)\b)",
            # front and back
            rf"\bin\s+front\b(?:\s+of\s+{_LISTENER}|(?!\s+of\b))|\bup\s+front\b",
            rf"(?<!\bgo )(?<!\bgoes )(?<!\bgoing )(?<!\bgets )(?<!\bget )\bahead\b(?:\s+of\s+{_LISTENER}|(?!\s+of\b))",
            r"\b(?:dead|front\s+and|front)\s+cent(?:re|er)\b",
            rf"\bbehind\b(?:\s+{_LISTENER}|(?!\s+(?:the|an?|his|her|their|its|this|that|some|closed|bars|walls|glass)\b))",
            rf"{_PREP}{_OWN}{_MOD}?{_END_WORD}|\b(?:front|back|rear)\s+of\s+{_LISTENER}",
            rf"\b(?:from|at|to)\s+(?:the\s+)?(?:front|rear)\b{_FRONT_THING}|\bfrom\s+back\b(?!\s+to)",
            rf"\b(?:front|back|rear|forward)(?=\s*,?\s*(?:and|but)\s+(?:slightly\s+|off\s+)?(?:to|on)\s+{_OWN}?{_SIDE})",
            # telegraphic: "dog barking, left", "left: dog barking"
            r"(?:^|(?<=[,;:(]))\s*(?:far\s+|hard\s+)?(?:left|right|front|back|rear)\b(?=\s*[.,;)]?\s*$)",
            r"^\s*(?:far\s+|hard\s+)?(?:left|right|front|back|rear)\b(?=\s*:)",
        )
    )
)
GAP = re.compile(
    r"[\s,&/-]*(?:(?:and|but|also|slightly|somewhat|just|off|over|out|a\s+(?:little\s+)?bit|a\s+little|diagonally|"
    rf"directly|right|straight|coming|beside\s+{_LISTENER})[\s,]*)*"
)
SLIGHTLY = re.compile(r"\b(?:slightly|slight|a\s+(?:little|bit|touch))\s+(?:off\s+|over\s+)?$")
LEFT_BEHIND = re.compile(r"\b(?:left|fall\w*|fell|lag\w*|stay\w*|leav\w+)\s+$")
# After "behind", where somebody left: "has left behind and to the left".
AND_SIDE = re.compile(r"\s+and\s+(?:to|on|at)\s+(?:the|my|your)\s+(?:left|right)\b")

ELEVATION = re.compile(
    r"\b(?:above|below|beneath|underneath|under|over)\s+(?:me|you|us|the\s+(?:listener|hearer)|(?:my|your|our)\s+"
    r"(?:heads?|feet))\b"
)
COMPASS = re.compile(
    r"\b(?:from|in|at|to|towards?|on)\s+(?:the\s+)?(?:due\s+)?(?:(?:north|south)[\s-]?(?:east|west)\b(?!ern)|"
    rf"(?:north|south|east|west)\b(?=\s*(?:$|[.,;!)]|and\b|direction\b|of\s+{_LISTENER})))"
    r"|(?<=degrees )(?:north|south|east|west)\b"
)
