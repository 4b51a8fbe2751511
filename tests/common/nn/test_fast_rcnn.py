"""Original 2.29 to 2.36: region features and RoIAlign."""

import pytest
import torch
from torch import Tensor

from common.boxes import coordinate_embedding
from common.nn.cpu.fast_rcnn import SharingFastRCNN
from common.nn.fast_rcnn import FEATURE_DIM, ROI_SIZE, FastRCNN, roi_align_features, roi_rows


def one_box(*xyxy: float) -> tuple[Tensor, Tensor]:
    return torch.tensor([[xyxy]]), torch.tensor([0])


def ramp(height: int, width: int) -> Tensor:
    """A map of channels (y, x): bilinear sampling gives back the place of the sample."""
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack([y, x])[None]


class TestRoIAlign:
    def test_one_sample_in_the_middle_of_each_bin_without_half_pixel_shift(self):
        grid = roi_align_features(ramp(20, 20), roi_rows(*one_box(16.0, 32.0, 16.0 + 14 * 8, 32.0 + 14 * 16)))
        assert grid.shape == (1, 2, ROI_SIZE, ROI_SIZE)
        # x from 1 in bins of half a cell, y from 2 in bins of one cell
        torch.testing.assert_close(grid[0, 1, 0], 1 + (torch.arange(14) + 0.5) * 0.5)
        torch.testing.assert_close(grid[0, 0, :, 0], 2 + (torch.arange(14) + 0.5))

    def test_a_box_smaller_than_a_cell_is_one_cell_wide(self):
        grid = roi_align_features(ramp(8, 8), roi_rows(*one_box(32.0, 48.0, 34.0, 50.0)))
        torch.testing.assert_close(grid[0, 1, 0], 2 + (torch.arange(14) + 0.5) / 14)
        torch.testing.assert_close(grid[0, 0, :, 0], 3 + (torch.arange(14) + 0.5) / 14)

    def test_bilinear_weights_by_hand(self):
        feature_map = torch.zeros(1, 1, 6, 6)
        feature_map[0, 0, 2, 3] = 1.0
        # Bins of one cell from (1, 1): samples at 1.5, 2.5, ...; only those within a cell of (2, 3) see it.
        grid = roi_align_features(feature_map, roi_rows(*one_box(16.0, 16.0, 16.0 + 14 * 16, 16.0 + 14 * 16)))[0, 0]
        want = torch.zeros(14, 14)
        want[0:2, 1:3] = 0.25
        torch.testing.assert_close(grid, want)

    def test_outside_the_map(self):
        """Up to one cell outside the border value counts, beyond it is zero (original 2.31)."""
        feature_map = torch.full((1, 1, 4, 4), 7.0)
        columns = roi_align_features(feature_map, roi_rows(*one_box(-16.0 * 3, 0.0, 16.0 * 11, 16.0)))[0, 0, 0]
        # samples at -2.5, -1.5, -0.5, ..., 3.5, 4.5, ...
        assert columns.tolist() == [0, 0] + [7] * 5 + [0] * 7

    def test_boxes_belong_to_their_image_and_padding_has_no_row(self):
        feature_map = torch.stack([torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), 2.0)])
        boxes = torch.tensor([[[0.0, 0, 30, 30], [9, 9, 9, 9]], [[0, 0, 30, 30], [5, 5, 40, 40]]])
        grid = roi_align_features(feature_map, roi_rows(boxes, torch.tensor([0, 2, 3])))
        torch.testing.assert_close(grid[:, 0, 5, 5], torch.tensor([1.0, 2.0, 2.0]))

    def test_coordinates_stay_float32_under_autocast(self):
        """Original 2.33: bf16 would move 1000.75 to 1000, and 0.75 pixels are 0.047 cells."""
        boxes, places = one_box(1000.75, 700.25, 1000.75 + 14 * 16, 700.25 + 14 * 16)
        want = roi_align_features(ramp(80, 80), roi_rows(boxes, places))
        with torch.autocast("cpu", torch.bfloat16):
            # Whole numbers are exact in bf16.
            got = roi_align_features(ramp(80, 80).bfloat16(), roi_rows(boxes, places))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
        assert got[0, 1, 0, 0].item() == pytest.approx(1000.75 / 16 + 0.5, abs=1e-4)


def precomputed(**changes) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(precomputed=True, **{"final_dim": 6} | changes).eval()


