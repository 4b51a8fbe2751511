"""Model folders: what is in them, and that they work alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from common.config import load_config
from common.data.text import load_tokenizer
from common.errors import CheckpointError, ConfigError
from common.export import main
from common.inference import from_pretrained, load_predictor
from common.weights import checkpoint
from tests.paths import ROOT
from tests.tiny import QUESTION

FILES = {
    "README.md",
    "answers.txt",
    "checkpoint.json",
    "classes.txt",
    "config.yaml",
    "model.safetensors",
    "preprocessing.json",
    "tokenizer_config.json",
    "vocab.txt",
}


@pytest.fixture(scope="module")
def folder(vqa_ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that was moved after the export, of a checkpoint with a validation."""
    place = tmp_path_factory.mktemp("folders")
    content = checkpoint.load_file(vqa_ckpt)
    content["validation_monitor"] = {"best_epoch": 3, "best_val": 0.875}
    content["made_with"] = {"python": "3.9.1", "host": "secret-host", "command": "train --secret", "git_commit": None}
    checkpoint.save_file(place / "a.model", content)
    assert main(["--ckpt", str(place / "a.model"), "--device", "cpu", "--license", "mit", "-o", f"{place}/new/"]) == 0
    return Path(shutil.move(place / "new", place / "moved"))


class TestFolder:
    def test_its_files(self, folder):
        assert {path.name for path in folder.iterdir()} == FILES
        assert list(folder.parent.glob(".*.tmp")) == []

    def test_it_answers_as_the_checkpoint_does(self, folder, vqa_predictor, image):
        predictor = load_predictor(folder, device="cpu")
        got = predictor(image, question=QUESTION)
        assert got.answers == vqa_predictor(image, question=QUESTION).answers
        assert predictor.labels == list(vqa_predictor.labels)

    def test_it_needs_no_file_beside_it(self, folder, image, tmp_path, tiny_world):
        """In another process and folder, from a copy whose config names no file of the world that trained it."""
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text.replace(str(tiny_world), "/nowhere"))
        assert str(tiny_world) in text
        code = (
            "from common.inference import load_predictor; import sys;"
            "print(load_predictor(sys.argv[1], device='cpu')(sys.argv[2], question='what is it?').answers[0]['answer'])"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code, "copy", str(image)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() in (copy / "answers.txt").read_text().split("\n")

    def test_its_config_loads_as_a_yaml_of_a_run(self, folder, vqa_ckpt):
        cfg = load_config("vqa", folder / "config.yaml")
        assert Path(cfg.NETWORK.BERT_MODEL_NAME) == folder / "vocab.txt"
        assert Path(cfg.DATASET.ANSWER_VOCAB_FILE) == folder / "answers.txt"
        trained = checkpoint.load_file(vqa_ckpt)["config"]
        assert cfg.TRAIN.to_dict() == trained["TRAIN"]

    def test_its_model_card(self, folder):
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlicense: mit\n")
        for part in (
            "SoftAcc 0.8750, in epoch 3",
            "python 3.9.1",
            "train2014",
            'load_predictor("path',
            'question="..."',
        ):
            assert part in card
        assert all(f"`{name}`" in card for name in FILES)

    def test_host_and_command_of_the_training_stay_private(self, folder):
        assert not [path for path in folder.iterdir() if b"secret" in path.read_bytes()]

    def test_preprocessing(self, folder, vqa_predictor):
        found = json.loads((folder / "preprocessing.json").read_text())
        cfg = vqa_predictor.cfg
        assert [found["short_side"], found["longest_side"]] == list(cfg.SCALES)
        assert found["pixel_means"] == list(cfg.NETWORK.PIXEL_MEANS) and found["image_is_first_box"] is True
        assert found["features"] == "precomputed" and found["region_encoder"] == "module:data.scene_regions"

    def test_a_folder_of_a_folder_is_the_same(self, folder, tmp_path):
        load_predictor(folder, device="cpu").save_pretrained(tmp_path / "again", licence="mit")
        for name in FILES:
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name

    def test_an_older_model_folder_is_replaced(self, vqa_predictor, tmp_path):
        vqa_predictor.save_pretrained(tmp_path / "a")
        (tmp_path / "a" / "vocab.txt").write_text("old")
        vqa_predictor.save_pretrained(tmp_path / "a")
        assert (tmp_path / "a" / "vocab.txt").read_text() != "old"

    def test_files_of_others_stay(self, vqa_predictor, tmp_path):
        (tmp_path / "thesis.tex").write_text("text")
        with pytest.raises(ConfigError, match=r"has thesis.tex: expected a new or empty folder"):
            vqa_predictor.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match=r"thesis.tex: a file: expected a folder"):
            vqa_predictor.save_pretrained(tmp_path / "thesis.tex")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_full_disk_leaves_nothing(self, vqa_predictor, tmp_path, monkeypatch):
        def disk_full(*args: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(yaml, "safe_dump", disk_full)
        with pytest.raises(OSError, match="No space left"):
            vqa_predictor.save_pretrained(tmp_path / "a")
        assert list(tmp_path.iterdir()) == []

    def test_the_cnn_of_the_region_features_comes_along(self, vqa_ckpt, image, tmp_path):
        from torchvision.models import resnet101

        torch.manual_seed(0)
        torch.save(resnet101().state_dict(), tmp_path / "cnn.model")
        first = load_predictor(vqa_ckpt, device="cpu", encoder=f"resnet:{tmp_path}/cnn.model", boxes="grid:2x2")
        expected = first(image, question=QUESTION).answers
        first.save_pretrained(tmp_path / "a")
        (tmp_path / "cnn.model").unlink()
        again = load_predictor(tmp_path / "a", device="cpu", boxes="grid:2x2")
        assert again(image, question=QUESTION).answers == expected

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("model.safetensors", b"abc", "model.safetensors: cannot be read"),
            ("model.safetensors", None, "model.safetensors: no such file"),
            ("config.yaml", None, "a folder without config.yaml"),
            ("config.yaml", b"SCALES: [1, 2]", "no _TASK_"),
            ("config.yaml", b"_TASK_: vqa\n_FILES_: {NETWORK.BERT_MODEL_NAME: ../x}", "file in the same folder"),
            ("config.yaml", b"_TASK_: chess", "chess"),
            ("checkpoint.json", b"{", "checkpoint.json: not valid JSON at line 1"),
            ("vocab.txt", None, "vocab.txt not found"),
            ("answers.txt", None, "answers.txt"),
        ],
    )
    def test_a_damaged_folder_is_told(self, folder, tmp_path, name, content, message):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_predictor(copy, device="cpu")

    def test_a_config_of_another_task_is_told(self, folder):
        with pytest.raises(ConfigError, match=r"config.yaml: a config of vqa, not of vcr"):
            load_config("vcr", folder / "config.yaml")


