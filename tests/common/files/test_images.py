"""Images from folders and archives."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from common.errors import ImageError
from common.files.images import load_image
from tests.common.files.conftest import png


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
