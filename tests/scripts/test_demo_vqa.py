"""The demo runs from nothing to its table, finds its finished run again, and its baselines look at no image."""

import json
import re
from pathlib import Path

from scripts.demo_vqa import main


def test_from_nothing_to_the_table(tmp_path, capsys):
    arguments = ["--fast", "--world", str(tmp_path / "world"), "--out", str(tmp_path / "out")]
    main(arguments)
    printed = capsys.readouterr().out
    assert re.search(r"^overall +\d+ +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE)
    for name in ("model", "results", "images"):
        path = Path(re.search(rf"^{name} +(\S+)", printed, re.MULTILINE)[1])
        assert path.is_file()
        assert tmp_path in path.parents
    results = json.loads(next((tmp_path / "out").rglob("*_vqa2_test2015.json")).read_text())
    assert results
    assert set(results[0]) == {"question_id", "answer"}
    assert len(list((tmp_path / "world/vgbua_res101_precomputed").glob("*.packed"))) == 2

    main(arguments)  # the same world, and nothing left to train
    assert "is there" in capsys.readouterr().out
