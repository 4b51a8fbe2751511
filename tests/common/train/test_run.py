"""Original 3.1, 3.26 and 3.27 (devices, seeds, folders); the parts of common.train.run around the trainer, on a tiny
VQA."""

import json
import math
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from common import distributed
from common.config import load_config, replace
from common.data.loader import BatchLoader
from common.errors import CheckpointError, ConfigError
from common.files.locks import locked
from common.train.run import (
    common_facts,
    resume,
    run_test,
    run_training,
    seed_everything,
)
from common.train.trainer import Trainer
from common.weights import checkpoint
from common.weights.foreign import load_initial_weights
from common.weights.restore import (
    build_precision,
    load_trained,
    model_size,
    pick_device,
    train_folder,
)
from tests.common.test_distributed import run_on_two
from tests.common.train.toy import PREFIX, toy_trainer
from tests.paths import ROOT
from tests.tiny import tiny_vqa, write_settings
from vqa.task import TASK


@pytest.fixture
def cfg_path(tiny_world: Path, tmp_path: Path) -> Path:
    """The YAML of a VQA run of two epochs without dropout."""
    settings = tiny_vqa(tiny_world, tmp_path / "out")
    settings["NUM_WORKERS_PER_GPU"] = 0
    settings["NETWORK"]["CLASSIFIER_DROPOUT"] = 0.0
    settings["NETWORK"]["VLBERT"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["TRAIN"] |= {"GRAD_ACCUMULATE_STEPS": 1, "LR": 3e-4, "WARMUP_STEPS": 1}
    return write_settings(settings, tmp_path / "tiny.yaml")


def run(cfg_path: Path, name: str, **changes) -> tuple[Path, list[float]]:
    """Train with some keys changed. Returns the folder and the losses of all batches."""
    cfg = load_config("vqa", cfg_path, {"OUTPUT_PATH": str(cfg_path.parent / name), **changes})
    folder = run_training(TASK, cfg, cfg_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return folder, [line["Train-Loss"] for line in lines if line["kind"] == "train"]


class TestDevice:
    @pytest.fixture(autouse=True)
    def _first_process(self, monkeypatch):
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    def pick(self, monkeypatch, device: str, gpus: str = "", count: int = 0) -> torch.device:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        self.current: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "set_device", self.current.append)
        return pick_device(SimpleNamespace(DEVICE=device, GPUS=gpus))

    def test_cuda_without_a_gpu_is_an_error(self, monkeypatch):
        with pytest.raises(ValueError, match="DEVICE cuda: PyTorch finds no CUDA device"):
            self.pick(monkeypatch, "cuda", "0")

    @pytest.mark.parametrize("available", [True, False])
    def test_mps(self, monkeypatch, available):
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
        if available:
            assert self.pick(monkeypatch, "mps", "0", 2) == torch.device("mps")
            return
        with pytest.raises(ConfigError, match="^DEVICE mps: PyTorch finds no Metal device"):
            self.pick(monkeypatch, "mps", "0", 2)

    @pytest.mark.parametrize(("device", "count"), [("auto", 0), ("cpu", 0), ("cpu", 2)])
    def test_cpu(self, monkeypatch, device, count):
        assert self.pick(monkeypatch, device, "0,1", count).type == "cpu"

    def test_the_first_gpu_named(self, monkeypatch):
        assert self.pick(monkeypatch, "auto", "2,3", 4) == torch.device("cuda", 2)
        assert self.pick(monkeypatch, "cuda", "", 4) == torch.device("cuda", 0)
        assert self.pick(monkeypatch, "auto", "0,1,2,3", 1) == torch.device("cuda", 0)  # a config of a larger machine

    def test_it_becomes_the_current_one(self, monkeypatch):
        assert self.pick(monkeypatch, "auto", "2", 4) == torch.device("cuda", 2)
        assert self.current == [torch.device("cuda", 2)]

    @pytest.mark.parametrize(("gpus", "count", "found"), [("7", 4, "4 GPUs"), ("3,0", 1, "1 GPU")])
    def test_a_gpu_that_is_not_there_is_an_error_of_one_line(self, monkeypatch, gpus, count, found):
        number = int(gpus.split(",")[0])
        with pytest.raises(ConfigError) as error:
            self.pick(monkeypatch, "auto", gpus, count)
        assert str(error.value) == f"GPUS (--gpus, device cuda:N) {number}: {found} found, counted from 0"
        assert self.current == []

    @pytest.mark.parametrize("gpus", ["a", "-1", "cuda:0", "0 1"])
    def test_what_is_no_number(self, monkeypatch, gpus):
        with pytest.raises(ConfigError, match="expected numbers with commas"):
            self.pick(monkeypatch, "auto", gpus, 4)

    def test_a_process_of_several_takes_its_own(self, monkeypatch):
        monkeypatch.setenv("LOCAL_RANK", "1")
        monkeypatch.setattr(distributed, "is_distributed", lambda: True)
        assert self.pick(monkeypatch, "auto", "0", 4) == torch.device("cuda", 1)
        assert self.current == [torch.device("cuda", 1)]
        with pytest.raises(ConfigError, match="LOCAL_RANK 1: 1 GPU found, counted from 0"):
            self.pick(monkeypatch, "auto", "0", 1)


def test_mps_is_for_prediction_only(cfg_path):
    cfg = load_config("vqa", cfg_path, {"DEVICE": "mps"})
    with pytest.raises(ConfigError, match="DEVICE mps is for prediction: train on cpu or cuda"):
        run_training(TASK, cfg, cfg_path)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_precision_of_a_run_sets_tf32(cfg_path, allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not allowed)
    before = torch.backends.cuda.matmul.allow_tf32
    build_precision(TASK, load_config("vqa", cfg_path, {"TRAIN.TF32": allowed}), torch.device("cuda"))
    found = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before
    assert found == (allowed, allowed)


DETERMINISTIC = """
import json, os, sys
from pathlib import Path
import torch
from common.config import load_config
from common.train.run import run_training
from common.task import load_task
found = {}
original = torch.use_deterministic_algorithms
def watch(mode, warn_only=False):
    found["cuda used before"] = torch.cuda.is_initialized()
    original(mode, warn_only=warn_only)
torch.use_deterministic_algorithms = watch
path, value = sys.argv[1:]
keys = {"TRAIN.DETERMINISTIC": value == "true", "TRAIN.MAX_STEPS": 2, "OUTPUT_PATH": path + value}
cfg = load_config("vqa", path, keys)
run_training(load_task("vqa"), cfg, Path(path))
found |= {
    "algorithms": torch.are_deterministic_algorithms_enabled(),
    "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
    "cudnn": torch.backends.cudnn.deterministic,
    "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
}
print(json.dumps(found))
"""


@pytest.mark.parametrize("value", ["true", "false"])
def test_deterministic_algorithms(cfg_path, value):
    """In a process of its own: the settings stay. Training on a CPU has a deterministic form of every operation."""
    kept = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    command = [sys.executable, "-c", DETERMINISTIC, str(cfg_path), value]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    on = {"cuda used before": False, "algorithms": True, "warn only": False, "cudnn": True, "cublas": ":4096:8"}
    off = {"algorithms": False, "warn only": False, "cudnn": False, "cublas": None}
    assert found == (on if value == "true" else off)


class TestSeeds:
    def test_every_generator_is_seeded(self):
        def drawn():
            assert seed_everything(11) == 11
            return random.random(), np.random.rand(), torch.rand(1).item()

        assert drawn() == drawn()
        first = drawn()
        seed_everything(12)
        assert not set(first) & {random.random(), np.random.rand(), torch.rand(1).item()}

    def test_minus_one_draws_a_seed(self):
        random.seed(0)
        drawn = set()
        for _ in range(3):
            random.seed(0)  # the draw must not depend on the state of before
            drawn.add(seed_everything(-1))
        assert len(drawn) == 3 and all(0 <= seed < 2**31 for seed in drawn)

    def test_ranks_draw_different_numbers_and_share_the_seed_of_samples(self, monkeypatch):
        """Otherwise the dropout masks of all ranks would be equal."""
        drawn = []
        for rank in (0, 1):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            assert seed_everything(11) == 11
            mask = torch.nn.functional.dropout(torch.ones(64))
            drawn.append([random.random(), np.random.rand(), *mask.tolist()])
        first, second = drawn
        assert first[0] != second[0] and first[1] != second[1] and first[2:] != second[2:]

    def test_a_large_seed_is_possible(self):
        assert seed_everything(2**40) == 2**40

    def test_the_drawn_seed_is_stored_and_taken_over(self, cfg_path, monkeypatch):
        folder, _ = run(cfg_path, "out", **{"RNG_SEED": -1, "TRAIN.END_EPOCH": 1})
        stored = checkpoint.load_file(folder / "tiny-0000.model")["run"]["base_seed"]
        assert stored >= 0
        used = []
        original = BatchLoader.epoch

        def epoch(loader, number=0, start_batch=0):
            used.append((loader.batch_sampler.base_seed, number))
            return original(loader, number, start_batch)

        monkeypatch.setattr(BatchLoader, "epoch", epoch)
        run(cfg_path, "out", **{"RNG_SEED": -1, "TRAIN.END_EPOCH": 2})
        assert (stored, 1) in used  # training goes on with epoch 1 and the seed of the first run


class TestFolders:
    def test_train_folder(self):
        """Original 3.27."""
        cfg = SimpleNamespace(OUTPUT_PATH="out/vqa", DATASET=SimpleNamespace(TRAIN_IMAGE_SET="train2014+val2014"))
        want = Path("out/vqa/base_4x16G/train2014+val2014_train")
        assert train_folder(cfg, Path("cfgs/vqa/base_4x16G.yaml")) == want
        listed = SimpleNamespace(OUTPUT_PATH="o", DATASET=(SimpleNamespace(TRAIN_IMAGE_SET="a"), None))
        assert train_folder(listed, Path("x.yaml")) == Path("o/x/a_train")

    def test_what_a_run_leaves(self, cfg_path):
        folder, losses = run(cfg_path, "out")
        assert {"tiny.yaml", "config.yaml", "tiny.log", "metrics.jsonl", "tiny-0000.model", "tiny-0001.model"} < {
            p.name for p in folder.iterdir()
        }
        assert (folder / "tiny.yaml").read_bytes() == cfg_path.read_bytes()
        whole = yaml.safe_load((folder / "config.yaml").read_text())
        assert whole["NETWORK"]["VLBERT"]["hidden_size"] == 16 and whole["TRAIN"]["OPTIMIZER"] == "AdamW"
        assert checkpoint.load_file(folder / "tiny-0001.model")["config"] == whole
        assert losses and all(map(math.isfinite, losses))

    def test_two_runs_in_one_folder_are_refused(self, cfg_path):
        cfg = load_config("vqa", cfg_path, {"OUTPUT_PATH": str(cfg_path.parent / "out")})
        folder = train_folder(cfg, cfg_path)
        with locked(folder / "run.lock"):
            with pytest.raises(ConfigError, match=r"out/.*: another run writes here \(user .*, pid .*\): end it, or"):
                run(cfg_path, "out")
            assert [path.name for path in folder.iterdir()] == ["run.lock"]
        (folder / ".tiny-0000.model.abcd1234.tmp").write_bytes(b"of a run that was killed")
        assert run(cfg_path, "out")[0] == folder
        assert not [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".lock"))]

    def test_a_checkpoint_and_the_log_record_what_made_them(self, cfg_path, caplog):
        with caplog.at_level("INFO"):
            folder, _ = run(cfg_path, "out")
        content = checkpoint.load_file(folder / "tiny-0001.model")
        made = content["made_with"]
        assert made["torch"] == torch.__version__ and made["device"] == "cpu"
        assert made["seed"] == content["run"]["base_seed"] == 5
        assert f"torch {torch.__version__}" in (folder / "tiny.log").read_text()
        files = content["text_files"]
        vocabulary = Path(content["config"]["NETWORK"]["BERT_MODEL_NAME"]) / "vocab.txt"
        assert files["NETWORK.BERT_MODEL_NAME"] == {
            "file": str(vocabulary),
            "sha256": sha256(vocabulary.read_bytes()).hexdigest(),
            "length": len(vocabulary.read_text().splitlines()),
        }
        assert set(files) == {"NETWORK.BERT_MODEL_NAME", "DATASET.ANSWER_VOCAB_FILE"}

    def test_a_run_does_not_go_on_with_another_vocabulary(self, cfg_path, tmp_path):
        folder, _ = run(cfg_path, "out", **{"TRAIN.END_EPOCH": 1})
        words = Path(yaml.safe_load((folder / "config.yaml").read_text())["NETWORK"]["BERT_MODEL_NAME"]) / "vocab.txt"
        cut = tmp_path / "cut.txt"
        cut.write_text("\n".join(words.read_text().splitlines()[:-3]))
        with pytest.raises(CheckpointError, match=r"tiny-0000.model: NETWORK.BERT_MODEL_NAME is .*cut.txt"):
            run(cfg_path, "out", **{"NETWORK.BERT_MODEL_NAME": str(cut)})


