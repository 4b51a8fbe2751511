"""VQA samples against numbers of the 2020 release, on one image whose files every test writes itself."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from common.config import load_config
from common.data.collate import collate
from common.data.loader import BatchLoader, build_loader
from common.data.sample import Sample
from common.data.text import BertTokenizer
from common.data.transforms import Transform
from common.errors import DataError, ImageError, RegionError
from common.regions.json_store import JsonRegions, save_regions
from common.regions.lazy_features import LazyFeatures
from common.regions.packed_store import pack
from common.regions.regions import Regions
from data.scenes import questions as scene_questions
from tests.task_check import assert_same
from tests.vqa.test_annotations import write_imdb
from vqa.answers import AnswerVocabulary
from vqa.dataset import VQADataset, VQAFiles, build_dataset

REGIONS = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
MEANS = (102.9801, 115.9465, 122.7717)
WORDS = ["is", "the", "cat", "on", "my", "left", "right", "side", "-", "?", "w110", "w111", "w112", "w113"]
# Ids as in bert-base-uncased: 0 [PAD], 100 [UNK], 101 [CLS], 102 [SEP], 103 [MASK]; 104 is, 109 left, 110 right.
VOCABULARY = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
ANSWERS = "<unk>\nleft\nright\nt-shirt\nyes\nYES \n\n1,000\n"  # see original 9.8
GIVEN = ["left"] * 3 + ["t-shirt"] * 2 + ["t shirt"] + ["yes"] * 4
BOXES = torch.tensor([[10.0, 20.0, 110.0, 220.0], [-4.0, 100.0, 700.0, 479.0]])
FEATURES = torch.arange(2 * 2048.0).view(2, 2048)


class World:
    """A DATASET_PATH with one split. Images are red on the left and blue on the right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "answers.txt").write_text(ANSWERS)
        self.write_images({42: (640, 480)})
        self.write_questions([("is the cat left?", 42)])
        self.write_regions(42)

    def write_images(self, sizes: dict[int, tuple[int, int]], split: str = "train2014") -> None:
        images = [{"id": i, "width": w, "height": h} for i, (w, h) in sizes.items()]
        self.write_json(f"annotations/instances_{split}.json", {"images": images})
        (self.root / split).mkdir(exist_ok=True)
        for i, (width, height) in sizes.items():
            image = Image.new("RGB", (width, height), (255, 0, 0))
            image.paste((0, 0, 255), (width // 2, 0, width, height))
            image.save(self.root / split / f"COCO_{split}_{i:012d}.jpg", quality=95)

    def write_questions(self, questions: list[tuple[str, int]], split: str = "train2014") -> None:
        rows = [{"question": q, "image_id": image, "question_id": 900 - k} for k, (q, image) in enumerate(questions)]
        self.write_json(f"vqa/v2_OpenEnded_mscoco_{split}_questions.json", {"questions": rows})
        answers = [{"answer": a} for a in GIVEN]
        rows = [{"question_id": row["question_id"], "answers": answers} for row in rows]
        self.write_json(f"vqa/v2_mscoco_{split}_annotations.json", {"annotations": rows})

    def write_regions(self, image_id: int, image_feature: torch.Tensor | None = None) -> None:
        regions = Regions(BOXES, FEATURES, image_feature, width=640, height=480)
        save_regions(self.root / REGIONS, str(image_id), regions)

    def write_json(self, name: str, content: Any) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))

    def dataset(self, flip: float = 0.0, image_sets: str = "train2014", **options: Any) -> VQADataset:
        of_files = {"boxes": "10-100ada"} | {
            f.name: options.pop(f.name) for f in dataclasses.fields(VQAFiles) if f.name in options
        }
        return VQADataset(
            VQAFiles(self.root, image_sets, **of_files),
            AnswerVocabulary.load(self.root / "answers.txt", processed=not of_files.get("from_imdb")),
            BertTokenizer({token: i for i, token in enumerate(VOCABULARY)}),
            Transform((600, 1000), MEANS, (1.0, 1.0, 1.0), flip),
            **options,
        )

    def sample(self, index: int = 0, **options: Any) -> Sample:
        return self.dataset(**options).sample(index, random.Random(0))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class TestBoxes:
    def test_640x480_becomes_800x600_with_ratios_of_float32(self, world):
        """17.10: the reciprocal comes first, so 600 / 480 is not 1.25."""
        im_info = world.sample().im_info
        assert im_info.dtype == torch.float32
        assert im_info.tolist() == [800.0, 600.0, 1.25, 1.2500001192092896]

    def test_image_box_first_then_the_file_s_order_clamped(self, world):
        expected = [[0, 0, 798.75, 598.75], [12.5, 25, 137.5, 275], [0, 125, 799, 598.75]]
        torch.testing.assert_close(world.sample().boxes, torch.tensor(expected), atol=1e-4, rtol=0)

    def test_a_flip_mirrors_before_clamping(self, world):
        """The image box of 640x480 becomes [0.25, 0, 799, 598.75]; x1' = 799 - x2."""
        expected = [[0.25, 0, 799, 598.75], [661.5, 25, 786.5, 275], [0, 125, 799, 598.75]]
        torch.testing.assert_close(world.sample(flip=1.0).boxes, torch.tensor(expected), atol=1e-4, rtol=0)

    def test_without_the_image_box(self, world):
        """17.26: box 0 is then the first region; 17.11: samples leave no trace in each other."""
        dataset = world.dataset(flip=1.0, image_box=False)
        first, second = (dataset.sample(0, random.Random(0)) for _ in range(2))
        assert_same(first, second)
        assert first.boxes.shape == (2, 4) and torch.equal(first.features, FEATURES)
        torch.testing.assert_close(first.boxes[0], torch.tensor([661.5, 25, 786.5, 275]), atol=1e-4, rtol=0)

    def test_an_upright_image(self, world):
        world.write_images({42: (480, 640)})
        assert world.sample().im_info.tolist() == [600.0, 800.0, 1.2500001192092896, 1.25]


