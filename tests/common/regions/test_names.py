"""One rule names images in region stores and box sources: every source and every program that lists or asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.detect.sources import build_source
from common.errors import BoxError, RegionError
from common.predict.user_images import UserImages
from common.regions.box_sources import ImageEntry
from common.regions.json_store import JsonRegions, save_regions
from common.regions.names import region_name, stored_name, unique_names
from common.regions.packed_store import pack
from common.regions.regions import Regions

NAMES = {
    "COCO_train2014_000000000009.jpg": "9",
    "COCO_test2015_000000581929.jpg": "581929",
    "000000000022.jpg": "22",
    "000000000000.jpg": "0",
    "kitchen.jpg": "kitchen",
    "cam1_0001.jpg": "cam1_0001",
    "holiday_1.png": "holiday_1",
    "v1.2 my photo.jpeg": "v1.2 my photo",
    "00000022.jpg": "00000022",  # of Conceptual Captions
    "lsmdc_1054_a.00.51@0.jpg": "lsmdc_1054_a.00.51@0",
    "my_COCO_train2014_000000000009.jpg": "my_COCO_train2014_000000000009",
}
TABLE = [
    "COCO_train2014_000000000009.jpg",
    "000000000022.jpg",
    "kitchen.jpg",
    "cam1_0001.jpg",
    "v1.2 my photo.jpeg",
]
SIZE = (64, 48)
BOX = [1.0, 2.0, 10.0, 21.0]
GRAY = Image.new("RGB", SIZE, (128, 128, 128))


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.parametrize("folder", ["", "train2014/", "/data/set.zip@/0001/"])
def test_the_rule(file: str, folder: str) -> None:
    assert region_name(folder + file) == region_name(Path(folder + file)) == NAMES[file]


def test_order_of_look_up() -> None:
    file = "train2014/COCO_train2014_000000000009.jpg"
    assert stored_name({"9", "COCO_train2014_000000000009", "x"}, file, "x") == "x"
    assert stored_name({"9", "COCO_train2014_000000000009"}, file, "x") == "9"
    assert stored_name({"COCO_train2014_000000000009"}, file) == "COCO_train2014_000000000009"
    assert stored_name(set(), file) == "9" and stored_name(set(), file, "x") == "x"
    assert stored_name({"1"}, "holiday_1.png") == "holiday_1"


def test_two_files_of_one_name() -> None:
    assert unique_names(["b/x.jpg", "b/x.jpg", "a.jpg"], "here") == {"x": "b/x.jpg", "a": "a.jpg"}
    with pytest.raises(RegionError, match=r"here: a/x\.jpg and b/x\.png both have the name 'x'.*rename one"):
        unique_names(["a/x.jpg", "b/x.png"], "here")
    with pytest.raises(RegionError, match=r"COCO_val2014_000000000009\.jpg and 000000000009\.jpg both have"):
        unique_names(["COCO_val2014_000000000009.jpg", "000000000009.jpg"], "here")


# Every source


def write_coco(root: Path, files: list[str]) -> str:
    images = [{"id": i, "file_name": f, "width": SIZE[0], "height": SIZE[1]} for i, f in enumerate(files)]
    annotations = [{"image_id": i, "bbox": [1 + i, 2, 10 - i, 20]} for i in range(len(files))]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return f"coco:{root}/coco.json"


def coco(root: Path, file: str) -> str:
    return write_coco(root, [file])


def coco_of_sub_folder(root: Path, file: str) -> str:
    """The file is given without the folder that the list has."""
    return write_coco(root, [f"images/{file}", f"other/{file}.png"])


def vcr(root: Path, file: str) -> str:
    (root / "images/metadata.json").write_text(json.dumps({"boxes": [[*BOX, 0.9]]}))
    (root / "vcr.jsonl").write_text(json.dumps({"img_fn": file, "metadata_fn": "metadata.json"}))
    return f"vcr:{root}/vcr.jsonl"


def json_by_name(root: Path, file: str) -> str:
    (root / "boxes.json").write_text(json.dumps({NAMES[file]: [BOX]}))
    return f"json:{root}/boxes.json"


def json_by_stem(root: Path, file: str) -> str:
    (root / "boxes.json").write_text(json.dumps({Path(file).stem: [BOX]}))
    return f"json:{root}/boxes.json"


def store(root: Path, name: str) -> str:
    save_regions(root / "store", name, Regions(torch.tensor([BOX]), width=SIZE[0], height=SIZE[1]))
    return f"regions:{root}/store"


def store_by_name(root: Path, file: str) -> str:
    return store(root, NAMES[file])


def store_by_stem(root: Path, file: str) -> str:
    return store(root, Path(file).stem)


def packed_by_stem(root: Path, file: str) -> str:
    store(root, Path(file).stem)
    pack(JsonRegions(root / "store"), root / "packed.packed")
    return f"regions:{root}/packed"


def grid(root: Path, file: str) -> str:
    return "grid:1x1"


def module(root: Path, file: str) -> str:
    return "module:data.scenes.regions"


SOURCES = [
    coco,
    coco_of_sub_folder,
    vcr,
    json_by_name,
    json_by_stem,
    store_by_name,
    store_by_stem,
    packed_by_stem,
    grid,
    module,
]
Spec = Callable[[Path, str], str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


@pytest.mark.parametrize("file", TABLE)
@pytest.mark.parametrize("spec", SOURCES, ids=lambda spec: spec.__name__)
def test_a_source_lists_and_finds_an_image(root: Path, spec: Spec, file: str) -> None:
    """As data.extract_features asks, and as a predictor asks."""
    GRAY.save(root / "images" / file)
    source = build_source(spec(root, file))
    want = [0, 0, 63, 47] if spec in (grid, module) else BOX
    folder = root if spec is coco_of_sub_folder else root / "images"
    entry = source.entries(str(folder))[0]
    assert (entry.name, entry.path) == (NAMES[file], f"{root}/images/{file}")
    assert source.boxes(entry, GRAY).boxes.tolist() == [want]
    images = UserImages(None, source)
    user = images.open(root / "images" / file)
    assert user.name == NAMES[file] and images.regions(user).boxes.tolist() == [want]


@pytest.mark.parametrize("spec", [s for s in SOURCES if s not in (grid, module)], ids=lambda spec: spec.__name__)
def test_an_image_of_another_name_has_no_boxes(root: Path, spec: Spec) -> None:
    """Neither those of an image whose name ends in the same number, nor the whole image."""
    source = build_source(spec(root, "cam1_0001.jpg"))
    for file in ("cam2_0001.jpg", "1.jpg", "COCO_train2014_000000000001.jpg"):
        GRAY.save(root / "images" / file)
        images = UserImages(None, source)
        with pytest.raises(BoxError, match=r"does not list|has no boxes of|\.json|no regions of"):
            images.regions(images.open(root / "images" / file))


@pytest.mark.parametrize("spec", ["grid:2x2", "json", "regions"])
def test_a_folder_with_two_images_of_one_name(root: Path, spec: str) -> None:
    for file in ("a.jpg", "a.png"):
        GRAY.save(root / "images" / file)
    made = {"json": json_by_name, "regions": store_by_name}
    source = build_source(made[spec](root, "kitchen.jpg") if spec in made else spec)
    with pytest.raises(RegionError, match=r"images: a\.jpg and a\.png both have the name 'a'"):
        source.entries(str(root / "images"))


def test_a_coco_file_with_two_images_of_one_name(root: Path) -> None:
    """They cannot be stored. Boxes are found by the folder that the list has."""
    source = build_source(write_coco(root, ["a/x.jpg", "b/x.jpg"]))
    with pytest.raises(RegionError, match=r"coco\.json: a/x\.jpg and b/x\.jpg both have the name 'x'"):
        source.entries(str(root))
    for folder, left in (("a", 1), ("b", 2)):
        assert source.boxes(ImageEntry("x", f"/data/{folder}/x.jpg"), GRAY).boxes[0, 0] == left
    with pytest.raises(RegionError, match=r"lists a/x\.jpg and b/x\.jpg, and either may be /data/x\.jpg"):
        source.boxes(ImageEntry("x", "/data/x.jpg"), GRAY)


def test_images_with_the_same_number_keep_their_own_boxes(root: Path) -> None:
    source = build_source(write_coco(root, ["cam1_0001.jpg", "cam2_0001.jpg"]))
    entries = source.entries("images")
    assert [e.name for e in entries] == ["cam1_0001", "cam2_0001"]
    assert [source.boxes(e, GRAY).boxes[0, 0].item() for e in entries] == [1, 2]


def test_a_listed_image_has_the_size_of_the_list(root: Path) -> None:
    images = UserImages(None, build_source(coco(root, "kitchen.jpg")))
    Image.new("RGB", (48, 64)).save(root / "images/kitchen.jpg")
    with pytest.raises(BoxError, match=r"kitchen\.jpg is \(48, 64\), its annotation says \(64, 48\)"):
        images.regions(images.open(root / "images/kitchen.jpg"))


def test_an_annotation_thinner_than_a_pixel_is_a_box(root: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [{"image_id": 1, "bbox": [5, 6, 0.25, 10]}],
    }
    (root / "coco.json").write_text(json.dumps(content))
    GRAY.save(root / "images/a.jpg")
    images = UserImages(None, build_source(f"coco:{root}/coco.json"))
    assert images.regions(images.open(root / "images/a.jpg")).boxes.tolist() == [[5, 6, 5, 15]]


def test_pixels_have_no_file_name(root: Path) -> None:
    for spec in (coco, json_by_name, store_by_name):
        images = UserImages(None, build_source(spec(root, "kitchen.jpg")))
        with pytest.raises(BoxError, match=r"does not list image|has no boxes of|\.json"):
            images.regions(images.open(GRAY))
