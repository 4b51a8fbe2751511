"""The numbers of a run as JSON lines and in TensorBoard (original 3.12, 3.13 and 11.4)."""

import json
import logging
import math
import struct
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

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


def events(folder: Path) -> list[Event]:
    """The records of the one event file of TensorBoard below a folder, with their checksums verified."""
    (path,) = folder.rglob("events.out.tfevents.*")
    found, data = [], path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        body, checksum, data = data[12 : 12 + length], data[12 + length : 16 + length], data[16 + length :]
        assert struct.unpack("<I", checksum)[0] == masked_crc32c(body)
        found.append(Event.FromString(body))
    return found


def points(folder: Path) -> list[tuple[str, float, int]]:
    """Name, value and step of each point in TensorBoard."""
    first, *others = events(folder)
    assert first.file_version == "brain.Event:2"
    return [(value.tag, value.simple_value, event.step) for event in others for value in event.summary.value]


def test_numbers_that_json_has_not_become_null(tmp_path):
    writer = RunWriter(tmp_path)
    writer.write("val", 3, {"Val-Acc": math.nan, "Val-Loss": math.inf, "Val-Other": 0.25}, epoch=2)
    writer.close()
    (line,) = lines(tmp_path)
    assert line["Val-Acc"] is None and line["Val-Loss"] is None and line["Val-Other"] == 0.25
    shown = points(tmp_path)
    assert ("Val-Other", 0.25, 3) in shown and "Val-Acc" not in [name for name, _, _ in shown]


def test_event_files_are_those_of_tensorboardx(tmp_path):
    """The same bytes but for the time."""
    writer, theirs = RunWriter(tmp_path / "a"), SummaryWriter(str(tmp_path / "b"))
    writer.write("train", 3, {"Train-Loss": 0.5, "LR/Group 0": 0.1})
    writer.close()
    theirs.add_scalar("Train-Loss", 0.5, 3)
    theirs.add_scalar("LR/Group 0", 0.1, 3)
    theirs.close()

    def without_time(folder: Path) -> list[bytes]:
        return [
            Event(**{f.name: v for f, v in e.ListFields() if f.name != "wall_time"}).SerializeToString()
            for e in events(folder)
        ]

    assert without_time(tmp_path / "a") == without_time(tmp_path / "b")


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


class TestFullDisk:
    """On a real one, with more lines than a queue or buffer takes."""

    def test_numbers_are_lost_until_there_is_space(self, small_disk, caplog):
        writer = RunWriter(small_disk.folder)
        writer.write("train", 0, {"Loss": 1.0})
        small_disk.fill()
        for step in range(1, 400):
            writer.write("train", step, {"Loss": 1.0})
        assert caplog.text.count("No space left") == 1 and "The run goes on without them" in caplog.text
        small_disk.empty()
        writer.write("train", 400, {"Loss": 1.0})
        writer.close()
        steps = [line["step"] for line in lines(small_disk.folder)]
        assert steps[0] == 0 and steps[-1] == 400 and len(steps) < 400  # and each line is whole
        shown = [step for _, _, step in points(small_disk.folder)]
        assert shown[0] == 0 and shown[-1] == 400 and len(shown) < 400

    def test_a_disk_that_is_full_at_the_start(self, small_disk, caplog):
        small_disk.fill()
        writer = RunWriter(small_disk.folder)
        for step in range(100):
            writer.write("train", step, {"Loss": 1.0})
        assert caplog.text.count("No space left") == 1
        small_disk.empty()
        writer.write("train", 100, {"Loss": 1.0})
        writer.close()
        assert [step for _, _, step in points(small_disk.folder)] == [100]

    def test_the_log_goes_on(self, small_disk, capsys):
        path = small_disk.folder / "a.log"
        setup_logging(path)
        log = logging.getLogger("common.x")
        log.info("first")
        small_disk.fill()
        for number in range(400):
            log.info("line %d", number)
        small_disk.empty()
        log.info("last")
        written = path.read_text().splitlines()
        assert "first" in written[0] and "last" in written[-1] and len(written) < 400
        err = capsys.readouterr().err
        assert err.count("No space left") == 1 and "line 399" in err and "Traceback" not in err
