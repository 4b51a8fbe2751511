"""Captions of a scene, and sentences of the text corpus.

A caption is true by the description of the scene. It states a few facts (looks, places, counts, sides, sizes): a masked
word follows from the image, and a masked region follows from the words. Sentences of the corpus have no image. They
describe scenes that are never drawn, and facts that hold in all scenes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations, product
from random import Random

from data.scenes.description import (
    COLORS,
    GRID,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)
from data.scenes.phrases import (
    DIRECTIONS,
    Phrase,
    cell,
    cell_name,
    describe,
    is_beyond,
    is_beyond_middle,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MOST = 4  # captions of a scene
_BESIDE = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def caption(scene: Scene, rng: Random) -> list[str]:
    """Returns 2 to MOST different captions: lower-case words and commas, separated by single spaces, without full stop.

    The first caption names all things.
    """
    captions = [_overview(scene, rng)]
    wanted = rng.randint(2, MOST)
    while len(captions) < wanted:
        text = _some_facts(scene, rng)
        if text not in captions:
            captions.append(text)
    return captions


def sentence(rng: Random, imagined: Callable[[Random], Scene]) -> str:
    """Returns a sentence without an image, with a full stop: about an imagined scene, or a fact about all scenes."""
    if rng.random() < 0.4:
        return f"{rng.choice(_TRUTHS)(rng)} ."
    scene = imagined(rng)
    return f"{(_overview if rng.random() < 0.3 else _some_facts)(scene, rng)} ."


# ---- facts about a scene ----


def _overview(scene: Scene, rng: Random) -> str:
    """ "a picture of two red stars and a blue heart", or each thing with its place."""
    things = rng.sample(scene.things, len(scene.things))
    if rng.random() < 0.5:
        return _join([f"{describe(t, 'color', 'shape').with_article} {_at(scene, t)}" for t in things])
    counts = Counter(describe(thing, "color", "shape") for thing in things)
    parts = [p.with_article if n == 1 else f"{NUMBERS[n]} {p.plural}" for p, n in counts.items()]
    return f"{rng.choice(('a picture of', 'an image with', 'a picture with'))} {_join(parts)}"


def _some_facts(scene: Scene, rng: Random) -> str:
    """Returns two or three different facts: "the star is red , there are two hearts and the red thing is above the
    heart"."""
    facts: list[str] = []
    for make in rng.sample(_FACTS, len(_FACTS)):
        fact = make(scene, rng)
        if fact is not None:
            facts.append(fact)
    return _join(facts[: rng.choice((2, 2, 3))])


def _look(scene: Scene, rng: Random) -> str | None:
    """ "the star is red" or "the red thing is a star"."""
    told = rng.choice(("color", "shape"))
    named = [i for i, thing in enumerate(scene.things) if describe(thing, told).find(scene) == [i]]
    if not named:
        return None
    thing = scene.things[rng.choice(named)]
    return f"the {thing.shape} is {thing.color}" if told == "shape" else f"the {thing.color} thing is a {thing.shape}"


def _place(scene: Scene, rng: Random) -> str | None:
    """ "the red star is at the top left" """
    return _about_one(scene, rng, lambda thing: [f"is {_at(scene, thing)}"])


def _side(scene: Scene, rng: Random) -> str | None:
    """ "the star is to the left of the middle" """
    return _about_one(
        scene, rng, lambda t: [f"is {_BESIDE[d]} the middle" for d in DIRECTIONS if is_beyond_middle(scene, t, d)]
    )


def _size(scene: Scene, rng: Random) -> str | None:
    """ "the red star is big" """
    return _about_one(scene, rng, lambda thing: [f"is {thing.size}"])


def _relation(scene: Scene, rng: Random) -> str | None:
    """ "the red star is above the heart" """
    names = [_names(scene, thing) for thing in scene.things]
    pairs = [
        (i, j, direction)
        for i, j in permutations(range(len(names)), 2)
        for direction in DIRECTIONS
        if names[i] and names[j] and is_beyond(scene, scene.things[i], scene.things[j], direction)
    ]
    if not pairs:
        return None
    i, j, direction = rng.choice(pairs)
    return f"the {rng.choice(names[i])} is {_BESIDE[direction]} the {rng.choice(names[j])}"


def _count(scene: Scene, rng: Random) -> str:
    """ "there are two stars", "there is no heart". Each number that the scene has is equally likely."""
    phrases = [Phrase(), *(Phrase(color=c) for c in COLORS), *(Phrase(shape=s) for s in SHAPES)]
    counts = {phrase: len(phrase.find(scene)) for phrase in phrases}
    number = rng.choice(sorted(set(counts.values())))
    phrase = rng.choice([p for p in phrases if counts[p] == number])
    if number < 2:
        return f"there is {('no', 'one')[number]} {phrase}"
    return f"there are {NUMBERS[number]} {phrase.plural}"