class TestFeatures:
    def test_the_image_s_own_feature_when_the_file_has_it(self, world):
        whole = torch.full((2048,), 7.0)
        world.write_regions(42, whole)
        assert torch.equal(world.sample().features, torch.stack([whole, *FEATURES]))

    def test_the_mean_of_the_regions_otherwise(self, world):
        assert torch.equal(world.sample().features[0], torch.arange(2048.0) + 1024)

    def test_a_flip_leaves_features_alone(self, world):
        """17.8"""
        assert torch.equal(world.sample(flip=1.0).features, world.sample().features)

    def test_no_image_is_opened(self, world):
        shutil.rmtree(world.root / "train2014")
        assert world.sample().image is None

    def test_regions_without_features_are_refused(self, world):
        save_regions(world.root / REGIONS, "42", Regions(BOXES))
        with pytest.raises(DataError, match="image 42: no features.*IMAGE_FEAT_PRECOMPUTED"):
            world.sample()


class TestImages:
    def test_boxes_are_those_of_the_precomputed_mode(self, world):
        for flip in (0.0, 1.0):
            raw, precomputed = world.sample(precomputed=False, flip=flip), world.sample(flip=flip)
            assert torch.equal(raw.boxes, precomputed.boxes) and torch.equal(raw.im_info, precomputed.im_info)
            assert raw.features is None and raw.image.shape == (3, 600, 800)

    def test_pixels_are_bgr_less_means_and_flip_with_the_boxes(self, world):
        blue, red = ([255.0 * (c == channel) - MEANS[c] for c in range(3)] for channel in (0, 2))
        for flip, left, right in ((0.0, red, blue), (1.0, blue, red)):
            image = world.sample(precomputed=False, flip=flip).image
            torch.testing.assert_close(image[:, 300, 100], torch.tensor(left), atol=4, rtol=0)
            torch.testing.assert_close(image[:, 300, 700], torch.tensor(right), atol=4, rtol=0)

    def test_no_metadata_needed(self, world):
        shutil.rmtree(world.root / "annotations")
        assert world.sample(precomputed=False).im_info[0] == 800

    def test_a_test_set_s_image_lies_in_test2015(self, world):
        """Original 9.1: test-dev2015 has the images and regions of test2015."""
        world.write_questions([("is the cat left?", 42)], "test-dev2015")
        (world.root / "vqa/v2_mscoco_test-dev2015_annotations.json").unlink()
        world.write_images({42: (640, 480)}, "test2015")
        shutil.copytree(world.root / REGIONS, world.root / REGIONS.replace("trainval2014", "test2015"))
        options = {"image_sets": "test-dev2015", "with_answers": False}
        assert world.sample(precomputed=False, **options).targets == {}
        with pytest.raises(FileNotFoundError, match="image_info_test2015.json"):
            world.sample(**options)

    def test_missing_and_damaged_images_are_named(self, world):
        path = world.root / "train2014/COCO_train2014_000000000042.jpg"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ImageError, match="COCO_train2014_000000000042.jpg"):
            world.sample(precomputed=False)
        path.unlink()
        with pytest.raises(FileNotFoundError, match="COCO_train2014_000000000042.jpg"):
            world.sample(precomputed=False)