def region_batch(mask: list[list[int]]) -> dict[str, Tensor]:
    box_mask = torch.tensor(mask).bool()
    start = torch.rand(*box_mask.shape, 2) * 500
    return {
        "images": None,
        "boxes": torch.cat([start, start + 100.5], dim=-1),
        "box_mask": box_mask,
        "im_info": torch.tensor([[1000.0, 600.0, 1.0, 1.0]] * len(mask)),
        "features": torch.rand(*box_mask.shape, FEATURE_DIM),
    }


class TestPrecomputed:
    def test_keys(self):
        """Original 2.21."""
        assert list(precomputed().state_dict()) == ["obj_downsample.1.weight", "obj_downsample.1.bias"]
        with_classes = precomputed(semantic=True).state_dict()
        assert with_classes["object_embed.weight"].shape == (81, 128)
        assert with_classes["obj_downsample.1.weight"].shape == (6, 2 * 2048 + 128)

    def test_a_region_is_place_then_content(self):
        model, batch = precomputed(), region_batch([[1, 1, 0], [1, 0, 1]])  # also with a hole
        out = model(**batch)
        mask = batch["box_mask"]
        assert out.reps.shape == (2, 3, 6)
        assert (out.reps[~mask] == 0).all()
        for b, r in mask.nonzero().tolist():
            place = coordinate_embedding(batch["boxes"][b, r][None], batch["im_info"][b, :2][None])
            row = torch.cat([place, batch["features"][b, r][None]], dim=1)
            torch.testing.assert_close(out.reps[b, r], model.obj_downsample[1](row)[0].relu())

    def test_masked_regions_show_the_mask_feature(self):
        batch = region_batch([[1, 1, 1]])
        feature = torch.full((FEATURE_DIM,), 5.0)
        masked = torch.tensor([[False, True, False]])
        before, model = batch["features"].clone(), precomputed()
        want = batch | {"features": torch.where(masked[..., None], feature, before)}
        got = model(**batch, masked=masked, mask_feature=feature).reps
        assert torch.equal(got, model(**want).reps) and not torch.equal(got, model(**batch).reps)
        assert torch.equal(batch["features"], before)

    def test_classes_are_part_of_the_content(self):
        model, batch = precomputed(semantic=True), region_batch([[1, 1]])
        same = {**batch, "boxes": batch["boxes"][:, [0, 0]], "features": batch["features"][:, [0, 0]]}
        out = model(**same, classes=torch.tensor([[3, 4]])).reps[0]
        assert not torch.allclose(out[0], out[1])
        assert torch.equal(*model(**same, classes=torch.tensor([[3, 3]])).reps[0])

    def test_box_coordinates_are_embedded_in_float32_under_autocast(self):
        """Original 2.33, for the sine and cosine embedding."""
        model, batch = precomputed(), region_batch([[1]])
        batch["boxes"] = torch.tensor([[[700.25, 513.5, 900.75, 590.25]]])
        seen = []
        model.obj_downsample.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch)
        place = coordinate_embedding(batch["boxes"][0], batch["im_info"][:, :2])
        assert torch.equal(seen[0][:, :FEATURE_DIM].float(), place)
        rounded = coordinate_embedding(batch["boxes"][0].bfloat16(), batch["im_info"][:, :2])
        assert (place - rounded).abs().max() > 0.1  # what rounding would have done


