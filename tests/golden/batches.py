"""From the inputs of the reference's modules to our Batch, by task.

The reference assembles text inside its modules and marks padding by values. Here both are done before the model.
An input that a case does not have is None or absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common.config import Config
from common.data.collate import pad_stack
from common.data.sample import Batch
from common.data.text import join_segments

CLS, SEP, MASK = 101, 102, 103  # the golden vocabulary's, as in the public one

Inputs = Mapping[str, Tensor | None]


def images_of(batch: Batch) -> Tensor | None:
    """[B, 3, height, width]: the reference's batches repeat an image that several samples show."""
    return batch.image if batch.image is None or batch.image_row is None else batch.image[batch.image_row]


def to_batch(task: str, t: Inputs, cfg: Config) -> Batch:
    return {"vqa": _vqa, "refcoco": _refcoco, "vcr": _vcr, "pretrain": _pretrain}[task](t, cfg)


def _regions(t: Inputs, mask: Tensor) -> dict[str, Tensor | None]:
    """Boxes up to the largest number of real ones, as the reference trims them."""
    boxes = t["boxes"][:, : int(mask.sum(1).max())]
    mask = mask[:, : boxes.shape[1]]
    boxes = boxes.masked_fill(~mask[..., None], 0.0)
    features = boxes[..., 4:] if boxes.shape[-1] > 6 else None
    return {
        "image": t.get("image"),
        "im_info": t["im_info"],
        "boxes": boxes[..., :4],
        "box_mask": mask,
        "features": features,
    }


def _ids(t: Tensor) -> list[int | str]:
    return list(range(len(t)))


def _vqa(t: Inputs, cfg: Config) -> Batch:
    regions = _regions(t, t["boxes"][..., 0] > -1.5)
    rows = [join_segments([row[row > 0].tolist(), [MASK]], CLS, SEP) for row in t["question"]]
    return Batch(
        ids=_ids(t["boxes"]),
        text_ids=pad_stack([r[0] for r in rows], 0),
        segment_ids=pad_stack([r[1] for r in rows], 0),
        text_mask=pad_stack([torch.ones(len(r[0]), dtype=torch.bool) for r in rows], False),
        targets={"label": t["label"]} if t.get("label") is not None else {},
        **regions,
    )


def _refcoco(t: Inputs, cfg: Config) -> Batch:
    """Padded boxes keep their -2: where one has the best score, the reference predicts its coordinates."""
    regions = _regions(t, t["boxes"][..., 0] > -1.5)
    regions["boxes"] = t["boxes"][:, : regions["box_mask"].shape[1], :4]
    rows = [join_segments([row[row > 0].tolist()], CLS, SEP) for row in t["expression"]]
    width = regions["boxes"].shape[1]
    return Batch(
        ids=_ids(t["boxes"]),
        text_ids=pad_stack([r[0] for r in rows], 0),
        segment_ids=pad_stack([r[1] for r in rows], 0),
        text_mask=pad_stack([torch.ones(len(r[0]), dtype=torch.bool) for r in rows], False),
        targets={"label": t["label"][:, :width]} if t.get("label") is not None else {},
        **regions,
    )


def _vcr(t: Inputs, cfg: Config) -> Batch:
    boxes = t["boxes"]
    regions = _regions(t, boxes[..., 3] > -0.5)
    width = regions["boxes"].shape[1]
    choices = next(t[k] for k in t if k.endswith("_choices"))
    text = [[_vcr_row(q, c, cfg) for c in cs] for q, cs in zip(t["question"], choices, strict=True)]

    def field(i: int) -> Tensor:
        return pad_stack([[row[i] for row in rows] for rows in text], 0)

    label = next((t[k] for k in t if k.endswith("_label") and t[k] is not None), None)
    masks = t.get("masks")
    return Batch(
        ids=_ids(boxes),
        text_ids=field(0),
        segment_ids=field(1),
        text_tags=field(2),
        text_mask=field(3).bool(),
        box_classes=boxes[:, :width, 5].clamp(min=0).long(),
        box_masks=None if masks is None else masks[:, :width].clamp(min=0),
        targets={"label": label} if label is not None else {},
        **(regions | {"features": None}),
    )


def _vcr_row(query: Tensor, choice: Tensor, cfg: Config) -> tuple[list[int], list[int], list[int], list[int]]:
    """ids, segments, tags, mask of one query with one choice."""
    network = cfg.NETWORK
    q, c = query[query[:, 0] > 0.5], choice[choice[:, 0] > 0.5]
    parts = [c, q] if network.ANSWER_FIRST else [q, c]
    if network.QA_ONE_SENT:
        parts = [torch.cat(parts)]

    def column(i: int) -> Sequence[list[int]]:
        return [p[:, i].tolist() for p in parts]

    ids, segments = join_segments(column(0), CLS, SEP)
    tags, _ = join_segments(column(1), 0, 0)
    return ids, segments, tags, [1] * len(ids)


def _pretrain(t: Inputs, cfg: Config) -> Batch:
    regions = _regions(t, t["boxes"][..., 0] > -1.5)
    return Batch(
        ids=_ids(t["boxes"]),
        text_ids=t["text"],
        segment_ids=torch.zeros_like(t["text"]),
        text_mask=t["text"] > 0,
        targets=_pretraining_targets(t, regions["boxes"].shape[1]),
        auxiliary=tuple(_text_only(t, key) for key in t if key.startswith("aux_text")),
        **regions,
    )


def _pretraining_targets(t: Inputs, width: int) -> dict[str, Tensor]:
    """Targets of the heads that a case has, for `width` boxes. A row of mvrc_labels without a number is no target."""
    targets = {name: t[name] for name in ("relationship_label", "mlm_labels") if t.get(name) is not None}
    if t.get("mvrc_ops") is not None:
        targets["mvrc_ops"] = t["mvrc_ops"][:, :width]
    if t.get("mvrc_labels") is not None:
        labels = t["mvrc_labels"][:, :width]
        wanted = labels.abs().sum(-1) > 0
        targets["mvrc_mask"] = wanted
        targets["mvrc_labels"] = pad_stack([row[mask] for row, mask in zip(labels, wanted, strict=True)], 0.0)
    return targets


def _text_only(t: Inputs, key: str) -> Batch:
    text, labels = t[key], t.get(key.replace("aux_text", "aux_mlm_labels"))
    return Batch(
        ids=_ids(text),
        im_info=torch.zeros(len(text), 4),
        boxes=torch.zeros(len(text), 0, 4),
        box_mask=torch.zeros(len(text), 0, dtype=torch.bool),
        text_ids=text,
        segment_ids=torch.zeros_like(text),
        text_mask=text > 0,
        targets={} if labels is None else {"mlm_labels": labels},
    )
