"""Made-up batches: the shapes of a task's data without the data, for reports, benchmarks and tests.

A task is one row of FORMS: how long its samples are by default, and the function that fills in what only it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.config import Config
from common.config.sections import dataset_sections
from common.data.collate import collate
from common.data.sample import Batch, Sample
from common.data.text import join_segments
from common.data.transforms import pad_to_canvas
from common.regions.lazy_features import Features
from common.regions.regions import FEATURE_DIM, with_image_box

CHOICES = 4  # of a VCR question
CATEGORIES = 80  # of COCO; class 0 is the whole image
FIRST_WORD = 1000  # BERT's vocabulary starts with special and unused entries
LINKED = 0.2  # fraction of VCR's word pieces that name a detection
POSITIVE = 0.2  # fraction of candidate boxes that cover a referent
HIDDEN = 0.15  # fraction of words and of regions that pretraining masks


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a word-piece vocabulary of `size`: the special tokens, and the first of ordinary words."""

    size: int
    cls: int = 101
    sep: int = 102
    mask: int = 103
    first: int = FIRST_WORD

    @classmethod
    def of_size(cls, size: int) -> Vocabulary:
        """That of BERT, or a dense one where `size` is too small to be BERT's."""
        return cls(size) if size > FIRST_WORD else cls(size, cls=1, sep=2, mask=3, first=4)


class Draw:
    """Random numbers of one batch."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)

    def number(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.rng))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.rng)

    def words(self, count: int, vocabulary: Vocabulary) -> list[int]:
        """Ids of `count` ordinary words."""
        return torch.randint(vocabulary.first, vocabulary.size, (count,), generator=self.rng).tolist()

    def fewer(self, most: int, least: int = 1) -> int:
        """A size between half of `most` and `most`, as samples of one batch differ."""
        return self.number(max(least, (most + 1) // 2), max(least, most))


@dataclass(frozen=True)
class Form:
    """What the samples of a task look like.

    words: default number of word pieces for a config, without special tokens. boxes: default number of regions, the
    whole-image box among them. fill: (sample, cfg, words, vocabulary, draw) sets text and targets.
    canvas: images lie on a canvas of one size.
    auxiliary: (cfg, samples, vocabulary, draw, targets) makes the batches of the other datasets of a list.
    """

    words: Callable[[Any], int]
    boxes: int
    fill: Callable[[Sample, Any, int, Vocabulary, Draw], None]
    canvas: bool = False
    auxiliary: Callable[[Any, int, Vocabulary, Draw, bool], tuple[Batch, ...]] | None = None


def made_up_batch(
    task: str,
    cfg: Config,
    samples: int = 2,
    words: int | None = None,
    boxes: int | None = None,
    image: tuple[int, int] | None = None,
    seed: int = 0,
    targets: bool = True,
    equal: bool = False,
) -> Batch:
    """A batch that the module of `cfg` accepts, the same one for the same arguments.

    The first sample has the full sizes, the others have between half of them and all; masks tell.
    samples: B. words: word pieces of the longest text without special tokens, in VCR query and choice together.
    boxes: regions of a sample, with ADD_IMAGE_AS_A_BOX the whole image first. image: height and width in pixels,
    default SCALES. None is the default of the task. targets: False leaves them out, as in a test split.
    equal: all samples have the full sizes.
    Raises ValueError for an unknown task, and for sizes that are too small or do not fit the position embeddings.
    """
    if task not in FORMS:
        raise ValueError(f"no made-up batches for the task {task!r}, only for {', '.join(FORMS)}")
    form = FORMS[task]
    words, boxes = form.words(cfg) if words is None else words, form.boxes if boxes is None else boxes
    if samples < 1 or words < 2 or boxes < 2:
        raise ValueError(f"{samples} samples, {words} words, {boxes} boxes: expected at least 1, 2 and 2")
    vocabulary = Vocabulary.of_size(cfg.NETWORK.VLBERT.vocab_size)
    draw = Draw(seed)
    made = []
    for number in range(samples):
        full = number == 0 or equal
        size = boxes if full else draw.fewer(boxes, 2)
        sample = _regions(cfg, number, size, image or cfg.SCALES, form.canvas, full, draw)
        form.fill(sample, cfg, words if full else draw.fewer(words, 2), vocabulary, draw)
        sample.targets = sample.targets if targets else {}
        made.append(sample)
    batch = collate(made)
    if form.auxiliary is not None:
        batch.auxiliary = form.auxiliary(cfg, samples, vocabulary, draw, targets)
    positions = batch.text_ids.shape[-1] + 2  # all regions share one, END has the last
    if positions > cfg.NETWORK.VLBERT.max_position_embeddings:
        raise ValueError(
            f"{words} words need {positions} positions, "
            f"NETWORK.VLBERT.max_position_embeddings is {cfg.NETWORK.VLBERT.max_position_embeddings}"
        )
    return batch


# ---------------------------------------------------------------------------------------------- what tasks share


def _regions(
    cfg: Config, number: int, boxes: int, image: tuple[int, int], canvas: bool, full: bool, draw: Draw
) -> Sample:
    """A sample with its image or features and its boxes; full: the image is not narrower than `image`."""
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
    """[count, 4] xyxy in pixels: sides between a tenth and three fifths of the image's."""
    size = 0.1 + 0.5 * draw.uniform(count, 2)
    corner = (1.0 - size) * draw.uniform(count, 2)
    return torch.cat([corner, corner + size], dim=1) * torch.tensor([width - 1.0, height - 1.0] * 2)


