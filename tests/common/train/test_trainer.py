"""Original 3.5 to 3.24: learning rate of each update, loop, validation, checkpoints."""

import errno
import logging
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from common import distributed
from common.errors import CheckpointError
from common.log import RunWriter, setup_logging
from common.precision import Precision
from common.train.progress import Progress
from common.train.schedules import PlateauSchedule
from common.train.signals import STOPS, Stopped
from common.train.trainer import Trainer
from common.train.trainer_state import Position, rng_state, set_rng_state
from common.weights import checkpoint
from common.weights.checkpoint import (
    best_path,
    epoch_path,
    find_resume,
    latest_path,
    load_file,
)
from tests.common.train.toy import (
    LR,
    PREFIX,
    ToyDataset,
    ToyModel,
    toy_trainer,
    weights,
)


def learning_rates(trainer: Trainer) -> list[float]:
    """The learning rate of each optimizer step from now on, in a list that fills as the run goes."""
    seen: list[float] = []
    trainer.optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append(opt.param_groups[0]["lr"]))
    return seen


def losses(trainer: Trainer) -> dict[int, float]:
    return {line["step"]: line["Train-Loss"] for line in trainer.writer.lines if line["kind"] == "train"}


def models(folder: Path) -> list[str]:
    return sorted(p.name.removeprefix(f"{PREFIX}-").removesuffix(".model") for p in folder.iterdir())


def resumed(folder: Path, path: Path, **settings) -> Trainer:
    """A fresh trainer that went on from a checkpoint file."""
    trainer = toy_trainer(folder, **settings)
    trainer.load_state_dict(load_file(path), str(path), checkpoint.epoch_of(path, PREFIX))
    return trainer


def by_hand(batches: list[list[int]], accumulate: int, clip: float = 0.0) -> tuple[torch.Tensor, list[float]]:
    """The toy run written out: gradient descent with rate LR. Returns weights, and gradient norms before clipping."""
    dataset = ToyDataset()
    weight, bias, norms = torch.zeros(4), torch.zeros(1), []
    grad_w, grad_b = torch.zeros(4), torch.zeros(1)
    for n, batch in enumerate(batches, 1):
        samples = [dataset.sample(i, random.Random(0)) for i in batch]
        x, y = torch.stack([s.im_info for s in samples]), torch.stack([s.targets["y"] for s in samples])
        error = 2 * (x @ weight + bias - y) / len(batch) / accumulate
        grad_w, grad_b = grad_w + x.T @ error, grad_b + error.sum()
        if n % accumulate == 0:
            norm = float(torch.cat([grad_w, grad_b]).norm())
            norms.append(norm)
            factor = min(1.0, clip / norm) if clip else 1.0
            weight, bias = weight - LR * factor * grad_w, bias - LR * factor * grad_b
            grad_w, grad_b = torch.zeros(4), torch.zeros(1)
    return torch.cat([weight, bias]), norms


EPOCH = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


class TestUpdates:
    def test_update_k_uses_schedule_k(self, tmp_path):
        """Original 3.5: s = k, so a schedule that starts at 0 has a first update that is not."""
        trainer = toy_trainer(tmp_path, schedule=lambda step: step / 8)
        seen = learning_rates(trainer)
        trainer.fit()
        assert seen == pytest.approx([LR * k / 8 for k in range(1, 11)])

    def test_it_still_does_after_a_resume(self, tmp_path):
        toy_trainer(tmp_path, schedule=lambda step: step / 8, end_epoch=1).fit()
        trainer = resumed(tmp_path, epoch_path(tmp_path, PREFIX, 0), schedule=lambda step: step / 8)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(LR * 5 / 8)  # that of the last update
        seen = learning_rates(trainer)
        trainer.fit()
        assert seen == pytest.approx([LR * k / 8 for k in range(6, 11)])

    def test_accumulation_spans_epochs(self, tmp_path):
        """Original 3.11: 2 epochs of 5 batches are 5 updates of 2, the third one across the border."""
        trainer = toy_trainer(tmp_path, momentum=0.0, accumulate=2)
        trainer.fit()
        assert (trainer.position.step, trainer.position.updates) == (10, 5)
        torch.testing.assert_close(weights(trainer), by_hand(EPOCH + EPOCH, 2)[0])

    def test_gradients_of_an_open_cycle_are_saved(self, tmp_path):
        whole = toy_trainer(tmp_path / "whole", accumulate=2)
        whole.fit()
        path = epoch_path(tmp_path / "whole", PREFIX, 0)
        content = load_file(path)
        assert content["run"]["gradients"].keys() == {"linear.weight", "linear.bias"}
        assert load_file(epoch_path(tmp_path / "whole", PREFIX, 1))["run"]["gradients"] == {}
        trainer = resumed(tmp_path / "b", path, accumulate=2)
        trainer.fit()
        assert torch.equal(weights(trainer), weights(whole))

        content["run"]["gradients"] = {}  # what was lost in the original
        forgetful = toy_trainer(tmp_path / "c", accumulate=2)
        forgetful.load_state_dict(content, "x")
        forgetful.fit()
        assert not torch.allclose(weights(forgetful), weights(whole))

    def test_clipping(self, tmp_path):
        """The norm before clipping is logged (original 3.12)."""
        trainer = toy_trainer(tmp_path, momentum=0.0, clip_norm=0.7)
        trainer.fit()
        want, norms = by_hand(EPOCH + EPOCH, 1, clip=0.7)
        assert min(norms) < 0.7 < max(norms)  # both cases
        torch.testing.assert_close(weights(trainer), want)
        assert trainer.writer.column("grad-para/Total-Norm") == pytest.approx(norms, rel=1e-4)

    def test_adamw_clips_in_its_step(self, tmp_path):
        """Its step divides the gradients by the norm over the limit, or by 1 below the limit."""
        trainer = toy_trainer(tmp_path, adamw=True, clip_norm=0.7)
        scales = []
        trainer.optimizer.register_step_pre_hook(lambda opt, args, kwargs: scales.append(float(kwargs["grad_scale"])))
        trainer.fit()
        norms = trainer.writer.column("grad-para/Total-Norm")
        assert scales == pytest.approx([max(1.0, norm / 0.7) for norm in norms], rel=1e-4)
        assert min(norms) < 0.7 < max(norms)  # both cases

    def test_no_norm_without_clipping(self, tmp_path):
        trainer = toy_trainer(tmp_path)
        trainer.fit()
        assert trainer.writer.column("grad-para/Total-Norm") == []