class TestText:
    def test_assembly_of_section_8_2(self, world):
        """The rows of the release: [CLS] question [SEP] [MASK] [SEP], answered at [MASK]."""
        world.write_questions([("is the cat", 42), ("is right - ? w110", 42)])
        dataset = world.dataset()
        batch = collate([dataset.sample(i, random.Random(0)) for i in range(2)])
        first, second = [101, 104, 105, 106, 102, 103, 102, 0, 0], [101, 104, 110, 112, 113, 114, 102, 103, 102]
        assert batch.text_ids.tolist() == [first, second]
        assert batch.segment_ids.tolist() == [[0, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1, 1]]
        answer = batch.text_mask.sum(1) - 2
        assert answer.tolist() == [5, 7]
        assert batch.text_ids[torch.arange(2), answer].tolist() == [103, 103]

    def test_a_written_out_pad_is_dropped(self, world):
        """The row [104, 0, 106] becomes [CLS] 104 106 [SEP] [MASK] [SEP]."""
        world.write_questions([("is [PAD] cat", 42)])
        assert world.sample().text_ids.tolist() == [101, 104, 106, 102, 103, 102]

    def test_left_and_right_swap_with_the_image(self, world):
        """17.8: exactly the tokens left and right."""
        assert world.sample().text_ids.tolist() == [101, 104, 105, 106, 109, 113, 102, 103, 102]
        assert world.sample(flip=1.0).text_ids.tolist() == [101, 104, 105, 106, 110, 113, 102, 103, 102]

    def test_an_empty_question_is_int64(self, world):
        """17.12: the original made a float tensor of it."""
        world.write_questions([("", 42)])
        sample = world.sample()
        assert sample.text_ids.tolist() == [101, 102, 103, 102] and sample.text_ids.dtype == torch.int64
        assert sample.segment_ids.tolist() == [0, 0, 1, 1]
        assert collate([sample]).text_ids.dtype == torch.int64

    def test_a_question_of_600_words_is_cut_where_the_position_table_ends(self, world):
        """17.32: text, then one position of all regions, then END: 510 + 2 = 512."""
        world.write_questions([("cat " * 600, 42)])
        text_ids = world.sample(max_positions=512).text_ids.tolist()
        assert text_ids == [101, *[106] * 506, 102, 103, 102]

    def test_question_ids_are_sample_ids(self, world):
        world.write_questions([("is", 42), ("the", 42), ("cat", 42)])
        dataset = world.dataset()
        assert [dataset.sample(i, random.Random(0)).id for i in range(3)] == [900, 899, 898]


class TestTarget:
    def test_soft_target_and_its_mirror(self, world):
        """t-shirt is looked up raw and falls to <unk>, the second yes is never a target (original 9.8, 9.10)."""
        label = world.sample().targets["label"]
        assert label.dtype == torch.float32
        torch.testing.assert_close(label, torch.tensor([0, 0.9, 0, 0.3, 1.0, 0, 0]))
        torch.testing.assert_close(world.sample(flip=1.0).targets["label"], torch.tensor([0, 0, 0.9, 0.3, 1.0, 0, 0]))

    def test_words_of_an_answer_swap_only_between_spaces(self, world):
        (world.root / "answers.txt").write_text("<unk>\nleft side\nright side\nleft:side\n")
        answers = [{"answer": a} for a in ["left side"] * 5 + ["left:side"] * 5]
        rows = [{"question_id": 900, "answers": answers}]
        world.write_json("vqa/v2_mscoco_train2014_annotations.json", {"annotations": rows})
        assert world.sample(flip=1.0).targets["label"].tolist() == [0, 0, 1, 1]

    def test_no_answers_no_target(self, world):
        (world.root / "vqa/v2_mscoco_train2014_annotations.json").unlink()
        assert world.sample(with_answers=False).targets == {}


class TestImdb:
    def entry(self, words: list[str], answers: list[str]) -> dict[str, Any]:
        return {"image_id": 42, "question_id": 5, "question_tokens": words, "answers": answers}

    def test_words_are_joined_and_the_vocabulary_stays_as_written(self, world):
        """Original 9.3: no punctuation processing, so t-shirt and 1,000 are entries."""
        write_imdb(world.root, "train2014", [{}, self.entry(["is", "the", "cat?"], ["t-shirt"] * 4 + ["1000"] * 6)])
        sample = world.sample(from_imdb=True)
        assert sample.text_ids.tolist() == [101, 104, 105, 106, 113, 102, 103, 102]
        assert sample.targets["label"].tolist() == [0, 0, 0, 1, 0, 0, 0]

    def test_words_swap_before_they_become_pieces(self, world):
        """Original 9.3: "left-side" is one word of the imdb file, but three tokens of a question."""
        write_imdb(world.root, "train2014", [{}, self.entry(["left-side", "right"], ["yes"])])
        side = [109, 112, 111]
        assert world.sample(from_imdb=True, flip=1.0).text_ids.tolist() == [101, *side, 109, 102, 103, 102]
        world.write_questions([("left-side right", 42)])
        assert world.sample(flip=1.0).text_ids.tolist() == [101, 110, 112, 111, 109, 102, 103, 102]


