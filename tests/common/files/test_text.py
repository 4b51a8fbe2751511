"""Text files: UTF-8 with or without a byte order mark, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.config import load_config
from common.data.text import load_tokenizer
from common.errors import UserError
from common.files.json_files import iter_list, read_json
from common.files.lines import LineFile
from common.files.text import read_text
from common.regions.box_sources import VcrBoxes
from common.weights.checkpoint import load_file
from common.weights.text_files import digest
from vcr.result_table import read_table
from vqa.answers import AnswerVocabulary

BOM = b"\xef\xbb\xbf"
OTHER = {
    "page": (b"  <!DOCTYPE html><html>Virus scan warning</html>", "this is an HTML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "this is a git-lfs pointer"),
    "gzip": (b"\x1f\x8b\x08\x00 text", "this is a gzip archive"),
    "utf-16": ("[1]\n".encode("utf-16"), "this is UTF-16 text"),
    "latin-1": (b'["caf\xe9"]\n', "byte 5"),
}
READERS: dict[str, Any] = {
    "text": read_text,
    "json": read_json,
    "a list in json": lambda path: list(iter_list(path, "things")),
    "lines": lambda path: LineFile(path)[0],
    "answers": AnswerVocabulary.load,
    "vocabulary": load_tokenizer,
    "boxes of VCR": lambda path: VcrBoxes(str(path)),
    "result of VCR": read_table,
    "config": lambda path: load_config("vqa", path),
}


@pytest.mark.parametrize("content", OTHER)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_file_and_what_it_is(tmp_path, reader, content):
    data, what = OTHER[content]
    path = tmp_path / "the.file"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"the\.file") as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value)
    if content != "latin-1":
        assert what in str(caught.value)


def test_a_byte_that_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(OTHER["latin-1"][0])
    with pytest.raises(UserError, match=r"x\.txt: byte 5 is no UTF-8 \(invalid continuation byte\)"):
        read_text(path)


def with_bom(path: Path, text: str) -> Path:
    path.write_bytes(BOM + text.encode())
    return path


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    answers = with_bom(tmp_path / "answers.txt", "yes\n<unk>\n")
    assert AnswerVocabulary.load(answers).answers == ["yes", "<unk>"]
    assert LineFile(with_bom(tmp_path / "corpus.txt", "first\nsecond\n"))[0] == "first"
    assert read_json(with_bom(tmp_path / "x.json", json.dumps({"a": 1}))) == {"a": 1}
    vocabulary = with_bom(tmp_path / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nyes\n")
    assert load_tokenizer(vocabulary).vocab["[PAD]"] == 0
    plain = tmp_path / "plain.txt"
    plain.write_bytes(vocabulary.read_bytes()[3:])
    assert digest(vocabulary)["sha256"] == digest(plain)["sha256"]


def test_a_vocabulary_without_special_tokens_is_named(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab\.txt: vocabulary of 2 tokens without \[PAD\]"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000])
def test_json_that_python_cannot_hold(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json: not valid JSON"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", ["page", "pointer", "gzip"])
def test_what_is_no_checkpoint(tmp_path, content):
    (tmp_path / "x.model").write_bytes(OTHER[content][0])
    with pytest.raises(UserError, match=f"checkpoint .*x.model: {OTHER[content][1]}.*; expected a file of torch.save"):
        load_file(tmp_path / "x.model")