class TestLog:
    def test_lines(self, tmp_path):
        """Train-Loss is the loss over the micro-batches of an update, as in the release (original 3.13)."""
        trainer = toy_trainer(tmp_path, accumulate=2, end_epoch=1, momentum=0.0)
        trainer.fit()
        lines = trainer.writer.lines
        assert [(line["kind"], line["step"], line["epoch"], line["batch"]) for line in lines] == [
            ("train", n, 0, n) for n in range(1, 6)
        ]
        data = ToyDataset()
        first = [data.sample(i, random.Random(0)).targets["y"].item() ** 2 for i in range(2)]  # weights are zero
        assert lines[0]["Train-Loss"] == pytest.approx(sum(first) / 2 / 2)
        assert lines[0]["Train-Square"] == pytest.approx(sum(first) / 2)
        assert lines[0]["Initial-LR/Group_0"] == LR

    def test_period(self, tmp_path):
        """The first batch of an epoch, every period after it, and the last one."""
        trainer = toy_trainer(tmp_path, batch_size=1, log_every=4)
        trainer.fit()
        assert [line["step"] for line in trainer.writer.lines] == [1, 5, 9, 10, 11, 15, 19, 20]

    def test_speed_and_time_left(self, tmp_path, monkeypatch, caplog):
        """Of all processes, until the end of the last epoch."""
        asked = []

        def measure(progress, step, remaining, world):
            asked.append((step, remaining, world))
            return 12.34, 3661.0

        monkeypatch.setattr(Progress, "measure", measure)
        monkeypatch.setattr(distributed, "world_size", lambda: 3)
        trainer = toy_trainer(tmp_path, log_every=2, end_epoch=3)
        trainer.position = Position(epoch=1, step=5)
        with caplog.at_level(logging.INFO):
            trainer.fit()
        assert asked == [(6, 9, 3), (8, 7, 3), (10, 5, 3), (11, 4, 3), (13, 2, 3), (15, 0, 3)]
        assert set(trainer.writer.column("samples_per_second")) == {12.34}
        assert "Epoch[1] Batch [1/5] 12.3 samples/s, ETA 1h 1m 1s: Square" in caplog.text

    def test_metrics_start_anew_each_epoch(self, tmp_path):
        trainer = toy_trainer(tmp_path)
        trainer.fit()
        values = [line["Train-Square"] for line in trainer.writer.lines]
        parts = [losses(trainer)[n] for n in range(1, 11)]
        assert values[4] == pytest.approx(sum(parts[:5]) / 5) and values[5] == pytest.approx(parts[5])


