"""What the data sets of all tasks share: images, regions, what is left out, and runs that were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.config import load_config
from common.detect.detections import Detections
from common.regions.json_store import save_regions
from common.regions.open import open_regions
from common.regions.regions import Regions
from common.task import load_task
from common.train.run import run_training
from data.own import regions as own_regions
from data.own.__main__ import main
from tests.data.own.folder import NAMES, Own
from tests.data.own.test_pretrain import records as captions
from tests.data.own.test_refcoco import records as expressions
from tests.data.own.test_vcr import records as choices
from tests.data.own.test_vqa import records as questions

RECORDS = {"vqa": questions, "refcoco": expressions, "vcr": choices, "pretrain": captions}
ENCODER = ["--encoder", "module:data.scenes.regions"]
STEP = {"TRAIN.MAX_STEPS": 1, "DEVICE": "cpu", "NUM_WORKERS_PER_GPU": 0}


@pytest.fixture
def own(tmp_path) -> Own:
    return Own(tmp_path, "vqa", questions())


@pytest.mark.parametrize(
    ("task", "file"),
    [("vqa", "vqa"), ("refcoco", "refcoco"), ("vcr", "vcr_q2a"), ("vcr", "vcr_qa2r"), ("pretrain", "pretrain")],
)
def test_each_task_trains(tmp_path, task, file):
    own = Own(tmp_path, task, RECORDS[task]())
    options = ENCODER if task == "vcr" else [*ENCODER, "--boxes", "grid:2x2"]
    assert own.run(*options) == 0
    path = own.out / f"{file}.yaml"
    cfg = load_config(task, path, STEP | {"OUTPUT_PATH": str(tmp_path / "run")})
    run_training(load_task(task), cfg, path)
    assert list((tmp_path / "run").rglob("*.model"))


class Stub:
    """A detector of two boxes. The features of a box have its left side in all numbers. calls: images it has seen."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []
        self.stop_after = 100

    def __call__(self, images: list[Image.Image]) -> list[Detections]:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(images[0].size)
        boxes = torch.tensor([[20.0, 20.0, 50.0, 45.0], [1.0, 1.0, 15.0, 15.0]])
        scores = torch.eye(2, 1601)
        one = torch.ones(2)
        return [Detections(boxes, scores, scores[:, :401], self.features(boxes), one, one, boxes)]

    def region_features(self, images: Any, boxes: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.features(own) for own in boxes]

    @staticmethod
    def features(boxes: torch.Tensor) -> torch.Tensor:
        return boxes[:, :1].expand(-1, 2048).clone()


