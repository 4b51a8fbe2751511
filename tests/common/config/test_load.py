"""Keys, defaults, files and overrides, against values copied by hand from the 2020 release."""

import copy
import json
import logging
import pickle
from pathlib import Path

import pytest
import yaml

from common.config import Config, config_from_dict, default_config, load_config, read_model_config, replace
from common.config.checks import check
from common.config.table import key_table
from common.errors import ConfigError
from tests.common.config.test_table import TASKS
from tests.paths import ROOT

SHIPPED = [
    ("pretrain", "base_e2e_16x16G_fp16"),
    ("pretrain", "base_prec_4x16G_fp32"),
    ("pretrain", "base_prec_withouttextonly_4x16G_fp32"),
    ("pretrain", "large_e2e_16x16G_fp16"),
    ("pretrain", "large_prec_4x16G_fp16"),
    ("pretrain", "vis_attention_maps_coco"),
    ("vcr", "base_q2a_4x16G_fp32"),
    ("vcr", "base_qa2r_4x16G_fp32"),
    ("vcr", "large_q2a_16x16G_fp16"),
    ("vcr", "large_q2a_4x16G_fp16"),
    ("vcr", "large_qa2r_16x16G_fp16"),
    ("vcr", "large_qa2r_4x16G_fp16"),
    ("vqa", "base_4x16G_fp32"),
    ("vqa", "large_4x16G_fp32"),
    ("refcoco", "base_detected_regions_4x16G"),
    ("refcoco", "base_gt_boxes_4x16G"),
    ("refcoco", "large_detected_regions_4x16G"),
    ("refcoco", "large_gt_boxes_4x16G"),
]
MULTITASK = "pretrain/base_prec_4x16G_fp32"


def shipped(name: str, overrides=()) -> Config:
    """A shipped file by <task>/<name>."""
    return load_config(name.split("/")[0], ROOT / "cfgs" / f"{name}.yaml", overrides)


def value(cfg, path: str):
    for part in path.split("."):
        cfg = cfg[int(part)] if part.isdigit() else cfg[part]
    return cfg