class TestEndToEnd:
    @pytest.fixture(scope="class")
    @staticmethod
    def model() -> FastRCNN:
        torch.manual_seed(0)
        return FastRCNN(50, dilated_c5=False, frozen_stages=(1, 2), final_dim=6, class_regulariser=True).eval()

    @pytest.fixture
    @staticmethod
    def batch() -> dict[str, Tensor]:
        torch.manual_seed(1)
        return {
            "images": torch.randn(2, 3, 32, 32),
            "boxes": torch.tensor([[[0.0, 0, 31, 31], [0, 0, 0, 0]], [[8, 8, 30, 20], [2, 0, 20, 30]]]),
            "box_mask": torch.tensor([[True, False], [True, True]]),
            "im_info": torch.tensor([[32.0, 32.0, 1.0, 1.0]] * 2),
        }

    def test_the_roi_head_has_two_names_and_one_storage(self, model):
        """Original 2.20."""
        state = model.state_dict()
        first = {k.removeprefix("roi_head_feature_extractor."): v for k, v in state.items() if k.startswith("roi_head")}
        second = {k.removeprefix("head.0."): v for k, v in state.items() if k.startswith("head.0.")}
        assert len(first) == 60 and first.keys() == second.keys()
        assert all(first[k].data_ptr() == second[k].data_ptr() for k in first)
        assert not [n for n, _ in model.named_parameters() if n.startswith("head.")]

    def test_frozen_parts(self, model):
        frozen = {n.split(".")[0] + "." + n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {"backbone.conv1", "backbone.bn1", "backbone.layer1"} <= frozen
        assert not any(".bn" in n or "downsample.1." in n and "obj" not in n for n in trained)
        assert {"backbone.layer2.0.conv1.weight", "roi_head_feature_extractor.0.conv1.weight"} <= trained

    @pytest.mark.parametrize("kind", [FastRCNN, SharingFastRCNN])
    @pytest.mark.parametrize("masked", [False, True])
    def test_samples_that_share_an_image(self, model, kind, masked):
        """Four samples about two images have the features and gradients of an image each, for a part of the work."""
        torch.manual_seed(0)
        state = model.state_dict()
        model = kind(50, dilated_c5=False, frozen_stages=(1, 2), final_dim=6, class_regulariser=True).eval()
        model.load_state_dict(state)
        images, image_row = torch.randn(2, 3, 64, 96), torch.tensor([0, 1, 0, 0])
        boxes = torch.tensor([[[0.0, 0, 60, 40], [16, 16, 80, 60]], [[8, 8, 60, 60], [0, 0, 0, 0]]])[[0, 1, 0, 0]]
        boxes[3] = boxes[3].flip(0)
        mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
        masks = None
        if masked:  # the same box with another mask is another region
            masks = torch.rand(4, 2, 7, 7)
            masks[3, 1] = masks[0, 0]
        model.zero_grad()
        each = model.region_features(images[image_row], boxes, mask, masks)
        each.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        sizes = []
        model.roi_head_feature_extractor.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
        model.backbone.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
        once = model.region_features(images, boxes, mask, masks, image_row)
        once.square().sum().backward()
        assert sizes == [2, 7 if kind is FastRCNN else 6 if masked else 3]
        torch.testing.assert_close(once, each, atol=1e-5, rtol=1e-4)
        for name, p in model.named_parameters():
            if name in gradients:
                assert (p.grad - gradients[name]).norm() <= 1e-3 * gradients[name].norm() + 1e-6, name

    @torch.no_grad()
    def test_instance_masks_weight_the_average_over_the_full_window(self, model, batch):
        """Original 2.32: so a mask and its complement add up to no mask."""
        half = torch.zeros(2, 2, 7, 7)
        half[..., :3] = 1
        args = (batch["images"], batch["boxes"], batch["box_mask"])
        whole = model.region_features(*args)
        assert whole.shape == (3, FEATURE_DIM)
        left, right = model.region_features(*args, half), model.region_features(*args, 1 - half)
        torch.testing.assert_close(left + right, whole, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(left, right, atol=1e-2)

    @torch.no_grad()
    def test_class_regulariser(self, model, batch):
        classes = torch.tensor([[5, 0], [7, 80]])
        got = model(**batch, classes=classes).class_loss
        features = model.region_features(batch["images"], batch["boxes"], batch["box_mask"])
        scores = model.regularizing_predictor(features).log_softmax(-1)
        torch.testing.assert_close(got, -(scores[0, 5] + scores[1, 7] + scores[2, 80]) / 3)

    def test_missing_inputs_raise(self, model, batch):
        with pytest.raises(ValueError, match="ENABLE_CNN_REG_LOSS"):
            model(**batch)
        with pytest.raises(ValueError, match="IMAGE_FEAT_PRECOMPUTED is false but the batch has no images"):
            model(**batch | {"images": None})
        with pytest.raises(ValueError, match="no real box"):
            model(**batch | {"box_mask": torch.zeros(2, 2, dtype=torch.bool)})


def test_missing_precomputed_inputs_raise():
    """Original 2.36 among them."""
    batch = region_batch([[1]])
    with pytest.raises(ValueError, match="IMAGE_SEMANTIC"):
        precomputed(semantic=True)(**batch)
    with pytest.raises(ValueError, match="IMAGE_FEAT_PRECOMPUTED is true but the batch has no region features"):
        precomputed()(**batch | {"features": None})
