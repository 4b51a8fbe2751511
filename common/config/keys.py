"""Every configuration key of the four tasks, once: type, default, meaning, who has it and who reads it.

A key that a task lacks is an unknown key there. A key that a task has but does not read is accepted, because published
YAML files contain it, and reported as having no effect (spec 01 §2 and 5). `common/config.py` loads, this file
says what is valid. Nothing here imports torch: a command line shows its help at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

TASKS = ("pretrain", "vcr", "vqa", "refcoco")
SECTIONS = ("DATASET", "NETWORK", "NETWORK.VLBERT", "TRAIN", "VAL", "TEST")

# Groups of tasks for the rows below; they add up: VCR + VQA.
PRETRAIN, VCR, VQA, REFCOCO = (("pretrain",), ("vcr",), ("vqa",), ("refcoco",))
NOBODY: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """One row of the table.

    type: a name of `common.config.CONVERTERS`. default: of every task that `defaults` does not name.
    tasks: who has the key. read: who reads it, None for all who have it.
    choices: the values `check` permits, for every task or by task; such a key counts as read.
    minimum, maximum: the bounds `check` permits, for every entry of a list. ours: not a key of the original.
    """

    path: str
    type: str
    default: Any
    meaning: str
    tasks: tuple[str, ...] = TASKS
    read: tuple[str, ...] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[Any, ...] | Mapping[str, tuple[Any, ...]] = ()
    minimum: float | None = None
    maximum: float | None = None
    ours: bool = False

    def default_in(self, task: str) -> Any:
        return self.defaults.get(task, self.default)

    def read_by(self, task: str) -> bool:
        return task in (self.tasks if self.read is None else self.read)

    def choices_in(self, task: str) -> tuple[Any, ...]:
        """The permitted values in `task`, () for any."""
        return self.choices.get(task, ()) if isinstance(self.choices, Mapping) else self.choices


TOP_LEVEL = (
    Key("RNG_SEED", "int", -1, "seed of everything random; -1 leaves the run unseeded"),
    Key("OUTPUT_PATH", "str", "", "folder of all outputs; --model-dir is put in front of it"),
    Key(
        "MODULE",
        "str",
        "",
        "name of the model class of the original, which picks the model",
        choices={
            "pretrain": (
                "ResNetVLBERTForPretrainingMultitask",
                "ResNetVLBERTForPretraining",
                "ResNetVLBERTForAttentionVis",
            ),
            "vcr": ("", "ResNetVLBERT"),
            "vqa": ("", "ResNetVLBERT"),
            "refcoco": ("", "ResNetVLBERT"),
        },
    ),
    Key("GPUS", "str", "", "device indices with commas, for a run that no launcher started"),
    Key("LOG_FREQUENT", "int", 50, "iterations between two lines of the training log", minimum=1),
    Key("VAL_FREQUENT", "int", 1, "epochs between two validations", minimum=1),
    Key("CHECKPOINT_FREQUENT", "int", 1, "epochs between two checkpoints", minimum=1),
    Key("MODEL_PREFIX", "str", "", "stem of the names of checkpoints and result files"),
    Key("NUM_WORKERS_PER_GPU", "int", 4, "loader processes for each device", minimum=0),
    Key("SCALES", "pair of ints or empty", (), "resize: short side wanted, long side at most; must be set"),
    Key("DEVICE", "str", "auto", "auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"), ours=True),
    Key(
        "CHECKPOINT_STEPS",
        "int",
        0,
        "optimizer steps between two saves of the run's position, on top of CHECKPOINT_FREQUENT; 0 is off",
        minimum=0,
        ours=True,
    ),
)

BOX_MODES = ("gt", "proposal", "proposal+gt", "gt+proposal")

DATASET = (
    Key(
        "DATASET.DATASET",
        "str",
        "",
        "which data set",
        read=PRETRAIN,
        choices={
            "pretrain": ("conceptual_captions", "coco_captions", "general_corpus"),
            "vcr": ("", "vcr"),
            "vqa": ("", "vqa"),
            "refcoco": ("", "refcoco+", "refcoco", "refcocog"),
        },
    ),
    Key("DATASET.LABEL_INDEX_IN_BATCH", "int", -1, "dead: our batches have names", defaults={"vcr": 7}, read=NOBODY),
    Key("DATASET.APPEND_INDEX", "bool", False, "dead: our batches carry the ids of their samples", read=NOBODY),
    Key(
        "DATASET.TASK",
        "str",
        "Q2AR",
        "vcr: the half of the task; elsewhere part of the name of the checkpoint copied beside the results",
        read=VCR + VQA + REFCOCO,
        choices={"vcr": ("Q2A", "QA2R")},
    ),
    Key("DATASET.DATASET_PATH", "str", "", "folder of the data"),
    Key("DATASET.ROOT_PATH", "str", "", "dead: annotations are not cached", read=NOBODY),
    Key("DATASET.TRAIN_IMAGE_SET", "str", "", "image sets of training, joined by + where several are supported"),
    Key("DATASET.VAL_IMAGE_SET", "str", "", "image sets of validation"),
    Key("DATASET.TEST_IMAGE_SET", "str", "", "image sets of test"),
    Key(
        "DATASET.TRAIN_ANNOTATION_FILE",
        "str",
        "",
        "vcr: file under DATASET_PATH; general_corpus: text files joined by +",
        read=PRETRAIN + VCR,
    ),
    Key("DATASET.VAL_ANNOTATION_FILE", "str", "", "the same for validation", read=PRETRAIN + VCR),
    Key("DATASET.TEST_ANNOTATION_FILE", "str", "", "the same for test", read=PRETRAIN + VCR),
    Key("DATASET.ADD_IMAGE_AS_A_BOX", "bool", True, "the whole image is box 0"),
    Key("DATASET.ZIP_MODE", "bool", False, "images and features lie in zip archives"),
    Key("DATASET.CACHE_MODE", "bool", False, "images held in memory, which nobody implemented", choices=(False,)),
    Key("DATASET.IGNORE_DB_CACHE", "bool", True, "dead: annotations are not cached", read=NOBODY),
    Key("DATASET.MASK_SIZE", "int", 14, "side of the instance masks, that of the C5 output", read=VCR, minimum=1),
    # vcr
    Key("DATASET.BASIC_ALIGN", "bool", False, "word pieces follow basic tokens, not those of the file", read=VCR),
    Key("DATASET.ONLY_USE_RELEVANT_DETS", "bool", True, "keep the detections that the text mentions", read=VCR),
    Key("DATASET.QA2R_NOQ", "bool", False, "the query of QA2R leaves out the question", read=VCR),
    Key("DATASET.QA2R_AUG", "bool", False, "augmentation that nobody implemented", choices=(False,)),
    Key(
        "DATASET.PERSON_NAMES",
        "str",
        "sample",
        "first neutral name of an image: from the sample alone, or walk: where the sample before it stopped",
        tasks=VCR,
        choices=("sample", "walk"),
        ours=True,
    ),
    # vqa
    Key(
        "DATASET.ANSWER_VOCAB_FILE",
        "str",
        "",
        "the answers, one a line",
        tasks=PRETRAIN + VQA + REFCOCO,
        read=VQA,
    ),
    Key(
        "DATASET.ANSWER_VOCAB_SIZE",
        "int",
        3129,
        "number of answers, the width of the classifier",
        tasks=PRETRAIN + VQA + REFCOCO,
        read=VQA,
        minimum=1,
    ),
    Key("DATASET.BOXES", "str", "36", "which precomputed regions", tasks=VQA, choices=("36", "10-100ada")),
    Key("DATASET.USE_IMDB", "bool", True, "questions from imdb .npy files, not JSON", tasks=VQA + REFCOCO, read=VQA),
    # refcoco
    Key("DATASET.TRAIN_BOXES", "str", "gt", "candidate boxes of training", tasks=REFCOCO, choices=BOX_MODES),
    Key("DATASET.VAL_BOXES", "str", "gt", "candidate boxes of validation", tasks=REFCOCO, choices=BOX_MODES),
    Key("DATASET.TEST_BOXES", "str", "gt", "candidate boxes of test", tasks=REFCOCO, choices=BOX_MODES),
    Key(
        "DATASET.PROPOSAL_SOURCE",
        "str",
        "official",
        "official detections, or regions of the Visual Genome detector",
        tasks=REFCOCO,
        choices=("official", "vg"),
    ),
    Key("DATASET.SPLIT_BY", "str", "unc", "whose split: the name in refs(<name>).p", tasks=REFCOCO, ours=True),
    # pretrain
    Key(
        "DATASET.SEQ_LEN",
        "int",
        64,
        "most text tokens plus boxes (captions) or tokens (corpus) of a sample",
        tasks=PRETRAIN,
        minimum=1,
    ),
    Key("DATASET.MIN_SEQ_LEN", "int", 0, "corpus: shorter lines take in those that follow", tasks=PRETRAIN, minimum=0),
    Key(
        "DATASET.REGION_PATH",
        "str",
        "",
        "folder, zip or packed store of region files, instead of the one that the other keys imply",
        ours=True,
    ),
)

NETWORK = (
    Key("NETWORK.PARTIAL_PRETRAIN", "str", "", "checkpoint to start from; empty is off"),
    Key("NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES", "list of str", (), "rules old->new for its names; first match wins"),
    Key(
        "NETWORK.PARTIAL_PRETRAIN_SEGMB_INIT",
        "bool",
        False,
        "copy row 0 of the loaded segment table to row 1",
        tasks=VCR,
    ),
    # regions
    Key("NETWORK.BLIND", "bool", False, "leave out all visual input", read=VCR, choices={"vqa": (False,)}),
    Key("NETWORK.NO_GROUNDING", "bool", False, "tie words to no region", read=VCR + VQA),
    Key("NETWORK.NO_OBJ_ATTENTION", "bool", False, "mask the regions out of the sequence", read=VCR),
    Key(
        "NETWORK.FOR_MASK_VL_MODELING_PRETRAIN",
        "bool",
        False,
        "pretraining on VCR, which nobody implemented",
        tasks=PRETRAIN + VCR + VQA,
        choices=(False,),
    ),
    Key(
        "NETWORK.IMAGE_FEAT_PRECOMPUTED",
        "bool",
        False,
        "region features come from files, not from the CNN; for vcr and refcoco they are those of REGION_PATH",
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
    Key(
        "NETWORK.IMAGE_SEMANTIC",
        "bool",
        False,
        "add an embedding of the box category to the region feature",
        defaults={"vcr": True},
        choices={"pretrain": (False,), "vqa": (False,), "refcoco": (False,)},
        read=VCR,
    ),
    Key("NETWORK.OUTPUT_CONV5", "bool", False, "needs modules that do not exist", choices=(False,)),
    # language
    Key("NETWORK.BERT_MODEL_NAME", "str", "bert-base-uncased", "folder of vocab.txt and weights, or a known name"),
    Key("NETWORK.BERT_PRETRAINED", "str", "", "language weights <value>-%04d.model instead of that folder's"),
    Key("NETWORK.BERT_PRETRAINED_EPOCH", "int", 0, "the epoch in that name", minimum=0),
    Key("NETWORK.BERT_RANDOM_INIT", "bool", False, "training may start without language weights", ours=True),
    Key("NETWORK.BERT_FROZEN", "bool", True, "dead", read=NOBODY),
    Key("NETWORK.BERT_ALIGN_QUESTION", "bool", True, "dead", read=NOBODY),
    Key("NETWORK.BERT_ALIGN_ANSWER", "bool", True, "dead", read=NOBODY),
    Key("NETWORK.BERT_USE_LAYER", "int", -2, "dead", read=NOBODY),
    Key("NETWORK.BERT_WITH_NSP_LOSS", "bool", False, "dead", read=NOBODY),
    Key("NETWORK.BERT_WITH_MLM_LOSS", "bool", False, "dead", read=NOBODY),
    Key(
        "NETWORK.SCORE_PADDING",
        "bool",
        False,
        "a padded region of the batch keeps its score and may win, as in the original's figures",
        tasks=REFCOCO,
        ours=True,
    ),
    Key("NETWORK.QA_ONE_SENT", "bool", False, "question and answer are one segment without [SEP]", tasks=VCR),
    Key("NETWORK.ANSWER_FIRST", "bool", False, "the answer comes before the question", tasks=VCR),
    # losses of the fine-tuning tasks
    Key(
        "NETWORK.ENABLE_CNN_REG_LOSS",
        "bool",
        True,
        "also classify the objects; vqa has no labels for it",
        defaults={"refcoco": False},
        read=VCR + VQA,
    ),
    Key("NETWORK.CNN_LOSS_TOP", "bool", False, "classify object states (true) or CNN features (false)", tasks=VCR),
    Key("NETWORK.CNN_LOSS_WEIGHT", "float", 1.0, "weight of the object classification", read=VCR),
    Key(
        "NETWORK.CNN_REG_DROPOUT", "float", 0.0, "dropout of its head on object states", tasks=VCR, minimum=0, maximum=1
    ),
    Key("NETWORK.ANS_LOSS_WEIGHT", "float", 1.0, "weight of the answer loss", read=VCR),
    Key("NETWORK.ANS_LOSS_TYPE", "str", "bce", "dead", tasks=VQA + REFCOCO, read=NOBODY),
    Key("NETWORK.REPLACE_OBJECT_CHANGE_LABEL", "bool", True, "dead", tasks=VQA + REFCOCO, read=NOBODY),
    # classifiers
    Key(
        "NETWORK.CLASSIFIER_TYPE",
        "str",
        "2fc",
        "head: one layer, two layers, or (vqa) the transform of masked language modelling and one layer",
        read=VCR + VQA,
        choices={"vcr": ("2fc", "1fc"), "vqa": ("2fc", "1fc", "mlm")},
    ),
    Key(
        "NETWORK.CLASSIFIER_PRETRAINED",
        "bool",
        False,
        "classifier rows start as mean word embeddings of the answers",
        tasks=VQA + REFCOCO,
        read=VQA,
    ),
    Key("NETWORK.CLASSIFIER_HIDDEN_SIZE", "int", 1024, "hidden width of the 2fc head", read=VCR + VQA, minimum=1),
    Key(
        "NETWORK.CLASSIFIER_DROPOUT",
        "float",
        0.1,
        "dropout of the head",
        read=VCR + VQA + REFCOCO,
        minimum=0,
        maximum=1,
    ),
    Key("NETWORK.CLASSIFIER_SIGMOID", "bool", False, "sigmoid for each choice, not softmax over them", read=VCR),
    Key("NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT", "float", 1.0, "weight of the right choice in it", read=VCR),
    Key("NETWORK.LOAD_REL_HEAD", "bool", True, "the 1fc head starts as the checkpoint's relationship head", tasks=VCR),
    # pretraining
    Key("NETWORK.WITH_REL_LOSS", "bool", True, "predict whether caption and image belong together", tasks=PRETRAIN),
    Key("NETWORK.WITH_MLM_LOSS", "bool", True, "predict masked words", tasks=PRETRAIN),
    Key("NETWORK.WITH_MVRC_LOSS", "bool", True, "predict the category of masked regions", tasks=PRETRAIN),
    Key("NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST", "bool", False, "average words over a sample first", tasks=PRETRAIN),
    Key("NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST", "bool", False, "average regions over a sample first", tasks=PRETRAIN),
    Key("NETWORK.MASK_RAW_PIXELS", "bool", True, "mask regions in the image, not their features", tasks=PRETRAIN),
)

VLBERT = (
    Key("NETWORK.VLBERT.from_scratch", "bool", False, "do not load language weights", tasks=PRETRAIN),
    Key("NETWORK.VLBERT.input_size", "int", 1280, "dead", read=NOBODY),
    Key("NETWORK.VLBERT.input_transform_type", "int", 1, "dead", read=NOBODY),
    Key(
        "NETWORK.VLBERT.word_embedding_frozen",
        "bool",
        False,
        "freeze the word table; ids below 1000 use a table of their own, which is trained",
    ),
    Key("NETWORK.VLBERT.pos_embedding_frozen", "bool", False, "freeze the position table", tasks=PRETRAIN),
    Key("NETWORK.VLBERT.obj_pos_id_relative", "bool", True, "objects share one position id", choices=(True,)),
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
    Key(
        "NETWORK.VLBERT.object_word_embed_mode",
        "int",
        2,
        "word embedding of objects: 1 by category, 2 one for all, 3 mean of the text",
        defaults={"vcr": 1},
        read=VCR,
        choices={"vcr": (1, 2, 3), "vqa": (2,)},
    ),
    Key(
        "NETWORK.VLBERT.with_pooler",
        "bool",
        True,
        "build the pooler of [CLS]",
        defaults={"vqa": False, "refcoco": False},
        choices={"vcr": (True,)},
    ),
    Key(
        "NETWORK.VLBERT.visual_region_classes",
        "int",
        1601,
        "categories of masked regions, background included",
        tasks=PRETRAIN,
        minimum=1,
    ),
    Key(
        "NETWORK.VLBERT.position_padding_idx",
        "int",
        -1,
        "the first position id is this plus 1: -1 for BERT, 1 for RoBERTa",
        minimum=-1,
    ),
)

TRAIN = (
    Key("TRAIN.SHUFFLE", "bool", True, "shuffle the training data"),
    Key("TRAIN.FLIP_PROB", "float", 0.5, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("TRAIN.BATCH_IMAGES", "int or list of int", 1, "samples for each device, by data set where several", minimum=1),
    Key(
        "TRAIN.ASPECT_GROUPING",
        "bool",
        True,
        "a batch holds wide images only, or tall ones only",
        defaults={"pretrain": False},
    ),
    Key(
        "TRAIN.GROUP_PICTURES",
        "bool",
        False,
        "samples of an image follow each other and share it; they are flipped alike",
        tasks=VCR + VQA + REFCOCO,
        ours=True,
    ),
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
    Key("TRAIN.FP16", "bool", False, "train in half precision, where PRECISION says nothing"),
    Key("TRAIN.FP16_LOSS_SCALE", "float or dynamic", 128.0, "loss scale of half precision"),
    Key(
        "TRAIN.PRECISION",
        "str",
        "",
        "number format; empty is fp16 with FP16 and fp32 without, auto is bf16 where the device has it and else fp32",
        choices=("", "auto", "fp32", "bf16", "fp16"),
        ours=True,
    ),
    Key("TRAIN.NONFINITE", "str", "stop", "what a loss of NaN or inf does", choices=("stop", "skip"), ours=True),
    Key(
        "TRAIN.LOSS_LOGGERS",
        "list of (str, str)",
        (),
        'what the log shows: "output,label"',
        defaults={
            "pretrain": (("relationship_loss", "RelLoss"), ("mlm_loss", "MLMLoss"), ("mvrc_loss", "MVRCLoss")),
            "vcr": (("ans_loss", "AnsLoss"), ("cnn_regularization_loss", "CNNRegLoss")),
            "vqa": (("ans_loss", "AnsLoss"),),
            "refcoco": (("cls_loss", "ClsLoss"),),
        },
    ),
    Key("TRAIN.VISUAL_SCALE_TEXT_LR_MULT", "float", 1.0, "dead", tasks=VCR + VQA + REFCOCO, read=NOBODY),
    Key("TRAIN.VISUAL_SCALE_OBJECT_LR_MULT", "float", 1.0, "dead", tasks=VCR + VQA + REFCOCO, read=NOBODY),
    Key("TRAIN.VISUAL_SCALE_CLIP_GRAD_NORM", "int", -1, "dead", tasks=VCR + VQA + REFCOCO, read=NOBODY),
)

GROUPED = "from pixels, BATCH_IMAGES counts images, with all of their samples, so that each is encoded once"

VAL = (
    Key("VAL.SHUFFLE", "bool", False, "shuffle the validation data"),
    Key("VAL.FLIP_PROB", "float", 0.0, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("VAL.BATCH_IMAGES", "int or list of int", 1, "samples for each device", minimum=1),
    Key("VAL.GROUP_PICTURES", "bool", True, GROUPED, tasks=VCR + VQA + REFCOCO, ours=True),
)

TEST = (
    Key("TEST.SHUFFLE", "bool", False, "dead: testing goes in order", read=NOBODY),
    Key("TEST.FLIP_PROB", "float", 0.0, "probability of a horizontal flip", minimum=0, maximum=1),
    Key("TEST.TEST_EPOCH", "int", 0, "dead", read=NOBODY),
    Key("TEST.BATCH_IMAGES", "int or list of int", 1, "samples for each device", minimum=1),
    Key("TEST.GROUP_PICTURES", "bool", True, GROUPED, tasks=VCR + VQA + REFCOCO, ours=True),
)

KEYS = {key.path: key for key in TOP_LEVEL + DATASET + NETWORK + VLBERT + TRAIN + VAL + TEST}


def keys_of(task: str) -> dict[str, Key]:
    """The keys that `task` has, by path. Raises ValueError for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
    return {path: key for path, key in KEYS.items() if task in key.tasks}


