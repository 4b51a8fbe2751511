"""JSON files of data sets."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from common.errors import DataError
from common.files.json_files import iter_list


class TestIterList:
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
    def test_the_elements_are_those_of_json(self, tmp_path, content, indent):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(content, indent=indent) + "\n")
        assert list(iter_list(path, "things")) == content["things"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"things": [1,\n2\n', "x.json: not valid JSON: .*premature EOF$"),
            ('{"things": [1\n2]}', "x.json: not valid JSON: .* near '.*1 2]}'$"),
            ('{"things": [1]\n "x": 3}', "x.json: not valid JSON: .* near .*x"),
            ('{"things": [1, 2]', "x.json: not valid JSON: .*premature EOF$"),
            ('{"things": [1]} more', "x.json: not valid JSON"),
            ('{"things": [12345678901234567890]}', "x.json: not valid JSON: .*overflow"),
            ("", "x.json: not valid JSON"),
            ('{"things": 3}', "expected an object with a list 'things'"),
            ('{"other": [3]}', "expected an object with a list 'things'"),
            ("[1]", "expected an object with a list 'things'"),
            ("{}", "expected an object with a list 'things'"),
        ],
    )
    def test_what_is_wrong(self, tmp_path, text, message):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            list(iter_list(path, "things"))

    def test_no_file_and_no_text(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="questions file"):
            list(iter_list(tmp_path / "none.json", "things", "questions file"))
        (tmp_path / "x.json").write_bytes(b'{"things": ["\xff"]}')
        with pytest.raises(DataError, match="x.json: not valid JSON: .*UTF8"):
            list(iter_list(tmp_path / "x.json", "things"))

    def test_elements_before_an_error_are_given(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text('{"things": [1, {"a": 2}, oops]}')
        found = []
        with pytest.raises(DataError, match="oops"):
            for element in iter_list(path, "things"):
                found.append(element)
        assert found == [1, {"a": 2}]

    def test_numbers_keep_their_kind_and_the_last_of_equal_keys_counts(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text('{"things": [1, 1.0, 25e-1, 9007199254740993, {"a": 1, "a": 2}]}')
        found = list(iter_list(path, "things"))
        assert found == [1, 1.0, 2.5, 9007199254740993, {"a": 2}]
        assert [type(x) for x in found[:4]] == [int, float, float, int]

    def test_a_list_further_inside_is_another_list(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text('{"inner": {"things": [1]}, "things": [2]}')
        assert list(iter_list(path, "things")) == [2]

    def test_memory_is_that_of_an_element(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_text(json.dumps({"things": [{"text": "word " * 100, "n": i} for i in range(60_000)]}))
        tracemalloc.start()
        assert sum(x["n"] for x in iter_list(path, "things")) == 60_000 * 59_999 // 2
        assert tracemalloc.get_traced_memory()[1] < 10 << 20 < path.stat().st_size
        tracemalloc.stop()
