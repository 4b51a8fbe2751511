"""Made-up batches: the shapes of a task's data without the data, for reports, benchmarks, exports and tests.

A task describes its samples with a `MadeUp`: their usual sizes, and a function that adds text and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import Config, dataset_sections
from common.data.collate import collate
from common.data.sample import Batch, Sample
from common.data.text import join_segments
from common.data.transforms import pad_to_canvas
from common.regions.lazy_features import Features
from common.regions.regions import FEATURE_DIM, with_image_box

FIRST_WORD = 1000  # BERT's vocabulary starts with special and unused entries


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a word-piece vocabulary of `size` entries: the special tokens, and the first ordinary word."""

    size: int
    cls: int = 101
    sep: int = 102
    mask: int = 103
    first: int = FIRST_WORD

    @classmethod
    def of_size(cls, size: int) -> Vocabulary:
        """Returns the ids of BERT, or small ones where `size` is too small to be BERT's vocabulary."""
        return cls(size) if size > FIRST_WORD else cls(size, cls=1, sep=2, mask=3, first=4)


class Draw:
    """The random numbers of one batch."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        """Returns an integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.rng))

    def uniform(self, *shape: int) -> Tensor:
        """Returns float32 numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.rng)

    def words(self, count: int, vocabulary: Vocabulary) -> list[int]:
        """Returns the ids of `count` ordinary words."""
        return torch.randint(vocabulary.first, vocabulary.size, (count,), generator=self.rng).tolist()

    def fewer(self, most: int, least: int = 1) -> int:
        """Returns a size between half of `most` and `most`, as the samples of a batch differ in size."""
        return self.number(max(least, (most + 1) // 2), max(least, most))


def set_text(sample: Sample, segments: list[list[int]], vocabulary: Vocabulary) -> None:
    """Gives a sample the text `[CLS] segment [SEP] segment [SEP] ...` of lists of word ids."""
    ids, types = join_segments(segments, vocabulary.cls, vocabulary.sep)
    sample.text_ids, sample.segment_ids = torch.tensor(ids), torch.tensor(types)


def fill_text(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """Gives a sample the text `[CLS] words [SEP]`, and no targets."""
    set_text(sample, [draw.words(words, vocabulary)], vocabulary)


@dataclass(frozen=True)
class MadeUp:
    """How the made-up samples of a task look.

    fill: (sample, cfg, words, vocabulary, draw) -> None; sets text and targets of a sample that has its image or
    features and its boxes. words: (cfg) -> usual number of word pieces, without special tokens. boxes: usual number of
    regions, the whole-image box among them. canvas: images lie on a canvas of one size.
    auxiliary: (cfg, samples, vocabulary, draw, targets) -> the batches of the other data sets of a list.
    """

    fill: Callable[[Sample, Config, int, Vocabulary, Draw], None] = fill_text
    words: Callable[[Config], int] = lambda cfg: 20
    boxes: int = 36
    canvas: bool = False
    auxiliary: Callable[[Config, int, Vocabulary, Draw, bool], tuple[Batch, ...]] | None = None


def made_up_batch(
    made_up: MadeUp,
    cfg: Config,
    samples: int = 2,
    words: int | None = None,
    boxes: int | None = None,
    image: tuple[int, int] | None = None,
    seed: int = 0,
    targets: bool = True,
    equal: bool = False,
) -> Batch:
    """Returns a batch that the module of `cfg` accepts. Equal arguments return equal batches.

    The first sample has the full sizes, the others have between half of them and all. The masks mark the padding.
    samples: B. words: word pieces of the longest text without special tokens; of a task with choices, in query and
    choice together. boxes: regions of a sample, with ADD_IMAGE_AS_A_BOX the whole image first. image: height and width
    in pixels, default SCALES. None is the usual number of the task. targets: False leaves them out, as in a test split.
    equal: all samples have the full sizes.
    Raises ValueError for sizes that are too small or do not fit the position embeddings.
    """
    words, boxes = made_up.words(cfg) if words is None else words, made_up.boxes if boxes is None else boxes
    if samples < 1 or words < 2 or boxes < 2:
        raise ValueError(f"{samples} samples, {words} words, {boxes} boxes: expected at least 1, 2 and 2")
    vocabulary = Vocabulary.of_size(cfg.NETWORK.VLBERT.vocab_size)
    draw = Draw(seed)
    made = []
    for number in range(samples):
        full = number == 0 or equal
        size = boxes if full else draw.fewer(boxes, 2)
        sample = _regions(cfg, number, size, image or cfg.SCALES, made_up.canvas, full, draw)
        made_up.fill(sample, cfg, words if full else draw.fewer(words, 2), vocabulary, draw)
        sample.targets = sample.targets if targets else {}
        made.append(sample)
    batch = collate(made)
    if made_up.auxiliary is not None:
        batch.auxiliary = made_up.auxiliary(cfg, samples, vocabulary, draw, targets)
    positions = batch.text_ids.shape[-1] + 2  # all regions share one, END has the last
    if positions > cfg.NETWORK.VLBERT.max_position_embeddings:
        raise ValueError(
            f"{words} words need {positions} positions, "
            f"NETWORK.VLBERT.max_position_embeddings is {cfg.NETWORK.VLBERT.max_position_embeddings}"
        )
    return batch


def _regions(
    cfg: Config, number: int, boxes: int, image: tuple[int, int], canvas: bool, full: bool, draw: Draw
) -> Sample:
    """Returns a sample with image or features and boxes, without text. full: the image has the full width."""
    network, whole = cfg.NETWORK, dataset_sections(cfg)[0].ADD_IMAGE_AS_A_BOX
    height, width = image
    if not full:
        width = draw.fewer(width, min(image))
    pixels: Tensor | None = None
    features: Features | None = None
    if network.IMAGE_FEAT_PRECOMPUTED:
        features = draw.uniform(boxes - whole, FEATURE_DIM)
    else:
        means, stds = (torch.tensor(values)[:, None, None] for values in (network.PIXEL_MEANS, network.PIXEL_STDS))
        pixels = (255.0 * draw.uniform(3, height, width) - means) / stds
        pixels = pad_to_canvas(pixels, *sorted(image)) if canvas else pixels
    found = _boxes(boxes - whole, height, width, draw)
    if whole:
        found, features = with_image_box(found, features, None, width, height)
    return Sample(
        id=number,
        im_info=torch.tensor([width, height, 1.0, 1.0]),
        boxes=found,
        text_ids=[],
        segment_ids=[],
        image=pixels,
        features=features,
    )


def _boxes(count: int, height: int, width: int, draw: Draw) -> Tensor:
    """Returns [count, 4] xyxy in pixels, with sides between a tenth and three fifths of those of the image."""
    size = 0.1 + 0.5 * draw.uniform(count, 2)
    corner = (1.0 - size) * draw.uniform(count, 2)
    return torch.cat([corner, corner + size], dim=1) * torch.tensor([width - 1.0, height - 1.0] * 2)
