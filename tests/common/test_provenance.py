"""What made a checkpoint."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.provenance import git_state, made_with
from common.weights import checkpoint


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout of one commit."""
    (tmp_path / "a.py").write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_versions_machine_and_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vqa/train_end2end.py", "--cfg", "my config.yaml"])
    made = made_with("cuda:1", 7)
    assert made["python"] == platform.python_version() and made["torch"] == torch.__version__
    assert made["host"] == socket.gethostname() and (made["device"], made["seed"]) == ("cuda:1", 7)
    assert made["command"] == "vqa/train_end2end.py --cfg 'my config.yaml'"
    assert {"vl-bert", "git_commit", "git_dirty"} < made.keys()


def test_it_is_read_from_a_checkpoint_without_running_code(tmp_path):
    made = made_with("cpu", 1)
    checkpoint.save_file(tmp_path / "a.model", {"made_with": made})
    assert checkpoint.load_file(tmp_path / "a.model") == {"made_with": made}


def test_a_checkout_has_a_commit_and_may_be_dirty(checkout):
    clean = git_state(checkout)
    assert len(clean["git_commit"]) == 40 and clean["git_dirty"] is False
    (checkout / "new.py").write_text("2\n")
    assert git_state(checkout) == clean  # an output of a run, perhaps
    (checkout / "a.py").write_text("2\n")
    assert git_state(checkout) == {**clean, "git_dirty": True}


def test_outside_a_checkout_there_is_no_commit(checkout, monkeypatch):
    """A package that is installed inside the checkout of something else is not that checkout."""
    inside = checkout / "site-packages"
    inside.mkdir()
    none = {"git_commit": None, "git_dirty": None}
    assert git_state(inside) == none
    monkeypatch.setenv("PATH", "")
    assert git_state(checkout) == none
