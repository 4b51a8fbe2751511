"""The demo of a public data set: easy-VQA as a user's own data, from records to the accuracy on its test split.

python scripts/demo_easy_vqa.py       from the repository root, some minutes on a CPU

The data set is in the package easy-vqa, which `make demo-easy-vqa` installs. The script writes the questions of
the package as records, and makes the steps of docs/own_dataset.md. It prints each step as the command that a user would
type.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.train.run import run_test
from data.own.__main__ import main as make_dataset
from scripts.demos import shared as demo
from scripts.demos.questions import (
    Answers,
    Questions,
    compare,
    draw_answers,
    print_comparison,
)

DATA, FAST_OUT = Path("data/easy-vqa"), Path("output/easy-vqa-fast")
FINDER = "module:data.scenes.regions"  # finds flat shapes on a plain background, which the images are
KEYS = {"DEVICE": "cpu"}  # all other values are those that data.own wrote
FAST_IMAGES = {"train": 12, "test": 6}
ANNOTATORS = 10  # the accuracy of VQA v2 compares annotators with each other; here all say the same

Record = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    parser = demo.make_parser(__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder of the data set, made if missing (default: {DATA})")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    demo.check_files(parser, [Path("vqa/train_end2end.py")])
    package = find_package(parser)
    data = args.data or (FAST_OUT / "data" if args.fast else DATA)
    records = {part: read_records(package, part, FAST_IMAGES[part] if args.fast else None) for part in FAST_IMAGES}
    numbers = make_data(parser, package, data, records)
    seconds = {"data set": time.perf_counter() - start}

    keys = KEYS | demo.run_keys(args, FAST_OUT)
    net = demo.read_net("vqa", data / "vqa.yaml", keys)
    typed = ["--cfg", str(net.path), "--set", *(f"{key}={value}" for key, value in keys.items())]
    show(["python", "vqa/train_end2end.py", *typed])
    loaded = demo.train(net)
    seconds["training"] = time.perf_counter() - start - sum(seconds.values())
    show(["python", "vqa/test.py", *typed])
    result = run_test(net.task, net.cfg, net.path)

    training, questions = (as_questions(records[part], numbers) for part in ("train", "test"))
    answers = read_answers(result.path)
    scores = compare(training, questions, answers)
    sheet = net.folder / "answers.png"
    draw_answers(questions, answers, lambda question: package / "data" / question["image_id"], sheet)
    demo.write_scores(net, scores)

    print_comparison(scores, questions)
    print(f"\nmodel     {loaded.source}\nresults   {result.path}\nimages    {sheet}")
    seconds["answers"] = time.perf_counter() - start - sum(seconds.values())
    print("wall time", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


def find_package(parser: argparse.ArgumentParser) -> Path:
    """Returns the folder of the installed package. Exits with status 2 where there is none."""
    spec = find_spec("easy_vqa")
    if spec is None or not spec.submodule_search_locations:
        parser.exit(2, "error: the package easy-vqa is not installed: pip install --no-deps easy-vqa\n")
    return Path(spec.submodule_search_locations[0])


def read_records(package: Path, part: str, images: int | None) -> list[Record]:
    """Returns the questions of "train" or "test" as records of `data.own`. images: of the first images only."""
    questions = json.loads((package / f"data/{part}/questions.json").read_text(encoding="utf-8"))
    return [
        {"id": f"{part} {number}", "image": f"{part}/images/{image}.png", "question": question, "answers": answer}
        for number, (question, answer, image) in enumerate(questions)
        if images is None or image < images
    ]


def make_data(
    parser: argparse.ArgumentParser, package: Path, data: Path, records: dict[str, list[Record]]
) -> dict[str, int]:
    """Makes the data set if it does not exist. Returns the question_id of each record's id.

    Exits with status 2 where the folder cannot be made, or holds other questions.
    """
    if (data / "ids.jsonl").is_file():
        print(f"data set {data} is there", flush=True)
    else:
        files = {part: data.with_name(f"{data.name}-records") / f"{part}.jsonl" for part in records}
        for part, file in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(record) + "\n" for record in records[part]), encoding="utf-8")
        options = ["vqa", "--input", str(files["train"]), "--test", str(files["test"])]
        options += ["--images", str(package / "data"), "--out", str(data), "--boxes", FINDER, "--encoder", FINDER]
        show(["python", "-m", "data.own", *options])
        if status := make_dataset(options):
            parser.exit(status)
    lines = map(json.loads, (data / "ids.jsonl").read_text(encoding="utf-8").splitlines())
    numbers = {line["id"]: line["question_id"] for line in lines}
    if numbers.keys() != {record["id"] for part in records.values() for record in part}:
        parser.exit(2, f"error: {data} has not the questions of this run: remove it, or take another --data\n")
    return numbers


def as_questions(records: Sequence[Record], numbers: dict[str, int]) -> Questions:
    """Returns records as annotations of VQA v2 with their texts. The image_id is the path of the image."""
    return [
        {
            "question_id": numbers[record["id"]],
            "image_id": record["image"],
            "question": record["question"],
            "question_type": question_type(record["question"]),
            "answer_type": "yes/no" if record["answers"] in ("yes", "no") else "other",
            "multiple_choice_answer": record["answers"],
            "answers": [{"answer": record["answers"]}] * ANNOTATORS,
        }
        for record in records
    ]


def question_type(question: str) -> str:
    """Returns what a question asks for, by its words: a colour, a shape, or whether something is there or not.

    The three ways to ask whether something is there, and their negations, are types of their own.
    """
    words = question.lower().rstrip("? ").split()
    if words[0] == "what":
        return "what color" if "color" in words else "what shape"
    verb = "is there" if words[:2] == ["is", "there"] else "does contain" if words[0] == "does" else "is present"
    return f"{verb}, not" if {"no", "not"} & set(words) else verb


def read_answers(path: Path) -> Answers:
    """Returns the answers of a result file for the VQA server."""
    return {row["question_id"]: row["answer"] for row in json.loads(path.read_text(encoding="utf-8"))}


def show(command: Sequence[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)


if __name__ == "__main__":
    main()
