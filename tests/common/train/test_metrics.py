import math

import pytest
import torch

from common.train.metrics import (
    Accuracy,
    ClsAccuracy,
    ClsPosAccuracy,
    ClsPosFraction,
    JointAccuracy,
    Mean,
    MetricGroup,
    MLMAccuracy,
    MVRCAccuracy,
    RefAccuracy,
    RelationshipAccuracy,
    SoftAccuracy,
)


def one_hot(*best: int, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best), classes).float()


def measured(metric, **values) -> tuple[float, float]:
    """Sum and count of one update."""
    metric.update(values)
    state = metric.state_dict()
    return state["sum"], state["count"]


def test_nothing_counted_is_nan():
    assert math.isnan(SoftAccuracy().compute())


def test_soft_accuracy():
    label = torch.tensor([[0.3, 0.9, 0, 0], [0, 0.6, 0, 1.0]])
    assert measured(SoftAccuracy(), label_logits=one_hot(1, 0), label=label) == (pytest.approx(0.9), 2)


def test_accuracy_leaves_out_unlabelled_rows():
    values = {"label_logits": one_hot(0, 1, 2), "label": torch.tensor([0, -1, 3])}
    assert measured(Accuracy(), **values) == (1, 2)


def test_accuracy_of_flat_choices():
    values = {"label_logits": one_hot(0, 1).view(-1), "label": one_hot(0, 2).long().view(-1)}
    assert measured(Accuracy(), **values) == (1, 2)


def test_joint_accuracy_wants_both():
    values = {
        "answer_label_logits": one_hot(0, 1, 2),
        "answer_label": torch.tensor([0, 1, 0]),
        "rationale_label_logits": one_hot(0, 1, 2),
        "rationale_label": torch.tensor([0, 2, 2]),
    }
    assert measured(JointAccuracy(), **values) == (1, 3)


def test_refcoco_metrics():
    values = {
        "label_logits": torch.tensor([[2.0, -1.0, -1.0, -9.0], [1.0, 3.0, -1.0, -9.0]]),
        "label": torch.tensor([[1.0, 0.0, 1.0, -1.0], [1.0, 0.0, 0.0, -1.0]]),  # -1: padding
    }
    assert measured(RefAccuracy(), **values) == (1, 2)
    assert measured(ClsAccuracy(), **values) == (4, 6)
    assert measured(ClsPosAccuracy(), **values) == (2, 3)
    assert measured(ClsPosFraction(), **values) == (3, 6)


def test_relationship_accuracy():
    values = {"relationship_logits": one_hot(0, 1, classes=2), "relationship_label": torch.tensor([0, 0])}
    assert measured(RelationshipAccuracy(), **values) == (1, 2)


@pytest.mark.parametrize("part, name", [("", "MLMAcc"), ("wvc", "MLMAccWVC"), ("aux", "MLMAccAUX")])
def test_mlm_accuracy(part, name):
    metric = MLMAccuracy(part)
    suffix = f"_{part}" if part else ""
    values = {
        "mlm_logits" + suffix: one_hot(0, 1, 2, 3).view(2, 2, 4),
        "mlm_label" + suffix: torch.tensor([[0, -1], [1, 3]]),
    }
    assert metric.name == name
    assert measured(metric, **values) == (2, 3)


def test_mvrc_accuracy_counts_regions_with_a_distribution():
    label = torch.tensor([[[0.7, 0.35], [0.0, 0.0], [0.4, 0.6]]])
    values = {"mvrc_logits": one_hot(0, 1, 0, classes=2).view(1, 3, 2), "mvrc_label": label}
    assert measured(MVRCAccuracy(), **values) == (1, 2)


def test_mean_leaves_out_or_counts_a_missing_output():
    metric, counting = Mean("mlm_loss", "MLMLoss"), Mean("mlm_loss", count_missing=True)
    for values in ({"mlm_loss": torch.tensor([2.0, 4.0])}, {}):  # one loss per replica is averaged
        metric.update(values)
        counting.update(values)
    assert (metric.name, metric.compute()) == ("MLMLoss", 3)
    assert (counting.name, counting.compute()) == ("mlm_loss", 1.5)


def test_missing_prediction_is_an_error_that_names_it():
    with pytest.raises(KeyError, match="'label_logits'.*'label'"):
        Accuracy().update({"label": torch.tensor([1])})


def test_counts_beyond_float32():
    metric = Mean("loss")
    metric.load_state_dict({"sum": 2.0**24, "count": 2**24})
    metric.update({"loss": torch.tensor(1.0)})
    assert metric.state_dict() == {"sum": 2**24 + 1, "count": 2**24 + 1}


def test_update_keeps_no_graph():
    loss = torch.tensor(1.0, requires_grad=True) * 2
    metric = Mean("loss")
    metric.update({"loss": loss})
    assert not metric.reduce().requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_updates_do_not_wait_for_the_gpu():
    values = {
        "label_logits": torch.eye(4),
        "label": torch.arange(4),
        "loss": torch.tensor(1.0),
        "mlm_logits": torch.eye(4).view(2, 2, 4),
        "mlm_label": torch.arange(4).view(2, 2),
        "mvrc_logits": torch.eye(4).view(2, 2, 4),
        "mvrc_label": torch.eye(4).view(2, 2, 4),
    }
    on_gpu = {name: tensor.cuda() for name, tensor in values.items()}
    group = MetricGroup([Accuracy(), Mean("loss"), MLMAccuracy(), MVRCAccuracy(), Mean("never")])
    group.update(on_gpu)  # the first one moves the counters there
    torch.cuda.set_sync_debug_mode("error")
    try:
        group.update(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    never = group.compute().pop("never")
    assert math.isnan(never)


class TestGroup:
    def test_update_compute_reset(self):
        group = MetricGroup([Accuracy(), Mean("ans_loss", "AnsLoss")])
        group.update({"label_logits": one_hot(0, 1), "label": torch.tensor([0, 0]), "ans_loss": torch.tensor(3.0)})
        assert group.compute() == {"Acc": 0.5, "AnsLoss": 3}
        group.reset()
        assert all(math.isnan(value) for value in group.compute().values())

    def test_state_goes_on(self):
        group = MetricGroup([Mean("a"), Mean("b")])
        group.update({"a": torch.tensor(1.0)})
        resumed = MetricGroup([Mean("a"), Mean("new")])
        resumed.load_state_dict(group.state_dict())
        resumed.update({"a": torch.tensor(2.0), "new": torch.tensor(5.0)})
        assert resumed.compute() == {"a": 1.5, "new": 5}

    def test_same_name_raises(self):
        with pytest.raises(ValueError, match="same name"):
            MetricGroup([Mean("a"), Mean("b", "a")])

    def test_empty(self):
        assert MetricGroup([]).compute() == {}
