"""A tiny world: its files are in the real formats, its answers follow from its scenes, its words tell little."""

import base64
import hashlib
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from data.scenes.description import (
    COLORS,
    SHAPES,
    SIZES,
    generate_scene,
    overlap,
    render,
)
from data.scenes.generate import (
    FOLDERS,
    World,
    main,
    make_questions,
    make_scene,
    make_scenes,
    vocabulary,
    write_world,
)
from data.scenes.questions import ANSWERS
from data.scenes.regions import region_boxes, region_features

TINY = World(seed=3, train=6, val=3, test=2)
MANY = World(seed=11, train=1500, val=200)  # described and asked about, never drawn
REGIONS = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "world"
    write_world(out, TINY)
    return out


@pytest.fixture(scope="module")
def asked() -> dict[str, list]:
    """Pairs of scene and question of a world of full size, by split."""
    splits = ("train", "val")
    return {name: [(s, q) for s in make_scenes(MANY, name) for q in make_questions(MANY, s)] for name in splits}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decode(text: str, columns: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, columns)


# The world as a folder


def test_same_parameters_give_the_same_bytes(world, tmp_path):
    write_world(tmp_path / "again", TINY)
    assert digests(tmp_path / "again") == digests(world)


# Of TINY, before any rename. Trained demos know these words; the JPEG files depend on the version of Pillow.
TEXT_DIGESTS = {
    "bert/vocab.txt": "dfdc9f863ba630c9",
    "captions/train_frcnn.json": "e7671445e6c9a312",
    "corpus/train.txt": "554a3bb4bc94b306",
    "vqa/v2_OpenEnded_mscoco_train2014_questions.json": "2fb35909cf457c9a",
    "vcr/train.jsonl": "06c7d9fc850d87ad",
    "refcoco+/refs(unc).json": "e1267ec35191acf2",
}


def test_the_text_of_a_world_never_changes(world):
    found = digests(world)
    assert {name: found[name][:16] for name in TEXT_DIGESTS} == TEXT_DIGESTS


def test_another_seed_gives_another_world(world, tmp_path):
    write_world(tmp_path / "other", World(seed=4, train=6, val=3, test=2))
    ours, other = digests(world), digests(tmp_path / "other")
    assert ours.keys() == other.keys()
    same = {name for name in ours if ours[name] == other[name] and ".packed/" not in name}
    assert same == {"bert/vocab.txt", "vqa/answers_vqa.txt"}


def test_a_split_does_not_depend_on_the_size_of_another():
    longer = World(seed=3, train=40, val=3, test=2)
    assert make_scenes(longer, "val") == make_scenes(TINY, "val")
    assert make_scenes(longer, "train")[:6] == make_scenes(TINY, "train")


def test_the_same_world_is_left_alone_unless_forced(tmp_path):
    small = World(train=1, val=1, test=0)
    assert write_world(tmp_path, small) is not None
    before = digests(tmp_path)
    (tmp_path / "vqa/answers_vqa.txt").write_text("edited")
    assert write_world(tmp_path, small) is None
    assert (tmp_path / "vqa/answers_vqa.txt").read_text() == "edited"
    write_world(tmp_path, small, force=True)
    assert digests(tmp_path) == before


def test_a_world_with_other_parameters_needs_force(tmp_path):
    write_world(tmp_path, World(train=2, val=1, test=0))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        write_world(tmp_path, World(train=1, val=1, test=0))
    write_world(tmp_path, World(train=1, val=1, test=0), force=True)
    assert len(list((tmp_path / "train2014").glob("*.jpg"))) == 1
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_world_of_an_older_format_needs_force(tmp_path):
    """Its marker has no format; the parameters are the same, the files are not."""
    small = World(train=1, val=1, test=0)
    write_world(tmp_path, small)
    marker = tmp_path / "world.json"
    record = json.loads(marker.read_text())
    del record["format"]
    marker.write_text(json.dumps(record))
    with pytest.raises(FileExistsError, match="python -m data.scenes --out .* --force"):
        write_world(tmp_path, small)
    assert write_world(tmp_path, small, force=True) is not None


