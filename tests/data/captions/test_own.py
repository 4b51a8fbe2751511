"""One's own images and captions become files that pretraining reads."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from common.config import load_config
from common.regions.json_store import save_regions
from common.regions.open import open_regions
from common.regions.regions import Regions
from common.task import load_task
from data.captions.files import main as files
from data.captions.table import split_words
from data.captions_own import main
from tests.pretrain.world import VOCABULARY, tiny_captions_only
from tests.tiny import write_settings

COLORS = {"a/x.jpg": (200, 20, 20), "b/x.jpg": (20, 200, 20), "c.png": (20, 20, 200)}
ROWS: list[dict[str, Any]] = [
    {"image": "a/x.jpg", "caption": "A red box, near the text."},
    {"image": "b/x.jpg", "caption": ["a", "green", "box"]},
    {"image": "a/x.jpg", "caption": "the box"},
    {"image": "c.png", "caption": "A blue line"},
]


class Own:
    """A folder of images with captions and COCO annotations, and what is made of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.out = root / "own", root / "out"
        for name, color in COLORS.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), color).save(self.root / name)
        self.coco = self.root / "instances.json"
        images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(COLORS)]
        box = {"bbox": [5, 5, 20, 10], "category_id": 7}
        annotations = [box | {"id": 1, "image_id": 0}, box | {"id": 2, "image_id": 1, "category_id": 9}]
        categories = [{"id": 7, "name": "box"}, {"id": 9, "name": "thing"}]
        self.coco.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        self.write(ROWS)

    def write(self, rows: list[Any]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.root / "own.jsonl").write_text("\n".join(lines) + "\n")

    def run(self, *args: str) -> int:
        return main(["--captions", str(self.root / "own.jsonl"), "--out", str(self.out), "--split", "train", *args])

    def lines(self, name: str) -> list[Any]:
        return [json.loads(line) for line in (self.out / name).read_text().splitlines()]


@pytest.fixture
def own(tmp_path: Path) -> Own:
    return Own(tmp_path)


