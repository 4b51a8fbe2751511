"""Several runs on one folder, and runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.errors import ConfigError
from common.regions.box_sources import BoxSource, ImageEntry
from common.regions.json_store import JsonRegions, save_regions
from common.regions.regions import Regions
from data.extract_features import main
from data.regions import extract as extraction
from data.regions.extract import extract
from data.regions.runs import Shard, record_failures, run_in

ENTRIES = [ImageEntry(name, f"{name}.jpg") for name in "dbace"]
GRAY = Image.new("RGB", (64, 48), (128, 128, 128))

# Runs the program with a stub encoder, once for each WHERE:N:SIGNAL, in a forked process that gets the signal at the
# N-th call of a function. Prints the exit codes, negative for a signal. One process imports torch for all.
PROGRAM = """
import os, sys, torch
from data import extract_features
from data.regions import extract
import common.files.atomic
points, *arguments = sys.argv[1:]
calls = {"encode": 0, "replace": 0}
def count(name):
    calls[name] += 1
    if name == where and calls[name] == int(number):
        os.kill(os.getpid(), int(signum))
def encode(images, boxes):
    count("encode")
    return [torch.nn.functional.pad(b, (0, 2044)) for b in boxes]
replace = os.replace
def counted(source, target):
    if str(target).endswith(".json"):
        count("replace")
    replace(source, target)
os.replace = counted
extract.build_encoder = lambda network, device: encode
for point in points.split(","):
    where, number, signum = point.split(":")
    child = os.fork()
    if not child:
        sys.exit(extract_features.main(arguments))
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abcd":
        GRAY.save(tmp_path / f"images/{name}.png")
    return tmp_path / "images"


def program(images: Path, out: Path, *points: str) -> tuple[list[int], str]:
    """Returns the exit codes and what was written to stderr."""
    arguments = ["--images", str(images), "--boxes", "grid:1x2", "--out", str(out), "--random-weights"]
    command = [sys.executable, "-c", PROGRAM, ",".join(points), *arguments, "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    codes = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("exit ")]
    return codes, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_loses_only_the_image_in_work(images: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    points = "replace:1:9", "encode:2:9", "replace:2:9"  # at the info file, with b in work, and before c has its name
    codes, errors = program(images, out, *points)
    assert codes == [-signal.SIGKILL] * 3, errors
    assert any(name.endswith(".tmp") for name in contents(out))
    done = sorted(name for name in contents(out) if name.endswith(".json"))
    assert done == ["a.json", "b.json"]
    assert main_with_stub(images, out) == main_with_stub(images, whole) == 0
    assert contents(out) == contents(whole)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".", "out"))) == [
        "out",
        "out.info.json",
        "out.lock",
    ]


def main_with_stub(images: Path, out: Path) -> int:
    def build(network: extraction.Network, device: str) -> extraction.Encode:
        return lambda images, boxes: [torch.nn.functional.pad(b, (0, 2044)) for b in boxes]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "build_encoder", build)
        arguments = ["--images", str(images), "--boxes", "grid:1x2", "--out", str(out), "--random-weights"]
        return main([*arguments, "--workers", "0"])


def test_sigterm_ends_with_one_line_about_going_on(images: Path, tmp_path: Path) -> None:
    codes, errors = program(images, tmp_path / "out", "encode:2:15")
    assert codes == [143]
    assert "stopped by SIGTERM; the same command goes on" in errors and "Traceback" not in errors
    assert list(contents(tmp_path / "out")) == ["a.json"]


