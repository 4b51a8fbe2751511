"""RefCOCO+ samples against the numbers of original 10.15, on one image whose files every test writes itself."""

from __future__ import annotations

import dataclasses
import logging
import random
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.data.loader import BatchLoader
from common.data.sample import Sample
from common.errors import ConfigError, DataError, ImageError
from common.regions.json_store import JsonRegions, save_regions
from common.regions.lazy_features import LazyFeatures
from common.regions.packed_store import pack
from common.regions.regions import Regions
from refcoco.dataset import build_dataset
from refcoco.files import DETECTIONS_FILE, REGION_FOLDER
from tests.refcoco.world import GOLDEN_BOXES, MEANS, World, small_world
from tests.task_check import assert_same

IMAGE_BOX = [0, 0, 798.75, 598.75]
TARGET, SECOND, CORNER = [15, 27.5, 137.5, 265], [13.125, 25.625, 138.125, 275.625], [0, 0, 62.5, 75]
MIDDLE, LARGE = [375, 125, 525.625, 225.3125], [250, 12.5, 799, 599]


def sample(world: World, index: int = 0, seed: int = 0, **options: Any) -> Sample:
    return world.open(**options).sample(index, random.Random(seed))


def close(got: torch.Tensor, want: Any) -> None:
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32), atol=1e-3, rtol=0)