def test_from_images_to_training_samples(own, tmp_path, capsys):
    assert own.run("--boxes", f"coco:{own.coco}", "--complete") == 0
    assert "set NETWORK.VLBERT.visual_region_classes=3" in capsys.readouterr().out
    records = own.lines("train_frcnn.json")
    assert [r["image"][-12:] for r in records] == ["00000000.jpg", "00000001.jpg", "00000000.jpg", "00000003.jpg"]
    assert records[0]["caption"] == ["a", "red", "box", ",", "near", "the", "text", "."]
    assert own.lines("train.json") == [{k: v for k, v in r.items() if k != "frcnn"} for r in records]
    store = open_regions(own.out / "train_frcnn")
    assert store.regions("00000000").boxes.tolist() == [[5, 5, 24, 14]]  # the last pixel inside
    assert store.regions("00000001").class_scores.argmax(1).tolist() == [2]
    whole = store.regions("00000003")  # no annotation
    assert whole.boxes.tolist() == [[0, 0, 59, 39]] and whole.class_scores.argmax(1).tolist() == [0]

    (own.out / "bert").mkdir()
    (own.out / "bert/vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings = tiny_captions_only(own.out, tmp_path / "run")
    settings["NETWORK"]["VLBERT"]["visual_region_classes"] = 3
    cfg = load_config("pretrain", write_settings(settings, tmp_path / "tiny.yaml"))
    dataset = load_task("pretrain").build_dataset(cfg, "train")
    sample = dataset.sample(1, Random(1))
    assert len(dataset) == 4 and sample.image is not None and len(sample.boxes) == 2  # the whole image first


def test_without_boxes_and_with_boxes_for_features(own, capsys):
    assert own.run() == 0
    assert "the region files" in capsys.readouterr().out and not (own.out / "train_frcnn").exists()
    assert own.run("--boxes", "grid:2x2") == 0
    out = capsys.readouterr().out
    assert "python -m data.extract_features" in out and "set NETWORK.WITH_MVRC_LOSS=false" in out
    assert len(open_regions(own.out / "train_boxes").regions("00000000").boxes) == 4


def test_a_second_run_keeps_what_is_there_and_other_images_are_refused(own, capsys):
    own.run("--boxes", f"coco:{own.coco}")
    region = own.out / "train_boxes/00000000.json"
    before = region.stat().st_mtime_ns
    assert own.run("--boxes", f"coco:{own.coco}") == 0 and region.stat().st_mtime_ns == before
    own.write([ROWS[3], *ROWS[:3]])
    assert own.run("--boxes", f"coco:{own.coco}") == 2
    assert "the lines have changed since" in capsys.readouterr().err


def test_every_bad_line_is_named_and_nothing_written(own, capsys):
    own.write(["{", [1], {"image": "a/x.jpg"}, {"image": "", "caption": "b"}, {"image": "a/x.jpg", "caption": " "}])
    assert own.run() == 2
    error = capsys.readouterr().err
    assert all(f"own.jsonl, line {n}:" in error for n in range(1, 6)) and not own.out.exists()


def test_images_that_cannot_be_used(own, capsys):
    (own.root / "b/x.jpg").write_bytes(b"no image")
    own.write([*ROWS, {"image": "none.jpg", "caption": "nothing"}])
    assert own.run() == 2
    error = capsys.readouterr().err
    assert "line 2: b/x.jpg" in error and "line 5: none.jpg" in error and not (own.out / "train.json").exists()
    assert own.run("--skip-bad") == 1
    assert len(own.lines("train_frcnn.json")) == 3
    assert "left out:" in capsys.readouterr().out


def test_one_name_in_a_coco_file_is_not_two_images(own, capsys):
    content = json.loads(own.coco.read_text())
    content["images"][0]["file_name"] = "x.jpg"
    del content["images"][1], content["annotations"][1]
    own.coco.write_text(json.dumps(content))
    assert own.run("--boxes", f"coco:{own.coco}") == 2
    assert "line 2: b/x.jpg and a/x.jpg (line 1) have one name, 'x.jpg'" in capsys.readouterr().err


def test_two_images_of_one_stem_cannot_be_looked_up_by_it(own, capsys):
    boxes = own.root / "boxes.json"
    boxes.write_text(json.dumps({"x": [[0, 0, 9, 9]], "c": [[0, 0, 9, 9]]}))
    assert own.run("--boxes", f"json:{boxes}") == 2
    assert "line 2: b/x.jpg and a/x.jpg (line 1) have one name, 'x'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["9", "COCO_val2014_000000000009"])
@pytest.mark.parametrize("kind", ["json", "regions", "coco"])
def test_an_image_of_coco_is_found_by_its_name_or_stem(own, kind, name):
    (own.root / "c.png").rename(own.root / "COCO_val2014_000000000009.png")
    own.write([{"image": "COCO_val2014_000000000009.png", "caption": "the box"}])
    (own.root / "boxes.json").write_text(json.dumps({name: [[1, 2, 3, 4]]}))
    save_regions(own.root / "store", name, Regions(torch.tensor([[1.0, 2, 3, 4]]), width=60, height=40))
    listed = {"id": 1, "file_name": f"val2014/{int(name[-12:]):012d}.jpg", "width": 60, "height": 40}
    annotation = {"image_id": 1, "bbox": [1, 2, 3, 3], "category_id": 7}
    content = {"images": [listed], "annotations": [annotation], "categories": [{"id": 7}]}
    own.coco.write_text(json.dumps(content))
    spec = {"json": own.root / "boxes.json", "regions": own.root / "store", "coco": own.coco}[kind]
    assert own.run("--boxes", f"{kind}:{spec}") == 0
    assert open_regions(own.out / "train_boxes").regions("00000000").boxes.tolist() == [[1, 2, 3, 4]]


def test_stored_regions_keep_their_features(own, capsys):
    (own.root / "d-7.png").write_bytes((own.root / "c.png").read_bytes())
    own.write([ROWS[3], {"image": "d-7.png", "caption": "the box"}])
    features = torch.arange(2048.0)[None]
    for name in ("c", "7"):
        save_regions(own.root / "store", name, Regions(torch.tensor([[1.0, 2, 3, 4]]), features, width=60, height=40))
    assert own.run("--boxes", f"regions:{own.root}/store", "--complete", "--skip-bad") == 1
    assert "line 2: d-7.png" in capsys.readouterr().out  # 7 is the id of a COCO image, which this one is not
    assert open_regions(own.out / "train_frcnn").regions("00000000").features.tolist() == features.tolist()


def test_boxes_of_vcr_are_refused(own, capsys):
    assert own.run("--boxes", "vcr:train.jsonl") == 2
    assert "is for the images of VCR" in capsys.readouterr().err


def test_links_in_place_of_copies(own):
    own.run("--link")
    assert (own.out / "train_image/00000000.jpg").samefile(own.root / "a/x.jpg")


def test_a_shorter_file_does_not_replace_a_longer_one(own, capsys):
    own.run()
    own.write(ROWS[:2])
    assert own.run() == 2 and "--overwrite if it may go" in capsys.readouterr().err
    assert len(own.lines("train.json")) == 4
    assert own.run("--overwrite") == 0 and len(own.lines("train.json")) == 2


def test_zip_mode_reads_the_archives(own, tmp_path, capsys):
    own.run("--boxes", f"coco:{own.coco}", "--complete")
    folders = [str(own.out / name) for name in ("train_image", "train_frcnn")]
    assert files(["zip", *folders]) == 0 and files(["zip", *folders]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    (own.out / "bert").mkdir()
    (own.out / "bert/vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings = tiny_captions_only(own.out, tmp_path / "run")
    settings["NETWORK"]["VLBERT"]["visual_region_classes"] = 3
    path = write_settings(settings, tmp_path / "tiny.yaml")

    def sample(zip_mode: bool) -> Any:
        cfg = load_config("pretrain", path, {"DATASET.ZIP_MODE": zip_mode})
        return load_task("pretrain").build_dataset(cfg, "train").sample(0, Random(1))

    plain = sample(False)
    for folder in folders:
        for file in Path(folder).iterdir():
            file.unlink()
    zipped = sample(True)
    assert (zipped.image == plain.image).all() and (zipped.boxes == plain.boxes).all()


@pytest.mark.parametrize(
    ("caption", "words"),
    [("A dog, running.", ["a", "dog", ",", "running", "."]), ("it's  X", ["it", "'", "s", "x"]), (" ", [])],
)
def test_words(caption, words):
    assert split_words(caption) == words