@pytest.fixture
def write(tmp_path):
    """write(name, text) -> path of a YAML file."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


VALID = """
SCALES: [600, 1000]
NETWORK: {PIXEL_MEANS: [1, 2, 3], PIXEL_STDS: [1, 1, 1], ENABLE_CNN_REG_LOSS: false}
"""


# path, then the defaults of pretrain, vcr, vqa, refcoco; None where the task lacks the key
DEFAULTS = [
    ("RNG_SEED", -1, -1, -1, -1),
    ("SCALES", (), (), (), ()),
    ("LOG_FREQUENT", 50, 50, 50, 50),
    ("DATASET.LABEL_INDEX_IN_BATCH", -1, 7, -1, -1),
    ("DATASET.ANSWER_VOCAB_SIZE", 3129, None, 3129, 3129),
    ("DATASET.TASK", "Q2AR", "Q2AR", "Q2AR", "Q2AR"),
    ("DATASET.BOXES", None, None, "36", None),
    ("DATASET.TRAIN_BOXES", None, None, None, "gt"),
    ("DATASET.SEQ_LEN", 64, None, None, None),
    ("DATASET.USE_IMDB", None, None, True, True),
    ("NETWORK.IMAGE_SEMANTIC", False, True, False, False),
    ("NETWORK.ENABLE_CNN_REG_LOSS", True, True, True, False),
    ("NETWORK.FOR_MASK_VL_MODELING_PRETRAIN", False, False, False, None),
    ("NETWORK.LOAD_REL_HEAD", None, True, None, None),
    ("NETWORK.IMAGE_FROZEN_BACKBONE_STAGES", (1, 2), (1, 2), (1, 2), (1, 2)),
    ("NETWORK.VLBERT.object_word_embed_mode", 2, 1, 2, 2),
    ("NETWORK.VLBERT.with_pooler", True, True, False, False),
    ("NETWORK.VLBERT.position_padding_idx", -1, -1, -1, -1),
    ("TRAIN.WARMUP_FACTOR", 1 / 3, 1 / 3, 1 / 3, 1 / 3),
    ("TRAIN.VISUAL_SCALE_CLIP_GRAD_NORM", None, -1, -1, -1),
    (
        "TRAIN.LOSS_LOGGERS",
        (("relationship_loss", "RelLoss"), ("mlm_loss", "MLMLoss"), ("mvrc_loss", "MVRCLoss")),
        (("ans_loss", "AnsLoss"), ("cnn_regularization_loss", "CNNRegLoss")),
        (("ans_loss", "AnsLoss"),),
        (("cls_loss", "ClsLoss"),),
    ),
    ("TEST.BATCH_IMAGES", 1, 1, 1, 1),
]


@pytest.mark.parametrize("path, pretrain, vcr, vqa, refcoco", DEFAULTS, ids=[row[0] for row in DEFAULTS])
def test_defaults(path, pretrain, vcr, vqa, refcoco):
    for task, expected in zip(("pretrain", "vcr", "vqa", "refcoco"), (pretrain, vcr, vqa, refcoco), strict=True):
        if expected is None:
            assert path not in key_table(task)
        else:
            assert value(default_config(task), path) == expected


# ---- shipped files ----


def test_the_shipped_files_are_all_here():
    for task in TASKS:
        names = {path.stem for path in (ROOT / "cfgs" / task).glob("*.yaml")}
        assert {name for owner, name in SHIPPED if owner == task} <= names


@pytest.mark.parametrize("task, name", SHIPPED)
def test_shipped_file_loads(task, name):
    cfg = shipped(f"{task}/{name}")
    assert cfg.RNG_SEED == 12345
    large = name.startswith("large")
    assert cfg.NETWORK.VLBERT.num_hidden_layers == (24 if large else 12)
    assert cfg.NETWORK.VLBERT.hidden_size == cfg.NETWORK.IMAGE_FINAL_DIM == (1024 if large else 768)
    assert cfg.NETWORK.PIXEL_MEANS == (102.9801, 115.9465, 122.7717)


# Original 1.10: GPUs, effective batch, base learning rate.
DERIVED = [
    ("pretrain/base_e2e_16x16G_fp16", 16, 256, 2.56e-5),
    ("pretrain/base_prec_4x16G_fp32", 4, 256, 2.56e-5),
    ("pretrain/base_prec_withouttextonly_4x16G_fp32", 4, 256, 2.56e-5),
    ("pretrain/large_e2e_16x16G_fp16", 16, 256, 2.56e-5),
    ("pretrain/large_prec_4x16G_fp16", 4, 256, 2.56e-5),
    ("vcr/base_q2a_4x16G_fp32", 4, 64, 4.48e-3),
    ("vcr/base_qa2r_4x16G_fp32", 4, 64, 4.48e-3),
    ("vcr/large_q2a_16x16G_fp16", 16, 64, 4.48e-3),
    ("vcr/large_q2a_4x16G_fp16", 4, 64, 4.48e-3),
    ("vcr/large_qa2r_16x16G_fp16", 16, 64, 4.48e-3),
    ("vcr/large_qa2r_4x16G_fp16", 4, 64, 4.48e-3),
    ("vqa/base_4x16G_fp32", 4, 256, 1.6e-4),
    ("vqa/large_4x16G_fp32", 4, 256, 1.6e-4),
    ("refcoco/base_detected_regions_4x16G", 4, 32, 2.56e-5),
    ("refcoco/base_gt_boxes_4x16G", 4, 32, 2.56e-5),
    ("refcoco/large_detected_regions_4x16G", 4, 32, 2.56e-5),
    ("refcoco/large_gt_boxes_4x16G", 4, 32, 2.56e-5),
]


@pytest.mark.parametrize("name, gpus, batch, rate", DERIVED)
def test_effective_batch_and_rate(name, gpus, batch, rate):
    train = shipped(name).TRAIN
    sizes = train.BATCH_IMAGES if isinstance(train.BATCH_IMAGES, tuple) else (train.BATCH_IMAGES,)
    assert sum(sizes) * gpus * train.GRAD_ACCUMULATE_STEPS == batch
    assert pytest.approx(rate) == batch * train.LR


VALUES = [
    ("pretrain/base_e2e_16x16G_fp16", "OUTPUT_PATH", "./output/pretrain/vl-bert"),
    ("pretrain/base_e2e_16x16G_fp16", "TRAIN.FP16_LOSS_SCALE", "dynamic"),
    ("pretrain/base_e2e_16x16G_fp16", "NETWORK.IMAGE_PRETRAINED", "./model/pretrained_model/resnet101-pt-vgbua"),
    ("pretrain/base_prec_4x16G_fp32", "DATASET.0.DATASET", "conceptual_captions"),
    ("pretrain/base_prec_4x16G_fp32", "DATASET.0.SEQ_LEN", 64),
    ("pretrain/base_prec_4x16G_fp32", "DATASET.0.MIN_SEQ_LEN", 0),
    ("pretrain/base_prec_4x16G_fp32", "DATASET.1.MIN_SEQ_LEN", 64),
    ("pretrain/base_prec_4x16G_fp32", "DATASET.1.ADD_IMAGE_AS_A_BOX", True),
    ("pretrain/base_prec_4x16G_fp32", "TRAIN.BATCH_IMAGES", (32, 32)),
    ("pretrain/base_prec_4x16G_fp32", "TRAIN.WARMUP_STEPS", 16000),
    ("pretrain/base_prec_withouttextonly_4x16G_fp32", "TRAIN.WARMUP_STEPS", 8000),
    (
        "pretrain/base_prec_withouttextonly_4x16G_fp32",
        "TRAIN.LOSS_LOGGERS",
        (("mlm_loss", "MLMLossWVC"), ("mvrc_loss", "MVRCLoss")),
    ),
    ("pretrain/large_e2e_16x16G_fp16", "TRAIN.GRAD_ACCUMULATE_STEPS", 2),
    ("pretrain/large_prec_4x16G_fp16", "TRAIN.FP16", True),
    ("pretrain/vis_attention_maps_coco", "MODULE", "ResNetVLBERTForAttentionVis"),
    ("pretrain/vis_attention_maps_coco", "TRAIN.END_EPOCH", 0),
    ("vcr/base_q2a_4x16G_fp32", "SCALES", (600, 1200)),
    ("vcr/base_q2a_4x16G_fp32", "TRAIN.LR_STEP", (14.0, 18.0)),
    ("vcr/base_q2a_4x16G_fp32", "TRAIN.LR_SCHEDULE", "step"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.VLBERT.object_word_embed_mode", 2),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES.3", "vlbert->vlbert._module"),
    ("vcr/large_qa2r_16x16G_fp16", "DATASET.TASK", "QA2R"),
    ("vcr/large_qa2r_16x16G_fp16", "TRAIN.GRAD_ACCUMULATE_STEPS", 1),
    ("vqa/base_4x16G_fp32", "TRAIN.LR", 6.25e-7),
    ("vqa/base_4x16G_fp32", "DATASET.BOXES", "10-100ada"),
    ("vqa/base_4x16G_fp32", "NETWORK.CLASSIFIER_TYPE", "mlm"),
    ("vqa/large_4x16G_fp32", "TEST.BATCH_IMAGES", 16),
    ("refcoco/base_detected_regions_4x16G", "DATASET.TRAIN_BOXES", "proposal+gt"),
    ("refcoco/base_gt_boxes_4x16G", "DATASET.TRAIN_BOXES", "gt"),
    ("refcoco/large_gt_boxes_4x16G", "NETWORK.CLASSIFIER_DROPOUT", 0.0),
    ("refcoco/large_gt_boxes_4x16G", "TRAIN.ASPECT_GROUPING", True),
]


@pytest.mark.parametrize("name, path, expected", VALUES)
def test_shipped_values(name, path, expected):
    assert value(shipped(name), path) == expected


# ---- files ----


def test_file_over_bases_over_defaults_and_overrides_over_all(write):
    write("shared/size.yaml", "TRAIN: {LR: 0.5, WD: 0.5, MOMENTUM: 0.5}\nLOG_FREQUENT: 7\n")
    write("shared/more.yaml", "_BASE_: size.yaml\nTRAIN: {WD: 0.25}\n")
    path = write("run.yaml", VALID + "_BASE_: shared/more.yaml\nTRAIN: {LR: 0.125}\n")
    cfg = load_config("refcoco", path, ["TRAIN.MOMENTUM=0.0625"])
    assert (cfg.TRAIN.LR, cfg.TRAIN.WD, cfg.TRAIN.MOMENTUM) == (0.125, 0.25, 0.0625)
    assert (cfg.LOG_FREQUENT, cfg.TRAIN.OPTIMIZER) == (7, "SGD")


def test_the_later_of_two_bases_wins(write):
    write("a.yaml", "TRAIN: {LR: 1, WD: 1}\n")
    write("b.yaml", "TRAIN: {LR: 2}\n")
    cfg = load_config("refcoco", write("run.yaml", VALID + "_BASE_: [a.yaml, b.yaml]\n"))
    assert (cfg.TRAIN.LR, cfg.TRAIN.WD) == (2.0, 1.0)


def test_bases_in_a_circle(write):
    write("b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ConfigError, match=r"b.yaml: _BASE_: .*circle: .*a.yaml -> .*b.yaml -> .*a.yaml"):
        load_config("vqa", write("a.yaml", "_BASE_: b.yaml\n"))


def test_one_base_by_two_ways_is_no_circle(write):
    write("root.yaml", VALID)
    write("a.yaml", "_BASE_: root.yaml\n")
    write("b.yaml", "_BASE_: root.yaml\n")
    assert load_config("refcoco", write("run.yaml", "_BASE_: [a.yaml, b.yaml]\n")).SCALES == (600, 1000)


def test_missing_files(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load_config("vqa", tmp_path / "nowhere.yaml")
    with pytest.raises(FileNotFoundError, match=r"gone.yaml, named by _BASE_ in .*run.yaml"):
        load_config("vqa", write("run.yaml", "_BASE_: gone.yaml\n"))


# text of the file, and parts of the error, which also names the file
BAD_FILES = [
    ("TRAIN: {LRR: 1}", ["TRAIN.LRR", "did you mean TRAIN.LR?"]),
    ("TRIAN: {LR: 1}", ["TRIAN", "did you mean TRAIN?"]),
    ("LR: 1", ["LR: unknown", "did you mean TRAIN.LR?"]),
    ("NETWORK: {VLBERT: {hiden_size: 8}}", ["NETWORK.VLBERT.hiden_size", "did you mean NETWORK.VLBERT.hidden_size?"]),
    ("NETWORK: {image_num_layers: 50}", ["did you mean NETWORK.IMAGE_NUM_LAYERS?"]),
    ("DATASET: {TRAIN_BOXES: gt}", ["DATASET.TRAIN_BOXES", "no key of vqa, only of refcoco"]),
    ("TRAIN: {LR: fast}", ["TRAIN.LR = 'fast' (str)", "expected float"]),
    ("TRAIN: {LR: .nan}", ["TRAIN.LR = nan", "expected float"]),
    ("TRAIN: {LR: true}", ["TRAIN.LR = True (bool)", "expected float"]),
    ("TRAIN: {SHUFFLE: 1}", ["TRAIN.SHUFFLE = 1 (int)", "expected bool"]),
    ("TRAIN: {END_EPOCH: true}", ["TRAIN.END_EPOCH = True (bool)", "expected int"]),
    ("TRAIN: {END_EPOCH: 1.0}", ["TRAIN.END_EPOCH = 1.0 (float)", "expected int"]),
    ("TRAIN: {BATCH_IMAGES: [4, x]}", ["TRAIN.BATCH_IMAGES", "expected int or list of int"]),
    ("TRAIN: {LOSS_LOGGERS: [ans_loss]}", ["TRAIN.LOSS_LOGGERS", "expected list of (str, str)"]),
    ("TRAIN: {FP16_LOSS_SCALE: static}", ["TRAIN.FP16_LOSS_SCALE", "expected float or dynamic"]),
    ("GPUS: 0", ["GPUS = 0 (int)", "expected str"]),
    ("OUTPUT_PATH: null", ["OUTPUT_PATH = None", "expected str"]),
    ("SCALES: [600]", ["SCALES = [600]", "expected pair of ints"]),
    ("TRAIN: 3", ["TRAIN = 3", "expected a mapping"]),
    ("TRAIN:", ["TRAIN = None", "expected a mapping"]),
    ("DATASET: [{}, {}]", ["DATASET", "expected a mapping"]),
    ("_BASE_: 3", ["_BASE_ = 3", "expected a path"]),
    ("[1, 2]", ["expected a mapping", "list"]),
    ("TRAIN: [", ["no valid YAML", "line"]),
    ("TRAIN: {LR: 1, LR: 2}", ["'LR' stands twice", "line 1"]),
    ("TRAIN: {LR: !!python/object/apply:os.getpid []}", ["no valid YAML", "python/object"]),
]


@pytest.mark.parametrize("text, parts", BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_errors_name_file_key_and_expectation(write, text, parts):
    with pytest.raises(ConfigError) as error:
        load_config("vqa", write("run.yaml", text))
    for part in ["run.yaml", *parts]:
        assert part in str(error.value)


def test_an_error_in_a_base_names_the_base(write):
    write("base.yaml", "TRAIN: {LRR: 1}")
    with pytest.raises(ConfigError, match=r"base.yaml: TRAIN.LRR"):
        load_config("vqa", write("run.yaml", "_BASE_: base.yaml"))


def test_values_are_converted(write):
    text = """
