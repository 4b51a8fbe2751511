"""Pieces at the end of a file."""

import pytest

from common.files.append import AppendFile


def test_pieces_follow_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old ")
    file = AppendFile(path)
    file.append(b"new ")
    assert path.read_bytes() == b"old new "  # at once
    file.append(b"last")
    file.close()
    file.close()
    assert path.read_bytes() == b"old new last"


def test_a_full_disk_takes_a_whole_piece_or_none(small_disk):
    path = small_disk.folder / "a"
    file = AppendFile(path)
    file.append(b"old ")
    small_disk.fill(free=8192)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a'"):
        file.append(bytes(20_000))
    assert path.read_bytes() == b"old "
    small_disk.empty()
    file.append(b"new")
    assert path.read_bytes() == b"old new"
    file.close()


def test_a_device_that_cannot_be_cut(tmp_path):
    from pathlib import Path

    with pytest.raises(OSError, match="No space left"):
        AppendFile(Path("/dev/full")).append(b"x")
