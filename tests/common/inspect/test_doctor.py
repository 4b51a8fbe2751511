"""The doctor: what it tries, what it looks for, and when it calls the environment unusable."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from common.config import load_config
from common.config.table import task_names
from common.inspect import doctor
from common.needs import Need, run_needs
from tests.paths import ROOT
from tests.pretrain.world import tiny_pretrain
from tests.pretrain.world import write_world as write_captions
from tests.tiny import tiny_vqa, write_settings


class TestEnvironment:
    def test_versions_and_precisions(self, capsys):
        assert doctor.report_environment()
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert f"torch {torch.__version__.partition('+')[0]}" in lines["packages"]
        assert lines["python"].startswith(".".join(map(str, sys.version_info[:3])))
        assert {"cpu", "precision"} <= lines.keys()

    @pytest.mark.parametrize("name", ["fp32", "bf16"])
    def test_a_precision_that_works_has_a_time(self, name):
        text = doctor.try_precision(name, torch.device("cpu"))
        assert text.endswith(" ms") and float(text.split()[0]) > 0

    def test_a_precision_that_does_not_says_why(self, monkeypatch):
        def refuse(*args: object) -> None:
            raise RuntimeError("no such instruction\nat line 7")

        monkeypatch.setattr("common.precision.Precision.backward", refuse)
        assert doctor.try_precision("bf16", torch.device("cpu")) == "NO (no such instruction)"
        monkeypatch.undo()
        assert doctor.try_precision("fp8", torch.device("cpu")).startswith("NO (precision 'fp8'")

    def test_numbers_that_are_not_finite_do_not_count_as_working(self, monkeypatch):
        monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.full(size, torch.inf))
        assert doctor.try_precision("fp32", torch.device("cpu")) == "NOT FINITE"

    def test_cpu_features(self, tmp_path):
        (tmp_path / "cpuinfo").write_text(
            "processor\t: 0\nmodel name\t: Fast One\nflags\t\t: fpu avx2 amx_bf16 avx512_bf16x\n\nmodel name\t: B\n"
        )
        assert doctor.read_cpu(tmp_path / "cpuinfo") == ("Fast One", ["avx2", "amx_bf16"])
        name, features = doctor.read_cpu(tmp_path / "nothing")
        assert name and features == []

    @pytest.mark.parametrize("module", ["torch", "torchvision"])
    def test_an_unusable_environment_ends_with_1_and_still_looks_for_files(self, module):
        """A module that is None in sys.modules cannot be imported."""
        code = (
            f"import sys; sys.modules[{module!r}] = None; from common.doctor import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, "--cfg", "cfgs/vqa/scenes.yaml"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 1 and run.stderr == ""
        assert "UNUSABLE   torch or torchvision cannot be imported" in run.stdout and "1 config;" in run.stdout


class TestConfigs:
    @pytest.fixture
    def cfg(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The base VQA config in an empty folder that stands in for the repository."""
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "cfgs/vqa/mine.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump({"_BASE_": str(ROOT / "cfgs/vqa/base_4x16G_fp32.yaml")}))
        return path

    def test_an_empty_folder(self, cfg, capsys):
        doctor.report_configs([("vqa", cfg)])
        out = capsys.readouterr().out
        assert "MISSING  data/coco/ and 11 things in it, for vqa/mine\n" in out
        assert "MISSING  model/pretrained_model/ and 2 things in it, for vqa/mine\n" in out

    def test_what_is_there_is_counted_and_what_is_not_is_named(self, cfg, capsys):
        for name in ("vqa/answers_vqa.txt", "vqa/v2_OpenEnded_mscoco_train2014_questions.json"):
            (Path("data/coco") / name).parent.mkdir(parents=True, exist_ok=True)
            (Path("data/coco") / name).touch()
        store = Path("data/coco/vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome.packed")
        store.mkdir(parents=True)
        doctor.report_configs([("vqa", cfg)])
        lines = capsys.readouterr().out.splitlines()
        at = lines.index("found    data/coco/: 3 of 11 things in it, for vqa/mine")
        region = "vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome"
        assert lines[at + 1 : at + 9] == [
            f"  MISSING  {name}, for vqa/mine"
            for name in (
                "annotations/image_info_test2015.json",
                "annotations/instances_train2014.json",
                "annotations/instances_val2014.json",
                f"{region} or {region}.packed or {region}.zip",
                "vqa/v2_OpenEnded_mscoco_test2015_questions.json",
                "vqa/v2_OpenEnded_mscoco_val2014_questions.json",
                "vqa/v2_mscoco_train2014_annotations.json",
                "vqa/v2_mscoco_val2014_annotations.json",
            )
        ]

    def test_a_broken_config_does_not_stop_the_others(self, cfg, capsys):
        (cfg.parent / "bad.yaml").write_text("NO_SUCH_KEY: 1")
        doctor.report_configs([("vqa", cfg.parent / "bad.yaml"), ("vqa", cfg)])
        out = capsys.readouterr().out
        assert "vqa/bad cannot be used: " in out and "NO_SUCH_KEY" in out and "\n1 config;" in out

    def test_an_image_set_that_the_task_lacks(self, cfg, capsys):
        problems = doctor.report_configs([("vqa", cfg)], ["DATASET.VAL_IMAGE_SET=val2017"])
        assert len(problems) == 1 and problems[0].startswith("vqa/mine cannot be used: image set 'val2017'")

    def test_an_error_leaves_warnings_switched_on(self, cfg, monkeypatch):
        def fail(*args: object) -> None:
            raise KeyError("a bug")

        monkeypatch.setattr(doctor, "load_config", fail)
        with pytest.raises(KeyError):
            doctor.report_configs([("vqa", cfg)])
        assert logging.root.manager.disable == logging.NOTSET

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({}, False),  # a checkpoint to start from brings the language weights
            ({"NETWORK.PARTIAL_PRETRAIN": ""}, True),
            ({"NETWORK.PARTIAL_PRETRAIN": "", "NETWORK.BERT_RANDOM_INIT": True}, False),
        ],
    )
    def test_language_weights_are_wanted_where_a_run_would_read_them(self, cfg, overrides, expected):
        needs = run_needs("vqa", load_config("vqa", cfg, overrides))
        files = ("bert-base-uncased/pytorch_model.bin", "bert-base-uncased/model.safetensors")
        assert (Need(Path("model/pretrained_model"), files) in needs) is expected

    def test_backbone_and_regions(self, cfg):
        raw = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False, "NETWORK.IMAGE_PRETRAINED": "model/resnet"}
        needs = run_needs("vqa", load_config("vqa", cfg, {**raw, "DATASET.REGION_PATH": "here/regions"}))
        assert Need(Path("model"), ("resnet-0000.model",)) in needs
        assert Need(Path("here"), ("regions", "regions.packed", "regions.zip"), region_store=True) in needs
        assert not any("genome" in name for need in needs for name in need.names)

    def test_every_published_config_is_looked_at(self, capsys, monkeypatch):
        """And the whole fits on a screen."""
        monkeypatch.chdir(ROOT)
        assert doctor.main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        count = len([file for task in task_names() for file in Path("cfgs", task).glob("*.yaml")])
        assert any(line.startswith(f"{count} configs;") for line in lines)
        assert not any("cannot be used" in line for line in lines) and len(lines) < 60