class TestNonFinite:
    bad = ToyDataset(bad=(5,))  # in batch 2

    def test_stop_names_place_and_losses_and_keeps_the_weights(self, tmp_path):
        before = toy_trainer(tmp_path / "a", max_updates=2)
        before.fit()
        trainer = toy_trainer(tmp_path / "b", self.bad)
        with pytest.raises(FloatingPointError, match=r"epoch 0 batch 2, update 3: .*'square': nan") as error:
            trainer.fit()
        assert "TRAIN.NONFINITE skip" in str(error.value)
        assert torch.equal(weights(trainer), weights(before)) and weights(trainer).any()

    @pytest.mark.parametrize("settings", [{}, {"max_updates": 3}, {"accumulate": 3, "end_epoch": 1}])
    def test_a_decision_that_is_read_late_keeps_the_weights_too(self, tmp_path, settings):
        """The device leaves the update out. The host learns of it before the next update and before the run ends."""
        late = {"adamw": True, "read_late": True, "log_every": 100, "clip_norm": 1.0}
        trainer = toy_trainer(tmp_path / "b", self.bad, **late | settings)
        with pytest.raises(FloatingPointError, match=r"epoch 0 batch 2, update [13]: .*'square': nan"):
            trainer.fit()
        before = toy_trainer(tmp_path / "a", **late | settings | {"max_updates": 2})
        before.fit()
        assert torch.equal(weights(trainer), weights(before) if "accumulate" not in settings else torch.zeros(5))
        assert not list((tmp_path / "b").glob("*.model"))

    def test_a_decision_that_is_read_late_changes_no_finite_run(self, tmp_path):
        runs = [toy_trainer(tmp_path / str(late), adamw=True, read_late=late, clip_norm=1.0) for late in (False, True)]
        for trainer in runs:
            trainer.fit()
        assert torch.equal(*map(weights, runs)) and losses(runs[0]) == losses(runs[1])

    def test_skip_counts_and_goes_on(self, tmp_path, caplog):
        trainer = toy_trainer(tmp_path, self.bad, nonfinite="skip", momentum=0.0, clip_norm=1e6)
        with caplog.at_level(logging.WARNING):
            trainer.fit()
        torch.testing.assert_close(weights(trainer), by_hand((EPOCH[:2] + EPOCH[3:]) * 2, 1)[0])
        assert trainer.position.skipped == 2 and trainer.position.updates == 8
        assert "epoch 1 batch 2" in caplog.text and "2 so far" in caplog.text
        assert load_file(epoch_path(tmp_path, PREFIX, 1))["run"]["position"]["skipped"] == 2

    def test_the_schedule_does_not_move_on_an_update_that_is_left_out(self, tmp_path):
        trainer = toy_trainer(tmp_path, self.bad, nonfinite="skip", schedule=lambda step: step / 8)
        seen = learning_rates(trainer)
        trainer.fit()
        assert seen == pytest.approx([LR * k / 8 for k in range(1, 9)])

    def test_one_that_is_left_out_saves_no_second_position(self, tmp_path, monkeypatch):
        saved = []
        monkeypatch.setattr(Trainer, "save", lambda t, path, also=None: saved.append((path.name, t.position.step)))
        toy_trainer(tmp_path, self.bad, nonfinite="skip", save_updates=2, end_epoch=1).fit()
        assert saved == [(f"{PREFIX}-latest.model", 2), (f"{PREFIX}-latest.model", 5), (f"{PREFIX}-0000.model", 5)]

    def test_the_whole_update_is_left_out(self, tmp_path):
        trainer = toy_trainer(tmp_path, self.bad, nonfinite="skip", momentum=0.0, accumulate=5, end_epoch=1)
        trainer.fit()
        assert trainer.position.skipped == 1 and not weights(trainer).any()

    def test_a_gradient_that_is_not_finite(self, tmp_path):
        """The loss may be finite where its gradient is not; the norm tells."""
        trainer = toy_trainer(tmp_path, clip_norm=1.0)
        trainer.model.linear.weight.register_hook(lambda grad: grad * float("inf"))
        with pytest.raises(FloatingPointError, match="gradient norm (inf|nan)"):
            trainer.fit()
        assert not weights(trainer).any()


def scores(*values: float):
    """A validation that gives the values one after the other."""
    left = list(values)
    return lambda should_stop: {"Acc": left.pop(0), "Other": 1.0}