def _same(scene: Scene, rng: Random) -> str | None:
    """ "both stars are red", if there are two stars."""
    pairs = []
    for phrase in (*(Phrase(shape=s) for s in SHAPES), *(Phrase(color=c) for c in COLORS)):
        things = [scene.things[i] for i in phrase.find(scene)]
        told = "color" if phrase.shape else "shape"
        if len(things) == 2 and getattr(things[0], told) == getattr(things[1], told):
            pairs.append((phrase, getattr(things[0], told) + ("s" if told == "shape" else "")))
    if not pairs:
        return None
    phrase, value = rng.choice(pairs)
    return f"both {phrase.plural} are {value}"


_FACTS: tuple[Callable[[Scene, Random], str | None], ...] = (
    _look,
    _look,
    _place,
    _place,
    _side,
    _size,
    _relation,
    _count,
    _count,
    _same,
)


def _about_one(scene: Scene, rng: Random, predicates: Callable[[Thing], list[str]]) -> str | None:
    """Returns a predicate of a thing that has a unique description, None if there is no such thing."""
    choices = [(names, told) for t in scene.things if (names := _names(scene, t)) and (told := predicates(t))]
    if not choices:
        return None
    names, told = rng.choice(choices)
    return f"the {rng.choice(names)} {rng.choice(told)}"


def _names(scene: Scene, thing: Thing) -> list[Phrase]:
    """Returns the descriptions by colour, by shape and by both that fit this thing alone."""
    phrases = [describe(thing, *told) for told in (("color",), ("shape",), ("color", "shape"))]
    return [phrase for phrase in phrases if len(phrase.find(scene)) == 1]


def _at(scene: Scene, thing: Thing) -> str:
    return f"at the {cell_name(*cell(scene, thing))}"


def _join(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a , b and c" """
    return " and ".join(filter(None, (" , ".join(parts[:-1]), parts[-1])))


# ---- facts about all scenes ----


def _kind(rng: Random) -> str:
    color, shape = rng.choice(tuple(COLORS)), rng.choice(SHAPES)
    whole = Phrase(color, shape).with_article
    return rng.choice(
        (
            f"{whole} is {Phrase(shape=shape).with_article}",
            f"{whole} is {color}",
            f"{whole} is {Phrase(color=color).with_article}",
            f"{color} is a color and {shape} is a shape",
            f"the color of {whole} is {color}",
            f"the shape of {whole} is {shape}",
        )
    )


def _unlike(rng: Random) -> str:
    """A sentence about two values that exclude each other."""
    first, second = rng.sample(rng.choice((tuple(COLORS), SHAPES, tuple(SIZES))), 2)
    if first in SHAPES:
        color = rng.choice(tuple(COLORS))
        return rng.choice((f"no {first} is a {second}", f"a {color} {first} is not a {color} {second}"))
    shape = rng.choice(SHAPES)
    return rng.choice((f"no {first} {shape} is {second}", f"a {first} thing is not {second}"))


def _sum(rng: Random) -> str:
    total = rng.randint(2, len(NUMBERS) - 1)
    first = rng.randint(1, total - 1)
    phrase = rng.choice((Phrase(shape=rng.choice(SHAPES)), Phrase(color=rng.choice(tuple(COLORS))), Phrase()))
    parts = [f"{NUMBERS[n]} {phrase if n == 1 else phrase.plural}" for n in (first, total - first)]
    return f"{parts[0]} and {parts[1]} are {NUMBERS[total]} {phrase.plural}"


def _places(rng: Random) -> str:
    """A sentence about the order of two places."""
    first, second = rng.sample(list(product(range(GRID), repeat=2)), 2)
    sides = [d for d, (axis, sign) in DIRECTIONS.items() if sign * (first[1 - axis] - second[1 - axis]) > 0]
    thing = Phrase(shape=rng.choice((*SHAPES, None))).with_article
    return f"{thing} at the {cell_name(*first)} is {_BESIDE[rng.choice(sides)]} the {cell_name(*second)}"


def _converse(rng: Random) -> str:
    first, second = (Phrase(c, s) for c, s in zip(rng.sample(tuple(COLORS), 2), rng.sample(SHAPES, 2), strict=True))
    side = rng.choice(tuple(DIRECTIONS))
    other = _BESIDE[_OPPOSITE[side]]
    return rng.choice(
        (
            f"where the {first} is {_BESIDE[side]} the {second} , the {second} is {other} the {first}",
            f"where the {first} is {_BESIDE[side]} the {second} , the {first} is not {other} it",
        )
    )


_TRUTHS: tuple[Callable[[Random], str], ...] = (_kind, _unlike, _sum, _places, _converse)
