"""Metrics, the result file and the three counts of RefCOCO+ (original 10.12 and 10.13)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.config import load_config
from common.data.sample import ModelOutput
from common.errors import DataError
from refcoco.outputs import (
    Accuracies,
    accuracies,
    build_metrics,
    count_correct,
    result_name,
    result_stem,
    summary,
    to_records,
    write_boxes,
)
from refcoco.task import TASK
from tests.refcoco.world import GOLDEN_BOXES, World


def record(sent_id: int, box: list[float], candidate: int = 0) -> dict[str, Any]:
    return {"id": sent_id, "box": box, "candidate": candidate, "score": 0.5}


class TestRecords:
    def test_the_candidate_of_the_best_logit(self):
        logits = torch.tensor([[0.1, 2.0, -1.0], [-3.0, -4.0, -10000.0]])
        boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
        output = ModelOutput({"label_logits": logits, "pred_boxes": boxes})
        got = to_records(output, SimpleNamespace(ids=[900, 7]), SimpleNamespace())
        assert [r["id"] for r in got] == [900, 7] and [r["candidate"] for r in got] == [1, 0]
        assert [r["box"] for r in got] == boxes.tolist()
        assert got[0]["score"] == pytest.approx(1 / (1 + math.exp(-2))) and 0 <= got[1]["score"] < 0.05
        json.dumps(got)

    def test_of_equal_logits_the_first(self):
        output = ModelOutput({"label_logits": torch.zeros(1, 3), "pred_boxes": torch.zeros(1, 4)})
        assert to_records(output, SimpleNamespace(ids=[1]), SimpleNamespace())[0]["candidate"] == 0

    def test_half_precision(self):
        output = ModelOutput({"label_logits": torch.zeros(1, 2).half(), "pred_boxes": torch.ones(1, 4).bfloat16()})
        assert to_records(output, SimpleNamespace(ids=[1]), SimpleNamespace())[0]["box"] == [1.0] * 4


class TestResultFile:
    @pytest.fixture
    def world(self, golden: World) -> World:
        golden.add_reference(4201, ["the thing", "cat"])
        return golden.write()

    records = [record(899, [1.5, 2, 3, 4]), record(900, [0, 0, 9, 9]), record(898, [5, 5, 6, 6])]

    def test_an_entry_for_each_expression_in_the_order_of_the_references(self, world, tmp_path):
        """no. 35: joined by id. no. 23: the two keys of the original, and the sentence."""
        path = tmp_path / "new folder/result.json"
        write_boxes(self.records, world.open(), path)
        assert json.loads(path.read_text()) == [
            {"ref_id": 50, "box": [0, 0, 9, 9], "sent_id": 900},
            {"ref_id": 51, "box": [1.5, 2, 3, 4], "sent_id": 899},
            {"ref_id": 51, "box": [5, 5, 6, 6], "sent_id": 898},
        ]

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            (records[:2], "2 records, 2 of them distinct, for 3 expressions"),
            ([*records, records[0]], "4 records, 3 of them distinct, for 3 expressions"),
            ([*records[:2], record(1, [0, 0, 1, 1])], "3 records, 3 of them distinct, for 3 expressions"),
        ],
        ids=["missing", "twice", "unknown"],
    )
    def test_anything_else_is_refused_and_writes_nothing(self, world, tmp_path, records, message):
        with pytest.raises(DataError, match=message):
            write_boxes(records, world.open(), tmp_path / "results" / "a.json")
        assert not (tmp_path / "results").exists()
        with pytest.raises(DataError, match=message):
            count_correct(records, world.open())

    def test_names(self, cfg_path):
        cfg = load_config("refcoco", cfg_path, ["DATASET.TEST_IMAGE_SET=testA", "DATASET.DATASET=refcocog"])
        assert result_stem(cfg, "yaml") == "tiny"
        assert result_name(cfg, "mine") == "mine_refcocog_testA.json"
        cfg = load_config("refcoco", cfg_path, {"DATASET.DATASET": "", "MODEL_PREFIX": ""})
        assert result_name(cfg, result_stem(cfg, "yaml")) == "yaml_refcoco+_test.json"


# x y w h of the annotations of image 7: the target, one shifted by 20 pixels (IoU 0.67), one far away.
TARGET, SHIFTED, FAR = [10.0, 10, 99, 99], [30.0, 10, 99, 99], [300.0, 300, 50, 50]


def xyxy(box: list[float]) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


class TestCounts:
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        world = World(tmp_path)
        world.add_image(7, (640, 480), [TARGET, SHIFTED, FAR])
        world.add_reference(700, ["cat"])
        world.detect(7, TARGET, SHIFTED, FAR)
        return world.write()

    def count(self, world: World, box: list[float], candidate: int, mode: str = "gt", **options: Any) -> Accuracies:
        return count_correct([record(900, box, candidate)], world.open(boxes=mode, **options))

    def test_annotations_are_told_apart_by_identity(self, world):
        """Issue 83 of the original: a neighbour that overlaps by half counts there."""
        assert self.count(world, xyxy(TARGET), 1) == Accuracies(1, overlap=1, exact=1, ceiling=1)
        assert self.count(world, xyxy(SHIFTED), 2) == Accuracies(1, overlap=1, exact=0, ceiling=1)
        assert self.count(world, xyxy(FAR), 3) == Accuracies(1, overlap=0, exact=0, ceiling=1)
        assert self.count(world, xyxy(TARGET), 0, image_box=False).exact == 1

    def test_a_detection_means_the_annotation_it_overlaps_most(self, world):
        assert self.count(world, xyxy(TARGET), 1, "proposal") == Accuracies(1, 1, 1, 1)
        assert self.count(world, xyxy(SHIFTED), 2, "proposal") == Accuracies(1, 1, 0, 1)
        assert self.count(world, [15.0, 10, 114, 109], 1, "proposal").exact == 1
        assert self.count(world, [25.0, 10, 124, 109], 1, "proposal") == Accuracies(1, 1, 0, 1)
        assert self.count(world, [20.0, 10, 119, 109], 1, "proposal").exact == 1  # as near to both
        nearest_but_small = [10.0, 10, 50, 50]
        assert self.count(world, nearest_but_small, 1, "proposal") == Accuracies(1, 0, 0, 1)

    def test_a_target_that_coco_does_not_list_competes_all_the_same(self, world):
        content = json.loads((world.root / "annotations/instances_train2014.json").read_text())
        content["annotations"] = content["annotations"][1:]
        world.write_json("annotations/instances_train2014.json", content)
        assert self.count(world, xyxy(TARGET), 1, "proposal").exact == 1
        assert self.count(world, xyxy(SHIFTED), 1, "proposal").exact == 0

    def test_the_ceiling_is_what_the_candidates_allow(self, world):
        world.detections = world.detections[2:]
        world.write()
        assert self.count(world, xyxy(FAR), 1, "proposal") == Accuracies(1, 0, 0, ceiling=0)
        assert self.count(world, xyxy(FAR), 1, "proposal+gt").ceiling == 1

    def test_half_overlap_counts_here(self, world):
        """no. 5: IoU >= 0.5, with both borders inside: 100 x 100 pixels, of which the lower 50 rows."""
        assert self.count(world, [10.0, 60, 109, 109], 1).overlap == 1
        assert self.count(world, [10.0, 60.1, 109, 109], 1).overlap == 0

    def test_the_truth_is_not_clipped(self, world):
        """no. 5: half of the target lies beyond the image, so its visible half just reaches 0.5."""
        world.images[0].update(width=60, height=480)
        world.annotations[0]["bbox"] = [10.0, 10, 99, 99]
        world.write()
        assert self.count(world, [10.0, 10, 59, 109], 1).overlap == 1
        assert self.count(world, [10.0, 10, 58, 109], 1).overlap == 0

    def test_a_padded_box_is_nobody(self, world):
        """NETWORK.SCORE_PADDING: in a batch with more boxes the argmax may lie beyond the candidates."""
        assert self.count(world, [0.0, 0, 0, 0], 9) == Accuracies(1, 0, 0, 1)

    def test_one_of_two_identical_annotations(self, tmp_path):
        world = World(tmp_path)
        world.add_image(7, (640, 480), [TARGET, TARGET])
        world.add_reference(701, ["cat"])
        world.detect(7, TARGET)
        world.write()
        assert self.count(world, xyxy(TARGET), 1).exact == 0
        assert self.count(world, xyxy(TARGET), 1, "proposal").exact == 1

    def test_the_ceiling_bounds_the_accuracy_of_every_choice(self, golden):
        """Boxes that leave the image, clipped as the model sees them."""
        golden.add_image(8, (333, 500), [[-20.0, 100, 300, 380.5], [200, 300, 133, 200]])
        golden.add_reference(800, ["cat"])
        golden.add_reference(801, ["thing"])
        golden.detect(8, [-40.0, 90, 500, 700], [150, 250, 300, 300])
        golden.write()
        for mode in ("gt", "proposal", "proposal+gt"):
            dataset = golden.open(boxes=mode)
            best = 0
            for index, e in enumerate(dataset.expressions):
                hits = []
                for k, box in enumerate(dataset.choices(index).boxes.tolist()):
                    one = {x.sent_id: record(x.sent_id, [0.0, 0, 0, 0]) for x in dataset.expressions}
                    one[e.sent_id] = record(e.sent_id, box, k)
                    hits.append(count_correct(list(one.values()), dataset).overlap)
                best += max(hits)
            assert best == count_correct(list(one.values()), dataset).ceiling


class TestSummary:
    @pytest.fixture
    def world(self, golden: World) -> World:
        golden.add_reference(4201, ["the thing", "cat"])
        return golden.write()

    def records(self) -> list[dict[str, Any]]:
        first, second = xyxy(GOLDEN_BOXES[0]), xyxy(GOLDEN_BOXES[1])
        return [record(900, first, 1), record(899, second, 2), record(898, first, 1)]

    def test_numbers(self, world):
        got = accuracies(self.records(), world.open())
        assert got == {
            "expressions": 3,
            "overlap": pytest.approx(200 / 3),
            "exact": pytest.approx(200 / 3),
            "ceiling": 100.0,
        }

    def test_the_table(self, world):
        lines = summary(self.records(), world.open()).splitlines()
        assert lines[0].split() == ["refcoco+", "train,", "candidates", "gt", "percent", "expressions"]
        assert [line.split()[-4:] for line in lines[1:]] == [
            ["66.67", "2", "of", "3"],
            ["66.67", "2", "of", "3"],
            ["100.00", "3", "of", "3"],
        ]
        assert TASK.summary is summary


class TestMetrics:
    def test_names(self, cfg_path):
        """Original 10.12."""
        cfg = load_config("refcoco", cfg_path)
        assert list(build_metrics(cfg, training=True).compute()) == [
            "RefAcc",
            "ClsAcc",
            "ClsPosAcc",
            "ClsPosFrac",
            "ClsLoss",
        ]
        assert list(build_metrics(cfg, training=False).compute()) == ["RefAcc"] == [TASK.main_metric(cfg)]
        assert TASK.loss_scale_range == (128.0, None)

    def test_values(self, cfg_path):
        """Two samples of three and two boxes: one right choice; signs right at 3 of 5, at 1 of 2 positives."""
        metrics = build_metrics(load_config("refcoco", cfg_path), training=True)
        label = torch.tensor([[0.0, 1, 0], [1, 0, -1]])
        logits = torch.tensor([[-1.0, 2, 0.5], [-2, -1, -10000]])
        metrics.update({"label": label, "label_logits": logits, "cls_loss": torch.tensor(0.5)})
        got = metrics.compute()
        assert (got["RefAcc"], got["ClsAcc"], got["ClsPosAcc"], got["ClsPosFrac"]) == (0.5, 0.6, 0.5, 0.4)
        assert got["ClsLoss"] == 0.5
