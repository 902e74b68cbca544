"""Know the sounds of the built-in event collection: how people word them, and which one a prompt names.

`sounds.json` holds, per label, "nouns" (with article), "verbs" (third person, -ing, bare plural), "phrases" (complete
noun phrases) and "heldout" (wordings that training never sees). A noun is plural if its head word looks so ("dogs",
"a pair of hands" does not), so every noun goes with every verb: "a dog barks", "dogs bark". A label outside the file (a
user's own data set) is legal wherever wordings are asked for: it is worded by its own name.
"""

import dataclasses
import difflib
import functools
import importlib.resources
import json
import math
import re
from collections.abc import Sequence

import numpy as np

FAMILIES = ("phrase", "participle", "progressive", "present")
MIN_SCORE = (
    0.5  # below: unknown; chosen on the held-out wordings and the unknown prompts of tests/spatial/test_sounds.py
)
MIN_COVERAGE = 0.6  # share of the prompt's word weight that the label's vocabulary covers
FOREIGN_WEIGHT = 3.5  # least weight of an uncovered word in that share: "a man speaking" is not the robot
TYPO_CLOSENESS = 0.86  # difflib ratio from which an unknown word counts as a misspelt known one

_SINGULAR_STARTS = frozenset(["a", "an", "one", "someone", "somebody", "something", "my"])
_PLURAL_NOUNS = "people men women children geese cattle dice feet"
_HEAD_END = re.compile(r"\b(?:of|on|in|with|at|from|for|to)\b")
# Words that say where, or that there is a sound.
_DIRECTION = """toward towards angle
left right front behind ahead back rear side forward backward forwards backwards north south east west
degree degrees deg azimuth direction directly straight slightly diagonal diagonally oclock o'clock above below hand
located positioned placed position"""
_STOP = """a an the is are was were be been being am it its it's this that these those there here of in on at to from
with by for and or as into onto off over through up down out about around near nearby some any one two three four five
six seven eight nine ten eleven twelve i we you he she they me my our your his her their can could would will should
please sound sounds noise noises hear hears heard hearing audio recording clip effect
listen arrives reaches generate make play create give
want coming come comes came going go goes somewhere something someone somebody who which while away distance distant far
close again very really quite like loud loudly soft softly quiet quietly heavily has have having let lets meter meters
metre metres listener"""
_STOPWORDS = frozenset(f"{_DIRECTION} {_STOP}".split())
_CLOCK_DIRECTION = re.compile(r"\b[\w:]+[\s-]+o\s?'?\s?clock\b")


@dataclasses.dataclass(frozen=True)
class Sound:
    """Wordings of one label.

    Attributes:
      nouns: noun phrases with article, singular or plural.
      verbs: (third person singular, -ing form, bare plural), each fitting every noun.
      phrases: complete phrases that can follow "the sound of"; the label is one of them.
      heldout: wordings kept out of training.
    """

    label: str
    nouns: tuple[str, ...]
    verbs: tuple[tuple[str, str, str], ...]
    phrases: tuple[str, ...]
    heldout: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SoundMatch:
    """Whether a prompt names a known sound.

    Attributes:
      label: the best guess, even when `known` is false; None where there is no clue.
      near: labels like it.
      trained: whether its words for the sound are, but for endings and their order, those of a training wording.
    """

    known: bool
    label: str | None
    near: tuple[str, ...]
    trained: bool = False


@functools.cache
def load_sounds() -> dict[str, Sound]:
    """Read `sounds.json`: label -> Sound, sorted by label."""
    text = importlib.resources.files("dualspec_jax.spatial").joinpath("sounds.json").read_text(encoding="utf-8")
    sounds = {}
    for label, entry in sorted(json.loads(text).items()):
        verbs = tuple(tuple(forms) for forms in entry["verbs"])
        sounds[label] = Sound(label, tuple(entry["nouns"]), verbs, tuple(entry["phrases"]), tuple(entry["heldout"]))
    return sounds


def labels() -> tuple[str, ...]:
    """Name the sounds of the built-in collection, sorted."""
    return tuple(load_sounds())


