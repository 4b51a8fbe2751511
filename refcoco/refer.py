"""Files of referring expressions: RefCOCO, RefCOCO+ and RefCOCOg (original 10.1 and 10.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files.json_files import list_under, read_json
from common.files.safe_pickle import load_pickle

DATASETS = ("refcoco+", "refcoco", "refcocog", "refclef")

Record = dict[str, Any]

SPLITS = ("train", "val", "test", "testA", "testB", "testC", "testAB", "testBC", "testAC")


class REFER:
    """The references of one data set under the split of one author, with their annotations.

    data_root: the folder that holds a folder per data set. dataset: one of DATASETS. split_by: "unc", "google", "umd".
    Reads `refs(<split_by>).p`, or `refs(<split_by>).json` if there is no pickle, and `instances.json`.

    refs, anns, imgs, cats: the records of references, annotations, images and categories by their ids.

    Raises FileNotFoundError for a missing file, DataError for an unknown data set, a broken file, or a record that
    lacks a field, comes twice or points to an annotation that is not there.
    """

    def __init__(self, data_root: Path | str, dataset: str = "refcoco", split_by: str = "unc") -> None:
        if dataset not in DATASETS:
            raise DataError(f"data set {dataset!r}: expected one of {', '.join(DATASETS)}")
        folder = Path(data_root) / dataset
        self.dataset, self.split_by = dataset, split_by
        self.path, references = _read_references(folder, split_by)
        self.instances_path = folder / "instances.json"
        instances = read_json(self.instances_path, "annotations of the references")
        self.imgs = _by_id(instances, "images", self.instances_path)
        self.anns = _by_id(instances, "annotations", self.instances_path, ("image_id", "category_id", "bbox"))
        self.cats = _by_id(instances, "categories", self.instances_path, ("name",))
        self.refs: dict[int, Record] = {}
        self._sentence_ids: set[int] = set()
        for number, ref in enumerate(references):
            self._add(ref, f"{self.path}: refs[{number}]")

    def _add(self, ref: Any, where: str) -> None:
        _check_reference(ref, where)
        ref_id = ref["ref_id"]
        if ref_id in self.refs:
            raise DataError(f"{where}: ref_id {ref_id} comes a second time")
        if ref["ann_id"] not in self.anns:
            raise DataError(f"{where}: ref_id {ref_id} has ann_id {ref['ann_id']}, which {self.instances_path} lacks")
        self.refs[ref_id] = ref
        for sentence in ref["sentences"]:
            if sentence["sent_id"] in self._sentence_ids:
                raise DataError(f"{where}: sent_id {sentence['sent_id']} comes a second time")
            self._sentence_ids.add(sentence["sent_id"])

    def get_ref_ids(self, split: str = "") -> list[int]:
        """Returns the ids of the references of a split in file order, of all references for "".

        split: train, val, testAB, testBC, testAC: equal names. testA, testB, testC: names with that letter. test: names
        with "test" in them. Raises DataError for another split.
        """
        if split and split not in SPLITS:
            raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        return [i for i, ref in self.refs.items() if not split or _in_split(ref["split"], split)]

    def load_refs(self, ref_ids: Sequence[int]) -> list[Record]:
        return [self.refs[i] for i in ref_ids]

    def get_ref_box(self, ref_id: int) -> list[float]:
        """Returns the box [x, y, w, h] of the annotation of a reference, in pixels of the image."""
        return self.anns[self.refs[ref_id]["ann_id"]]["bbox"]


def _in_split(name: str, split: str) -> bool:
    """Returns whether a reference with the split `name` in its record belongs to `split`."""
    if split == "test":
        return "test" in name
    if split in ("testA", "testB", "testC"):
        return split[-1] in name
    return name == split


def _read_references(folder: Path, split_by: str) -> tuple[Path, list[Any]]:
    """Returns the path of the file that was read, and the list in it."""
    pickled, plain = (folder / f"refs({split_by}).{ending}" for ending in ("p", "json"))
    if not pickled.is_file() and not plain.is_file():
        others = ", ".join(sorted(p.name for p in folder.glob("refs(*"))) or "no other refs(...) file"
        raise FileNotFoundError(f"references {pickled} (or .json): no such file; the folder has {others}")
    path = pickled if pickled.is_file() else plain
    references = _load_python2_pickle(path) if path == pickled else read_json(path)
    if not isinstance(references, list):
        raise DataError(f"{path}: expected a list of references, found {type(references).__name__}")
    return path, references


def _load_python2_pickle(path: Path) -> Any:
    try:
        return load_pickle(path)
    except DataError as error:
        if not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        return load_pickle(path, encoding="latin1")  # byte strings of Python 2 beyond ASCII


def _check_reference(ref: Any, where: str) -> None:
    fields = {"ref_id": int, "ann_id": int, "image_id": int, "category_id": int, "split": str, "sentences": list}
    _check_fields(ref, fields, where)
    for number, sentence in enumerate(ref["sentences"]):
        place = f"{where}.sentences[{number}]"
        _check_fields(sentence, {"sent_id": int, "tokens": list}, place)
        if not all(isinstance(token, str) for token in sentence["tokens"]):
            raise DataError(f"{place}: tokens must be strings, got {str(sentence['tokens'])[:120]}")


def _check_fields(record: Any, fields: dict[str, type], where: str) -> None:
    wrong = [f"{k} ({t.__name__})" for k, t in fields.items() if not isinstance(_get(record, k), t)]
    if wrong:
        raise DataError(f"{where} needs {', '.join(wrong)}, got {str(record)[:120]}")


def _get(record: Any, key: str) -> Any:
    return record.get(key) if isinstance(record, dict) else None


def _by_id(instances: Any, key: str, path: Path, fields: Iterable[str] = ()) -> dict[int, Record]:
    """Returns the records of a list of `instances` by their ids. fields: what each record must have besides its id."""
    records = {}
    for number, record in enumerate(list_under(instances, key, path)):
        missing = [name for name in ("id", *fields) if _get(record, name) is None]
        if missing:
            raise DataError(f"{path}: {key}[{number}] lacks {', '.join(missing)}: {str(record)[:120]}")
        records[record["id"]] = record
    return records
