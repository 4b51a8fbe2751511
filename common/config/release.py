"""Keys of the 2020 release that a task accepts to load its published YAML files.

None of them has an effect unless the task lists it in `TaskKeys.reads` or restricts its values.
"""

from __future__ import annotations

from common.config.keys import Key

# In the files of all four tasks.
RELEASE_KEYS = (
    Key("DATASET.LABEL_INDEX_IN_BATCH", "int", -1, "dead: our batches have names", read=False),
    Key("DATASET.APPEND_INDEX", "bool", False, "dead: our batches carry the ids of their samples", read=False),
    Key(
        "DATASET.TASK",
        "str",
        "Q2AR",
        "half of the task, and part of the name of the checkpoint copied beside the results",
        read=False,
    ),
    Key("DATASET.ROOT_PATH", "str", "", "dead: annotations are not cached", read=False),
    Key(
        "DATASET.CACHE_MODE",
        "bool",
        False,
        "images held in memory, which nobody implemented",
        choices=(False,),
        read=False,
    ),
    Key("DATASET.IGNORE_DB_CACHE", "bool", True, "dead: annotations are not cached", read=False),
    Key("DATASET.MASK_SIZE", "int", 14, "side of the instance masks, that of the C5 output", minimum=1, read=False),
    Key("DATASET.BASIC_ALIGN", "bool", False, "word pieces follow basic tokens, not those of the file", read=False),
    Key("DATASET.ONLY_USE_RELEVANT_DETS", "bool", True, "keep the detections that the text mentions", read=False),
    Key("DATASET.QA2R_NOQ", "bool", False, "the query of QA2R leaves out the question", read=False),
    Key("DATASET.QA2R_AUG", "bool", False, "augmentation that nobody implemented", choices=(False,), read=False),
    Key("NETWORK.BLIND", "bool", False, "leave out all visual input", read=False),
    Key("NETWORK.NO_GROUNDING", "bool", False, "tie words to no region", read=False),
    Key("NETWORK.NO_OBJ_ATTENTION", "bool", False, "mask the regions out of the sequence", read=False),
    Key("NETWORK.OUTPUT_CONV5", "bool", False, "needs modules that do not exist", choices=(False,), read=False),
    Key("NETWORK.BERT_FROZEN", "bool", True, "dead", read=False),
    Key("NETWORK.BERT_ALIGN_QUESTION", "bool", True, "dead", read=False),
    Key("NETWORK.BERT_ALIGN_ANSWER", "bool", True, "dead", read=False),
    Key("NETWORK.BERT_USE_LAYER", "int", -2, "dead", read=False),
    Key("NETWORK.BERT_WITH_NSP_LOSS", "bool", False, "dead", read=False),
    Key("NETWORK.BERT_WITH_MLM_LOSS", "bool", False, "dead", read=False),
    Key("NETWORK.ENABLE_CNN_REG_LOSS", "bool", True, "also classify the objects", read=False),
    Key("NETWORK.CNN_LOSS_WEIGHT", "float", 1.0, "weight of the object classification", read=False),
    Key("NETWORK.ANS_LOSS_WEIGHT", "float", 1.0, "weight of the answer loss", read=False),
    Key("NETWORK.CLASSIFIER_SIGMOID", "bool", False, "sigmoid for each choice, not softmax over them", read=False),
    Key(
        "NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT", "float", 1.0, "weight of the right choice in it", read=False
    ),
    Key("NETWORK.VLBERT.input_size", "int", 1280, "dead", read=False),
    Key("NETWORK.VLBERT.input_transform_type", "int", 1, "dead", read=False),
    Key(
        "NETWORK.VLBERT.obj_pos_id_relative", "bool", True, "objects share one position id", choices=(True,), read=False
    ),
    Key(
        "NETWORK.VLBERT.object_word_embed_mode",
        "int",
        2,
        "word embedding of objects: 1 by category, 2 one for all, 3 mean of the text",
        read=False,
    ),
    Key("TEST.SHUFFLE", "bool", False, "dead: testing goes in order", read=False),
    Key("TEST.TEST_EPOCH", "int", 0, "dead", read=False),
)

# In the files of the tasks that are fine-tuned.
FINE_TUNING_KEYS = (
    Key("TRAIN.VISUAL_SCALE_TEXT_LR_MULT", "float", 1.0, "dead", read=False),
    Key("TRAIN.VISUAL_SCALE_OBJECT_LR_MULT", "float", 1.0, "dead", read=False),
    Key("TRAIN.VISUAL_SCALE_CLIP_GRAD_NORM", "int", -1, "dead", read=False),
)

# In the files of the tasks that answer or locate.
ANSWERING_KEYS = (
    Key("DATASET.USE_IMDB", "bool", True, "questions from imdb .npy files, not JSON", read=False),
    Key(
        "NETWORK.CLASSIFIER_PRETRAINED",
        "bool",
        False,
        "classifier rows start as mean word embeddings of the answers",
        read=False,
    ),
    Key("NETWORK.ANS_LOSS_TYPE", "str", "bce", "dead", read=False),
    Key("NETWORK.REPLACE_OBJECT_CHANGE_LABEL", "bool", True, "dead", read=False),
)

MASKED_MODELLING_KEY = Key(
    "NETWORK.FOR_MASK_VL_MODELING_PRETRAIN",
    "bool",
    False,
    "masked modelling on the data of the task, which nobody implemented",
    choices=(False,),
    read=False,
)
