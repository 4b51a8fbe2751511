"""Metrics, records and what is written of them (original 8.19 to 8.21)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.config import load_config
from common.data.sample import ModelOutput
from common.errors import DataError
from vcr.outputs import build_metrics, result_name, to_records, write_results
from vcr.scores import Predictions, format_scores

Q2A = SimpleNamespace(task="Q2A", ids=["b", "a"])
RECORDS = [{"id": "a", "logits": [0.0, 1.0, 2.0, -50.0]}, {"id": "b", "logits": [1.0, 1.0, 1.0, 1.0]}]


class TestRecords:
    def test_logits_by_id(self):
        output = ModelOutput({"label_logits": torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0.5]], dtype=torch.float16)})
        assert to_records(output, SimpleNamespace(ids=["a", "b"]), Q2A) == [
            {"id": "a", "logits": [1.0, 2.0, 3.0, 4.0]},
            {"id": "b", "logits": [0.0, 0.0, 0.0, 0.5]},
        ]


class TestResultFile:
    def test_annotation_order_and_shortest_decimals(self, tmp_path):
        """Joined by id (original 8.21); float32 softmax, and each text reads back as the number in the .npy."""
        write_results(RECORDS, Q2A, tmp_path / "x.csv")
        head, first, second = (tmp_path / "x.csv").read_text().splitlines()
        assert head == "annot_id,answer_0,answer_1,answer_2,answer_3"
        assert first == "b,0.25,0.25,0.25,0.25"
        array = np.load(tmp_path / "x.npy")
        assert array.dtype == np.float32 and array.shape == (2, 4)
        assert np.array_equal(np.array(second.split(",")[1:], dtype=np.float32), array[1])
        assert second.startswith("a,0.09003057,0.24472848,0.66524094,") and "e-" in second
        want = torch.tensor([0.0, 1.0, 2.0, -50.0]).softmax(0)
        assert torch.equal(torch.from_numpy(array[1]), want)

    def test_sixteen_numbers_are_four_softmaxes(self, tmp_path):
        logits = [float(i % 5) for i in range(16)]
        dataset = SimpleNamespace(task="QA2R", ids=["a"])
        write_results([{"id": "a", "logits": logits}], dataset, tmp_path / "x.csv")
        got = torch.from_numpy(np.load(tmp_path / "x.npy"))[0].view(4, 4)
        assert torch.equal(got, torch.tensor(logits).view(4, 4).softmax(-1))

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            (RECORDS[:1], "1 records, 1 of them distinct, for 2 annotations"),
            ([*RECORDS, RECORDS[0]], "3 records, 2 of them distinct, for 2 annotations"),
            ([RECORDS[0], RECORDS[1] | {"id": "c"}], "2 records, 2 of them distinct, for 2 annotations"),
        ],
        ids=["missing", "twice", "unknown"],
    )
    def test_anything_else_than_the_annotations_is_refused(self, tmp_path, records, message):
        with pytest.raises(DataError, match=message):
            write_results(records, Q2A, tmp_path / "x.csv")
        assert list(tmp_path.iterdir()) == []

    def test_name(self, cfg_path):
        assert result_name(load_config("vcr", cfg_path), "base") == "base_test_result_Q2A.csv"


class TestMetrics:
    def test_names(self, cfg_path):
        cfg = load_config("vcr", cfg_path)
        assert list(build_metrics(cfg, training=True).compute()) == ["Acc", "AnsLoss", "CNNRegLoss"]
        assert list(build_metrics(cfg, training=False).compute()) == ["Acc"]

    def test_accuracy_counts_samples(self, cfg_path):
        metrics = build_metrics(load_config("vcr", cfg_path), training=False)
        logits = torch.tensor([[0.0, 2, 1, 0], [3, 0, 0, 0]])
        metrics.update({"label_logits": logits, "label": torch.tensor([1, 2])})
        metrics.update({"label_logits": logits[1:], "label": torch.tensor([0])})
        assert metrics.compute() == {"Acc": pytest.approx(2 / 3)}


class TestScores:
    TRUTH = SimpleNamespace(ids=["a", "b", "c"], answer_labels=[0, 1, 2], rationale_labels=[3, 3, 3])

    def predictions(self, ids: list[str], best: list[int]) -> Predictions:
        return Predictions(ids, np.eye(4)[best])

    def test_both_halves_joined_by_id(self):
        answers = self.predictions(["c", "a", "b"], [2, 0, 0])  # b is wrong
        rationales = self.predictions(["a", "b", "c"], [0, 3, 3])  # a is wrong
        assert format_scores(self.TRUTH, answers, rationales) == "Q->A\t66.7\nQA->R\t66.7\nQ->AR\t33.3"
        assert format_scores(self.TRUTH, answers, None) == "Q->A\t66.7"
        assert format_scores(self.TRUTH, None, rationales) == "QA->R\t66.7"

    @pytest.mark.parametrize("ids", [["a", "b"], ["a", "b", "d"], ["a", "b", "c", "c"]])
    def test_other_ids(self, ids):
        with pytest.raises(DataError, match=f"{len(ids)} predictions for 3 annotated questions; ids that only one"):
            format_scores(self.TRUTH, self.predictions(ids, [0] * len(ids)), None)

    def test_files(self, tmp_path):
        given = Predictions.of(RECORDS, ["b", "a"])
        given.save(tmp_path / "x_a_pred.npy")
        got = Predictions.load(tmp_path / "x_a_pred.npy")
        assert got.ids == ["b", "a"] and got.logits.dtype == np.float64
        assert np.array_equal(got.logits, [[1, 1, 1, 1], [0, 1, 2, -50]])
        assert Predictions.exist(tmp_path / "x_a_pred.npy")
        (tmp_path / "x_a_pred.json").write_text(json.dumps(["b"]))
        with pytest.raises(DataError, match=r"x_a_pred\.npy: scores of shape \(2, 4\), the \.json beside it has 1 ids"):
            Predictions.load(tmp_path / "x_a_pred.npy")
        (tmp_path / "x_a_pred.json").unlink()
        assert not Predictions.exist(tmp_path / "x_a_pred.npy")
        (tmp_path / "x_a_pred.npy").write_bytes(b"no array")
        with pytest.raises(DataError, match="cannot be read"):
            Predictions.load(tmp_path / "x_a_pred.npy")
