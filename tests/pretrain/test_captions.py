from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from common.regions.json_store import JsonRegions, save_regions
from common.regions.packed_store import pack
from common.regions.regions import Regions
from pretrain.captions import MANY, COCOCaptions, ConceptualCaptions
from tests.pretrain.world import CLASSES, caption_settings, write_coco, write_world

CAPTION = ["a", "red", "box", "near", "the", "blue", "boxs", "."]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A world to change."""
    return write_world(tmp_path / "world", train=3, val=1)


def captions(root: Path, split: str = "train", zip_mode: bool = False, region_path=None, **changes):
    return ConceptualCaptions(root, split, caption_settings(root, **changes), region_path, zip_mode)


def seed_with(dataset, index: int, found) -> int:
    """A seed whose sample has what is looked for."""
    return next(s for s in range(300) if found(dataset.sample(index, random.Random(s))))


class TestSamples:
    def test_text_is_framed_and_labels_put_back_give_the_caption(self, world):
        dataset = captions(world)
        words = dataset.caption(0).split()
        expected = [101, *dataset.settings.tokenizer.ids(dataset.settings.tokenizer.tokenize(" ".join(words))), 102]
        for seed in range(20):
            sample = dataset.sample(0, random.Random(seed))
            labels = sample.targets["mlm_labels"].tolist()
            ids = sample.text_ids.tolist()
            assert [i if label == -1 else label for i, label in zip(ids, labels, strict=True)] == expected
            assert labels[0] == labels[-1] == -1

    def test_boxes_are_sorted_by_their_highest_score(self, own):
        """Of the background too (original 5.3); the whole image comes first."""
        scores = torch.tensor([[0.3, 0.4, 0.3], [0.9, 0.1, 0.0], [0.0, 0.3, 0.7]])
        boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [1, 2, 3, 4]])
        features = torch.arange(3.0)[:, None].expand(3, 2048).contiguous()
        attributes = torch.eye(3)
        save_regions(own / "train_frcnn", "00000000", Regions(boxes, features, None, scores, 96, 48, attributes))
        dataset = captions(own, num_classes=3)
        assert dataset.regions(0).features[:, 0].tolist() == [1, 2, 0]
        assert dataset.regions(0).attribute_scores.argmax(1).tolist() == [1, 2, 0]
        sample = dataset.sample(0, random.Random(seed_with(dataset, 0, lambda s: not s.targets["mvrc_mask"].any())))
        assert sample.im_info.tolist() == pytest.approx([80, 40, 80 / 96, 40 / 48])
        assert sample.boxes[0].tolist() == [0, 0, 79, 39]
        torch.testing.assert_close(sample.boxes[1], torch.tensor([5.0, 5, 20, 20]) * (80 / 96))
        assert sample.features[:, 0].tolist() == pytest.approx([1, 1, 2, 0], abs=1e-4)

    def test_hidden_regions(self, world):
        """Labels are the whole distribution; the image's feature is of what is not hidden."""
        dataset = captions(world)
        seed = seed_with(dataset, 1, lambda s: s.targets["mvrc_ops"].sum() == 2)
        sample, regions = dataset.sample(1, random.Random(seed)), dataset.regions(1)
        ops, wanted, labels = (sample.targets[f"mvrc_{name}"] for name in ("ops", "mask", "labels"))
        assert not wanted[0] and (wanted >= ops.bool()).all() and labels.shape == (wanted.sum(), CLASSES)
        assert torch.equal(labels, regions.class_scores[wanted[1:]])
        visible = regions.features[ops[1:] == 0]
        torch.testing.assert_close(sample.features[0], visible.mean(0), rtol=1e-4, atol=1e-4)
        assert torch.equal(sample.features[1:], regions.features)  # the module puts its mask there

    def test_hidden_pixels(self, world):
        dataset = captions(world, precomputed=False)
        seed = seed_with(dataset, 0, lambda s: s.targets["mvrc_ops"].sum() == 1)
        sample = dataset.sample(0, random.Random(seed))
        (x1, y1, x2, y2) = sample.boxes[sample.targets["mvrc_ops"] == 1][0].int().tolist()
        assert sample.features is None and not sample.image[:, y1 : y2 + 1, x1 : x2 + 1].any()
        assert sample.image.abs().sum() > 0
        kept = captions(world, precomputed=False, mask_raw_pixels=False).sample(0, random.Random(seed))
        assert kept.image[:, y1 : y2 + 1, x1 : x2 + 1].any() and torch.equal(kept.boxes, sample.boxes)

    def test_length(self, world):
        """Text and regions together; the last token and the first boxes stay."""
        dataset = captions(world, seq_len=9)
        sample = dataset.sample(0, random.Random(2))
        assert len(sample.text_ids) + len(sample.boxes) == 9
        assert sample.text_ids[0] == 101 and sample.text_ids[-1] == 102
        assert len(sample.targets["mlm_labels"]) == len(sample.text_ids)
        assert len(sample.targets["mvrc_ops"]) == len(sample.targets["mvrc_mask"]) == len(sample.boxes)
        assert len(sample.targets["mvrc_labels"]) == sample.targets["mvrc_mask"].sum()
        whole = captions(world).sample(0, random.Random(2))
        assert torch.equal(sample.boxes, whole.boxes[: len(sample.boxes)])

    def test_relationship(self, world):
        dataset = captions(world, with_relationship=True, with_mlm=False)
        labels = []
        for seed in range(40):
            sample = dataset.sample(0, random.Random(seed))
            labels.append(int(sample.targets["relationship_label"]))
            own = sample.text_ids.tolist() == dataset._text(dataset.caption(0), random.Random(0))[0]
            assert own or not labels[-1]
        assert 10 < sum(labels) < 30
        assert all(captions(world).sample(0, random.Random(s)).targets["relationship_label"] == 1 for s in range(9))

    def test_flip_moves_boxes(self, world):
        plain, flipped = (captions(world, flip=p, with_mvrc=False).sample(0, random.Random(0)) for p in (0.0, 1.0))
        width = float(plain.im_info[0])
        torch.testing.assert_close(
            flipped.boxes[:, [2, 1, 0, 3]],
            plain.boxes * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width - 1, 0, width - 1, 0]),
        )


