"""Images of users: opened from any form, with features computed once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import BoxError, ImageError
from common.predict.user_images import ModuleFeatureExtractor, UserImages, check_boxes
from common.regions.box_sources import GridBoxes, StoredBoxes
from common.regions.json_store import JsonRegions, save_regions
from common.regions.regions import Regions
from data.scenes import regions as scene_regions


class Counting:
    """Features that tell the box they are of."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []

    def __call__(self, images, boxes, masks=None, blanked=None):
        self.asked += boxes[0].tolist()
        extra = 0.0 if blanked is None else float(len(blanked[0]))
        return [boxes[0].repeat(1, 512) + extra]


def noise(width: int = 30, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


class TestOpen:
    def test_path_bytes_image_and_array_are_the_same_image(self, tmp_path):
        image = noise()
        image.save(tmp_path / "a.png")
        ways = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image, format="PNG"), image, np.asarray(image)]
        for way in ways:
            assert np.array_equal(np.asarray(UserImages(None).open(way).pixels), np.asarray(image))

    def test_turned_by_its_orientation_unless_boxes_are_of_the_stored_pixels(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encoded(noise(), format="JPEG", exif=exif)
        assert UserImages(None).open(data).pixels.size == (20, 30)
        assert UserImages(None, StoredBoxes(JsonRegions(tmp_path))).open(data).pixels.size == (30, 20)

    def test_equal_numbers_in_another_mode_or_palette_are_another_image(self):
        images = UserImages(None)
        plain = Image.fromarray(np.full((12, 12), 3, np.uint8))
        red, green = (Image.frombytes("P", plain.size, plain.tobytes()) for _ in range(2))
        red.putpalette([200, 0, 0] * 256)
        green.putpalette([0, 200, 0] * 256)
        found = [images.open(image).pixels.getpixel((0, 0)) for image in (plain, red, green)]
        assert found == [(3, 3, 3), (200, 0, 0), (0, 200, 0)]

    def test_a_changed_file_is_another_image(self, tmp_path):
        images = UserImages(None)
        noise().save(tmp_path / "a.png")
        assert images.open(tmp_path / "a.png") is images.open(tmp_path / "a.png")
        noise(8, 9).save(tmp_path / "a.png")
        assert images.open(tmp_path / "a.png").pixels.size == (8, 9)

    def test_an_animation_gives_its_first_frame(self):
        frames = [Image.new("P", (4, 4), i) for i in range(3)]
        data = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
        assert UserImages(None).open(data).pixels.size == (4, 4)

    def test_a_folder_is_no_image(self, tmp_path):
        with pytest.raises(ImageError, match="directory"):
            UserImages(None).open(tmp_path)

    @pytest.mark.parametrize("bad", [b"", b"no image", encoded(noise(), format="PNG")[:200], 7, np.zeros((3, 4, 2))])
    def test_what_is_no_image_is_named(self, bad):
        with pytest.raises(ImageError, match="unreadable image|is no image|expected uint8"):
            UserImages(None).open(bad)


class TestFeatures:
    def test_those_of_a_box_are_computed_once(self):
        images, boxes = UserImages(count := Counting()), torch.tensor([[0.0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 8, 8]])
        image = images.open(noise())
        first = images.region_features(image, boxes)
        assert torch.equal(images.region_features(image, boxes[[2, 0]]), first[[2, 0]])  # a box was deleted
        assert len(count.asked) == 3
        images.region_features(images.open(noise()), torch.tensor([[0.0, 0, 5, 5], [3, 3, 4, 4]]))  # the same pixels
        assert count.asked[3:] == [[3, 3, 4, 4]] and images.num_extracted == 4

    def test_outlines_and_blanked_boxes_make_another_feature(self):
        images, boxes = UserImages(count := Counting()), torch.tensor([[0.0, 0, 5, 5]])
        image = images.open(noise())
        plain = images.region_features(image, boxes)
        assert not torch.equal(images.region_features(image, boxes, blanked=boxes), plain)
        images.region_features(image, boxes, masks=torch.ones(1, 2, 2))
        assert len(count.asked) == 3

    def test_memory_is_bounded_and_the_newest_stays(self):
        images = UserImages(Counting(), limit=3 * 30 * 20 + 10)
        first, second = encoded(noise(), format="PNG"), encoded(noise(29, 20), format="PNG")
        kept = images.open(first)
        assert images.open(first) is kept
        images.open(second)
        assert images.open(first) is not kept

    def test_what_is_forgotten_is_computed_again(self):
        images, boxes = UserImages(count := Counting()), torch.tensor([[0.0, 0, 5, 5]])
        images.region_features(images.open(noise()), boxes)
        images.forget()
        images.region_features(images.open(noise()), boxes)
        assert len(count.asked) == 2 and images.num_extracted == 2

    def test_no_box_has_no_feature(self):
        images = UserImages(None)
        assert images.region_features(images.open(noise()), torch.zeros(0, 4)).shape == (0, 2048)

    def test_stored_features_need_no_network(self, tmp_path):
        boxes, features = torch.tensor([[1.0, 2, 8, 9], [3, 3, 12, 14]]), torch.rand(2, 2048)
        save_regions(tmp_path / "store", "12", Regions(boxes, features, torch.ones(2048), None, 30, 20))
        noise().save(tmp_path / "COCO_val2014_000000000012.png")
        images = UserImages(None, StoredBoxes(JsonRegions(tmp_path / "store"), with_features=True))
        image = images.open(tmp_path / "COCO_val2014_000000000012.png")
        assert torch.equal(images.regions(image).boxes, boxes)
        assert torch.equal(images.region_features(image, boxes[1:]), features[1:])
        assert torch.equal(images.stored_whole_feature(image, boxes), torch.ones(2048))


class TestLabels:
    BOXES = torch.tensor([[1.0, 2, 8, 9], [3.3, 3, 12, 14], [1, 2, 8, 9]])

    @pytest.fixture
    def images(self, tmp_path) -> UserImages:
        scores = torch.zeros(3, 91)
        scores[0, 18], scores[1, 1], scores[2, 17] = 0.75, 0.5, 0.25
        save_regions(tmp_path / "store", "a", Regions(self.BOXES, class_scores=scores))
        noise().save(tmp_path / "a.png")
        return UserImages(None, StoredBoxes(JsonRegions(tmp_path / "store")))

    def test_only_boxes_of_the_source_have_one(self, images, tmp_path):
        image = images.open(tmp_path / "a.png")
        assert images.labels(image, self.BOXES) == ["", "", ""]  # the source was not asked yet
        found = images.regions(image).boxes
        given = torch.tensor([*found[[1, 0]].tolist(), [1.0, 2, 8, 10]])
        assert images.labels(image, given) == ["person 0.50", "dog 0.75", ""]

    def test_equal_boxes_have_the_label_of_the_first(self, images, tmp_path):
        image = images.open(tmp_path / "a.png")
        assert images.labels(image, images.regions(image).boxes) == ["dog 0.75", "person 0.50", "dog 0.75"]


class TestBoxes:
    def test_of_the_source_only_where_none_are_given(self):
        images = UserImages(None, GridBoxes(2, 2))
        image = images.open(noise())
        assert len(images.regions(image).boxes) == 4
        assert images.regions(image, [[1, 2, 3, 4]]).boxes.tolist() == [[1, 2, 3, 4]]
        assert images.regions(image, []).boxes.shape == (0, 4)

    def test_without_a_source_they_must_be_given(self):
        images = UserImages(None)
        with pytest.raises(BoxError, match="no boxes given.*grid:4x4"):
            images.regions(images.open(noise()))

    @pytest.mark.parametrize(
        ("boxes", "message"),
        [
            ([[1, 2, 3]], r"rows of \[x1, y1, x2, y2\]"),
            ("abc", "expected a list"),
            ([[5, 5, 1, 9]], r"boxes\[0\].*x1 <= x2"),
            ([[0, 0, 1, float("nan")]], r"boxes\[0\]"),
            ([[0, 0, 1, 1], [100, 0, 120, 9]], r"boxes\[1\].*outside of the image of 30 x 20"),
            ([[0, 0, 1, 1]] * 1001, "up to 1000"),
        ],
    )
    def test_what_is_no_box_is_named(self, boxes, message):
        with pytest.raises(BoxError, match=message):
            check_boxes(boxes, (30, 20))


def test_a_module_as_extractor():
    extract = ModuleFeatureExtractor("data.scene_regions")
    boxes = torch.tensor([[2.0, 2, 20, 18]])
    expected = scene_regions.region_features(noise(), boxes.numpy())
    assert np.array_equal(extract([noise()], [boxes])[0].numpy(), expected)
    with pytest.raises(ValueError, match="module:data.nothing"):
        ModuleFeatureExtractor("data.nothing")


def test_boxes_are_found_in_flat_images(tmp_path: Path):
    image = Image.new("RGB", (200, 100), (230, 230, 220))
    for color, (x1, y1, x2, y2) in {"red": (20, 30, 50, 60), "blue": (120, 10, 160, 80)}.items():
        image.paste(color, (x1, y1, x2, y2))
    assert scene_regions.find_boxes(image).tolist() == [[20, 30, 50, 60], [120, 10, 160, 80]]
    large = image.resize((2000, 1000), Image.Resampling.NEAREST)
    assert np.abs(scene_regions.find_boxes(large) - 10 * scene_regions.find_boxes(image)).max() < 10
    assert scene_regions.find_boxes(Image.new("RGB", (30, 20))).tolist() == [[0, 0, 29, 19]]
