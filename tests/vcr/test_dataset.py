"""What a sample holds, by the examples of original 8.2 to 8.11, and every switch of the data."""

from __future__ import annotations

import json
import random
import shutil
import zlib
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from common.config import load_config
from common.data.collate import collate
from common.errors import ConfigError, DataError, ImageError, RegionError
from common.regions.json_store import JsonRegions, save_regions
from common.regions.packed_store import pack
from tests.tiny import write_settings
from tests.vcr.world import OBJECTS, read_annotations, tiny_vcr, write_annotations
from vcr.annotations import CATEGORY_IDS
from vcr.dataset import VCRDataset, build_dataset
from vcr.sequence import TextSequenceBuilder
from vcr.text import GENDER_NEUTRAL_NAMES, QA2R

PIXELS = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "TRAIN.FLIP_PROB=0"]


@pytest.fixture
def build(world: Path, tmp_path: Path):
    """A dataset of the world (which the test may change) from pixels, with overrides."""

    def make(*overrides: str, split: str = "train", task: str = "Q2A", **arguments: int) -> VCRDataset:
        path = write_settings(tiny_vcr(world, tmp_path / "out", task), tmp_path / "tiny.yaml")
        return build_dataset(load_config("vcr", path, [*PIXELS, *overrides]), split, **arguments)

    return make


def sample(dataset: VCRDataset, index: int = 0, seed: int = 0):
    return dataset.sample(index, random.Random(seed))


def words(dataset: VCRDataset, ids: torch.Tensor) -> list[str]:
    by_id = {i: word for word, i in dataset.sequences.tokenizer.vocab.items()}
    return [by_id[i] for i in ids.tolist()]


def names_in(dataset: VCRDataset, index: int) -> list[str]:
    """Names of the persons of an item in the order of the detections."""
    annotation = dataset.annotations[index]
    return [n for n, o in zip(dataset.detection_names(annotation), annotation.objects, strict=True) if o == "person"]


def change(world: Path, number: int, split: str = "train", **values: object) -> None:
    rows = read_annotations(world / f"{split}.jsonl")
    rows[number] |= values
    write_annotations(world / f"{split}.jsonl", rows)


