"""Referring expressions: words that single out one thing of a scene.

An expression is only made where its words are enough, by the description of the scene; and size, place and neighbours
are only named where colour and shape alone are not, so that they cannot be ignored.
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
    """Lower-case words separated by single spaces, and the kind of what they use; see KINDS."""

    text: str
    kind: str


def refer(scene: Scene, index: int, rng: Random) -> list[Expression]:
    """Up to MOST different expressions for thing number `index`, each of another kind; none where none would do."""
    found = [rng.choice(texts) for texts in expressions(scene, index).values() if texts]
    return rng.sample(found, min(MOST, len(found)))


def expressions(scene: Scene, index: int) -> dict[str, list[Expression]]:
    """All expressions for thing number `index`, by kind."""
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
    """Descriptions by colour and shape, from both to none ("thing")."""
    return [describe(thing, *names) for names in (("color", "shape"), ("shape",), ("color",), ())]


def _anchors(scene: Scene, index: int, direction: str, others: list[Thing]) -> list[Phrase]:
    """What thing number `index` lies beyond and none of the others does, each by words that fit it alone."""
    phrases: list[Phrase] = []
    for other in scene.things:
        beyond = is_beyond(scene, scene.things[index], other, direction)
        if beyond and not any(is_beyond(scene, thing, other, direction) for thing in others):
            phrases += [phrase for phrase in _looks(other)[:3] if len(phrase.find(scene)) == 1]
    return phrases
