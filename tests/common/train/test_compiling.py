"""TRAIN.COMPILE: compiled encoder layers have the losses and gradients of the plain ones, from few compilations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from common.errors import ConfigError
from common.nn.bert import Encoder
from common.nn.cpu.bert import FastEncoder
from common.train.compiling import check_compiler, compile_encoders

LENGTHS = ((9, 7), (12, 12), (20, 3), (33, 30), (17, 16), (40, 25))
COMPILATIONS = 3  # at most, over an epoch


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def encoder(kind: type[Encoder], recompute: bool = False, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return kind(2, 16, 2, 32, hidden_dropout=dropout, attention_dropout=dropout, recompute=recompute).train()


def step(model: Encoder, lengths: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Real states of the last layer, and the gradients of a loss."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    torch.manual_seed(sum(lengths))
    hidden, weight = torch.randn(*mask.shape, 16), torch.randn(int(mask.sum()), 16)
    model.zero_grad()
    states = model(hidden, mask).layers[-1][mask]
    (states * weight).sum().backward()
    return states.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert found.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n} {text}")


@pytest.mark.parametrize("kind", [Encoder, FastEncoder])
def test_the_same_gradients_over_the_lengths_of_an_epoch(kind):
    plain, compiled = encoder(kind), encoder(kind)
    counter = CompileCounterWithBackend("aot_eager")
    compile_encoders(nn.Sequential(compiled), counter)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for lengths in LENGTHS:
        (states, gradients), (want, wanted) = step(compiled, lengths), step(plain, lengths)
        torch.testing.assert_close(states, want, atol=2e-5, rtol=1e-4)
        assert_equal(gradients, wanted)
    assert 1 <= counter.frame_count <= COMPILATIONS
    compiled.eval()
    with torch.no_grad():
        compiled(torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool))
    assert counter.frame_count <= COMPILATIONS  # evaluation is not compiled


def test_dropout_is_the_same_when_layers_are_computed_again():
    models = [encoder(FastEncoder, again, dropout=0.3) for again in (False, True)]
    for model in models:
        compile_encoders(model, "aot_eager")
    (states, gradients), (again, of_again) = (step(model, LENGTHS[0]) for model in models)
    assert torch.equal(states, again)
    assert_equal(of_again, gradients)
    other = step(encoder(FastEncoder), LENGTHS[0])[0]
    assert not torch.allclose(states, other)  # there was dropout


def test_a_layer_with_a_hook_is_called():
    model, calls = encoder(FastEncoder), []
    compile_encoders(model, "aot_eager")
    model.layer[1].register_forward_hook(lambda *args: calls.append(1))
    want = step(encoder(FastEncoder), LENGTHS[0])
    found = step(model, LENGTHS[0])
    assert calls == [1]
    assert_equal(found[1], want[1])


def test_no_compiler_is_an_error_of_the_config(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("cpu", "cuda"):
        with pytest.raises(ConfigError, match=r"TRAIN.COMPILE"):
            check_compiler(torch.device(name))