def test_an_unfinished_world_is_written_again(tmp_path):
    small = World(train=1, val=1, test=0)
    write_world(tmp_path, small)
    before = digests(tmp_path)
    marker = tmp_path / "world.json"
    marker.write_text(marker.read_text().replace("true", "false"))
    assert write_world(tmp_path, small) is not None
    assert digests(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_foreign_folder_is_never_touched(tmp_path, force):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "train2014/photo.jpg").write_text("precious")
    with pytest.raises(FileExistsError, match="has no world.json"):
        write_world(tmp_path, TINY, force=force)
    assert (tmp_path / "train2014/photo.jpg").read_text() == "precious"


def test_a_negative_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train=-1"):
        write_world(tmp_path / "world", World(train=-1))
    assert not (tmp_path / "world").exists()


def test_command_line(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "w"), "--train", "2", "--val", "1", "--test", "0"]
    main(arguments)
    assert re.search(r"train +2 images .* \d+ questions", capsys.readouterr().out)
    main(arguments)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--seed", "1"])
    assert stopped.value.code == 2
    assert {path.name for path in (tmp_path / "w").iterdir()} == {*FOLDERS, "world.json"}


# The files


@pytest.mark.parametrize(("split", "name"), [("train2014", "train"), ("val2014", "val")])
def test_coco_instances(world, split, name):
    coco = COCO(str(world / f"annotations/instances_{split}.json"))
    scenes = make_scenes(TINY, name)
    assert sorted(coco.imgs) == [scene.image_id for scene in scenes]
    for scene in scenes:
        info = coco.imgs[scene.image_id]
        with Image.open(world / split / info["file_name"]) as image:
            assert image.size == (info["width"], info["height"]) == (scene.width, scene.height)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=scene.image_id))
        names = [coco.loadCats(annotation["category_id"])[0]["name"] for annotation in annotations]
        assert names == [thing.shape for thing in scene.things]
        for annotation, thing in zip(annotations, scene.things, strict=True):
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width, y + height) == pytest.approx(thing.box)
            assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.15)


def test_test_split_has_no_truth(world):
    record = json.loads((world / "annotations/image_info_test2015.json").read_text())
    assert len(record["images"]) == 2
    assert "annotations" not in record
    assert (world / "vqa/v2_OpenEnded_mscoco_test2015_questions.json").is_file()
    assert not (world / "vqa/v2_mscoco_test2015_annotations.json").exists()
    assert len(list((world / "vgbua_res101_precomputed/test2015_resnet101_faster_rcnn_genome").iterdir())) == 2


@pytest.mark.parametrize(("split", "name"), [("train2014", "train"), ("val2014", "val")])
def test_questions_and_annotations_are_in_step(world, split, name):
    questions = json.loads((world / f"vqa/v2_OpenEnded_mscoco_{split}_questions.json").read_text())["questions"]
    annotations = json.loads((world / f"vqa/v2_mscoco_{split}_annotations.json").read_text())["annotations"]
    answers = (world / "vqa/answers_vqa.txt").read_text().split("\n")[:-1]
    assert answers[0] == "<unk>"
    assert len(set(answers)) == len(answers)
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in annotations]
    assert len({q["question_id"] for q in questions}) == len(questions)
    expected = [(s.image_id, q) for s in make_scenes(TINY, name) for q in make_questions(TINY, s)]
    for (image_id, truth), question, annotation in zip(expected, questions, annotations, strict=True):
        assert (question["image_id"], question["question"]) == (image_id, truth.text)
        assert annotation["image_id"] == image_id
        assert annotation["question_type"] == truth.kind
        assert annotation["answer_type"] in ("yes/no", "number", "other")
        assert annotation["multiple_choice_answer"] == truth.answer
        assert truth.answer in answers
        assert [a["answer"] for a in annotation["answers"]] == [truth.answer] * 10
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))


