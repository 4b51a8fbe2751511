"""The allowed waits and kernels of a step, waits.json, written anew by `python -m tests.gpu.waits [FORM ...]`.

For each form: `batch` (forward and backward), `update` of each precision (what an update adds to it), and `evaluation`
of a batch. Each has `waits`, a number for each "file function: kind", and `kernels`, the largest allowed number of
launches. `total` of waits is for the reader.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.gpu import fake_gpu
from tests.gpu.forms import FORMS, PRECISIONS
from tests.paths import ROOT

TABLE = Path(__file__).with_name("waits.json")
Entry = dict[str, Any]


def read_table() -> dict[str, dict[str, Entry]]:
    return json.loads(TABLE.read_text(encoding="utf-8"))


def measured(forms: Sequence[str], folder: Path) -> dict[str, Any]:
    """The observations of tests.gpu.measure. folder: a built shim. Two processes share the forms.

    Raises RuntimeError with the end of its output where a process fails.
    """
    runs = []
    for i, group in enumerate(g for g in (forms[::2], forms[1::2]) if g):
        out = folder / f"measured-{i}.json"
        command = [sys.executable, "-m", "tests.gpu.measure", str(out), *group]
        env = fake_gpu.environment(folder)
        runs.append((out, subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)))
    found: dict[str, Any] = {}
    for out, run in runs:
        _, err = run.communicate(timeout=600)
        if run.returncode:
            raise RuntimeError(f"tests.gpu.measure ended with {run.returncode}: {err[-2000:]}")
        found |= json.loads(out.read_text(encoding="utf-8"))
    return found


def table_of(cases: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of one form. Raises RuntimeError for a case that failed."""
    if failed := {title: found["error"] for title, found in cases.items() if "error" in found}:
        raise RuntimeError("\n".join(f"{title}: {text}" for title, text in failed.items()))
    entries = {"batch": cases["training bf16"]["batch"], "evaluation": cases["evaluation"]}
    entries |= {f"update {p}": cases[f"training {p}"]["update"] for p in PRECISIONS}
    return {name: _entry(found) for name, found in entries.items()}


def _entry(found: Mapping[str, Any]) -> Entry:
    """kernels: rounded up to the next ten, so that a kernel more does not count."""
    waits = dict(sorted(found["waits"].items()))
    return {"total": sum(waits.values()), "waits": waits, "kernels": -(-found["kernels"] // 10) * 10}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.waits", description=__doc__.split("\n")[0])
    parser.add_argument("forms", nargs="*", metavar="FORM", help=f"default: all; there are {', '.join(FORMS)}")
    forms = parser.parse_args(argv).forms or list(FORMS)
    if unknown := set(forms) - FORMS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(FORMS)}")
    with tempfile.TemporaryDirectory(prefix="fake-gpu-") as folder:
        try:
            fake_gpu.build(Path(folder))
        except fake_gpu.Unavailable as reason:
            print(f"no fake GPU: {reason}", file=sys.stderr)
            return 2
        found = measured(forms, Path(folder))
    table = (read_table() if TABLE.is_file() else {}) | {name: table_of(cases) for name, cases in found.items()}
    TABLE.write_text(json.dumps({name: table[name] for name in FORMS if name in table}, indent=1) + "\n")
    for name in found:
        print(f"{name}: " + ", ".join(f"{k} {v['total']} waits" for k, v in table[name].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
