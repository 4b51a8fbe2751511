"""Files of folders and archives."""

from __future__ import annotations

import os
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.files.archives import exists, list_files, read_bytes, split_region_path, unpacked
from tests.common.files.conftest import png


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


def test_list_files_keeps_to_the_folder(tmp_path: Path, archive: str) -> None:
    assert list_files(f"{archive}@/set", (".png",)) == ["a.png"]
    assert list_files(f"{archive}@/", (".png",)) == ["settle.png"]
    (tmp_path / "B.PNG").write_bytes(png())
    (tmp_path / "a.png").write_bytes(png())
    assert list_files(tmp_path, (".png",)) == ["B.PNG", "a.png"]


def test_damaged_archive_is_named(tmp_path: Path, archive: str) -> None:
    content = bytearray(Path(archive).read_bytes())
    content[content.index(b"hello")] = ord("j")  # the checksum of note.txt is now wrong
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(BadZipFile, match=r"bad\.zip, member 'set/note\.txt'.*CRC"):
        read_bytes(f"{tmp_path}/bad.zip@/set/note.txt")
    (tmp_path / "cut.zip").write_bytes(content[:100])
    with pytest.raises(BadZipFile, match=r"cut\.zip"):
        read_bytes(f"{tmp_path}/cut.zip@/set/note.txt")


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


def test_the_path_of_a_member_after_unpacking():
    assert unpacked("train_image.zip@/a/x.jpg") == "train_image/a/x.jpg"
    assert unpacked("train_image/x.jpg") == "train_image/x.jpg"