def is_plural(noun: str) -> bool:
    """Tell whether a noun phrase takes a plural verb: "dogs", "the waves"; not "a pair of hands", "the glass"."""
    words = _HEAD_END.split(noun)[0].split()
    if not words or words[0] in _SINGULAR_STARTS:
        return False
    head = words[-1]
    return head in _PLURAL_NOUNS.split() or (head.endswith("s") and not head.endswith("ss"))


@functools.cache
def wording_families(label: str) -> dict[str, tuple[str, ...]]:
    """Expand a label's training wordings, by grammatical family; empty families are absent.

    "phrase" (listed ones) and "participle" ("a dog barking", "dog barking") can follow "the sound of"; "progressive"
    ("a dog is barking") and "present" ("a dog barks") are clauses. Held-out wordings are taken out of every family.
    A label outside `sounds.json` has only the family "phrase", with wordings that fit any noun or participle.
    """
    sound = load_sounds().get(label)
    if sound is None:
        article = "an" if label[0].lower() in "aeiou" else "a"
        return {"phrase": (label, f"{article} {label} sound", f"{label} sounds")}
    families = {name: list(sound.phrases) if name == "phrase" else [] for name in FAMILIES}
    for noun in sound.nouns:
        plural = is_plural(noun)
        bare = re.sub(r"^(?:an?|the) ", "", noun)
        for forms in sound.verbs:
            third, participle, base = (re.sub(r"\bits\b", "their", form) if plural else form for form in forms)
            families["participle"] += (f"{noun} {participle}", f"{bare} {participle}")
            families["progressive"].append(f"{noun} {'are' if plural else 'is'} {participle}")
            families["present"].append(f"{noun} {base if plural else third}")
    taken = set(sound.heldout)
    for name, wordings in families.items():
        families[name] = tuple(dict.fromkeys(w for w in wordings if w not in taken))
        taken.update(families[name])
    return {name: wordings for name, wordings in families.items() if wordings}


def event_wordings(label: str) -> tuple[str, ...]:
    """List all training wordings of a label, without repeats; unknown labels: see `wording_families`."""
    return tuple(wording for wordings in wording_families(label).values() for wording in wordings)


def heldout_wordings(label: str) -> tuple[str, ...]:
    """List the wordings of a label that training never sees; none for a label outside `sounds.json`."""
    sound = load_sounds().get(label)
    return sound.heldout if sound else ()


def sample_event(label: str, rng: np.random.Generator, noun_phrase: bool = False) -> str:
    """Draw a training wording: first a family, then a wording, so that the many clauses do not drown the phrases.

    Args:
      noun_phrase: draw only wordings that can follow "the sound of".
    """
    families = wording_families(label)
    names = [name for name in families if not noun_phrase or name in FAMILIES[:2]]
    wordings = families[names[rng.integers(len(names))]]
    return wordings[rng.integers(len(wordings))]


def stem(word: str) -> str:
    """Cut the endings of a word lightly: barks, barking, barked -> bark; cries -> cry; chopping -> chop."""
    word = re.sub(r"'s?$", "", word)
    if len(word) > 4 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    for ending in ("ing", "in'", "ed", "es", "s"):
        root = word.removesuffix(ending)
        if root != word and len(root) > 2 and re.search("[aeiouy]", root) and not (ending == "s" and root[-1] == "s"):
            word = root
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeioulsz":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def content_words(prompt: str) -> tuple[str, ...]:
    """Return a prompt's words in lower case, without directions, numbers, stop words and template words."""
    text = _CLOCK_DIRECTION.sub(" ", prompt.lower().replace("\u2019", "'"))
    return tuple(word for word in re.findall(r"[a-z]+(?:'[a-z]+)?", text) if word not in _STOPWORDS)


@dataclasses.dataclass(frozen=True)
class _Index:
    """Words -> stems, stem -> {label: share of the label's wordings with it}, stem weight, stem -> wordings."""

    stems: dict[str, str]
    shares: dict[str, dict[str, float]]
    weights: dict[str, float]
    unknown_weight: float
    wordings: dict[str, tuple[frozenset[str], ...]]


