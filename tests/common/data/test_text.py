import pickle

import pytest
import torch

from common.data.text import BertTokenizer, align_matrix, block_diagonal, join_segments, load_tokenizer, swap_left_right

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "cat",
    "##s",
    "skate",
    "##board",
    "cafe",
    ".",
    "[",
    "]",
    "ς",
]


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer({word: i for i, word in enumerate(WORDS)})


def test_pieces_are_the_longest_match_first(tokenizer):
    assert tokenizer.tokenize("A Skateboards") == ["a", "skate", "##board", "##s"]
    assert tokenizer.tokenize("catx") == ["[UNK]"]  # one position without a match spoils the word
    assert tokenizer.wordpiece("cats") == ["cat", "##s"]
    assert tokenizer.wordpiece("a" * 101) == ["[UNK]"]


def test_basic_tokens_are_lower_case_without_accents_and_controls(tokenizer):
    assert tokenizer.basic_tokenize(" Café\t\u00a0CAT\u0000s.\u200b 北京") == ["cafe", "cats", ".", "北", "京"]
    assert tokenizer.basic_tokenize("ΟΔΟΣ") == ["οδος"]  # a final sigma, as str.lower writes it
    assert tokenizer.basic_tokenize("") == []


def test_special_tokens_must_stand_alone(tokenizer):
    assert tokenizer.tokenize("[CLS] a [MASK]") == ["[CLS]", "a", "[MASK]"]
    assert tokenizer.tokenize("[MASK].") == ["[", "[UNK]", "]", "."]


def test_ids_and_attributes(tokenizer):
    assert tokenizer.ids(["cat", "##s", "never"]) == [6, 7, tokenizer.unk_id]
    assert tokenizer.ids([]) == []
    specials = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert specials == (0, 1, 2, 3, 4)


def test_a_pickled_tokenizer_is_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.tokenize("A cats.") == tokenizer.tokenize("A cats.") == ["a", "cat", "##s", "."]


def test_load_from_folder_or_file(tmp_path):
    file = tmp_path / "vocab.txt"
    # Ids are line numbers; a token twice keeps the last; other line separators of Unicode do not end a line.
    file.write_text("\n".join([*WORDS, "x\u2028y", "cat "]) + "\n", encoding="utf-8")
    for path in (tmp_path, file, str(tmp_path)):
        tokenizer = load_tokenizer(path)
        assert tokenizer.vocab["x\u2028y"] == len(WORDS)
        assert tokenizer.vocab["cat"] == len(WORDS) + 1
        assert tokenizer.tokenize("cats") == ["cat", "##s"]


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="bert-base-uncased.*BERT_MODEL_NAME"):
        load_tokenizer(tmp_path / "bert-base-uncased")
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(ValueError, match=r"\[MASK\]"):
        load_tokenizer(tmp_path)


def test_join_segments():
    # VQA: question and [MASK]; original 9.13.
    assert join_segments([[104, 105, 106], [103]], 101, 102) == (
        [101, 104, 105, 106, 102, 103, 102],
        [0, 0, 0, 0, 0, 1, 1],
    )
    # RefCOCO: one segment, also an empty one.
    assert join_segments([[7, 8]], 101, 102) == ([101, 7, 8, 102], [0, 0, 0, 0])
    assert join_segments([[]], 101, 102) == ([101, 102], [0, 0])
    # VCR: the tags of the same segments, with 0 on special tokens.
    assert join_segments([[3, 0], [1]], 0, 0)[0] == [0, 3, 0, 0, 1, 0]
    assert join_segments([[5], [6]], 101, 102, segment_ids=[0, 0])[1] == [0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="2 segments with 1"):
        join_segments([[5], [6]], 101, 102, segment_ids=[0])


def test_swap_left_right():
    assert swap_left_right(["left", "of", "rights", "right"]) == ["right", "of", "rights", "left"]


def test_align_matrix_averages_the_pieces_of_a_word():
    third = 1 / 3
    want = [[0.5, 0.5, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, third, third, third]]
    torch.testing.assert_close(align_matrix([0, 0, 1, 2, 2, 2]), torch.tensor(want))
    assert align_matrix([0, 2]).tolist() == [[1, 0], [0, 0], [0, 1]]  # word 1 has no pieces: zeros, not NaN
    assert align_matrix([]).shape == (0, 0)


def test_block_diagonal():
    got = block_diagonal([torch.ones(1, 2), torch.full((2, 1), 3.0)])
    assert got.tolist() == [[1, 1, 0], [0, 0, 3], [0, 0, 3]]
