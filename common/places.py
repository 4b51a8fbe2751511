"""Indices of the real entries of padded tensors.

A selection by a mask on a GPU waits for the device, because the number of selected entries is part of a shape.
Collation finds the indices on the CPU, and a batch carries them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NO_TARGET = -1  # in integer targets


def true_places(mask: Tensor) -> Tensor:
    """The True entries of a mask in row-major order: int64 [n], indices of the flattened mask. Waits for the device."""
    return mask.flatten().nonzero().squeeze(1)


def target_places(target: Tensor) -> Tensor:
    """The entries of a target to predict, as `true_places`: those of a mask, or those that are not NO_TARGET."""
    return true_places(target if target.dtype == torch.bool else target != NO_TARGET)


@dataclass(frozen=True)
class PackedSequences:
    """The N real positions of the packed sequences of words, regions and END.

    at: int64 [2, N], sample and position of each, in row-major order. length: L, that of the longest sequence.
    """

    at: Tensor
    length: int

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> PackedSequences:
        """Of the lengths int64 [B]. Waits for the device."""
        longest = int(lengths.max())
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]  # (B, L)
        return cls(real.nonzero().t(), longest)

    @classmethod
    def joined(cls, parts: Sequence[PackedSequences], sizes: Sequence[int]) -> PackedSequences:
        """The sequences of several batches, whose numbers of samples are `sizes`, one below the other."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        samples = [part.at[0] + start for part, start in zip(parts, starts, strict=True)]
        positions = [part.at[1] for part in parts]
        at = torch.stack([torch.cat(samples), torch.cat(positions)])
        return cls(at, max(part.length for part in parts))


@dataclass(frozen=True)
class Places:
    """What collation knows of the masks and targets of a batch. None where it is not known.

    boxes: int64 [K], the real boxes, as indices of [B * R].
    sequences: those of the text with all real boxes; with choices those of [B * C] rows.
    targets: int64 [n] by name, what is to predict, as indices of the flattened target. Targets that are masks, and
        integer targets padded with NO_TARGET.
    """

    boxes: Tensor | None = None
    sequences: PackedSequences | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Places:
        """Returns a copy with `function` applied to every tensor."""
        boxes, sequences = self.boxes, self.sequences
        return Places(
            None if boxes is None else function(boxes),
            None if sequences is None else PackedSequences(function(sequences.at), sequences.length),
            {name: function(places) for name, places in self.targets.items()},
        )
