"""Original 3.20 to 3.25 (content, loading, atomic) and 2.26 (no code)."""

import logging
import os
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import CheckpointError
from common.weights import checkpoint
from common.weights.checkpoint import (
    epoch_of,
    epoch_path,
    find_resume,
    latest_path,
    load_file,
    load_model,
)
from common.weights.checksums import content_checksums, damage
from tests.common.train.toy import PREFIX, toy_trainer, weights


def write(path: Path, epoch: int, batch: int = 0) -> Path:
    """A checkpoint whose next batch is `batch` of `epoch`."""
    run = {"position": {"epoch": epoch, "batch": batch}}
    checkpoint.save_file(path, {"state_dict": {"w": torch.tensor([float(epoch), batch])}, "run": run})
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestWriting:
    @pytest.mark.parametrize("exists", [True, False])
    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch, exists):
        path = tmp_path / "run" / "a.model"
        path.parent.mkdir()
        if exists:
            checkpoint.save_file(path, {"a": 1})

        def disk_full(content, f, **options):
            f.write(b"x" * 10_000)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", disk_full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save_file(path, {"a": 2})
        assert names(path.parent) == (["a.model"] if exists else [])
        if exists:
            assert load_file(path) == {"a": 1}

    def test_an_interrupt_while_writing_too(self, tmp_path, monkeypatch):
        path = tmp_path / "a.model"
        checkpoint.save_file(path, {"a": 1})

        def interrupted(content, f, **options):
            f.write(b"x")
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_file(path, {"a": 2})
        assert names(tmp_path) == ["a.model"] and load_file(path) == {"a": 1}

    def test_the_file_is_one_that_the_original_can_read(self, tmp_path):
        """The zip format came with PyTorch 1.6; the original needs 1.0 or 1.1."""
        checkpoint.save_file(tmp_path / "a.model", {"a": torch.zeros(2)})
        assert (tmp_path / "a.model").read_bytes()[:2] != b"PK"
        assert os.stat(tmp_path / "a.model").st_mode & 0o777 == 0o644

    @pytest.mark.parametrize("links", [True, False])
    def test_a_second_name_survives_the_first_one(self, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("no hard links")))
        first, second = tmp_path / "a.model", tmp_path / "b.model"
        second.write_bytes(b"old")
        checkpoint.save_file(first, {"a": 1})
        checkpoint.link(first, second)
        assert load_file(second) == {"a": 1}
        checkpoint.save_file(first, {"a": 2})
        assert load_file(second) == {"a": 1} and names(tmp_path) == ["a.model", "b.model"]


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


