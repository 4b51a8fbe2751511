"""Public forms of region features become a packed store, image by image."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import RegionError
from common.regions.json_store import save_regions
from common.regions.packed_store import PackedRegions
from common.regions.regions import FEATURE_DIM, Regions
from data.extract_features import main
from data.regions.pack import pack_public
from data.regions.public import open_public
from tests.data.regions.tsv import attention_row, lines, lxmert_row, text

SIZE = (64, 48)


def regions(count: int = 2, seed: int = 0) -> Regions:
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=draw) * 20
    boxes = torch.cat([corner, corner + 10], dim=1)
    return Regions(boxes, torch.rand(count, FEATURE_DIM, generator=draw), width=64, height=48)


def assert_stored(store: PackedRegions, name: str, wanted: Regions, atol: float = 0) -> None:
    got = store.regions(name).in_memory()
    assert torch.equal(got.boxes, wanted.boxes) and (got.width, got.height) == (wanted.width, wanted.height)
    torch.testing.assert_close(got.features, wanted.features, atol=atol, rtol=0)


def packed(path: Path) -> PackedRegions:
    public = open_public(path)
    assert public is not None
    pack_public(public, path.parent / "out.packed")
    return PackedRegions(path.parent / "out.packed")


class TestTsv:
    @pytest.mark.parametrize("row", [attention_row, lxmert_row])
    def test_a_file(self, tmp_path: Path, row: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        wanted = {"42": regions(3), "581": regions(1, seed=1), "9": regions(2, seed=2)}
        ids = {"42": "COCO_val2014_000000000042", "581": "000000000581", "9": "9"}
        order = ["9", "42", "581"]  # not the order of the names
        (tmp_path / "a.tsv").write_text(lines(*(row(ids[name], wanted[name]) for name in order)))
        out = tmp_path / "a.packed"
        assert main(["--pack", str(tmp_path / "a.tsv"), "--out", str(out)]) == 0
        summary = capsys.readouterr().out
        assert f"{out}: 3 images, 6 boxes, float32, 0 duplicates skipped" in summary
        assert "no class scores" in summary
        store = PackedRegions(out)
        assert store.names() == sorted(wanted)
        for name, one in wanted.items():
            assert_stored(store, name, one)
        assert store.regions("9").class_scores is None
        assert main(["--check", str(out)]) == 0
        assert "3 images checked, 0 problems" in capsys.readouterr().out

    def test_float16(self, tmp_path: Path) -> None:
        (tmp_path / "a.tsv").write_text(lines(attention_row("b", regions())))
        out = tmp_path / "a.packed"
        assert main(["--pack", str(tmp_path / "a.tsv"), "--out", str(out), "--dtype", "float16"]) == 0
        assert_stored(PackedRegions(out), "b", regions(), atol=2**-11)

    def test_parts_in_a_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "parts"
        folder.mkdir()
        names = ["x.tsv", "y.tsv.0", "y.tsv.10"]
        for seed, name in enumerate(names):
            (folder / name).write_text(lines(attention_row(f"image {seed}", regions(seed=seed))))
        (folder / "README.txt").write_text("not a part")
        store = packed(folder)
        assert store.names() == ["image 0", "image 1", "image 2"]
        for seed in range(3):
            assert_stored(store, f"image {seed}", regions(seed=seed))

    def test_a_complete_last_line_needs_no_line_end(self, tmp_path: Path) -> None:
        content = lines(attention_row("a", regions()), attention_row("b", regions(seed=1)))
        (tmp_path / "a.tsv").write_text(content.removesuffix("\n"))
        assert_stored(packed(tmp_path / "a.tsv"), "b", regions(seed=1))

    def test_line_ends_of_windows_and_empty_lines(self, tmp_path: Path) -> None:
        content = lines(attention_row("a", regions())) + "\n" + lines(attention_row("b", regions(seed=1))) + "\n"
        (tmp_path / "a.tsv").write_bytes(content.replace("\n", "\r\n").encode())
        store = packed(tmp_path / "a.tsv")
        assert_stored(store, "a", regions())
        assert_stored(store, "b", regions(seed=1))

    def test_boxes_are_clipped_within_a_pixel_of_the_image(self, tmp_path: Path) -> None:
        one = regions(1)
        one.boxes = torch.tensor([[-0.5, 3, 64.9, 48.2]])
        (tmp_path / "a.tsv").write_text(lines(attention_row("a", one)))
        assert packed(tmp_path / "a.tsv").regions("a").boxes.tolist() == [[0, 3, 64, 48]]
        assert main(["--check", str(tmp_path / "out.packed")]) == 0

    def test_an_equal_duplicate_is_skipped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "parts"
        folder.mkdir()
        (folder / "a.tsv").write_text(lines(*(attention_row("7", regions()) for _ in range(2))))
        (folder / "b.tsv").write_text(lines(attention_row("7", regions()), attention_row("8", regions())))
        assert main(["--pack", str(folder), "--out", str(tmp_path / "a.packed")]) == 0
        assert "2 images, 4 boxes, float32, 2 duplicates skipped" in capsys.readouterr().out

    def test_another_duplicate_is_refused_with_both_lines(self, tmp_path: Path) -> None:
        folder = tmp_path / "parts"
        folder.mkdir()
        (folder / "a.tsv").write_text(lines(attention_row("5", regions()), attention_row("7", regions())))
        (folder / "b.tsv").write_text(lines(attention_row("COCO_val2014_000000000007", regions(seed=1))))
        with pytest.raises(RegionError, match=r"b\.tsv, line 1: image 7 again, .* than .*a\.tsv, line 2;"):
            packed(folder)

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        count, features = 5000, text(np.random.default_rng(0).random((1, FEATURE_DIM)))
        boxes = text(np.array([[0, 1, 20, 30]]))
        with (tmp_path / "a.tsv").open("w") as file:
            for number in range(count):
                file.write(f"{count - number}\t64\t48\t1\t{boxes}\t{features}\n")
        public = open_public(tmp_path / "a.tsv")
        assert public is not None
        tracemalloc.start()
        pack_public(public, tmp_path / "a.packed")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        store = PackedRegions(tmp_path / "a.packed")
        assert store.meta["count"] == count and store.regions(1).boxes.tolist() == [[0, 1, 20, 30]]
        assert public.bytes_read == public.total_bytes > 50e6
        assert peak < 8e6


def changed(column: int, value: str) -> Callable[[list[str]], str]:
    return lambda row: lines([*row[:column], value, *row[column + 1 :]])


def boxes(*rows: list[float]) -> Callable[[list[str]], str]:
    return changed(4, text(np.array(rows)))


ONE = [1.0, 2, 20, 30]
WITHOUT_END = r" \(it has no line end; is the file cut off\?\)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda row: lines(row)[:-2000], WITHOUT_END + ": features"),
        (lambda row: lines(row[:5]).rstrip("\n"), WITHOUT_END + ": 5 columns, expected 6"),
        (lambda row: lines(row[:5]), ": 5 columns, expected 6 .* or 10"),
        (lambda row: lines([*row, ""]), ": 7 columns"),
        (lambda row: "some text\n", ": 1 columns"),
        (changed(0, ""), ": no image id"),
        (changed(0, "../../a"), ": no image id in the first column, got b'../../a'"),
        (changed(4, "AAAAA"), ": boxes: no base64 text of 5 characters"),
        (changed(4, "AAAA"), ": boxes has 3 bytes, num_boxes 2 means 2 x 4 float32 = 32 bytes"),
        (changed(3, "3"), ": boxes has 32 bytes, num_boxes 3 means 3 x 4 float32 = 48 bytes"),
        (changed(5, text(np.zeros((2, 1024)))), ": features has 8192 bytes, num_boxes 2 means 2 x 2048"),
        (changed(5, text(np.full((2, 2048), np.nan))), ": features has 4096 values that are not finite"),
        (boxes([np.inf, 0, 1, 1], ONE), ": boxes has 1 values that are not finite"),
        (boxes([0, 0, 65.5, 40], ONE), r": boxes from .* to \[65\.5, 40\.0\] lie outside of the image of 64 x 48"),
        (boxes([0, -2, 6, 40], ONE), ": boxes .* lie outside"),
        (boxes([0, 0, 0.5, 0.7], [0, 0.1, 1, 1]), ": boxes within 0 and 1 of an image of 64 x 48; expected pixels"),
        (boxes([10, 10, 5, 20], ONE), ": a box ends before it starts"),
        (changed(1, "0"), ": image width must be a positive integer, got '0'"),
        (changed(2, "-48"), ": image height must be a positive integer, got '-48'"),
        (changed(1, "64.5"), ": image width must be a positive integer, got '64.5'"),
        (changed(3, "num_boxes"), ": num_boxes must be a positive integer, got 'num_boxes'"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named_and_leaves_no_store(tmp_path, capsys, damage, message) -> None:
    good, row = attention_row("1", regions()), attention_row("2", regions(seed=1))
    (tmp_path / "a.tsv").write_text(lines(good) + damage(row))
    assert main(["--pack", str(tmp_path / "a.tsv"), "--out", str(tmp_path / "a.packed")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(RegionError, match=rf"a\.tsv, line 2{message}"):
        raise RegionError(error)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


def test_an_interrupted_pack_leaves_no_store(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(lines(attention_row("1", regions()), attention_row("2", regions())))
    public = open_public(tmp_path / "a.tsv")
    assert public is not None

    class Interrupted(type(public)):  # type: ignore[misc]
        def __iter__(self):
            yield next(super().__iter__())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_public(Interrupted(public.files), tmp_path / "a.packed")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


class TestNpz:
    def attention(self, folder: Path, name: str, one: Regions, **changes: object) -> None:
        folder.mkdir(exist_ok=True)
        arrays: dict = {"x": one.features.numpy(), "bbox": one.boxes.numpy(), "num_bbox": len(one.boxes)}  # type: ignore[union-attr]
        arrays |= {"image_w": one.width, "image_h": one.height, "info": np.array({"cls": [1]}, dtype=object)}
        np.savez_compressed(folder / f"{name}.npz", **(arrays | changes))

    def uniter(self, folder: Path, name: str, one: Regions, **more: np.ndarray) -> None:
        folder.mkdir(exist_ok=True)
        width, height = SIZE
        xyxy = one.boxes.numpy() / np.array([width, height, width, height], dtype=np.float32)
        sides = xyxy[:, 2:] - xyxy[:, :2]
        norm = np.concatenate([xyxy, sides, sides.prod(1, keepdims=True)], axis=1)
        confidence = np.full(len(norm), 0.5, dtype=np.float16)
        np.savez(folder / f"{name}.npz", features=one.features.numpy(), norm_bb=norm, conf=confidence, **more)  # type: ignore[union-attr]

    def images(self, tmp_path: Path) -> Path:
        (tmp_path / "images").mkdir()
        for name in ("COCO_val2014_000000000042", "b"):
            Image.new("RGB", SIZE).save(tmp_path / "images" / f"{name}.jpg")
        return tmp_path / "images"

    def test_bottom_up_attention_pytorch(self, tmp_path: Path) -> None:
        self.attention(tmp_path / "npz", "COCO_val2014_000000000042", regions())
        self.attention(tmp_path / "npz", "b", regions(3, seed=1))
        store = packed(tmp_path / "npz")
        assert store.names() == ["42", "b"]
        assert_stored(store, "42", regions())
        assert_stored(store, "b", regions(3, seed=1))

    def test_uniter_takes_the_sizes_of_the_images(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        labels = np.zeros((2, 1601), dtype=np.float32)
        labels[:, 5] = 1
        self.uniter(tmp_path / "npz", "coco_val2014_000000000042", regions(), soft_labels=labels)
        arguments = ["--pack", str(tmp_path / "npz"), "--out", str(tmp_path / "a.packed")]
        assert main(arguments) == 2
        assert "its size is not stored; add --images DIR" in capsys.readouterr().err
        assert main([*arguments, "--images", str(self.images(tmp_path))]) == 0
        assert "no class scores" not in capsys.readouterr().out
        got = PackedRegions(tmp_path / "a.packed").regions("42")
        torch.testing.assert_close(got.boxes, regions().boxes)
        assert (got.width, got.height) == SIZE and got.class_scores.tolist() == labels.tolist()  # type: ignore[union-attr]

    @pytest.mark.parametrize("labels", [np.full((2, 1601), 0.5), np.full((2, 4), 0.25)])
    def test_soft_labels_of_another_kind_are_left_out(self, tmp_path: Path, labels: np.ndarray) -> None:
        self.uniter(tmp_path / "npz", "b", regions(), soft_labels=labels)
        public = open_public(tmp_path / "npz", str(self.images(tmp_path)))
        assert public is not None
        assert dict(public)["b"].class_scores is None

    def test_an_image_without_a_file(self, tmp_path: Path) -> None:
        self.uniter(tmp_path / "npz", "c", regions())
        public = open_public(tmp_path / "npz", str(self.images(tmp_path)))
        with pytest.raises(RegionError, match=r"c\.npz: no image c among the 2 files"):
            list(public or [])

    def test_two_files_of_one_image(self, tmp_path: Path) -> None:
        for name in ("COCO_val2014_000000000042", "42"):
            self.attention(tmp_path / "npz", name, regions())
        assert packed(tmp_path / "npz").names() == ["42"]
        self.attention(tmp_path / "npz", "42", regions(seed=1))
        with pytest.raises(RegionError, match=r"COCO_val2014_000000000042\.npz: image 42 again, .*42\.npz;"):
            list(open_public(tmp_path / "npz") or [])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_bbox": 3}, "num_bbox is 3, but x has 2 rows"),
            ({"image_w": 0}, "image_w must be a positive integer, got 0"),
            ({"x": np.zeros((2, 100))}, r"x must be floats \[n, 2048\], got float64 \[2, 100\]"),
            ({"bbox": np.zeros((3, 4))}, r"bbox must be floats \[2, 4\], got float64 \[3, 4\]"),
            ({"bbox": np.full((2, 4), np.nan)}, "boxes has 8 values that are not finite"),
            ({"x": np.array([{}], dtype=object)}, "no .npz of arrays .*allow_pickle"),
        ],
    )
    def test_damaged_arrays_are_named(self, tmp_path: Path, changes: dict, message: str) -> None:
        self.attention(tmp_path / "npz", "a", regions(), **changes)
        with pytest.raises(RegionError, match=rf"a\.npz: {message}"):
            list(open_public(tmp_path / "npz") or [])

    def test_a_file_that_is_cut_off(self, tmp_path: Path) -> None:
        self.attention(tmp_path / "npz", "a", regions())
        file = tmp_path / "npz/a.npz"
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(RegionError, match=r"a\.npz: no \.npz of arrays \(5000 bytes; cut off\?\)"):
            packed(tmp_path / "npz")
        assert not (tmp_path / "out.packed").exists()

    def test_other_arrays_are_listed(self, tmp_path: Path) -> None:
        (tmp_path / "npz").mkdir()
        np.savez(tmp_path / "npz/a.npz", boxes=np.zeros(3))
        with pytest.raises(RegionError, match=r"a\.npz: has boxes; expected x and bbox, or features and norm_bb"):
            list(open_public(tmp_path / "npz") or [])


def test_other_forms_are_left_to_the_region_stores(tmp_path: Path) -> None:
    (tmp_path / "json").mkdir()
    save_regions(tmp_path / "json", "a", regions())
    assert open_public(tmp_path / "json") is None and open_public(tmp_path / "missing") is None
    assert main(["--pack", str(tmp_path / "json"), "--out", str(tmp_path / "a.packed")]) == 0
    assert open_public(tmp_path / "a.packed") is None
    assert_stored(PackedRegions(tmp_path / "a.packed"), "a", regions())
    (tmp_path / "json/a.tsv").write_text("")
    with pytest.raises(RegionError, match=r"more than one form \(a\.tsv, a\.json\)"):
        open_public(tmp_path / "json")


def test_a_character_that_is_no_base64_is_refused(tmp_path: Path) -> None:
    row = attention_row("1", regions())
    (tmp_path / "a.tsv").write_text(lines([*row[:4], "!" + row[4][1:], row[5]]))
    with pytest.raises(RegionError, match="line 1: boxes"):
        packed(tmp_path / "a.tsv")