class TestText:
    """The example of original 8.4 as question and answers of an image with two persons, a chair and a plant."""

    TAGS = [0, 0, 3, 0, 1, 0, 4, 4, 4, 0, 0]

    @pytest.fixture
    def example(self, world):
        objects = ["person", "chair", "person", "pottedplant"]
        metadata = json.loads((world / "vcr1images/movie_even/even@0.json").read_text())
        (world / "vcr1images/x.json").write_text(json.dumps(metadata))
        change(
            world,
            2,
            annot_id="x",
            objects=objects,
            metadata_fn="x.json",
            question=["Why", "is", [2, 0, 3], "happy", "?"],
            answer_choices=[["because", [1]], ["they"], [[0], "and", "they"], ["near", [3], "."]],
        )
        return 2

    def tokens(self, dataset: VCRDataset) -> tuple[str, str]:
        first = zlib.crc32(b"x") % 13
        return tuple(GENDER_NEUTRAL_NAMES[(first + i) % 13].lower() for i in (0, 1))

    def test_the_default_layout(self, build, example):
        dataset = build()
        got = sample(dataset, example)
        one, two = self.tokens(dataset)
        query = ["why", "is", two, "and", one, "and", "pot", "##ted", "##plant", "happy", "?"]
        assert words(dataset, got.text_ids[0]) == ["[CLS]", *query, "[SEP]", "because", "chair", "[SEP]"]
        assert got.text_tags[0].tolist() == [0, *self.TAGS, 0, 0, 2, 0]
        assert got.segment_ids[0].tolist() == [0] * 13 + [1] * 3
        assert words(dataset, got.text_ids[3])[13:] == ["near", "pot", "##ted", "##plant", ".", "[SEP]"]
        assert [len(t) for t in got.text_ids] == [len(t) for t in got.text_tags] == [16, 15, 17, 19]
        assert got.targets["label"].shape == () and got.targets["label"].dtype == torch.int64

    def test_the_answer_first(self, build, example):
        dataset = build("NETWORK.ANSWER_FIRST=true")
        got = sample(dataset, example)
        assert words(dataset, got.text_ids[0])[:5] == ["[CLS]", "because", "chair", "[SEP]", "why"]
        assert got.segment_ids[0].tolist() == [0] * 4 + [1] * 12
        assert got.text_tags[0].tolist() == [0, 0, 2, 0, *self.TAGS, 0]

    def test_one_sentence(self, build, example):
        dataset = build("NETWORK.QA_ONE_SENT=true")
        got = sample(dataset, example)
        assert words(dataset, got.text_ids[0])[10:] == ["happy", "?", "because", "chair", "[SEP]"]
        assert got.segment_ids[0].tolist() == [0] * 15
        assert got.text_tags[0].tolist() == [0, *self.TAGS, 0, 2, 0]

    def test_both_layouts_at_once(self, build):
        """Original 8.9."""
        with pytest.raises(ConfigError, match="ANSWER_FIRST and NETWORK.QA_ONE_SENT: expected one of them at most"):
            build("NETWORK.QA_ONE_SENT=true", "NETWORK.ANSWER_FIRST=true")

    def test_without_the_image_box_words_are_tied_to_the_first_detection(self, build, example):
        got = sample(build("DATASET.ADD_IMAGE_AS_A_BOX=false"), example)
        assert got.text_tags[0].tolist() == [0, *(max(t - 1, 0) for t in self.TAGS), 0, 0, 1, 0]
        assert len(got.boxes) == 4

    def test_alignment_of_basic_tokens(self, build, example, world):
        """The text is the same; only the numbers of words differ, which the model does not use."""
        change(world, example, question=["they,are", [0]])
        plain, basic = (build(f"DATASET.BASIC_ALIGN={flag}") for flag in ("false", "true"))
        assert torch.equal(sample(plain, example).text_ids[0], sample(basic, example).text_ids[0])
        question = [
            d.sequences.queries(d.annotations[example], ["a", "b", "c", "d"])[0].question for d in (plain, basic)
        ]
        assert [[t.align for t in q] for q in question] == [[0, 0, 0, 1], [0, 1, 2, 3]]

    def test_a_text_without_word_pieces(self, build, example, world):
        """Original 8.4: an empty token is fine, an empty text is not."""
        answers = [["they", " "], ["\u200b", " "], ["and"], ["are"]]
        change(world, example, answer_choices=answers)
        with pytest.raises(DataError, match=r"train\.jsonl, line 3: answer_choices\[1\] has no word piece"):
            sample(build(), example)
        change(world, example, answer_choices=[["they", " "], *answers[2:], ["near"]])
        dataset = build()
        assert words(dataset, sample(dataset, example).text_ids[0])[-2:] == ["they", "[SEP]"]

    def test_a_written_out_pad_is_left_out(self, build, example, world):
        change(world, example, question=["why", "[PAD]", "?"])
        dataset = build()
        assert words(dataset, sample(dataset, example).text_ids[1]) == ["[CLS]", "why", "?", "[SEP]", "they", "[SEP]"]


