"""The YAML files of a model for the user's data."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.data.text import SPECIAL_TOKENS, BertTokenizer
from common.errors import DataError

WORDS = 30_000  # at most, in a vocabulary made from the data


@dataclass(frozen=True)
class Preset:
    """Sizes of the encoder. rate: the learning rate for a sample. steps: updates, where the samples allow it."""

    hidden: int
    layers: int
    heads: int
    rate: float
    steps: int
    batch: int

    @property
    def inner(self) -> int:
        return 4 * self.hidden


PRESETS = {
    "tiny": Preset(128, 2, 4, 4.6875e-6, 4000, 64),
    "base": Preset(768, 12, 12, 6.25e-7, 8000, 64),
    "large": Preset(1024, 24, 16, 6.25e-7, 8000, 16),
}


@dataclass(frozen=True)
class Recipe:
    """What the YAML depends on.

    out: DATASET_PATH. samples: of training. preset: a key of PRESETS. language: folder of language weights, None for
    random ones with the vocabulary in <out>/bert. features: the regions have features. classes: width of their class
    scores, 0 for none. encoder: of `--encoder`. cnn: ResNet weights "<prefix>-<epoch>.model" of a model from pixels.
    test: there are test records.
    """

    out: Path
    samples: int
    preset: str
    language: Path | None
    vocabulary: int
    features: bool
    classes: int
    encoder: str | None
    cnn: str | None
    test: bool

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes of the preset, or those of config.json where there are language weights."""
        preset = PRESETS[self.preset]
        sizes = {
            "hidden_size": preset.hidden,
            "num_hidden_layers": preset.layers,
            "num_attention_heads": preset.heads,
            "intermediate_size": preset.inner,
        }
        path = self.language / "config.json" if self.language else None
        if path is not None and path.is_file():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                return {key: int(stored[key]) for key in sizes}
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: expected a JSON object with {', '.join(sizes)}: {error!r}") from error
        return sizes

    @property
    def hidden(self) -> int:
        return self.sizes["hidden_size"]

    @property
    def dropout(self) -> float:
        return 0.0 if self.preset == "tiny" else 0.1

    @property
    def small_cnn(self) -> bool:
        """Whether the ResNet is small. Trained weights, also those of an encoder, are of the published ResNet-101."""
        return self.preset == "tiny" and self.encoder is None and self.cnn is None


@dataclass(frozen=True)
class TaskKeys:
    """What the YAML of a task has of its own.

    samples: what a sample is called. dataset, network, vlbert, train: lines of these sections. prefix: MODEL_PREFIX.
    choices: sequences of a sample, so a batch has fewer samples. text_scale: visual_scale_text_init of random weights.
    """

    module: str
    samples: str
    dataset: str
    network: str
    vlbert: str = ""
    train: str = ""
    flip: str = "0.0"
    prefix: str = "vl-bert"
    choices: int = 1
    text_scale: float = 0.0


