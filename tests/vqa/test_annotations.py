"""Where the questions of each image set come from, and what is refused (original 9.1 and 9.2)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from vqa.annotations import IMAGE_SETS, Question, load_questions, parse_image_sets, read_list

TRAIN, TEST = IMAGE_SETS["train2014"], IMAGE_SETS["test2015"]


def question(question_id: int, text: str = "is it red?", image_id: int = 7) -> dict[str, Any]:
    return {"image_id": image_id, "question": text, "question_id": question_id}


def annotation(question_id: int, answers: str = "yes no yes") -> dict[str, Any]:
    return {"question_id": question_id, "answers": [{"answer": a, "answer_id": 1} for a in answers.split()]}


def write(root: Path, image_set: str, questions: Any, annotations: Any = None) -> None:
    (root / "vqa").mkdir(exist_ok=True)
    stem = root / "vqa" / f"v2_OpenEnded_mscoco_{image_set}_questions.json"
    stem.write_text(json.dumps({"questions": questions}))
    if annotations is not None:
        path = root / "vqa" / f"v2_mscoco_{image_set}_annotations.json"
        path.write_text(json.dumps({"annotations": annotations}))


def write_imdb(root: Path, image_set: str, entries: list[Any]) -> Path:
    path = root / IMAGE_SETS[image_set].imdb_file
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    np.save(path, array, allow_pickle=True)
    return path


class TestImageSets:
    @pytest.mark.parametrize(
        ("name", "images", "metadata", "regions", "has_answers"),
        [
            ("train2014", "train2014", "instances_train2014", "trainval", True),
            ("val2014", "val2014", "instances_val2014", "trainval", True),
            ("minival2014", "val2014", "instances_val2014", "trainval", True),
            ("valminusminival2014", "val2014", "instances_val2014", "trainval", True),
            ("test-dev2015", "test2015", "image_info_test2015", "test2015", False),
            ("test2015", "test2015", "image_info_test2015", "test2015", False),
        ],
    )
    def test_the_table_of_section_2_1(self, name, images, metadata, regions, has_answers):
        image_set = IMAGE_SETS[name]
        assert image_set.questions_file == f"vqa/v2_OpenEnded_mscoco_{name}_questions.json"
        assert image_set.annotations_file == f"vqa/v2_mscoco_{name}_annotations.json"
        assert image_set.imdb_file == f"vqa/vqa_imdb/imdb_{name}.npy"
        assert image_set.metadata == f"annotations/{metadata}.json"
        assert (image_set.images, image_set.regions, image_set.has_answers) == (images, regions, has_answers)

    def test_there_are_six(self):
        assert len(IMAGE_SETS) == 6

    def test_a_list_keeps_its_order_and_may_have_spaces(self):
        assert [s.split for s in parse_image_sets(" val2014 + train2014")] == ["val2014", "train2014"]

    @pytest.mark.parametrize("names", ["train2015", "train2014+", "train2014,val2014", ""])
    def test_an_unknown_name_is_refused_with_those_there_are(self, names):
        with pytest.raises(DataError, match="expected names of train2014, .*test2015"):
            parse_image_sets(names)


class TestQuestions:
    def test_questions_with_their_raw_answers_in_file_order(self, tmp_path):
        write(
            tmp_path,
            "train2014",
            [question(20, "One?", 5), question(10)],
            [annotation(20, "Yes t-shirt"), annotation(10)],
        )
        assert load_questions(tmp_path, TRAIN, with_answers=True) == [
            Question(20, 5, "One?", ("Yes", "t-shirt"), TRAIN),
            Question(10, 7, "is it red?", ("yes", "no", "yes"), TRAIN),
        ]

    @pytest.mark.parametrize("name", list(IMAGE_SETS))
    def test_every_set_loads_for_testing_without_annotations_or_imdb(self, tmp_path, name):
        """17.5: the original looked for the imdb file of every set, which test-dev2015 and valminusminival2014 lack."""
        write(tmp_path, name, [question(1)])
        (loaded,) = load_questions(tmp_path, IMAGE_SETS[name], with_answers=False)
        assert loaded == Question(1, 7, "is it red?", (), IMAGE_SETS[name])

    @pytest.mark.parametrize("name", ["test2015", "test-dev2015"])
    def test_sets_without_answers_are_for_testing_only(self, tmp_path, name):
        write(tmp_path, name, [question(1)])
        with pytest.raises(DataError, match=f"{name}.*testing only"):
            load_questions(tmp_path, IMAGE_SETS[name], with_answers=True)

    def test_fewer_annotations_than_questions_are_refused(self, tmp_path):
        """17.6: the original cut both to the shorter list."""
        write(tmp_path, "train2014", [question(1), question(2)], [annotation(1)])
        with pytest.raises(DataError, match=r"train2014_annotations\.json: 1 annotations for the 2 questions"):
            load_questions(tmp_path, TRAIN, with_answers=True)

    def test_annotations_in_another_order_are_refused(self, tmp_path):
        """17.6: the original paired by position and never looked at the ids."""
        write(tmp_path, "train2014", [question(1), question(2)], [annotation(2), annotation(1)])
        with pytest.raises(DataError, match=r"annotations\[0\] is for question 2, questions\[0\] of .* is 1"):
            load_questions(tmp_path, TRAIN, with_answers=True)

    def test_a_question_that_comes_twice_is_refused(self, tmp_path):
        write(tmp_path, "train2014", [question(1), question(2), question(1)])
        with pytest.raises(DataError, match=r"questions\[2\] has the question_id 1 of questions\[0\]"):
            load_questions(tmp_path, TRAIN, with_answers=False)


class TestBrokenFiles:
    def test_missing_questions(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="v2_OpenEnded_mscoco_train2014_questions.json: no such file"):
            load_questions(tmp_path, TRAIN, with_answers=False)

    def test_missing_annotations(self, tmp_path):
        write(tmp_path, "train2014", [question(1)])
        with pytest.raises(FileNotFoundError, match="v2_mscoco_train2014_annotations.json: no such file"):
            load_questions(tmp_path, TRAIN, with_answers=True)

    def test_broken_json_is_named_with_its_line(self, tmp_path):
        path = tmp_path / "broken.json"
        path.write_text('{"questions": [\n  {"image_id": 1,\n  ]\n}')
        with pytest.raises(DataError, match=r"broken\.json: not valid JSON: .*near"):
            read_list(path, "questions")

    @pytest.mark.parametrize("content", ["[]", "{}", '{"questions": {}}', "null"])
    def test_json_of_another_shape(self, tmp_path, content):
        path = tmp_path / "odd.json"
        path.write_text(content)
        with pytest.raises(DataError, match=r"odd\.json: expected an object with a list 'questions'"):
            read_list(path, "questions")

    @pytest.mark.parametrize(
        "entry",
        [
            {"image_id": 1, "question_id": 2},
            {"question": "a", "image_id": 1},
            question("x"),
            question("7"),
            question(1, None),
            None,
        ],
        ids=["no question", "no id", "id is text", "number as text", "question is null", "null"],
    )
    def test_a_question_without_its_fields_is_named(self, tmp_path, entry):
        write(tmp_path, "train2014", [question(1), entry])
        with pytest.raises(
            DataError, match=r"questions\.json: questions\[1\] needs the integers question_id and image_id"
        ):
            load_questions(tmp_path, TRAIN, with_answers=False)

    @pytest.mark.parametrize(
        "entry", [{"question_id": 1}, {"question_id": 1, "answers": [{"answer": 3}]}, {"question_id": 1, "answers": []}]
    )
    def test_an_annotation_without_its_fields_is_named(self, tmp_path, entry):
        write(tmp_path, "train2014", [question(1)], [entry])
        with pytest.raises(DataError, match=r"annotations\.json: annotations\[0\] needs question_id and answers"):
            load_questions(tmp_path, TRAIN, with_answers=True)


class TestImdb:
    HEADER = {"dataset_name": "vqa", "version": 1}
    ENTRY = {"image_id": 7, "question_id": 30, "question_tokens": ["is", "it", "red"], "answers": ["yes", "no"]}

    def test_words_and_answers_after_the_header(self, tmp_path):
        """Original 9.3: element 0 is a header."""
        write_imdb(tmp_path, "train2014", [self.HEADER, self.ENTRY])
        (loaded,) = load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)
        assert loaded == Question(30, 7, ("is", "it", "red"), ("yes", "no"), TRAIN)

    def test_numpy_values_are_let_in(self, tmp_path):
        entry = {**self.ENTRY, "image_id": np.int64(7), "question_tokens": np.array(["is", "it"])}
        write_imdb(tmp_path, "train2014", [self.HEADER, entry])
        (loaded,) = load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)
        assert (loaded.image_id, loaded.text) == (7, ("is", "it"))

    def test_no_answers_needed_for_testing(self, tmp_path):
        entry = {k: v for k, v in self.ENTRY.items() if k != "answers"}
        write_imdb(tmp_path, "test2015", [self.HEADER, entry])
        assert load_questions(tmp_path, TEST, with_answers=False, from_imdb=True)[0].answers == ()
        write_imdb(tmp_path, "train2014", [self.HEADER, entry])
        with pytest.raises(DataError, match=r"imdb_train2014\.npy: entry 1 .*'answers'"):
            load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)

    def test_a_missing_file_names_the_switch(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="imdb_valminusminival2014.npy.*USE_IMDB"):
            load_questions(tmp_path, IMAGE_SETS["valminusminival2014"], with_answers=True, from_imdb=True)

    def test_code_in_the_pickle_does_not_run(self, tmp_path):
        trace = tmp_path / "trace"
        path = write_imdb(tmp_path, "train2014", [self.HEADER, RunsCode(trace)])
        with pytest.raises(DataError, match=r"imdb_train2014\.npy: .*\.system, which a data file has no use for"):
            load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)
        assert not trace.exists()
        np.load(path, allow_pickle=True)  # the file is a real threat
        assert trace.exists()

    @pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
    def test_a_file_that_is_no_array_is_named(self, tmp_path, content):
        path = write_imdb(tmp_path, "train2014", [self.HEADER])
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"imdb_train2014\.npy"):
            load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)

    def test_a_file_cut_off_anywhere_is_named(self, tmp_path):
        path = write_imdb(tmp_path, "train2014", [self.HEADER, self.ENTRY])
        whole = path.read_bytes()
        for length in range(0, len(whole) - 1, 7):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=r"imdb_train2014\.npy"):
                load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)

    def test_an_array_of_numbers_is_refused(self, tmp_path):
        path = write_imdb(tmp_path, "train2014", [self.HEADER])
        np.save(path, np.zeros(3))
        with pytest.raises(DataError, match="expected an array of objects, found dtype float64"):
            load_questions(tmp_path, TRAIN, with_answers=True, from_imdb=True)


class RunsCode:
    """Its pickle runs a shell command when it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)