def test_model_size():
    model = nn.Linear(1000, 1200)  # 1,201,200
    model.bias.requires_grad_(False)
    assert model_size(model) == "1.2 M parameters, 1.2 M trained"
    model.weight.requires_grad_(False)
    assert model_size(model) == "1.2 M parameters, 0.0 M trained"


class TestResume:
    def config(self, **train) -> SimpleNamespace:
        values = {"BEGIN_EPOCH": 0, "END_EPOCH": 4, "RESUME": False, "AUTO_RESUME": False}
        return SimpleNamespace(TRAIN=SimpleNamespace(**values | train))

    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        toy_trainer(tmp_path, end_epoch=3).fit()
        return tmp_path

    @pytest.mark.parametrize(
        ("settings", "epoch"),
        [
            ({}, 0),
            ({"AUTO_RESUME": True}, 3),
            ({"RESUME": True, "BEGIN_EPOCH": 2}, 2),
            ({"RESUME": True, "AUTO_RESUME": True, "BEGIN_EPOCH": 1}, 1),  # RESUME wins
            ({"AUTO_RESUME": True, "END_EPOCH": 2}, 2),
        ],
    )
    def test_where_a_run_goes_on(self, folder, settings, epoch):
        """Original 3.23."""
        trainer = toy_trainer(folder, end_epoch=4)
        resume(trainer, self.config(**settings))
        assert trainer.position.epoch == epoch and trainer.position.step == 5 * epoch

    def test_resume_needs_its_file(self, folder):
        with pytest.raises(FileNotFoundError, match=f"{PREFIX}-0006.model"):
            resume(toy_trainer(folder), self.config(RESUME=True, BEGIN_EPOCH=7))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("run/position/epoch", KeyError),
            ("run/position/step", {}),
            ("run/metrics", 3),
            ("run/rng/0/numpy", [1]),
            ("optimizer/state/0/momentum_buffer", torch.zeros(2, 9)),
            ("optimizer/state/0/momentum_buffer", "text"),
            ("optimizer/state", []),
        ],
    )
    def test_a_file_that_is_damaged_inside_is_passed_over(self, folder, caplog, path, value):
        """Its checksums are right: it was written so."""
        file = checkpoint.epoch_path(folder, PREFIX, 2)
        content = checkpoint.load_file(file)
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        place = content
        for key in way:
            place = place[key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
        checkpoint.save_file(file, content)
        trainer = toy_trainer(folder, end_epoch=4)
        resume(trainer, self.config(AUTO_RESUME=True))
        assert trainer.position.epoch == 2 and trainer.position.step == 10
        assert f"{PREFIX}-0002.model: " in caplog.text and "trying the one before" in caplog.text

    def test_files_that_are_all_refused_are_not_overwritten(self, folder):
        for epoch in range(3):
            content = checkpoint.load_file(checkpoint.epoch_path(folder, PREFIX, epoch))
            content["run"]["metrics"] = 3
            checkpoint.save_file(checkpoint.epoch_path(folder, PREFIX, epoch), content)
        with pytest.raises(CheckpointError, match=f"{PREFIX}-0002.model: damaged inside"):
            resume(toy_trainer(folder, end_epoch=4), self.config(AUTO_RESUME=True))

    def test_auto_resume_without_files_starts_afresh(self, tmp_path):
        trainer = toy_trainer(tmp_path / "none")
        resume(trainer, self.config(AUTO_RESUME=True))
        assert trainer.position.epoch == 0


class TestLoadTrained:
    @pytest.fixture
    def cfg(self, cfg_path):
        return load_config("vqa", cfg_path)

    def test_the_best_checkpoint_is_the_default(self, cfg, cfg_path):
        torch.manual_seed(3)
        model = TASK.build_model(cfg)
        path = checkpoint.best_path(train_folder(cfg, cfg_path), "tiny")
        with pytest.raises(FileNotFoundError, match="tiny-best.model"):
            load_trained(TASK, cfg, cfg_path)
        checkpoint.save_file(path, {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}})
        loaded = load_trained(TASK, cfg, cfg_path)
        assert loaded.source == path and not loaded.model.training
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[key], value)

    def test_wrong_checkpoints(self, cfg, cfg_path, tmp_path):
        state = TASK.build_model(cfg).state_dict()
        for name, content, text in (
            ("bare", state, "has no state_dict"),
            ("list", [1, 2], "has no state_dict"),
            ("less", {"state_dict": dict(list(state.items())[1:])}, f"missing {next(iter(state))}"),
            ("more", {"state_dict": {**state, "extra": torch.zeros(1)}}, "unknown extra"),
        ):
            torch.save(content, tmp_path / name)
            with pytest.raises(CheckpointError, match=text):
                load_trained(TASK, cfg, cfg_path, tmp_path / name)
        (tmp_path / "broken").write_bytes(b"no checkpoint")
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_trained(TASK, cfg, cfg_path, tmp_path / "broken")

    def test_a_checkpoint_of_another_size(self, cfg, cfg_path, tmp_path):
        other = TASK.build_model(replace(cfg, {"NETWORK.VLBERT.hidden_size": 32}))
        checkpoint.save_file(tmp_path / "large", {"state_dict": other.state_dict()})
        with pytest.raises(CheckpointError, match="the model has"):
            load_trained(TASK, cfg, cfg_path, tmp_path / "large")

    def test_needs_no_language_weights(self, cfg, cfg_path, tmp_path):
        """What training refuses without BERT_RANDOM_INIT, testing does not ask for (docs/design.md)."""
        strict = replace(cfg, {"NETWORK.BERT_RANDOM_INIT": False, "NETWORK.BERT_MODEL_NAME": str(tmp_path / "none")})
        model = TASK.build_model(strict)
        with pytest.raises(FileNotFoundError, match="BERT_RANDOM_INIT"):
            load_initial_weights(model, strict)
        checkpoint.save_file(tmp_path / "c", {"state_dict": model.state_dict()})
        load_trained(TASK, strict, cfg_path, tmp_path / "c")