class TestTruncation:
    def test_a_shorter_limit_cuts_as_the_examples_say(self, build, world):
        """Original 8.5: limit 9, question of 7, answers of 4, 5, 3, 7."""
        change(world, 0, question=["why"] * 7, answer_choices=[["and"] * n for n in (4, 5, 3, 7)])
        got = sample(build(seq_len=9))
        assert [len(row) for row in got.text_ids] == [4 + n + 3 for n in (4, 5, 3, 5)]

    def test_rationales_are_cut_in_training_and_not_in_test(self, build, world):
        """Original 8.5."""
        long = [["and"] * 60] * 4
        change(world, 0, rationale_choices=long, answer_choices=[["they"] * 5] * 4, question=["why"] * 5)
        train = sample(build(task=QA2R))
        assert [len(row) for row in train.text_ids] == [64 + 3] * 4
        change(world, 0, split="test", rationale_choices=long, answer_choices=[["they"] * 5] * 4, question=["why"] * 5)
        test = sample(build(task=QA2R, split="test"))
        assert [len(row) for row in test.text_ids] == [5 + 5 + 60 + 3] * 16

    def test_a_row_longer_than_the_position_table(self, build, world):
        """Positions of regions and of the end come after the text."""
        change(world, 0, split="test", rationale_choices=[["and"] * 20] * 4)
        longest = len(sample(build(task=QA2R, split="test")).text_ids[0])
        room = f"NETWORK.VLBERT.max_position_embeddings={longest + 3}"
        sample(build(room, task=QA2R, split="test"))
        small = f"NETWORK.VLBERT.max_position_embeddings={longest}"
        with pytest.raises(DataError, match=r"test\.jsonl, line 1: a text of \d+ tokens, .* has room for"):
            sample(build(small, task=QA2R, split="test"))


class TestRationales:
    def test_the_query_is_question_and_right_answer(self, build, world):
        rows = read_annotations(world / "train.jsonl")
        answers = [["they"], ["are"], ["happy"], ["near"]]
        change(world, 0, question=["why", "?"], answer_choices=answers, rationale_choices=[["because"]] * 4)
        right = answers[rows[0]["answer_label"]][0]
        dataset = build(task=QA2R)
        got = sample(dataset)
        assert words(dataset, got.text_ids[2]) == ["[CLS]", "why", "?", right, "[SEP]", "because", "[SEP]"]
        assert got.targets["label"].item() == rows[0]["rationale_label"]
        without = build("DATASET.QA2R_NOQ=true", task=QA2R)
        assert words(without, sample(without).text_ids[2]) == ["[CLS]", right, "[SEP]", "because", "[SEP]"]

    def test_the_leaderboard_wants_sixteen_rows(self, build, world):
        """Column 4 i + j is rationale j after answer i; the image is there once."""
        answers = [["they"], ["are"], ["happy"], ["near"]]
        rationales = [["because"], ["and"], ["is"], ["at"]]
        change(world, 0, "test", question=["why"], answer_choices=answers, rationale_choices=rationales)
        dataset = build(task=QA2R, split="test")
        got = sample(dataset)
        assert got.targets == {}
        for i in range(4):
            for j in range(4):
                row = words(dataset, got.text_ids[4 * i + j])
                assert row == ["[CLS]", "why", answers[i][0], "[SEP]", rationales[j][0], "[SEP]"]
        assert collate([got]).text_ids.shape[:2] == (1, 16) and collate([got]).image.shape[0] == 1
        assert len(sample(build(split="test")).text_ids) == 4  # Q2A


class TestNames:
    def test_the_walk_goes_on_over_items_and_epochs(self, build, world):
        """The table of original 8.3: two items with two persons and one."""
        rows = read_annotations(world / "train.jsonl")
        write_annotations(world / "train.jsonl", rows[:2])
        dataset = build("DATASET.PERSON_NAMES=walk")
        got = [names_in(dataset, i) for i in (0, 1, 0, 1)]
        assert got == [["Casey", "Riley"], ["Jessie"], ["Jackie", "Avery"], ["Jaime"]]

    def test_the_walk_is_in_the_samples(self, build):
        dataset = build("DATASET.PERSON_NAMES=walk")
        first, second = sample(dataset), sample(dataset)
        assert "casey" in words(dataset, torch.cat(first.text_ids))
        assert "casey" not in words(dataset, torch.cat(second.text_ids))

    def test_by_default_a_sample_is_always_the_same(self, build):
        dataset = build()
        before = sample(dataset, 3)
        for i in (0, 1, 2):
            sample(dataset, i)
        after = sample(dataset, 3)
        assert all(torch.equal(a, b) for a, b in zip(before.text_ids, after.text_ids, strict=True))

    def test_both_halves_and_different_questions(self, build):
        """The same person has one name in both halves; the first name of different questions varies."""
        one, two = build(), build(task=QA2R)
        assert [names_in(one, i) for i in range(10)] == [names_in(two, i) for i in range(10)]
        assert len({names_in(one, i)[0] for i in range(10)}) > 4


