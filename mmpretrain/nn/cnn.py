"""Residual networks under torchvision's names of parameters (He et al., arXiv 1512.03385; Xie et al., arXiv 1611.05431), for models that
train them along: what every weight file of such a network holds can be loaded, ``mmpretrain.weights.part`` does it.

Pictures of several sizes in one batch: the network runs once for each size, on the real pixels alone (``by_size``). A padded run would let
padding leak into the pictures, since a convolution beside the border reads it as if it were picture, and would waste the work on it. Image
transforms give multiples of 32 or 64 pixels, so that there are few sizes, and ``data.buckets`` puts samples of one size together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import BatchNorm2d
from mmpretrain.types import Pixels

NORMS = ("trained", "frozen", "fixed")


class Architecture(NamedTuple):
    """Sizes of a residual network."""

    layers: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64  # channels of a group in the first stage of a network whose stem has 64
    width: int = 64  # channels of the stem


ARCHITECTURES = {
    "tiny": Architecture((1, 1, 1, 1), width=8),  # for tests: 256 channels
    "tiny-basic": Architecture((1, 1, 1, 1), bottleneck=False, width=16),  # 128 channels
    "resnet18": Architecture((2, 2, 2, 2), bottleneck=False),
    "resnet34": Architecture((3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), groups=32, group_width=8),
    "resnext152_32x8d": Architecture((3, 8, 36, 3), groups=32, group_width=8),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), group_width=128),
}


def by_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    """Size -> the pictures of that size, in the order of their first appearance."""
    found: dict[tuple[int, int], list[int]] = {}
    for i, (height, width) in enumerate(sizes):
        found.setdefault((height, width), []).append(i)
    return found


def cut(image: Pixels, pictures: Sequence[int], size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Normalised real pixels of pictures of one size: (n, 3, height, width). Padding is cut off before they are normalised."""
    pixels = image.pixels_BCHW[:, :, : size[0], : size[1]]
    if len(pictures) < pixels.shape[0]:
        pixels = pixels.index_select(0, torch.tensor(pictures).to(pixels.device, non_blocking=True))
    return image._replace(pixels_BCHW=pixels, sizes=(size,) * len(pictures)).floats(dtype)


class Convolution(nn.Conv2d):
    """A convolution without bias, padded to keep the size at stride 1. Initialised as in He et al. 2015: N(0, 2 / fan-out)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(n_in, n_out, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=False)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class Norm(BatchNorm2d):
    """BatchNorm: ``trained`` as usual; ``frozen``: always with the running statistics; ``fixed``: gain and bias are not trained either."""

    def __init__(self, width: int, mode: str) -> None:
        super().__init__(width)
        self.mode = mode
        if mode == "fixed":
            self.requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.mode == "trained":
            return super().forward(x_BCHW)
        return F.batch_norm(x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class BasicBlock(nn.Module):
    """3x3, 3x3 and the shortcut: (B, n_in, H, W) -> (B, planes, H / stride, W / stride)."""

    expansion = 1

    def __init__(
        self, n_in: int, planes: int, stride: int, dilation: int, arch: Architecture, norm: str, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = Convolution(n_in, planes, 3, stride, dilation), Norm(planes, norm)
        self.conv2, self.bn2 = Convolution(planes, planes, 3), Norm(planes, norm)
        self.downsample = _shortcut(n_in, planes, stride, norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut: (B, n_in, H, W) -> (B, 4 * planes, H / stride, W / stride)."""

    expansion = 4

    def __init__(
        self, n_in: int, planes: int, stride: int, dilation: int, arch: Architecture, norm: str, stride_in_1x1: bool = False
    ) -> None:
        super().__init__()
        inner, first = int(planes * arch.group_width / 64) * arch.groups, stride if stride_in_1x1 else 1
        self.conv1, self.bn1 = Convolution(n_in, inner, 1, first), Norm(inner, norm)
        self.conv2, self.bn2 = Convolution(inner, inner, 3, stride // first, dilation, arch.groups), Norm(inner, norm)
        self.conv3, self.bn3 = Convolution(inner, 4 * planes, 1), Norm(4 * planes, norm)
        self.downsample = _shortcut(n_in, 4 * planes, stride, norm)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + (x_BCHW if self.downsample is None else self.downsample(x_BCHW)), inplace=True)


