"""The key table of each task, its errors, and that it needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.config import load_config
from common.config.convert import CONVERTERS
from common.config.table import key_table, load_keys, task_names, unread_keys
from common.errors import ConfigError
from tests.paths import ROOT

# Task -> path -> type, default, choices, minimum, maximum and whether a value has an effect. The table was written by
# the code before keys moved to their tasks. `python -m tests.common.config.test_table` writes it anew.
STORED = Path(__file__).parent / "key_tables.json"
TABLES = json.loads(STORED.read_text())
TASKS = sorted(TABLES)


def table_of(task: str) -> dict[str, list[Any]]:
    """The key table of a task as it is stored."""
    table = {
        path: [key.type, key.default, key.choices, key.minimum, key.maximum, key.has_effect]
        for path, key in sorted(key_table(task).items())
    }
    return json.loads(json.dumps(table))


def write_tables() -> None:
    """Stores the key tables of all tasks, one key a line."""
    parts = []
    for task in task_names():
        rows = ",\n".join(f"  {json.dumps(path)}: {json.dumps(row)}" for path, row in table_of(task).items())
        parts.append(f" {json.dumps(task)}: {{\n{rows}\n }}")
    STORED.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def test_the_tasks_of_the_repository():
    assert task_names() == TASKS == ["pretrain", "refcoco", "vcr", "vqa"]


@pytest.mark.parametrize("task", TASKS)
def test_keys_are_those_of_the_release_and_ours(task):
    """A change on purpose changes the stored table too."""
    assert table_of(task) == TABLES[task]


def test_the_original_has_152_keys_and_each_task_its_own():
    original = {task: {p for p, key in key_table(task).items() if not key.ours} for task in TASKS}
    assert len(set().union(*original.values())) == 152
    assert {t: len(paths) for t, paths in original.items()} == {"pretrain": 134, "vcr": 130, "vqa": 131, "refcoco": 133}


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_complete(task):
    for path, key in key_table(task).items():
        assert key.meaning, path
        assert CONVERTERS[key.type](key.default) == key.default, path


# Whether it may be true depends on other keys: only the check of the task reads it.
READ_BY_CHECK = {"NETWORK.ENABLE_CNN_REG_LOSS"}


def test_every_key_that_vqa_reads_is_in_its_code():
    places = [path for folder in ("common", "vqa") for path in (ROOT / folder).rglob("*.py")]
    code = "\n".join(p.read_text() for p in places if "config" not in p.parts and p.name != "keys.py")
    words = set(re.findall(r"\w+", code))
    read = {path for path, key in key_table("vqa").items() if key.read and len(key.choices) != 1} - READ_BY_CHECK
    names = {path: path.rpartition(".")[2] for path in read}
    # Code may put the split in front: f"{split}_IMAGE_SET".
    without_split = {path: re.sub("^(TRAIN|VAL|TEST)_", "_", name) for path, name in names.items()}
    assert sorted(path for path in read if not {names[path], without_split[path]} & words) == []


def test_unread_keys():
    given = ["TRAIN.LR", "DATASET.MASK_SIZE", "NETWORK.BERT_FROZEN", "DATASET.CACHE_MODE", "NETWORK.VLBERT.visual_ln"]
    assert unread_keys("vqa", given) == ["DATASET.MASK_SIZE", "NETWORK.BERT_FROZEN"]
    assert unread_keys("vcr", given) == ["NETWORK.BERT_FROZEN"]
    assert unread_keys("pretrain", ["DATASET[0].MASK_SIZE", "DATASET.1.MASK_SIZE"]) == ["DATASET.MASK_SIZE"]


@pytest.mark.parametrize("task", TASKS)
def test_a_config_needs_no_torch(task):
    """Neither one that loads nor one that is refused, so that a typo is reported at once."""
    code = (
        "import sys; from common.config import load_config; from common.errors import ConfigError\n"
        f"load_config({task!r})\n"
        f"try: load_config({task!r}, None, ['TRAIN.LRR=1'])\n"
        "except ConfigError as error: assert 'did you mean TRAIN.LR?' in str(error)\n"
        "else: raise AssertionError\n"
        "assert not {'torch', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


class TestErrors:
    """A task that is incomplete or contradicts itself is one line."""

    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        """write(keys.py, without="") makes the task `fifth`, which this process can import."""

        def write(keys: str | None, task: str = "fifth") -> None:
            folder = tmp_path / task
            folder.mkdir()
            (folder / "task.py").touch()
            if keys is not None:
                (folder / "keys.py").write_text("from common.config.keys import *\n" + keys)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, task, raising=False)
            monkeypatch.delitem(sys.modules, f"{task}.keys", raising=False)

        return write

    @pytest.mark.parametrize("name", ["vqq", "", "json", "os", "vqa.task", "../vqa"])
    def test_an_unknown_task(self, name):
        with pytest.raises(ConfigError) as error:
            load_config(name)
        expected = f"unknown task {name!r}: there is no {name}/task.py; the tasks here are pretrain, refcoco, vcr, vqa"
        assert str(error.value) == expected

    def test_a_task_without_keys(self, write):
        write(None)
        with pytest.raises(ConfigError, match="^task 'fifth': there is no fifth/keys.py, which must define KEYS$"):
            load_config("fifth")

    def test_keys_without_the_name(self, write):
        write("MINE = TaskKeys()")
        with pytest.raises(ConfigError, match="^task 'fifth': fifth/keys.py does not define KEYS$"):
            load_keys("fifth")

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ("KEYS = {}", "KEYS is a dict: expected a TaskKeys"),
            ("KEYS = TaskKeys(rows=(COMMON_KEYS[0],))", "the key RNG_SEED stands twice"),
            ("KEYS = TaskKeys(defaults={'TRAIN.LRR': 1})", "TRAIN.LRR is changed, but it is no key of fifth"),
            ("KEYS = TaskKeys(unread=('TRAIN.LRR',))", "TRAIN.LRR is changed, but it is no key of fifth"),
            ("KEYS = TaskKeys(defaults={'TRAIN.LR': 'x'})", "TRAIN.LR has the type 'float' and the default 'x'"),
            ("KEYS = TaskKeys(rows=(Key('A', 'number', 1, 'x'),))", "A has the type 'number' and the default 1"),
        ],
    )
    def test_keys_that_contradict_themselves(self, write, keys, message):
        write(keys)
        with pytest.raises(ConfigError) as error:
            load_config("fifth")
        assert str(error.value).startswith(f"fifth/keys.py: {message}") and "\n" not in str(error.value)

    def test_an_import_error_inside_keys_is_no_missing_task(self, write):
        write("import no_such_module")
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            load_config("fifth")

    def test_a_task_without_keys_does_not_hide_whose_key_it_is(self, write, tmp_path, monkeypatch):
        write(None)
        monkeypatch.chdir(tmp_path)
        assert "fifth" in task_names()
        with pytest.raises(ConfigError, match="DATASET.TRAIN_BOXES: no key of vqa, only of refcoco$"):
            load_config("vqa", None, ["DATASET.TRAIN_BOXES=gt"])

    def test_defaults_choices_and_effect_are_those_of_the_task(self, write):
        write(
            "KEYS = TaskKeys(rows=ANSWER_KEYS, defaults={'TRAIN.LR': 1, 'TRAIN.LOSS_LOGGERS': ['a,b']}, "
            "choices={'MODULE': ('', 'Mine')}, unread=paths(ANSWER_KEYS))"
        )
        table = key_table("fifth")
        assert table["TRAIN.LR"].default == 1.0 and table["TRAIN.LOSS_LOGGERS"].default == (("a", "b"),)
        assert table["MODULE"].choices == ("", "Mine") and "DATASET.MASK_SIZE" not in table
        assert unread_keys("fifth", ["DATASET.ANSWER_VOCAB_FILE", "MODULE"]) == ["DATASET.ANSWER_VOCAB_FILE"]


if __name__ == "__main__":
    write_tables()