class TestGoldenExample:
    """640x480 becomes 800x600."""

    def test_proposals_and_annotations_with_the_image_box(self, golden):
        got = sample(golden, boxes="proposal+gt")
        assert got.im_info.tolist() == [800.0, 600.0, 1.25, 1.2500001192092896]
        close(got.boxes, [IMAGE_BOX, TARGET, LARGE, SECOND, MIDDLE, CORNER])
        assert got.targets["label"].tolist() == [0, 1, 0, 1, 0, 0]
        assert got.targets["label"].dtype == got.boxes.dtype == torch.float32

    def test_flipped(self, golden):
        got = sample(golden, boxes="proposal+gt", flip=1.0)
        expected = [
            [0.25, 0, 799, 598.75],
            [661.5, 27.5, 784, 265],
            [0, 12.5, 549, 599],
            [660.875, 25.625, 785.875, 275.625],
            [273.375, 125, 424, 225.3125],
            [736.5, 0, 799, 75],
        ]
        close(got.boxes, expected)
        assert got.targets["label"].tolist() == [0, 1, 0, 1, 0, 0]

    def test_labels_are_padded_with_minus_one(self, golden):
        golden.add_image(7, (640, 480), [GOLDEN_BOXES[0]] * 5)
        golden.add_reference(700, ["cat"])
        golden.write().draw(7)
        dataset = golden.open(image_box=False)
        batch = collate([dataset.sample(i, random.Random(0)) for i in range(2)])
        assert batch.targets["label"].tolist() == [[1, 0, 0, -1, -1], [1, 1, 1, 1, 1]]

    def test_the_text(self, golden):
        """[CLS] expression [SEP], one segment; left and right swap with the image."""
        straight, flipped = sample(golden), sample(golden, flip=1.0)
        assert straight.text_ids.tolist() == [101, 106, 105, 102]
        assert flipped.text_ids.tolist() == [101, 107, 105, 102]
        assert straight.segment_ids.tolist() == [0, 0, 0, 0]

    def test_pixels_are_bgr_less_means_and_flip_with_the_boxes(self, golden):
        blue, red = ([255.0 * (c == channel) - MEANS[c] for c in range(3)] for channel in (0, 2))
        for flip, left, right in ((0.0, red, blue), (1.0, blue, red)):
            image = sample(golden, flip=flip).image
            assert image.shape == (3, 600, 800)
            torch.testing.assert_close(image[:, 300, 100], torch.tensor(left), atol=4, rtol=0)
            torch.testing.assert_close(image[:, 300, 700], torch.tensor(right), atol=4, rtol=0)


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "expected", "labels"),
        [
            ("gt", [SECOND, MIDDLE, CORNER], [1, 0, 0]),
            ("proposal", [TARGET, LARGE], [1, 0]),
            ("proposal+gt", [TARGET, LARGE, SECOND, MIDDLE, CORNER], [1, 0, 1, 0, 0]),
            ("gt+proposal", [TARGET, LARGE, SECOND, MIDDLE, CORNER], [1, 0, 1, 0, 0]),
        ],
    )
    def test_order(self, golden, mode, expected, labels):
        got = sample(golden, boxes=mode, image_box=False)
        close(got.boxes, expected)
        assert got.targets["label"].tolist() == labels

    def test_test_mode_has_the_same_boxes_and_no_labels(self, golden):
        got, want = (sample(golden, boxes="proposal+gt", with_labels=labels) for labels in (False, True))
        assert got.targets == {} and torch.equal(got.boxes, want.boxes)

    def test_no_proposal_file_needed_for_annotations(self, golden):
        (golden.root / "refcoco+" / DETECTIONS_FILE).unlink()
        assert len(sample(golden, boxes="gt").boxes) == 4

    @pytest.mark.parametrize("form", ["folder", "zip", "packed", "path"])
    def test_regions_as_proposals(self, golden, form):
        """no. 14: the original could read a zip only. Boxes of a store are corners already."""
        folder = golden.root / (REGION_FOLDER if form != "path" else "elsewhere")
        save_regions(folder, "42", Regions(torch.tensor([[12.0, 22, 110, 212], [0, 0, 9, 9]])))
        if form == "zip":
            with ZipFile(f"{folder}.zip", "w") as archive:
                archive.write(folder / "42.json", f"{folder.name}/42.json")
            shutil.rmtree(folder)
        if form == "packed":
            pack(JsonRegions(folder), f"{folder}.packed")
            shutil.rmtree(folder)
        path = str(folder) if form == "path" else None
        got = sample(golden, boxes="proposal", proposal_source="vg", region_path=path)
        close(got.boxes, [IMAGE_BOX, TARGET, [0, 0, 11.25, 11.25]])
        assert got.targets["label"].tolist() == [0, 1, 0]
        mixed = sample(golden, boxes="gt+proposal", proposal_source="vg", region_path=path)
        close(mixed.boxes[:3], [IMAGE_BOX, TARGET, [0, 0, 11.25, 11.25]])

    def test_regions_under_the_name_of_the_image(self, golden):
        """What data/extract_features.py writes with boxes of a detector; the id goes first."""
        folder = golden.root / REGION_FOLDER
        save_regions(folder, "COCO_train2014_000000000042", Regions(torch.tensor([[12.0, 22, 110, 212]])))
        close(sample(golden, boxes="proposal", proposal_source="vg").boxes, [IMAGE_BOX, TARGET])
        save_regions(folder, "42", Regions(torch.tensor([[0.0, 0, 9, 9]])))
        close(sample(golden, boxes="proposal", proposal_source="vg").boxes, [IMAGE_BOX, [0, 0, 11.25, 11.25]])

    def test_crowds_are_candidates(self, golden):
        """no. 8"""
        golden.add_image(7, (640, 480), GOLDEN_BOXES, crowd=(1,))
        golden.add_reference(700, ["cat"])
        golden.write().draw(7)
        assert len(sample(golden, index=1).boxes) == 4
        assert golden.open().choices(1).ann_ids == (None, 700, 701, 702)

    def test_integer_coordinates_are_float32(self, golden):
        """no. 16: the original made int64 boxes, which ratios could not scale."""
        golden.annotations[0]["bbox"] = [10, 20, 100, 200]
        golden.detections[0]["box"] = [12, 22, 98, 190]
        golden.write()
        for mode in ("gt", "proposal"):
            assert sample(golden, boxes=mode).boxes.dtype == torch.float32
        close(sample(golden, boxes="gt", image_box=False).boxes[:1], [[12.5, 25, 137.5, 275]])

    def test_the_whole_image_may_be_the_referent(self, golden):
        """no. 7"""
        golden.annotations[0]["bbox"] = [10.0, 10.0, 600.0, 440.0]
        golden.write()
        assert sample(golden).targets["label"].tolist() == [1, 1, 0, 0]

    def test_half_overlap_is_not_enough(self, golden):
        """Original 10.6: strictly above 0.5, with both borders inside. Width 150 and 300 of the same height."""
        golden.images[0].update(width=800, height=600)
        golden.annotations[0]["bbox"] = [0.0, 0.0, 299.0, 99.0]
        golden.annotations[1]["bbox"] = [0.0, 0.0, 149.0, 99.0]
        golden.annotations[2]["bbox"] = [0.0, 0.0, 150.0, 99.0]
        golden.write().draw(42)
        assert sample(golden, image_box=False).targets["label"].tolist() == [1, 0, 1]


