"""Questions about a scene, with answers that follow from its description.

For yes and no, and for counts, the answer is drawn before the question. The question is then nearly independent of the
answer, and a model has to use the image. Each kind of question has one wording, so that a small model learns it fast.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data.scenes.description import (
    COLORS,
    MAX_THINGS,
    SHAPES,
    Scene,
)
from data.scenes.phrases import (
    COLUMNS,
    DIRECTIONS,
    ROWS,
    Phrase,
    cell,
    cell_name,
    describe,
    is_beyond_middle,
)

_PLACES = tuple(cell_name(row, column) for row in range(len(ROWS)) for column in range(len(COLUMNS)))
ANSWERS = ("yes", "no", *(str(n) for n in range(MAX_THINGS + 1)), *COLORS, *SHAPES, *DIRECTIONS, *_PLACES)


@dataclass(frozen=True)
class Question:
    """A question and its answer. kind: the question type. things: indices of the things in the question or the
    answer."""

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
    """Returns about ten different questions on a scene, in random order, fewer if the scene has no question of a
    kind."""
    questions: dict[str, Question] = {}
    for make in _PLAN:
        question = make(scene, rng)
        if question is not None:
            questions.setdefault(question.text, question)
    return rng.sample(list(questions.values()), len(questions))


def _ask_color(scene: Scene, rng: Random) -> Question | None:
    named = _named_things(scene, "shape")
    if not named:
        return None
    index, phrase = rng.choice(named)
    return Question(f"What color is the {phrase}?", scene.things[index].color, "what color", (index,))


def _ask_shape(scene: Scene, rng: Random) -> Question | None:
    named = _named_things(scene, "color")
    if not named:
        return None
    index, phrase = rng.choice(named)
    return Question(f"What shape is the {phrase}?", scene.things[index].shape, "what shape", (index,))


def _ask_count(scene: Scene, rng: Random) -> Question:
    """Draws the count evenly from those of the scene. Else nearly all counts would be 0 or 1."""
    by_count: dict[int, list[Phrase]] = defaultdict(list)
    for phrase in (Phrase(), *_SIMPLE_PHRASES):
        by_count[len(phrase.find(scene))].append(phrase)
    phrase = rng.choice(by_count[rng.choice(sorted(by_count))])
    things = tuple(phrase.find(scene))
    return Question(f"How many {phrase.plural} are there?", str(len(things)), "how many", things)


def _ask_presence(scene: Scene, rng: Random) -> Question | None:
    """ "Is there a star?" or "Is there a red star?", true in half of the cases."""
    phrases = list(_SIMPLE_PHRASES)
    if rng.random() < 0.5:
        phrases = [Phrase(color=c, shape=s) for c in COLORS for s in SHAPES]
        # Both the colour and the shape are in the scene. Else one of them would answer the question.
        phrases = [p for p in phrases if Phrase(color=p.color).find(scene) and Phrase(shape=p.shape).find(scene)]
    there = [p for p in phrases if p.find(scene)]
    absent = [p for p in phrases if not p.find(scene)]
    if not absent:
        return None
    answer = rng.choice(("yes", "no"))
    phrase = rng.choice(there if answer == "yes" else absent)
    return Question(f"Is there {phrase.with_article}?", answer, "is there", tuple(phrase.find(scene)))


def _ask_position(scene: Scene, rng: Random) -> Question | None:
    """ "Is the star left or right of the middle?". All sides are equally frequent answers."""
    side = rng.choice(tuple(DIRECTIONS))
    named = _named_things(scene, "color") + _named_things(scene, "shape")
    named = [(i, phrase) for i, phrase in named if is_beyond_middle(scene, scene.things[i], side)]
    if not named:
        return None
    index, phrase = rng.choice(named)
    kind = "left or right" if side in ("left", "right") else "above or below"
    of = " of" if kind == "left or right" else ""
    return Question(f"Is the {phrase} {kind}{of} the middle?", side, kind, (index,))


def _ask_place(scene: Scene, rng: Random) -> Question | None:
    """ "Where is the star?" """
    named = _named_things(scene, "color") + _named_things(scene, "shape")
    if not named:
        return None
    index, phrase = rng.choice(named)
    return Question(f"Where is the {phrase}?", cell_name(*cell(scene, scene.things[index])), "where", (index,))


def _named_things(scene: Scene, *attributes: str) -> list[tuple[int, Phrase]]:
    """Returns index and phrase of the things that their `attributes` (color, shape) describe uniquely."""
    phrases = [describe(thing, *attributes) for thing in scene.things]
    return [(i, phrase) for i, phrase in enumerate(phrases) if phrase.find(scene) == [i]]


_SIMPLE_PHRASES = [Phrase(color=c) for c in COLORS] + [Phrase(shape=s) for s in SHAPES]
_PLAN: tuple[Callable[[Scene, Random], Question | None], ...] = (
    _ask_color,
    _ask_shape,
    _ask_count,
    _ask_count,
    _ask_presence,
    _ask_presence,
    _ask_position,
    _ask_position,
    _ask_position,
    _ask_place,
    _ask_place,
    _ask_place,  # a model learns positions from nine places, not from two sides
)
