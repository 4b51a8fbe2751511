"""Places of a batch: those of its masks and targets, and all that a module needs so as not to wait for a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.config import Config, dataset_sections
from common.data.sample import Batch
from common.places import PackedSequences, Places, target_places, true_places
from common.task import load_task
from tests.made_up import config, made_up_batch

TASKS = ("vqa", "vcr", "refcoco", "pretrain")
WAITS = {"nonzero", "masked_select", "_local_scalar_dense", "equal", "unique_dim", "_unique2"}


class Waits(TorchDispatchMode):
    """Lists the operators of a context that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name.startswith(("index", "_index")) and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], list) else [])
        )
        if name in WAITS or by_mask:
            self.found.append(name)
        return func(*args, **kwargs or {})


def cases() -> list[Any]:
    pixels = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}
    changes = {
        "vqa": {"DATASET.ANSWER_VOCAB_SIZE": 5},
        "vqa from pixels": {"DATASET.ANSWER_VOCAB_SIZE": 5, **pixels},
        "vcr": {"NETWORK.CLASSIFIER_SIGMOID": False},  # one_hot reads the labels, on a CPU alone
        "vcr from features": {
            "NETWORK.IMAGE_FEAT_PRECOMPUTED": True,
            "DATASET.REGION_PATH": "x",
            "NETWORK.CLASSIFIER_SIGMOID": False,
        },
        "refcoco": {},
        "pretrain": {"NETWORK.VLBERT.visual_region_classes": 7},
        "pretrain by sample": {
            "NETWORK.VLBERT.visual_region_classes": 7,
            "NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST": True,
            "NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST": True,
        },
        "pretrain from pixels": {"NETWORK.VLBERT.visual_region_classes": 7, **pixels},
    }
    return [pytest.param(name.split()[0], change, id=name) for name, change in changes.items()]


def batch_of(task: str, cfg: Config, **sizes: Any) -> Batch:
    return made_up_batch(task, cfg, 3, words=7, boxes=5, **sizes)


def by_hand(batch: Batch) -> Batch:
    """The batch without places."""
    without = {"places": Places(), "auxiliary": tuple(by_hand(b) for b in batch.auxiliary)}
    return Batch(**vars(batch) | without)


@pytest.mark.parametrize("task", TASKS)
def test_the_places_of_a_batch_are_those_of_its_masks(task: str) -> None:
    cfg = config(task)
    batch = batch_of(task, cfg)
    for each in (batch, *batch.auxiliary):
        places = each.places
        assert places.boxes.tolist() == [i for i, real in enumerate(each.box_mask.flatten().tolist()) if real]
        mask, boxes = (
            each.text_mask.flatten(0, -2),
            each.box_mask.sum(1).repeat_interleave(each.text_mask[0, ..., 0].numel()),
        )
        lengths = mask.sum(1) + boxes + 1
        assert places.sequences.length == max(lengths.tolist())
        want = [[sample, position] for sample, n in enumerate(lengths.tolist()) for position in range(n)]
        assert places.sequences.at.t().tolist() == want
        for name, found in places.targets.items():
            target = each.targets[name].flatten().tolist()
            assert found.tolist() == [i for i, v in enumerate(target) if (v if isinstance(v, bool) else v != -1)]
    if task == "pretrain":
        assert set(batch.places.targets) == {"mlm_labels", "mvrc_mask"}
        assert len(batch.auxiliary) == len(dataset_sections(cfg)) - 1 > 0
        assert all(set(each.places.targets) == {"mlm_labels"} for each in batch.auxiliary)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(("task", "changes"), cases())
def test_a_step_makes_no_selection_by_a_mask(task: str, changes: dict[str, Any], fast: bool) -> None:
    """A batch of collate has all that a step needs. One without places gives the same loss and gradients."""
    cfg = config(task, {**changes, "NETWORK.FAST_PATH": fast})
    torch.manual_seed(0)
    model = load_task(task).build_model(cfg).eval()
    batch = batch_of(task, cfg)
    results = []
    for given in (batch, by_hand(batch)):
        model.zero_grad()
        with Waits() as waits:
            output = model(given)
            output.loss.backward()
        results.append((output, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, waits.found))
    (output, grads, found), (other, other_grads, other_found) = results
    assert found == []
    assert other_found  # so the list above would not be empty either
    torch.testing.assert_close(output.losses, other.losses, rtol=0, atol=0)
    torch.testing.assert_close(output.predictions, other.predictions, rtol=0, atol=0)
    torch.testing.assert_close(grads, other_grads, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"NETWORK.BLIND": True}, {"NETWORK.NO_OBJ_ATTENTION": True}])
def test_a_model_without_regions_reads_the_masks(change: dict[str, Any]) -> None:
    """The sequences of a batch hold its regions, and those of such a model hold words alone."""
    cfg = config("vcr", {**change, "NETWORK.ENABLE_CNN_REG_LOSS": False})
    torch.manual_seed(0)
    model, batch = load_task("vcr").build_model(cfg).eval(), batch_of("vcr", cfg)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).predictions, model(by_hand(batch)).predictions, rtol=0, atol=0)


def test_targets() -> None:
    assert target_places(torch.tensor([[5, -1], [-1, 0]])).tolist() == [0, 3]
    assert target_places(torch.tensor([[False, True], [True, False]])).tolist() == [1, 2]


def test_sequences_below_each_other() -> None:
    first, second = (PackedSequences.of_lengths(torch.tensor(lengths)) for lengths in ([2, 1], [3]))
    both = PackedSequences.joined([first, second], [2, 1])
    assert both.length == 3
    assert torch.equal(both.at, PackedSequences.of_lengths(torch.tensor([2, 1, 3])).at)


def test_places_move_with_the_batch() -> None:
    batch = batch_of("pretrain", config("pretrain"))
    moved = batch.to("meta").places
    assert {t.device.type for t in (moved.boxes, moved.sequences.at, *moved.targets.values())} == {"meta"}
    assert moved.sequences.length == batch.places.sequences.length
    assert torch.equal(true_places(batch.box_mask), batch.to("cpu").places.boxes)