class TestValidationAndCheckpoints:
    def test_best_is_kept_also_in_epochs_that_are_not_saved(self, tmp_path):
        """Original 3.18."""
        trainer = toy_trainer(tmp_path, end_epoch=3, save_every=3, validate=scores(0.2, 0.9, 0.5))
        trainer.fit()
        assert models(tmp_path) == ["0002", "best"]
        best = load_file(best_path(tmp_path, PREFIX))
        assert best["validation_monitor"] == {"best_epoch": 1, "best_val": 0.9}
        assert best["run"]["position"] == {"epoch": 2, "batch": 0, "step": 10, "updates": 10, "skipped": 0}
        until = toy_trainer(tmp_path / "two", end_epoch=2)
        until.fit()
        assert torch.equal(best["state_dict"]["linear.weight"], until.model.linear.weight)
        assert load_file(epoch_path(tmp_path, PREFIX, 2))["validation_monitor"]["best_epoch"] == 1

    def test_every_epoch_is_saved_and_the_last_one_in_any_case(self, tmp_path):
        toy_trainer(tmp_path / "a", end_epoch=3).fit()
        assert models(tmp_path / "a") == ["0000", "0001", "0002"]
        toy_trainer(tmp_path / "b", end_epoch=5, save_every=2).fit()
        assert models(tmp_path / "b") == ["0001", "0003", "0004"]

    @pytest.mark.parametrize(("keep", "left"), [(0, "0000 0001 0002 0003"), (1, "0003"), (3, "0001 0002 0003")])
    def test_the_newest_epochs_are_kept_and_the_best_one(self, tmp_path, keep, left):
        values = iter([0.9, 0.1, 0.1, 0.1])
        (tmp_path / f"{PREFIX}-0007.model").touch()  # of a later epoch, and of another run
        (tmp_path / f"x{PREFIX}-0000.model").touch()
        toy_trainer(tmp_path, end_epoch=4, keep_epochs=keep, validate=lambda stop: {"Acc": next(values)}).fit()
        assert models(tmp_path) == [*left.split(), "0007", "best", f"x{PREFIX}-0000"]
        assert load_file(best_path(tmp_path, PREFIX))["validation_monitor"]["best_epoch"] == 0

    @pytest.mark.parametrize("save_every", [1, 3])  # beside the checkpoint of its epoch, and alone
    def test_the_best_one_without_the_run(self, tmp_path, save_every):
        values = iter([0.1, 0.9, 0.2])
        settings = {"end_epoch": 3, "save_every": save_every, "best_weights": True}
        trainer = toy_trainer(tmp_path, validate=lambda stop: {"Acc": next(values)}, **settings)
        trainer.fit()
        best = load_file(best_path(tmp_path, PREFIX))
        assert best["validation_monitor"] == {"best_epoch": 1, "best_val": 0.9}
        assert best.keys() == load_file(epoch_path(tmp_path, PREFIX, 2)).keys() - {"optimizer", "run"}

    def test_an_equal_value_is_not_better(self, tmp_path):
        """Original 3.17."""
        trainer = toy_trainer(tmp_path, end_epoch=3, validate=scores(0.5, 0.5, float("nan")))
        trainer.fit()
        assert (trainer.best_epoch, trainer.best_value) == (0, 0.5)
        assert load_file(best_path(tmp_path, PREFIX))["run"]["position"]["epoch"] == 1

    def test_validation_period(self, tmp_path):
        """Original 3.16; the last epoch is validated in any case."""
        trainer = toy_trainer(tmp_path, end_epoch=5, validate_every=2, validate=scores(0.1, 0.2, 0.3))
        trainer.fit()
        val = [(line["epoch"], line["step"], line["Val-Acc"]) for line in trainer.writer.lines if line["kind"] == "val"]
        assert val == [(1, 2, 0.1), (3, 4, 0.2), (4, 5, 0.3)]

    def test_the_position_is_saved_every_so_many_updates(self, tmp_path, monkeypatch):
        saved = []
        monkeypatch.setattr(Trainer, "save", lambda t, path, also=None: saved.append((path.name, t.position.step)))
        toy_trainer(tmp_path, accumulate=2, save_updates=2).fit()  # updates after steps 2, 4, 6, 8, 10
        latest, epoch = f"{PREFIX}-latest.model", f"{PREFIX}-000{{}}.model"
        assert saved == [(latest, 4), (epoch.format(0), 5), (latest, 8), (epoch.format(1), 10)]

    def test_an_epoch_checkpoint_replaces_the_position(self, tmp_path):
        toy_trainer(tmp_path, save_updates=2).fit()
        assert models(tmp_path) == ["0000", "0001"]


class TestPlateau:
    def test_observed_after_validation_and_resumed(self, tmp_path):
        """Original 3.7: patience 1, so the second epoch in a row without progress cuts the rate."""

        def trainer(folder: Path, end: int, *values: float) -> Trainer:
            return toy_trainer(folder, end_epoch=end, schedule=PlateauSchedule(0.1), validate=scores(*values))

        whole = trainer(tmp_path / "whole", 5, 0.5, 0.5, 0.5, 0.5, 0.5)
        seen = learning_rates(whole)
        whole.fit()
        assert seen == pytest.approx([LR] * 15 + [LR / 10] * 10)

        trainer(tmp_path / "parts", 2, 0.5, 0.5).fit()
        second = trainer(tmp_path / "parts", 5, 0.5, 0.5, 0.5)
        path = epoch_path(tmp_path / "parts", PREFIX, 1)
        second.load_state_dict(load_file(path), str(path))
        rest = learning_rates(second)
        second.fit()
        assert rest == pytest.approx([LR] * 5 + [LR / 10] * 10)
        assert torch.equal(weights(second), weights(whole))

    def test_a_cut_rate_is_there_again_after_a_resume(self, tmp_path):
        values = (0.5, 0.5, 0.5, 0.5)
        toy_trainer(tmp_path, end_epoch=4, schedule=PlateauSchedule(0.1), validate=scores(*values)).fit()
        trainer = resumed(tmp_path, epoch_path(tmp_path, PREFIX, 3), schedule=PlateauSchedule(0.1), end_epoch=5)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(LR / 10)


RANDOM = {"shuffle": True, "dropout": 0.5, "dataset": ToyDataset(noise=1.0)}  # order, dropout and samples are drawn