class TestCommand:
    def test_a_config_elsewhere_needs_its_task(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"_BASE_": str(ROOT / "cfgs/vqa/base_4x16G_fp32.yaml")}))
        with pytest.raises(SystemExit) as end:
            doctor.main(["--cfg", str(path)])
        assert end.value.code == 2 and "--task is needed" in capsys.readouterr().err
        assert doctor.main(["--cfg", str(path), "--task", "vqa"]) == 1
        out = capsys.readouterr().out
        assert "for vqa/mine" in out and "\n13 problems:\n  missing: data/coco/annotations/image_info" in out

    def test_a_task_that_does_not_exist(self, tmp_path, capsys):
        with pytest.raises(SystemExit):
            doctor.main(["--cfg", str(tmp_path / "a.yaml"), "--task", "vqq"])
        assert "there is no vqq/task.py" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("users", "text"),
        [
            ({"vqa/a", "vqa/b"}, "vqa/*"),
            ({"vqa/a", "vcr/c"}, "vqa/a, vcr/c"),
            ({"vcr/c", "vcr/d", "vcr/e"}, "3 of vcr"),
        ],
    )
    def test_users_in_short(self, users, text):
        assert doctor.shorten(users, ["vqa/a", "vqa/b", "vcr/c", "vcr/d", "vcr/e", "vcr/f"]) == text


