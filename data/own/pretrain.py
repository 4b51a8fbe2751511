"""Captions of the user's own as the files of pretraining, which `pretrain` reads.

{"id": 7, "image": "a/x.jpg", "boxes": [[x1, y1, x2, y2]], "caption": "A dog, running."}

A caption is a text or a list of words. An image with several captions has several records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.captions.files import image_file, write_pairs
from data.captions.table import image_name, split_words
from data.own.images import Boxes, UserImage
from data.own.recipe import Recipe, TaskKeys
from data.own.task import OwnTask, Parts, Sample


class OwnCaptions(OwnTask):
    """The target of a sample is the list of words of its caption."""

    name, title = "pretrain", "Pretraining"
    text_key, keys = "caption", ()
    columns = {"text": "caption"}
    parts = ("train", "val")
    number_key = "line"
    keeps_scores = True  # they are the targets of masked regions

    def read_text(self, given: Any) -> str:
        words = split_words(given) if isinstance(given, str) else given
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"caption must be a text or a list of words, got {given!r:.80}")
        if not words:
            raise ValueError("the caption is empty")
        return " ".join(word.strip().lower() for word in words)

    def read_target(self, fields: dict[str, Any], boxes: Boxes | None, required: bool) -> None:
        return None

    def store_name(self, image: UserImage) -> str:
        return image_name(image.number)

    def texts(self, samples: Sequence[Sample]) -> Iterable[str]:
        return [sample.record.text for sample in samples]

    def write(self, folder: Path, parts: Parts) -> None:
        for part, samples in parts.items():
            for image in {sample.image.number: sample.image for sample in samples}.values():
                image.place(image_file(folder, part, self.store_name(image)), self.settings.link)
            write_pairs(folder, part, ((self.store_name(s.image), s.record.text.split()) for s in samples))

    def yamls(self, recipe: Recipe) -> dict[str, TaskKeys]:
        dataset = """\
  DATASET: conceptual_captions
  TRAIN_IMAGE_SET: train
  VAL_IMAGE_SET: val
  TEST_IMAGE_SET: val
"""
        classes = recipe.classes
        losses = [["mlm_loss", "MLMLoss"], *([["mvrc_loss", "MVRCLoss"]] if classes else [])]
        mvrc = "true" if classes else "false  # the regions have no class scores, which are its targets"
        network = f"""\
  WITH_REL_LOSS: false
  WITH_MLM_LOSS: true
  WITH_MVRC_LOSS: {mvrc}
"""
        vlbert = f"    with_pooler: false\n    visual_region_classes: {classes or 1601}\n"
        train = f"  LOSS_LOGGERS: {losses}\n".replace("'", '"')
        flip = "0.0  # a flip does not change the captions"
        return {
            "pretrain.yaml": TaskKeys("ResNetVLBERTForPretraining", "captions", dataset, network, vlbert, train, flip)
        }
