"""Looking up references (original 10.3), and files that are not what they should be (original 10.3)."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from refcoco.refer import REFER
from tests.refcoco.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Images 1 and 2 with two and one annotations; four references in the order of the file."""
    world = World(tmp_path)
    world.add_image(1, (640, 480), [[10.0, 20.0, 30.0, 40.0], [5.0, 5.0, 50.0, 50.0]])
    world.add_image(2, (480, 640), [[1.0, 2.0, 3.0, 4.0]])
    world.add_reference(101, ["cat", "the cat"], "testB")
    world.add_reference(100, ["left thing"], "train")
    world.add_reference(200, ["thing"], "testA")
    world.add_reference(100, ["the left one"], "val")
    return world.write()


def refer(world: World) -> REFER:
    return REFER(world.root, "refcoco+", "unc")


class TestLookups:
    def test_records_by_id(self, world):
        found = refer(world)
        assert list(found.refs) == [50, 51, 52, 53] and found.refs[51]["ann_id"] == 100
        assert list(found.anns) == [100, 101, 200] and list(found.imgs) == [1, 2] and list(found.cats) == [1]

    def test_a_box_is_that_of_the_annotation(self, world):
        assert refer(world).get_ref_box(50) == [5.0, 5.0, 50.0, 50.0]

    def test_records_come_in_the_order_of_the_ids(self, world):
        assert [r["ann_id"] for r in refer(world).load_refs([52, 50])] == [200, 101]

    def test_without_a_split_all_references(self, world):
        assert refer(world).get_ref_ids() == [50, 51, 52, 53]


class TestSplits:
    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            ("train", [51]),
            ("val", [53]),
            ("testA", [52]),
            ("testB", [50]),
            ("testC", []),
            ("test", [50, 52]),
            ("testAB", []),
        ],
    )
    def test_names(self, world, split, expected):
        assert refer(world).get_ref_ids(split=split) == expected

    def test_letters_of_joint_test_splits(self, world):
        """RefClef's: testA is whatever has an A, testAB only itself, test is everything with that word."""
        for reference, split in zip(world.references, ("testAB", "testBC", "testC", "trainB"), strict=True):
            reference["split"] = split
        found = refer(world.write())
        assert found.get_ref_ids(split="testA") == [50]
        assert found.get_ref_ids(split="testB") == [50, 51, 53]
        assert found.get_ref_ids(split="testBC") == [51]
        assert found.get_ref_ids(split="test") == [50, 51, 52]

    def test_an_unknown_split_is_an_error_and_does_not_end_the_program(self, world):
        with pytest.raises(ValueError, match="split 'minival': expected one of train, val, test, testA"):
            refer(world).get_ref_ids(split="minival")