class TestTextFiles:
    def test_a_cut_vocabulary_in_the_folder_is_told(self, folder, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        lines = (copy / "vocab.txt").read_text().splitlines()
        cut = lines[: int(0.7 * len(lines))]
        (copy / "vocab.txt").write_text("\n".join(cut))
        with pytest.raises(CheckpointError, match=rf"vocab.txt \({len(cut)} entries.*vocab.txt \({len(lines)} entries"):
            load_predictor(copy, device="cpu")


class TestHub:
    def test_transformers_loads_the_tokenizer(self, folder, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ours = load_tokenizer(folder / "vocab.txt")
        texts = [QUESTION, "What COLOR is the Stár, left of 12 circles?", "a [MASK] heart and xyzzy!", "the-thing 中 _"]
        for text in texts:
            ids = ours.ids(ours.tokenize(text))
            assert theirs(text).input_ids == [ours.cls_id, *ids, ours.sep_id]
        assert theirs.mask_token_id == ours.mask_id and theirs.pad_token_id == ours.pad_id

    def test_from_a_folder(self, folder, image):
        assert from_pretrained(folder, device="cpu")(image, question=QUESTION).answers

    def test_from_and_to_a_repository(self, folder, vqa_predictor, image, monkeypatch, tmp_path):
        """The package is there, its requests are not."""
        hub = pytest.importorskip("huggingface_hub")
        calls = []

        class Api:
            def __init__(self, token: str | None = None) -> None:
                calls.append(("token", token))

            def create_repo(self, repo_id: str, **options: object) -> None:
                calls.append(("create", repo_id, options))

            def upload_folder(self, repo_id: str, folder_path: Path, **options: object) -> object:
                shutil.copytree(folder_path, tmp_path / repo_id)
                return type("Commit", (), {"commit_url": f"url/{repo_id}"})

        def download(repo_id: str, revision: str | None, token: str | None) -> str:
            calls.append(("download", repo_id, revision))
            return str(tmp_path / repo_id)

        monkeypatch.setattr(hub, "HfApi", Api)
        monkeypatch.setattr(hub, "snapshot_download", download)
        assert vqa_predictor.push_to_hub("me/tiny", private=True, token="t") == "url/me/tiny"
        again = from_pretrained("me/tiny", revision="v1", device="cpu")
        expected = vqa_predictor(image, question=QUESTION).answers
        assert again(image, question=QUESTION).answers == expected
        assert calls == [
            ("token", "t"),
            ("create", "me/tiny", {"private": True, "exist_ok": True}),
            ("download", "me/tiny", "v1"),
        ]

    def test_a_missing_folder_is_no_repository(self, tmp_path):
        with pytest.raises(ConfigError, match=r"no such folder, and no name of a repository"):
            from_pretrained(tmp_path / "nothing")