def table_path(path: str) -> str:
    """The row of a dotted key: DATASET[1].SEQ_LEN and DATASET.1.SEQ_LEN are both DATASET.SEQ_LEN."""
    return re.sub(r"^DATASET(\[\d+\]|\.\d+)", "DATASET", path)


def unread_keys(task: str, given_keys: Iterable[str]) -> list[str]:
    """Those of the given keys, in the order given, that `task` has and nothing of it reads or checks."""
    keys = keys_of(task)
    rows = dict.fromkeys(table_path(path) for path in given_keys)
    return [path for path in rows if path in keys and not (keys[path].read_by(task) or keys[path].choices_in(task))]


def check(task: str, cfg: Mapping[str, Any]) -> None:
    """Raises ValueError, naming key, value and what was expected, where a value or a combination cannot work."""
    for path, key, value in _items(task, cfg):
        _check_value(path, value, key, key.choices_in(task))
    _check_image(cfg)
    _check_sizes(cfg)
    _CHECKS[task](cfg)


def _items(task: str, cfg: Mapping[str, Any]) -> Iterator[tuple[str, Key, Any]]:
    """(path, row, value) of all values; a list of data sets gives DATASET[i].KEY."""
    for path, key in keys_of(task).items():
        section, _, name = path.rpartition(".")
        node: Any = cfg
        for part in filter(None, section.split(".")):
            node = node[part]
        if isinstance(node, Mapping):
            yield path, key, node[name]
        else:
            yield from ((f"{section}[{i}].{name}", key, entry[name]) for i, entry in enumerate(node))