def _shortcut(n_in: int, n_out: int, stride: int, norm: str) -> nn.Module | None:
    return nn.Sequential(Convolution(n_in, n_out, 1, stride), Norm(n_out, norm)) if stride > 1 or n_in != n_out else None


class ResNet(nn.Module):
    """A residual network without its classifier: (B, 3, H, W) -> (B, channels, H / 32, W / 32).

    Args:
        name: one of ``ARCHITECTURES``: ``resnet50``, ``resnext101_32x8d``, ``resnext152_32x8d``, ...
        norm: of every BatchNorm: ``frozen``: the statistics that came with the weights, gain and bias are trained; ``fixed``: these
            are not trained either (detectors); ``trained``: statistics of the batch, each rank and each size of picture its own. A network
            that starts from random weights needs ``trained``.
        freeze: untrained parts, with fixed norms: 1: the stem, 2: the first stage too (VL-BERT), ... 5: everything.
        dilated: the last stage keeps the resolution of the one before it, its 3x3 convolutions have holes instead (VL-BERT).
        stride_in_1x1: the first convolution of a bottleneck strides, not the second (the first networks of He et al., and Caffe's).

    Raises:
        ValueError: an unknown name or norm, or a part that does not exist.
    """

    def __init__(
        self,
        name: str = "resnet50",
        norm: Literal["trained", "frozen", "fixed"] = "frozen",
        freeze: int = 0,
        dilated: bool = False,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        if name not in ARCHITECTURES:
            raise ValueError(f"ResNet: name={name!r}; choose one of {', '.join(ARCHITECTURES)}")
        if norm not in NORMS:
            raise ValueError(f"ResNet: norm={norm!r}; choose one of {', '.join(NORMS)}")
        if not 0 <= freeze <= 5:
            raise ValueError(f"ResNet: freeze={freeze}; 0 trains everything, 1 freezes the stem, 2 the first stage too, up to 5")
        arch = ARCHITECTURES[name]
        block: type[BasicBlock] | type[Bottleneck] = Bottleneck if arch.bottleneck else BasicBlock
        self.name, self.freeze, self.dilated = name, freeze, dilated
        self.conv1 = Convolution(3, arch.width, 7, 2)
        self.bn1 = Norm(arch.width, "fixed" if freeze else norm)
        self.channels = tuple(arch.width * 2**i * block.expansion for i in range(4))  # after each stage
        n_in = arch.width
        for i, count in enumerate(arch.layers):
            planes, mode = arch.width * 2**i, "fixed" if freeze > i + 1 else norm
            holes = dilated and i == 3
            stride, dilation = (1 if holes or i == 0 else 2), (2 if holes else 1)
            rest = [block(self.channels[i], planes, 1, dilation, arch, mode) for _ in range(count - 1)]
            stage = nn.Sequential(block(n_in, planes, stride, dilation, arch, mode, stride_in_1x1), *rest)
            if freeze > i + 1:
                stage.requires_grad_(False)
            setattr(self, f"layer{i + 1}", stage)
            n_in = self.channels[i]
        if freeze:
            self.conv1.requires_grad_(False)

    def forward(self, x_BCHW: Tensor, first: int = 1, last: int = 4) -> Tensor:
        """The map after stage ``last``.

        Args:
            x_BCHW: normalised pixels; where ``first`` is above 1, the map that stage ``first`` reads.
        """
        if first == 1:
            x_BCHW = F.max_pool2d(F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True), 3, stride=2, padding=1)
        for i in range(first, last + 1):
            x_BCHW = getattr(self, f"layer{i}")(x_BCHW)
        return x_BCHW
