"""Recording attention leaves a model as it was."""

from __future__ import annotations

import pytest
import torch

from common.nn.bert import Encoder
from common.nn.recording import recorded


def test_a_pass_is_recorded_and_its_result_is_the_same():
    torch.manual_seed(0)
    encoder = Encoder(3, 8, 2, 16).eval()
    hidden, mask = torch.rand(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    plain = encoder(hidden, mask)
    with recorded(encoder) as passes:
        seen = encoder(hidden, mask)
    torch.testing.assert_close(seen.layers[-1][mask], plain.layers[-1][mask])
    assert len(passes) == 1 and len(passes[0].layers) == len(passes[0].attention) == 3
    assert passes[0].attention[0][1, :, :, 3:].eq(0).all()  # nobody attends to padding
    after = encoder(hidden, mask)
    assert after.attention is None and len(after.layers) == 1 and len(passes) == 1


def test_needs_one_encoder():
    with pytest.raises(ValueError, match="has 0 encoders"), recorded(torch.nn.Linear(1, 1)):
        pass
