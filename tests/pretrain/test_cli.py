"""Pretraining from the command line, and its checkpoint as the start of the other tasks."""

from __future__ import annotations

import pytest
import torch

from common.config import load_config
from common.task import load_task
from common.weights import checkpoint
from common.weights.foreign import load_initial_weights
from tests.paths import ROOT
from tests.pretrain.world import tiny_pretrain
from tests.task_check import train_losses
from tests.tiny import write_settings

TRAIN = "pretrain/train_end2end.py"
SIZES = {
    "BERT_RANDOM_INIT": True,
    "IMAGE_RANDOM_INIT": True,
    "IMAGE_NUM_LAYERS": 50,
    "IMAGE_PRETRAINED": "",
    "IMAGE_FINAL_DIM": 16,
}


def test_a_run_and_its_checkpoint_in_every_task(command, settings, world, tmp_path, caplog):
    """A task loads the parameters that have the same name, or the name that the shipped rules change it to."""
    assert command(TRAIN, "--do-test") == 0
    folder = tmp_path / "out/tiny/train_train"
    losses = train_losses(folder)
    assert len(losses) == 6 and all(loss < 50 for loss in losses.values())
    best = checkpoint.best_path(folder, "tiny")
    trained = checkpoint.load_file(best)["state_dict"]

    vlbert = settings["NETWORK"]["VLBERT"]
    heads = {
        "vqa": ("vqa/base_4x16G_fp32.yaml", "final_mlp.0.dense.weight", "mlm_head.predictions.transform"),
        "vcr": ("vcr/base_q2a_4x16G_fp32.yaml", "cnn_loss_reg.0.dense.weight", "mvrc_head.transform"),
        "refcoco": ("refcoco/base_gt_boxes_4x16G.yaml", "final_mlp.0.dense.weight", "mvrc_head.transform"),
    }
    for name, (path, target, source) in heads.items():
        sizes = {k: v for k, v in vlbert.items() if k != "visual_region_classes"}
        network = SIZES | {"BERT_MODEL_NAME": str(world / "bert"), "PARTIAL_PRETRAIN": str(best), "VLBERT": sizes}
        dataset = {"DATASET_PATH": str(world)}
        task = load_task(name)
        yaml = {"_BASE_": str(ROOT / "cfgs" / path), "NETWORK": network, "DATASET": dataset}
        if name == "vqa":  # the classifier's last layer starts from word embeddings, which need the answers
            network["CLASSIFIER_PRETRAINED"] = False
        cfg = load_config(name, write_settings(yaml, tmp_path / f"{name}.yaml"))
        model = task.build_model(cfg)
        (report,) = load_initial_weights(model, cfg, task.adapt_pretrained(cfg))
        state = model.state_dict()
        assert torch.equal(state[target], trained[f"vlbert.{source}.dense.weight"])
        encoder = [k for k in state if "encoder.layer" in k]
        assert len(encoder) == 2 * 16 and set(encoder) <= set(report.loaded)
        assert "image_feature_extractor.obj_downsample.1.weight" in report.loaded
        assert "aux_text_visual_embedding.weight" in report.unused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["DATASET.0.DATASET_PATH=/nowhere"], "/nowhere/train_frcnn.json: no such file"),
        (["DATASET.1.TRAIN_ANNOTATION_FILE=/nowhere/a.doc+b.doc"], "/nowhere/a.doc: no such file"),
        (["DATASET.0.TRAIN_IMAGE_SET=train2014"], "TRAIN_IMAGE_SET 'train2014': conceptual_captions has train, val"),
        (["NETWORK.VLBERT.visual_region_classes=8"], "7 classes, NETWORK.VLBERT.visual_region_classes is 8"),
    ],
)
def test_mistakes_are_one_line(error, changes, message):
    assert message in error(TRAIN, "--set", "NUM_WORKERS_PER_GPU=0", *changes)


def test_validation_reads_the_same_text_each_time(world, tmp_path):
    """The original went on where the last validation stopped (original 5.27)."""
    from common.data.loader import build_loader

    cfg = load_config("pretrain", write_settings(tiny_pretrain(world, tmp_path), tmp_path / "tiny.yaml"))
    loader = build_loader(load_task("pretrain").build_dataset(cfg, "val"), cfg, "val")
    first, second = ([[b.ids, b.auxiliary[0].text_ids.tolist()] for b in loader] for _ in range(2))
    assert first == second and len(first) == 2


def test_losses_of_a_bf16_run_are_near_those_of_fp32(settings, tmp_path):
    """Without dropout they differ by at most 2 %."""
    from common.train.run import run_training

    settings["NETWORK"]["VLBERT"] |= {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
    settings["TRAIN"] |= {"LR": 1e-4, "GRAD_ACCUMULATE_STEPS": 1, "END_EPOCH": 4}
    path = write_settings(settings, tmp_path / "tiny.yaml")
    losses = {}
    for precision in ("fp32", "bf16"):
        changes = {"OUTPUT_PATH": str(tmp_path / precision), "TRAIN.PRECISION": precision}
        folder = run_training(load_task("pretrain"), load_config("pretrain", path, changes), path)
        losses[precision] = list(train_losses(folder).values())
    assert losses["bf16"] != losses["fp32"] and len(losses["fp32"]) == 12
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