class TestStores:
    """Where images and regions lie changes nothing in the samples."""

    def test_zip_mode_for_regions_and_images(self, world):
        expected = world.sample(), world.sample(precomputed=False)
        for folder in (world.root / REGIONS, world.root / "train2014"):
            with ZipFile(f"{folder}.zip", "w") as archive:
                for file in folder.iterdir():
                    archive.write(file, f"{folder.name}/{file.name}")
            shutil.rmtree(folder)
        assert_same((world.sample(zip_mode=True), world.sample(zip_mode=True, precomputed=False)), expected)
        with pytest.raises(FileNotFoundError, match="train2014/COCO_train2014"):
            world.sample(precomputed=False)

    def test_packed_regions(self, world):
        world.write_regions(42, torch.full((2048,), 7.0))
        expected = world.sample()
        pack(JsonRegions(world.root / REGIONS), world.root / f"{REGIONS}.packed")
        shutil.rmtree(world.root / REGIONS)
        got = world.sample()
        assert isinstance(got.features, LazyFeatures)
        assert_same(got, expected)

    def test_region_path(self, world):
        expected = world.sample()
        shutil.move(world.root / REGIONS, world.root / "elsewhere")
        with pytest.raises(FileNotFoundError, match=f"looked for .*{REGIONS}.packed"):
            world.dataset()
        assert_same(world.sample(region_path=str(world.root / "elsewhere")), expected)

    def test_regions_under_the_stem_of_the_image(self, world):
        """Older stores of a detector or a grid have such names; the id goes first."""
        expected = world.sample()
        folder = world.root / REGIONS
        (folder / "42.json").rename(folder / "COCO_train2014_000000000042.json")
        assert_same(world.sample(), expected)
        pack(JsonRegions(folder), f"{folder}.packed")
        assert_same(world.sample(), world.dataset(region_path=f"{folder}.packed").sample(0, random.Random(0)))
        save_regions(folder, "42", Regions(BOXES[:1], FEATURES[:1], width=640, height=480))
        assert len(world.sample(region_path=str(folder.rename(world.root / "ids"))).boxes) == 2

    def test_boxes_36_has_its_own_folder(self, world):
        shutil.move(
            world.root / REGIONS, world.root / "vgbua_res101_precomputed/trainval_resnet101_faster_rcnn_genome_36"
        )
        assert len(world.sample(boxes="36").boxes) == 3

    def test_unknown_boxes(self, world):
        with pytest.raises(DataError, match="BOXES '50': expected one of 36, 10-100ada"):
            world.dataset(boxes="50")


class TestBrokenFiles:
    def test_missing_regions_of_one_image(self, world):
        (world.root / REGIONS / "42.json").unlink()
        with pytest.raises(FileNotFoundError, match="42.json"):
            world.sample()

    def test_damaged_regions_of_one_image(self, world):
        path = world.root / REGIONS / "42.json"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(RegionError, match="42.json"):
            world.sample()

    def test_an_image_that_the_metadata_lacks(self, world):
        world.write_json("annotations/instances_train2014.json", {"images": [{"id": 1, "width": 2, "height": 3}]})
        message = r"^[^'\"]*instances_train2014\.json: no image 42, which question 900 asks about$"
        with pytest.raises(DataError, match=message):
            world.sample()

    def test_metadata_without_sizes(self, world):
        world.write_json("annotations/instances_train2014.json", {"images": [{"id": 42}]})
        with pytest.raises(DataError, match=r"instances_train2014\.json: an image needs id, width and height"):
            world.sample()

    def test_a_split_without_questions(self, world):
        world.write_questions([])
        with pytest.raises(DataError, match="image sets 'train2014' under .* have no question"):
            world.dataset()

    def test_missing_answers(self, world):
        (world.root / "answers.txt").unlink()
        with pytest.raises(FileNotFoundError, match=r"answers\.txt \(DATASET.ANSWER_VOCAB_FILE\): no such file"):
            world.dataset()