def test_the_trainer_names_what_it_does(tmp_path, monkeypatch):
    """For the line of a rank that hangs. The short time-out begins with the first update that is made."""
    said: list[str] = []
    monkeypatch.setattr(distributed, "doing", said.append)
    monkeypatch.setattr(distributed, "started_up", lambda: said.append("started"))
    toy_trainer(tmp_path, ToyDataset(bad=(0,)), nonfinite="skip", end_epoch=1).fit()
    assert said[:7] == [
        "epoch 0 batch 0: reading",
        "epoch 0 batch 0: forward and backward",
        "epoch 0 batch 0, update 1: optimizer step",
        "epoch 0 batch 1: reading",
        "epoch 0 batch 1: forward and backward",
        "epoch 0 batch 1, update 1: optimizer step",
        "started",
    ]
    assert f"writing {epoch_path(tmp_path, PREFIX, 0)}" in said


class TestMaxUpdates:
    @pytest.mark.parametrize(
        ("updates", "file"),
        [(3, "latest"), (5, "0000"), (7, "latest"), (10, "0001")],  # 5 and 10 are ends of epochs
    )
    @pytest.mark.parametrize("save_every", [1, 3])
    def test_a_longer_run_goes_on_as_if_nothing_had_been(self, tmp_path, updates, file, save_every):
        whole = toy_trainer(tmp_path / "whole", end_epoch=3, **RANDOM)
        whole.fit()
        first = toy_trainer(tmp_path / "parts", end_epoch=3, max_updates=updates, save_every=save_every, **RANDOM)
        first.fit()
        assert first.position.updates == updates
        assert models(tmp_path / "parts")[-1] == file
        path, content = checkpoint.find_resume(tmp_path / "parts", PREFIX, 0, 3)
        second = toy_trainer(tmp_path / "parts", end_epoch=3, base_seed=99, **RANDOM)  # the seed of the file counts
        second.load_state_dict(content, str(path))
        second.fit()
        assert {**losses(first), **losses(second)} == losses(whole)
        assert torch.equal(weights(second), weights(whole))
        assert models(tmp_path / "parts")[-1] == "0002"

    def test_the_same_limit_again_does_nothing(self, tmp_path):
        toy_trainer(tmp_path, max_updates=3).fit()
        again = resumed(tmp_path, latest_path(tmp_path, PREFIX), max_updates=3)
        again.fit()
        assert losses(again) == {} and again.position.updates == 3

    def test_the_end_is_validated(self, tmp_path):
        toy_trainer(tmp_path, max_updates=3, validate=scores(0.7)).fit()
        assert models(tmp_path) == ["best", "latest"]
        assert load_file(best_path(tmp_path, PREFIX))["validation_monitor"] == {"best_epoch": 0, "best_val": 0.7}


