"""The numbers of a run as JSON lines and in TensorBoard (original 3.12, 3.13 and 11.4)."""

import json
import logging
import math
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from common import distributed
from common.log import RunWriter, setup_logging


def lines(folder: Path) -> list[dict]:
    """The file read by a strict parser: NaN is no JSON."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(text, parse_constant=refuse) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_everything(tmp_path):
    writer = RunWriter(tmp_path / "run")
    writer.write("train", 7, {"Train-Loss": 0.5, "LR/Group_0": 1e-4}, epoch=1, batch=2)
    (line,) = lines(tmp_path / "run")  # there at once, not only after close
    assert isinstance(line.pop("time"), float)
    assert line == {"kind": "train", "step": 7, "epoch": 1, "batch": 2, "Train-Loss": 0.5, "LR/Group_0": 1e-4}
    writer.close()


def test_numbers_that_json_has_not_become_null(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, name, value, step: shown.append((name, value, step)))
    writer = RunWriter(tmp_path)
    writer.write("val", 3, {"Val-Acc": math.nan, "Val-Loss": math.inf, "Val-Other": 0.25}, epoch=2)
    writer.close()
    (line,) = lines(tmp_path)
    assert line["Val-Acc"] is None and line["Val-Loss"] is None and line["Val-Other"] == 0.25
    assert ("Val-Other", 0.25, 3) in shown and "Val-Acc" not in [name for name, _, _ in shown]


def test_a_resumed_run_appends(tmp_path):
    for step in (1, 2):
        writer = RunWriter(tmp_path)
        writer.write("train", step, {"Train-Loss": 1.0})
        writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("given", [True, False])
def test_where_tensorboard_looks(tmp_path, given):
    folder = tmp_path / "elsewhere" if given else None
    RunWriter(tmp_path / "run", folder).close()
    assert list((folder or tmp_path / "run/tensorboard_logs").glob("events.out.tfevents.*"))
    assert (tmp_path / "run/tensorboard_logs").exists() != given


def test_other_ranks_are_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    writer = RunWriter(tmp_path / "run")
    writer.write("train", 1, {"a": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


class TestLogging:
    @pytest.fixture(autouse=True)
    def _restore(self):
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        yield
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:], root.level = handlers, level

    def test_a_second_setup_replaces_the_first(self, tmp_path):
        for name in ("a", "b"):
            setup_logging(tmp_path / "logs" / f"{name}.log")
            logging.getLogger("common.x").info("line for %s", name)
        assert "line for a" in (tmp_path / "logs/a.log").read_text()
        text = (tmp_path / "logs/b.log").read_text()
        assert "line for b" in text and "line for a" not in text and " I common.x: " in text

    def test_other_ranks_only_warn(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(distributed, "is_main", lambda: False)
        setup_logging(tmp_path / "a.log")
        logging.getLogger("common.x").info("quiet")
        logging.getLogger("common.x").warning("loud")
        assert not (tmp_path / "a.log").exists()
        error = capsys.readouterr().err
        assert "loud" in error and "quiet" not in error


def test_a_full_disk_does_not_end_a_run(tmp_path, caplog):
    writer = RunWriter(tmp_path)
    whole = writer._lines
    writer._lines = open("/dev/full", "w")  # noqa: SIM115
    writer.write("train", 1, {"Loss": 1.0})
    writer.write("train", 2, {"Loss": 1.0})
    assert caplog.text.count("No space left") == 1
    writer.close()
    whole.close()
