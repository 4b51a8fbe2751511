"""Digests of the vocabulary and other text files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.errors import CheckpointError
from common.predict.load import load_predictor
from common.task import load_task
from common.weights import checkpoint
from common.weights.foreign import load_initial_weights
from common.weights.restore import load_trained
from common.weights.text_files import check_text_files, digest, digests
from tests.tiny import tiny_vqa, write_settings

VOCABULARY, ANSWERS = "NETWORK.BERT_MODEL_NAME", "DATASET.ANSWER_VOCAB_FILE"


@pytest.fixture
def cfg(vqa_ckpt: Path, tiny_world: Path, tmp_path: Path) -> Any:
    settings = tiny_vqa(tiny_world, tmp_path)
    return load_config("vqa", write_settings(settings, tmp_path / "tiny.yaml"))


@pytest.fixture
def trained(vqa_ckpt: Path, cfg: Any, tmp_path: Path) -> Path:
    """The checkpoint, with digests."""
    content = checkpoint.load_file(vqa_ckpt)
    checkpoint.save_file(tmp_path / "a.model", {**content, "text_files": digests(load_task("vqa"), cfg)})
    return tmp_path / "a.model"


def cut(path: Path, target: Path) -> Path:
    """A copy of a text file that is cut to 70 %, as long as ids stay below its length."""
    lines = path.read_text().splitlines()
    target.write_text("\n".join(lines[: int(0.7 * len(lines))]) + "\n")
    return target


def test_the_hash_is_that_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes("[PAD]\nna\u00efve\nb\u2028c\n".encode())
    found = digest(tmp_path / "a.txt")
    assert found["sha256"] == hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest() and found["length"] == 3


@pytest.mark.parametrize("other", [b"a\r\nb\r\n", b"a\nb", b"a \nb\n\n"])
def test_line_ends_do_not_count(tmp_path, other):
    (tmp_path / "a.txt").write_bytes(b"a\nb\n")
    (tmp_path / "b.txt").write_bytes(other)
    first, second = digest(tmp_path / "a.txt"), digest(tmp_path / "b.txt")
    assert (first["sha256"], first["length"]) == (second["sha256"], second["length"])


def test_a_file_that_is_no_text_has_a_hash(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\n")
    assert digest(tmp_path / "a.txt")["length"] == 1


class TestLoading:
    @pytest.mark.parametrize("key", [VOCABULARY, ANSWERS])
    def test_another_file_is_an_error_that_names_both(self, cfg, trained, tiny_world, tmp_path, key):
        path = tiny_world / ("bert/vocab.txt" if key == VOCABULARY else "vqa/answers_vqa.txt")
        other = cut(path, tmp_path / "other.txt")
        count, expected = (len(p.read_text().splitlines()) for p in (other, path))
        message = rf"{key} is .*other.txt \({count} entries.*trained with .*{path.name} \({expected} entries"
        with pytest.raises(CheckpointError, match=message):
            load_predictor(trained, overrides=[f"{key}={other}"], device="cpu")
        with pytest.raises(CheckpointError, match=message):
            load_trained(
                load_task("vqa"), load_config("vqa", tmp_path / "tiny.yaml", {key: str(other)}), tmp_path, trained
            )

    def test_the_same_entries_elsewhere_load(self, trained, tiny_world, tmp_path):
        (tmp_path / "words.txt").write_bytes((tiny_world / "bert/vocab.txt").read_bytes())
        assert load_predictor(trained, overrides=[f"{VOCABULARY}={tmp_path}/words.txt"], device="cpu")

    def test_a_checkpoint_without_digests_loads_as_before(self, vqa_ckpt, tiny_world, tmp_path):
        other = cut(tiny_world / "bert/vocab.txt", tmp_path / "other.txt")
        assert load_predictor(vqa_ckpt, overrides=[f"{VOCABULARY}={other}"], device="cpu")

    def test_of_a_pretrained_checkpoint_the_vocabulary_counts(self, cfg, trained, tiny_world, tmp_path):
        """A new task may have other answers."""
        answers = cut(tiny_world / "vqa/answers_vqa.txt", tmp_path / "answers.txt")
        words = cut(tiny_world / "bert/vocab.txt", tmp_path / "words.txt")
        start = {"NETWORK.PARTIAL_PRETRAIN": str(trained), "NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES": []}
        torch.manual_seed(0)
        model = load_task("vqa").build_model(cfg)
        assert load_initial_weights(model, load_config("vqa", tmp_path / "tiny.yaml", {**start, ANSWERS: str(answers)}))
        with pytest.raises(CheckpointError, match=r"words.txt"):
            load_initial_weights(model, load_config("vqa", tmp_path / "tiny.yaml", {**start, VOCABULARY: str(words)}))

    def test_a_key_that_the_config_lacks_is_not_checked(self, cfg):
        check_text_files({"DATASET.NOTHING": {"file": "a", "sha256": "b", "length": 1}}, cfg, "a.model")
