"""Reading annotations and metadata, and what is said about broken ones (original 8.1)."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from common.errors import DataError
from tests.vcr.world import read_annotations, write_annotations
from vcr.annotations import CATEGORIES, Annotations, read_metadata


@pytest.fixture
def rows(shared_world: Path) -> list[dict]:
    return read_annotations(shared_world / "train.jsonl")


class TestAnnotations:
    def test_items_in_file_order(self, shared_world, rows):
        annotations = Annotations(shared_world / "train.jsonl", with_labels=True)
        assert len(annotations) == len(rows) == 10
        for row, item in zip(rows, (annotations[i] for i in range(10)), strict=True):
            assert (item.annot_id, item.objects, item.question) == (row["annot_id"], row["objects"], row["question"])
            assert (item.answers, item.rationales) == (row["answer_choices"], row["rationale_choices"])
            assert (item.answer_label, item.rationale_label) == (row["answer_label"], row["rationale_label"])
        assert annotations.ids == [row["annot_id"] for row in rows]
        assert annotations.rationale_labels == [row["rationale_label"] for row in rows]

    def test_the_test_file_has_no_labels(self, shared_world):
        assert Annotations(shared_world / "test.jsonl", with_labels=False)[0].answer_label is None
        with pytest.raises(
            DataError, match=r"test\.jsonl, line 1: no key 'answer_label', which all but test data need"
        ):
            Annotations(shared_world / "test.jsonl", with_labels=True)

    def test_blank_lines_and_line_ends(self, tmp_path, rows):
        """The line number of an error counts them."""
        path = tmp_path / "x.jsonl"
        path.write_bytes(b"\n" + json.dumps(rows[0]).encode() + b"\r\n\r\n" + json.dumps(rows[1]).encode())
        annotations = Annotations(path, with_labels=True)
        assert [annotations[i].annot_id for i in (1, 0)] == ["train-1", "train-0"]
        assert annotations[1].where == f"{path}, line 4"

    def test_little_is_kept(self, tmp_path, rows):
        """Texts stay in the file: what a worker gets grows by under 100 bytes for a question of thousands."""
        long = [row | {"question": ["word"] * 1000, "annot_id": str(i)} for i, row in enumerate(rows * 20)]
        write_annotations(tmp_path / "x.jsonl", long)
        assert len(pickle.dumps(Annotations(tmp_path / "x.jsonl", with_labels=True))) < 100 * len(long)

    def test_a_file_that_changes_is_noticed(self, tmp_path, rows):
        path = tmp_path / "x.jsonl"
        write_annotations(path, rows[:2])
        annotations = Annotations(path, with_labels=True)
        path.write_text(path.read_text().replace("train-0", "train-9"))
        with pytest.raises(DataError, match="line 1: annot_id was 'train-0' at the start: the file has changed"):
            annotations[0]

    def test_81_categories(self):
        """Original 8.6, some of the list."""
        places = {
            0: "__background__",
            1: "person",
            10: "trafficlight",
            33: "sportsball",
            57: "chair",
            59: "pottedplant",
        }
        assert len(CATEGORIES) == len(set(CATEGORIES)) == 81 and CATEGORIES[80] == "toothbrush"
        assert {i: CATEGORIES[i] for i in places} == places


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annot_id": None}, "annot_id is None, expected a string"),
        ({"img_fn": 3}, "img_fn is 3, expected a string"),
        ({"objects": "person"}, "objects is 'person', expected a list"),
        ({"objects": ["person", "unicorn", "chair"]}, r"objects\[1\] is 'unicorn', expected one of the 81"),
        ({"objects": ["person", ["dog"], "chair"]}, r"objects\[1\] is \['dog'\], expected one of the 81"),
        ({"question": "why?"}, "question is 'why\\?', expected a list"),
        ({"question": []}, r"question is \[\], expected a list of words and references"),
        ({"question": ["why", [3]]}, r"question\[1\] refers to detection 3, there are 3 objects"),
        ({"question": ["why", [-1]]}, r"question\[1\] refers to detection -1"),
        ({"question": ["why", []]}, r"question\[1\] is \[\], expected a word or a list of detection numbers"),
        ({"question": ["why", 2]}, r"question\[1\] is 2, expected a word"),
        ({"question": ["why", [True]]}, r"question\[1\] is \[True\], expected a word"),
        ({"answer_choices": [["a"]] * 3}, "answer_choices has 3 entries, expected 4"),
        ({"answer_choices": [["a"], ["b"], "c", ["d"]]}, r"answer_choices\[2\] is 'c', expected a list"),
        (
            {"rationale_choices": [["a"], ["b"], ["c", [7]], ["d"]]},
            r"rationale_choices\[2\]\[1\] refers to detection 7",
        ),
        ({"answer_label": 4}, "answer_label is 4, expected a number from 0 to 3"),
        ({"answer_label": "1"}, "answer_label is '1', expected a number"),
        ({"rationale_label": -1}, "rationale_label is -1, expected a number from 0 to 3"),
        ({"rationale_label": True}, "rationale_label is True, expected a number"),
        ({"annot_id": "train-0"}, "annot_id 'train-0' is also that of line 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path, rows, change, message):
    write_annotations(tmp_path / "x.jsonl", [rows[0], rows[4] | change])
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: {message}"):
        Annotations(tmp_path / "x.jsonl", with_labels=True)


@pytest.mark.parametrize("key", ["annot_id", "objects", "img_fn", "metadata_fn", "question", "rationale_choices"])
def test_a_missing_key_is_named_with_its_line(tmp_path, rows, key):
    rows[1].pop(key)
    write_annotations(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=rf"x\.jsonl, line 2: no key '{key}'"):
        Annotations(tmp_path / "x.jsonl", with_labels=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"annot_id": "a"', "line 1: not valid JSON: "),
        (b"\n[1]\n", r"line 2: expected a JSON object, got \[1\]"),
        (b'{"a": "\xff"}', "line 1: not valid JSON: "),
        (b"\n\n", "x.jsonl: no annotations"),
        (b"", "x.jsonl: no annotations"),
    ],
    ids=["cut off", "no object", "no text", "blank", "empty"],
)
def test_what_is_no_annotation_file(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Annotations(tmp_path / "x.jsonl", with_labels=True)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"VCR annotations .*no\.jsonl: no such file"):
        Annotations(tmp_path / "no.jsonl", with_labels=True)


class TestMetadata:
    def test_boxes_with_scores_and_polygons(self, shared_world):
        got = read_metadata(f"{shared_world}/vcr1images/movie_wide/wide@0.json", 3)
        want = torch.tensor([5.25, 8.5, 35.25, 48.5, 0.9])
        torch.testing.assert_close(got.boxes[0], want)
        assert got.boxes.shape == (3, 5) and len(got.polygons) == 3 and (got.width, got.height) == (160, 90)

    def test_in_a_zip(self, shared_world, tmp_path):
        name = "vcr1images/movie_tall/tall@0.json"
        with ZipFile(tmp_path / "vcr1images.zip", "w") as archive:
            archive.write(shared_world / name, name)
        assert len(read_metadata(f"{tmp_path}/vcr1images.zip@/{name}", 2).boxes) == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "not valid JSON"),
            ("[]", "expected an object with the lists boxes and segms"),
            ('{"boxes": []}', r"expected an object with the lists boxes and segms \('segms'\)"),
            ('{"boxes": [[0,0,1,1,1]], "segms": [[]]}', "1 boxes and 1 segms, but line 7 has 2 objects"),
            (
                '{"boxes": [[0,0,1,1,1],[0,0,1,1,1]], "segms": [[]]}',
                "2 boxes and 1 segms, but line 7 has 2 objects",
            ),
            ('{"boxes": [[0,0,1,1],[0,0,1,1]], "segms": [[],[]]}', "boxes must be rows of x1, y1, x2, y2, score"),
            ('{"boxes": [[0,0,1,1,"a"],[0,0,1,1,1]], "segms": [[],[]]}', "boxes must be rows of"),
            ('{"boxes": [[0,0,1,1,NaN],[0,0,1,1,1]], "segms": [[],[]]}', "boxes must be 2 rows of five finite numbers"),
        ],
    )
    def test_broken_files(self, tmp_path, content, message):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(DataError, match=rf"m\.json: {message}"):
            read_metadata(f"{tmp_path}/m.json", 2, "line 7")
