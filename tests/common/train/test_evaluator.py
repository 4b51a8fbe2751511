"""Evaluation: eval mode, no gradients, records in the order of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common import distributed
from common.data.loader import BatchLoader
from common.data.sample import Batch, ModelOutput
from common.metrics import Mean, MetricGroup
from common.precision import Precision
from common.train.evaluator import Interrupted, evaluate, evaluation_mode
from tests.common.test_distributed import run_on_two
from tests.common.train.toy import ToyDataset, ToyModel

FP32 = Precision("fp32", "cpu")
CPU = torch.device("cpu")


def loader(rank: int = 0, world: int = 1) -> BatchLoader:
    return BatchLoader(ToyDataset(), 3, rank=rank, world=world)


def trained_model(dropout: float) -> ToyModel:
    """Weights that give each sample its own score."""
    model = ToyModel(dropout)
    nn.init.constant_(model.linear.weight, 0.5)
    return model


def scores(output: ModelOutput, batch: Batch) -> list[dict]:
    return [{"id": i, "score": s} for i, s in zip(batch.ids, output.predictions["score"].tolist(), strict=True)]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_mode_is_restored(training):
    """A training run evaluates the model that it trains."""
    model, still = trained_model(dropout=0.9), trained_model(dropout=0.0)
    model.train(training)
    found = [evaluate(m, loader(), CPU, FP32, MetricGroup([Mean("square")]), scores) for m in (model, still)]
    assert found[0] == found[1]
    assert model.training == model.dropout.training == training


def test_the_mode_is_restored_after_an_error():
    model = trained_model(0.5)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training and not model.dropout.training
        raise KeyError
    assert model.training and model.dropout.training


def test_metrics_and_records_of_every_sample():
    """Metrics start from zero, records follow the order of the dataset, and no graph is kept."""
    model, metrics = trained_model(0.0), MetricGroup([Mean("square")])
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.loss.requires_grad))
    values = [evaluate(model, loader(), CPU, FP32, metrics, scores) for _ in range(2)]
    assert values[0] == values[1]
    batches = list(loader())
    with torch.no_grad():
        outputs = [model(batch) for batch in batches]
    assert values[0][1] == [
        record for out, batch in zip(outputs, batches, strict=True) for record in scores(out, batch)
    ]
    assert values[0][0]["square"] == pytest.approx(sum(out.loss.item() for out in outputs) / len(outputs))
    assert len(seen) == 12 and not any(seen)


def test_interrupted():
    asked = iter([False, True])
    batches = []
    model = trained_model(0.0)
    model.register_forward_hook(lambda module, args, output: batches.append(output))
    with pytest.raises(Interrupted):
        evaluate(model, loader(), CPU, FP32, should_stop=lambda: next(asked))
    assert len(batches) == 1 and model.training


def _records_of_both(rank: int) -> None:
    _, records = evaluate(trained_model(0.0), loader(rank, 2), CPU, FP32, to_records=scores)
    assert [r["id"] for r in records] == (list(range(10)) if rank == 0 else [])


def _interrupt_on_one(rank: int) -> None:
    with pytest.raises(Interrupted):
        evaluate(trained_model(0.0), loader(rank, 2), CPU, FP32, should_stop=lambda: rank == 1)
    distributed.barrier()


@pytest.mark.parametrize("function", [_records_of_both, _interrupt_on_one])
def test_two_processes(function):
    run_on_two(function)
