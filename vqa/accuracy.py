"""The official VQA v2 accuracy (visualqa.org/evaluation), for scoring a result file against annotations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from common.errors import DataError
from vqa.answers import remove_punctuation

NUMBER_WORDS = {
    word: str(digit)
    for digit, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
ARTICLES = {"a", "an", "the"}
# The official table, its oddity (somebody'd) included; entries with capitals would never match a lower-cased word.
_CONTRACTIONS = """
aint:ain't arent:aren't cant:can't couldve:could've couldnt:couldn't couldn'tve:couldn't've couldnt've:couldn't've
didnt:didn't doesnt:doesn't dont:don't hadnt:hadn't hadnt've:hadn't've hadn'tve:hadn't've hasnt:hasn't
havent:haven't hed:he'd hed've:he'd've he'dve:he'd've hes:he's howd:how'd howll:how'll hows:how's isnt:isn't
itd:it'd itd've:it'd've it'dve:it'd've itll:it'll maam:ma'am mightnt:mightn't mightnt've:mightn't've
mightn'tve:mightn't've mightve:might've mustnt:mustn't mustve:must've neednt:needn't notve:not've oclock:o'clock
oughtnt:oughtn't ow's'at:'ow's'at 'ows'at:'ow's'at 'ow'sat:'ow's'at shant:shan't shed've:she'd've she'dve:she'd've
shouldve:should've shouldnt:shouldn't shouldnt've:shouldn't've shouldn'tve:shouldn't've somebody'd:somebodyd
somebodyd've:somebody'd've somebody'dve:somebody'd've somebodyll:somebody'll somebodys:somebody's someoned:someone'd
someoned've:someone'd've someone'dve:someone'd've someonell:someone'll someones:someone's somethingd:something'd
somethingd've:something'd've something'dve:something'd've somethingll:something'll thats:that's thered:there'd
thered've:there'd've there'dve:there'd've therere:there're theres:there's theyd:they'd theyd've:they'd've
they'dve:they'd've theyll:they'll theyre:they're theyve:they've twas:'twas wasnt:wasn't wed've:we'd've
we'dve:we'd've weve:we've werent:weren't whatll:what'll whatre:what're whats:what's whatve:what've whens:when's
whered:where'd wheres:where's whereve:where've whod:who'd whod've:who'd've who'dve:who'd've wholl:who'll whos:who's
whove:who've whyll:why'll whyre:why're whys:why's wont:won't wouldve:would've wouldnt:wouldn't
wouldnt've:wouldn't've wouldn'tve:wouldn't've yall:y'all yall'll:y'all'll y'allll:y'all'll yall'd've:y'all'd've
y'alld've:y'all'd've y'all'dve:y'all'd've youd:you'd youd've:you'd've you'dve:you'd've youll:you'll youre:you're
youve:you've
"""
CONTRACTIONS = dict(pair.split(":") for pair in _CONTRACTIONS.split())


def normalise_answer(text: str) -> str:
    """Punctuation, case, number words, articles and contractions, as the official evaluation treats them."""
    words = (NUMBER_WORDS.get(word, word) for word in remove_punctuation(text).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the subsets that leave one annotator out of min(1, annotators who said `prediction` / 3), in [0, 1].

    Both sides are normalised, unless all annotators said the same.
    """
    if not answers:
        raise ValueError("a question needs at least one ground-truth answer")
    answers = [_clean(answer) for answer in answers]
    prediction = _clean(prediction)
    if len(set(answers)) > 1:
        answers = [normalise_answer(answer) for answer in answers]
        prediction = normalise_answer(prediction)
    matches = [answer == prediction for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / len(matches)


def evaluate_answers(
    predictions: Mapping[int, str] | Iterable[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Accuracies of a whole split.

    predictions: {question id: answer}, or the records {question_id, answer} of a result file.
    annotations: the list `annotations` of the official file.
    Returns {"overall": s, "answer_type": {type: s}, "question_type": {type: s}}, where s is
        {"accuracy": percent, "count": number of questions}.
    Raises DataError when a question is missing, unknown or there twice.
    """
    if not isinstance(predictions, Mapping):
        predictions = _by_id(predictions, "the predictions", "answer")
    truth = _by_id(annotations, "the annotations")
    _reject("without a prediction", truth.keys() - predictions.keys())
    _reject("predicted, but not annotated", predictions.keys() - truth.keys())

    overall: list[float] = []
    by_answer: dict[str, list[float]] = defaultdict(list)
    by_question: dict[str, list[float]] = defaultdict(list)
    for question_id, annotation in truth.items():
        accuracy = vqa_accuracy(predictions[question_id], [answer["answer"] for answer in annotation["answers"]])
        overall.append(accuracy)
        by_answer[annotation["answer_type"]].append(accuracy)
        by_question[annotation["question_type"]].append(accuracy)
    return {
        "overall": _summary(overall),
        "answer_type": {name: _summary(values) for name, values in sorted(by_answer.items())},
        "question_type": {name: _summary(values) for name, values in sorted(by_question.items())},
    }


def _clean(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _by_id(records: Iterable[Mapping[str, Any]], what: str, field: str | None = None) -> dict[int, Any]:
    """question_id -> record, or its `field`."""
    records = list(records)
    counts = Counter(record["question_id"] for record in records)
    _reject(f"more than once in {what}", {question_id for question_id, count in counts.items() if count > 1})
    return {record["question_id"]: record if field is None else record[field] for record in records}


def _reject(problem: str, question_ids: set[int]) -> None:
    if question_ids:
        some = ", ".join(str(question_id) for question_id in sorted(question_ids)[:5])
        raise DataError(f"{len(question_ids)} question ids {problem}: {some}{', ...' if len(question_ids) > 5 else ''}")


def _summary(accuracies: list[float]) -> dict[str, float]:
    count = len(accuracies)
    return {"accuracy": 100 * sum(accuracies) / count if count else float("nan"), "count": count}
