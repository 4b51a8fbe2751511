import pytest
import torch

from vqa.answers import AnswerVocabulary, process_punctuation, remove_punctuation, soft_target


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<unk>", "<unk>"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),
        ("a, b", "a b"),
        ("a,b", "a b"),
        ("dr. pepper", "dr pepper"),
        ("10:30", "10:30"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("u.s.a.", "usa"),
        ("left/right", "left right"),
        ("left / right", "left  right"),
        ("a-b -c", "ab c"),
        ("5 - 6", "5  6"),
        ("no-", "no "),
        ("?", " "),
        ("." * 40, "." * 8),
        ("don't know", "don't know"),
        ("(big)", " big "),
    ],
)
def test_process_punctuation(text, expected):
    assert process_punctuation(text) == expected


def test_remove_punctuation_has_no_exception():
    assert remove_punctuation("<unk>") == " unk "


@pytest.fixture
def vocabulary_file(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("<unk>\r\nleft\nright\nt-shirt\nyes\nYES \n\n1,000\n", encoding="utf-8")
    return path


def test_load(vocabulary_file):
    vocabulary = AnswerVocabulary.load(vocabulary_file)
    assert vocabulary.answers == ["<unk>", "left", "right", "t shirt", "yes", "yes", "1000"]
    assert len(vocabulary) == 7
    assert vocabulary[3] == "t shirt"
    assert vocabulary.index("yes") == 4  # the first of two
    assert vocabulary.index("purple") == vocabulary.unk_index == 0


def test_load_as_it_stands(vocabulary_file):
    vocabulary = AnswerVocabulary.load(vocabulary_file, processed=False)
    assert vocabulary.answers[3] == "t-shirt"
    assert vocabulary.answers[6] == "1,000"


def test_without_unknown_raises(tmp_path):
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"answers\.txt.*2 entries.*<unk>"):
        AnswerVocabulary.load(path)


def test_soft_target(vocabulary_file):
    """Answers are looked up as they were given: t-shirt is not the t shirt of the vocabulary."""
    answers = ["left"] * 3 + ["t-shirt"] * 2 + ["t shirt"] + ["yes"] * 4
    target = soft_target(answers, AnswerVocabulary.load(vocabulary_file))
    assert target.dtype == torch.float32
    torch.testing.assert_close(target, torch.tensor([0, 0.9, 0, 0.3, 1.0, 0, 0]))


def test_soft_target_of_any_number_of_answers():
    vocabulary = AnswerVocabulary(["a", "b", "<unk>"])
    # of 2: a once -> (1 * 0 + 1 * 1/3) / 2
    torch.testing.assert_close(soft_target(["a", "c"], vocabulary), torch.tensor([1 / 6, 0, 0]))
    assert soft_target([], vocabulary).tolist() == [0, 0, 0]


def test_soft_target_of_ten():
    vocabulary = AnswerVocabulary(["a", "<unk>"])
    scores = [soft_target(["a"] * n + ["x"] * (10 - n), vocabulary)[0].item() for n in range(6)]
    assert scores == pytest.approx([0, 0.3, 0.6, 0.9, 1.0, 1.0])
