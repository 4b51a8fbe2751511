"""What users add to a model has an effect: adapters, hooks, pruning, quantisation. On the fast path and on the plain
one."""

from __future__ import annotations

import copy
import re
import runpy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from common.data.sample import Batch
from common.nn.bert import EncoderLayer
from common.nn.recording import recorded
from tests.common.nn.models import FILES, tiny_batch, tiny_model
from tests.paths import ROOT

TARGETS = ["query", "value", "dense"]


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def model(fast: bool) -> nn.Module:
    return tiny_model("vqa", fast)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return tiny_batch("vqa")


@torch.no_grad()
def logits(model: nn.Module, batch: Batch) -> Tensor:
    return model.eval()(batch).predictions["label_logits"]


def train(model: nn.Module, batch: Batch, steps: int = 3) -> list[float]:
    """Losses of some updates."""
    optimizer, losses = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2), []
    for _ in range(steps):
        loss = model.train()(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def with_lora(model: nn.Module, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options), model)
    return model


class TestLoRA:
    @pytest.mark.parametrize("target", TARGETS)
    def test_each_target_changes_the_logits_as_on_the_plain_path(self, target, batch):
        found = []
        for fast in (True, False):
            model = tiny_model("vqa", fast)
            before = logits(model, batch)
            torch.manual_seed(1)
            config = LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
            inject_adapter_in_model(config, model)
            found.append(logits(model, batch))
            assert not torch.allclose(found[-1], before, atol=1e-3)
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)

    def test_adapters_have_gradients_and_train(self, model, batch):
        with_lora(model)
        before = logits(model, batch)
        losses = train(model, batch, steps=8)
        assert losses[-1] < losses[0]
        assert not torch.allclose(logits(model, batch), before)
        model.train()(batch).loss.backward()
        adapters = {n: p for n, p in model.named_parameters() if "lora_" in n}
        assert {n.split(".lora_")[0].rpartition(".")[2] for n in adapters} == set(TARGETS)
        assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in adapters.values())
        assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)

    def test_recorded_attention_belongs_to_the_same_answer(self, model, batch):
        with_lora(model, init_lora_weights=False)
        plain = logits(model, batch)
        with recorded(model) as passes:
            seen = logits(model, batch)
        assert len(passes[0].attention) == 2
        torch.testing.assert_close(seen, plain, atol=1e-5, rtol=1e-5)

    def test_a_merged_model_gives_the_same_logits(self, model, batch):
        """Also where its bf16 weights were cast before: peft writes through `.data`, which no version counts."""
        with torch.autocast("cpu", torch.bfloat16):
            before = logits(model, batch)
            torch.manual_seed(1)
            adapted_model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
            adapted = logits(adapted_model, batch)
            merged = logits(adapted_model.merge_and_unload(), batch)
        assert (merged - adapted).norm() <= 0.02 * adapted.norm()
        assert (before - adapted).norm() > 0.1 * adapted.norm()