class TestBoxes:
    def test_the_worked_example(self, build, world):
        """Original 8.8: an image of 200 x 100 at 64, 128."""
        change(world, 0, img_fn="p.jpg")
        image = Image.new("RGB", (200, 100))
        image.paste((250, 90, 10), (0, 0, 40, 100))
        image.save(world / "vcr1images/p.jpg")
        got = sample(build("SCALES=[64, 128]"))
        assert got.im_info.tolist() == pytest.approx([128, 64, 0.64, 0.64])
        assert got.boxes[0].tolist() == [0, 0, 127, 63] and got.image.shape == (3, 64, 128)
        torch.testing.assert_close(got.boxes[1], torch.tensor([5.25, 8.5, 35.25, 48.5]) * 0.64)
        flipped = sample(build("SCALES=[64, 128]", "TRAIN.FLIP_PROB=1"))
        assert flipped.boxes[0].tolist() == [0, 0, 127, 63]  # (-0.36, 0, 127, 63.36) before it is clipped
        mirrored = torch.tensor([127 - 35.25 * 0.64, 8.5 * 0.64, 127 - 5.25 * 0.64, 48.5 * 0.64])
        torch.testing.assert_close(flipped.boxes[1], mirrored)
        assert torch.equal(flipped.box_masks, got.box_masks.flip(-1))
        assert torch.equal(flipped.image, got.image.flip(-1)) and not torch.equal(flipped.image, got.image)

    def test_classes_and_masks(self, build):
        got = sample(build(), 2)
        assert got.box_classes.tolist() == [0, *(CATEGORY_IDS[name] for name in OBJECTS["even"])]
        assert got.box_masks.shape == (5, 14, 14) and got.box_masks[0].all()
        # The polygon (0, 0) (30, 10) (5, 40) of the 30 x 40 box: its corner is set, the opposite one is not.
        assert got.box_masks[1, 0, 0] == 1 and got.box_masks[1, 13, 13] == 0 and 40 < got.box_masks[1].sum() < 120
        assert sample(build("DATASET.MASK_SIZE=7"), 2).box_masks.shape == (5, 7, 7)

    def test_canvases(self, build):
        dataset = build()
        shapes = [tuple(sample(dataset, i).image.shape) for i in range(4)]
        assert shapes == [(3, 64, 96), (3, 96, 64), (3, 64, 96), (3, 64, 96)]

    def test_only_what_is_mentioned(self, build, world):
        """Original 8.2: by first mention; Q2A does not look at rationales."""
        change(
            world,
            2,
            question=["is", [2, 0], "happy"],
            answer_choices=[["and", [2]], [[1], "holds", [1]], ["they"], ["they"]],
            rationale_choices=[["because", [3]]] * 4,
        )
        everything, kept = sample(build(), 2), sample(build("DATASET.ONLY_USE_RELEVANT_DETS=true"), 2)
        order = [0, 3, 1, 2]
        for field in ("boxes", "box_classes", "box_masks"):
            assert torch.equal(getattr(kept, field), getattr(everything, field)[order])
        assert kept.text_tags[1].tolist() == [0, 0, 1, 0, 2, 0, 0, 3, 0, 3, 0]
        rationales = sample(build("DATASET.ONLY_USE_RELEVANT_DETS=true", task=QA2R), 2)
        assert rationales.box_classes.tolist() == [0, 1, 1, 1, CATEGORY_IDS["dog"]]

    def test_nothing_is_mentioned(self, build, world):
        """Original 8.2."""
        change(world, 0, question=["why"], answer_choices=[["they"]] * 4)
        only = "DATASET.ONLY_USE_RELEVANT_DETS=true"
        assert sample(build(only)).box_classes.tolist() == [0]
        assert collate([sample(build(only)), sample(build(only), 1)]).box_masks.shape[0] == 2
        with pytest.raises(DataError, match=r"line 1: no detection to use; DATASET\.ADD_IMAGE_AS_A_BOX"):
            sample(build(only, "DATASET.ADD_IMAGE_AS_A_BOX=false"))

    def test_counts_that_differ(self, build, world):
        change(
            world, 1, objects=["person"], question=["why"], answer_choices=[["a"]] * 4, rationale_choices=[["a"]] * 4
        )
        text = r"tall@0\.json: 2 boxes and 2 segms, but .*train\.jsonl, line 2 has 1 objects"
        with pytest.raises(DataError, match=text):
            sample(build(), 1)

    def test_a_broken_polygon(self, build, world):
        path = world / "vcr1images/movie_wide/wide@0.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"segms": [[], [[[1, 2], [3]]], []]}))
        with pytest.raises(DataError, match=r"wide@0\.json: segms\[1\]"):
            sample(build())