class TestReading:
    @pytest.mark.parametrize("new_format", [False, True])
    def test_code_is_refused(self, tmp_path, new_format):
        trace = tmp_path / "trace"
        content = {"state_dict": {}, "x": Bomb(trace)}
        torch.save(content, tmp_path / "a.model", _use_new_zipfile_serialization=new_format)
        with pytest.raises(CheckpointError, match="a.model: cannot be read"):
            load_file(tmp_path / "a.model")
        assert not trace.exists()
        torch.load(tmp_path / "a.model", weights_only=False)
        assert trace.exists()  # the bomb is live

    @pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
    def test_a_truncated_file_is_named(self, tmp_path, part):
        path = write(tmp_path / "a.model", 1)
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(CheckpointError, match="a.model: cannot be read"):
            load_file(path)

    def test_damaged_tensors_are_found_wherever_they_are(self, tmp_path):
        """A flipped bit or a zeroed page in any tensor. Where the file has a length or a name, it cannot be read."""
        draw = random.Random(0)
        trainer = toy_trainer(tmp_path, end_epoch=1)
        trainer.fit()
        path = epoch_path(tmp_path, PREFIX, 0)
        content, good = path.read_bytes(), load_file(path)
        found = {"damaged": 0, "cannot be read": 0, "no effect": 0}
        for number in range(150):
            at = draw.randrange(len(content))
            broken = bytearray(content)
            if number % 2:
                broken[at] ^= 1 << draw.randrange(8)
            else:
                broken[at : at + 512] = bytes(len(broken[at : at + 512]))
            path.write_bytes(broken)
            try:
                loaded = load_file(path)
            except CheckpointError as error:
                found["damaged" if "damaged" in str(error) else "cannot be read"] += 1
            else:  # what is not used: a name inside the pickle, zeros that were zeros
                assert content_checksums(loaded)["tensors"] == content_checksums(good)["tensors"]
                found["no effect"] += 1
        assert found["damaged"] > 60

    def test_what_is_damaged_is_named(self, tmp_path):
        numbers = torch.arange(1000.0)
        checkpoint.save_file(tmp_path / "a.model", {"state_dict": {"w": numbers, "b": torch.ones(1)}, "x": 1})
        content = (tmp_path / "a.model").read_bytes()
        where = content.index(numbers.numpy().tobytes()) + 300
        (tmp_path / "a.model").write_bytes(content[:where] + b"?" + content[where + 1 :])
        with pytest.raises(CheckpointError, match=r"a.model: damaged, .*: 1 of 2 tensors: state_dict/w$"):
            load_file(tmp_path / "a.model")

    def test_other_values_have_a_checksum_too(self, tmp_path):
        content = {"state_dict": {"w": torch.ones(2)}, "run": {"position": {"epoch": 3}}, "list": [1.5, ()]}
        checksums = content_checksums(content)
        assert not damage(content, checksums)
        for changed in ({"run": {"position": {"epoch": 4}}}, {"list": [1.5, [], 2]}, {"more": None}):
            assert damage({**content, **changed}, checksums) == "its structure"
        assert damage(content, None) == damage(content, {"tensors": 1}) == "its checksums"

    def test_a_file_without_checksums_loads(self, tmp_path):
        """Those of the 2020 release and of before."""
        content = {"state_dict": {"w": torch.ones(2)}}
        torch.save(content, tmp_path / "a.model", _use_new_zipfile_serialization=False)
        assert torch.equal(load_file(tmp_path / "a.model")["state_dict"]["w"], torch.ones(2))

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.zeros(0),
            torch.tensor(3),
            torch.ones(2, 3).t(),
            torch.ones(3, dtype=torch.bfloat16),
            torch.tensor([True, False]),
        ],
        ids=["empty", "0-dim", "transposed", "bf16", "bool"],
    )
    def test_tensors_of_all_kinds_have_a_checksum(self, tmp_path, tensor):
        checkpoint.save_file(tmp_path / "a.model", {"state_dict": {"w": tensor}})
        assert torch.equal(load_file(tmp_path / "a.model")["state_dict"]["w"], tensor)

    def test_a_file_of_weights_alone_has_no_further_entry(self, tmp_path):
        checkpoint.save_file(tmp_path / "a.model", {"w": torch.ones(2)})
        assert list(torch.load(tmp_path / "a.model", weights_only=True)) == ["w"]

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="a.model: no such file"):
            load_file(tmp_path / "a.model")


class TestLoadModel:
    @pytest.mark.parametrize("wrapper", ["", "module."])
    def test_with_and_without_the_wrapper_prefix(self, wrapper):
        """Original 2.19."""
        source, model = nn.Linear(2, 3), nn.Linear(2, 3)
        load_model(model, {wrapper + k: v for k, v in source.state_dict().items()}, "x")
        assert torch.equal(model.weight, source.weight) and torch.equal(model.bias, source.bias)

    def test_everything_that_does_not_fit_is_named(self):
        state = {"weight": torch.zeros(3, 5), "extra": torch.zeros(1)}
        with pytest.raises(CheckpointError) as error:
            load_model(nn.Linear(2, 3), state, "some file")
        text = str(error.value)
        assert text.startswith("some file does not fit the configured model, 3 keys: ")
        for part in ("missing bias", "unknown extra", "weight is (3, 5), the model has (3, 2)"):
            assert part in text

    def test_many_problems_are_cut_short(self):
        with pytest.raises(CheckpointError, match=r"14 keys: .*; \.\.\.$"):
            load_model(nn.Linear(2, 3), {f"x{i}": torch.zeros(1) for i in range(12)}, "x")

    def test_half_precision_files_convert(self):
        """Original 3.8: files of apex runs hold fp16 weights."""
        model = nn.Linear(2, 3)
        load_model(model, {k: v.half() for k, v in nn.Linear(2, 3).state_dict().items()}, "x")
        assert model.weight.dtype == torch.float32