def make_vocabulary(texts: Iterable[str]) -> list[str]:
    """Returns a word-piece vocabulary: the words of the texts by frequency, and their characters for other words."""
    tokenizer = BertTokenizer({token: i for i, token in enumerate(SPECIAL_TOKENS)})
    words = Counter(word for text in texts for word in tokenizer.basic_tokenize(text))
    characters = sorted(
        {character for word in words for character in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    )
    pieces = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
    return list(dict.fromkeys([*pieces, *(word for word, _ in words.most_common(WORDS))]))


def write_yaml(title: str, task: str, recipe: Recipe, keys: TaskKeys) -> str:
    """Returns the text of a YAML. title: of the task, for readers. task: its folder."""
    preset, sizes, hidden = PRESETS[recipe.preset], recipe.sizes, recipe.hidden
    largest = preset.batch if keys.choices == 1 else preset.batch // 2
    batch = min(largest, recipe.samples, max(8, recipe.samples // 8))
    rate = preset.rate * (preset.batch / batch) ** 0.5  # a smaller batch has a smaller rate, by the root of its size
    epochs = max(2, min(100, round(preset.steps * batch / recipe.samples)))
    steps = epochs * -(-recipe.samples // batch)
    every = max(1, epochs // 20)
    random = recipe.language is None
    scales = "224, 384" if recipe.small_cnn else "600, 1000"
    return f"""\
# {title} on {recipe.out}, written by `python -m data.own`: preset {recipe.preset}, {recipe.samples} training samples.
# Every key: common/config/keys.py and {task}/keys.py. Relative paths start where the command runs.
OUTPUT_PATH: {json.dumps(f"./output/{recipe.out.name}")}
MODULE: {keys.module}
MODEL_PREFIX: {keys.prefix}
RNG_SEED: 1
GPUS: "0"
NUM_WORKERS_PER_GPU: 1
LOG_FREQUENT: 20
VAL_FREQUENT: {every}  # epochs between two validations
CHECKPOINT_FREQUENT: {every}
SCALES: [{scales}]  # the ResNet's images: shorter and longest side
DATASET:
  DATASET_PATH: {json.dumps(str(recipe.out))}
  REGION_PATH: {json.dumps(f"{recipe.out}/regions")}
{keys.dataset}\
NETWORK:
  IMAGE_FEAT_PRECOMPUTED: {_bool(recipe.features)}  # false: from pixels, the ResNet is trained too
{_image_keys(recipe)}
{keys.network}\
  PARTIAL_PRETRAIN: ""  # a VL-BERT checkpoint or model folder to start from
  BERT_MODEL_NAME: {json.dumps(str(recipe.language or recipe.out / "bert"))}  # vocabulary, and weights
  BERT_RANDOM_INIT: {_bool(random)}
  IMAGE_FINAL_DIM: {hidden}
  VLBERT:
    vocab_size: {recipe.vocabulary}
    visual_size: {hidden}
    hidden_size: {hidden}
    num_hidden_layers: {sizes["num_hidden_layers"]}
    num_attention_heads: {sizes["num_attention_heads"]}
    intermediate_size: {sizes["intermediate_size"]}
    hidden_dropout_prob: {recipe.dropout}
    attention_probs_dropout_prob: {recipe.dropout}
    initializer_range: {0.08 if random and recipe.preset == "tiny" else 0.02}
    visual_ln: true
    visual_scale_object_init: {1.0 if random else 0.3}  # regions add to the sequence from the first update on
    visual_scale_text_init: {keys.text_scale if random else 0.0}
{keys.vlbert}\
TRAIN:
  BATCH_IMAGES: {batch}  # {keys.samples} in a batch on one device
  END_EPOCH: {epochs}  # {steps} updates
  LR: {rate:.4g}  # for each sample of a batch: {rate * batch:.3g} in all
  OPTIMIZER: AdamW
  LR_SCHEDULE: triangle
  WARMUP: true
  WARMUP_FACTOR: 0.0
  WARMUP_STEPS: {max(1, min(500, steps // 10))}
  WD: 0.0001
  CLIP_GRAD_NORM: 1.0
  FLIP_PROB: {keys.flip}
  ASPECT_GROUPING: false
{keys.train}\
VAL:
  BATCH_IMAGES: {max(batch, 16)}
TEST:
  BATCH_IMAGES: {max(batch, 16)}
"""


def _bool(value: bool) -> str:
    return str(value).lower()


def _image_keys(recipe: Recipe) -> str:
    lines = [f"  IMAGE_NUM_LAYERS: {50 if recipe.small_cnn else 101}"]
    if not recipe.small_cnn:
        lines += ["  IMAGE_C5_DILATED: true", "  IMAGE_STRIDE_IN_1x1: true"]
    if recipe.features and recipe.encoder is not None:
        lines.append(f"  REGION_ENCODER: {json.dumps(recipe.encoder)}  # computes the features of new images")
    elif recipe.features:
        lines.append("  # For new images, predict and the live page need --boxes with the source of these regions.")
    else:
        lines += _pixel_keys(recipe)
    return "\n".join([*lines, "  PIXEL_MEANS: [102.9801, 115.9465, 122.7717]", "  PIXEL_STDS: [1.0, 1.0, 1.0]"])


def _pixel_keys(recipe: Recipe) -> list[str]:
    if recipe.cnn is None:
        return [
            "  IMAGE_RANDOM_INIT: true  # the ResNet starts random: it needs many images; --cnn names trained weights",
            "  IMAGE_FROZEN_BN: false",
            "  IMAGE_FROZEN_BACKBONE_STAGES: []",
        ]
    match = re.fullmatch(r"(.+)-(\d{4})\.model", recipe.cnn)
    if match is None:
        raise DataError(f"--cnn {recipe.cnn}: expected a file <prefix>-<4 digits>.model, the form of IMAGE_PRETRAINED")
    return [
        f"  IMAGE_PRETRAINED: {json.dumps(match[1])}",
        f"  IMAGE_PRETRAINED_EPOCH: {int(match[2])}",
        "  IMAGE_FROZEN_BN: true",
        "  IMAGE_FROZEN_BACKBONE_STAGES: [1, 2]",
    ]
