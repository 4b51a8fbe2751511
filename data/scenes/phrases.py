"""Descriptions of the things of a scene, and their places."""

from __future__ import annotations

from dataclasses import dataclass

from data.scenes.description import GRID, Scene, Thing

CLEAR = 0.2  # part of the image size: the smallest distance on an axis at which one point is left of another
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")  # thirds of an image
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis, sign


@dataclass(frozen=True)
class Phrase:
    """A description such as "red star". An attribute that is None fits everything."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None

    def find(self, scene: Scene) -> list[int]:
        """Returns the indices of the things in the scene that fit."""
        return [i for i, thing in enumerate(scene.things) if self.fits(thing)]

    def fits(self, thing: Thing) -> bool:
        pairs = ((self.color, thing.color), (self.shape, thing.shape), (self.size, thing.size))
        return all(wanted is None or wanted == value for wanted, value in pairs)

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape or "thing") if word)

    @property
    def plural(self) -> str:
        return f"{self}s"

    @property
    def with_article(self) -> str:
        return f"an {self}" if str(self)[0] in "aeiou" else f"a {self}"


def describe(thing: Thing, *attributes: str) -> Phrase:
    """Returns the phrase with these attributes (color, shape, size) of a thing."""
    return Phrase(**{name: getattr(thing, name) for name in attributes})


def cell(scene: Scene, thing: Thing) -> tuple[int, int]:
    """Returns the row and the column of the grid cell of a thing."""
    x, y = thing.center
    return int(y / scene.height * GRID), int(x / scene.width * GRID)


def cell_name(row: int, column: int) -> str:
    """ "top left" or "middle center": always two words, because "top" would fit the top left too."""
    return f"{ROWS[row]} {COLUMNS[column]}"


def is_beyond_middle(scene: Scene, thing: Thing, direction: str) -> bool:
    """Whether a thing is clearly left of, right of, above or below the middle of the image."""
    return _is_beyond(scene, thing.center, (scene.width / 2, scene.height / 2), direction)


def is_beyond(scene: Scene, thing: Thing, other: Thing, direction: str) -> bool:
    """Whether a thing is clearly left of, right of, above or below the other. The other axis does not count."""
    return _is_beyond(scene, thing.center, other.center, direction)


def _is_beyond(scene: Scene, point: tuple[float, float], origin: tuple[float, float], direction: str) -> bool:
    axis, sign = DIRECTIONS[direction]
    return sign * (point[axis] - origin[axis]) >= CLEAR * (scene.width, scene.height)[axis]
