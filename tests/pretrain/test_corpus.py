from __future__ import annotations

import pickle
import random

import pytest

from common.data.text import load_tokenizer
from common.errors import DataError
from pretrain.corpus import GeneralCorpus


@pytest.fixture
def tokenizer(world):
    return load_tokenizer(world / "bert")


def unmasked(dataset: GeneralCorpus, index: int, seed: int = 0) -> list[str]:
    sample = dataset.sample(index, random.Random(seed))
    labels = sample.targets["mlm_labels"].tolist()
    ids = [i if label == -1 else label for i, label in zip(sample.text_ids.tolist(), labels, strict=True)]
    names = [*dataset.tokenizer.vocab]
    return [names[i] for i in ids]


def test_a_line_is_a_sample(world, tokenizer):
    dataset = GeneralCorpus([world / "corpus.doc"], tokenizer)
    assert len(dataset) == 4 and dataset.line(2).startswith("w1 w2")
    assert unmasked(dataset, 0) == ["the", "box", "."]
    assert unmasked(dataset, 2)[-2:] == ["box", "##s"]


def test_short_lines_take_in_those_that_follow(world, tokenizer):
    """Basic tokens count, and after the last line comes the first (original 5.12)."""
    dataset = GeneralCorpus([world / "corpus.doc"], tokenizer, seq_len=64, min_seq_len=8)
    assert unmasked(dataset, 0) == ["the", "box", ".", "a", "text", "line", "of", "the", "text"]
    assert len(unmasked(dataset, 2)) == 13
    assert unmasked(dataset, 3) == ["a", "line", "the", "box", ".", "a", "text", "line", "of", "the", "text"]


def test_pieces_are_cut_to_length(world, tokenizer):
    dataset = GeneralCorpus([world / "corpus.doc"], tokenizer, seq_len=5, min_seq_len=5)
    assert [len(unmasked(dataset, i)) for i in range(4)] == [5, 5, 5, 5]
    sample = dataset.sample(1, random.Random(3))
    assert sample.boxes.shape == (0, 4) and sample.id == 1 and not sample.segment_ids.any()


def test_files_lie_one_behind_the_other(world, tokenizer, tmp_path):
    (tmp_path / "more.doc").write_text("w1\nw2\n")
    dataset = GeneralCorpus([world / "corpus.doc", tmp_path / "more.doc", world / "corpus.doc"], tokenizer)
    assert len(dataset) == 10
    assert [unmasked(dataset, i) for i in (3, 4, 5, 6)] == [["a", "line"], ["w1"], ["w2"], ["the", "box", "."]]
    assert [dataset.line(i) for i in range(10)] == [pickle.loads(pickle.dumps(dataset)).line(i) for i in range(10)]


def test_without_masking(world, tokenizer):
    dataset = GeneralCorpus([world / "corpus.doc"], tokenizer, mask=False)
    for seed in range(20):
        sample = dataset.sample(0, random.Random(seed))
        assert sample.text_ids.tolist() == [104, 106, 109] and (sample.targets["mlm_labels"] == -1).all()


def test_lines_without_a_word(tokenizer, tmp_path):
    """The original would look for words for ever (original 5.13)."""
    path = tmp_path / "none.doc"
    path.write_text("\ufffd\n" * 5)
    with pytest.raises(DataError, match=r"none.doc.*no word.*MIN_SEQ_LEN 4"):
        GeneralCorpus([path], tokenizer, min_seq_len=4).sample(2, random.Random(0))
    assert GeneralCorpus([path], tokenizer).sample(0, random.Random(0)).text_ids.tolist() == []