class TestDeep:
    """What a config names is opened."""

    @pytest.fixture
    def vqa(self, tiny_world: Path, tmp_path: Path) -> Path:
        return write_settings(tiny_vqa(tiny_world, tmp_path / "out"), tmp_path / "tiny.yaml")

    @pytest.fixture
    def captions(self, tmp_path: Path) -> Path:
        root = write_captions(tmp_path / "captions")
        return write_settings(tiny_pretrain(root, tmp_path / "out"), tmp_path / "tiny.yaml")

    def look(self, task: str, path: Path, *args: str) -> int:
        return doctor.main(["--cfg", str(path), "--task", task, "--deep", "--samples", "4", *args])

    def test_a_config_that_would_run(self, vqa, capsys):
        assert self.look("vqa", vqa) == 0
        out = capsys.readouterr().out
        assert "ok       train data: vqa 30 records, 4 made into samples" in out
        assert "ok       weights: none are read: random ones are configured" in out and "\n0 problems\n" in out

    def test_pretraining_that_would_run(self, captions, capsys):
        assert self.look("pretrain", captions) == 0
        out = capsys.readouterr().out
        assert "ok       captions of train: 12 of 12 with regions, 4 read; 4 images decoded" in out
        assert "conceptual_captions 6 records, 4 made into samples; general_corpus 4 records" in out

    def test_weights_that_do_not_fit(self, vqa, tmp_path, capsys):
        torch.save({"state_dict": {"module.nothing": torch.zeros(1)}}, tmp_path / "w.model")
        assert self.look("vqa", vqa, "--set", f"NETWORK.PARTIAL_PRETRAIN={tmp_path / 'w.model'}") == 1
        out = capsys.readouterr().out
        assert "PROBLEM  weights: cannot be used" in out and "w.model" in out

    def test_each_broken_thing_is_named(self, captions, tmp_path, capsys):
        """A record without regions, an image that is none, a score of the wrong width."""
        root = tmp_path / "captions"
        (root / "train_frcnn/00000003.json").unlink()
        (root / "train_image/00000000.jpg").write_bytes(b"no image")
        assert self.look("pretrain", captions, "--set", "NETWORK.VLBERT.visual_region_classes=9") == 1
        out = capsys.readouterr().out
        assert "PROBLEM  captions of train: 11 of 12 with regions" in out
        assert "1 of 12 records have no region file" in out and "train_image/00000000.jpg" in out
        assert "7 classes, NETWORK.VLBERT.visual_region_classes is 9" in out

    def test_a_broken_region_file(self, captions, tmp_path, capsys):
        (tmp_path / "captions/val_frcnn/00000000.json").write_text("{")
        assert self.look("pretrain", captions) == 1
        assert "val_frcnn/00000000.json" in capsys.readouterr().out

    def test_a_vocabulary_that_is_too_large(self, vqa, capsys):
        assert self.look("vqa", vqa, "--set", "NETWORK.VLBERT.vocab_size=20") == 1
        assert "NETWORK.VLBERT.vocab_size is 20, the vocabulary has" in capsys.readouterr().out

    def test_it_needs_a_config(self, capsys):
        with pytest.raises(SystemExit):
            doctor.main(["--deep"])
        assert "--deep and --set need --cfg" in capsys.readouterr().err
