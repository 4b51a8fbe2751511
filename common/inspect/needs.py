"""The files and folders that a run of a config reads, without opening them. Nothing here imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.sections import dataset_sections
from common.files.archives import split_region_path

SPLITS = ("TRAIN", "VAL", "TEST")
REGION_FORMS = ("", ".packed", ".zip")
LANGUAGE_FILES = ("pytorch_model.bin", "model.safetensors")

# A need: the folder that holds it, and names in it of which any one is enough.
Need = tuple[Path, tuple[str, ...]]


def needs(task: str, cfg: Config) -> list[Need]:
    """What a run of a config reads: data sets, then weights."""
    found: list[Need] = []
    for dataset in dataset_sections(cfg):
        root = Path(dataset.DATASET_PATH) if dataset.DATASET_PATH else None
        if root is not None:
            found += [(root, choices) for choices in data_files(task, cfg, dataset)]
        if kind_of(task, dataset) == "vqa":
            found.append(inside(dataset.ANSWER_VOCAB_FILE, root))
        found += [inside(str(store), root, REGION_FORMS) for store in region_stores(task, cfg, dataset)]
        if dataset.DATASET == "general_corpus":
            found += [inside(file) for file in listed(dataset, "ANNOTATION_FILE")]
    network = cfg.NETWORK
    language = Path(network.BERT_MODEL_NAME)
    found.append(inside(str(language / "vocab.txt"), language.parent))
    if network.BERT_PRETRAINED:
        found.append(inside(f"{network.BERT_PRETRAINED}-{network.BERT_PRETRAINED_EPOCH:04d}.model"))
    elif not (network.BERT_RANDOM_INIT or network.PARTIAL_PRETRAIN or network.VLBERT.get("from_scratch")):
        found.append((language.parent, tuple(f"{language.name}/{file}" for file in LANGUAGE_FILES)))
    if network.IMAGE_PRETRAINED and not network.IMAGE_FEAT_PRECOMPUTED:
        found.append(inside(f"{network.IMAGE_PRETRAINED}-{network.IMAGE_PRETRAINED_EPOCH:04d}.model"))
    if network.PARTIAL_PRETRAIN:
        found.append(inside(network.PARTIAL_PRETRAIN))
    return list(dict.fromkeys(found))


def kind_of(task: str, dataset: Any) -> str:
    return dataset.DATASET or {"refcoco": "refcoco+"}.get(task, task)


def inside(text: str, root: Path | None = None, forms: tuple[str, ...] = ("",)) -> Need:
    """A path of its own, under `root` where it lies there; forms: endings of which any one is enough."""
    path = Path(text)
    folder = root if root is not None and root in path.parents else path.parent
    return folder, tuple(f"{path.relative_to(folder)}{form}" for form in forms)


def data_files(task: str, cfg: Config, dataset: Any) -> list[tuple[str, ...]]:
    """The files and folders of images under DATASET_PATH, without region stores."""
    kind, sets = kind_of(task, dataset), listed(dataset, "IMAGE_SET")
    files: list[str] = []
    choices: list[tuple[str, ...]] = []
    images: list[str] = []
    if kind == "vqa":
        folders = {name: coco_folder(name) for name in sets}
        labelled = [name for name in sets if not name.startswith("test")]
        if dataset.USE_IMDB:
            files = [f"vqa/vqa_imdb/imdb_{name}.npy" for name in sets]
        else:
            files = [f"vqa/v2_OpenEnded_mscoco_{name}_questions.json" for name in sets]
            files += [f"vqa/v2_mscoco_{name}_annotations.json" for name in labelled]
        if cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:  # else the images tell their sizes
            files += [f"annotations/{sizes_file(folder)}_{folder}.json" for folder in folders.values()]
        images = list(folders.values())
    elif kind == "vcr":
        files = listed(dataset, "ANNOTATION_FILE")
        choices = [forms(name) for name in sets]  # the metadata lie there too
    elif kind.startswith("refcoco"):
        refs = f"{kind}/refs({dataset.SPLIT_BY})"
        choices = [(f"{refs}.p", f"{refs}.json")]
        files = [f"{kind}/instances.json", "annotations/instances_train2014.json"]
        if uses_proposals(dataset) and dataset.PROPOSAL_SOURCE == "official":
            files.append(f"{kind}/proposal/res101_coco_minus_refer_notime_dets.json")
        images = ["train2014"]
    elif kind == "conceptual_captions":
        files = [f"{name}_frcnn.json" for name in sets]
        images = [caption_folder(dataset, name, "image") for name in sets]
    elif kind == "coco_captions":
        files = [f"annotations/{what}_{name}2017.json" for name in sets for what in ("captions", "instances")]
        images = [f"{name}2017" for name in sets]
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        choices += [forms(folder) for folder in images]
    return list(dict.fromkeys([*((file,) for file in files), *choices]))


def forms(folder: str) -> tuple[str, str]:
    return folder, f"{folder}.zip"


def region_stores(task: str, cfg: Config, dataset: Any) -> list[Path]:
    """The region stores of a data set, without the ending that says of which form they are."""
    kind, sets = kind_of(task, dataset), listed(dataset, "IMAGE_SET")
    name = "vgbua_res101_precomputed/{}_resnet101_faster_rcnn_genome{}"
    proposals = kind.startswith("refcoco") and uses_proposals(dataset) and dataset.PROPOSAL_SOURCE == "vg"
    # The others know their boxes from elsewhere, and read REGION_PATH for features alone.
    if kind in ("general_corpus", "coco_captions"):
        return []
    if dataset.REGION_PATH:
        own_boxes = kind == "vcr" or (kind.startswith("refcoco") and not proposals)
        return [] if own_boxes and not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED else [Path(dataset.REGION_PATH)]
    root = Path(dataset.DATASET_PATH)
    if kind == "vqa":
        suffix, trainval = ("_36", "trainval") if dataset.BOXES == "36" else ("", "trainval2014")
        return [root / name.format("test2015" if part.startswith("test") else trainval, suffix) for part in sets]
    if kind == "conceptual_captions":
        return [root / caption_folder(dataset, part, "frcnn") for part in sets]
    return [root / name.format("trainval2014", "")] if proposals else []


def caption_folder(dataset: Any, name: str, key: str) -> str:
    """The folder that the first record of `<name>_frcnn.json` names, else the usual one."""
    file = Path(dataset.DATASET_PATH) / f"{name}_frcnn.json"
    try:
        with open(file, encoding="utf-8") as lines:
            text = str(json.loads(lines.readline())[key])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name}_{key}"
    return split_region_path(text, zip_mode=False)[0]


def uses_proposals(dataset: Any) -> bool:
    return any("proposal" in dataset[f"{split}_BOXES"] for split in SPLITS)


def coco_folder(image_set: str) -> str:
    """minival2014 -> val2014, test-dev2015 -> test2015 (spec 30 §2)."""
    return next((f"{part}{image_set[-4:]}" for part in ("test", "val") if part in image_set), image_set)


def sizes_file(folder: str) -> str:
    return "image_info" if folder.startswith("test") else "instances"


def is_there(store: Path) -> bool:
    return any(store.with_name(store.name + form).exists() for form in REGION_FORMS)


def listed(dataset: Any, key: str) -> list[str]:
    """The names in <split>_<key> of all splits, which may be joined by +."""
    joined = "+".join(dataset[f"{split}_{key}"] for split in SPLITS)
    return list(dict.fromkeys(name.strip() for name in joined.split("+") if name.strip()))
