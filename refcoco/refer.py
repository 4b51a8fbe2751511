"""Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg, and what can be looked up in them (spec 40 §2 and 3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files.json_files import list_under, read_json
from common.files.safe_pickle import load_pickle

DATASETS = ("refcoco+", "refcoco", "refcocog", "refclef")

Record = dict[str, Any]
Ids = int | Sequence[int]

SPLITS = ("train", "val", "test", "testA", "testB", "testC", "testAB", "testBC", "testAC")


class REFER:
    """The references of one data set under one author's split, with their annotations.

    data_root: the folder that holds a folder per data set. dataset: one of DATASETS. split_by: "unc", "google", "umd".
    Reads `refs(<split_by>).p`, or `refs(<split_by>).json` where there is no pickle, and `instances.json`.

    refs, anns, imgs, sents: records by id; cats: names by id. img_to_refs, img_to_anns, cat_to_refs: lists of records.
    ref_to_ann, ann_to_ref, sent_to_ref: one record (of several references to an annotation the last); sent_to_tokens.

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
        categories = _by_id(instances, "categories", self.instances_path, ("name",))
        self.cats: dict[int, str] = {i: category["name"] for i, category in categories.items()}

        self.refs: dict[int, Record] = {}
        self.sents: dict[int, Record] = {}
        self.sent_to_ref: dict[int, Record] = {}
        self.ref_to_ann: dict[int, Record] = {}
        self.ann_to_ref: dict[int, Record] = {}
        self.img_to_refs: dict[int, list[Record]] = defaultdict(list)
        self.cat_to_refs: dict[int, list[Record]] = defaultdict(list)
        self.img_to_anns: dict[int, list[Record]] = defaultdict(list)
        for number, ref in enumerate(references):
            self._add(ref, f"{self.path}: refs[{number}]")
        for annotation in self.anns.values():
            self.img_to_anns[annotation["image_id"]].append(annotation)
        self.sent_to_tokens: dict[int, list[str]] = {i: sent["tokens"] for i, sent in self.sents.items()}

    def _add(self, ref: Any, where: str) -> None:
        _check_reference(ref, where)
        ref_id, annotation = ref["ref_id"], self.anns.get(ref["ann_id"])
        if ref_id in self.refs:
            raise DataError(f"{where}: ref_id {ref_id} comes a second time")
        if annotation is None:
            raise DataError(f"{where}: ref_id {ref_id} has ann_id {ref['ann_id']}, which {self.instances_path} lacks")
        self.refs[ref_id] = ref
        self.ref_to_ann[ref_id] = annotation
        self.ann_to_ref[ref["ann_id"]] = ref
        self.img_to_refs[ref["image_id"]].append(ref)
        self.cat_to_refs[ref["category_id"]].append(ref)
        for sentence in ref["sentences"]:
            if sentence["sent_id"] in self.sents:
                raise DataError(f"{where}: sent_id {sentence['sent_id']} comes a second time")
            self.sents[sentence["sent_id"]] = sentence
            self.sent_to_ref[sentence["sent_id"]] = ref

    # -------------------------------------------------------------------------------------- ids; empty filters let pass

    def get_ref_ids(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = (), split: str = "") -> list[int]:
        """Ids in file order of the references that pass all filters.

        split: train, val, testAB, testBC, testAC exactly; testA, testB, testC: whatever has that letter; test: whatever
        has "test" in its name. Raises DataError for another split.
        """
        if split and split not in SPLITS:
            raise DataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        return [
            i
            for i, ref in self.refs.items()
            if _passes(ref["image_id"], image_ids)
            and _passes(ref["category_id"], cat_ids)
            and _passes(i, ref_ids)
            and (not split or _in_split(ref["split"], split))
        ]

    def get_ann_ids(self, image_ids: Ids = (), cat_ids: Ids = (), ref_ids: Ids = ()) -> list[int]:
        """Ids in file order of the annotations that pass all filters."""
        targets = [self.refs[i]["ann_id"] for i in _listed(ref_ids)]
        return [
            i
            for i, annotation in self.anns.items()
            if _passes(annotation["image_id"], image_ids)
            and _passes(annotation["category_id"], cat_ids)
            and _passes(i, targets)
        ]

    def get_img_ids(self, ref_ids: Ids = ()) -> list[int]:
        """Ids of the images of some references, each once; of all images without a filter."""
        return list(dict.fromkeys(self.refs[i]["image_id"] for i in _listed(ref_ids))) or list(self.imgs)

    def get_cat_ids(self) -> list[int]:
        return list(self.cats)

    # -------------------------------------------------------------------------------------- records

    def load_refs(self, ref_ids: Ids) -> list[Record]:
        return [self.refs[i] for i in _listed(ref_ids)]

    def load_anns(self, ann_ids: Ids) -> list[Record]:
        return [self.anns[i] for i in _listed(ann_ids)]

    def load_imgs(self, image_ids: Ids) -> list[Record]:
        return [self.imgs[i] for i in _listed(image_ids)]

    def load_cats(self, cat_ids: Ids) -> list[str]:
        return [self.cats[i] for i in _listed(cat_ids)]

    def get_ref_box(self, ref_id: int) -> list[float]:
        """The box [x, y, w, h] of the annotation that a reference means, in pixels of the image."""
        return self.ref_to_ann[ref_id]["bbox"]


def _in_split(name: str, split: str) -> bool:
    """Whether a reference that says `name` belongs to `split`."""
    if split == "test":
        return "test" in name
    if split in ("testA", "testB", "testC"):
        return split[-1] in name
    return name == split


def _listed(ids: Ids) -> Sequence[int]:
    return [ids] if isinstance(ids, int) else ids


def _passes(value: int, allowed: Ids) -> bool:
    allowed = _listed(allowed)
    return not allowed or value in allowed


def _read_references(folder: Path, split_by: str) -> tuple[Path, list[Any]]:
    """The file that was read and the list in it."""
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
    """The records of a list of `instances` by their id."""
    records = {}
    for number, record in enumerate(list_under(instances, key, path)):
        missing = [name for name in ("id", *fields) if _get(record, name) is None]
        if missing:
            raise DataError(f"{path}: {key}[{number}] lacks {', '.join(missing)}: {str(record)[:120]}")
        records[record["id"]] = record
    return records
