"""Files and folders appear when they are complete, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.files.atomic import atomic_write, new_folder


def test_a_file_is_replaced_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    for content in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content and [*path.parent.iterdir()] == [path]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_a_folder_appears_when_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "store"
    with new_folder(target) as folder:
        (folder / "a").touch()
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["a"] and [*tmp_path.iterdir()] == [target]


def test_a_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "store"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileExistsError, match="store exists"), new_folder(target):
        pass
    with pytest.raises(KeyError), new_folder(target, overwrite=True):
        raise KeyError
    assert [p.name for p in target.iterdir()] == ["old"]
    with new_folder(target, overwrite=True) as folder:
        (folder / "new").touch()
    assert [p.name for p in target.iterdir()] == ["new"] and [*tmp_path.iterdir()] == [target]
