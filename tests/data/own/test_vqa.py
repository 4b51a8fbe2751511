"""The user's own records become files that VQA trains on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import load_config
from common.regions.json_store import save_regions
from common.regions.open import open_regions
from common.weights.checkpoint import save_file
from data.own.answers import annotators_answers
from data.own.recipe import PRESETS
from data.regions.random_backbone import random_backbone
from tests.data.own.folder import COLORS, NAMES, SHAPES, Own


def records() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, color in zip(NAMES, COLORS, strict=True):
        rows.append({"id": f"colour {name}", "image": name, "question": "what is it?", "answers": {color: 1.0}})
        rows.append({"image": name, "question": "Is it red?", "answers": ["yes" if color == "red" else "no"]})
    return rows


@pytest.fixture
def own(tmp_path) -> Own:
    return Own(tmp_path, "vqa", records())


def test_the_task_reads_what_is_made(own):
    assert own.run("--split", "0.5", "--answers", "4", *SHAPES) == 0
    train, val, test = (own.dataset(split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (4, 4, 4)
    samples = [train[i, 0] for i in range(4)]
    assert samples[0].features.shape == (len(samples[0].boxes), 2048)
    assert all(sample.targets["label"].max() == 1 for sample in samples)
    assert train.vocabulary.answers[0] == "<unk>"
    assert not {q.image_id for q in train.questions} & {q.image_id for q in val.questions}


def test_images_of_one_name_keep_their_boxes(own):
    """ "2.jpg" is not the second image; json: has one entry for it, and none for the images with the name "x"."""
    boxes = {"2": [[1, 2, 3, 4]], "my photo": [[5, 6, 7, 8]]}
    (own.root / "boxes.json").write_text(json.dumps(boxes))
    rows = [row | {"boxes": [[10, 10, 20, 20]]} if "x." in row["image"] else row for row in records()]
    own.write(rows)
    assert own.run("--boxes", f"json:{own.root}/boxes.json") == 0
    store = open_regions(own.out / "regions")
    found = [store.regions(name).boxes.tolist() for name in ("1", "2", "3", "4")]
    assert found == [[[10, 10, 20, 20]], [[10, 10, 20, 20]], [[5, 6, 7, 8]], [[1, 2, 3, 4]]]


def test_one_name_for_two_images_in_a_source_is_refused(own, capsys):
    (own.root / "boxes.json").write_text(json.dumps({"x": [[1, 2, 3, 4]]}))
    assert own.run("--boxes", f"json:{own.root}/boxes.json") == 2
    error = capsys.readouterr().err
    assert "line 3" in error and "'x'" in error and not own.out.exists()


def test_all_problems_are_in_one_report(own, capsys):
    (own.root / "photos/bad.png").write_bytes(b"no image")
    rows = records()
    rows[0]["id"] = rows[2]["id"]
    rows[1]["colour"] = 1
    rows[3]["answers"] = []
    rows[4]["image"] = "none.png"
    rows[5]["image"] = "bad.png"
    rows[6]["boxes"] = [[0, 0, 900, 10]]
    rows[7]["question"] = ""
    own.write(rows)
    with open(own.root / "train.jsonl", "a") as file:
        file.write("{\n[]\n")
    assert own.run() == 2
    error = capsys.readouterr().err
    assert [number for number in range(1, 11) if f"line {number}:" not in error] == [1]
    assert "is that of" in error and "'colour'" in error and "none.png" in error and not own.out.exists()


def test_answers_are_those_of_the_answer_list(own):
    """The answer list has no punctuation, so the answers of the records have none either."""
    rows = [row | {"answers": "T-Shirt"} for row in records()]
    own.write(rows)
    assert own.run() == 0
    assert (own.out / "vqa/answers_vqa.txt").read_text() == "<unk>\nt shirt\n"
    assert own.dataset("train")[0, 0].targets["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("red", {"red": 10}),
        (["red", "red", "dark red"], {"red": 7, "dark red": 3}),
        (["red"] * 6 + ["blue"] * 6, {"red": 6, "blue": 6}),
        ({"red": 0.6, "blue": 0.3}, {"red": 2, "blue": 1, "": 7}),
        ({"red": 1, "blue": 1.0, "green": 1}, {"red": 4, "blue": 4, "green": 4}),
    ],
)
def test_annotators(given, counts):
    answers = annotators_answers(given, str.strip)
    assert {answer: answers.count(answer) for answer in answers} == counts


@pytest.mark.parametrize("given", [[], {}, 3, {"red": 2}, {"red": 0.0}, {"red": True}, [" "], ["red", 1]])
def test_answers_that_cannot_be_used(given):
    with pytest.raises(ValueError):
        annotators_answers(given, str.strip)


def test_csv(own):
    lines = ["image,text,label", *(f"{name},what is it?,{color}" for name, color in zip(NAMES, COLORS, strict=True))]
    (own.root / "train.csv").write_text("\n".join(lines) + "\n")
    assert own.run(records="train.csv") == 0
    assert (len(own.dataset("train")), len(own.dataset("val"))) == (3, 1)


def test_ids_lead_back_to_the_records(own):
    assert own.run("--val", str(own.write([{"id": 5, **records()[1]}], "val.jsonl"))) == 0
    lines = [json.loads(line) for line in (own.out / "ids.jsonl").read_text().splitlines()]
    assert lines[-1]["question_id"] == own.dataset("val").questions[0].question_id and lines[-1]["id"] == 5
    assert (lines[2]["id"], lines[2]["line"], lines[2]["image"]) == ("colour b/x.jpg", 3, "b/x.jpg")


def test_notes_on_what_comes_twice(own, capsys):
    (own.root / "photos/copy.png").write_bytes((own.root / "photos/a/x.png").read_bytes())
    own.write([*records(), {**records()[1]}, {"image": "copy.png", "question": "is it red?", "answers": "yes"}])
    assert own.run() == 0
    output = capsys.readouterr().out
    assert "line 9 has the text of" in output and "equal images:" in output and "copy.png" in output


def test_test_records_need_no_answers(own, capsys):
    rows = [{key: row[key] for key in ("image", "question")} for row in records()]
    assert own.run("--test", str(own.write(rows, "test.jsonl"))) == 0
    assert len(own.dataset("test")) == len(rows)
    assert "4 images of training are also in test" in capsys.readouterr().out


def test_a_folder_that_was_not_made_here_is_kept(own, capsys):
    own.out.mkdir()
    (own.out / "mine.txt").write_text("mine")
    assert own.run("--overwrite") == 2
    assert "was not made here" in capsys.readouterr().err and (own.out / "mine.txt").read_text() == "mine"


def test_a_data_set_is_replaced_on_demand_only(own, capsys):
    assert own.run() == 0
    own.write(records()[:4])
    assert own.run() == 2
    assert "--overwrite" in capsys.readouterr().err and len((own.out / "ids.jsonl").read_text().splitlines()) == 8
    assert own.run("--overwrite") == 0 and len((own.out / "ids.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("options", [[], SHAPES, ["--cnn", "weights/resnet-0000.model"]], ids=" ".join)
def test_yaml(own, preset, options):
    assert own.run("--preset", preset, *options) == 0
    cfg = load_config("vqa", own.out / "vqa.yaml")
    assert cfg.NETWORK.VLBERT.hidden_size == PRESETS[preset].hidden
    assert (options == SHAPES) == cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED
    assert cfg.NETWORK.VLBERT.vocab_size == len((own.out / "bert/vocab.txt").read_text().splitlines())


def test_sizes_are_those_of_the_language_weights(own):
    folder = own.root / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 48}
    (folder / "config.json").write_text(json.dumps(sizes))
    assert own.run("--language", str(folder)) == 0
    network = yaml.safe_load((own.out / "vqa.yaml").read_text())["NETWORK"]
    assert {key: network["VLBERT"][key] for key in sizes} == sizes
    assert (network["BERT_MODEL_NAME"], network["VLBERT"]["vocab_size"]) == (str(folder), 6)
    assert not (own.out / "bert").exists()


def test_a_coco_file_finds_images_by_the_end_of_their_paths(own):
    """Two images with one file name keep their own boxes."""
    (own.root / "photos/b/x.jpg").rename(own.root / "photos/b/x.png")
    own.write([{"image": f"{folder}/x.png", "question": "where?", "answers": "here"} for folder in "ab"])
    images = [{"id": i, "file_name": f"{folder}/x.png", "width": 80 + i, "height": 60} for i, folder in enumerate("ab")]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, i, 9, 9], "iscrowd": 0} for i in range(2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (own.root / "coco.json").write_text(json.dumps(content))
    assert own.run("--boxes", f"coco:{own.root}/coco.json") == 0
    store = open_regions(own.out / "regions")
    assert [store.regions(name).boxes[0, 0].item() for name in ("1", "2")] == [0, 1]


def test_boxes_of_records_need_features_where_others_have_them(own, capsys):
    """A store has features for three images; the boxes in the records of the fourth have none."""
    assert own.run(*SHAPES) == 0
    own.out.rename(own.root / "first")
    store = open_regions(own.root / "first/regions")
    for number, name in enumerate(NAMES, start=1):
        save_regions(own.root / "store", Path(name).stem, store.regions(str(number)))
    own.write([*records()[2:], {"image": "a/x.png", "boxes": [[1, 1, 9, 9]], "question": "where?", "answers": "here"}])
    assert own.run("--boxes", f"regions:{own.root}/store") == 2
    error = capsys.readouterr().err
    assert "--encoder" in error and "line 7" in error and not own.out.exists()


def test_an_encoder_of_trained_weights_decides_the_resnet(own):
    """The features of new images must be computed as those of training were."""
    backbone = own.root / "random-resnet101-0000.model"
    save_file(backbone, random_backbone(101, [own.root / "photos" / name for name in NAMES]))
    assert own.run("--encoder", f"resnet:{backbone}", "--boxes", "grid:1x2") == 0
    cfg = load_config("vqa", own.out / "vqa.yaml")
    network = cfg.NETWORK
    assert (network.IMAGE_NUM_LAYERS, network.IMAGE_C5_DILATED, network.IMAGE_STRIDE_IN_1x1) == (101, True, True)
    assert ((600, 1000), f"resnet:{backbone}") == (cfg.SCALES, network.REGION_ENCODER)