def test_region_files(world):
    for scene in make_scenes(TINY, "train"):
        record = json.loads((world / REGIONS / f"{scene.image_id}.json").read_text())
        boxes, features = decode(record["boxes"], 4), decode(record["features"], 2048)
        assert len(boxes) == len(features) == record["num_boxes"] >= len(scene.things)
        assert decode(record["image_box_feature"], 2048).shape == (1, 2048)
        assert (record["image_w"], record["image_h"]) == (scene.width, scene.height)
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (scene.width - 1, scene.height - 1)).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 10).all()
        for thing in scene.things:  # every thing has its box, at most two pixels off
            assert np.abs(boxes - np.array(thing.box, np.float32)).max(axis=1).min() <= 2
        assert features.min() >= 0
        assert 0.3 < features.std() < 3


def test_features_see_pixels_only():
    scene = make_scene(TINY, 1)
    image, boxes = render(scene), np.array([scene.things[0].box], np.float32)
    features = region_features(image, boxes)
    assert np.array_equal(features, region_features(image.copy(), np.concatenate([boxes, boxes]))[:1])
    image.paste((0, 0, 0), tuple(int(x) for x in scene.things[0].box))
    assert not np.array_equal(features, region_features(image, boxes))


def test_region_order_is_not_the_order_of_the_scene():
    firsts = set()
    for seed in range(12):
        scene = make_scene(TINY, 1)
        boxes = region_boxes(scene, Random(seed))
        firsts.add(int(np.abs(boxes - np.array(scene.things[0].box, np.float32)).sum(axis=1).argmin()))
    assert len(firsts) > 1


def test_vocabulary(asked):
    lines = vocabulary()
    assert len(lines) < 400
    assert len(set(lines)) == len(lines)
    assert lines[0] == "[PAD]"
    assert lines[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word for _, question in asked["train"] for word in re.findall(r"\w+|\?", question.text.lower())}
    assert words | {word for answer in ANSWERS for word in answer.split()} <= set(lines)


# The scenes


def test_scenes_are_valid_and_varied():
    scenes = make_scenes(MANY, "val")
    assert {len(scene.things) for scene in scenes} == {2, 3, 4, 5}
    assert {scene.width > scene.height for scene in scenes} == {True, False}
    for scene in scenes:
        for i, thing in enumerate(scene.things):
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 < scene.width
            assert 0 <= y1 < y2 < scene.height
            xs, ys = zip(*thing.polygon, strict=True)
            assert thing.box == (min(xs), min(ys), max(xs), max(ys))
            assert not any(overlap(thing.box, other.box) for other in scene.things[:i])
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.color for thing in things} == set(COLORS)
    assert {thing.size for thing in things} == set(SIZES)


def test_image_shows_each_thing_in_its_colour():
    for seed in range(5):
        scene = generate_scene(Random(seed), seed)
        pixels = np.asarray(render(scene), float)
        assert pixels.shape == (scene.height, scene.width, 3)
        assert np.abs(pixels[0, 0] - scene.background).max() < 20
        for thing in scene.things:
            x, y = (round(value) for value in thing.center)
            nearest = min(COLORS, key=lambda name: np.abs(pixels[y, x] - COLORS[name]).sum())  # noqa: B023
            assert nearest == thing.color


# The questions, answered again from their words by code that shares nothing with the generator


def parse(words: str) -> dict[str, str]:
    """ "red stars" -> its attributes; "things" has none."""
    found = {}
    for word in words.split():
        if word in COLORS:
            found["color"] = word
        elif not word.startswith("thing"):
            found["shape"] = next(shape for shape in SHAPES if word in (shape, shape + "s"))
    return found


def matching(scene, words: str) -> list:
    return [t for t in scene.things if all(getattr(t, name) == value for name, value in parse(words).items())]