@pytest.fixture
def detector(monkeypatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr(own_regions, "build_detector", lambda *args: stub)
    return stub


def test_the_detector_has_features_for_the_boxes_of_records_too(own, detector):
    rows = [row | {"boxes": [[7, 5, 40, 40]]} if row["image"] == NAMES[0] else row for row in questions()]
    own.write(rows)
    assert own.run("--boxes", "vg:detector.pth") == 0
    store = open_regions(own.out / "regions")
    found = [store.regions(name).in_memory().features[:, 0].tolist() for name in "1234"]
    assert found == [[7], [20, 1], [20, 1], [20, 1]] and len(detector.calls) == 3
    assert store.regions("1").class_scores is None


def test_the_detector_as_encoder_of_other_boxes(own, detector):
    assert own.run("--boxes", "grid:1x2", "--encoder", "vg:detector.pth") == 0
    found = open_regions(own.out / "regions").regions("1").in_memory()
    assert found.features[:, 0].tolist() == found.boxes[:, 0].tolist() and not detector.calls
    assert own.config().NETWORK.REGION_ENCODER == "vg:detector.pth"


def test_pretraining_keeps_the_class_scores(tmp_path, detector):
    own = Own(tmp_path, "pretrain", captions())
    assert own.run("--boxes", "vg:detector.pth") == 0
    assert open_regions(own.out / "regions").regions("00000001").class_scores.shape == (2, 1601)
    assert own.config().NETWORK.WITH_MVRC_LOSS


def test_the_same_command_goes_on_after_a_stop(own, detector):
    detector.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        own.run("--boxes", "vg:detector.pth")
    assert not own.out.exists()
    detector.stop_after = 100
    assert own.run("--boxes", "vg:detector.pth") == 0
    assert len(detector.calls) == 4 and len(set(detector.calls)) == 4
    assert sorted(path.name for path in own.root.glob("mine*")) == ["mine"]


def test_regions_of_other_options_are_not_taken(own, detector, capsys):
    detector.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        own.run("--boxes", "vg:detector.pth")
    detector.stop_after = 100
    assert own.run("--boxes", "vg:detector.pth", "--max-boxes", "7") == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_a_changed_image_is_computed_again(own, detector):
    detector.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        own.run("--boxes", "vg:detector.pth")
    detector.stop_after = 100
    Image.new("RGB", (99, 88)).save(own.root / "photos" / NAMES[0])
    assert own.run("--boxes", "vg:detector.pth") == 0
    assert (99, 88) in detector.calls and len(detector.calls) == 5


def test_bad_images_are_left_out_on_demand(own, capsys):
    (own.root / "photos" / NAMES[1]).write_bytes(b"no image")
    (own.root / "boxes.json").write_text(json.dumps({"x": [[1, 2, 30, 40]], "2": [[1, 2, 30, 40]]}))
    val = own.write([questions()[-1]], "val.jsonl")
    own.write(questions()[:-1])
    options = ["--boxes", f"json:{own.root}/boxes.json", "--val", str(val)]
    assert own.run(*options) == 2 and not own.out.exists()
    assert own.run(*options, "--skip-bad") == 1
    output = capsys.readouterr().out
    assert "left out" in output and "line 3:" in output and "line 5:" in output and "my photo" in output
    assert {row["image"] for row in own.ids()} == {NAMES[0], NAMES[3]}
    assert len(own.dataset("train")) + len(own.dataset("val")) == 4


def test_nothing_is_written_where_all_images_are_bad(own, capsys):
    for name in NAMES:
        (own.root / "photos" / name).unlink()
    assert own.run("--skip-bad") == 2
    assert "no record has an image that can be used" in capsys.readouterr().err and not own.out.exists()


def test_paths_start_at_the_file_without_images(own):
    own.write(questions(), "photos/records.jsonl")
    paths = ["--input", str(own.root / "photos/records.jsonl"), "--out", str(own.out)]
    assert main(["vqa", *paths]) == 0 and len(own.ids()) == 8


def test_links_in_place_of_copies(own):
    assert own.run("--link") == 0
    files = {path.stat().st_ino for path in own.out.rglob("*.jpg")}
    assert files == {(own.root / "photos" / name).stat().st_ino for name in NAMES}


@pytest.mark.parametrize("name", ["9", "COCO_val2014_000000000009"])
@pytest.mark.parametrize("kind", ["json", "regions", "coco"])
def test_an_image_of_coco_is_found_by_its_name_or_stem(own, kind, name):
    (own.root / "photos/2.jpg").rename(own.root / "photos/COCO_val2014_000000000009.png")
    rows = [{"image": "COCO_val2014_000000000009.png", "question": "what?", "answers": "it"}]
    boxes = [{"image": NAMES[0], "boxes": [[1, 1, 9, 9]], "question": "what?", "answers": "it"}]
    own.write([*rows, *boxes])
    (own.root / "boxes.json").write_text(json.dumps({name: [[1, 2, 3, 4]]}))
    save_regions(own.root / "store", name, Regions(torch.tensor([[1.0, 2, 3, 4]]), width=83, height=60))
    listed = {"id": 1, "file_name": f"val2014/{int(name[-12:]):012d}.jpg", "width": 83, "height": 60}
    annotation = {"image_id": 1, "bbox": [1, 2, 3, 3], "category_id": 7}
    content = {"images": [listed], "annotations": [annotation], "categories": [{"id": 7}]}
    (own.root / "instances.json").write_text(json.dumps(content))
    file = {"json": "boxes.json", "regions": "store", "coco": "instances.json"}[kind]
    assert own.run("--boxes", f"{kind}:{own.root}/{file}") == 0
    assert open_regions(own.out / "regions").regions("1").boxes.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("vqa", ["--split", "1"], "expected a share between 0 and 1"),
        ("vqa", ["--encoder", "detector:x"], "expected vg:FILE, resnet:FILE or module:NAME"),
        ("pretrain", ["--boxes", "vcr:x.jsonl"], "is for the images of VCR"),
        ("vcr", ["--boxes", "grid:2x2"], "the records of VCR have boxes"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, capsys, task, options, message):
    with pytest.raises(SystemExit):
        main([task, "--input", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    assert message in capsys.readouterr().err