def test_names():
    assert epoch_path(Path("d"), "p", 7) == Path("d/p-0007.model")
    assert epoch_of(Path("d/p-0007.model"), "p") == 7
    for other in (
        "p-best.model",
        "p-latest.model",
        "q-0007.model",
        "p-0007.model.tmp",
        "pp-0007.model",
        "p.x-0007.model",
    ):
        assert epoch_of(Path(other), "p") is None
    assert epoch_of(Path("p+x-0003.model"), "p+x") == 3


class TestFindResume:
    def find(self, folder: Path, begin: int = 0, end: int = 20):
        found = find_resume(folder, "p", begin, end)
        return None if found is None else found[0].name

    def test_nothing_there(self, tmp_path):
        assert self.find(tmp_path / "none") is None and self.find(tmp_path) is None
        write(tmp_path / "p-best.model", 3)
        assert self.find(tmp_path) is None

    def test_a_prefix_is_no_pattern(self, tmp_path):
        write(epoch_path(tmp_path, "bert[v1]", 0), 1)
        found = find_resume(tmp_path, "bert[v1]", 0, 5)
        assert found is not None and found[0].name == "bert[v1]-0000.model"

    def test_the_last_epoch_in_the_range(self, tmp_path):
        for epoch in (0, 1, 2, 9):
            write(epoch_path(tmp_path, "p", epoch), epoch + 1)
        assert self.find(tmp_path) == "p-0009.model"
        assert self.find(tmp_path, end=9) == "p-0002.model"
        assert self.find(tmp_path, begin=1, end=2) == "p-0001.model"
        assert self.find(tmp_path, begin=3, end=9) is None

    @pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.95])
    def test_a_truncated_file_is_logged_and_passed_over(self, tmp_path, caplog, part):
        """Original 3.21."""
        for epoch in (0, 1):
            write(epoch_path(tmp_path, "p", epoch), epoch + 1)
        broken = epoch_path(tmp_path, "p", 1)
        content = broken.read_bytes()
        broken.write_bytes(content[: int(part * len(content))])
        with caplog.at_level(logging.WARNING):
            path, content = find_resume(tmp_path, "p", 0, 20)
        assert path.name == "p-0000.model" and content["run"]["position"]["epoch"] == 1
        assert len(caplog.messages) == 1
        assert "p-0001.model: cannot be read" in caplog.messages[0] and "trying the one before" in caplog.messages[0]

    def test_a_file_with_a_damaged_tensor_is_passed_over(self, tmp_path, caplog):
        for epoch in (0, 1):
            write(epoch_path(tmp_path, "p", epoch), epoch + 1, batch=7)
        broken = epoch_path(tmp_path, "p", 1)
        content, tensor = broken.read_bytes(), torch.tensor([2.0, 7.0]).numpy().tobytes()
        assert content.count(tensor) == 1
        broken.write_bytes(content.replace(tensor, torch.tensor([2.0, 7.5]).numpy().tobytes()))
        assert self.find(tmp_path) == "p-0000.model"
        assert "p-0001.model: damaged" in caplog.text and "trying the one before" in caplog.text

    def test_a_file_of_something_else_is_passed_over(self, tmp_path, caplog):
        write(epoch_path(tmp_path, "p", 0), 1)
        checkpoint.save_file(epoch_path(tmp_path, "p", 1), {"w": torch.zeros(1)})
        assert self.find(tmp_path) == "p-0000.model"
        assert "p-0001.model: has no state_dict" in caplog.text

    @pytest.mark.parametrize(
        ("position", "want"),
        [((2, 3), "p-latest.model"), ((1, 3), "p-0001.model"), ((2, 0), "p-0001.model"), ((0, 4), "p-0001.model")],
    )
    def test_latest_wins_only_when_it_is_further(self, tmp_path, position, want):
        for epoch in (0, 1):  # epoch 1 leads to position (2, 0)
            write(epoch_path(tmp_path, "p", epoch), epoch + 1)
        write(latest_path(tmp_path, "p"), *position)
        assert self.find(tmp_path) == want

    def test_latest_alone_and_behind_broken_epochs(self, tmp_path):
        write(latest_path(tmp_path, "p"), 1, 2)
        assert self.find(tmp_path) == "p-latest.model"
        write(epoch_path(tmp_path, "p", 0), 1)
        epoch_path(tmp_path, "p", 1).write_bytes(b"broken")
        assert self.find(tmp_path) == "p-latest.model"

    @pytest.mark.parametrize("content", [b"broken", None])
    def test_an_unusable_latest_is_passed_over(self, tmp_path, content):
        write(epoch_path(tmp_path, "p", 0), 1)
        latest = latest_path(tmp_path, "p")
        if content is None:  # a copy of a file of the original, which has no position
            checkpoint.save_file(latest, {"state_dict": {}})
        else:
            latest.write_bytes(content)
        assert self.find(tmp_path) == "p-0000.model"


