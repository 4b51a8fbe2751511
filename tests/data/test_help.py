"""The command lines of folders that are no task answer --help without PyTorch."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

DATA = (
    "captions_download",
    "captions_files",
    "convert_detector",
    "extract_features",
    "own",
    "random_backbone",
    "random_detector",
    "scenes",
)
COMMANDS = [*(f"data.{name}" for name in DATA), "viz.attention", "viz.serve", "common.doctor", "common.export"]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_answers_without_torch(module: str) -> None:
    """A module that is None in sys.modules cannot be imported."""
    code = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_module({module!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr) == (0, "") and run.stdout.startswith("usage: ")
