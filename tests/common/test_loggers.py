"""Optional loggers: what reaches the packages, with stand-ins of their documented interface and with the real ones."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.log import RunWriter
from common.loggers import build_loggers, check_loggers
from common.task import load_task
from common.train.run import run_training
from tests.tiny import tiny_vqa, write_settings

CONFIG = {"TRAIN": {"LR": 1e-4}, "SCALES": [60, 100]}


class Stub(ModuleType):
    """A package that records calls. Every function of the documented interface that is used has its arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple] = []

    def record(self, *call: object) -> None:
        self.calls.append(call)


@pytest.fixture
def wandb(monkeypatch) -> Stub:
    stub = Stub("wandb")

    class Run:
        def define_metric(self, name, step_metric=None):
            stub.record("define", name, step_metric)

        def log(self, data, step=None):
            stub.record("log", data)

        def finish(self):
            stub.record("finish")

    def init(*, project, name, dir, config, mode):  # noqa: A002 - the name of the package
        stub.record("init", project, name, dir, config, mode)
        return Run()

    stub.init = init
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return stub


@pytest.fixture
def mlflow(monkeypatch) -> Stub:
    stub = Stub("mlflow")

    class Client:
        def __init__(self, tracking_uri=None):
            stub.record("client", tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            stub.record("experiment", name)
            return "7"

        def create_run(self, experiment_id, run_name=None):
            stub.record("run", experiment_id, run_name)
            return SimpleNamespace(info=SimpleNamespace(run_id="r"))

        def log_dict(self, run_id, dictionary, artifact_file):
            stub.record("dict", run_id, dictionary, artifact_file)

        def log_metric(self, run_id, key, value, timestamp=None, step=None):
            stub.record("metric", run_id, key, value, step)

        def set_terminated(self, run_id, status=None):
            stub.record("end", run_id)

    stub.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "mlflow", stub)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return stub


def write_run(folder, names):
    writer = RunWriter(folder, loggers=lambda: build_loggers(names, folder, "vl-bert-vqa", "tiny", CONFIG))
    writer.write("train", 40, {"Train-Loss": 0.5, "Train-Acc": math.nan})
    writer.write("val", 0, {"Val-Acc": 0.25}, epoch=0)
    writer.write("train", 80, {"Train-Loss": 0.4})
    writer.close()


def test_wandb_is_offline_and_has_an_axis_for_each_kind(tmp_path, wandb):
    write_run(tmp_path, ["wandb"])
    assert wandb.calls == [
        ("init", "vl-bert-vqa", "tiny", str(tmp_path), CONFIG, "offline"),
        ("define", "Train-Loss", "train/step"),
        ("log", {"Train-Loss": 0.5, "train/step": 40}),
        ("define", "Val-Acc", "val/step"),
        ("log", {"Val-Acc": 0.25, "val/step": 0}),
        ("log", {"Train-Loss": 0.4, "train/step": 80}),
        ("finish",),
    ]


def test_mlflow_has_a_file_store(tmp_path, mlflow):
    write_run(tmp_path, ["mlflow"])
    assert mlflow.calls == [
        ("client", (tmp_path / "mlruns").as_uri()),
        ("experiment", "vl-bert-vqa"),
        ("run", "7", "tiny"),
        ("dict", "r", CONFIG, "config.json"),
        ("metric", "r", "Train-Loss", 0.5, 40),
        ("metric", "r", "Val-Acc", 0.25, 0),
        ("metric", "r", "Train-Loss", 0.4, 80),
        ("end", "r"),
    ]


def test_settings_of_the_user_choose_other_places(tmp_path, wandb, mlflow, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    write_run(tmp_path, ["wandb", "mlflow"])
    assert wandb.calls[0][-1] == "online" and mlflow.calls[0] == ("client", "http://localhost:5000")


def test_a_logger_that_fails_does_not_end_a_run(tmp_path, wandb, mlflow, caplog):
    broken = wandb.init

    def init(**arguments):
        run = broken(**arguments)
        run.log = lambda data: 1 / 0
        return run

    wandb.init = init
    write_run(tmp_path, ["wandb", "mlflow"])
    assert caplog.text.count("WandbLogger failed: division by zero. The run goes on without it") == 1
    assert [call[0] for call in mlflow.calls].count("metric") == 3
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_one_line(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"^TRAIN.LOGGERS: {name} is not installed: pip install {package}$"):
        check_loggers([name])


def test_an_unknown_logger_is_a_bad_value(tiny_world, tmp_path):
    settings = tiny_vqa(tiny_world, tmp_path)
    settings["TRAIN"]["LOGGERS"] = ["wandb", "neptune"]
    with pytest.raises(ConfigError, match="TRAIN.LOGGERS = .*: expected one of 'wandb', 'mlflow'"):
        load_config("vqa", write_settings(settings, tmp_path / "a.yaml"))


def test_a_training_run_logs_what_tensorboard_gets(tiny_world, tmp_path, wandb, mlflow):
    settings = tiny_vqa(tiny_world, tmp_path / "out")
    settings["TRAIN"] |= {"LOGGERS": ["wandb", "mlflow"], "END_EPOCH": 1}
    path = write_settings(settings, tmp_path / "tiny.yaml")
    folder = run_training(load_task("vqa"), load_config("vqa", path), path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [call for call in mlflow.calls if call[0] == "metric"]
    assert {call[4] for call in points} == {line["step"] for line in lines}
    logged = [call[1] for call in wandb.calls if call[0] == "log"]
    assert len(logged) == len(lines) > 2
    for line, data in zip(lines, logged, strict=True):
        assert data.pop(f"{line['kind']}/step") == line["step"]
        assert data and {name: line[name] for name in data} == data
    assert wandb.calls[0][1:3] == ("vl-bert-vqa", "tiny") and wandb.calls[-1] == ("finish",)


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="no wandb: only a stand-in of it was tested")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_run(tmp_path, ["wandb"])
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


def test_mlflow_file_store(tmp_path, monkeypatch):
    package = pytest.importorskip("mlflow", reason="no mlflow: only a stand-in of it was tested")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_run(tmp_path, ["mlflow"])
    client = package.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("vl-bert-vqa")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"Train-Loss": 0.4, "Val-Acc": 0.25} and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "Train-Loss")
    assert [(point.step, point.value) for point in history] == [(40, 0.5), (80, 0.4)]
