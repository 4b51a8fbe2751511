import pytest

from common.errors import CheckpointError
from common.files.downloads import check_download


def test_a_file_of_bytes_passes(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04")
    check_download(tmp_path / "a.pth")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pth: no such file"):
        check_download(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"\n  <!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
        (b"\xef\xbb\xbf<HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a git-lfs pointer"),
    ],
)
def test_what_arrives_in_place_of_a_file(tmp_path, content, why):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.pth: byte 0: {why}"):
        check_download(tmp_path / "a.pth")
