"""Questions about a scene, with answers that follow from its description.

Wherever a question has a yes and a no, or several counts, the answer is drawn first and the words second. So the words
say next to nothing about the answer, and a model has to look at the picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data.scene_description import COLORS, MAX_THINGS, SHAPES, SIZES, Scene, Thing

CLEAR = 16.0  # pixels between two centres from which one is plainly left of (or above) the other
ANSWERS = ("yes", "no", *(str(n) for n in range(MAX_THINGS + 1)), *COLORS, *SHAPES)


@dataclass(frozen=True)
class Phrase:
    """A description such as "big red star"; an attribute that is None is left open."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None

    def find(self, scene: Scene) -> list[int]:
        """Indices of the things in the scene that fit."""
        return [i for i, thing in enumerate(scene.things) if self.fits(thing)]

    def fits(self, thing: Thing) -> bool:
        pairs = ((self.size, thing.size), (self.color, thing.color), (self.shape, thing.shape))
        return all(wanted is None or wanted == value for wanted, value in pairs)

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape or "thing") if word)

    @property
    def plural(self) -> str:
        return f"{self}es" if self.shape == "cross" else f"{self}s"

    @property
    def with_article(self) -> str:
        return f"an {self}" if str(self)[0] in "aeiou" else f"a {self}"


@dataclass(frozen=True)
class Question:
    """A question and its answer. kind is the question type; things are indices of what the words or the answer name."""

    text: str
    answer: str
    kind: str
    things: tuple[int, ...]

    @property
    def answer_type(self) -> str:
        """One of the three types of VQA v2."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "number" if self.answer.isdigit() else "other"


def ask(scene: Scene, rng: Random) -> list[Question]:
    """About eight different questions on a scene, in random order; fewer where the scene cannot carry a kind."""
    questions: dict[str, Question] = {}
    for make in _PLAN:
        question = make(scene, rng)
        if question is not None:
            questions.setdefault(question.text, question)
    return rng.sample(list(questions.values()), len(questions))


def unique_phrases(scene: Scene, index: int, *attributes: str) -> list[Phrase]:
    """The phrases over `attributes` (of size, color, shape; at least one) that fit thing `index` and no other."""
    thing = scene.things[index]
    options = [()]
    for name in attributes:
        options += [(*names, name) for names in options]
    phrases = [Phrase(**{name: getattr(thing, name) for name in names}) for names in options if names]
    return [phrase for phrase in phrases if phrase.find(scene) == [index]]


def is_beyond(thing: Thing, direction: str, other: Thing) -> bool:
    """Whether thing lies plainly to the left of, right of, above or below other."""
    axis, sign = _DIRECTIONS[direction]
    return sign * (thing.center[axis] - other.center[axis]) >= CLEAR


_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_WORDING = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


def _ask_color(scene: Scene, rng: Random) -> Question | None:
    named = _named_things(scene, "size", "shape")
    if not named:
        return None
    index, phrase = rng.choice(named)
    return Question(f"What color is the {phrase}?", scene.things[index].color, "what color", (index,))


def _ask_shape(scene: Scene, rng: Random) -> Question | None:
    named = _named_things(scene, "size", "color")
    if not named:
        return None
    index, phrase = rng.choice(named)
    return Question(f"What shape is the {phrase}?", scene.things[index].shape, "what shape", (index,))


def _ask_count(scene: Scene, rng: Random) -> Question:
    """Counts are drawn evenly from those the scene has; otherwise nearly all would be 0 or 1."""
    phrases = [Phrase(), *(Phrase(size=s) for s in SIZES), *(Phrase(color=c) for c in COLORS)]
    phrases += [Phrase(shape=s) for s in SHAPES]
    by_count: dict[int, list[Phrase]] = defaultdict(list)
    for phrase in phrases:
        by_count[len(phrase.find(scene))].append(phrase)
    phrase = rng.choice(by_count[rng.choice(sorted(by_count))])
    things = tuple(phrase.find(scene))
    return Question(f"How many {phrase.plural} are there?", str(len(things)), "how many", things)


def _ask_presence(scene: Scene, rng: Random) -> Question | None:
    if rng.random() < 0.5:
        phrases = [Phrase(color=c, shape=s) for c in COLORS for s in SHAPES]
        # A colour and a shape that are both there, or the question would be answered by looking for one of them.
        phrases = [p for p in phrases if Phrase(color=p.color).find(scene) and Phrase(shape=p.shape).find(scene)]
    else:
        phrases = [*(Phrase(color=c) for c in COLORS), *(Phrase(shape=s) for s in SHAPES)]
    there = [p for p in phrases if p.find(scene)]
    absent = [p for p in phrases if not p.find(scene)]
    if not absent:
        return None
    answer = rng.choice(("yes", "no"))
    phrase = rng.choice(there if answer == "yes" else absent)
    return Question(f"Is there {phrase.with_article}?", answer, "is there", tuple(phrase.find(scene)))


def _ask_relation(scene: Scene, rng: Random) -> Question | None:
    """ "Is the red star left of the circle?", as often true as not."""
    direction, answer = rng.choice(tuple(_DIRECTIONS)), rng.choice(("yes", "no"))
    truth = direction if answer == "yes" else _OPPOSITE[direction]
    named = [(i, p) for i, p in _named_things(scene, "size", "color", "shape") if p.shape]
    pairs = [(a, b) for a in named for b in named if is_beyond(scene.things[a[0]], truth, scene.things[b[0]])]
    if not pairs:
        return None
    (a, phrase_a), (b, phrase_b) = rng.choice(pairs)
    return Question(f"Is the {phrase_a} {_WORDING[direction]} the {phrase_b}?", answer, direction, (a, b))


def _ask_color_beyond(scene: Scene, rng: Random) -> Question | None:
    """ "What color is the thing left of the star?", where all but that one thing are plainly on the other side."""
    options = []
    for index, phrase in _named_things(scene, "size", "shape"):
        others = [i for i in range(len(scene.things)) if i != index]
        for direction in _DIRECTIONS:
            beyond = [i for i in others if is_beyond(scene.things[i], direction, scene.things[index])]
            behind = [i for i in others if is_beyond(scene.things[i], _OPPOSITE[direction], scene.things[index])]
            if phrase.shape and len(beyond) == 1 and len(behind) == len(others) - 1:
                options.append((direction, beyond[0], index, phrase))
    if not options:
        return None
    direction, target, index, phrase = rng.choice(options)
    text = f"What color is the thing {_WORDING[direction]} the {phrase}?"
    return Question(text, scene.things[target].color, direction, (target, index))


def _named_things(scene: Scene, *attributes: str) -> list[tuple[int, Phrase]]:
    return [(i, phrase) for i in range(len(scene.things)) for phrase in unique_phrases(scene, i, *attributes)]


_PLAN: tuple[Callable[[Scene, Random], Question | None], ...] = (
    _ask_color,
    _ask_color,
    _ask_shape,
    _ask_count,
    _ask_count,
    _ask_presence,
    _ask_presence,
    _ask_relation,
    _ask_relation,
    _ask_color_beyond,
)
