"""Predictors from checkpoints, with sources of boxes and extractors of region features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from common.config import load_config
from common.errors import BoxError, CheckpointError, ConfigError
from common.predict.load import load_predictor
from common.task import load_task
from common.train.run import run_training
from common.weights import checkpoint
from tests.tiny import QUESTION, tiny_vqa, write_settings


class TestLoad:
    def test_one_path_is_enough(self, vqa_ckpt, image):
        prediction = load_predictor(vqa_ckpt, device="cpu")(image, question=QUESTION)
        assert len(prediction.answers) == 5 and 0 < prediction.answers[0]["probability"] < 1

    def test_a_foreign_checkpoint_needs_task_and_config(self, vqa_ckpt, image, tmp_path):
        content = checkpoint.load_file(vqa_ckpt)
        foreign, cfg = tmp_path / "foreign.model", tmp_path / "own.yaml"
        checkpoint.save_file(foreign, {f"module.{k}": v for k, v in content["state_dict"].items()})
        cfg.write_text(yaml.safe_dump(content["config"]))
        with pytest.raises(CheckpointError, match="has no task"):
            load_predictor(foreign)
        with pytest.raises(CheckpointError, match="has no config"):
            load_predictor(foreign, task="vqa")
        got = load_predictor(foreign, "vqa", cfg, device="cpu")(image, question=QUESTION)
        assert got.answers == load_predictor(vqa_ckpt, device="cpu")(image, question=QUESTION).answers

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"vocab_size": 10**12}, "asks for at least .* parameters: expected at most 2000000000"),
            ({"num_hidden_layers": 10**9}, "asks for at least .* parameters"),
            ({"visual_size": 10**9}, "asks for at least .* parameters"),
            ({"vocab_size": 30000}, r"does not fit .*word_embeddings.weight is \(.*\), the config asks for \(30000, "),
            ({"num_hidden_layers": 9}, "layers, the config asks for 9"),
        ],
    )
    def test_a_config_of_larger_sizes_than_the_weights_builds_no_model(
        self, vqa_ckpt, tmp_path, monkeypatch, changes, message
    ):
        content = checkpoint.load_file(vqa_ckpt)
        content["config"]["NETWORK"]["VLBERT"] |= changes
        if "visual_size" in changes:
            content["config"]["NETWORK"]["IMAGE_FINAL_DIM"] = changes["visual_size"]
        checkpoint.save_file(tmp_path / "odd.model", content)
        monkeypatch.setattr(type(load_task("vqa")), "build_model", lambda *args: pytest.fail("the model was built"))
        with pytest.raises(CheckpointError, match=message):
            load_predictor(tmp_path / "odd.model", device="cpu")

    def test_the_limit_of_parameters_may_be_another(self, vqa_ckpt):
        with pytest.raises(CheckpointError, match="at most 1000; --max-parameters"):
            load_predictor(vqa_ckpt, device="cpu", max_parameters=1000)

    def test_absurd_scales_are_refused(self, vqa_ckpt):
        with pytest.raises(CheckpointError, match="SCALES"):
            load_predictor(vqa_ckpt, device="cpu", overrides=["SCALES=[600,100000]"])

    def test_files_of_the_config_may_have_moved(self, vqa_ckpt, tmp_path):
        with pytest.raises(FileNotFoundError, match="NETWORK.BERT_MODEL_NAME"):
            load_predictor(vqa_ckpt, overrides=[f"NETWORK.BERT_MODEL_NAME={tmp_path}"], device="cpu")
        with pytest.raises(FileNotFoundError, match="ANSWER_VOCAB_FILE"):
            load_predictor(vqa_ckpt, overrides=[f"DATASET.ANSWER_VOCAB_FILE={tmp_path}/a"], device="cpu")

    def test_a_checkpoint_cannot_name_any_module(self, vqa_ckpt, tmp_path):
        content = checkpoint.load_file(vqa_ckpt)
        content["config"]["NETWORK"]["REGION_ENCODER"] = "module:os"
        checkpoint.save_file(tmp_path / "bad.model", content)
        with pytest.raises(ConfigError, match="modules of data/ only"):
            load_predictor(tmp_path / "bad.model", device="cpu")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"boxes": "grid"}, "unknown box source"),
            ({"boxes": "module:data.nothing"}, "module:data.nothing"),
            ({"encoder": "module:scripts.demos.shared"}, "region_features"),
            ({"device": "cuda"}, "finds no CUDA"),
            ({"device": "mps"}, "finds no Metal device"),
            ({"precision": "fp8"}, "fp8"),
            ({"device": "tpu"}, "expected auto, cpu, cuda, cuda:N or mps"),
        ],
    )
    def test_what_cannot_be_is_told(self, vqa_ckpt, options, message):
        if options.get("device") == "cuda" and torch.cuda.is_available():
            pytest.skip("there is CUDA here")
        if options.get("device") == "mps" and torch.backends.mps.is_available():
            pytest.skip("this is a Mac")
        with pytest.raises(ConfigError, match=message):
            load_predictor(vqa_ckpt, **{"device": "cpu", **options})

    def test_a_detector_without_weights_and_a_missing_cnn(self, vqa_ckpt, image, tmp_path):
        with pytest.raises(FileNotFoundError, match="no detector weights"):
            load_predictor(vqa_ckpt, boxes="detector:nothing.pth", device="cpu")
        predictor = load_predictor(vqa_ckpt, encoder="resnet:nothing.model", boxes="grid:2x2", device="cpu")
        with pytest.raises(ConfigError, match="no CNN at nothing.model.*regions:STORE"):
            predictor(image, question=QUESTION)

    def test_boxes_from_a_coco_file(self, vqa_ckpt, tiny_world):
        """The annotations of the image; an image that the file does not list has none."""
        path = tiny_world / "annotations/instances_val2014.json"
        content = json.loads(path.read_text())
        listed = content["images"][0]
        count = sum(a["image_id"] == listed["id"] for a in content["annotations"])
        predictor = load_predictor(vqa_ckpt, boxes=f"coco:{path}", device="cpu")
        found = predictor(tiny_world / "val2014" / listed["file_name"], question=QUESTION)
        assert len(found.boxes) - 1 == count > 1
        other = next((tiny_world / "train2014").glob("*.jpg"))
        with pytest.raises(BoxError, match=rf"instances_val2014\.json does not list .*{other.name}"):
            predictor(other, question=QUESTION)

    def test_boxes_from_a_detector(self, vqa_ckpt, image, tmp_path):
        torch.manual_seed(0)
        detector = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
        torch.save(detector.state_dict(), tmp_path / "detector.pth")
        predictor = load_predictor(vqa_ckpt, boxes=f"detector:{tmp_path}/detector.pth", device="cpu")
        found = predictor(image, question=QUESTION)
        assert 10 <= len(found.boxes) - 1 <= 100 and found.names[0] == "image"

    def test_in_bf16(self, vqa_ckpt, vqa_predictor, image):
        low = load_predictor(vqa_ckpt, device="cpu", precision="bf16")(image, question=QUESTION, top_k=40)
        exact = {a["answer"]: a["probability"] for a in vqa_predictor(image, question=QUESTION, top_k=40).answers}
        assert max(abs(a["probability"] - exact[a["answer"]]) for a in low.answers) < 0.1


def test_the_trainer_writes_what_a_predictor_needs(tiny_world: Path, tmp_path):
    settings = tiny_vqa(tiny_world, tmp_path)
    settings["TRAIN"] |= {"MAX_STEPS": 1}
    path = write_settings(settings, tmp_path / "one.yaml")
    folder = run_training(load_task("vqa"), load_config("vqa", path), path)
    predictor = load_predictor(next(folder.glob("*.model")), encoder="module:data.scene_regions", device="cpu")
    assert predictor.task == "vqa"
