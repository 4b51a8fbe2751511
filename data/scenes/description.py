"""Generated images of coloured shapes: the description of an image, and its pixels.

Questions, captions and annotations are computed from the description, never from the pixels. Region features are
computed from the pixels, never from the description. Boxes are xyxy and points are (x, y), in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

SHAPES = ("circle", "square", "triangle", "star", "heart")
COLORS: dict[str, Color] = {
    "red": (222, 50, 48),
    "yellow": (250, 211, 44),
    "green": (56, 158, 78),
    "blue": (38, 112, 216),
    "pink": (244, 128, 178),
    "black": (52, 54, 62),
}
SIZES: dict[str, tuple[float, float]] = {"small": (10.0, 12.0), "big": (14.5, 16.5)}  # range of the radius
BACKGROUNDS: tuple[Color, ...] = (
    (247, 243, 233),
    (231, 240, 247),
    (235, 244, 232),
    (246, 234, 235),
    (238, 236, 246),
    (240, 240, 240),
)
MAX_THINGS = 5
GRID = 3  # things stand in the cells of a 3 x 3 grid, at most JITTER pixels off on each axis
JITTER = 3.0
MARGIN = 2.0  # free pixels around every thing
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One coloured shape. box: the tight box of polygon."""

    shape: str
    color: str
    size: str
    box: Box
    polygon: tuple[Point, ...]

    @property
    def center(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """The description of one image. noise: standard deviation of the pixel noise, in grey levels."""

    image_id: int
    width: int
    height: int
    background: Color
    noise: float
    things: tuple[Thing, ...]


def generate_scene(rng: Random, image_id: int) -> Scene:
    """Draws a scene of 2 to 5 things that do not overlap.

    A scene uses only some of the shapes and colours, so that several things often share one.
    """
    width, height = rng.randint(152, 168), rng.randint(114, 126)
    if rng.random() < 0.4:
        width, height = height, width
    shapes = rng.sample(SHAPES, rng.randint(2, 5))
    colors = rng.sample(tuple(COLORS), rng.randint(2, 6))
    count = rng.randint(2, MAX_THINGS)
    things = None
    while things is None:
        things = _place_things(rng, count, shapes, colors, width, height)
    noise = rng.choice((0.0, 1.5, 3.0))
    return Scene(image_id, width, height, rng.choice(BACKGROUNDS), noise, tuple(things))


def render(scene: Scene) -> Image.Image:
    """Returns the RGB image of a scene. Equal scenes have equal pixels."""
    scale = SUPERSAMPLING
    image = Image.new("RGB", (scene.width * scale, scene.height * scale), scene.background)
    draw = ImageDraw.Draw(image)
    shadow = _shade(scene.background, 0.86)
    for thing in scene.things:
        draw.polygon([((x + 1.2) * scale, (y + 1.8) * scale) for x, y in thing.polygon], fill=shadow)
    for thing in scene.things:
        color = COLORS[thing.color]
        outline = [(x * scale, y * scale) for x, y in thing.polygon]
        draw.polygon(outline, fill=color, outline=_shade(color, 0.72), width=scale)
    image = image.reduce(scale)
    if scene.noise:
        noise = np.random.RandomState(scene.image_id % 2**32).normal(0, scene.noise, (scene.height, scene.width, 1))
        image = Image.fromarray(np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8))
    return image


def overlap(a: Box, b: Box, margin: float = 0.0) -> bool:
    """Whether two boxes come closer than `margin` pixels on both axes."""
    return a[0] < b[2] + margin and b[0] < a[2] + margin and a[1] < b[3] + margin and b[1] < a[3] + margin


def _place_things(
    rng: Random, count: int, shapes: list[str], colors: list[str], width: int, height: int
) -> list[Thing] | None:
    """Returns `count` things in different cells, or None if two are too close (the caller draws again)."""
    things: list[Thing] = []
    for cell in rng.sample(range(GRID**2), count):
        shape, color, size = rng.choice(shapes), rng.choice(colors), rng.choice(tuple(SIZES))
        radius, angle = rng.uniform(*SIZES[size]), rng.uniform(-0.25, 0.25)
        x = (cell % GRID + 0.5) * width / GRID + rng.uniform(-JITTER, JITTER)
        y = (cell // GRID + 0.5) * height / GRID + rng.uniform(-JITTER, JITTER)
        polygon = shape_polygon(shape, x, y, radius, angle)
        box = _bounds(polygon)
        inside = min(box[:2]) >= 2 and box[2] <= width - 3 and box[3] <= height - 3
        if not inside or any(overlap(box, other.box, MARGIN) for other in things):
            return None
        things.append(Thing(shape, color, size, box, polygon))
    return things


def shape_polygon(shape: str, x: float, y: float, radius: float, angle: float) -> tuple[Point, ...]:
    """Returns the outline of a shape around (x, y), rotated by `angle` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return tuple(
        (round(x + radius * (cos * u - sin * v), 2), round(y + radius * (sin * u + cos * v), 2))
        for u, v in _UNIT_SHAPES[shape]
    )


def _ring(radii: tuple[float, ...], count: int) -> list[Point]:
    """Returns `count` points around the origin, the first at the top. Their distances cycle through `radii`."""
    turns = [2 * math.pi * i / count for i in range(count)]
    return [(radii[i % len(radii)] * math.sin(t), -radii[i % len(radii)] * math.cos(t)) for i, t in enumerate(turns)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 36 for i in range(36)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in turns
    ]


_UNIT_SHAPES: dict[str, list[Point]] = {
    "circle": _ring((0.95,), 40),
    "square": [(0.82, -0.82), (0.82, 0.82), (-0.82, 0.82), (-0.82, -0.82)],
    "triangle": _ring((1.1,), 3),
    "star": _ring((1.1, 0.47), 10),
    "heart": _heart(),
}


def _bounds(polygon: tuple[Point, ...]) -> Box:
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (round(c * factor) for c in color)
    return red, green, blue
