"""A task is a folder: common/ names no task and none of the keys that one task adds."""

from __future__ import annotations

import re

import pytest

from common.config.keys import COMMON_KEYS
from common.config.table import load_keys, task_names
from common.task import load_task
from tests.paths import ROOT

TASKS = task_names()
FILES = sorted((ROOT / "common").rglob("*.py"))
# `vcr:FILE` names a format of box files, by which a user says where the boxes of images are.
FORMATS = {"common/regions/box_sources.py", "common/regions/arguments.py", "common/detect/sources.py"}


def own_keys(task: str) -> set[str]:
    """The last parts of the names of the keys that `<task>/keys.py` itself defines."""
    text = (ROOT / task / "keys.py").read_text()
    shared = {key.path.rpartition(".")[2] for key in COMMON_KEYS}
    defined = set(re.findall(r'\bKey\(\s*"([\w.]+)"', text))
    assert defined <= {key.path for key in load_keys(task).rows}
    return {path.rpartition(".")[2] for path in defined} - shared


def named(text: str, words: set[str]) -> set[str]:
    """The words that a text contains; --partial-pretrain is a flag for every task."""
    return words & set(re.findall(r"(?<![\w-])\w+", text))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_common_names_no_task_and_no_key_of_one(path):
    words = set().union(*map(own_keys, TASKS))
    if str(path.relative_to(ROOT)) not in FORMATS:
        words |= set(TASKS)
    assert named(path.read_text(), words) == set()


def test_the_keys_of_single_tasks_are_known():
    assert own_keys("vqa") == {"BOXES"} and "SEQ_LEN" in own_keys("pretrain") and "PERSON_NAMES" in own_keys("vcr")


def test_a_name_is_found():
    assert named('task == "vcr" and cfg.DATASET.BOXES', {"vcr", "BOXES"}) == {"vcr", "BOXES"}
    assert named("args.partial_pretrain --partial-pretrain pretraining of VQA", set(TASKS)) == set()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_name_of_its_folder(task):
    assert load_task(task).name == task
