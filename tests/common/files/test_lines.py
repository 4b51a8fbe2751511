import multiprocessing
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from common.errors import DataError
from common.files import lines
from common.files.lines import LineFile

TEXTS = [
    "one\ntwo\n",
    "one\n\n  two  \n \t\n\x0c\nthree",
    "\n\n\none\r\ntwo\rthree\r\n\r\n",
    "\u00a0\n\u3000 \nein \u00fcbel\n\u2028x\n",
    "last without end",
    "a\x0bb\n\x85\nc\x1cd\n",
]


def expected(text: str) -> list[str]:
    """What reading the file in text mode gives, stripped, without what is then empty (original 5.12)."""
    pieces = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [piece.strip() for piece in pieces if piece.strip()]


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Large: with an index on disk, made of pieces of a few bytes."""
    if request.param == "large":
        monkeypatch.setattr(lines, "SMALL", 0)
        monkeypatch.setattr(lines, "CHUNK", 5)
    return request.param


@pytest.mark.parametrize("text", TEXTS)
def test_lines_are_those_of_text_mode(tmp_path, size, text):
    path = tmp_path / "corpus.doc"
    path.write_bytes(text.encode())
    file = LineFile(path)
    assert list(file) == expected(text)
    assert len(file) == len(expected(text))
    assert list(pickle.loads(pickle.dumps(file))) == expected(text)
    assert (tmp_path / "corpus.doc.lines").exists() == (size == "large")


def test_an_index_is_used_until_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SMALL", 0)
    path = tmp_path / "corpus.doc"
    path.write_text("one\ntwo\n")
    assert len(LineFile(path)) == 2
    with monkeypatch.context() as patch:
        patch.setattr(lines, "_line_starts", None)
        assert list(LineFile(path)) == ["one", "two"]
    path.write_text("one\ntwo\nthree\n")
    assert list(LineFile(path)) == ["one", "two", "three"]
    index = tmp_path / "corpus.doc.lines"
    index.write_bytes(index.read_bytes()[:-3])  # cut off, as after a full disk
    assert list(LineFile(path)) == ["one", "two", "three"]


def test_an_indexing_that_was_killed_leaves_nothing_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SMALL", 0)
    (tmp_path / "corpus.doc").write_text("one\n")
    (tmp_path / ".corpus.doc.lines.abcd1234.tmp").write_bytes(b"half")
    assert list(LineFile(tmp_path / "corpus.doc")) == ["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.doc", "corpus.doc.lines"]


def test_the_index_of_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "SMALL", 0)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    path = tmp_path / "corpus.doc"
    path.write_text("one\n")
    assert list(LineFile(path, tmp_path / "cache")) == ["one"]
    assert [p.name for p in tmp_path.glob("*.lines")] == []
    assert len(list((tmp_path / "cache").glob("*.lines"))) == 1


def test_what_is_wrong(tmp_path, size):
    with pytest.raises(FileNotFoundError, match="none.doc"):
        LineFile(tmp_path / "none.doc")
    path = tmp_path / "corpus.doc"
    for content in (b"", b" \n\n\t\n"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no line of text"):
            LineFile(path)
    path.write_bytes(b"good\nbad \xff\n")
    file = LineFile(path)
    with pytest.raises(DataError, match="line 2 .*byte 5"):
        file[1]
    with pytest.raises(IndexError, match="line 2 of 2"):
        file[2]


def _length(path, queue):
    lines.SMALL = 0
    queue.put(len(LineFile(path)))


def test_several_processes_at_once(tmp_path):
    path = tmp_path / "corpus.doc"
    path.write_text("some text\n" * 10_000)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_length, args=(path, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [10_000] * 4
    for process in processes:
        process.join()


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """20 MB of 100,000 lines, read in pieces of 256 KB: never more than a few pieces in memory."""
    monkeypatch.setattr(lines, "SMALL", 0)
    monkeypatch.setattr(lines, "CHUNK", 1 << 18)
    path = tmp_path / "corpus.doc"
    path.write_text(("word " * 40 + "\n") * 100_000)
    tracemalloc.start()
    file = LineFile(path)
    texts = [file[int(i)] for i in np.linspace(0, len(file) - 1, 50)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(file) == 100_000 and len(set(texts)) == 1
    assert peak < 12 << 18