class TestImagesWithoutCandidates:
    """no. 15"""

    @pytest.fixture
    def world(self, golden: World) -> World:
        golden.add_image(508, (640, 480), [])
        golden.add_reference(4200, ["cat"])
        golden.references[-1]["image_id"] = 508  # its annotation is of another image: nothing else is without any
        golden.write().draw(508)
        return golden

    @pytest.mark.parametrize("mode", ["gt", "proposal"])
    def test_the_image_box_remains(self, world, mode, caplog):
        with caplog.at_level(logging.WARNING):
            got = sample(world, index=1, boxes=mode)
        close(got.boxes, [IMAGE_BOX])
        assert got.targets["label"].tolist() == [0]
        assert "1 of 2 images have no candidate, the first is 508" in caplog.text
        candidates = world.open(boxes=mode).candidates(508)
        assert candidates.boxes.shape == (0, 4) and candidates.boxes.dtype == torch.float32

    @pytest.mark.parametrize("mode", ["gt", "proposal"])
    def test_without_it_there_is_nothing_to_choose(self, world, mode):
        with pytest.raises(DataError, match=rf"box mode {mode}: 1 of 2 images.*508; .*ADD_IMAGE_AS_A_BOX"):
            world.open(boxes=mode, image_box=False)


class TestText:
    def world(self, golden: World, text: str) -> World:
        golden.references[0]["sentences"][0]["tokens"] = text.split()
        return golden.write()

    def test_an_empty_expression_is_int64(self, golden):
        """no. 22"""
        got = sample(self.world(golden, ""))
        assert got.text_ids.tolist() == [101, 102] and got.text_ids.dtype == torch.int64
        assert collate([got]).text_ids.dtype == torch.int64

    def test_tokens_are_cut_into_pieces_together(self, golden):
        assert sample(self.world(golden, "UNSEEN cat, zzz")).text_ids.tolist()[1:-1] == [110, 111, 109, 100, 100]

    def test_only_whole_tokens_swap_and_nothing_is_logged(self, golden, caplog):
        """no. 24"""
        with caplog.at_level(logging.INFO):
            got = sample(self.world(golden, "right of leftmost left"), flip=1.0)
        assert got.text_ids.tolist() == [101, 106, 108, 100, 107, 102]
        assert "left" not in caplog.text

    def test_an_expression_of_600_words_is_cut_where_the_position_table_ends(self, golden):
        text_ids = sample(self.world(golden, "cat " * 600), max_positions=512).text_ids.tolist()
        assert text_ids == [101, *[109] * 508, 102]

    def test_raw_and_sent_are_not_needed(self, golden):
        for key in ("raw", "sent"):
            golden.references[0]["sentences"][0].pop(key)
        assert len(sample(golden.write()).text_ids) == 4


