"""What the report of a model says, against counts by hand; slow: every shipped YAML at full size."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config import load_config
from common.data.sample import ModelOutput
from common.errors import ConfigError
from common.inspect.model_report import (
    OTHER,
    PARTS,
    TOTAL,
    ModelReport,
    Step,
    find_problems,
    frozen,
    giga,
    inference_step,
    main,
    peak_memory,
    render,
    report_config,
    step_precision,
    training_step,
)
from common.nn.cpu.bert import VECTOR
from common.precision import Precision
from common.task import load_task
from tests.made_up import made_up_batch
from tests.paths import ROOT

SHIPPED = sorted(
    path.relative_to(ROOT / "cfgs")
    for task in ("vcr", "refcoco", "vqa", "pretrain")
    for size in ("base", "large")
    for path in (ROOT / "cfgs" / task).glob(f"{size}_*.yaml")
    if not path.stem.endswith("_train")  # the model of another file
)
MANIFESTS = ROOT / "tests/golden/cases/H_manifests"
# Parameters, those that train, and entries of the state dict (original 5.25, 8.17, 9.19 and 10.11).
COUNTS = {
    ("pretrain", "base_e2e"): (156_989_627, 156_661_883, 901),
    ("pretrain", "base_prec"): (114_491_515, 114_491_515, 218),
    ("pretrain", "base_prec_withouttextonly"): (114_490_747, 114_490_747, 217),
    ("pretrain", "large_e2e"): (384_569_787, 384_242_043, 1093),
    ("pretrain", "large_prec"): (342_071_675, 342_071_675, 410),
    ("vcr", "base"): (155_787_922, 155_460_178, 897),
    ("vcr", "large"): (382_978_194, 382_650_450, 1089),
    ("refcoco", "base"): (155_135_041, 154_807_297, 893),
    ("refcoco", "large"): (381_845_569, 381_517_825, 1085),
    ("vqa", "base"): (115_041_849, 115_041_849, 211),
    ("vqa", "large"): (342_553_657, 342_553_657, 403),
}
# With a visual scale of 0, the published start, the first gradient does not reach the image tower.
SEEN = ["DEVICE=cpu", "NETWORK.VLBERT.visual_scale_text_init=1.0", "NETWORK.VLBERT.visual_scale_object_init=1.0"]

H, F, D, LAYERS, HEADS, VOCABULARY = 16, 40, 24, 2, 2, 50
TINY = [
    *SEEN,
    "SCALES=[32, 48]",
    "NETWORK.IMAGE_NUM_LAYERS=50",
    f"NETWORK.IMAGE_FINAL_DIM={D}",
    f"NETWORK.VLBERT.hidden_size={H}",
    f"NETWORK.VLBERT.visual_size={D}",
    f"NETWORK.VLBERT.num_hidden_layers={LAYERS}",
    f"NETWORK.VLBERT.num_attention_heads={HEADS}",
    f"NETWORK.VLBERT.intermediate_size={F}",
    f"NETWORK.VLBERT.vocab_size={VOCABULARY}",
]
FILES = {
    "vqa": ROOT / "cfgs/vqa/base_4x16G_fp32.yaml",
    "vcr": ROOT / "cfgs/vcr/base_q2a_4x16G_fp32.yaml",
    "refcoco": ROOT / "cfgs/refcoco/base_gt_boxes_4x16G.yaml",
}
WORDS, BOXES = 7, 4
TOKENS = {"vqa": WORDS + 4, "vcr": WORDS + 3, "refcoco": WORDS + 2}
ROWS = {"vqa": 1, "vcr": 4, "refcoco": 1}  # sequences of a sample
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny() -> dict[str, ModelReport]:
    """A report of each task with one sample."""
    return {task: report_config(task, path, TINY, 1, WORDS, BOXES) for task, path in FILES.items()}


def encoder_flops(task: str, samples: int = 1) -> int:
    """Four projections and the two of the MLP for every real position; scores and mixing of values for every pair of
    positions of the padded sequences, which are whole vectors."""
    batch = made_up_batch(task, load_config(task, FILES[task], TINY), samples, WORDS, BOXES)
    rows, length = samples * ROWS[task], -(-(TOKENS[task] + BOXES + 1) // VECTOR) * VECTOR
    real = int(batch.text_mask.sum()) + ROWS[task] * int(batch.box_mask.sum()) + rows  # and END
    return LAYERS * (2 * real * (4 * H * H + 2 * H * F) + rows * 2 * 2 * length * length * H)


def convolution_flops(task: str, part: str) -> int:
    """Of all convolutions whose name contains `part`, from their shapes."""
    cfg = load_config(task, FILES[task], TINY)
    model, batch = load_task(task).build_model(cfg).eval(), made_up_batch(task, cfg, 1, WORDS, BOXES)
    total = 0

    def add(layer: nn.Conv2d, args: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        total += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and part in name:
            layer.register_forward_hook(add)
    with torch.inference_mode():  # a convolution with a hook is called, not fused; its work is the same
        model(batch)
    return total


class TestFlops:
    @pytest.mark.parametrize("task", FILES)
    def test_bf16_on_a_cpu_counts_the_same(self, tiny, task):
        """Its products and convolutions are oneDNN's, which the counter must be told of."""
        low = report_config(task, FILES[task], [*TINY, "TRAIN.PRECISION=bf16"], 1, WORDS, BOXES)
        assert low.inference.flops == tiny[task].inference.flops
        assert low.training.flops == tiny[task].training.flops

    @pytest.mark.parametrize("task", FILES)
    def test_the_encoder_by_hand(self, tiny, task):
        report = tiny[task]
        assert report.sequence == TOKENS[task] + BOXES + 1
        assert report.inference.flops["encoder"] == encoder_flops(task)

    @pytest.mark.parametrize("task", FILES)
    def test_backward_of_the_encoder_is_twice_its_forward(self, tiny, task):
        assert tiny[task].training.flops["encoder"] == 3 * tiny[task].inference.flops["encoder"]

    @pytest.mark.parametrize("task", ["vcr", "refcoco"])
    def test_the_image_tower_by_hand(self, tiny, task):
        flops = tiny[task].inference.flops
        assert flops["backbone"] == convolution_flops(task, ".backbone.") > 0
        assert flops["RoI head"] == convolution_flops(task, ".roi_head_feature_extractor.") > 0

    def test_features_have_no_image_tower(self, tiny):
        flops = tiny["vqa"].inference.flops
        assert flops["backbone"] == flops["RoI head"] == 0

    def test_the_heads_by_hand(self, tiny):
        """VQA: transform and 3129 answers. RefCOCO+: transform and score of each box. VCR: pooler and score."""
        assert tiny["vqa"].inference.flops["heads"] == 2 * H * H + 2 * H * 3129
        assert tiny["refcoco"].inference.flops["heads"] == BOXES * (2 * H * H + 2 * H)
        assert tiny["vcr"].inference.flops["heads"] == 4 * (2 * H * H + 2 * H)

    def test_the_rest_is_the_projections_of_regions(self, tiny):
        """From 4096 to D a box, and from D to H for each word and each box of each choice."""
        for task, report in tiny.items():
            elements = ROWS[task] * (report.tokens + BOXES)
            assert report.inference.flops[OTHER] == BOXES * 2 * 4096 * D + elements * 2 * D * H

    def test_training_a_vcr_model_runs_the_regulariser(self, tiny):
        """On every box of every choice, with its backward; pooler and classifier as in inference."""
        regulariser = 4 * BOXES * (2 * H * H + 2 * H * 81)
        assert tiny["vcr"].training.flops["heads"] == 3 * (tiny["vcr"].inference.flops["heads"] + regulariser)

    def test_frozen_stages_have_no_backward(self):
        """A backbone that is frozen to its end costs its forward, and only the first RoI convolutions save some."""
        every = [*TINY, "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[1,2,3,4]"]
        report = report_config("refcoco", FILES["refcoco"], every, 1, WORDS, BOXES)
        assert report.training.flops["backbone"] == report.inference.flops["backbone"]
        assert report.training.flops["RoI head"] > 2 * report.inference.flops["RoI head"]

    @pytest.mark.parametrize("task", FILES)
    def test_parts_make_up_the_total(self, tiny, task):
        for step in (tiny[task].inference, tiny[task].training):
            assert sum(step.flops[part] for part in (*PARTS, OTHER)) == step.flops[TOTAL]
            assert all(count >= 0 for count in step.flops.values()) and step.seconds > 0

    def test_samples_add_up(self, tiny):
        """Padding costs little: two samples, one of them shorter, are less than twice one."""
        two = report_config("vqa", FILES["vqa"], TINY, 2, WORDS, BOXES)
        assert two.samples == 2 and two.inference.flops["encoder"] == encoder_flops("vqa", 2)
        assert two.inference.flops["encoder"] < 2 * tiny["vqa"].inference.flops["encoder"]

    def test_bf16_counts_alike(self, tiny):
        bf16 = report_config("vcr", FILES["vcr"], [*TINY, "TRAIN.PRECISION=bf16"], 1, WORDS, BOXES)
        assert bf16.precision == bf16.configured == "bf16"
        assert bf16.training.flops == tiny["vcr"].training.flops
        assert bf16.loss == pytest.approx(tiny["vcr"].loss, rel=0.05) and bf16.problems == []


