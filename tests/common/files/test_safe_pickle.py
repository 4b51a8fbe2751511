"""Pickles of plain data are read, those with code are refused without running it."""

import collections
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.files.safe_pickle import load_object_array, load_pickle

PLAIN = {
    "numbers": [1, 2.5, True, None, 2**70],
    "text": ("a", "ä", b"bytes"),
    "set": {1, 2},
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, {"k": [1]}),
    "array": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.int64(7),
    "objects": np.array(["x", {"y": 1}], dtype=object),
}


class Bomb:
    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def written(path: Path, content, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data(tmp_path, protocol):
    got = load_pickle(written(tmp_path / "a.pkl", PLAIN, protocol))
    assert got.keys() == PLAIN.keys()
    for key, want in PLAIN.items():
        assert np.array_equal(got[key], want) and type(got[key]) is type(want)
    assert got["array"].dtype == np.float32 and got["default"]["new"] == []


def test_a_file_of_python_2(tmp_path):
    """Its byte strings are text; the encoding says which."""
    path = tmp_path / "py2.pkl"
    path.write_bytes(b"\x80\x02}q\x00U\x03keyq\x01U\x02\xc3\xa4q\x02s.")
    assert load_pickle(path, encoding="latin1") == {"key": "Ã¤"}
    with pytest.raises(ValueError, match="py2.pkl"):
        load_pickle(path)


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (Path.write_text, ("TRACE", "x"), "getattr|pathlib"),
        (os.system, ("touch TRACE",), "posix.system"),
        (eval, ("open('TRACE', 'w')",), "eval"),
        (getattr, (dict, "update"), "getattr"),
        (exec, ("open('TRACE', 'w')",), "exec"),
    ],
    ids=["method", "system", "eval", "getattr", "exec"],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_by_name_and_not_run(tmp_path, monkeypatch, function, args, name, protocol):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "TRACE"
    args = tuple(trace if a == "TRACE" else a for a in args)
    path = written(tmp_path / "bomb.pkl", {"a": [Bomb(function, *args)]}, protocol)
    with pytest.raises(ValueError, match=rf"bomb.pkl: .* asks for .*({name}).*, which a data file has no use for"):
        load_pickle(path)
    assert not trace.exists()


def test_the_bombs_are_live(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "bomb.pkl", Bomb(os.system, "touch TRACE"))
    pickle.loads(path.read_bytes())
    assert (tmp_path / "TRACE").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps(list(range(100)))[:-20]])
def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="a.pkl: cannot be read as plain data"):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("content", [b"\x80\x02Nr\xff\xff\xff\x0f.", b"Np268435455\n.", b"\x80\x02\xff."])
def test_a_memo_beyond_the_file_is_refused_before_memory_is_taken(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="a.pkl: cannot be read as plain data: (memo number|byte 2)"):
        load_pickle(tmp_path / "a.pkl")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(6))
def test_all_kinds_of_values_pass_the_check_of_the_memo(tmp_path, protocol):
    value = {"text": "a" * 300, "b": b"x" * 300, "n": 10**300, "f": 1.5, "none": None, "list": [1, (2, True)] * 300}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert load_pickle(tmp_path / "a.pkl") == value


class TestObjectArrays:
    def test_read(self, tmp_path):
        """As the imdb files of VQA."""
        content = np.array([{"header": 1}, {"question_tokens": ["what", "is"], "answers": ["a"] * 2}], dtype=object)
        np.save(tmp_path / "imdb.npy", content, allow_pickle=True)
        got = load_object_array(tmp_path / "imdb.npy")
        assert got.shape == (2,) and got[1] == content[1]

    def test_code_inside(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array([Bomb(os.system, f"touch {tmp_path}/TRACE")], dtype=object))
        with pytest.raises(ValueError, match="a.npy: .*posix.system"):
            load_object_array(tmp_path / "a.npy")
        assert not (tmp_path / "TRACE").exists()

    def test_other_files(self, tmp_path):
        np.save(tmp_path / "numbers.npy", np.zeros(3))
        with pytest.raises(ValueError, match="numbers.npy: expected an array of objects, found dtype float64"):
            load_object_array(tmp_path / "numbers.npy")
        (tmp_path / "b.npy").write_bytes(b"no array at all")
        with pytest.raises(ValueError, match="b.npy: not a .npy file"):
            load_object_array(tmp_path / "b.npy")
