"""Images that several samples of a batch show: each is read and resized once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from torch import Tensor

from common.data.transforms import Transform
from common.files.images import load_image


class ImageCache:
    """Images by path, and their pixels by path and orientation. Inside of `keeping` each is made once."""

    def __init__(self) -> None:
        self._keep = False
        self._images: dict[str, Image.Image] = {}
        self._pixels: dict[tuple[str, bool], Tensor] = {}

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keeps images and pixels to the end of the block, which puts one batch together."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
            self._images.clear()
            self._pixels.clear()

    def image(self, path: str) -> Image.Image:
        """Returns the RGB image of `load_image`. Raises what that raises."""
        if path in self._images:
            return self._images[path]
        image = load_image(path)
        if self._keep:
            self._images[path] = image
        return image

    def pixels(self, path: str, image: Image.Image, flipped: bool, transform: Transform) -> Tensor:
        """Returns float32 [3, height, width], `transform.pixels(image, flipped)`. Callers must not write to it.

        image: of the file `path`, as `image` returned it. transform: the same one for all samples of a batch.
        """
        key = path, flipped
        if key in self._pixels:
            return self._pixels[key]
        pixels = transform.pixels(image, flipped)
        if self._keep:
            self._pixels[key] = pixels
        return pixels
