"""JSON files of data sets."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from common.errors import DataError
from common.files.json_files import iter_list


class TestIterList:
    @pytest.fixture(params=[1, 3, 1 << 20])
    def chunk(self, request, monkeypatch):
        """Buffers that end inside of every kind of value."""
        monkeypatch.setattr("common.files.json_files._Stream.CHUNK", request.param)

    @pytest.mark.parametrize(
        "content",
        [
            {
                "info": {"a": [1, 2]},
                "other": [[], {"x": "]}"}],
                "things": [1, 23, "b\\u00e9\n", None, [4, []]],
                "z": 1.5e3,
            },
            {"things": []},
            {"things": [{"a": {"b": [1]}}], "after": [3]},
        ],
    )
    @pytest.mark.parametrize("indent", [None, 2])
    def test_the_elements_are_those_of_json(self, tmp_path, chunk, content, indent):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content, indent=indent) + "\n")
        assert list(iter_list(path, "things")) == content["things"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"things": [1,\n2\n', "not valid JSON at line [23]"),
            ('{"things": [1\n2]}', "not valid JSON at line 2: Expecting"),
            ('{"things": [1]\n "x": 3}', "not valid JSON at line 2: Expecting '}'"),
            ('{"things": [1, 2]', "not valid JSON at line 1"),
            ("", "not valid JSON at line 1"),
            ('{"things": 3}', "expected an object with a list 'things'"),
            ('{"other": [3]}', "expected an object with a list 'things'"),
            ("[1]", "expected an object with a list 'things'"),
            ("{}", "expected an object with a list 'things'"),
        ],
    )
    def test_what_is_wrong(self, tmp_path, chunk, text, message):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            list(iter_list(path, "things"))

    def test_no_file_and_no_text(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="questions file"):
            list(iter_list(tmp_path / "none.json", "things", "questions file"))
        (tmp_path / "x.json").write_bytes(b'{"things": ["\xff"]}')
        with pytest.raises(DataError, match="not a text file"):
            list(iter_list(tmp_path / "x.json", "things"))

    def test_memory_is_that_of_an_element(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"things": [{"text": "word " * 100, "n": i} for i in range(60_000)]}))
        tracemalloc.start()
        assert sum(x["n"] for x in iter_list(path, "things")) == 60_000 * 59_999 // 2
        assert tracemalloc.get_traced_memory()[1] < 10 << 20 < path.stat().st_size
        tracemalloc.stop()
