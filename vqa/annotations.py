"""Questions and answers of VQA v2 from the official JSON files or from imdb files (original 9.1 to 9.3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from common.errors import DataError
from common.files.json_files import iter_list
from common.files.safe_pickle import load_object_array


@dataclass(frozen=True)
class ImageSet:
    """Files of a split, relative to DATASET_PATH."""

    split: str  # part of the names of question, annotation and imdb files
    images: str  # image folder
    metadata: str  # COCO JSON with the sizes of the images
    regions: str  # prefix of the region folders
    has_answers: bool = True

    @property
    def questions_file(self) -> str:
        return f"vqa/v2_OpenEnded_mscoco_{self.split}_questions.json"

    @property
    def annotations_file(self) -> str:
        return f"vqa/v2_mscoco_{self.split}_annotations.json"

    @property
    def imdb_file(self) -> str:
        return f"vqa/vqa_imdb/imdb_{self.split}.npy"

    def region_folder(self, boxes: str) -> str:
        """The folder of precomputed regions; boxes: a key of BOX_SETS."""
        trainval, test = BOX_SETS[boxes]
        return f"vgbua_res101_precomputed/{trainval if self.regions == 'trainval' else test}"


def _image_set(split: str, images: str) -> ImageSet:
    test = images == "test2015"
    metadata = f"annotations/{'image_info' if test else 'instances'}_{images}.json"
    return ImageSet(split, images, metadata, "test2015" if test else "trainval", not test)


IMAGE_SETS = {
    "train2014": _image_set("train2014", "train2014"),
    "val2014": _image_set("val2014", "val2014"),
    "minival2014": _image_set("minival2014", "val2014"),
    "valminusminival2014": _image_set("valminusminival2014", "val2014"),
    "test-dev2015": _image_set("test-dev2015", "test2015"),
    "test2015": _image_set("test2015", "test2015"),
}

# DATASET.BOXES -> suffixes of the region folders of trainval and test.
BOX_SETS = {
    "36": ("trainval_resnet101_faster_rcnn_genome_36", "test2015_resnet101_faster_rcnn_genome_36"),
    "10-100ada": ("trainval2014_resnet101_faster_rcnn_genome", "test2015_resnet101_faster_rcnn_genome"),
}


def parse_image_sets(names: str) -> list[ImageSet]:
    """ "train2014+val2014" -> the two sets. Raises DataError for an unknown name."""
    sets = []
    for name in (part.strip() for part in names.split("+")):
        if name not in IMAGE_SETS:
            raise DataError(f"image set {name!r} (in {names!r}): expected names of {', '.join(IMAGE_SETS)} joined by +")
        sets.append(IMAGE_SETS[name])
    return sets


@dataclass(frozen=True, slots=True)
class Question:
    """One question. text: a string; from an imdb file, words. answers: raw strings, none in test mode."""

    question_id: int
    image_id: int
    text: str | tuple[str, ...]
    answers: tuple[str, ...]
    image_set: ImageSet


def load_questions(root: Path, image_set: ImageSet, with_answers: bool, from_imdb: bool = False) -> list[Question]:
    """The questions of one split in file order.

    Raises FileNotFoundError for a missing file. Raises DataError, with file and position, for an entry without a field
    and for questions and annotations that do not belong together.
    """
    if with_answers and not image_set.has_answers:
        raise DataError(f"image set {image_set.split}: it has no answers, so it can be used for testing only")
    if from_imdb:
        return _from_imdb(root / image_set.imdb_file, image_set, with_answers)
    path = root / image_set.questions_file
    found = []
    for i, q in enumerate(iter_list(path, "questions", "questions file")):
        try:
            if (
                not isinstance(q["question"], str)
                or type(q["question_id"]) is not int
                or type(q["image_id"]) is not int
            ):
                raise TypeError
            found.append((q["question_id"], q["image_id"], q["question"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: questions[{i}] needs the integers question_id and image_id, and the text question, got "
                f"{str(q)[:120]}"
            ) from error
    _check_once(path, [question_id for question_id, *_ in found])
    answers: list[tuple[str, ...]] = [()] * len(found)
    if with_answers:
        answers = _paired_answers(path, [question_id for question_id, *_ in found], root / image_set.annotations_file)
    return [Question(*q, a, image_set) for q, a in zip(found, answers, strict=True)]


def _check_once(path: Path, question_ids: list[int]) -> None:
    """Raises DataError for a question that comes twice: results could not be joined."""
    places: dict[int, int] = {}
    for i, question_id in enumerate(question_ids):
        if (first := places.setdefault(question_id, i)) != i:
            raise DataError(f"{path}: questions[{i}] has the question_id {question_id} of questions[{first}]")


def _paired_answers(path: Path, question_ids: list[int], annotation_path: Path) -> list[tuple[str, ...]]:
    """The answers of the questions. Reads the file entry by entry: as Python objects it would fill gigabytes."""
    answers, answered = [], []
    for i, a in enumerate(iter_list(annotation_path, "annotations", "annotations file")):
        try:
            answered.append(a["question_id"])
            answers.append(tuple(intern(x["answer"]) for x in a["answers"]))
            if not answers[-1]:
                raise TypeError
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{annotation_path}: annotations[{i}] needs question_id and answers[].answer, got {str(a)[:120]}"
            ) from error
    if len(answered) != len(question_ids):
        raise DataError(
            f"{annotation_path}: {len(answered)} annotations for the {len(question_ids)} questions of {path}"
        )
    for i, (asked, found) in enumerate(zip(question_ids, answered, strict=True)):
        if asked != found:
            raise DataError(
                f"{annotation_path}: annotations[{i}] is for question {found}, questions[{i}] of {path} is {asked}"
            )
    return answers


def _from_imdb(path: Path, image_set: ImageSet, with_answers: bool) -> list[Question]:
    if not path.is_file():
        raise FileNotFoundError(f"imdb file {path}: no such file (DATASET.USE_IMDB is true)")
    result = []
    for i, entry in enumerate(load_object_array(path)[1:], start=1):
        try:
            answers = tuple(intern(str(a)) for a in entry["answers"]) if with_answers else ()
            words = tuple(intern(str(w)) for w in entry["question_tokens"])
            result.append(Question(int(entry["question_id"]), int(entry["image_id"]), words, answers, image_set))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: entry {i} lacks or has a wrong field: {error}") from error
    return result


def read_list(path: Path, key: str) -> list[Any]:
    """The list under a top-level key of a JSON file. Errors name the file and the line."""
    return list(iter_list(path, key, f"{key} file"))
