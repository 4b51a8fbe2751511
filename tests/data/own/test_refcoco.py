"""The user's own referring expressions become files that RefCOCO+ trains on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.regions.open import open_regions
from tests.data.own.folder import COLORS, NAMES, SHAPES, Own

TARGET = [20, 20, 51, 46]  # of every image
OTHER = [60, 5, 75, 15]


def records() -> list[dict[str, Any]]:
    return [
        {"id": color, "image": name, "boxes": [OTHER], "expression": f"the {color} one", "box": TARGET}
        for name, color in zip(NAMES, COLORS, strict=True)
    ]


@pytest.fixture
def own(tmp_path) -> Own:
    return Own(tmp_path, "refcoco", records())


def test_without_a_source_the_boxes_of_the_records_are_the_candidates(own):
    own.write([*records(), {"image": NAMES[0], "expression": "the other", "box": OTHER}])
    assert own.run("--split", "0.5", "--encoder", "module:data.scenes.regions") == 0
    samples = {}
    for split in ("train", "val"):
        dataset = own.dataset(split)
        samples |= {dataset.expressions[i].sent_id: dataset[i, 0] for i in range(len(dataset))}
    assert set(samples) == {1, 2, 3, 4, 5}
    boxes = samples[1].boxes / samples[1].im_info[2]
    assert boxes.round().tolist()[1:] == [[*map(float, OTHER)], [*map(float, TARGET)]]
    labels = [samples[i].targets["label"].tolist() for i in (1, 5)]
    assert labels == [[0, 0, 1], [0, 1, 0]]  # the whole image first
    assert samples[1].features.shape == (3, 2048)
    assert own.ids()[0]["sent_id"] in samples and {row["id"] for row in own.ids()} == {*COLORS, None}


def test_a_source_gives_the_candidates_and_training_adds_missed_referents(own, capsys):
    """The source has one wrong box. A held-out image keeps its candidates, because its accuracy is measured."""
    rows = [{key: value for key, value in row.items() if key != "boxes"} for row in records()]
    train, val = own.write(rows[:3]), own.write(rows[3:], "val.jsonl")
    (own.root / "boxes.json").write_text(json.dumps({key: [OTHER] for key in ("x", "my photo", "2")}))
    (own.root / "photos/b/x.jpg").rename(own.root / "photos/b/y.jpg")
    own.write([row | {"image": row["image"].replace("b/x", "b/y")} for row in rows[:3]])
    boxes = json.loads((own.root / "boxes.json").read_text()) | {"y": [TARGET]}
    (own.root / "boxes.json").write_text(json.dumps(boxes))
    options = ["--boxes", f"json:{own.root}/boxes.json", "--encoder", "module:data.scenes.regions"]
    assert own.run("--val", str(val), *options, records=train.name) == 0
    store = open_regions(own.out / "regions")
    found = [store.regions(name) for name in ("1", "2", "3", "4")]
    assert [len(regions.boxes) for regions in found] == [2, 1, 2, 1]
    assert all(len(regions.features) == len(regions.boxes) for regions in found)
    labels = [own.dataset(split)[0, 0].targets["label"].sum().item() for split in ("train", "val")]
    assert labels == [1, 0]
    output = capsys.readouterr().out
    assert "100.0 % with the referent among the candidates, 1 images with a single candidate" in output
    assert "0.0 % with the referent" in output


def test_a_referent_outside_of_the_image_is_refused(own, capsys):
    own.write([*records(), {"image": NAMES[0], "expression": "far", "box": [0, 0, 500, 10]}, {"image": NAMES[0]}])
    assert own.run() == 2
    error = capsys.readouterr().err
    assert "line 6: expression must be a text" in error and "line 6: no box" in error and not own.out.exists()
    own.write([*records(), {"image": NAMES[0], "expression": "far", "box": [0, 0, 500, 10]}])
    assert own.run() == 2
    assert "line 5: box lies outside of the image, which has 80 x 60 pixels" in capsys.readouterr().err


def test_all_records_of_an_image_have_its_candidates(own):
    """Boxes that only one record names, and the shapes that a detector finds in an image without boxes."""
    own.write([{"image": name, "expression": "it", "box": TARGET} for name in NAMES])
    assert own.run(*SHAPES) == 0
    config = own.config()
    assert (config.DATASET.TRAIN_BOXES, config.DATASET.PROPOSAL_SOURCE) == ("proposal", "vg")
    sample = own.dataset("train")[0, 0]
    assert sample.targets["label"].sum() >= 1 and len(sample.features) == len(sample.boxes)
