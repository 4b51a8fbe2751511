"""The configuration keys: type, default and meaning of each, and what a task adds or restricts.

COMMON_KEYS are the keys of every task. The other groups are for tasks that include them. The keys of one task alone
are in `<task>/keys.py`. Nothing here imports torch, so that a command line shows its help at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.config.config import Config
from common.errors import ConfigError

SECTIONS = ("DATASET", "NETWORK", "NETWORK.VLBERT", "TRAIN", "VAL", "TEST")


@dataclass(frozen=True)
class Key:
    """One configuration key.

    path: dotted name. type: a name of `common.config.convert.CONVERTERS`. meaning: a noun phrase for error messages.
    choices: the permitted values, () for any. minimum, maximum: bounds. All three are for every entry of a list.
    read: whether the value has an effect. A key without effect is accepted, because published YAML files contain it,
    and reported in the log. ours: the 2020 release has no such key.
    """

    path: str
    type: str
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    read: bool = True
    ours: bool = False

    @property
    def has_effect(self) -> bool:
        """Whether a value is read, or at least checked."""
        return self.read or bool(self.choices)


def no_check(cfg: Config) -> None:
    """The check of a task whose values are independent of each other."""


@dataclass(frozen=True)
class TaskKeys:
    """The configuration of a task: `<task>/keys.py` holds one under the name KEYS.

    rows: the keys that the task has beside COMMON_KEYS. defaults, choices: path -> what the task has in place of the
    default or the permitted values of the row. reads, unread: paths of rows whose values have an effect in the task, or
    have none, other than the row states.
    check: (complete cfg) -> None; raises `bad_value(...)` for a combination of values that cannot work.
    dataset_list: DATASET may be a list of mappings, one for each data set.
    """

    rows: tuple[Key, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    check: Callable[[Config], None] = no_check
    dataset_list: bool = False


def bad_value(path: str, value: Any, expected: str) -> ConfigError:
    """Returns the error of a value: key, what came, what was expected."""
    shown = list(value) if isinstance(value, tuple) else value
    return ConfigError(f"{path} = {shown!r}: expected {expected}")


def paths(rows: tuple[Key, ...]) -> tuple[str, ...]:
    """Returns the dotted names of some rows."""
    return tuple(row.path for row in rows)


# The keys of every task.
COMMON_KEYS = (
    Key("RNG_SEED", "int", -1, "seed of everything random; -1 leaves the run unseeded"),
    Key("OUTPUT_PATH", "str", "", "folder of all outputs; --model-dir is put in front of it"),
    Key("MODULE", "str", "", "name of the model class"),
    Key("GPUS", "str", "", "device indices with commas, for a run that no launcher started"),
    Key("LOG_FREQUENT", "int", 50, "iterations between two lines of the training log", minimum=1),
    Key("VAL_FREQUENT", "int", 1, "epochs between two validations", minimum=1),
    Key("CHECKPOINT_FREQUENT", "int", 1, "epochs between two checkpoints", minimum=1),
    Key("MODEL_PREFIX", "str", "", "stem of the names of checkpoints and result files"),
    Key("NUM_WORKERS_PER_GPU", "int", 4, "loader processes for each device", minimum=0),
    Key("SCALES", "pair of ints or empty", (), "resize: short side wanted, long side at most; must be set"),
    Key(
        "DEVICE",
        "str",
        "auto",
        "auto takes a CUDA GPU where there is one; mps, the GPU of a Mac, is for prediction only",
        choices=("auto", "cpu", "cuda", "mps"),
        ours=True,
    ),
    Key(
        "TIMEOUT",
        "int",
        600,
        "seconds without progress of a process that others wait for, after which the run ends; at least 1800 at the "
        "start, until the first update",
        minimum=1,
        ours=True,
    ),
    Key(
        "CHECKPOINT_STEPS",
        "int",
        0,
        "optimizer steps between two saves of the run's position, on top of CHECKPOINT_FREQUENT; 0 is off",
        minimum=0,
        ours=True,
    ),
    Key("CHECKPOINT_KEEP", "int", 0, "newest epochs whose checkpoints are kept; 0 keeps all", minimum=0, ours=True),
    Key(
        "CHECKPOINT_BEST_WEIGHTS",
        "bool",
        False,
        "the best checkpoint is a file of its own without optimizer and position, not a link to that of its epoch",
        ours=True,
    ),
    # data
    Key("DATASET.DATASET", "str", "", "which data set"),
    Key("DATASET.DATASET_PATH", "str", "", "folder of the data"),
    Key("DATASET.TRAIN_IMAGE_SET", "str", "", "image sets of training, joined by + where several are supported"),
    Key("DATASET.VAL_IMAGE_SET", "str", "", "image sets of validation"),
    Key("DATASET.TEST_IMAGE_SET", "str", "", "image sets of test"),
    Key(
        "DATASET.TRAIN_ANNOTATION_FILE",
        "str",
        "",
        "annotation file under DATASET_PATH, or text files joined by +",
    ),
    Key("DATASET.VAL_ANNOTATION_FILE", "str", "", "the same for validation"),
    Key("DATASET.TEST_ANNOTATION_FILE", "str", "", "the same for test"),
    Key("DATASET.ADD_IMAGE_AS_A_BOX", "bool", True, "the whole image is box 0"),
    Key("DATASET.ZIP_MODE", "bool", False, "images and features lie in zip archives"),
    Key(
        "DATASET.REGION_PATH",
        "str",
        "",
        "folder, zip or packed store of region files, instead of the one that the other keys imply",
        ours=True,
    ),
    # weights to start from, regions
    Key("NETWORK.PARTIAL_PRETRAIN", "str", "", "checkpoint or model folder to start from; empty is off"),
    Key("NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES", "list of str", (), "rules old->new for its names; first match wins"),
    Key(
        "NETWORK.IMAGE_FEAT_PRECOMPUTED",
        "bool",
        False,
        "region features come from files, not from the CNN",
    ),
    Key("NETWORK.IMAGE_NUM_LAYERS", "int", 50, "depth of the ResNet", choices=(50, 101, 152)),
    Key("NETWORK.IMAGE_C5_DILATED", "bool", False, "C5 head with stride 1 and dilation 2"),
    Key("NETWORK.IMAGE_STRIDE_IN_1x1", "bool", False, "a bottleneck strides in its first 1x1, not in its 3x3"),
    Key("NETWORK.PIXEL_MEANS", "list of float", (), "subtracted from the channels B, G, R in 0..255"),
    Key("NETWORK.PIXEL_STDS", "list of float", (), "divisors of the channels"),
    Key("NETWORK.IMAGE_PRETRAINED", "str", "", "ResNet weights: the part of <prefix>-%04d.model before the epoch"),
    Key("NETWORK.IMAGE_PRETRAINED_EPOCH", "int", 0, "the epoch in that name", minimum=0),
    Key("NETWORK.IMAGE_RANDOM_INIT", "bool", False, "training may start without ResNet weights", ours=True),
    Key(
        "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES",
        "list of int",
        (1, 2),
        "stages that are not trained: 1 stem, 2 to 4 layer1 to layer3, 5 the C5 head",
        minimum=1,
        maximum=5,
    ),
    Key(
        "NETWORK.CHECKPOINT_ENCODER", "bool", False, "compute encoder layers again for backward: less memory", ours=True
    ),
    Key(
        "NETWORK.REGION_ENCODER",
        "str",
        "",
        "what computes the features of new images for a model of precomputed ones: resnet:FILE or module:NAME; "
        "empty: the ResNet of IMAGE_PRETRAINED",
        ours=True,
    ),
    Key(
        "NETWORK.FAST_PATH",
        "bool",
        True,
        "use the faster implementations of common/nn/cpu; the results agree with those of the plain model",
        ours=True,
    ),
    Key("NETWORK.CHECKPOINT_ROIS", "bool", False, "compute the RoI head again for backward, chunk by chunk", ours=True),
    Key("NETWORK.ROI_CHUNK", "int", 0, "regions in the RoI head at a time; 0 is all of a batch", minimum=0, ours=True),
    Key("NETWORK.IMAGE_FROZEN_BN", "bool", True, "batch norm is neither trained nor updated"),
    Key("NETWORK.IMAGE_FINAL_DIM", "int", 512, "width of a region embedding; equals VLBERT.visual_size", minimum=1),
    Key("NETWORK.IMAGE_SEMANTIC", "bool", False, "add an embedding of the box category to the region feature"),
    # language
    Key("NETWORK.BERT_MODEL_NAME", "str", "bert-base-uncased", "folder of vocab.txt and weights, or a known name"),
    Key("NETWORK.BERT_PRETRAINED", "str", "", "language weights <value>-%04d.model instead of that folder's"),
    Key("NETWORK.BERT_PRETRAINED_EPOCH", "int", 0, "the epoch in that name", minimum=0),
    Key("NETWORK.BERT_RANDOM_INIT", "bool", False, "training may start without language weights", ours=True),
    Key(
        "NETWORK.VLBERT.word_embedding_frozen",
        "bool",
        False,
        "freeze the word table; ids below 1000 use a table of their own, which is trained",
    ),
    Key("NETWORK.VLBERT.hidden_size", "int", 512, "width of the transformer", minimum=1),
    Key("NETWORK.VLBERT.visual_size", "int", 512, "width of visual input; projected where not hidden_size", minimum=1),
    Key("NETWORK.VLBERT.num_hidden_layers", "int", 4, "layers", minimum=1),
    Key("NETWORK.VLBERT.num_attention_heads", "int", 8, "heads, a divisor of hidden_size", minimum=1),
    Key("NETWORK.VLBERT.intermediate_size", "int", 2048, "width of the feed-forward layers", minimum=1),
    Key("NETWORK.VLBERT.hidden_act", "str", "gelu", "activation", choices=("gelu", "relu", "swish")),
    Key(
        "NETWORK.VLBERT.hidden_dropout_prob",
        "float",
        0.1,
        "dropout of embeddings and layer outputs",
        minimum=0,
        maximum=1,
    ),
    Key(
        "NETWORK.VLBERT.attention_probs_dropout_prob",
        "float",
        0.1,
        "dropout of attention weights",
        minimum=0,
        maximum=1,
    ),
    Key("NETWORK.VLBERT.max_position_embeddings", "int", 512, "rows of the position table", minimum=1),
    Key("NETWORK.VLBERT.type_vocab_size", "int", 3, "rows of the segment table: two texts and the objects", minimum=3),
    Key("NETWORK.VLBERT.vocab_size", "int", 30522, "rows of the word table", minimum=1),
    Key("NETWORK.VLBERT.initializer_range", "float", 0.02, "standard deviation of initial weights", minimum=0),
    Key("NETWORK.VLBERT.visual_scale_text_init", "float", 0.0, "initial gain of the visual embedding of words"),
    Key("NETWORK.VLBERT.visual_scale_object_init", "float", 0.0, "initial gain of that of objects"),
    Key("NETWORK.VLBERT.visual_ln", "bool", False, "visual embeddings pass a LayerNorm (true) or a scalar (false)"),
    Key("NETWORK.VLBERT.with_pooler", "bool", True, "build the pooler of [CLS]"),
    Key(
        "NETWORK.VLBERT.position_padding_idx",
        "int",
        -1,
        "the first position id is this plus 1: -1 for BERT, 1 for RoBERTa",
        minimum=-1,
    ),
    # training, validation, test
    Key("TRAIN.SHUFFLE", "bool", True, "shuffle the training data"),
    Key("TRAIN.FLIP_PROB", "float", 0.5, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("TRAIN.BATCH_IMAGES", "int or list of int", 1, "samples for each device, by data set where several", minimum=1),
    Key("TRAIN.ASPECT_GROUPING", "bool", True, "a batch holds wide images only, or tall ones only"),
    Key("TRAIN.RESUME", "bool", False, "go on from BEGIN_EPOCH - 1 and fail without that checkpoint"),
    Key("TRAIN.AUTO_RESUME", "bool", True, "go on from the newest checkpoint, if any"),
    Key("TRAIN.BEGIN_EPOCH", "int", 0, "first epoch", minimum=0),
    Key("TRAIN.END_EPOCH", "int", 0, "one past the last epoch", minimum=0),
    Key("TRAIN.MAX_STEPS", "int", 0, "stop after that many optimizer steps; 0 is off", minimum=0, ours=True),
    Key("TRAIN.OPTIMIZER", "str", "SGD", "update rule", choices=("SGD", "Adam", "AdamW")),
    Key("TRAIN.CLIP_GRAD_NORM", "float", -1.0, "largest L2 norm of the gradient; no clipping unless above 0"),
    Key("TRAIN.GRAD_ACCUMULATE_STEPS", "int", 1, "iterations for each optimizer step", minimum=1),
    Key("TRAIN.LR", "float", 0.1, "learning rate for each sample of the effective batch", minimum=0),
    Key("TRAIN.LR_MULT", "list of (str, float)", (), "factors of the rate, by part of the parameter's name"),
    Key("TRAIN.LR_SCHEDULE", "str", "step", "learning rate over time", choices=("step", "triangle", "plateau")),
    Key("TRAIN.LR_FACTOR", "float", 0.1, "decay of step and plateau", minimum=0),
    Key("TRAIN.LR_STEP", "epochs", (), 'epochs of the decays, "14,18" or a list', minimum=0),
    Key("TRAIN.WARMUP", "bool", False, "start with small learning rates"),
    Key("TRAIN.WARMUP_METHOD", "str", "linear", "warm-up of step", choices=("linear", "constant")),
    Key("TRAIN.WARMUP_FACTOR", "float", 1 / 3, "where the warm-up of step begins; triangle begins at 0", minimum=0),
    Key("TRAIN.WARMUP_STEPS", "int", 1000, "its length in optimizer steps", minimum=0),
    Key("TRAIN.WD", "float", 0.0001, "weight decay of all parameters", minimum=0),
    Key("TRAIN.MOMENTUM", "float", 0.9, "momentum of SGD", minimum=0),
    Key("TRAIN.FP16", "bool", False, "train in half precision, where PRECISION is empty"),
    Key("TRAIN.FP16_LOSS_SCALE", "float or dynamic", 128.0, "loss scale of half precision"),
    Key(
        "TRAIN.PRECISION",
        "str",
        "",
        "number format; empty is fp16 with FP16 and fp32 without, auto is bf16 where the device has it and else fp32",
        choices=("", "auto", "fp32", "bf16", "fp16"),
        ours=True,
    ),
    Key(
        "TRAIN.TF32",
        "bool",
        False,
        "fp32 products and convolutions on GPUs take TF32: 10 bits of mantissa, faster; also in tests",
        ours=True,
    ),
    Key(
        "TRAIN.COMPILE",
        "bool",
        False,
        "torch.compile of the encoder layers, in training; the first step takes a minute longer",
        ours=True,
    ),
    Key(
        "TRAIN.DETERMINISTIC",
        "bool",
        False,
        "algorithms that return the same bits for the same input on the same GPU; slower",
        ours=True,
    ),
    Key(
        "TRAIN.FSDP",
        "bool",
        False,
        "several processes share weights, gradients and moments instead of copying them; AdamW, not in fp16",
        ours=True,
    ),
    Key("TRAIN.NONFINITE", "str", "stop", "what happens at a loss of NaN or inf", choices=("stop", "skip"), ours=True),
    Key(
        "TRAIN.LOGGERS",
        "list of str",
        (),
        "loggers of scalars beside TensorBoard",
        choices=("wandb", "mlflow"),
        ours=True,
    ),
    Key("TRAIN.LOSS_LOGGERS", "list of (str, str)", (), 'losses in the log: "output,label"'),
    Key("VAL.SHUFFLE", "bool", False, "shuffle the validation data"),
    Key("VAL.FLIP_PROB", "float", 0.0, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("VAL.BATCH_IMAGES", "int or list of int", 1, "samples for each device", minimum=1),
    Key("TEST.FLIP_PROB", "float", 0.0, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("TEST.BATCH_IMAGES", "int or list of int", 1, "samples for each device", minimum=1),
)

GROUPED = "from pixels, BATCH_IMAGES counts images, with all of their samples, so that each is encoded once"

# For datasets that have `image_keys`.
IMAGE_GROUPING_KEYS = (
    Key(
        "TRAIN.GROUP_PICTURES",
        "bool",
        False,
        "samples of an image follow each other and share it; they are flipped alike",
        ours=True,
    ),
    Key("VAL.GROUP_PICTURES", "bool", True, GROUPED, ours=True),
    Key("TEST.GROUP_PICTURES", "bool", True, GROUPED, ours=True),
)

# For `common.nn.heads.build_classifier`.
CLASSIFIER_KEYS = (
    Key(
        "NETWORK.CLASSIFIER_TYPE",
        "str",
        "2fc",
        "head: 1fc one layer, 2fc two layers, mlm the transform of masked language modelling and one layer",
    ),
    Key("NETWORK.CLASSIFIER_HIDDEN_SIZE", "int", 1024, "hidden width of the 2fc head", minimum=1),
    Key("NETWORK.CLASSIFIER_DROPOUT", "float", 0.1, "dropout of the head", minimum=0, maximum=1),
)

# For a task with a fixed list of answers.
ANSWER_KEYS = (
    Key("DATASET.ANSWER_VOCAB_FILE", "str", "", "the answers, one a line"),
    Key("DATASET.ANSWER_VOCAB_SIZE", "int", 3129, "number of answers, the width of the classifier", minimum=1),
)

# For `common.weights.build.build_vlbert_for_pretraining`.
PRETRAINING_HEAD_KEYS = (
    Key("NETWORK.VLBERT.from_scratch", "bool", False, "do not load language weights"),
    Key("NETWORK.VLBERT.pos_embedding_frozen", "bool", False, "freeze the position table"),
    Key(
        "NETWORK.VLBERT.visual_region_classes",
        "int",
        1601,
        "categories of masked regions, background included",
        minimum=1,
    ),
)
