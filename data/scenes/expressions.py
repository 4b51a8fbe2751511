"""Referring expressions: descriptions that fit one thing of a scene.

An expression fits one thing only, by the description of the scene. It has size, place or neighbours only if colour and
shape fit several things, so that a model cannot ignore them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from data.scenes.description import Scene, Thing
from data.scenes.phrases import (
    DIRECTIONS,
    Phrase,
    describe,
    is_beyond,
    is_beyond_middle,
)

KINDS = ("look", "size", "place", "relation")
MOST = 3  # expressions for one thing
_PLACES = {
    "left": ("{} on the left", "left {}"),
    "right": ("{} on the right", "right {}"),
    "above": ("{} at the top", "top {}"),
    "below": ("{} at the bottom", "bottom {}"),
}
_RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Expression:
    """text: lower-case words separated by single spaces. kind: what separates the thing from others, one of KINDS."""

    text: str
    kind: str


def refer(scene: Scene, index: int, rng: Random) -> list[Expression]:
    """Returns up to MOST expressions for thing number `index`, each of another kind. May return none."""
    found = [rng.choice(texts) for texts in expressions(scene, index).values() if texts]
    return rng.sample(found, min(MOST, len(found)))


def expressions(scene: Scene, index: int) -> dict[str, list[Expression]]:
    """Returns all expressions for thing number `index`, by kind."""
    thing = scene.things[index]
    texts: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for phrase in _looks(thing):
        others = [scene.things[i] for i in phrase.find(scene) if i != index]
        if not others:
            texts["look"] += [str(phrase), f"the {phrase}"]
            continue
        sized = Phrase(phrase.color, phrase.shape, thing.size)
        if sized.find(scene) == [index]:
            texts["size"] += [str(sized), f"the {sized}"]
        for direction in DIRECTIONS:
            if is_beyond_middle(scene, thing, direction) and not any(
                is_beyond_middle(scene, other, direction) for other in others
            ):
                texts["place"] += [form.format(phrase) for form in _PLACES[direction]]
            for anchor in _anchors(scene, index, direction, others):
                texts["relation"] += [f"{phrase} {words} the {anchor}" for words in _RELATIONS[direction]]
    return {kind: [Expression(text, kind) for text in found] for kind, found in texts.items()}


def _looks(thing: Thing) -> list[Phrase]:
    """Returns the descriptions by colour and shape, from both to none ("thing")."""
    return [describe(thing, *names) for names in (("color", "shape"), ("shape",), ("color",), ())]


def _anchors(scene: Scene, index: int, direction: str, others: list[Thing]) -> list[Phrase]:
    """Returns unique descriptions of the things that thing number `index` lies beyond and no thing of `others` does."""
    phrases: list[Phrase] = []
    for other in scene.things:
        beyond = is_beyond(scene, scene.things[index], other, direction)
        if beyond and not any(is_beyond(scene, thing, other, direction) for thing in others):
            phrases += [phrase for phrase in _looks(other)[:3] if len(phrase.find(scene)) == 1]
    return phrases
