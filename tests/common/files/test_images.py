"""Images from folders and archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import ImageError
from common.files.images import as_rgb, load_image
from tests.common.files.conftest import png
from tests.paths import CASES


@pytest.mark.parametrize(("mode", "color"), [("L", 7), ("RGBA", (7, 7, 7, 128)), ("P", 0), ("1", 0)])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, color: object) -> None:
    (tmp_path / "x.png").write_bytes(png(mode, color=color))
    assert load_image(tmp_path / "x.png").mode == "RGB"


def test_pixels_survive(archive: str) -> None:
    image = load_image(f"{archive}@/set/a.png")
    assert image.size == (4, 3)
    assert image.getpixel((3, 2)) == (10, 20, 30)


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (8, 4)


@pytest.mark.parametrize("data", [b"", b"no image", png(size=(64, 64), color=(1, 2, 3))[:-30]])
def test_broken_image_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"broken\.png \(\d+ bytes\)"):
        load_image(tmp_path / "broken.png")


def test_what_cannot_be_opened_is_named(tmp_path: Path, archive: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png")
    (tmp_path / "cut.zip").write_bytes(Path(archive).read_bytes()[:100])
    with pytest.raises(ImageError, match=r"cut\.zip"):
        load_image(f"{tmp_path}/cut.zip@/set/a.png")


def written_image(path: Path, image: Image.Image) -> Image.Image:
    image.save(path)
    return load_image(path)


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tif"),
        ((RAMP * 65535).astype(np.int32), "tif"),
        ((RAMP * 2**30 - 2**29).astype(np.int32), "tif"),
        (RAMP.astype(np.float32), "tif"),
        ((RAMP * 255).astype(np.float32), "tif"),
        ((RAMP * 1e6).astype(np.float32), "tif"),
    ],
    ids=["uint16-png", "uint16", "int32", "signed", "fractions", "floats", "large-floats"],
)
def test_grey_of_more_than_8_bits_keeps_its_levels(tmp_path, values, ending):
    pixels = np.asarray(written_image(tmp_path / f"x.{ending}", Image.fromarray(values)))
    assert np.abs(pixels.astype(int) - np.rint(RAMP * 255)[..., None]).max() <= 1


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    values = np.full((4, 4), 200, np.uint16)
    assert np.asarray(written_image(tmp_path / "x.png", Image.fromarray(values))).max() <= 1


def test_values_that_are_not_finite_are_an_error(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(ImageError, match=r"x\.tif .*not finite"):
        load_image(tmp_path / "x.tif")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK", "HSV"])
def test_colours_do_not_depend_on_the_mode(mode):
    """A mode of grey shows the grey of the colour."""
    color = (250, 250, 250) if mode in ("L", "LA", "1") else (200, 40, 60)
    shown = as_rgb(Image.new("RGB", (4, 4), color).convert(mode))
    assert np.abs(np.array(shown.getpixel((0, 0))) - color).max() <= (12 if mode in ("1", "HSV", "P") else 1)


def test_transparent_pixels_are_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 1), (200, 40, 60, 255))
    shown = written_image(tmp_path / "x.png", image)
    assert (shown.getpixel((0, 0)), shown.getpixel((1, 1))) == ((255, 255, 255), (200, 40, 60))


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not there")
@pytest.mark.parametrize("name", ["gray16.png", "int32.tif"])
def test_cases(name):
    assert 120 < np.asarray(load_image(CASES / "images" / name)).mean() < 135
