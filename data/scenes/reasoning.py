"""Questions on a scene in the form of VCR: four answers, and four rationales for the right answer.

Words are mixed tokens: a string, or a list of numbers of things. The names of the things do not describe them, so a
model has to use the image. A wrong choice has the form of the right one, and its words are right as often. Each
rationale is a statement from which the right answer would follow. One of the four is true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations, product
from random import Random

from data.scenes.description import (
    COLORS,
    GRID,
    SHAPES,
    Scene,
    Thing,
)
from data.scenes.phrases import cell, cell_name, is_beyond

Tokens = list[str | list[int]]
CHOICES = 4
_VALUES: dict[str, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES}
_OTHER = {"color": "shape", "shape": "color"}


@dataclass(frozen=True)
class Choices:
    """Four texts. label: the number of the right one."""

    texts: tuple[Tokens, ...]
    label: int


@dataclass(frozen=True)
class Problem:
    """A question with its answers, and the rationales of the right answer. kind: the type of the question."""

    kind: str
    question: Tokens
    answers: Choices
    rationales: Choices


def pose(scene: Scene, rng: Random) -> list[Problem]:
    """Returns up to twelve different problems on a scene, in random order, fewer if the scene has none of a kind."""
    problems: dict[str, Problem] = {}
    for make in _PLAN:
        problem = make(scene, rng)
        if problem is not None:
            problems.setdefault(str(problem.question), problem)
    return rng.sample(list(problems.values()), len(problems))


def _ask_what(scene: Scene, rng: Random) -> Problem:
    """ "What color is [2]?" - "[2] is red." - "[2] is a red star." Rivals: other colours; other shapes."""
    index, asked = rng.randrange(len(scene.things)), rng.choice(tuple(_VALUES))
    thing = scene.things[index]
    answers = [_is_a(index, {asked: value}) for value in _rivals(scene, rng, thing, asked)]
    question: Tokens = ["What", asked, "is", [index], "?"]
    return Problem(f"what {asked}", question, _shuffle(answers, rng), _full_looks(scene, rng, index, asked))


def _ask_which(scene: Scene, rng: Random) -> Problem | None:
    """ "Which one is red?" - "[2] is red." - "[2] is a red star." Rivals: other things; other shapes."""
    asked = rng.choice(tuple(_VALUES))
    values = [getattr(thing, asked) for thing in scene.things]
    single = [i for i, value in enumerate(values) if values.count(value) == 1]
    if not single or len(values) < CHOICES:
        return None
    index = rng.choice(single)
    others = rng.sample([i for i in range(len(values)) if i != index], CHOICES - 1)
    answers = [_is_a(i, {asked: values[index]}) for i in (index, *others)]
    question: Tokens = ["Which", "one", *_is_a(index, {asked: values[index]})[1:-1], "?"]
    return Problem(f"which {asked}", question, _shuffle(answers, rng), _full_looks(scene, rng, index, asked))


def _ask_pair(scene: Scene, rng: Random) -> Problem | None:
    """ "Which two have the same color?" - "[0, 3] have the same color." - "[0, 3] are both red."

    The four pairs are the sides of a ring of four things, so that no thing is in more of them than another.
    """
    asked = rng.choice(tuple(_VALUES))
    values = [getattr(thing, asked) for thing in scene.things]
    rings = [ring for ring in _rings(len(values)) if sum(values[a] == values[b] for a, b in ring) == 1]
    if not rings:
        return None
    pairs = [rng.sample(pair, 2) for pair in rng.choice(rings)]
    (right,) = [pair for pair in pairs if values[pair[0]] == values[pair[1]]]
    pairs.remove(right)
    answers: list[Tokens] = [[pair, "have", "the", "same", asked, "."] for pair in (right, *pairs)]
    plural = "s" if asked == "shape" else ""
    rationales: list[Tokens] = [
        [right, "are", "both", value + plural, "."] for value in _rivals(scene, rng, scene.things[right[0]], asked)
    ]
    question: Tokens = ["Which", "two", "have", "the", "same", asked, "?"]
    return Problem(f"same {asked}", question, _shuffle(answers, rng), _shuffle(rationales, rng))


def _ask_where(scene: Scene, rng: Random) -> Problem:
    """ "Where is [2]?" - "[2] is at the top left." - "[2] is a red thing at the top left."

    Rivals: other places; other colours.
    """
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    true = cell(scene, thing)
    others = rng.sample([place for place in product(range(GRID), repeat=2) if place != true], CHOICES - 1)
    answers: list[Tokens] = [[[index], "is", *_at(*place), "."] for place in (true, *others)]
    rationales: list[Tokens] = [
        [[index], "is", "a", color, "thing", *_at(*true), "."] for color in _rivals(scene, rng, thing, "color")
    ]
    return Problem("where", ["Where", "is", [index], "?"], _shuffle(answers, rng), _shuffle(rationales, rng))


def _ask_side(scene: Scene, rng: Random) -> Problem | None:
    """ "On which side of [0] is [2]?" - "[2] is above [0], to the left." - "[2] is at the top left, [0] at the ..."

    Rivals: the other three quarters; other places that would put [2] above and to the left of [0].
    """
    pairs = []
    for i, j in permutations(range(len(scene.things)), 2):
        thing, other = scene.things[i], scene.things[j]
        horizontal = [side for side in ("left", "right") if is_beyond(scene, thing, other, side)]
        vertical = [side for side in ("above", "below") if is_beyond(scene, thing, other, side)]
        pairs += [(i, j, h, v) for h in horizontal for v in vertical]
    if not pairs:
        return None
    i, j, horizontal_side, vertical_side = rng.choice(pairs)
    sides = {(v, h) for v in ("above", "below") for h in ("left", "right")} - {(vertical_side, horizontal_side)}
    answers: list[Tokens] = [
        [[i], "is", v, [j], ",", "to", "the", h, "."] for v, h in [(vertical_side, horizontal_side), *sorted(sides)]
    ]
    true = (cell(scene, scene.things[i]), cell(scene, scene.things[j]))
    places = [pair for pair in _cell_pairs(vertical_side, horizontal_side) if pair != true]
    rationales: list[Tokens] = [
        [[i], "is", *_at(*a), ",", [j], *_at(*b), "."] for a, b in [true, *rng.sample(places, CHOICES - 1)]
    ]
    question: Tokens = ["On", "which", "side", "of", [j], "is", [i], "?"]
    return Problem("which side", question, _shuffle(answers, rng), _shuffle(rationales, rng))


def _full_looks(scene: Scene, rng: Random, index: int, known: str) -> Choices:
    """ "[2] is a red star." and the same with other shapes, where "color" is the known attribute."""
    thing, told = scene.things[index], _OTHER[known]
    looks = [{known: getattr(thing, known), told: value} for value in _rivals(scene, rng, thing, told)]
    return _shuffle([_is_a(index, look) for look in looks], rng)


def _rivals(scene: Scene, rng: Random, thing: Thing, attribute: str) -> list[str]:
    """Returns the color or shape of a thing and three other values. Values in the image come first."""
    value = getattr(thing, attribute)
    others = [v for v in _VALUES[attribute] if v != value]
    present = {getattr(other, attribute) for other in scene.things}
    others = sorted(rng.sample(others, len(others)), key=lambda v: v not in present)
    return [value, *others[: CHOICES - 1]]


def _is_a(index: int, look: dict[str, str]) -> Tokens:
    """ "[2] is red.", "[2] is a star.", "[2] is a red star." """
    words = [look[name] for name in ("color", "shape") if name in look]
    return [[index], "is", *(["a"] if "shape" in look else []), *words, "."]


def _rings(count: int) -> list[tuple[tuple[int, int], ...]]:
    """Returns the sides of every ring of four out of `count` things. Four things make three rings."""
    return [
        ((a, b), (b, c), (c, d), (d, a))
        for p, q, r, s in combinations(range(count), 4)
        for a, b, c, d in ((p, q, r, s), (p, q, s, r), (p, r, q, s))
    ]


def _cell_pairs(vertical: str, horizontal: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns all pairs of cells of which the first is above or below the second, and left or right of it."""
    lines = list(combinations(range(GRID), 2))
    rows = [pair if vertical == "above" else pair[::-1] for pair in lines]
    columns = [pair if horizontal == "left" else pair[::-1] for pair in lines]
    return [((r[0], c[0]), (r[1], c[1])) for r, c in product(rows, columns)]


def _at(row: int, column: int) -> list[str]:
    return ["at", "the", *cell_name(row, column).split()]


def _shuffle(texts: Sequence[Tokens], rng: Random) -> Choices:
    """Returns the texts in random order. The first given text is the right one."""
    order = rng.sample(range(CHOICES), CHOICES)
    return Choices(tuple(texts[i] for i in order), order.index(0))


_PLAN: tuple[Callable[[Scene, Random], Problem | None], ...] = (
    _ask_what,
    _ask_what,
    _ask_which,
    _ask_which,
    _ask_which,
    _ask_which,  # this and the next kind need four things, which half of the scenes have
    _ask_pair,
    _ask_pair,
    _ask_pair,
    _ask_where,
    _ask_where,
    _ask_side,
)