def _check_value(path: str, value: Any, key: Key, choices: tuple[Any, ...]) -> None:
    if choices and value not in choices:
        raise _error(path, value, ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices)))
    entries = value if isinstance(value, (list, tuple)) else [value]
    if key.minimum is not None and any(entry < key.minimum for entry in entries):
        raise _error(path, value, f"at least {key.minimum}")
    if key.maximum is not None and any(entry > key.maximum for entry in entries):
        raise _error(path, value, f"at most {key.maximum}")


def _check_image(cfg: Mapping[str, Any]) -> None:
    scales, network = cfg["SCALES"], cfg["NETWORK"]
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise _error("SCALES", scales, "two sizes, the short side not above the long one")
    if not network["IMAGE_FEAT_PRECOMPUTED"]:
        for name in ("PIXEL_MEANS", "PIXEL_STDS"):
            if len(network[name]) != 3:
                raise _error(f"NETWORK.{name}", network[name], "three numbers, for B, G and R")
    if any(std <= 0 for std in network["PIXEL_STDS"]):
        raise _error("NETWORK.PIXEL_STDS", network["PIXEL_STDS"], "numbers above 0")


def _check_sizes(cfg: Mapping[str, Any]) -> None:
    network, vlbert = cfg["NETWORK"], cfg["NETWORK"]["VLBERT"]
    if network["IMAGE_FINAL_DIM"] != vlbert["visual_size"]:
        expected = f"NETWORK.VLBERT.visual_size, which is {vlbert['visual_size']}"
        raise _error("NETWORK.IMAGE_FINAL_DIM", network["IMAGE_FINAL_DIM"], expected)
    if vlbert["hidden_size"] % vlbert["num_attention_heads"]:
        expected = f"a multiple of NETWORK.VLBERT.num_attention_heads, which is {vlbert['num_attention_heads']}"
        raise _error("NETWORK.VLBERT.hidden_size", vlbert["hidden_size"], expected)
    steps = cfg["TRAIN"]["LR_STEP"]
    if list(steps) != sorted(steps):
        raise _error("TRAIN.LR_STEP", steps, "epochs in ascending order")