def test_shards_take_every_image_once() -> None:
    parts = [[entry.name for entry in Shard(i, 2).select(ENTRIES)] for i in (1, 2)]
    assert parts == [["a", "c", "e"], ["b", "d"]]
    assert [entry.name for entry in Shard().select(ENTRIES)] == list("dbace")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard: expected i/n"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("first", "second", "entries", "message"),
    [
        (Shard(), Shard(), ENTRIES, "has these images in work"),
        (Shard(1, 2), Shard(1, 2), ENTRIES, "has these images in work"),
        (Shard(1, 2), Shard(2, 3), ENTRIES, "cannot start beside shard 1/2"),
        (Shard(1, 2), Shard(), ENTRIES, "cannot start beside shard 1/2"),
        (Shard(), Shard(1, 2), ENTRIES, "cannot start beside shard 1/1"),
        (Shard(1, 2), Shard(2, 2), ENTRIES[1:], "another list of images"),
    ],
)
def test_runs_that_could_do_an_image_twice_are_refused(
    tmp_path: Path, first: Shard, second: Shard, entries: list[ImageEntry], message: str
) -> None:
    out = str(tmp_path / "out")
    with run_in(out, first, ENTRIES, {}):
        match = rf"{message}.*host .*, pid {os.getpid()}, since 2"
        with pytest.raises(ConfigError, match=match) as error, run_in(out, second, entries, {}):
            pass
        assert "\n" not in str(error.value)
    with run_in(out, second, entries, {}):
        pass


def test_shards_keep_the_failures_of_each_other(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with run_in(out, Shard(1, 2), ENTRIES, {}) as one, run_in(out, Shard(2, 2), ENTRIES, {}) as two:
        record_failures(out, one, {"a": "x"})
        record_failures(out, two, {"b": "y"})
        record_failures(out, one, {"c": "z"})
    assert json.loads((tmp_path / "out.info.json").read_text())["failed"] == {"b": "y", "c": "z"}


def test_a_shard_removes_only_its_own_leftovers(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    out = str(tmp_path / "out")
    with run_in(out, Shard(2, 2), ENTRIES, {}):
        for name in (".a.json.abc_1234.tmp", ".b.json.abc_1234.tmp", ".notes.tmp"):
            (tmp_path / "out" / name).touch()
        with run_in(out, Shard(1, 2), ENTRIES, {}):
            assert sorted(os.listdir(out)) == [".b.json.abc_1234.tmp", ".notes.tmp"]
        assert JsonRegions(out).names() == []


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    save_regions(tmp_path, "a", Regions(torch.ones(1, 4)))
    (tmp_path / "._a.json").touch()
    assert JsonRegions(tmp_path).names() == ["a"]


def test_packing_waits_for_all_shards(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "stored"
    save.mkdir()
    for name in "abcd":
        save_regions(save, name, Regions(torch.ones(1, 4), torch.full((1, 2048), 3.0), width=64, height=48))
    common = ["--images", str(images), "--boxes", f"regions:{save}", "--out", f"{tmp_path}/out", "--workers", "0"]
    assert main([*common, "--shard", "1/2", "--packed"]) == 0
    assert "images of other shards are missing; --pack" in capsys.readouterr().out
    assert main([*common, "--shard", "2/2", "--packed"]) == 0
    assert (tmp_path / "out.packed").exists()
    got = JsonRegions(tmp_path / "out").regions("a")
    assert got.features is not None and got.features[:].unique().tolist() == [3.0] and got.image_feature is None


class FeatureSource(BoxSource):
    def __init__(self, with_features: bool) -> None:
        self.with_features = with_features

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        if entry.name == "b":
            raise PermissionError("b is locked")
        features = torch.full((1, 2048), 3.0) if self.with_features else None
        return Regions(torch.ones(1, 4), features, class_scores=torch.ones(1, 5))


def test_features_of_the_source_are_written_or_replaced(images: Path, tmp_path: Path) -> None:
    source = FeatureSource(True)
    entries = source.entries(str(images))
    outcome = extract(entries, source, None, tmp_path / "own")
    assert outcome.written == ["a", "c", "d"] and outcome.failed == {"b": "b is locked"}
    assert extract(entries, source, None, tmp_path / "own").skipped == ["a", "c", "d"]
    extract(entries, source, lambda images, boxes: [torch.zeros(len(b), 2048) for b in boxes], tmp_path / "cnn")
    own, cnn = (JsonRegions(tmp_path / name).regions("a") for name in ("own", "cnn"))
    assert own.features is not None and cnn.features is not None and cnn.class_scores is not None
    assert own.features[0, 0] == 3 and own.image_feature is None
    assert cnn.features[0, 0] == 0 and cnn.image_feature is not None
    with pytest.raises(ConfigError, match="no features of a: --weights is needed"):
        extract(entries, FeatureSource(False), None, tmp_path / "none")