class TestHooks:
    @pytest.mark.parametrize("task", FILES)
    def test_every_leaf_module_is_called(self, task, fast):
        model, called = tiny_model(task, fast), set()
        leaves = {n: m for n, m in model.named_modules() if not [*m.children()] and not isinstance(m, nn.Identity)}
        for name, module in leaves.items():
            module.register_forward_hook(lambda m, args, out, n=name: called.add(n))
        model.train()(tiny_batch(task))
        assert sorted(leaves.keys() - called) == []

    def test_a_hook_sees_and_changes_padded_states(self, model, batch):
        """Where the fast path packs, a layer with a hook in it is called with [B, L, H], as on the plain path."""
        before, shapes = logits(model, batch), []
        layer = model.vlbert.encoder.layer[0]

        def double(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            shapes.append(tuple(output.shape))
            return 2 * output

        handle = layer.attention.self.value.register_forward_hook(double)
        changed = logits(model, batch)
        assert shapes == [(4, 17, 16)] and not torch.allclose(changed, before, atol=1e-3)
        handle.remove()
        torch.testing.assert_close(logits(model, batch), before)

    def test_backward_hooks(self, model, batch):
        seen = []
        layer = model.vlbert.encoder.layer[1]
        layer.output.dense.register_full_backward_hook(lambda m, inputs, outputs: seen.append(outputs[0].shape))
        model.train()(batch).loss.backward()
        assert [tuple(shape) for shape in seen] == [(4, 17, 16)]


class TestReplacements:
    def test_a_subclass_of_linear_is_called(self, model, batch):
        class Zero(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 0 * super().forward(x)

        before = logits(model, batch)
        for layer in model.vlbert.encoder.layer:
            for block, name in ((layer.attention.self, "value"), (layer.intermediate, "dense")):
                old = getattr(block, name)
                new = Zero(old.in_features, old.out_features)
                new.load_state_dict(old.state_dict())
                setattr(block, name, new)
        assert not torch.allclose(logits(model, batch), before, atol=1e-3)

    def test_a_forward_set_on_the_module_is_called(self, model, batch):
        before, dense = logits(model, batch), model.vlbert.encoder.layer[0].output.dense
        dense.forward = lambda x: torch.zeros(*x.shape[:-1], dense.out_features)
        assert not torch.allclose(logits(model, batch), before, atol=1e-3)

    def test_a_parametrization_is_applied(self, model, batch):
        class Half(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return weight / 2

        before = logits(model, batch)
        parametrize.register_parametrization(model.vlbert.encoder.layer[0].attention.self.value, "weight", Half())
        assert not torch.allclose(logits(model, batch), before, atol=1e-3)

    def test_a_layer_of_another_class_is_called(self, model, batch):
        class Identity(EncoderLayer):
            def forward(self, hidden: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
                return hidden, bias

        reference = copy.deepcopy(model)
        del reference.vlbert.encoder.layer[1]
        model.vlbert.encoder.layer[1] = Identity(16, 2, 32, "gelu", 0.0, 0.0)
        torch.testing.assert_close(logits(model, batch), logits(reference, batch))

    @pytest.mark.parametrize("block", ["attention.self", "attention.output", "output"])
    def test_a_dropout_of_another_class_is_called(self, block, batch):
        class Half(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x / 2

        found = []
        for fast in (True, False):
            model = tiny_model("vqa", fast)
            before = logits(model, batch)
            model.vlbert.encoder.layer[0].get_submodule(block).dropout = Half()
            found.append(logits(model, batch))
            assert not torch.allclose(found[-1], before, atol=1e-3)
        torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)

    def test_linear_layers_without_bias(self, model, batch):
        before = logits(model, batch)
        for layer in model.vlbert.encoder.layer:
            layer.attention.self.query.bias = None
            layer.output.dense.bias = None
        torch.testing.assert_close(logits(model, batch), before)  # initial biases are zero


class TestPruning:
    def test_pruned_weights_stay_zero_while_the_others_train(self, model, batch):
        layers = [m for n, m in model.vlbert.encoder.named_modules() if n.endswith(("query", "dense"))]
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount=0.5)
        before = [layer.weight.detach().clone() for layer in layers]
        losses = train(model, batch, steps=3)
        assert losses[-1] < losses[0]
        logits(model, batch)
        for layer, old in zip(layers, before, strict=True):
            gone = layer.weight_mask == 0
            assert 0.4 < gone.float().mean() < 0.6
            assert not layer.weight[gone].any() and not torch.equal(layer.weight, old)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
class TestQuantisation:
    def test_dynamic_int8_of_the_encoder(self, model, batch):
        want = logits(model, batch)
        model.vlbert.encoder = torch.ao.quantization.quantize_dynamic(model.vlbert.encoder, {nn.Linear}, torch.qint8)
        got = logits(model, batch)
        assert not torch.equal(got, want)
        assert (got - want).norm() <= 0.1 * want.norm()


def test_the_example_of_the_document_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"block{number}.py"
        path.write_text(block)
        runpy.run_path(str(path))
