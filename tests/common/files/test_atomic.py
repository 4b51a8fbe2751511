"""Files and folders appear when they are complete, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.files.atomic import atomic_write, new_folder, remove_leftovers


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


class TestLeftovers:
    def test_what_killed_processes_left_is_removed_and_the_rest_stays(self, tmp_path, caplog):
        """Of a checkpoint, of the second name of one, and of a folder."""
        for name in (".a.model.abcd1234.tmp", ".b.tmp", "a.model", ".hidden", "x.tmp"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / ".folder.17.tmp").mkdir()
        with caplog.at_level("INFO"), atomic_write(tmp_path / "c.model"), new_folder(tmp_path / "new"):
            remove_leftovers(tmp_path)
            assert len(list(tmp_path.glob(".c.model.*.tmp"))) == len(list(tmp_path.glob(".new.*.tmp"))) == 1
        assert {path.name for path in tmp_path.iterdir()} == {"a.model", ".hidden", "x.tmp", "c.model", "new"}
        assert "a.model.abcd1234.tmp: left by a process that was killed; removed" in caplog.text

    def test_those_of_one_name(self, tmp_path):
        (tmp_path / ".a.model.abcd1234.tmp").touch()
        (tmp_path / ".b.model.abcd1234.tmp").touch()
        remove_leftovers(tmp_path, "a.model")
        assert [path.name for path in tmp_path.iterdir()] == [".b.model.abcd1234.tmp"]
        remove_leftovers(tmp_path / "none")

    def test_a_folder_that_was_left_is_removed_at_the_next_one(self, tmp_path):
        (tmp_path / ".new.1.tmp").mkdir()
        with new_folder(tmp_path / "new") as folder:
            assert list(tmp_path.iterdir()) == [folder]