class TestExpressions:
    def test_one_sample_for_each_sentence_in_file_order(self, golden):
        golden.add_reference(4201, ["the thing", "cat"])
        golden.add_reference(4202, ["corner"], split="testB")
        golden.write()
        dataset = golden.open("testB+train")
        assert [(e.ref_id, e.sent_id, e.ann_id) for e in dataset.expressions] == [
            (52, 897, 4202),
            (50, 900, 4200),
            (51, 899, 4201),
            (51, 898, 4201),
        ]
        assert [dataset.sample(i, random.Random(0)).id for i in range(4)] == [897, 900, 899, 898]
        assert dataset.expressions[1].box == (10.5, 20.5, 110.5, 220.5)

    def test_groups_of_wide_and_upright(self, golden):
        """no. 17: an error in current PyTorch; a square is wide."""
        for image_id, size in ((1, (480, 640)), (2, (500, 500)), (3, (100, 101))):
            golden.add_image(image_id, size, [[1.0, 1.0, 50.0, 50.0]])
            golden.add_reference(100 * image_id, ["cat"])
            golden.write().draw(image_id)
        dataset = golden.open(scales=(30, 50))
        assert list(dataset.group_ids) == [0, 1, 0, 1]
        batches = list(BatchLoader(dataset, 2, aspect_grouping=True))
        assert [b.ids for b in batches] == [[900, 898], [899, 897]]

    @pytest.mark.parametrize("sets", ["testA", "train+testC"])
    def test_an_empty_split(self, golden, sets):
        with pytest.raises(DataError, match=r"refs\(unc\)\.p: no reference in split 'test.'.*; it has train"):
            golden.open(sets)

    @pytest.mark.parametrize("sets", ["", "train+", "minival"])
    def test_an_unknown_split(self, golden, sets):
        with pytest.raises(DataError, match="split"):
            golden.open(sets)

    def test_splits_that_overlap(self, golden):
        golden.add_reference(4201, ["cat"], split="testA")
        with pytest.raises(DataError, match="image sets 'test\\+testA': splits that overlap"):
            golden.write().open("test+testA")

    @pytest.mark.parametrize("name", ["refcoco", "refcocog"])
    def test_the_other_data_sets(self, tmp_path, name):
        world = World(tmp_path, name, "umd")
        world.add_image(5, (640, 480), GOLDEN_BOXES)
        world.add_reference(500, ["cat"], "val")
        world.detect(5, [1.0, 2.0, 3.0, 4.0])
        world.write().draw(5)
        got = sample(world, image_sets="val", split_by="umd", boxes="proposal")
        assert got.id == 900 and len(got.boxes) == 2