class TestFiles:
    def test_a_packed_store_or_an_archive_gives_the_same(self, own, tmp_path):
        want = captions(own).sample(1, random.Random(0))
        pack(JsonRegions(own / "train_frcnn"), own / "train_frcnn.packed")
        shutil.move(own / "train_frcnn", tmp_path / "elsewhere")
        packed = captions(own).sample(1, random.Random(0))
        assert torch.equal(packed.features.read(), want.features)
        (own / "train_frcnn.packed").rename(tmp_path / "mine.packed")
        named = captions(own, region_path=str(tmp_path / "mine.packed")).sample(1, random.Random(0))
        assert torch.equal(named.features.read(), want.features)
        shutil.make_archive(str(own / "train_frcnn"), "zip", tmp_path / "elsewhere")
        shutil.make_archive(str(own / "train_image"), "zip", own / "train_image")
        shutil.rmtree(own / "train_image")
        zipped = captions(own, zip_mode=True, precomputed=False).sample(1, random.Random(0))
        assert torch.equal(zipped.boxes, want.boxes) and zipped.image.any()

    def test_a_store_that_names_images_of_coco_by_their_id(self, own):
        """The annotations name a region file by the stem; data.extract_features writes the image id."""
        want = captions(own).regions(1)
        path, folder = own / "train_frcnn.json", own / "train_frcnn"
        path.write_text(path.read_text().replace("00000001", "COCO_train2014_000000000022"))
        (folder / "00000001.json").rename(folder / "22.json")
        assert torch.equal(captions(own).regions(1).boxes, want.boxes)
        assert torch.equal(captions(own, region_path=str(folder)).regions(1).boxes, want.boxes)
        with pytest.raises(FileNotFoundError, match=r"COCO_train2014_000000000022\.json"):
            (folder / "22.json").unlink()
            captions(own).regions(1)

    def test_parts_of_an_archive_are_one_folder(self, own):
        """Only at the end of the archive's name (original 5.5)."""
        path = own / "train_frcnn.json"
        path.write_text(path.read_text().replace("train_frcnn.zip@/", "train_frcnn.2.zip@/"))
        assert len(captions(own).regions(0).boxes) >= 3

    def test_captions_as_text_and_paths_without_archives(self, own):
        row = {"image": "train_image/00000001.jpg", "caption": "the red box", "frcnn": "train_frcnn/00000001.json"}
        (own / "train_frcnn.json").write_text(json.dumps(row))
        dataset = captions(own, precomputed=False)
        assert dataset.caption(0) == "the red box" and dataset.image(0) is not None
        assert len(dataset.regions(0).boxes) >= 3

    def test_a_image_that_cannot_be_read_becomes_zeros(self, own, caplog):
        (own / "train_image/00000000.jpg").write_bytes(b"no image")
        (own / "train_image/00000001.jpg").unlink()
        dataset = captions(own, precomputed=False)
        for i in range(2):
            sample = dataset.sample(i, random.Random(0))
            width, height = sample.im_info[:2].int().tolist()
            assert sample.image.shape == (3, height, width) and not sample.image.any()
        assert "00000000.jpg" in caplog.text and "2 so far" in caplog.text
        assert dataset.sample(2, random.Random(0)).image.any()

    def test_no_image_at_all(self, own):
        shutil.rmtree(own / "train_image")
        dataset = captions(own, precomputed=False)
        with pytest.raises(DataError, match=f"none of the first {MANY} images.*train_image"):
            for _ in range(MANY):
                dataset.sample(0, random.Random(0))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2: not valid JSON"),
            ("[1]", "line 2: expected an object"),
            ('{"image": "x", "frcnn": "y"}', "line 2: no caption"),
            ('{"image": "x", "frcnn": "y", "caption": {}}', "line 2: caption must be a text or a list of words"),
            ('{"image": "x", "frcnn": "y", "caption": []}', "line 2: caption must be a text or a list of words"),
            ('{"image": "x", "frcnn": "y", "caption": [1]}', "line 2: caption must be a text or a list of words"),
            ('{"image": "x", "frcnn": null, "caption": "a"}', "line 2: image and frcnn must be texts"),
        ],
    )
    def test_damaged_lines(self, own, line, message):
        path = own / "train_frcnn.json"
        first, *_ = path.read_text().splitlines()
        path.write_text(f"{first}\n\n{line}\n")
        with pytest.raises(DataError, match=f"train_frcnn.json: {message}"):
            captions(own).sample(1, random.Random(0))

    def test_what_is_missing(self, own):
        with pytest.raises(FileNotFoundError, match="test_frcnn.json"):
            captions(own, "test")
        shutil.move(own / "train_frcnn", own / "other")
        with pytest.raises(FileNotFoundError, match="train_frcnn"):
            captions(own)

    def test_regions_that_do_not_serve(self, own):
        with pytest.raises(DataError, match=r"7 classes.*visual_region_classes is 9"):
            captions(own, num_classes=9).sample(0, random.Random(0))
        regions = JsonRegions(own / "train_frcnn").regions("00000000")
        save_regions(own / "train_frcnn", "00000000", Regions(regions.boxes, width=48, height=48))
        with pytest.raises(DataError, match=r"00000000 has no features.*IMAGE_FEAT_PRECOMPUTED"):
            captions(own).sample(0, random.Random(0))
        with pytest.raises(DataError, match=r"no classes.*WITH_MVRC_LOSS false"):
            captions(own, precomputed=False).sample(0, random.Random(0))
        sample = captions(own, precomputed=False, with_mvrc=False).sample(0, random.Random(0))
        assert sample.targets["mvrc_labels"].shape == (0, CLASSES)


