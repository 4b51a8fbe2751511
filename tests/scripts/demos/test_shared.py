"""What the demos share: where they may start, what they change in a config, tables, the choice of images."""

import json
from collections import Counter
from pathlib import Path

import pytest

from scripts.demos import shared as demo
from scripts.demos.contact_sheet import Tile

WORLD_FILES = {"DATASET.DATASET_PATH": "", "DATASET.ANSWER_VOCAB_FILE": "vqa/answers_vqa.txt"}


def start(tmp_path: Path, *arguments: str) -> demo.Demo:
    return demo.start([*arguments], "about", "vqa", [Path("cfgs/vqa/scenes.yaml")], WORLD_FILES)


def test_it_must_start_in_the_repository_root(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        start(tmp_path, "--fast")
    assert "repository root" in capsys.readouterr().err


def test_the_config_follows_the_command_line(tmp_path):
    world, out = tmp_path / "world", tmp_path / "out"
    (net,) = start(tmp_path, "--fast", "--world", str(world), "--out", str(out), "--seed", "7").nets
    assert str(world / "vqa/answers_vqa.txt") == net.cfg.DATASET.ANSWER_VOCAB_FILE
    assert (net.cfg.TRAIN.MAX_STEPS, net.cfg.RNG_SEED) == (3, 7)
    assert net.folder == out / "scenes/train2014_train"
    changed = net.with_keys({"TEST.BATCH_IMAGES": 5})
    assert (changed.cfg.TEST.BATCH_IMAGES, changed.folder) == (5, net.folder)
    assert net.cfg.TEST.BATCH_IMAGES != 5


def test_another_world_in_the_folder_is_left_alone(tmp_path, capsys):
    marker = {"made_by": "data.scenes", "seed": 9}
    (tmp_path / "world.json").write_text(json.dumps(marker))
    with pytest.raises(SystemExit):
        start(tmp_path, "--fast", "--world", str(tmp_path))
    assert "--force" in capsys.readouterr().err
    assert json.loads((tmp_path / "world.json").read_text()) == marker


def test_table_columns_line_up():
    lines = demo.format_table(["kind", "number", "score"], [["a long kind", 5, 50.04], ["b", "", 100.0]]).split("\n")
    assert lines == ["kind         number  score", "a long kind       5   50.0", "b                    100.0"]


def test_percent():
    assert demo.percent([True, False, False, True]) == 50
    assert demo.percent([0.25, 0.5]) == 37.5


def test_tiles_are_of_different_images_and_all_kinds_and_the_wrong_ones_last():
    kinds = ("left", "right", "how many")
    tiles = [(kinds[i % 3], Tile(f"{i // 2}.jpg", f"{i}", correct=i % 5 != 0)) for i in range(60)]
    kind_of = {tile.title: kind for kind, tile in tiles}
    picked = demo.pick_tiles(tiles)
    assert len({tile.image for tile in picked}) == len(picked) == 12
    assert [tile.correct for tile in picked] == [True] * 9 + [False] * 3
    assert set(Counter(kind_of[tile.title] for tile in picked[:9]).values()) == {3}


@pytest.mark.parametrize(("right", "wrong", "expected"), [(20, 0, 12), (2, 9, 5), (0, 2, 2)])
def test_fewer_tiles_where_there_are_few(right, wrong, expected):
    correct = [True] * right + [False] * wrong
    tiles = [("kind", Tile(f"{i}.jpg", "", correct=c)) for i, c in enumerate(correct)]
    assert len(demo.pick_tiles(tiles)) == expected