class TestFiles:
    def test_json_where_there_is_no_pickle(self, world):
        expected = refer(world).refs
        (world.root / "refcoco+/refs(unc).p").unlink()
        assert refer(world).refs == expected

    def test_the_pickle_of_python_2(self, world):
        """Byte strings of ASCII are text; others make the file latin-1 (no. 27)."""
        path = world.root / "refcoco+/refs(unc).p"
        assert REFER(world.root, "refcoco+").refs[51]["sentences"][0]["tokens"] == ["left", "thing"]
        content = pickle.dumps(world.references, protocol=2)
        word = b"X\x05\x00\x00\x00thing"  # a unicode string of five bytes
        assert word in content
        path.write_bytes(content.replace(word, b"U\x05th\xefng"))  # the byte string of Python 2
        assert REFER(world.root, "refcoco+").refs[51]["sentences"][0]["tokens"] == ["left", "thïng"]

    def test_a_pickle_with_code_is_refused_and_not_run(self, world, tmp_path):
        class Bomb:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.system, (f"touch {tmp_path}/trace",)

        (world.root / "refcoco+/refs(unc).p").write_bytes(pickle.dumps([Bomb()], protocol=2))
        with pytest.raises(DataError, match=r"refs\(unc\)\.p: cannot be read as plain data: it asks for posix\.system"):
            refer(world)
        assert not (tmp_path / "trace").exists()

    def test_a_cut_pickle(self, world):
        path = world.root / "refcoco+/refs(unc).p"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=r"refs\(unc\)\.p: cannot be read as plain data"):
            refer(world)

    def test_broken_json(self, world):
        (world.root / "refcoco+/instances.json").write_text('{"images": [\n,')
        with pytest.raises(DataError, match=r"instances\.json: not valid JSON at line 2"):
            refer(world)

    def test_missing_files_and_what_is_there_instead(self, world):
        with pytest.raises(
            FileNotFoundError, match=r"refs\(umd\)\.p \(or \.json\).* has refs\(unc\)\.json, refs\(unc\)"
        ):
            REFER(world.root, "refcoco+", "umd")
        with pytest.raises(FileNotFoundError, match=r"refcoco/refs\(unc\)\.p .*no other refs"):
            REFER(world.root, "refcoco", "unc")
        (world.root / "refcoco+/instances.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"refcoco\+/instances\.json: no such file"):
            refer(world)

    def test_an_unknown_data_set(self, world):
        with pytest.raises(ValueError, match=r"data set 'refcocos': expected one of refcoco\+, refcoco"):
            REFER(world.root, "refcocos")


class TestRecords:
    """Each message names the file and the record."""

    def read(self, world: World, change: Any) -> str:
        change(world.references)
        world.write()
        with pytest.raises(DataError) as error:
            refer(world)
        return str(error.value)

    @pytest.mark.parametrize("key", ["ref_id", "ann_id", "image_id", "category_id", "split", "sentences"])
    def test_a_field_is_missing(self, world, key):
        text = self.read(world, lambda refs: refs[2].pop(key))
        assert re.search(rf"refs\(unc\)\.p: refs\[2\] needs {key} \(\w+\), got ", text)

    def test_a_sentence_without_tokens(self, world):
        text = self.read(world, lambda refs: refs[0]["sentences"][1].pop("tokens"))
        assert "refs[0].sentences[1] needs tokens (list), got {'sent_id': 899" in text

    def test_tokens_that_are_no_words(self, world):
        text = self.read(world, lambda refs: refs[0]["sentences"][1].update(tokens=["a", 3]))
        assert "refs[0].sentences[1]: tokens must be strings, got ['a', 3]" in text

    def test_something_else_than_a_record(self, world):
        assert "refs[4] needs ref_id (int)" in self.read(world, lambda refs: refs.append("x"))

    def test_an_annotation_that_is_not_there(self, world):
        text = self.read(world, lambda refs: refs[1].update(ann_id=999))
        assert f"refs[1]: ref_id 51 has ann_id 999, which {world.root}/refcoco+/instances.json lacks" in text

    def test_ids_that_come_twice(self, world):
        assert "refs[3]: ref_id 50 comes a second time" in self.read(world, lambda refs: refs[3].update(ref_id=50))
        world.references[3]["ref_id"] = 53
        twice = self.read(world, lambda refs: refs[3]["sentences"][0].update(sent_id=900))
        assert "refs[3]: sent_id 900 comes a second time" in twice

    def test_a_list_is_expected(self, world):
        (world.root / "refcoco+/refs(unc).p").write_bytes(pickle.dumps({"refs": []}, protocol=2))
        with pytest.raises(DataError, match=r"refs\(unc\)\.p: expected a list of references, found dict"):
            refer(world)

    @pytest.mark.parametrize(
        ("key", "record", "message"),
        [
            ("annotations", {"id": 3, "image_id": 1}, r"annotations\[0\] lacks category_id, bbox"),
            ("images", {"width": 3}, r"images\[0\] lacks id"),
            ("categories", {"id": 3}, r"categories\[0\] lacks name"),
        ],
    )
    def test_instances_that_lack_fields(self, world, key, record, message):
        path = world.root / "refcoco+/instances.json"
        content = json.loads(path.read_text())
        content[key] = [record]
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            refer(world)

    @pytest.mark.parametrize("content", [[], {"images": [], "annotations": {}}])
    def test_instances_that_are_something_else(self, world, content):
        (world.root / "refcoco+/instances.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"instances\.json: expected an object with a list"):
            refer(world)