class TestFiles:
    """What is missing or broken is named."""

    def test_zip_mode(self, golden):
        expected = sample(golden)
        with ZipFile(golden.root / "train2014.zip", "w") as archive:
            for file in (golden.root / "train2014").iterdir():
                archive.write(file, f"train2014/{file.name}")
        shutil.rmtree(golden.root / "train2014")
        assert_same(sample(golden, zip_mode=True), expected)
        with pytest.raises(FileNotFoundError, match="train2014/COCO_train2014_000000000042.jpg"):
            sample(golden)

    def test_missing_and_damaged_images(self, golden):
        path = golden.root / "train2014/COCO_train2014_000000000042.jpg"
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ImageError, match="COCO_train2014_000000000042.jpg"):
            sample(golden)
        path.unlink()
        with pytest.raises(FileNotFoundError, match="COCO_train2014_000000000042.jpg"):
            sample(golden)

    def test_a_image_of_another_size(self, golden):
        golden.images[0]["width"] = 500
        golden.write()
        with pytest.raises(DataError, match=r"000000000042\.jpg is 640 x 480, the COCO annotations say 500 x 480"):
            sample(golden)

    def test_an_image_that_coco_does_not_list(self, golden):
        golden.write_json("annotations/instances_train2014.json", {"images": [], "annotations": []})
        with pytest.raises(DataError, match=r"instances_train2014\.json: no image 42, which a reference is about"):
            golden.open()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "expected an object with a list 'images'"),
            ({"images": []}, "expected an object with a list 'annotations'"),
            ({"images": [{"width": 3}], "annotations": []}, "images need an id, annotations id and image_id"),
            ({"images": [{"id": 42}], "annotations": []}, "image 42 needs width, height and"),
            (
                {
                    "images": [{"id": 42, "width": 5, "height": 5}],
                    "annotations": [{"id": 1, "image_id": 42, "bbox": [1, 2]}],
                },
                r"image 42 needs .* bbox \[x, y, w, h\]",
            ),
        ],
    )
    def test_broken_annotations(self, golden, content, message):
        golden.write_json("annotations/instances_train2014.json", content)
        with pytest.raises(DataError, match=f"instances_train2014.json: {message}"):
            golden.open()

    @pytest.mark.parametrize("box", [[1.0, 2.0, 3.0], None, ["a", 1, 2, 3], [float("nan"), 1, 2, 3]])
    def test_a_target_that_is_no_box(self, golden, box):
        golden.annotations[0]["bbox"] = box
        golden.write()
        with pytest.raises(DataError, match=r"refcoco\+/instances\.json: annotation"):
            golden.open()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"images": []}, "expected a list of detections, found dict"),
            ([{"image_id": 42, "box": [1, 2, 3]}], r"entry 0 needs image_id and box \[x, y, w, h\], got"),
            ([{"image_id": 42, "bbox": [1, 2, 3, 4]}], "entry 0 needs image_id and box"),
            ([[1, 2, 3]], "entry 0 needs image_id and box"),
            ([{"image_id": 9, "box": [1, 2, 3, 4]}], "1 detections, none of them of the 1 images of this split"),
        ],
        ids=["dict", "three numbers", "other key", "no dict", "other images"],
    )
    def test_the_wrong_proposal_file(self, golden, content, message):
        golden.write_json(f"refcoco+/{DETECTIONS_FILE}", content)
        with pytest.raises(DataError, match=f"dets.json: {message}"):
            golden.open(boxes="proposal")

    def test_a_missing_proposal_file(self, golden):
        (golden.root / "refcoco+" / DETECTIONS_FILE).unlink()
        with pytest.raises(FileNotFoundError, match="detections .*dets.json: no such file"):
            golden.open(boxes="proposal+gt")
        with pytest.raises(FileNotFoundError, match="no region files; looked for"):
            golden.open(boxes="proposal", proposal_source="vg")

    def test_a_store_that_lacks_the_image(self, golden):
        save_regions(golden.root / REGION_FOLDER, "43", Regions(torch.ones(1, 4)))
        with pytest.raises(FileNotFoundError, match=r"42\.json"):
            sample(golden, boxes="proposal", proposal_source="vg")