def _check_pretrain(cfg: Mapping[str, Any]) -> None:
    module, datasets, vlbert = cfg["MODULE"], cfg["DATASET"], cfg["NETWORK"]["VLBERT"]
    several = not isinstance(datasets, Mapping)
    if several and len(datasets) < 2:
        raise _error("DATASET", [d["DATASET"] for d in datasets], "at least two data sets in a list, or one mapping")
    for split in ("TRAIN", "VAL", "TEST"):
        sizes = cfg[split]["BATCH_IMAGES"]
        if several and (isinstance(sizes, int) or len(sizes) != len(datasets)):
            raise _error(f"{split}.BATCH_IMAGES", sizes, f"a list of {len(datasets)}, one entry for each data set")
        if not several:
            _check_one_batch_size(cfg, split)
    if module == "ResNetVLBERTForPretrainingMultitask" and not several:
        raise _error("DATASET", datasets["DATASET"], f"a list of captions and plain text, which {module} trains on")
    if module == "ResNetVLBERTForPretraining" and several:
        raise _error(
            "DATASET", [d["DATASET"] for d in datasets], f"one data set of captions, as {module} takes no other"
        )
    if module == "ResNetVLBERTForPretrainingMultitask" and vlbert["visual_size"] != vlbert["hidden_size"]:
        expected = f"NETWORK.VLBERT.hidden_size, which is {vlbert['hidden_size']}, because text-only samples share it"
        raise _error("NETWORK.VLBERT.visual_size", vlbert["visual_size"], expected)
    if cfg["NETWORK"]["WITH_REL_LOSS"] and not vlbert["with_pooler"] and module != "ResNetVLBERTForAttentionVis":
        raise _error("NETWORK.WITH_REL_LOSS", True, "False, or NETWORK.VLBERT.with_pooler true, which its head reads")
    _check_no_grouping(cfg)