def test_a_result_goes_where_it_is_sent(cfg_path, tmp_path):
    cfg = load_config("vqa", cfg_path)
    checkpoint.save_file(tmp_path / "c", {"state_dict": TASK.build_model(cfg).state_dict()})
    path = run_test(TASK, cfg, cfg_path, tmp_path / "c", tmp_path / "deep/results", "mine").path
    assert path == tmp_path / "deep/results/mine_vqa2_test2015.json" and json.loads(path.read_text())


class TestPrecision:
    """Two epochs of the tiny VQA without dropout; the stated distance is 2 % of each loss."""

    DISTANCE = 0.02

    @pytest.fixture
    def fp32(self, cfg_path) -> list[float]:
        return run(cfg_path, "fp32")[1]

    def compare(self, cfg_path: Path, fp32: list[float], **changes) -> Path:
        folder, losses = run(cfg_path, "half", **changes)
        assert losses != fp32 and len(losses) == len(fp32) >= 4
        assert fp32[-1] < 0.9 * fp32[0]  # the weights moved
        assert losses == pytest.approx(fp32, rel=self.DISTANCE)
        return folder

    def test_bf16(self, cfg_path, fp32):
        self.compare(cfg_path, fp32, **{"TRAIN.PRECISION": "bf16"})

    @pytest.mark.parametrize("scale", [128.0, "dynamic"])
    def test_fp16(self, cfg_path, fp32, scale, monkeypatch):
        monkeypatch.setattr("common.precision.DYNAMIC_START", 1024.0)  # 65536 overflows at first and skips updates
        try:
            with torch.autocast("cpu", torch.float16):
                nn.functional.scaled_dot_product_attention(*(torch.rand(1, 1, 4, 4) for _ in range(3)))
        except RuntimeError as error:
            pytest.skip(f"THIS CPU DOES NOT COMPUTE IN FP16, the run was not made: {error}")
        folder = self.compare(cfg_path, fp32, **{"TRAIN.FP16": True, "TRAIN.FP16_LOSS_SCALE": scale})
        state = checkpoint.load_file(folder / "tiny-0001.model")
        assert state["run"]["precision"]["scaler"]["scale"] == (128 if scale == 128.0 else 1024)
        assert all(v.dtype == torch.float32 for v in state["state_dict"].values())


