import pytest

from common.data.text import BertTokenizer
from vcr.text import (
    GENDER_NEUTRAL_NAMES,
    TaggedToken,
    keep_relevant_detections,
    replacement_names,
    tokenize_with_tags,
    truncate_q2a,
    truncate_qa2r,
)

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIALS, "why", "is", "riley", "and", "casey", "pot", "##ted", "##plant", "happy", "?", "t", "-", "shirt"]


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer({word: i for i, word in enumerate(WORDS)})


def tokens(count: int, tag: int = 0) -> list[TaggedToken]:
    return [TaggedToken(i + 1, tag, i) for i in range(count)]


def test_references_become_names_with_the_tag_of_their_box(tokenizer):
    # original 8.4.
    text = ["Why", "is", [2, 0, 3], "happy", "?"]
    got = tokenize_with_tags(text, ["Casey", "chair", "Riley", "pottedplant"], tokenizer, False, 0)
    want = ["why", "is", "riley", "and", "casey", "and", "pot", "##ted", "##plant", "happy", "?"]
    assert [WORDS[token.id] for token in got] == want
    assert [token.tag for token in got] == [0, 0, 3, 0, 1, 0, 4, 4, 4, 0, 0]
    assert [token.align for token in got] == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8]
    # Without the image box every tag is one less.
    without = tokenize_with_tags(text, ["Casey", "chair", "Riley", "pottedplant"], tokenizer, False, -1)
    assert [token.tag for token in without] == [token.tag - 1 for token in got]


def test_basic_align_numbers_the_parts_of_a_word(tokenizer):
    plain, basic = (tokenize_with_tags(["t-shirt", "?"], [], tokenizer, flag, 0) for flag in (False, True))
    assert [t.id for t in plain] == [t.id for t in basic] == [15, 16, 17, 14]
    assert [t.align for t in plain] == [0, 0, 0, 1]
    assert [t.align for t in basic] == [0, 1, 2, 3]


def test_persons_get_names_in_turn():
    assert replacement_names(["person", "chair", "person"]) == ["Casey", "chair", "Riley"]
    assert replacement_names(["person", "person"], start=12) == ["Quinn", "Casey"]
    assert len(GENDER_NEUTRAL_NAMES) == 13


def test_relevant_detections_are_numbered_by_first_mention():
    # original 8.2.
    question, answers = ["is", [2, 0]], [["yes", [2]], ["no", [1]], [[3, 1]]]
    got = keep_relevant_detections(question, answers, None)
    assert got.keep == [2, 0, 1, 3]
    assert got.question == ["is", [0, 1]]
    assert got.answers == [["yes", [0]], ["no", [2]], [[3, 2]]]
    assert got.rationales is None
    assert question == ["is", [2, 0]] and answers[0] == ["yes", [2]]
    assert keep_relevant_detections(question, answers, [[[5]]]).rationales == [[[4]]]


def test_q2a_truncation():
    # original 8.5: limit 9, question 7, answers 4, 5, 3, 7.
    question, answers = tokens(7), [tokens(n) for n in (4, 5, 3, 7)]
    got = truncate_q2a(question, answers, limit=9)
    assert got.question == question[:4] and got.answer is None
    assert [len(answer) for answer in got.choices] == [4, 5, 3, 5]
    assert len(question) == 7 and len(answers[3]) == 7


def test_qa2r_truncation():
    got = truncate_qa2r(tokens(4), tokens(3), [tokens(2), tokens(9)], limit=8)
    # First rationale: 9 tokens, the question loses one. Second: 3 + 3 + 9, rationale and question are cut by turns.
    assert (len(got.question), len(got.answer or []), [len(c) for c in got.choices]) == (1, 3, [2, 4])
    untouched = truncate_qa2r(tokens(4), tokens(3), [tokens(2)])
    assert len(untouched.question) == 4 and len(untouched.choices[0]) == 2
    # The question keeps one token; then the answer is cut.
    short = truncate_qa2r(tokens(1), tokens(6), [tokens(3)], limit=8)
    assert (len(short.question), len(short.answer or [])) == (1, 4)