class TestSteps:
    @pytest.mark.parametrize("task", FILES)
    def test_every_trained_parameter_learns(self, tiny, task):
        report = tiny[task]
        assert report.problems == [] and report.idle == []
        assert report.trained_tensors > 50

    def test_with_a_visual_scale_of_zero_the_image_tower_waits(self):
        """Weight decay moves it in VCR, whose SGD adds the decay to the gradient: that is no learning."""
        closed = [*TINY, "NETWORK.VLBERT.visual_scale_text_init=0", "NETWORK.VLBERT.visual_scale_object_init=0"]
        for task in ("refcoco", "vcr"):
            report = report_config(task, FILES[task], closed, 1, WORDS, BOXES)
            assert report.problems == [] and len(report.idle) > 40
            assert all(n.startswith("image_feature_extractor.") or ".visual_1x1_" in n for n in report.idle)

    def test_the_optimizer_step_is_that_of_the_config(self):
        """SGD's first step with momentum: -lr (clipped gradient + weight decay * weight), lr times the batch of 64."""
        cfg = load_config("vcr", FILES["vcr"], [*TINY, "TRAIN.CLIP_GRAD_NORM=0.01"])
        model = load_task("vcr").build_model(cfg)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        training_step(model, made_up_batch("vcr", cfg, 1, WORDS, BOXES), cfg, Precision("fp32", CPU))
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert torch.stack([p.grad.norm() for _, p in trained]).norm() == pytest.approx(0.01, rel=1e-3)
        for name, p in trained:
            step = -7e-5 * 64 * (p.grad + 1e-4 * before[name])
            torch.testing.assert_close(p.detach(), before[name] + step, atol=1e-7, rtol=1e-6)

    def test_inference_has_no_loss_heads_and_leaves_the_model_trainable(self):
        cfg = load_config("vcr", FILES["vcr"], TINY)
        model = load_task("vcr").build_model(cfg)
        wanted = [p.requires_grad for p in model.parameters()]
        batch = made_up_batch("vcr", cfg, 1, WORDS, BOXES)
        _, predictions = inference_step(model, batch, Precision("fp32", CPU))
        assert predictions["label_logits"].shape == (1, 4) and not model.training
        assert [p.requires_grad for p in model.parameters()] == wanted and not all(wanted)
        assert "label" in batch.targets

    def test_an_error_inside_thaws_the_model(self):
        layer = nn.Linear(2, 2)
        with pytest.raises(KeyError), frozen(layer):
            assert not layer.weight.requires_grad
            raise KeyError
        assert layer.weight.requires_grad

    def test_a_batch_without_targets_cannot_train(self):
        cfg = load_config("vqa", FILES["vqa"], TINY)
        batch = made_up_batch("vqa", cfg, 1, WORDS, BOXES, targets=False)
        with pytest.raises(ConfigError, match="no targets"):
            training_step(load_task("vqa").build_model(cfg), batch, cfg, Precision("fp32", CPU))

    def test_fp16_of_a_config_is_bf16_on_a_cpu(self):
        path = ROOT / "cfgs/vcr/large_q2a_4x16G_fp16.yaml"
        cfg = load_config("vcr", path, TINY)
        assert step_precision(load_task("vcr"), cfg, CPU).name == "bf16"
        report = report_config("vcr", path, TINY, 1, WORDS, BOXES)
        assert (report.configured, report.precision, report.problems) == ("fp16", "bf16", [])
        assert "bf16 for fp16" in render([report])


