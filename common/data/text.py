"""Text: the BERT tokenizer, joining segments, aligning word pieces with words (original 4.15 to 4.17)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from common.errors import DataError
from common.files.text import read_text

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORD_LENGTH = 100  # characters; a longer word is [UNK]
KNOWN_WORDS = 2**15  # words whose pieces are cached

_MIRRORED = {"left": "right", "right": "left"}


class BertTokenizer:
    """Uncased BERT word pieces, without special tokens added (original 4.15).

    A special token is recognised only between white space: "[MASK]" is one, "[MASK]." is not.

    vocab: token -> id. cls_id, sep_id, mask_id, unk_id, pad_id: ids of the special tokens.
    Can be pickled, for the workers of a loader.
    Raises ValueError when the vocabulary lacks a special token.
    """

    def __init__(self, vocab: dict[str, int]) -> None:
        from tokenizers import models, normalizers, pre_tokenizers  # here, so that entry points start fast

        missing = [token for token in SPECIAL_TOKENS if token not in vocab]
        if missing:
            raise ValueError(f"vocabulary of {len(vocab)} tokens without {', '.join(missing)}: not a BERT vocabulary")
        self.vocab = vocab
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocab[token] for token in SPECIAL_TOKENS)
        self._clean = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
        )
        self._strip_accents = normalizers.BertNormalizer(
            clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
        )
        self._split_punctuation = pre_tokenizers.BertPreTokenizer()
        self._pieces = models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=MAX_WORD_LENGTH)
        # Most words occur often, and the library takes microseconds for each.
        self._known_chunks = lru_cache(KNOWN_WORDS)(self._split)
        self._known_words = lru_cache(KNOWN_WORDS)(self._match)

    def __reduce__(self) -> tuple[type[BertTokenizer], tuple[dict[str, int]]]:
        return BertTokenizer, (self.vocab,)

    def tokenize(self, text: str) -> list[str]:
        """Word pieces of a text."""
        return [piece for word in self.basic_tokenize(text) for piece in self.wordpiece(word)]

    def basic_tokenize(self, text: str) -> list[str]:
        """Words and punctuation marks: cleaned, lower case, without accents."""
        return [word for chunk in self._clean.normalize_str(text).split() for word in self._known_chunks(chunk)]

    def wordpiece(self, word: str) -> list[str]:
        """Pieces of one word of `basic_tokenize`: the longest match first, or a single [UNK]."""
        return [*self._known_words(word)]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Vocabulary ids; the id of [UNK] for a token outside the vocabulary."""
        return [self.vocab.get(token, self.unk_id) for token in tokens]

    def real_ids(self, tokens: Sequence[str]) -> list[int]:
        """`ids` without that of [PAD], so that a text which spells out "[PAD]" has no padding inside
        (original 9.14)."""
        return [i for i in self.ids(tokens) if i != self.pad_id]

    def _match(self, word: str) -> tuple[str, ...]:
        return tuple(piece.value for piece in self._pieces.tokenize(word))

    def _split(self, chunk: str) -> tuple[str, ...]:
        if chunk in SPECIAL_TOKENS:
            return (chunk,)
        # str.lower depends on the context (a final sigma), the library's normalizer does not.
        plain = self._strip_accents.normalize_str(chunk.lower())
        return tuple(word for word, _ in self._split_punctuation.pre_tokenize_str(plain))


def load_tokenizer(path: str | Path) -> BertTokenizer:
    """Builds the tokenizer of a vocabulary file, or of the vocab.txt in a folder: one token a line, id = line number.

    Raises FileNotFoundError when there is no such file. Nothing is downloaded.
    """
    file = Path(path) / "vocab.txt" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"BERT vocabulary {file} not found (asked for {str(path)!r}): NETWORK.BERT_MODEL_NAME must be a folder "
            "with vocab.txt, or that file"
        )
    lines = read_text(file, "a vocabulary, one token a line").removesuffix("\n").split("\n")
    try:  # no splitlines(): a token may be another line separator of Unicode
        return BertTokenizer({line.strip(): index for index, line in enumerate(lines)})
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def join_segments(
    segments: Sequence[Sequence[int]], cls_value: int, sep_value: int, segment_ids: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """`[CLS] a [SEP] b [SEP] ...` and the segment id of each entry.

    segments: word-piece ids of each segment, or tags of the pieces. cls_value, sep_value: id or tag of [CLS] and [SEP].
    segment_ids: one id a segment, by default 0, 1, ...; [CLS] belongs to the first segment, a [SEP] to the one it ends.
    Raises ValueError when the numbers of segments and segment ids differ.
    """
    numbers = range(len(segments)) if segment_ids is None else segment_ids
    if len(numbers) != len(segments):
        raise ValueError(f"{len(segments)} segments with {len(numbers)} segment ids")
    joined, types = [cls_value], [numbers[0]]
    for segment, number in zip(segments, numbers, strict=True):
        joined += [*segment, sep_value]
        types += [number] * (len(segment) + 1)
    return joined, types


def swap_left_right(tokens: Sequence[str]) -> list[str]:
    """Tokens for the mirrored image: "left" becomes "right" and vice versa; other tokens stay."""
    return [_MIRRORED.get(token, token) for token in tokens]


def align_matrix(ids: Sequence[int]) -> Tensor:
    """Mean pooling of word pieces into words: float32 [max(ids) + 1, len(ids)] (original 4.17).

    The model does not pool words. The reference cases of the original (tests/golden) contain these matrices.
    ids: the word of each piece. Row k is 1 / count(k) at the pieces of word k; a word without pieces is a row of zeros.
    """
    words = torch.tensor(ids, dtype=torch.int64)
    rows = max(ids, default=-1) + 1
    matrix = (words[None, :] == torch.arange(rows)[:, None]).float()  # [rows, T]
    return matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Matrices [r_k, c_k] along the diagonal of one [sum r_k, sum c_k], zeros elsewhere. For `align_matrix`."""
    return torch.block_diag(*blocks)