@functools.lru_cache(maxsize=4)
def _index(extra: tuple[str, ...] = ()) -> _Index:
    stems, counts, wordings = {}, {}, {}
    for label in (*labels(), *extra):
        sets = {}
        for wording in event_wordings(label):
            words = content_words(wording)
            stems.update((word, stem(word)) for word in words)
            sets[frozenset(map(stem, words))] = None
        wordings[label] = tuple(s for s in sets if s)
        for name in set().union(*wordings[label]):
            counts.setdefault(name, {})[label] = sum(name in s for s in wordings[label]) / len(wordings[label])
    weights = {name: math.log(1 + len(wordings) / len(by_label)) for name, by_label in counts.items()}
    return _Index(stems, counts, weights, math.log(1 + len(wordings)), wordings)


@functools.lru_cache(maxsize=4096)
def _known_stem(word: str, extra: tuple[str, ...] = ()) -> tuple[str | None, float]:
    """Return a word's stem and how close it is to a known one (1: known; None, 0: unknown)."""
    index = _index(extra)
    if stem(word) in index.weights:
        return stem(word), 1.0
    # A typo rarely changes the first letter; this also keeps the search short. Swapped letters are typos at any length.
    candidates = [known for known in index.stems if known[0] == word[0] and abs(len(known) - len(word)) < 3]
    close = [known for known in candidates if sorted(known) == sorted(word)]
    close = close or difflib.get_close_matches(word, candidates, 1, TYPO_CLOSENESS)
    if len(word) < 4 or not close:
        return None, 0.0
    return index.stems[close[0]], difflib.SequenceMatcher(None, word, close[0]).ratio()


def match_sound(prompt: str, extra: Sequence[str] = ()) -> SoundMatch:
    """Say which known sound a prompt names, if any, and which labels are nearest; for a warning, never to block.

    Args:
      extra: labels outside `sounds.json` that are known too, such as those of a user's own model.

    A label scores the mean of two shares: how much of the prompt's word weight (inverse document frequency over labels;
    unknown words weigh most) its vocabulary covers, and the best weighted overlap (Dice) with one training wording.
    """
    extra = tuple(sorted(set(extra) - set(labels())))
    index = _index(extra)
    matched, unknown = {}, set()
    for word in content_words(prompt):
        name, closeness = _known_stem(word, extra)
        if name:
            matched[name] = max(closeness, matched.get(name, 0.0))
        else:
            unknown.add(stem(word))
    if not matched:
        return SoundMatch(False, None, _nearest_names(prompt, (), extra))
    total = sum(index.weights[name] for name in matched) + index.unknown_weight * len(unknown)
    value = {name: closeness * index.weights[name] for name, closeness in matched.items()}
    scores = {}
    for label in {label for name in matched for label in index.shares[name]}:
        own = [name for name in matched if label in index.shares[name]]
        typical = sum(index.shares[name][label] for name in own) / len(own)  # breaks ties towards the usual words
        dice = max(
            2 * sum(value[name] for name in own if name in words) / (total + sum(index.weights[w] for w in words))
            for words in index.wordings[label]
        )
        foreign = sum(max(index.weights[name], FOREIGN_WEIGHT) for name in matched if name not in own)
        covered = sum(value[name] for name in own)
        coverage = covered / (covered + foreign + index.unknown_weight * len(unknown))
        scores[label] = (0.5 * (covered / total + dice) + 0.05 * typical, coverage)
    ranked = sorted(scores, key=lambda label: (-scores[label][0], label))
    known = scores[ranked[0]][0] >= MIN_SCORE and scores[ranked[0]][1] >= MIN_COVERAGE
    trained = not unknown and set(matched.values()) == {1.0} and frozenset(matched) in index.wordings[ranked[0]]
    return SoundMatch(known, ranked[0], _nearest_names(prompt, ranked[:5], extra), trained)


def _nearest_names(prompt: str, first: Sequence[str], extra: tuple[str, ...]) -> tuple[str, ...]:
    """Fill `first` up to five labels with those spelt most like the prompt."""
    if len(first) >= 5:
        return tuple(first[:5])
    text = " ".join(content_words(prompt))
    rest = sorted({*labels(), *extra} - set(first), key=lambda x: (-difflib.SequenceMatcher(None, text, x).ratio(), x))
    return (*first, *rest)[:5]