class TestFeatures:
    """Ours: features from a region store instead of images."""

    BOXES = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in GOLDEN_BOXES])
    FEATURES = torch.arange(3 * 2048.0).view(3, 2048)

    def store(self, golden: World, boxes: torch.Tensor = BOXES, **more: Any) -> dict[str, Any]:
        features = self.FEATURES[:1].repeat(len(boxes), 1) if len(boxes) != 3 else self.FEATURES
        save_regions(golden.root / "store", "42", Regions(boxes, more.pop("features", features), **more))
        return {"precomputed": True, "region_path": str(golden.root / "store")}

    def test_features_of_annotations(self, golden):
        shutil.rmtree(golden.root / "train2014")  # no image is opened
        options = self.store(golden)
        got = sample(golden, **options)
        assert got.image is None
        close(got.boxes, [IMAGE_BOX, SECOND, MIDDLE, CORNER])
        assert torch.equal(got.features, torch.stack([self.FEATURES.mean(0), *self.FEATURES]))
        assert got.targets["label"].tolist() == [0, 1, 0, 0]
        assert torch.equal(sample(golden, image_box=False, **options).features, self.FEATURES)

    def test_a_packed_store(self, golden):
        options = self.store(golden)
        pack(JsonRegions(golden.root / "store"), golden.root / "other.packed")
        got = sample(golden, **options | {"region_path": str(golden.root / "other")})
        assert isinstance(got.features, LazyFeatures)
        assert_same(got, sample(golden, **options))

    def test_the_image_s_own_feature_where_the_store_has_it(self, golden):
        whole = torch.full((2048,), 7.0)
        assert torch.equal(sample(golden, **self.store(golden, image_feature=whole)).features[0], whole)

    def test_samples_are_those_of_the_image(self, golden):
        for flip in (0.0, 1.0):
            seen, stored = sample(golden, flip=flip), sample(golden, flip=flip, **self.store(golden))
            assert_same(dataclasses.replace(stored, features=None), dataclasses.replace(seen, image=None))

    @pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
    def test_a_pixel_more_or_less_is_the_same_box(self, golden, shift):
        """x + w - 1, the whole pixels of a detector; the sample has the annotation."""
        moved = self.BOXES + torch.tensor([0, 0, shift, shift])
        close(sample(golden, **self.store(golden, moved)).boxes, [IMAGE_BOX, SECOND, MIDDLE, CORNER])

    def test_other_boxes_than_the_annotations(self, golden):
        wanted = "expected the annotations of the image in their order, which box mode gt needs"
        options = self.store(golden, self.BOXES[:2])
        with pytest.raises(DataError, match=f"store: image 42: 2 boxes for 3 annotations; {wanted}"):
            sample(golden, **options)
        options = self.store(golden, self.BOXES[[0, 2, 1]])
        with pytest.raises(DataError, match=rf"image 42: box \d is \[.*, annotation \d is \[.*; {wanted}"):
            sample(golden, **options)

    def test_regions_without_features(self, golden):
        options = self.store(golden, features=None)
        with pytest.raises(DataError, match="store: image 42 has no features.*IMAGE_FEAT_PRECOMPUTED"):
            sample(golden, **options)

    def test_proposals_of_the_store_with_their_features(self, golden):
        boxes = torch.tensor([[12.0, 22, 110, 212], [0, 0, 9, 9]])
        options = self.store(golden, boxes, image_feature=torch.full((2048,), 7.0))
        got = sample(golden, boxes="proposal", proposal_source="vg", **options)
        close(got.boxes, [IMAGE_BOX, TARGET, [0, 0, 11.25, 11.25]])
        assert got.features.shape == (3, 2048) and got.features[0, 0] == 7
        assert torch.equal(got.features[1:], self.FEATURES[:1].repeat(2, 1))

    @pytest.mark.parametrize(
        ("mode", "source"),
        [("proposal", "official"), ("proposal+gt", "official"), ("gt+proposal", "vg")],
    )
    def test_other_modes_have_no_features(self, golden, mode, source):
        options = self.store(golden)
        with pytest.raises(DataError, match=rf"box mode '{mode.replace('+', '.')}' with PROPOSAL_SOURCE '{source}'"):
            golden.open(boxes=mode, proposal_source=source, **options)

    def test_an_image_without_annotations_has_the_image_s_feature(self, golden):
        """Extraction stores the whole image for it."""
        golden.add_image(508, (640, 480), [])
        golden.add_reference(4200, ["cat"])
        golden.references[-1]["image_id"] = 508
        golden.write()
        options = self.store(golden)
        save_regions(golden.root / "store", "508", Regions(torch.tensor([[0.0, 0, 639, 479]]), self.FEATURES[1:2]))
        got = sample(golden, index=1, **options)
        close(got.boxes, [IMAGE_BOX])
        assert torch.equal(got.features, self.FEATURES[1:2])
        pack(JsonRegions(golden.root / "store"), golden.root / "other.packed")
        assert_same(sample(golden, index=1, **options | {"region_path": str(golden.root / "other")}), got)


class TestChoices:
    def test_what_a_prediction_can_be(self, golden):
        """Boxes of the sample divided by the ratios: clipped, but not mirrored."""
        dataset = golden.open(boxes="proposal+gt", flip=1.0)
        got = dataset.choices(0)
        assert got.ann_ids == (None, None, None, 4200, 4201, 4202)
        straight = sample(golden, boxes="proposal+gt")
        assert torch.equal(got.boxes, straight.boxes / straight.im_info[[2, 3, 2, 3]])
        close(got.boxes[2], [200, 10, 639.2, 479.2])


