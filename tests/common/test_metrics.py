import math

import pytest
import torch

from common.metrics import (
    Accuracy,
    Mean,
    MetricGroup,
    loss_means,
)
from pretrain.metrics import MLMAccuracy, MVRCAccuracy
from tests.metrics import measured, one_hot


def test_nothing_counted_is_nan():
    assert math.isnan(Accuracy().compute())


def test_accuracy_leaves_out_unlabelled_rows():
    values = {"label_logits": one_hot(0, 1, 2), "label": torch.tensor([0, -1, 3])}
    assert measured(Accuracy(), **values) == (1, 2)


def test_accuracy_of_flat_choices():
    values = {"label_logits": one_hot(0, 1).view(-1), "label": one_hot(0, 2).long().view(-1)}
    assert measured(Accuracy(), **values) == (1, 2)


def test_mean_leaves_out_or_counts_a_missing_output():
    metric, counting = Mean("mlm_loss", "MLMLoss"), Mean("mlm_loss", count_missing=True)
    for values in ({"mlm_loss": torch.tensor([2.0, 4.0])}, {}):  # one loss per replica is averaged
        metric.update(values)
        counting.update(values)
    assert (metric.name, metric.compute()) == ("MLMLoss", 3)
    assert (counting.name, counting.compute()) == ("mlm_loss", 1.5)


def test_loss_means_have_the_names_of_the_log():
    assert [(m.key, m.name) for m in loss_means((("ans_loss", "AnsLoss"),))] == [("ans_loss", "AnsLoss")]


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