class Sender:
    """Sends a signal to this process after so many batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, signum: int, batches: int) -> None:
        original = Trainer._micro_step

        def step(trainer, batch):
            original(trainer, batch)
            if trainer.position.step + 1 == batches:
                os.kill(os.getpid(), signum)

        monkeypatch.setattr(Trainer, "_micro_step", step)


class TestSignals:
    @pytest.mark.parametrize("signum", STOPS)
    @pytest.mark.parametrize("batches", [1, 5, 8])  # inside an update; the last one of an epoch; in the second epoch
    def test_a_stopped_run_goes_on(self, tmp_path, monkeypatch, signum, batches):
        whole = toy_trainer(tmp_path / "whole", accumulate=2, **RANDOM)
        whole.fit()
        handlers = [signal.getsignal(s) for s in STOPS]
        first = toy_trainer(tmp_path / "parts", accumulate=2, **RANDOM)
        with monkeypatch.context() as patch:
            Sender(patch, signum, batches)
            with pytest.raises(Stopped, match=signal.Signals(signum).name) as stopped:
                first.fit()
        assert stopped.value.signum == signum and first.position.step == batches
        assert [signal.getsignal(s) for s in STOPS] == handlers
        second = resumed(tmp_path / "parts", latest_path(tmp_path / "parts", PREFIX), accumulate=2, **RANDOM)
        second.fit()
        assert losses(first).keys().isdisjoint(losses(second))
        assert {**losses(first), **losses(second)} == losses(whole)
        assert torch.equal(weights(second), weights(whole))
        final = [load_file(epoch_path(tmp_path / name, PREFIX, 1))["run"]["metrics"] for name in ("whole", "parts")]
        assert final[0] == final[1]

    def test_an_ignored_hangup_stays_ignored(self, tmp_path, monkeypatch):
        """As under nohup."""
        Sender(monkeypatch, signal.SIGHUP, 3)
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            trainer = toy_trainer(tmp_path)
            trainer.fit()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)
        assert trainer.position.epoch == 2

    def test_a_stop_during_validation_validates_again(self, tmp_path):
        from common.train.evaluator import Interrupted

        def interrupted(should_stop):
            os.kill(os.getpid(), signal.SIGTERM)
            assert should_stop()
            raise Interrupted

        trainer = toy_trainer(tmp_path, validate=interrupted)
        with pytest.raises(Stopped):
            trainer.fit()
        assert models(tmp_path) == ["latest"]
        again = resumed(tmp_path, latest_path(tmp_path, PREFIX), validate=scores(0.4, 0.3))
        again.fit()
        assert sorted(losses(again)) == [6, 7, 8, 9, 10] and again.best_epoch == 0
        assert models(tmp_path) == ["0000", "0001", "best"]

    def test_a_second_interrupt_ends_at_once(self, tmp_path, monkeypatch):
        original = Trainer._micro_step

        def step(trainer, batch):
            original(trainer, batch)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Trainer, "_micro_step", step)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        try:
            with pytest.raises(KeyboardInterrupt):
                toy_trainer(tmp_path).fit()
        finally:
            signal.signal(signal.SIGINT, before)


class TestFullDisk:
    """Saving fails from the second epoch on, of three."""

    def full(self, monkeypatch, epochs):
        from common.weights import checkpoint

        original = checkpoint.save_file

        def save(path, content, previous=None):
            if content["run"]["position"]["epoch"] in epochs:
                path.with_name(f".{path.name}.tmp").touch()
                raise OSError(errno.ENOSPC, "No space left on device")
            original(path, content, previous)

        monkeypatch.setattr(checkpoint, "save_file", save)

    def test_a_run_goes_on_and_saves_again(self, tmp_path, monkeypatch, caplog):
        self.full(monkeypatch, [2])
        trainer = toy_trainer(tmp_path, end_epoch=3)
        trainer.fit()
        assert "could not be written: [Errno 28] No space left on device. The run goes on" in caplog.text
        assert sorted(p.name for p in tmp_path.glob("toy-0*")) == ["toy-0000.model", "toy-0002.model"]

    def test_without_the_last_checkpoint_it_fails_and_the_next_start_ends_alike(self, tmp_path, monkeypatch):
        whole = toy_trainer(tmp_path / "whole", end_epoch=3, **RANDOM)
        whole.fit()
        folder = tmp_path / "parts"
        with monkeypatch.context() as patch:
            self.full(patch, [2, 3])
            with pytest.raises(CheckpointError, match="the last checkpoint could not be written.*the one before is in"):
                toy_trainer(folder, end_epoch=3, **RANDOM).fit()
        path, _ = find_resume(folder, PREFIX, 0, 3)
        assert path == epoch_path(folder, PREFIX, 0)
        again = resumed(folder, path, end_epoch=3, **RANDOM)
        again.fit()
        assert torch.equal(weights(again), weights(whole))


class TestRealFullDisk:
    @pytest.mark.parametrize("free", [0, 4096])  # for no byte; for a part of a checkpoint
    def test_a_run_goes_on_and_saves_again(self, small_disk, free, caplog):
        """The disk is full in epoch 1 of four, until epoch 2 is over."""
        folder = small_disk.folder / "run"
        whole = toy_trainer(folder.parent / "whole", end_epoch=4, **RANDOM)
        whole.fit()
        shutil.rmtree(folder.parent / "whole")
        epochs = iter(range(4))

        def validate(should_stop):
            epoch = next(epochs)
            if epoch == 1:
                small_disk.fill(free)
            if epoch == 2:
                small_disk.empty()
            return {"Acc": 0.0}

        setup_logging(folder / "toy.log")
        logging.getLogger().addHandler(caplog.handler)
        writer = RunWriter(folder)
        trainer = toy_trainer(folder, end_epoch=4, save_updates=1, validate=validate, **RANDOM)
        trainer.writer = writer
        trainer.fit()
        writer.close()
        assert "toy-0001.model could not be written: [Errno 28] No space left on device" in caplog.text
        assert models(folder / "..") == ["run"] and not list(folder.glob(".*"))
        assert [p.name for p in sorted(folder.glob("toy-0*"))] == ["toy-0000.model", "toy-0002.model", "toy-0003.model"]
        assert torch.equal(weights(trainer), weights(whole))
        for path in folder.glob("*.model"):
            load_file(path)

    def test_the_older_positions_stay(self, small_disk):
        trainer = toy_trainer(small_disk.folder)
        latest = latest_path(small_disk.folder, PREFIX)
        for updates in (1, 2):
            trainer.position.updates = updates
            trainer.save(latest)
        small_disk.fill(free=8192)
        trainer.position.updates = 3
        trainer.save(latest)
        assert load_file(latest)["run"]["position"]["updates"] == 2
        previous = checkpoint.previous_path(small_disk.folder, PREFIX)
        assert load_file(previous)["run"]["position"]["updates"] == 1


class TestResumeErrors:
    def test_a_file_of_weights_only(self, tmp_path):
        toy_trainer(tmp_path).fit()
        path = epoch_path(tmp_path, PREFIX, 0)
        content = load_file(path)
        del content["optimizer"]
        with pytest.raises(CheckpointError, match="has no optimizer"):
            toy_trainer(tmp_path).load_state_dict(content, str(path))

    def test_another_optimizer(self, tmp_path):
        toy_trainer(tmp_path).fit()
        path = epoch_path(tmp_path, PREFIX, 0)
        content = load_file(path)
        content["optimizer"]["param_groups"] *= 2
        with pytest.raises(CheckpointError, match="its optimizer is not the configured one"):
            toy_trainer(tmp_path).load_state_dict(content, str(path))

    def test_other_batches_inside_an_epoch_are_refused(self, tmp_path):
        toy_trainer(tmp_path, max_updates=3).fit()
        path = latest_path(tmp_path, PREFIX)
        with pytest.raises(ValueError, match=r"inside epoch 0, at batch 3; an epoch had 5 batches .*, now 10 and 1"):
            resumed(tmp_path, path, batch_size=1)
        with pytest.raises(ValueError, match=r"5 batches and 1 batches an update, now 5 and 2"):
            resumed(tmp_path, path, accumulate=2)

    def test_at_the_start_of_an_epoch_they_are_allowed(self, tmp_path):
        toy_trainer(tmp_path, end_epoch=1).fit()
        trainer = resumed(tmp_path, epoch_path(tmp_path, PREFIX, 0), batch_size=5)
        trainer.fit()
        assert sorted(losses(trainer)) == [6, 7] and trainer.position.epoch == 2

    def test_other_weights_are_refused(self, tmp_path):
        state = toy_trainer(tmp_path).state_dict()
        state["state_dict"]["linear.bias"] = torch.zeros(2)
        with pytest.raises(CheckpointError, match="linear.bias"):
            toy_trainer(tmp_path).load_state_dict(state, "x")


def drawn() -> list:
    return [random.random(), np.random.rand(), np.random.normal(), torch.rand(1).item()]


def test_rng_state_round_trip(tmp_path):
    """Through a file, which must load weights-only."""
    np.random.normal()  # leaves a cached second value behind
    torch.save(rng_state(), tmp_path / "rng")
    want = drawn()
    drawn()
    set_rng_state(load_file(tmp_path / "rng"))
    assert drawn() == want


class TestGeneratorOfTheGpu:
    """The device's generators are stood in for by a dict: GPU number -> state."""

    @pytest.fixture
    def gpus(self, monkeypatch) -> dict[int, torch.Tensor]:
        states = {i: torch.tensor([10 + i]) for i in range(4)}

        def put(state: torch.Tensor, device: torch.device) -> None:
            states[torch.device(device).index] = state

        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[torch.device(device).index])
        monkeypatch.setattr(torch.cuda, "set_rng_state", put)
        return states

    def test_a_run_goes_on_on_another_gpu_of_a_smaller_machine(self, tmp_path, gpus):
        first = toy_trainer(tmp_path)
        first.device = torch.device("cuda", 2)
        torch.save(first.state_dict(), tmp_path / "a.model")
        gpus.clear()
        second = toy_trainer(tmp_path)
        second.device = torch.device("cuda", 0)
        second.load_state_dict(load_file(tmp_path / "a.model"), "a.model")
        assert gpus == {0: torch.tensor([12])}

    @pytest.mark.parametrize(("made_on", "want"), [("cuda:2", 12), ("cuda", 10), (None, 10)])
    def test_an_old_file_has_the_states_of_all_gpus(self, tmp_path, gpus, made_on, want):
        content = toy_trainer(tmp_path).state_dict()
        content["run"]["rng"][0]["cuda"] = [torch.tensor([10 + i]) for i in range(3)]
        content["made_with"] = {"device": made_on} if made_on else {}
        trainer = toy_trainer(tmp_path)
        trainer.device = torch.device("cuda", 1)
        trainer.load_state_dict(content, "a.model")
        assert gpus[1] == torch.tensor([want])

    def test_an_old_file_without_that_gpu(self, gpus, caplog):
        set_rng_state(rng_state() | {"cuda": [torch.tensor([1])]}, "cuda:1", 3)
        assert gpus[1] == torch.tensor([11]) and "no random state of GPU 3" in caplog.text

    def test_a_cpu_goes_on_from_a_file_of_a_gpu_and_back(self, gpus):
        set_rng_state(rng_state("cuda:1"), "cpu")
        set_rng_state(rng_state("cpu"), "cuda:1")
        assert gpus == {i: torch.tensor([10 + i]) for i in range(4)}


