"""The programs accept the commands in the documents."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/PREPARE_DATA.md"]
DOCUMENTS += ["model/pretrained_model/PREPARE_PRETRAINED_MODELS.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
RUN_ARGUMENTS = {"nondist_run": 3, "dist_run_single": 4, "dist_run_multi": 7, "dist_run_slurm": 5}


def commands(document: str) -> Iterator[str]:
    """The command lines of its code blocks, continued ones joined, without comments. Lines with `...` are left out."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "sh") else ():
            line = line.partition(" #")[0].strip()
            if "..." not in line and re.match(r"(python |make |scripts/\w+\.sh )", line):
                yield line


ALL = [(document, line) for document in DOCUMENTS for line in commands(document)]


class Accepted(Exception):  # noqa: N818
    """The program parsed its command line."""


def test_there_are_commands():
    assert len(ALL) > 40 and {document for document, _ in ALL} >= set(DOCUMENTS) - {
        "CHANGELOG.md",
        "docs/design.md",
        "docs/add_a_task.md",
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of runpy: the module is imported already
@pytest.mark.parametrize("line", [line for _, line in ALL], ids=[f"{d}: {line}"[:90] for d, line in ALL])
def test_command(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    for word in words:
        if word.startswith(("cfgs/", "scripts/")) and not set(word) & set("*{"):
            assert Path(word).exists(), word
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(), re.MULTILINE)
    elif words[0] == "python":
        assert_accepted(words[1:], monkeypatch, capsys)
    else:
        name = Path(words[0]).stem
        assert len(words) - 1 >= RUN_ARGUMENTS[name]
        script = words.index(next(word for word in words if word.endswith("train_end2end.py")))
        assert_accepted([words[script], "--cfg", words[script + 1], *words[script + 3 :]], monkeypatch, capsys)


def assert_accepted(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)  # type: ignore[arg-type]
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    module = words[0] == "-m"
    monkeypatch.setattr(sys, "argv", words[module:])
    with pytest.raises((Accepted, SystemExit)) as end:
        runpy.run_module(words[1], run_name="__main__") if module else runpy.run_path(words[0], run_name="__main__")
    assert end.type is Accepted, capsys.readouterr().err
