"""Questions about a scene, with answers that follow from its description.

Wherever a question has a yes and a no, or several counts, the answer is drawn first and the words second. So the words
say next to nothing about the answer, and a model has to look at the image. There is one wording for each kind, so
that a small model can spend its few minutes on looking and not on reading.
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
    """About ten different questions on a scene, in random order; fewer where the scene cannot carry a kind."""
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
    """Counts are drawn evenly from those the scene has; otherwise nearly all would be 0 or 1."""
    by_count: dict[int, list[Phrase]] = defaultdict(list)
    for phrase in (Phrase(), *_SIMPLE_PHRASES):
        by_count[len(phrase.find(scene))].append(phrase)
    phrase = rng.choice(by_count[rng.choice(sorted(by_count))])
    things = tuple(phrase.find(scene))
    return Question(f"How many {phrase.plural} are there?", str(len(things)), "how many", things)


def _ask_presence(scene: Scene, rng: Random) -> Question | None:
    """ "Is there a star?" or "Is there a red star?", as often true as not."""
    phrases = list(_SIMPLE_PHRASES)
    if rng.random() < 0.5:
        phrases = [Phrase(color=c, shape=s) for c in COLORS for s in SHAPES]
        # A colour and a shape that are both there, or the question would be answered by looking for one of them.
        phrases = [p for p in phrases if Phrase(color=p.color).find(scene) and Phrase(shape=p.shape).find(scene)]
    there = [p for p in phrases if p.find(scene)]
    absent = [p for p in phrases if not p.find(scene)]
    if not absent:
        return None
    answer = rng.choice(("yes", "no"))
    phrase = rng.choice(there if answer == "yes" else absent)
    return Question(f"Is there {phrase.with_article}?", answer, "is there", tuple(phrase.find(scene)))


def _ask_position(scene: Scene, rng: Random) -> Question | None:
    """ "Is the star left or right of the middle?", with every side equally often the answer."""
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
    """The things that their `attributes` (color, shape) single out, as index and phrase."""
    phrases = [describe(thing, *attributes) for thing in scene.things]
    return [(i, phrase) for i, phrase in enumerate(phrases) if phrase.find(scene) == [i]]


_SIMPLE_PHRASES = (*(Phrase(color=c) for c in COLORS), *(Phrase(shape=s) for s in SHAPES))
_PLAN: tuple[Callable[[Scene, Random], Question | None], ...] = (
    _ask_color,
    _ask_shape,
    *(_ask_count,) * 2,
    *(_ask_presence,) * 2,
    *(_ask_position,) * 3,
    *(_ask_place,) * 3,  # nine places teach a model to look at the place of the thing that is named, two sides do not
)