def only(things: list):
    (thing,) = things
    return thing


def side_of_the_middle(scene, thing, question: str) -> str:
    x, y = thing.center
    if question == "left or right":
        return "left" if x < scene.width / 2 else "right"
    return "above" if y < scene.height / 2 else "below"


def third_of_the_image(scene, thing) -> str:
    x, y = thing.center[0] / scene.width, thing.center[1] / scene.height
    row = "top" if y < 1 / 3 else "bottom" if y >= 2 / 3 else "middle"
    return f"{row} {'left' if x < 1 / 3 else 'right' if x >= 2 / 3 else 'center'}"


def answer_again(scene, text: str) -> str:
    if m := re.fullmatch(r"What (color|shape) is the (.+)\?", text):
        return getattr(only(matching(scene, m[2])), m[1])
    if m := re.fullmatch(r"How many (.+) are there\?", text):
        return str(len(matching(scene, m[1])))
    if m := re.fullmatch(r"Is there (?:a|an) (.+)\?", text):
        return "yes" if matching(scene, m[1]) else "no"
    if m := re.fullmatch(r"Where is the (.+)\?", text):
        return third_of_the_image(scene, only(matching(scene, m[1])))
    m = re.fullmatch(r"Is the (.+) (left or right|above or below)(?: of)? the middle\?", text)
    return side_of_the_middle(scene, only(matching(scene, m[1])), m[2])


def test_answers_follow_from_the_scene(asked):
    for scene, question in asked["train"] + asked["val"]:
        assert question.answer == answer_again(scene, question.text), (scene.image_id, question)


def test_things_of_a_question_are_those_it_names(asked):
    for scene, question in asked["val"]:
        if question.kind == "how many":
            assert len(question.things) == int(question.answer)
        if question.kind == "what color":
            assert scene.things[only(question.things)].color == question.answer


def test_about_eight_different_questions_of_every_kind(asked):
    kinds = {"what color", "what shape", "how many", "is there", "left or right", "above or below", "where"}
    assert {question.kind for _, question in asked["train"]} == kinds
    assert 7 < len(asked["train"]) / MANY.train < 10
    assert len({(scene.image_id, question.text) for scene, question in asked["train"]}) == len(asked["train"])


# What can be said without looking


def table(asked, key) -> dict[str, Counter]:
    counts = defaultdict(Counter)
    for _, question in asked:
        counts[key(question)][question.answer] += 1
    return counts


def test_two_way_answers_are_balanced(asked):
    for kind in ("is there", "left or right", "above or below"):
        counts = Counter(q.answer for _, q in asked["train"] if q.kind == kind)
        assert len(counts) == 2
        assert max(counts.values()) / counts.total() < 0.6, (kind, counts)


def test_no_validation_image_is_a_training_image():
    """Scenes are told apart by what they hold, not by their ids."""
    train = {(s.width, s.height, s.things) for s in make_scenes(MANY, "train")}
    assert not train & {(s.width, s.height, s.things) for s in make_scenes(MANY, "val")}


def test_no_answer_dominates(asked):
    counts = table(asked["train"], lambda q: "all")["all"]
    assert max(counts.values()) / counts.total() < 0.3
    for kind, answers in table(asked["train"], lambda q: q.kind).items():
        assert max(answers.values()) / answers.total() < 0.6, kind


def test_blind_guessing_stays_low(asked):
    """The best answer by question text: on its own training set, where rare texts flatter it, and on new images."""
    by_text, by_kind = table(asked["train"], lambda q: q.text), table(asked["train"], lambda q: q.kind)
    ceiling = sum(max(counts.values()) for counts in by_text.values()) / len(asked["train"])
    assert ceiling < 0.6
    guesses = [(by_text.get(q.text) or by_kind[q.kind]).most_common(1)[0][0] == q.answer for _, q in asked["val"]]
    assert sum(guesses) / len(guesses) < 0.4