TRAIN:
  LR: 1e-7  # YAML 1.1 reads this as a text
  WD: 1
  LR_STEP: "14,18"
  LOSS_LOGGERS: ["cls_loss,ClsLoss", "a, b"]
  LR_MULT: [[vlbert, 2], [head, 0.5]]
  FP16_LOSS_SCALE: dynamic
"""
    train = load_config("refcoco", write("run.yaml", VALID + text)).TRAIN
    assert train.LR == 1e-7
    assert (train.WD, type(train.WD)) == (1.0, float)
    assert train.LR_STEP == (14.0, 18.0)
    assert train.LOSS_LOGGERS == (("cls_loss", "ClsLoss"), ("a", "b"))
    assert train.LR_MULT == (("vlbert", 2.0), ("head", 0.5))
    assert train.FP16_LOSS_SCALE == "dynamic"


@pytest.mark.parametrize("steps", [[14, 18], (14.0, 18.0), "14,18", "14, 18"])
def test_forms_of_lr_step(steps):
    assert load_config("vcr", None, {"TRAIN.LR_STEP": steps}).TRAIN.LR_STEP == (14.0, 18.0)


# ---- lists of data sets ----


def test_entries_of_a_list_are_completed_and_checked(write):
    text = "MODULE: ResNetVLBERTForPretrainingMultitask\nTRAIN: {ASPECT_GROUPING: false, BATCH_IMAGES: [1, 2]}\n"
    text += "VAL: {BATCH_IMAGES: [1, 2]}\nTEST: {BATCH_IMAGES: [1, 2]}\n"
    text += "DATASET:\n- {DATASET: coco_captions}\n- {DATASET: general_corpus, SEQ_LEN: 9%s}\n"
    cfg = load_config("pretrain", write("run.yaml", VALID + text % ""))
    assert [d.SEQ_LEN for d in cfg.DATASET] == [64, 9]
    assert [d.ADD_IMAGE_AS_A_BOX for d in cfg.DATASET] == [True, True]
    with pytest.raises(ConfigError, match=r"run.yaml: DATASET\[1\].FOO: unknown key"):
        load_config("pretrain", write("run.yaml", VALID + text % ", FOO: 1"))
    with pytest.raises(ConfigError, match=r"run.yaml: DATASET\[1\].CACHE_MODE = True: expected False"):
        load_config("pretrain", write("run.yaml", VALID + text % ", CACHE_MODE: true"))


def test_overrides_of_entries_of_a_list():
    cfg = shipped(MULTITASK, {"DATASET.0.ROOT_PATH": "/data", "DATASET.1.SEQ_LEN": 20})
    assert [d.ROOT_PATH for d in cfg.DATASET] == ["/data", ""]
    assert [d.SEQ_LEN for d in cfg.DATASET] == [64, 20]
    assert shipped(MULTITASK, ["DATASET[1].SEQ_LEN=7"]).DATASET[1].SEQ_LEN == 7
    for bad in ("DATASET.2.ROOT_PATH", "DATASET.ROOT_PATH"):
        with pytest.raises(ConfigError, match=f"{bad}: DATASET is a list.*DATASET.0.ROOT_PATH"):
            shipped(MULTITASK, {bad: "/data"})
    with pytest.raises(ConfigError, match="one mapping"):
        load_config("vqa", None, {"DATASET.0.ROOT_PATH": "/data"})


def test_a_list_over_what_a_base_says(write):
    more = "\nMODULE: ResNetVLBERTForPretrainingMultitask\nTRAIN: {ASPECT_GROUPING: false, BATCH_IMAGES: [1, 1]}\n"
    more += "VAL: {BATCH_IMAGES: [1, 1]}\nTEST: {BATCH_IMAGES: [1, 1]}\n_BASE_: base.yaml\n"
    more += "DATASET: [{DATASET: coco_captions}, {DATASET: general_corpus, SEQ_LEN: 9}]\n"
    path = write("run.yaml", VALID + more)
    write("base.yaml", "DATASET: {SEQ_LEN: 5, MIN_SEQ_LEN: 3}")
    assert [(d.SEQ_LEN, d.MIN_SEQ_LEN) for d in load_config("pretrain", path).DATASET] == [(5, 3), (9, 3)]
    write("base.yaml", "DATASET: [{SEQ_LEN: 5}, {SEQ_LEN: 6}, {SEQ_LEN: 7}]")
    assert [d.SEQ_LEN for d in load_config("pretrain", path).DATASET] == [64, 9]


def test_a_mapping_cannot_change_a_list(write):
    write("base.yaml", "DATASET: [{SEQ_LEN: 1}, {SEQ_LEN: 2}]")
    with pytest.raises(ConfigError, match="run.yaml: DATASET: a mapping cannot change the list"):
        load_config("pretrain", write("run.yaml", "_BASE_: base.yaml\nDATASET: {SEQ_LEN: 3}"))


# ---- overrides ----


def test_texts():
    cfg = load_config("vqa", None, ["TRAIN.LR=1e-7", "SCALES=[600, 1000]", "TRAIN.SHUFFLE=false", "TRAIN.LR_STEP=2,4"])
    assert (cfg.TRAIN.LR, cfg.SCALES, cfg.TRAIN.SHUFFLE, cfg.TRAIN.LR_STEP) == (1e-7, (600, 1000), False, (2.0, 4.0))


def test_a_text_for_a_text_key_is_taken_as_it_is():
    cfg = load_config("vqa", None, ["GPUS=0", "DATASET.BOXES=36", "OUTPUT_PATH=", "MODEL_PREFIX=a=b"])
    assert (cfg.GPUS, cfg.DATASET.BOXES, cfg.OUTPUT_PATH, cfg.MODEL_PREFIX) == ("0", "36", "", "a=b")


def test_mapping():
    overrides = {
        "TRAIN.LR_MULT": [["object_linguistic_embeddings", 0.5]],
        "DATASET.ROOT_PATH": Path("/data"),
        "NETWORK.VLBERT": {"hidden_size": 48},
    }
    cfg = load_config("vqa", None, overrides)
    assert cfg.TRAIN.LR_MULT == (("object_linguistic_embeddings", 0.5),)
    assert (cfg.DATASET.ROOT_PATH, cfg.NETWORK.VLBERT.hidden_size) == ("/data", 48)
    assert cfg.NETWORK.VLBERT.num_hidden_layers == 4


@pytest.mark.parametrize(
    "text, part",
    [
        ("TRAIN.LR", "expected KEY=VALUE"),
        ("TRAIN.LR=[", "no YAML"),
        ("TRAIN.LRR=1", "did you mean TRAIN.LR?"),
        ("TRAIN.LR.X=1", "TRAIN.LR = {'X': 1} (dict): expected float"),
        ("TRAIN=1", "expected a mapping"),
        ("TRAIN.END_EPOCH=two", "TRAIN.END_EPOCH = 'two' (str): expected int"),
    ],
)
def test_bad_overrides(text, part):
    with pytest.raises(ConfigError) as error:
        load_config("vqa", None, [text])
    assert part in str(error.value) and "override" in str(error.value)


def test_one_text_instead_of_a_list():
    with pytest.raises(TypeError, match="list of texts"):
        load_config("vqa", None, "TRAIN.LR=1")


# ---- checks ----

# file, overrides that break it, parts of the error
IMPOSSIBLE = [
    ("vqa/base_4x16G_fp32", "DATASET.CACHE_MODE=true", "DATASET.CACHE_MODE = True: expected False"),
    ("vqa/base_4x16G_fp32", "NETWORK.OUTPUT_CONV5=true", "expected False"),
    ("vqa/base_4x16G_fp32", "NETWORK.VLBERT.obj_pos_id_relative=false", "expected True"),
    ("vqa/base_4x16G_fp32", "NETWORK.IMAGE_NUM_LAYERS=34", "= 34: expected one of 50, 101, 152"),
    ("vqa/base_4x16G_fp32", "DATASET.QA2R_AUG=true", "expected False"),
    ("vqa/base_4x16G_fp32", "NETWORK.FOR_MASK_VL_MODELING_PRETRAIN=true", "expected False"),
    ("vqa/base_4x16G_fp32", "SCALES=[1000, 600]", "SCALES = [1000, 600]"),
    ("vqa/base_4x16G_fp32", "SCALES=[]", "SCALES = []"),
    ("vqa/base_4x16G_fp32", "NETWORK.VLBERT.num_attention_heads=7", "num_attention_heads, which is 7"),
    ("vqa/base_4x16G_fp32", "TRAIN.GRAD_ACCUMULATE_STEPS=0", "= 0: expected at least 1"),
    ("vqa/base_4x16G_fp32", "NETWORK.IMAGE_FINAL_DIM=512", "NETWORK.VLBERT.visual_size, which is 768"),
    ("vqa/base_4x16G_fp32", "NETWORK.BLIND=true", "expected False"),
    ("vqa/base_4x16G_fp32", "NETWORK.VLBERT.object_word_embed_mode=1", "= 1: expected 2"),
    ("vqa/base_4x16G_fp32", "NETWORK.IMAGE_SEMANTIC=true", "expected False"),
    ("vqa/base_4x16G_fp32", "NETWORK.CLASSIFIER_TYPE=3fc", "expected one of '2fc', '1fc', 'mlm'"),
    ("vqa/base_4x16G_fp32", "NETWORK.CLASSIFIER_TYPE=2fc", "NETWORK.CLASSIFIER_HIDDEN_SIZE = 1024"),
    ("vqa/base_4x16G_fp32", "TRAIN.OPTIMIZER=Lion", "expected one of 'SGD', 'Adam', 'AdamW'"),
    ("vqa/base_4x16G_fp32", "TRAIN.LR_SCHEDULE=cosine", "expected one of 'step', 'triangle', 'plateau'"),
    ("vqa/base_4x16G_fp32", "TRAIN.WARMUP_METHOD=exp", "expected one of 'linear', 'constant'"),
    ("vqa/base_4x16G_fp32", "TRAIN.PRECISION=fp8", "expected one of"),
    ("vqa/base_4x16G_fp32", "TRAIN.NONFINITE=ignore", "expected one of 'stop', 'skip'"),
    ("vqa/base_4x16G_fp32", "DEVICE=tpu", "expected one of 'auto', 'cpu', 'cuda', 'mps'"),
    ("vcr/base_q2a_4x16G_fp32", "TRAIN.FSDP=true", "TRAIN.OPTIMIZER = 'SGD': expected AdamW"),
    ("vqa/base_4x16G_fp32", "NETWORK.VLBERT.hidden_act=tanh", "expected one of 'gelu', 'relu', 'swish'"),
    ("vqa/base_4x16G_fp32", "TRAIN.FLIP_PROB=1.5", "expected at most 1"),
    ("vqa/base_4x16G_fp32", "TRAIN.BATCH_IMAGES=[4, 4]", "one number"),
    ("vqa/base_4x16G_fp32", "TRAIN.LR_STEP=[4, 2]", "ascending"),
    ("vqa/base_4x16G_fp32", "MODULE=eval", "expected one of '', 'ResNetVLBERT'"),
    ("vcr/base_q2a_4x16G_fp32", "DATASET.TASK=Q2AR", "expected one of 'Q2A', 'QA2R'"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.CLASSIFIER_TYPE=mlm", "expected one of '2fc', '1fc'"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.VLBERT.with_pooler=false", "expected True"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.IMAGE_FEAT_PRECOMPUTED=true", "DATASET.REGION_PATH = ''"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.IMAGE_FROZEN_BACKBONE_STAGES=[1, 6]", "expected at most 5"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.PIXEL_STDS=[1, 0, 1]", "above 0"),
    ("vcr/base_q2a_4x16G_fp32", "NETWORK.PIXEL_MEANS=[]", "three numbers"),
    ("vcr/base_q2a_4x16G_fp32", "TRAIN.ASPECT_GROUPING=true", "expected False"),
    ("refcoco/base_gt_boxes_4x16G", "DATASET.VAL_BOXES=all", "expected one of 'gt', 'proposal'"),
    ("refcoco/base_gt_boxes_4x16G", "NETWORK.IMAGE_FEAT_PRECOMPUTED=true", "DATASET.REGION_PATH = ''"),
    (MULTITASK, "MODULE=ResNetVLBERTForPretraining", "takes no other"),
    (MULTITASK, "NETWORK.WITH_REL_LOSS=true", "with_pooler true"),
    ("pretrain/base_prec_withouttextonly_4x16G_fp32", "MODULE=ResNetVLBERTForPretrainingMultitask", "plain text"),
    (MULTITASK, "TRAIN.BATCH_IMAGES=4", "a list of 2"),
    (MULTITASK, "VAL.BATCH_IMAGES=[4]", "a list of 2"),
    (MULTITASK, "DATASET.0.DATASET=vqa", "DATASET[0].DATASET = 'vqa': expected one of 'conceptual_captions'"),
    (MULTITASK, "NETWORK.VLBERT.hidden_size=1024", "num_attention_heads"),
    (MULTITASK, "NETWORK.VLBERT.hidden_size=1200", "NETWORK.VLBERT.visual_size = 768"),
]


@pytest.mark.parametrize("name, override, part", IMPOSSIBLE)
def test_values_that_cannot_work(name, override, part):
    with pytest.raises(ConfigError) as error:
        shipped(name, [override])
    assert part in str(error.value)
    assert f"{name}.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"TRAIN.PRECISION": "fp16"}, "TRAIN.FSDP = True: expected False in fp16"),
        ({"TRAIN.FP16": True}, "TRAIN.FSDP = True: expected False in fp16"),
        ({"TRAIN.COMPILE": True}, "TRAIN.FSDP = True: expected False, because TRAIN.COMPILE is true"),
        ({"NETWORK.VLBERT.visual_ln": False}, "because NETWORK.VLBERT.visual_ln is false"),
    ],
)
def test_what_fsdp_cannot_train(changes, part):
    with pytest.raises(ConfigError, match=part):
        shipped("vqa/base_4x16G_fp32", {"TRAIN.FSDP": True, **changes})
    shipped("vqa/base_4x16G_fp32", {"TRAIN.FSDP": True, "TRAIN.FP16": True, "TRAIN.PRECISION": "bf16"})


def test_region_loss_in_vqa(caplog):
    name, key = "vqa/base_4x16G_fp32", "NETWORK.ENABLE_CNN_REG_LOSS"
    with pytest.raises(ConfigError, match=f"{key} = True: expected False"):
        shipped(name, {key: True, "NETWORK.IMAGE_FEAT_PRECOMPUTED": False})
    with caplog.at_level(logging.WARNING):
        shipped(name, {key: True})
    assert f"{key} has no effect in vqa" in caplog.text


@pytest.mark.parametrize("task", TASKS)
def test_defaults_load_though_they_do_not_pass_the_check(task):
    cfg = load_config(task)
    assert cfg == default_config(task)
    with pytest.raises(ConfigError):
        check(task, cfg)


# ---- keys without effect ----


def test_one_warning_lists_them(caplog):
    with caplog.at_level(logging.WARNING, logger="common.config"):
        shipped("vqa/base_4x16G_fp32", ["NETWORK.BERT_USE_LAYER=-1"])
    [record] = caplog.records
    assert record.name == "common.config.load"
    assert record.getMessage() == (
        "these keys have no effect in vqa: DATASET.ROOT_PATH, DATASET.IGNORE_DB_CACHE, NETWORK.BERT_FROZEN, "
        "NETWORK.BERT_USE_LAYER"
    )


def test_no_warning_without_such_keys(caplog):
    load_config("vqa", None, {"TRAIN.LR": 1})
    assert not caplog.records


# ---- Config ----


def test_frozen_at_all_levels():
    cfg = shipped(MULTITASK)
    for section in (cfg, cfg.TRAIN, cfg.NETWORK.VLBERT, cfg.DATASET[0]):
        name = next(iter(section))
        for change in (
            lambda s, n: setattr(s, n, 1),
            lambda s, n: s.__setitem__(n, 1),
            lambda s, n: delattr(s, n),
            lambda s, n: s.__delitem__(n),
            lambda s, n: s.update({n: 1}),
            lambda s, n: s.pop(n),
            lambda s, n: s.popitem(),
            lambda s, n: s.setdefault("NEW", 1),
            lambda s, n: s.clear(),
            lambda s, n: s.__ior__({n: 1}),
        ):
            with pytest.raises(TypeError, match=r"replace\(\)"):
                change(section, name)
    assert isinstance(cfg.DATASET, tuple) and isinstance(cfg.SCALES, tuple)
    assert cfg == shipped(MULTITASK)


def test_attribute_and_item_are_the_same_and_a_typo_is_named():
    cfg = default_config("vqa")
    assert cfg.TRAIN.LR == cfg["TRAIN"]["LR"] == 0.1
    with pytest.raises(AttributeError, match="'TRIAN'.*did you mean TRAIN?"):
        _ = cfg.TRIAN


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda cfg: pickle.loads(pickle.dumps(cfg))])
def test_copies_are_equal_and_frozen(duplicate):
    cfg = shipped(MULTITASK)
    other = duplicate(cfg)
    assert other == cfg and other.task == "pretrain" and isinstance(other.DATASET[0], Config)
    with pytest.raises(TypeError):
        other.TRAIN.LR = 1.0
    assert replace(other, {"TRAIN.LR": 1}).TRAIN.LR == 1.0


def plain(tree) -> bool:
    if type(tree) is dict:
        return all(type(name) is str and plain(entry) for name, entry in tree.items())
    return all(map(plain, tree)) if type(tree) is list else type(tree) in (str, int, float, bool)


@pytest.mark.parametrize("name", [MULTITASK, "vcr/base_q2a_4x16G_fp32"])
def test_dict_and_back(name):
    cfg = shipped(name)
    tree = cfg.to_dict()
    assert plain(tree)
    assert config_from_dict(cfg.task, json.loads(json.dumps(tree))) == cfg
    tree["TRAIN"]["LR_STEP"].append(99)
    assert 99 not in cfg.TRAIN.LR_STEP


def test_a_stored_config_of_an_older_version():
    tree = default_config("vqa").to_dict()
    del tree["TRAIN"]["MAX_STEPS"]
    assert config_from_dict("vqa", tree) == default_config("vqa")
    with pytest.raises(ConfigError, match="stored config: NEW: unknown key"):
        config_from_dict("vqa", {"NEW": 1})


def test_replace():
    cfg = shipped(MULTITASK)
    other = replace(cfg, {"TRAIN.LR": 1, "DATASET.1.SEQ_LEN": 5, "GPUS": "3"})
    assert (other.TRAIN.LR, other.DATASET[1].SEQ_LEN, other.GPUS) == (1.0, 5, "3")
    assert (cfg.TRAIN.LR, cfg.DATASET[1].SEQ_LEN, cfg.GPUS) == (1e-7, 64, "0,1,2,3")
    assert replace(other, {"TRAIN.LR": 1e-7, "DATASET.1.SEQ_LEN": 64, "GPUS": "0,1,2,3"}) == cfg
    with pytest.raises(ConfigError, match="did you mean TRAIN.LR?"):
        replace(cfg, {"TRAIN.LRR": 1})


# ---- model folders ----


def model_config(folder: Path, text: str = "", files: str = "{NETWORK.BERT_MODEL_NAME: vocab.txt}") -> Path:
    """The config.yaml of a model folder: complete, so with keys that have no effect."""
    path = folder / "config.yaml"
    whole = yaml.safe_dump(shipped("vqa/base_4x16G_fp32").to_dict())
    path.write_text(f"_TASK_: vqa\n_FILES_: {files}\n{whole}{text}")
    return path


def test_files_of_a_model_folder_are_beside_its_config(tmp_path, caplog):
    path = model_config(tmp_path, files="{NETWORK.BERT_MODEL_NAME: vocab.txt, NETWORK.REGION_ENCODER: 'resnet:a.b'}")
    caplog.clear()
    cfg = load_config("vqa", path, ["NETWORK.BERT_FROZEN=true"])
    assert Path(cfg.NETWORK.BERT_MODEL_NAME) == tmp_path / "vocab.txt"
    assert value(cfg, "NETWORK.REGION_ENCODER") == f"resnet:{tmp_path}/a.b"
    task, values = read_model_config(path)
    assert (task, values["NETWORK"]["BERT_MODEL_NAME"]) == ("vqa", f"{tmp_path}/vocab.txt")
    assert caplog.messages == ["these keys have no effect in vqa: NETWORK.BERT_FROZEN"]  # the one that was given


def test_a_config_may_build_on_that_of_a_model_folder(tmp_path, write):
    (tmp_path / "model").mkdir()
    model_config(tmp_path / "model")
    cfg = load_config("vqa", write("a.yaml", "_BASE_: model/config.yaml\nTRAIN: {LR: 0.5}"))
    assert Path(cfg.NETWORK.BERT_MODEL_NAME) == tmp_path / "model/vocab.txt" and cfg.TRAIN.LR == 0.5


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ("[vocab.txt]", "expected a mapping of keys to names of files"),
        ("{NETWORK.BERT_MODEL_NAME: 3}", "expected a mapping of keys to names of files"),
        ("{NETWORK.BERT_MODEL_NAME: ../vocab.txt}", "expected the name of a file in the same folder"),
        ("{NETWORK.BERT_MODEL_NAME: /vocab.txt}", "expected the name of a file in the same folder"),
    ],
)
def test_bad_files_of_a_model_folder(tmp_path, files, part):
    with pytest.raises(ConfigError, match=rf"config.yaml: _FILES_.*{part}"):
        load_config("vqa", model_config(tmp_path, files=files))


def test_the_task_of_a_model_folder_counts(tmp_path, write):
    with pytest.raises(ConfigError, match=r"config.yaml: a config of vqa, not of vcr"):
        load_config("vcr", model_config(tmp_path))
    with pytest.raises(ConfigError, match=r"_TASK_ = 3: expected the name of a task"):
        load_config("vcr", write("b.yaml", "_TASK_: 3"))
    with pytest.raises(ConfigError, match=r"c.yaml: no _TASK_"):
        read_model_config(write("c.yaml", "GPUS: '0'"))