class TestImages:
    def test_other_modes_become_rgb(self, build, world):
        """Original 8.8."""
        path = world / "vcr1images/movie_wide/wide@0.jpg"
        for mode in ("L", "CMYK"):
            Image.new(mode, (160, 90)).save(path)
            assert sample(build()).image.shape == (3, 64, 96)

    def test_a_zip_gives_the_same(self, build, world):
        want = sample(build())
        with ZipFile(world / "vcr1images.zip", "w") as archive:
            for path in (world / "vcr1images").rglob("*.*"):
                archive.write(path, path.relative_to(world))
        shutil.rmtree(world / "vcr1images")
        got = sample(build("DATASET.ZIP_MODE=true"))
        assert torch.equal(got.image, want.image) and torch.equal(got.boxes, want.boxes)

    def test_missing_and_damaged(self, build, world):
        path = world / "vcr1images/movie_wide/wide@0.jpg"
        path.write_bytes(b"no image")
        with pytest.raises(ImageError, match=r"unreadable image .*wide@0\.jpg"):
            sample(build())
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"wide@0\.jpg"):
            sample(build())
        path.with_suffix(".json").unlink()
        with pytest.raises(FileNotFoundError, match=r"wide@0\.json"):
            sample(build())


class TestFeatures:
    """NETWORK.IMAGE_FEAT_PRECOMPUTED: features of the metadata's boxes from a region store."""

    FEATURES = "NETWORK.IMAGE_FEAT_PRECOMPUTED=true"

    @pytest.fixture
    def store(self, world) -> Path:
        """No images: nothing may open one."""
        for path in (world / "vcr1images").rglob("*.jpg"):
            path.unlink()
        return world / "regions"

    def rewrite(self, store: Path, name: str, **values: object) -> None:
        from dataclasses import replace

        from common.regions.json_store import save_regions

        save_regions(store, name, replace(JsonRegions(store).regions(name), **values))

    def test_a_sample(self, build, store):
        got = sample(build(self.FEATURES))
        stored = JsonRegions(store).regions("wide@0")
        assert got.image is None and got.box_masks is None
        assert torch.equal(got.features, torch.cat([stored.image_feature[None], stored.features]))
        assert got.im_info.tolist() == pytest.approx([96, 54, 0.6, 0.6])
        torch.testing.assert_close(got.boxes[1:], (stored.boxes * 0.6))
        alone = sample(build(self.FEATURES, "DATASET.ADD_IMAGE_AS_A_BOX=false"))
        assert torch.equal(alone.features, stored.features) and len(alone.boxes) == 3

    def test_the_whole_image_without_a_feature_of_its_own(self, build, store):
        """The mean of all detections, also where only some are used."""
        self.rewrite(store, "wide@0", image_feature=None)
        got = sample(build(self.FEATURES, "DATASET.ONLY_USE_RELEVANT_DETS=true"))
        torch.testing.assert_close(got.features[0], JsonRegions(store).regions("wide@0").features.mean(0))

    def test_features_follow_their_detections(self, build, store, world):
        change(world, 0, question=["is", [2, 0], "happy"], answer_choices=[["they"]] * 4)
        got = sample(build(self.FEATURES, "DATASET.ONLY_USE_RELEVANT_DETS=true"))
        assert torch.equal(got.features[1:], JsonRegions(store).regions("wide@0").features[[2, 0]])

    def test_a_packed_store(self, build, store):
        want = sample(build(self.FEATURES))
        pack(JsonRegions(store), store.with_name("other.packed"))
        got = sample(build(self.FEATURES, f"DATASET.REGION_PATH={store.with_name('other')}"))
        assert torch.equal(got.features.read(), want.features)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"boxes": torch.zeros(2, 4), "features": torch.zeros(2, 2048)}, "2 boxes, the metadata of .* has 3"),
            ({"boxes": torch.zeros(3, 4)}, "a box is 75.2 pixels off the metadata of .*train.jsonl, line 1"),
            ({"features": None}, "no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true"),
        ],
    )
    def test_an_entry_of_something_else(self, build, store, values, message):
        self.rewrite(store, "wide@0", **values)
        with pytest.raises(DataError, match=f"regions of 'wide@0': {message}"):
            sample(build(self.FEATURES))

    def test_a_pixel_is_no_difference(self, build, store):
        stored = JsonRegions(store).regions("wide@0")
        self.rewrite(store, "wide@0", boxes=stored.boxes + 0.9)
        torch.testing.assert_close(sample(build(self.FEATURES)).boxes[1:], stored.boxes * 0.6)

    def test_a_image_that_the_store_lacks(self, build, store):
        (store / "wide@0.json").unlink()
        with pytest.raises(FileNotFoundError, match="wide@0"):
            sample(build(self.FEATURES))

    def test_metadata_without_a_size(self, build, store, world):
        path = world / "vcr1images/movie_wide/wide@0.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "width"}))
        with pytest.raises(DataError, match=r"wide@0\.json: no width and height, which .*PRECOMPUTED needs"):
            sample(build(self.FEATURES))

    def test_the_name_of_an_image_of_coco(self, build, store, world):
        """By the rule, and by the stem in older stores."""
        want = sample(build(self.FEATURES))
        stored = JsonRegions(store).regions("wide@0")
        change(world, 0, img_fn="movie_wide/COCO_val2014_000000000007.jpg")
        for name in ("COCO_val2014_000000000007", "7"):
            save_regions(store, name, stored)
            assert torch.equal(sample(build(self.FEATURES)).features, want.features)
            (store / f"{name}.json").unlink()

    def test_two_images_of_one_stem(self, build, store, world):
        change(world, 1, img_fn="elsewhere/wide@0.png")
        message = r"train\.jsonl: movie_wide/wide@0\.jpg and elsewhere/wide@0\.png both have the name 'wide@0'"
        with pytest.raises(RegionError, match=message):
            build(self.FEATURES)


def test_settings_that_name_no_file(build):
    with pytest.raises(ConfigError, match="DATASET.TRAIN_ANNOTATION_FILE is empty"):
        build("DATASET.TRAIN_ANNOTATION_FILE=''")
    with pytest.raises(DataError, match=r"DATASET.TASK 'Q2AR': expected Q2A or QA2R"):
        TextSequenceBuilder(None, task="Q2AR")