class TestConfig:
    """`build_dataset` on the small made-up world."""

    def test_workers_give_the_samples_of_the_main_process(self, cfg_path):
        dataset = build_dataset(load_config("refcoco", cfg_path), "train")
        options = {"shuffle": True, "training": True, "aspect_grouping": True, "base_seed": 7}
        alone = list(BatchLoader(dataset, 8, num_workers=0, **options).epoch(3))
        workers = list(BatchLoader(dataset, 8, num_workers=2, **options).epoch(3))
        assert_same(workers, alone)
        flipped = [x > 0 for b in alone for x in b.boxes[:, 0, 0].tolist()]  # a mirrored image box starts inside
        assert len(flipped) == len(dataset) and 0 < sum(flipped) < len(flipped)

    def test_modes_and_flips_are_those_of_the_split(self, cfg_path):
        keys = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "DATASET.TRAIN_BOXES=proposal+gt", "DATASET.VAL_BOXES=proposal"]
        cfg = load_config("refcoco", cfg_path, [*keys, "TRAIN.FLIP_PROB=1.0", "VAL.FLIP_PROB=0.25"])
        datasets = [build_dataset(cfg, split) for split in ("train", "val", "test")]
        assert [d.boxes for d in datasets] == ["proposal+gt", "proposal", "gt"]
        assert [d.transform.flip_prob for d in datasets] == [1.0, 0.25, 0.0]
        assert [d.with_labels for d in datasets] == [True, True, False]
        assert [d.image_sets for d in datasets] == ["train", "val", "test"]

    def test_an_empty_name_is_refcoco_plus(self, cfg_path):
        cfg = load_config("refcoco", cfg_path, {"DATASET.DATASET": ""})
        assert build_dataset(cfg, "val").name == "refcoco+"

    def test_results_of_mirrored_images_are_refused(self, cfg_path):
        cfg = load_config("refcoco", cfg_path, ["TEST.FLIP_PROB=0.5"])
        with pytest.raises(ConfigError, match=r"TEST\.FLIP_PROB = 0\.5: expected 0"):
            build_dataset(cfg, "test")

    def test_features_of_a_mode_that_has_none(self, cfg_path):
        cfg = load_config("refcoco", cfg_path, ["DATASET.TRAIN_BOXES=proposal+gt"])
        with pytest.raises(ConfigError, match=r"DATASET\.TRAIN_BOXES: box mode 'proposal\+gt' .* expected 'gt', or"):
            build_dataset(cfg, "train")

    def test_features_need_a_store(self, cfg_path):
        """no. 30: the original failed inside the model."""
        with pytest.raises(ConfigError, match="DATASET.REGION_PATH"):
            load_config("refcoco", cfg_path, {"DATASET.REGION_PATH": ""})

    @pytest.mark.parametrize("key", ["TRAIN_BOXES", "VAL_BOXES", "TEST_BOXES", "PROPOSAL_SOURCE", "DATASET"])
    def test_unknown_names(self, cfg_path, key):
        """no. 10"""
        with pytest.raises(ConfigError, match=f"DATASET.{key} = 'x': expected one of"):
            load_config("refcoco", cfg_path, [f"DATASET.{key}=x"])

    def test_padded_position_tables_hold_fewer_words(self, cfg_path):
        for padding, words in ((-1, 36), (1, 34)):
            keys = ["NETWORK.VLBERT.max_position_embeddings=40", f"NETWORK.VLBERT.position_padding_idx={padding}"]
            assert build_dataset(load_config("refcoco", cfg_path, keys), "val").max_expression == words


def test_the_small_world_can_be_read_in_every_mode(tmp_path):
    world = small_world(tmp_path)
    for mode in ("gt", "proposal", "proposal+gt"):
        for split in ("train", "val", "testA", "testB"):
            dataset = world.open(split, boxes=mode)
            positives = [dataset.sample(i, random.Random(0)).targets["label"].sum() for i in range(len(dataset))]
            assert all(p >= 1 for p in positives) or mode == "proposal"


def test_paths_are_those_of_the_layout(golden):
    dataset = golden.open(boxes="proposal")
    assert Path(dataset.image_path(42)) == golden.root / "train2014/COCO_train2014_000000000042.jpg"