def test_a_batch_without_targets_is_an_error(tmp_path, monkeypatch):
    from common.data.sample import ModelOutput

    monkeypatch.setattr(ToyModel, "forward", lambda self, batch: ModelOutput({"score": self.linear(batch.im_info)}))
    with pytest.raises(ValueError, match="no targets"):
        toy_trainer(tmp_path).fit()


class TestPrecision:
    """The toy run in each format; the tiny VQA in bf16 is in test_run.py."""

    @staticmethod
    def reference(folder: Path, **settings) -> Trainer:
        trainer = toy_trainer(folder, **settings)
        trainer.fit()
        return trainer

    @pytest.mark.parametrize(
        ("name", "scale"),
        [("bf16", "dynamic"), ("fp16", 128.0), ("fp16", "dynamic")],
        ids=["bf16", "static", "dynamic"],
    )
    def test_close_to_fp32(self, tmp_path, name, scale):
        want = self.reference(tmp_path / "fp32", clip_norm=0.25)
        # 65536, where a dynamic scale starts, overflows with gradients as large as these.
        precision = Precision(name, "cpu", scale, (1.0, 1024.0))
        trainer = toy_trainer(tmp_path / "half", precision=precision, clip_norm=0.25)
        trainer.fit()
        assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
        pairs = [(losses(trainer)[n], losses(want)[n]) for n in losses(want)]
        assert any(a != b for a, b in pairs)  # it did compute in another format
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=0.03, abs=0.01)
        if name == "fp16":
            assert trainer.precision.scale() == (128 if scale == 128.0 else 1024)

    def test_overflow_leaves_updates_out_until_the_scale_fits(self, tmp_path, caplog):
        """Their losses are finite, so this is no failure. The schedule waits, unlike that of original 3.10."""
        trainer = toy_trainer(tmp_path, schedule=lambda step: step / 8, precision=Precision("fp16", "cpu", "dynamic"))
        trainer.precision.load_state_dict({"scaler": trainer.precision.state_dict()["scaler"] | {"scale": 2.0**24}})
        rates = learning_rates(trainer)
        trainer.fit()
        at = trainer.position
        assert at.updates == len(rates) and at.updates + at.skipped == 10 and 0 < at.updates < 10
        assert trainer.precision.scale() == 2.0 ** (24 - at.skipped)
        assert rates == pytest.approx([LR * k / 8 for k in range(1, at.updates + 1)])
        assert f"update left out, {at.skipped} so far" in caplog.text and "in a row" not in caplog.text

    @pytest.mark.parametrize("scale", [2.0**40, "dynamic"])
    def test_a_scale_that_cannot_fall_ends_the_run(self, tmp_path, scale, caplog):
        """A static one, or a dynamic one at the end of its range (here it has one value)."""
        precision = Precision("fp16", "cpu", scale, (2.0**40, 2.0**40))
        trainer = toy_trainer(tmp_path, end_epoch=9, precision=precision)
        message = r"epoch 3 batch 4, update 1: the fp16 gradients overflowed, 20 in a row at the loss scale 1.0995"
        with pytest.raises(FloatingPointError, match=message):
            trainer.fit()
        assert caplog.text.count("the fp16 gradients overflowed") == 20 and not weights(trainer).any()
        assert (trainer.position.updates, trainer.position.skipped) == (0, 20)

    def test_the_run_goes_on_where_such_updates_are_skipped(self, tmp_path):
        precision = Precision("fp16", "cpu", 2.0**40)
        trainer = toy_trainer(tmp_path, end_epoch=9, nonfinite="skip", precision=precision)
        trainer.fit()
        assert trainer.position.skipped == 45

    def test_only_overflows_in_a_row_end_a_run(self, tmp_path):
        trainer = toy_trainer(tmp_path, end_epoch=9, precision=Precision("fp16", "cpu", 128.0))
        done = iter(range(45))

        def overflow(grad: torch.Tensor) -> torch.Tensor:
            return grad if next(done) % 20 == 19 else grad * float("inf")

        trainer.model.linear.weight.register_hook(overflow)
        trainer.fit()
        assert trainer.position.updates == 2 and trainer.position.skipped == 43

    @pytest.mark.parametrize("scale", [128.0, "dynamic"])
    def test_skipping_under_a_loss_scale(self, tmp_path, scale):
        precision = Precision("fp16", "cpu", scale, (1.0, 1024.0))
        trainer = toy_trainer(tmp_path, ToyDataset(bad=(5,)), nonfinite="skip", clip_norm=1.0, precision=precision)
        trainer.fit()
        assert trainer.position.skipped == 2 and weights(trainer).isfinite().all() and weights(trainer).any()
        assert precision.scale() == (128 if scale == 128.0 else 256)  # 1024, halved for each of the two

    def test_the_dynamic_scale_is_resumed(self, tmp_path):
        first = toy_trainer(tmp_path, end_epoch=1, precision=Precision("fp16", "cpu", "dynamic"))
        first.precision.load_state_dict({"scaler": first.precision.state_dict()["scaler"] | {"scale": 512.0}})
        first.fit()
        path = epoch_path(tmp_path, PREFIX, 0)
        assert resumed(tmp_path, path, precision=Precision("fp16", "cpu", "dynamic")).precision.scale() == 512
        assert resumed(tmp_path, path).precision.scale() == 1  # the format may change between runs
