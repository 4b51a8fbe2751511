"""Original 2.37: against torchvision's ResNet-50, which strides in the 3x3 and is not dilated."""

import pytest
import torch
import torchvision
from torch import nn

from common.nn.cpu.resnet import FastResNetC4
from common.nn.resnet import Bottleneck, FrozenBatchNorm2d, ResNetC4, build_c5


def torchvision_resnet() -> nn.Module:
    """Random weights, and batch norms that do something."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.0)
            nn.init.normal_(m.bias, std=0.1)
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def test_c4_and_c5_equal_torchvision():
    reference = torchvision_resnet()
    state = reference.state_dict()
    c4 = ResNetC4(50, stride_in_1x1=False)
    c4.load_state_dict({k: v for k, v in state.items() if not k.startswith(("layer4.", "fc."))})
    c5 = build_c5(dilated=False, stride_in_1x1=False, frozen_bn=True)
    c5.load_state_dict({k.removeprefix("layer4."): v for k, v in state.items() if k.startswith("layer4.")})

    images = torch.randn(1, 3, 32, 48)
    body = nn.Sequential(*list(reference.children())[:7])  # up to layer3
    got = c4.train()(images)  # frozen: the train mode must not matter
    assert got.shape == (1, 1024, 2, 3)
    torch.testing.assert_close(got, body(images), atol=1e-4, rtol=1e-4)
    rois = torch.rand(1, 1024, 6, 6)
    want = reference.layer4(rois)
    assert want.shape == (1, 2048, 3, 3)
    torch.testing.assert_close(c5.train()(rois), want, atol=1e-4, rtol=1e-4)


def test_where_the_stride_is():
    for in_1x1, strides in ((True, ((2, 2), (1, 1))), (False, ((1, 1), (2, 2)))):
        c5 = build_c5(dilated=False, stride_in_1x1=in_1x1, frozen_bn=True)
        assert (c5[0].conv1.stride, c5[0].conv2.stride) == strides
        assert c5[0].downsample[0].stride == (2, 2)
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in c5[1:])


def test_dilated_c5_keeps_the_grid():
    c5 = build_c5(dilated=True, stride_in_1x1=True, frozen_bn=True)
    assert [block.conv2.dilation for block in c5] == [(2, 2)] * 3
    assert all(m.stride == (1, 1) for m in c5.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        assert c5(torch.randn(1, 1024, 14, 14)).shape == (1, 2048, 14, 14)


def test_stages_are_counted_from_the_stem():
    c4 = ResNetC4(50)
    assert c4.stage(1) == [c4.conv1, c4.bn1]
    assert [c4.stage(k) for k in (2, 3, 4)] == [[c4.layer1], [c4.layer2], [c4.layer3]]
    assert [len(layer) for layer in (c4.layer1, c4.layer2, c4.layer3)] == [3, 4, 6]


@pytest.mark.parametrize("depth", [18, 34, 77])
def test_other_depths_are_refused(depth):
    """Original 2.38."""
    with pytest.raises(ValueError, match=f"IMAGE_NUM_LAYERS {depth}: expected one of .50, 101, 152."):
        ResNetC4(depth)


def test_frozen_batch_norm_never_trains():
    """Original 2.39: a property of the layer, not of who called train()."""
    parent = nn.Sequential(FrozenBatchNorm2d(2)).train()
    norm = parent[0]
    assert not norm.training and not norm.train().training
    assert not norm.weight.requires_grad and not norm.bias.requires_grad
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
        norm.running_var.fill_(4.0)
    got = parent(torch.full((3, 2, 1, 1), 5.0))
    torch.testing.assert_close(got[:, :, 0, 0], torch.tensor([[2.0, 1.5]] * 3), atol=1e-5, rtol=0)
    assert norm.running_mean.tolist() == [1.0, 2.0] and norm.num_batches_tracked == 0
    assert set(norm.state_dict()) == set(nn.BatchNorm2d(2).state_dict())


def test_without_freezing_the_statistics_move():
    block = Bottleneck(8, 2, 1, 1, False, nn.BatchNorm2d).train()
    block(torch.randn(4, 8, 3, 3))
    assert block.bn1.num_batches_tracked == 1 and block.bn1.weight.requires_grad


@pytest.mark.parametrize("kind", [ResNetC4, FastResNetC4])
def test_the_stem_pools_as_caffe(kind):
    """Eight columns become four in both: of 0-2, 2-4, 4-6, 6-7, not of 0-1, 1-3, 3-5, 5-7."""
    columns = torch.arange(8.0).expand(1, 64, 8, 8)
    assert kind(50, caffe_pool=True).stem_pool(columns)[0, 0, 0].tolist() == [2, 4, 6, 7]
    assert kind(50).stem_pool(columns)[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert list(kind(50, caffe_pool=True).state_dict()) == list(kind(50).state_dict())