class TestProblems:
    def model(self) -> nn.Module:
        """Three layers with gradients of ones: the first is frozen."""
        model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
        model[0].requires_grad_(False)
        for layer in model[1:]:
            layer.weight.grad = torch.ones(1, 1)
        return model

    def test_none(self):
        assert find_problems(self.model(), {"loss": torch.tensor(1.0)}, {"1.weight", "2.weight"}) == []

    def test_values_that_are_not_finite(self):
        values = {"logits": torch.tensor([1.0, float("inf")]), "loss": torch.tensor(float("nan"))}
        assert find_problems(self.model(), values, set()) == ["logits is not finite", "loss is not finite"]

    def test_gradients(self):
        model = self.model()
        model[1].weight.grad = None
        model[2].weight.grad = torch.tensor([[float("nan")]])
        assert find_problems(model, {}, set()) == ["1.weight has no gradient", "the gradient of 2.weight is not finite"]

    def test_a_frozen_parameter_that_changed(self):
        assert find_problems(self.model(), {}, {"0.weight"}) == ["0.weight is frozen and changed"]


class TestText:
    def report(self, **changes: Any) -> ModelReport:
        parts = dict.fromkeys(PARTS, 10**9)
        values: dict[str, Any] = {
            "name": "vcr/base",
            "device": "cpu",
            "precision": "fp32",
            "configured": "fp32",
            "samples": 2,
            "choices": 4,
            "tokens": 35,
            "boxes": 16,
            "image": (600, 1200),
            "parameters": 155787922,
            "trained": 155460178,
            "entries": 897,
            "inference": Step({**parts, OTHER: 2 * 10**9, TOTAL: 6 * 10**9}, 1.5),
            "training": Step({**parts, OTHER: 0, TOTAL: 468 * 10**8}, 4.25),
            "loss": 0.69314,
            "trained_tensors": 306,
            "idle": ["a", "b"],
            "problems": [],
        }
        return ModelReport(**(values | changes))

    def rows(self, text: str) -> list[list[str]]:
        return [
            [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "vcr/base" in line
        ]

    def test_tables(self):
        sizes, flops, steps = self.rows(render([self.report()]))
        assert sizes[1:] == ["155,787,922", "155,460,178", "897", "2 x 4 choices", "35", "16", "52", "600 x 1200"]
        assert flops[1:] == ["23.4", "3", "0.5", "0.5", "0.5", "0.5", "1"]
        assert steps[1:] == ["cpu", "fp32", "0.6931", "0", "304 of 306", "4.25", "1.50"]

    def test_features_and_one_text(self):
        sizes, *_ = self.rows(render([self.report(image=None, choices=1)]))
        assert sizes[4] == "2" and sizes[-1] == "features"

    def test_columns_line_up(self):
        text = render([self.report(), self.report(name="vcr/base_but_longer")])
        for block in text.split("\n\n"):
            lines = [line for line in block.splitlines() if line.startswith("|")]
            assert len({len(line) for line in lines}) <= 1

    def test_problems_are_counted_and_named(self):
        text = render([self.report(problems=["loss is not finite", "x has no gradient"])])
        assert self.rows(text)[2][4] == "2"
        assert "PROBLEM vcr/base: loss is not finite" in text and "PROBLEM vcr/base: x has no gradient" in text

    @pytest.mark.parametrize(
        ("count", "text"), [(934.53e9, "934.5"), (10e9, "10.0"), (9.876e9, "9.88"), (4.7e6, "0.0047"), (0, "0")]
    )
    def test_giga(self, count, text):
        assert giga(count) == text


class TestCommandLine:
    def run(self, *arguments: str) -> int:
        return main([*arguments, "--words", str(WORDS), "--boxes", str(BOXES), "--set", *TINY])

    def test_tables_and_json(self, tmp_path, capsys):
        out = tmp_path / "figures" / "out.json"
        assert self.run("--cfg", *map(str, FILES.values()), "--batch", "2", "--json", str(out)) == 0
        text = capsys.readouterr().out
        for name in ("vqa/base_4x16G_fp32", "vcr/base_q2a_4x16G_fp32", "refcoco/base_gt_boxes_4x16G"):
            assert text.count(f"| {name} ") == 3
        assert "a multiply-add counting as 2" in text and "GiB" in text
        reports = json.loads(out.read_text())
        assert [r["samples"] for r in reports] == [2, 2, 2] and reports[0]["name"] == "vqa/base_4x16G_fp32"
        assert reports[1]["inference"]["flops"]["total"] == sum(
            v for k, v in reports[1]["inference"]["flops"].items() if k != "total"
        )

    def test_a_folder_that_is_no_task(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            self.run("--cfg", str(tmp_path / "mine.yaml"))
        assert stop.value.code == 2
        assert f"mine.yaml: there is no {tmp_path.name}/task.py; name the task" in capsys.readouterr().err

    def test_the_task_can_be_named(self, tmp_path, capsys):
        path = tmp_path / "mine.yaml"
        path.write_text(f"_BASE_: {FILES['vqa']}\n")
        assert self.run("--cfg", str(path), "--task", "vqa") == 0
        assert "| vqa/mine " in capsys.readouterr().out

    def test_a_missing_config(self, capsys):
        assert self.run("--cfg", "cfgs/vqa/nosuch.yaml") == 1
        assert "no configuration file cfgs/vqa/nosuch.yaml" in capsys.readouterr().err

    def test_sizes_that_do_not_fit(self, capsys):
        arguments = ["--cfg", str(FILES["vqa"]), "--words", "511", "--set", *TINY]
        assert main(arguments) == 1
        assert "vqa/base_4x16G_fp32.yaml: 511 words need 517 positions" in capsys.readouterr().err

    def test_problems_are_a_failure(self, monkeypatch, capsys):
        def broken(self: Any, batch: Any) -> ModelOutput:
            zero = 0.0 * sum(p.sum() for p in self.parameters())
            return ModelOutput({"label_logits": torch.zeros(1)}, zero + float("nan"))

        monkeypatch.setattr("vqa.module.VLBertForVQA.forward", broken)
        assert self.run("--cfg", str(FILES["vqa"])) == 1
        assert "PROBLEM vqa/base_4x16G_fp32: loss is not finite" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- shipped configs


def known_counts(path: Path) -> tuple[int, int, int]:
    task, stem = path.parts[0], path.stem
    return COUNTS[max((key for key in COUNTS if key[0] == task and stem.startswith(key[1])), key=lambda k: len(k[1]))]


@pytest.mark.parametrize("name", ["vcr_base_q2a_4x16G_fp32", "vqa_base_4x16G_fp32", "pretrain_base_prec_4x16G_fp32"])
def test_the_counts_are_those_of_the_reference(name):
    with gzip.open(MANIFESTS / f"{name}.json.gz", "rt") as file:
        manifest = json.load(file)
    counts = manifest["n_params"], manifest["n_trainable"], len(manifest["entries"])
    assert counts == known_counts(Path(*name.split("_", 1)))


def test_all_shipped_configs_are_here():
    assert len(SHIPPED) == 17 and {path.parts[0] for path in SHIPPED} == {"vcr", "refcoco", "vqa", "pretrain"}


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_counts_of_shipped_configs(path):
    """On the meta device, which has shapes and no numbers."""
    task = path.parts[0]
    with torch.device("meta"):
        model = load_task(task).build_model(load_config(task, ROOT / "cfgs" / path))
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    assert (sum(p.numel() for p in parameters), trained, len(model.state_dict())) == known_counts(path)


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_configs_take_a_step_at_full_size(path):
    report = report_config(path.parts[0], ROOT / "cfgs" / path, SEEN)
    assert (report.parameters, report.trained, report.entries) == known_counts(path)
    assert report.problems == [] and 0 < report.loss < 1e4
    assert report.idle == []
    layers, hidden = (24, 1024) if "large" in path.stem else (12, 768)
    batch = made_up_batch(path.parts[0], load_config(path.parts[0], ROOT / "cfgs" / path, SEEN), 1)
    rows = report.choices + len(batch.auxiliary)  # plain text, of the same length
    words = sum(int(b.text_mask.sum()) for b in (batch, *batch.auxiliary))
    real = words + report.choices * int(batch.box_mask.sum()) + rows  # and END
    length = -(-report.sequence // VECTOR) * VECTOR
    expected = 24 * real * hidden**2 + rows * 4 * length**2 * hidden
    assert report.inference.flops["encoder"] == layers * expected
    assert peak_memory() < 12 * 2**30