def _train_on_two(rank: int, cfg_path: Path) -> None:
    """Ranks start from different weights and see different samples; they must end with the same weights."""
    kept = []
    original = Trainer.fit

    def fit(trainer: Trainer) -> None:
        original(trainer)
        kept.append(torch.cat([p.detach().flatten() for p in trainer.module.parameters()]))

    Trainer.fit = fit
    run_training(TASK, load_config("vqa", cfg_path), cfg_path)
    weights = distributed.gather_objects(kept[0])
    if rank == 0:
        assert torch.equal(weights[0], weights[1]) and weights[0].isfinite().all()


def test_two_processes_train_one_model(cfg_path):
    run_on_two(_train_on_two, cfg_path)
    assert (cfg_path.parent / "out/tiny/train2014_train/tiny-0001.model").is_file()


def _ranks_that_differ(rank: int, cfg_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run(cfg_path, "out", **{"TRAIN.LR": 1e-4 * (1 + rank)})
    line = str(error.value)
    assert line.startswith("rank 1 on ") and line.endswith(": TRAIN.LR is 0.0002, not 0.0001")


def test_ranks_with_other_configs_do_not_start(cfg_path):
    run_on_two(_ranks_that_differ, cfg_path)


def test_what_ranks_must_have_in_common(cfg_path):
    cfg = load_config("vqa", cfg_path)
    made = {"python": "3.11", "torch": "2.14", "vl-bert": "0.1", "git_commit": None, "host": "a", "device": "cuda:0"}
    facts = common_facts(cfg, made, [range(3), range(4)], range(5))
    assert facts["samples for training"] == [3, 4] and facts["samples for validation"] == [5]
    assert facts["TRAIN.LR"] == cfg.TRAIN.LR and facts["torch"] == "2.14"
    assert not {"host", "device"} & facts.keys()  # these may differ