class TestCOCO:
    @pytest.fixture
    def coco(self, own: Path) -> Path:
        return write_coco(own)

    def dataset(self, root: Path, **changes) -> COCOCaptions:
        settings = {"precomputed": False, "num_classes": 3} | changes
        return COCOCaptions(root, "val", caption_settings(root, **settings))

    def test_images_with_instances_in_the_order_of_their_ids(self, coco):
        dataset = self.dataset(coco)
        assert dataset.ids == [3, 5, 7] and dataset.caption(2) == "w7 the box"
        regions = dataset.regions(2)
        assert regions.boxes.tolist() == [[1, 2, 10, 21], [5, 5, 5, 12]]
        assert regions.class_scores.tolist() == [[0, 0, 1], [0, 1, 0]]

    def test_a_long_sample_keeps_its_last_token(self, coco):
        sample = self.dataset(coco, seq_len=20, with_mlm=False).sample(1, random.Random(0))
        assert sample.text_ids.tolist()[-1] == 102 and len(sample.text_ids) + len(sample.boxes) == 20

    def test_what_it_cannot_serve(self, coco):
        with pytest.raises(DataError, match="IMAGE_FEAT_PRECOMPUTED"):
            self.dataset(coco, precomputed=True)
        with pytest.raises(DataError, match="WITH_REL_LOSS"):
            self.dataset(coco, with_relationship=True)
        with pytest.raises(DataError, match=r"3 classes.*1601.*WITH_MVRC_LOSS false"):
            self.dataset(coco, num_classes=1601)
        self.dataset(coco, num_classes=1601, with_mvrc=False)
        (coco / "annotations/captions_val2017.json").write_text('{"annotations": []}')
        with pytest.raises(DataError, match="no caption of image 3"):
            self.dataset(coco)
