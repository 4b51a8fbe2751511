"""The doctor: what it tries, what it looks for, and when it calls the environment unusable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from common import doctor
from common.config import load_config

ROOT = Path(__file__).resolve().parents[2]


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
        assert "MISSING  data/coco/ and 6 things in it, for vqa/mine\n" in out
        assert "MISSING  model/pretrained_model/ and 2 things in it, for vqa/mine\n" in out

    def test_what_is_there_is_counted_and_what_is_not_is_named(self, cfg, capsys):
        for name in ("vqa/answers_vqa.txt", "vqa/v2_OpenEnded_mscoco_train2014_questions.json"):
            (Path("data/coco") / name).parent.mkdir(parents=True, exist_ok=True)
            (Path("data/coco") / name).touch()
        store = Path("data/coco/vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome.packed")
        store.mkdir(parents=True)
        doctor.report_configs([("vqa", cfg)])
        lines = capsys.readouterr().out.splitlines()
        at = lines.index("found    data/coco/: 3 of 6 things in it, for vqa/mine")
        region = "vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome"
        assert lines[at + 1 : at + 4] == [
            f"  MISSING  {region} or {region}.packed or {region}.zip, for vqa/mine",
            "  MISSING  vqa/v2_OpenEnded_mscoco_test2015_questions.json, for vqa/mine",
            "  MISSING  vqa/v2_OpenEnded_mscoco_val2014_questions.json, for vqa/mine",
        ]

    def test_a_broken_config_does_not_stop_the_others(self, cfg, capsys):
        (cfg.parent / "bad.yaml").write_text("NO_SUCH_KEY: 1")
        doctor.report_configs([("vqa", cfg.parent / "bad.yaml"), ("vqa", cfg)])
        out = capsys.readouterr().out
        assert "vqa/bad cannot be used: " in out and "NO_SUCH_KEY" in out and "\n1 config;" in out

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({}, False),  # a checkpoint to start from brings the language weights
            ({"NETWORK.PARTIAL_PRETRAIN": ""}, True),
            ({"NETWORK.PARTIAL_PRETRAIN": "", "NETWORK.BERT_RANDOM_INIT": True}, False),
        ],
    )
    def test_language_weights_are_wanted_where_a_run_would_read_them(self, cfg, overrides, expected):
        needs = doctor.needs(load_config("vqa", cfg, overrides))
        files = ("bert-base-uncased/pytorch_model.bin", "bert-base-uncased/model.safetensors")
        assert ((Path("model/pretrained_model"), files) in needs) is expected

    def test_backbone_and_regions(self, cfg):
        raw = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False, "NETWORK.IMAGE_PRETRAINED": "model/resnet"}
        needs = doctor.needs(load_config("vqa", cfg, {**raw, "DATASET.REGION_PATH": "here/regions"}))
        assert (Path("model"), ("resnet-0000.model",)) in needs
        assert (Path("here"), ("regions", "regions.packed", "regions.zip")) in needs
        assert not any("genome" in choice for _, choices in needs for choice in choices)

    def test_every_published_config_is_looked_at(self, capsys, monkeypatch):
        """And the whole fits on a screen."""
        monkeypatch.chdir(ROOT)
        assert doctor.main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        count = len([file for task in doctor.TASKS for file in Path("cfgs", task).glob("*.yaml")])
        assert any(line.startswith(f"{count} configs;") for line in lines)
        assert not any("cannot be used" in line for line in lines) and len(lines) < 60


class TestCommand:
    def test_a_config_elsewhere_needs_its_task(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"_BASE_": str(ROOT / "cfgs/vqa/base_4x16G_fp32.yaml")}))
        with pytest.raises(SystemExit) as end:
            doctor.main(["--cfg", str(path)])
        assert end.value.code == 2 and "--task is needed" in capsys.readouterr().err
        assert doctor.main(["--cfg", str(path), "--task", "vqa"]) == 0
        assert "for vqa/mine" in capsys.readouterr().out

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
