"""Metrics and the result file of VQA (original 9.20 and 9.21)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from common.config import load_config
from common.data.sample import ModelOutput
from common.errors import DataError
from vqa.answers import AnswerVocabulary
from vqa.outputs import build_metrics, result_name, to_records, write_answers

DATASET = SimpleNamespace(
    vocabulary=AnswerVocabulary(["<unk>", "yes", "t shirt"]),
    questions=[SimpleNamespace(question_id=i) for i in (30, 10, 20)],
)
RECORDS = [{"id": 10, "answer": "yes"}, {"id": 20, "answer": "t shirt"}, {"id": 30, "answer": "<unk>"}]


class TestRecords:
    def test_the_answer_of_the_best_logit(self):
        """17.7: <unk> may be predicted."""
        logits = torch.tensor([[0.1, 0.2, 0.0], [3.0, 1.0, 2.0], [-3.0, -2.0, -1.0]])
        output = ModelOutput({"label_logits": logits})
        assert to_records(output, SimpleNamespace(ids=[10, 30, 20]), DATASET) == [
            {"id": 10, "answer": "yes"},
            {"id": 30, "answer": "<unk>"},
            {"id": 20, "answer": "t shirt"},
        ]


class TestResultFile:
    def test_question_file_order_whatever_the_records_order(self, tmp_path):
        """17.27: answers are joined by question id, not by position."""
        path = tmp_path / "new folder" / "result.json"
        write_answers(RECORDS, DATASET, path)
        assert json.loads(path.read_text()) == [
            {"question_id": 30, "answer": "<unk>"},
            {"question_id": 10, "answer": "yes"},
            {"question_id": 20, "answer": "t shirt"},
        ]

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            (RECORDS[:2], "2 records, 2 of them distinct, for 3 questions"),
            ([*RECORDS, RECORDS[0]], "4 records, 3 of them distinct, for 3 questions"),
            ([*RECORDS[:2], {"id": 31, "answer": "yes"}], "3 records, 3 of them distinct, for 3 questions"),
        ],
        ids=["missing", "twice", "unknown"],
    )
    def test_anything_else_than_the_questions_is_refused_and_writes_nothing(self, tmp_path, records, message):
        with pytest.raises(DataError, match=message):
            write_answers(records, DATASET, tmp_path / "result.json")
        assert list(tmp_path.iterdir()) == []

    def test_name(self, cfg_path):
        cfg = load_config("vqa", cfg_path, ["DATASET.TEST_IMAGE_SET=test-dev2015"])
        assert result_name(cfg, "base") == "base_vqa2_test-dev2015.json"


class TestMetrics:
    def test_names(self, cfg_path):
        cfg = load_config("vqa", cfg_path)
        assert list(build_metrics(cfg, training=True).compute()) == ["SoftAcc", "AnsLoss"]
        assert list(build_metrics(cfg, training=False).compute()) == ["SoftAcc"]

    def test_soft_accuracy_is_the_label_at_the_best_logit_per_sample(self, cfg_path):
        """Original 9.20: over both batches (0.3 + 0.9 + 0) / 3; the loss is a mean over batches, (2 + 6) / 2."""
        metrics = build_metrics(load_config("vqa", cfg_path), training=True)
        label = torch.tensor([[0.0, 0.3, 1.0], [0.9, 0.0, 0.6]])
        logits = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.5]])
        metrics.update({"label": label, "label_logits": logits, "ans_loss": torch.tensor(2.0)})
        last = torch.tensor([[9.0, 0.0, 0.0]])
        metrics.update({"label": label[:1], "label_logits": last, "ans_loss": torch.tensor(6.0)})
        assert metrics.compute() == {"SoftAcc": pytest.approx(0.4), "AnsLoss": pytest.approx(4.0)}