class TestSeveralSets:
    def test_sets_follow_each_other_each_with_its_own_metadata(self, world):
        world.write_images({42: (480, 640)}, "val2014")
        world.write_questions([("the cat", 42)], "val2014")
        dataset = world.dataset(image_sets="val2014+train2014")
        samples = [dataset.sample(i, random.Random(0)) for i in range(2)]
        assert [s.im_info[:2].tolist() for s in samples] == [[600, 800], [800, 600]]
        assert [len(s.text_ids) for s in samples] == [6, 9]

    def test_groups_of_wide_and_upright(self, world):
        """17.22: the original's upright group was an error in current PyTorch; a square is wide."""
        world.write_images({1: (640, 480), 2: (480, 640), 3: (500, 500), 4: (100, 101)})
        world.write_questions([("is", 1), ("is", 2), ("is", 3), ("is", 4), ("is", 1)])
        for i in (1, 2, 3, 4):
            world.write_regions(i)
        dataset = world.dataset()
        assert list(dataset.group_ids) == [0, 1, 0, 1, 0]
        batches = list(BatchLoader(dataset, 2, aspect_grouping=True))
        assert [b.ids for b in batches] == [[900, 898], [899, 897], [896]]


class TestConfig:
    """`build_dataset` on the tiny made-up world."""

    def test_workers_give_the_samples_of_the_main_process(self, cfg_path):
        dataset = build_dataset(load_config("vqa", cfg_path), "train")
        options = {"shuffle": True, "training": True, "base_seed": 7}
        alone = list(BatchLoader(dataset, 8, num_workers=0, **options).epoch(3))
        workers = list(BatchLoader(dataset, 8, num_workers=2, **options).epoch(3))
        flipped = [x > 0 for b in alone for x in b.boxes[:, 0, 0].tolist()]  # a mirrored image box starts inside
        assert len(flipped) == len(dataset) and 0 < sum(flipped) < len(flipped)
        assert_same(workers, alone)

    def test_testing_goes_in_file_order_whatever_shuffle_says(self, cfg_path):
        """17.27"""
        cfg = load_config("vqa", cfg_path, ["TEST.SHUFFLE=true", "TEST.BATCH_IMAGES=2"])
        dataset = build_dataset(cfg, "test")
        ids = [i for batch in build_loader(dataset, cfg, "test") for i in batch.ids]
        assert ids == [q.question_id for q in dataset.questions] and len(ids) > 4

    def test_flips_are_those_of_the_split(self, cfg_path):
        cfg = load_config("vqa", cfg_path, ["TRAIN.FLIP_PROB=1.0", "VAL.FLIP_PROB=0.0", "TEST.FLIP_PROB=0.5"])
        assert [build_dataset(cfg, s).transform.flip_prob for s in ("train", "val", "test")] == [1.0, 0.0, 0.5]

    def test_the_vocabulary_must_have_the_size_of_the_classifier(self, cfg_path):
        cfg, count = load_config("vqa", cfg_path, ["DATASET.ANSWER_VOCAB_SIZE=3129"]), len(scene_questions.ANSWERS) + 1
        with pytest.raises(DataError, match=rf"answers_vqa\.txt: {count} answers, .*_SIZE is 3129"):
            build_dataset(cfg, "train")

    def test_another_data_set(self, cfg_path):
        with pytest.raises(ValueError, match="DATASET.DATASET"):
            build_dataset(load_config("vqa", cfg_path, ["DATASET.DATASET=vcr_dataset"]), "train")

    def test_padded_position_tables_hold_fewer_words(self, cfg_path):
        """17.32: RoBERTa's positions start after its padding index."""
        table = "NETWORK.VLBERT.max_position_embeddings=40"
        for padding, words in ((-1, 34), (1, 32)):
            cfg = load_config("vqa", cfg_path, [table, f"NETWORK.VLBERT.position_padding_idx={padding}"])
            assert build_dataset(cfg, "train").max_question == words

    def test_imdb_of_a_config(self, cfg_path, tiny_world, tmp_path):
        shutil.copytree(tiny_world, tmp_path / "world")
        entry = {"image_id": np.int64(1), "question_id": 5, "question_tokens": ["what", "color"], "answers": ["red"]}
        write_imdb(tmp_path / "world", "train2014", [{}, entry])
        cfg = load_config("vqa", cfg_path, [f"DATASET.DATASET_PATH={tmp_path / 'world'}", "DATASET.USE_IMDB=true"])
        dataset = build_dataset(cfg, "train")
        assert len(dataset) == 1 and len(dataset.sample(0, random.Random(0)).text_ids) == 6