def _check_vcr(cfg: Mapping[str, Any]) -> None:
    _check_batch_sizes(cfg)
    _check_no_grouping(cfg)
    _check_features(cfg)


def _check_refcoco(cfg: Mapping[str, Any]) -> None:
    _check_batch_sizes(cfg)
    _check_features(cfg)


def _check_features(cfg: Mapping[str, Any]) -> None:
    """Ours: these tasks have no precomputed features of their own, so somebody must say where they are."""
    if cfg["NETWORK"]["IMAGE_FEAT_PRECOMPUTED"] and not cfg["DATASET"]["REGION_PATH"]:
        raise _error("DATASET.REGION_PATH", "", "the region store, because NETWORK.IMAGE_FEAT_PRECOMPUTED is true")


def _check_vqa(cfg: Mapping[str, Any]) -> None:
    _check_batch_sizes(cfg)
    network = cfg["NETWORK"]
    if network["ENABLE_CNN_REG_LOSS"]:
        if not network["IMAGE_FEAT_PRECOMPUTED"]:
            raise _error("NETWORK.ENABLE_CNN_REG_LOSS", True, "False: vqa has no object labels for this loss")
        logger.warning("NETWORK.ENABLE_CNN_REG_LOSS has no effect in vqa with precomputed features")
    width, hidden = network["CLASSIFIER_HIDDEN_SIZE"], network["VLBERT"]["hidden_size"]
    if network["CLASSIFIER_PRETRAINED"] and network["CLASSIFIER_TYPE"] == "2fc" and width != hidden:
        expected = f"NETWORK.VLBERT.hidden_size, which is {hidden}, where CLASSIFIER_PRETRAINED fills a 2fc classifier"
        raise _error("NETWORK.CLASSIFIER_HIDDEN_SIZE", width, expected)


def _check_batch_sizes(cfg: Mapping[str, Any]) -> None:
    for split in ("TRAIN", "VAL", "TEST"):
        _check_one_batch_size(cfg, split)


def _check_one_batch_size(cfg: Mapping[str, Any], split: str) -> None:
    if not isinstance(cfg[split]["BATCH_IMAGES"], int):
        raise _error(f"{split}.BATCH_IMAGES", cfg[split]["BATCH_IMAGES"], "one number for one data set")


def _check_no_grouping(cfg: Mapping[str, Any]) -> None:
    if cfg["TRAIN"]["ASPECT_GROUPING"]:
        raise _error("TRAIN.ASPECT_GROUPING", True, "False: the data sets of this task do not know their image sizes")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "pretrain": _check_pretrain,
    "vcr": _check_vcr,
    "vqa": _check_vqa,
    "refcoco": _check_refcoco,
}


def _error(path: str, value: Any, expected: str) -> ValueError:
    shown = list(value) if isinstance(value, tuple) else value
    return ValueError(f"{path} = {shown!r}: expected {expected}")
