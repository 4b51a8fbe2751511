"""Visual question answering as a task (paper §4.2.2)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from common.config import Config
from common.data.text import BertTokenizer
from common.task import Task
from common.weights.foreign import find_language_weights, load_head_transform, read_tensors
from vqa.dataset import VQADataset, build_dataset
from vqa.made_up import MADE_UP
from vqa.module import VLBertForVQA, build_model
from vqa.outputs import build_metrics, result_name, to_records, write_answers
from vqa.predictor import VQAPredictor

log = logging.getLogger(__name__)


def after_loading(model: VLBertForVQA, dataset: VQADataset, cfg: Config) -> None:
    """CLASSIFIER_PRETRAINED fills the classifier's rows with word embeddings, "mlm" its transform with BERT's."""
    network = cfg.NETWORK
    if network.CLASSIFIER_TYPE == "mlm" and not network.PARTIAL_PRETRAIN:
        language = find_language_weights(network)
        report = language and load_head_transform(
            model.final_mlp[0], read_tensors(language), f"{language} (answer head)"
        )
        log.info("%s", report or "no masked-language head to start the answer head from: it starts random")
    if network.CLASSIFIER_PRETRAINED:
        words = model.vlbert.word_embeddings.weight.detach()
        classifier = model.final_mlp[-1]
        assert isinstance(classifier, nn.Linear)
        init_classifier_rows(classifier, words, dataset.vocabulary.answers, dataset.tokenizer)


def init_classifier_rows(
    classifier: nn.Linear, words: torch.Tensor, answers: Sequence[str], tokenizer: BertTokenizer
) -> None:
    """Row of an answer = mean of its word-piece embeddings (original 9.17); no pieces: unchanged.

    classifier: [V, H] weights. words: [vocabulary, H]. Raises ValueError when the sizes do not belong together.
    """
    expected = (len(answers), words.shape[1])
    if tuple(classifier.weight.shape) != expected:
        raise ValueError(
            f"NETWORK.CLASSIFIER_PRETRAINED: the last layer is {tuple(classifier.weight.shape)}, answers and "
            f"word embeddings need {expected}; use CLASSIFIER_TYPE mlm or 1fc, "
            f"or 2fc with CLASSIFIER_HIDDEN_SIZE = hidden_size"
        )
    with torch.no_grad():
        for row, answer in zip(classifier.weight, answers, strict=True):
            ids = tokenizer.ids(tokenizer.tokenize(answer))
            if ids:
                row.copy_(words[ids].mean(0))


TASK = Task(
    name="vqa",
    modules={"ResNetVLBERT": build_model},
    build_dataset=build_dataset,
    build_metrics=build_metrics,
    main_metric=lambda cfg: "SoftAcc",
    to_records=to_records,
    write_results=write_answers,
    result_name=result_name,
    after_loading=after_loading,
    predictor=VQAPredictor,
    made_up=MADE_UP,
    text_files={"DATASET.ANSWER_VOCAB_FILE": "answers.txt"},
    loss_scale_range=(32.0, None),
)
