"""Residual networks against torchvision's; norms and frozen parts; pictures of several sizes without padding."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers import tiny
from torch import nn

from mmpretrain.nn.cnn import ARCHITECTURES, Norm, ResNet, by_size, cut
from mmpretrain.train.pretraining import materialise
from mmpretrain.types import Pixels

PUBLISHED = {"resnet50": 23_508_032, "resnet101": 42_500_160, "resnext101_32x8d": 86_742_336, "resnext152_32x8d": 120_323_392}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(name).parameters()) == PUBLISHED[name]
        known = getattr(torchvision.models, name, None)
        assert known is None or sum(p.numel() for p in known().parameters()) == PUBLISHED[name] + 2048 * 1000 + 1000


def without_head(name: str) -> nn.Module:
    model = tiny.shake(getattr(torchvision.models, name)())
    model.avgpool, model.fc = nn.Identity(), nn.Identity()
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_maps_and_names_are_those_of_torchvision(name: str) -> None:
    theirs = without_head(name)
    ours = ResNet(name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(x).flatten(1), theirs(x))
        assert torch.equal(ours(ours(x, last=3), first=4), ours(x))


def test_holes_and_strides_are_where_they_should_be() -> None:
    """The last stage by hand: no stride and 3x3 convolutions with holes in each of its blocks; strides in the first 1x1."""
    theirs = without_head("resnet50")
    for stage in (theirs.layer2, theirs.layer3):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    for block in theirs.layer4:
        block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
    theirs.layer4[0].downsample[0].stride = (1, 1)
    ours = ResNet("resnet50", dilated=True, stride_in_1x1=True).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert ours(x).shape == (1, 2048, 4, 4)
        assert torch.equal(ours(x).flatten(1), theirs(x))


def statistics(model: nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if "running" in name]


def test_norms() -> None:
    x = torch.randn(2, 3, 64, 64)
    for mode in ("trained", "frozen", "fixed"):
        model = ResNet("tiny", norm=mode).train()
        before = statistics(model)
        model(x).square().mean().backward()
        moved = any(not torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
        assert moved == (mode == "trained")
        norms = [m for m in model.modules() if isinstance(m, Norm)]
        assert all((m.weight.grad is not None) == (mode != "fixed") for m in norms)
        assert model.conv1.weight.grad.abs().max() > 0
    frozen = tiny.shake(ResNet("tiny")).train()
    with torch.no_grad():
        assert torch.equal(frozen(x), frozen.eval()(x))


@pytest.mark.parametrize("freeze", range(6))
def test_frozen_parts(freeze: int) -> None:
    model = ResNet("tiny", norm="trained", freeze=freeze)
    parts = [nn.ModuleList([model.conv1, model.bn1]), *(getattr(model, f"layer{i}") for i in range(1, 5))]
    for i, part in enumerate(parts):
        assert {p.requires_grad for p in part.parameters()} == {i >= freeze}
        assert {m.mode for m in part.modules() if isinstance(m, Norm)} == {"trained" if i >= freeze else "fixed"}


def test_born_on_meta_it_is_initialised_as_the_constructor_does() -> None:
    with torch.device("meta"):
        model = ResNet("tiny", norm="fixed", freeze=2)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    materialise(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    weight = model.layer4[0].conv2.weight
    assert abs(weight.std().item() - (2 / (64 * 9)) ** 0.5) < 2e-3 and torch.equal(model.bn1.running_var, torch.ones(8))


def test_sizes_are_grouped_and_cut() -> None:
    sizes = ((64, 96), (96, 64), (64, 96))
    assert by_size(sizes) == {(64, 96): [0, 2], (96, 64): [1]}
    raw = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    image = Pixels(raw, sizes, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    found = cut(image, [0, 2], (64, 96), torch.float32)
    assert torch.equal(found, image.floats()[[0, 2], :, :64])


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="name='resnet51'; choose one of tiny"):
        ResNet("resnet51")
    with pytest.raises(ValueError, match="norm='batch'"):
        ResNet("tiny", norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="freeze=6"):
        ResNet("tiny", freeze=6)
    assert set(ARCHITECTURES) >= set(PUBLISHED)