def _set_text(sample: Sample, segments: list[list[int]], vocabulary: Vocabulary) -> None:
    ids, types = join_segments(segments, vocabulary.cls, vocabulary.sep)
    sample.text_ids, sample.segment_ids = torch.tensor(ids), torch.tensor(types)


# ---------------------------------------------------------------------------------------------- the tasks


def _fill_vqa(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """`[CLS] question [SEP] [MASK] [SEP]`, and soft scores of up to three answers."""
    _set_text(sample, [draw.words(words, vocabulary), [vocabulary.mask]], vocabulary)
    label = torch.zeros(cfg.DATASET.ANSWER_VOCAB_SIZE)
    answers = torch.randperm(len(label), generator=draw.rng)[:3]
    label[answers] = torch.tensor([1.0, 0.6, 0.3])[: len(answers)]
    sample.targets = {"label": label}


def _fill_vcr(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """`[CLS] query [SEP] choice [SEP]` for each choice; some words name a detection; categories and instance masks."""
    count = len(sample.boxes)
    longest = words - words // 2
    lengths = [longest, *(draw.fewer(longest) for _ in range(CHOICES - 1))]
    query, query_tags = draw.words(words // 2, vocabulary), _tags(words // 2, count, draw)
    texts = [join_segments([query, draw.words(n, vocabulary)], vocabulary.cls, vocabulary.sep) for n in lengths]
    sample.text_ids, sample.segment_ids = ([torch.tensor(text[part]) for text in texts] for part in (0, 1))
    sample.text_tags = [torch.tensor(join_segments([query_tags, _tags(n, count, draw)], 0, 0)[0]) for n in lengths]

    sample.box_classes = torch.randint(1, CATEGORIES + 1, (count,), generator=draw.rng)
    sample.box_masks = _ellipses(count, cfg.DATASET.MASK_SIZE, draw)
    if cfg.DATASET.ADD_IMAGE_AS_A_BOX:
        sample.box_classes[0], sample.box_masks[0] = 0, 1.0
    sample.targets = {"label": torch.tensor(draw.number(0, CHOICES - 1))}


def _tags(words: int, boxes: int, draw: Draw) -> list[int]:
    """Row of the detection that each word names, 0 for most, which name none."""
    rows = torch.randint(1, boxes, (words,), generator=draw.rng)
    return torch.where(draw.uniform(words) < LINKED, rows, 0).tolist()


def _ellipses(count: int, side: int, draw: Draw) -> Tensor:
    """Masks [count, side, side] of 0 and 1, an ellipse around the middle of each."""
    grid = torch.linspace(-1, 1, side)
    radii = 0.5 + 0.5 * draw.uniform(count, 2, 1)
    y, x = (grid / radii).unbind(1)  # (count, side) each
    return (x[:, None] ** 2 + y[:, :, None] ** 2 <= 1).float()


def _fill_refcoco(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """`[CLS] expression [SEP]`, and which boxes cover the referent: one at least."""
    _set_text(sample, [draw.words(words, vocabulary)], vocabulary)
    label = (draw.uniform(len(sample.boxes)) < POSITIVE).float()
    label[draw.number(1, len(label) - 1)] = 1.0
    sample.targets, sample.target_pads = {"label": label}, {"label": -1.0}


def _fill_pretrain(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """`[CLS] caption [SEP]`; some words and some regions, of each one at least, are hidden."""
    _set_text(sample, [draw.words(words, vocabulary)], vocabulary)
    sample.segment_ids = torch.zeros_like(torch.as_tensor(sample.text_ids))
    wanted = draw.uniform(len(sample.boxes)) < HIDDEN
    wanted[0], wanted[-1] = False, True  # never the whole image
    scores = (3 * draw.uniform(int(wanted.sum()), cfg.NETWORK.VLBERT.visual_region_classes)).softmax(-1)
    sample.targets = {
        "relationship_label": torch.tensor(draw.number(0, 1)),
        "mlm_labels": _hide_words(sample, vocabulary, draw),
        "mvrc_ops": wanted.long(),
        "mvrc_mask": wanted,
        "mvrc_labels": scores,
    }
    sample.target_pads = {"mlm_labels": -1}


def _hide_words(sample: Sample, vocabulary: Vocabulary, draw: Draw) -> Tensor:
    """Put [MASK] in place of some words; -> their ids where they were, -1 elsewhere."""
    ids = torch.as_tensor(sample.text_ids)
    hidden = draw.uniform(len(ids)) < HIDDEN
    hidden[len(ids) // 2] = True
    hidden &= (ids != vocabulary.cls) & (ids != vocabulary.sep)
    sample.text_ids = ids.masked_fill(hidden, vocabulary.mask)
    return ids.masked_fill(~hidden, -1)


def _plain_text(cfg: Config, samples: int, vocabulary: Vocabulary, draw: Draw, targets: bool) -> tuple[Batch, ...]:
    """A batch of words alone for each further entry of DATASET, SEQ_LEN long."""
    batches = []
    for entry in dataset_sections(cfg)[1:]:
        rows = []
        for number in range(samples):
            ids = torch.tensor(draw.words(entry.SEQ_LEN, vocabulary))
            row = Sample(number, torch.zeros(4), torch.zeros(0, 4), ids, torch.zeros_like(ids))
            labels = _hide_words(row, vocabulary, draw)
            row.targets, row.target_pads = {"mlm_labels": labels} if targets else {}, {"mlm_labels": -1}
            rows.append(row)
        batches.append(collate(rows))
    return tuple(batches)


def _caption_words(cfg: Config) -> int:
    """What fits beside the default number of boxes, without [CLS] and [SEP]."""
    return max(2, dataset_sections(cfg)[0].SEQ_LEN - FORMS["pretrain"].boxes - 2)


FORMS = {
    "pretrain": Form(_caption_words, 50, _fill_pretrain, auxiliary=_plain_text),
    "vqa": Form(lambda cfg: 20, 100, _fill_vqa),
    "vcr": Form(lambda cfg: 60 if cfg.DATASET.TASK == "QA2R" else 32, 16, _fill_vcr, canvas=True),
    "refcoco": Form(lambda cfg: 10, 11, _fill_refcoco),
}
