"""The demo of pretraining runs from nothing to its table, and its second net starts from the weights of its first."""

import json
import re

from scripts.demo_pretrain import main


def test_from_nothing_to_the_table(tmp_path, capsys, caplog):
    arguments = ["--fast", "--world", str(tmp_path / "world"), "--out", str(tmp_path / "out")]
    main(arguments)
    printed = capsys.readouterr().out
    assert re.search(r"^Pretraining, held-out captions and text: .*MLMAccWVC [\d.]+", printed, re.MULTILINE)
    assert re.search(r"^overall +\d+ +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE)
    assert "after 3\nupdates" in printed
    assert (tmp_path / "out/from-scratch/scenes/train2014_train/scenes.log").is_file()
    log = (tmp_path / "out/from-pretraining/scenes/train2014_train/scenes.log").read_text()
    assert re.search(r"vl-bert_scenes_pretrain-best.model: \d+ tensors loaded", log), log
    scores = json.loads((tmp_path / "out/from-pretraining/scenes/train2014_train/scores.json").read_text())
    assert set(scores) == {"blind", "scratch", "pretrained"}
