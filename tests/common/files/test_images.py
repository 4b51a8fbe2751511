"""Files and images from folders and archives."""

from __future__ import annotations

import io
import os
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common.errors import ImageError
from common.files.images import (
    exists,
    list_files,
    load_image,
    read_bytes,
    split_region_path,
)


def png(mode: str = "RGB", size: tuple[int, int] = (4, 3), color: object = None) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color or 0).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> str:
    path = tmp_path / "set.zip"
    with ZipFile(path, "w", ZIP_STORED) as file:
        file.writestr("set/a.png", png(color=(10, 20, 30)))
        file.writestr("set/deep/b.png", png())
        file.writestr("set/note.txt", b"hello")
        file.writestr("settle.png", png())
    return str(path)


def test_reads_the_same_from_a_folder_and_an_archive(tmp_path: Path, archive: str) -> None:
    (tmp_path / "note.txt").write_bytes(b"hello")
    assert read_bytes(tmp_path / "note.txt") == read_bytes(f"{archive}@/set/note.txt") == b"hello"
    assert read_bytes(f"{archive}@set/note.txt/") == b"hello"


def test_exists(tmp_path: Path, archive: str) -> None:
    assert exists(archive)
    assert exists(f"{archive}@/set/a.png")
    assert not exists(f"{archive}@/set/z.png")
    assert not exists(f"{tmp_path}/none.zip@/a.png")
    assert not exists(tmp_path / "none.png")


def test_missing_files_are_named(tmp_path: Path, archive: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"set\.zip has no member 'set/z\.png'"):
        read_bytes(f"{archive}@/set/z.png")
    with pytest.raises(FileNotFoundError, match=r"no archive .*none\.zip"):
        read_bytes(f"{tmp_path}/none.zip@/a.png")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        load_image(tmp_path / "none.png")


def test_list_files_keeps_to_the_folder(tmp_path: Path, archive: str) -> None:
    assert list_files(f"{archive}@/set", (".png",)) == ["a.png"]
    assert list_files(f"{archive}@/", (".png",)) == ["settle.png"]
    (tmp_path / "B.PNG").write_bytes(png())
    (tmp_path / "a.png").write_bytes(png())
    assert list_files(tmp_path, (".png",)) == ["B.PNG", "a.png"]


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


def test_damaged_archive_is_named(tmp_path: Path, archive: str) -> None:
    content = bytearray(Path(archive).read_bytes())
    content[content.index(b"hello")] = ord("j")  # the checksum of note.txt is now wrong
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(BadZipFile, match=r"bad\.zip, member 'set/note\.txt'.*CRC"):
        read_bytes(f"{tmp_path}/bad.zip@/set/note.txt")
    (tmp_path / "cut.zip").write_bytes(content[:100])
    with pytest.raises(BadZipFile, match=r"cut\.zip"):
        read_bytes(f"{tmp_path}/cut.zip@/set/note.txt")
    with pytest.raises(ImageError, match=r"cut\.zip"):
        load_image(f"{tmp_path}/cut.zip@/set/a.png")


class Members(Dataset):
    def __init__(self, archive: str) -> None:
        self.archive = archive

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> tuple[int, int]:
        content = read_bytes(f"{self.archive}@/{index}.txt")
        assert content == f"{index}".encode() * 500
        return index, os.getpid()


def test_workers_forked_after_opening_read_correctly(tmp_path: Path) -> None:
    archive = tmp_path / "many.zip"
    with ZipFile(archive, "w") as file:
        for i in range(200):
            file.writestr(f"{i}.txt", f"{i}" * 500)
    data = Members(str(archive))
    data[0]  # opens the archive here, before the fork
    loader = DataLoader(data, batch_size=10, num_workers=2, shuffle=True, multiprocessing_context="fork")
    indices, processes = zip(*loader, strict=True)
    assert sorted(torch.cat(indices).tolist()) == list(range(200))
    assert os.getpid() not in torch.cat(processes)


@pytest.mark.parametrize(
    ("path", "zip_mode", "place"),
    [
        ("train_frcnn.zip@/00000000.json", False, ("train_frcnn", "00000000")),
        ("train_frcnn.zip@/00000000.json", True, ("train_frcnn.zip", "00000000")),
        ("train_frcnn.2.zip@/a/7.json", False, ("train_frcnn", "a/7")),  # one of several archives
        ("../regions/7.json", True, ("../regions", "7")),
    ],
)
def test_where_regions_of_a_caption_lie(path, zip_mode, place):
    assert split_region_path(path, zip_mode) == place