class TestContent:
    def test_keys_are_those_of_the_original(self, tmp_path):
        """Original 3.20, plus ours under new names."""
        trainer = toy_trainer(tmp_path, end_epoch=1)
        trainer.fit()
        content = load_file(epoch_path(tmp_path, PREFIX, 0))
        of_theirs = ["state_dict", "optimizer", "validation_monitor"]
        assert list(content) == [*of_theirs, "run", "config", "task", "made_with", "text_files"]
        assert content["state_dict"].keys() == trainer.model.state_dict().keys()
        assert content["validation_monitor"] == {"best_epoch": -1, "best_val": -1.0}
        assert content["optimizer"]["param_groups"][0]["initial_lr"] == 0.1

    @pytest.mark.parametrize("monitor", [True, False])
    def test_a_file_of_the_original_resumes(self, tmp_path, monitor):
        """It has no position: the epoch is in its name, the learning rate of the run stays ours
        (original 3.23 and 3.24)."""
        first = toy_trainer(tmp_path / "a", accumulate=2, end_epoch=1)
        first.fit()
        ours = first.state_dict()
        for group in ours["optimizer"]["param_groups"]:
            group["lr"] = group["initial_lr"] = 123.0
        theirs = {
            "state_dict": {f"module.{k}": v for k, v in ours["state_dict"].items()},
            "optimizer": ours["optimizer"],
        }
        if monitor:
            theirs["validation_monitor"] = {"best_epoch": 1, "best_val": 0.75}
        path = epoch_path(tmp_path, PREFIX, 2)
        torch.save(theirs, path)

        trainer = toy_trainer(tmp_path / "b", accumulate=2, end_epoch=5, schedule=lambda step: step / 10)
        trainer.load_state_dict(load_file(path), str(path), epoch_of(path, PREFIX))
        assert torch.equal(weights(trainer), weights(first))
        at = trainer.position
        # three epochs of five batches, an update every second one
        assert (at.epoch, at.batch, at.step, at.updates) == (3, 0, 15, 7)
        assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.1
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.7)
        assert (trainer.best_epoch, trainer.best_value) == ((1, 0.75) if monitor else (-1, -1.0))
        momentum = next(iter(trainer.optimizer.state.values()))["momentum_buffer"]
        assert torch.equal(momentum, next(iter(first.optimizer.state.values()))["momentum_buffer"])
        trainer.fit()
        assert trainer.position.epoch == 5 and trainer.position.updates == 12
