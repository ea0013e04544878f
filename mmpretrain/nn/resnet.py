"""CLIP's modified ResNet (Radford et al. 2021, section 2.4): stem of three convolutions, pooling before every stride, attention pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import BatchNorm2d, Conv2d, Init, Linear, fill


class Bottleneck(nn.Module):
    """1x1, 3x3, (average pool), 1x1; the shortcut pools in the same way. The last norm's gain starts at zero.

    Args:
        n_in: channels in.
        planes: channels of the bottleneck; the output has four times as many.
        stride: 1 or 2, by average pooling.
    """

    def __init__(self, n_in: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        n_out = 4 * planes
        self.conv1, self.bn1 = Conv2d(n_in, planes, 1), BatchNorm2d(planes)
        self.conv2, self.bn2 = Conv2d(planes, planes, 3, padding=1), BatchNorm2d(planes)
        self.conv3, self.bn3 = Conv2d(planes, n_out, 1), BatchNorm2d(n_out, zero_gain=True)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        shortcut = stride > 1 or n_in != n_out
        self.shortcut_conv = Conv2d(n_in, n_out, 1) if shortcut else None
        self.shortcut_bn = BatchNorm2d(n_out) if shortcut else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self.pool(y)))
        if self.shortcut_conv is not None:
            x_BCHW = self.shortcut_bn(self.shortcut_conv(self.pool(x_BCHW)))
        return F.relu(y + x_BCHW, inplace=True)


class AttentionPool(nn.Module):
    """One multi-head attention whose query is the mean of all cells: (B, C, H, W) -> (B, E).

    Args:
        cells: cells of the feature map (H * W).
        width: channels of the feature map.
        heads: must divide ``width``.
        out: E.
    """

    def __init__(self, cells: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        std = width**-0.5
        self.positions = nn.Parameter(torch.empty(cells + 1, width))
        # torch's default bias beside a normal weight, as in the published code
        self.query, self.key, self.value = (_Normal(width, width, std) for _ in range(3))
        self.out = _Normal(width, out, std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions: N(0, width^-0.5)."""
        fill(self.positions, Init("normal", self.width**-0.5))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BLC = x_BCHW.flatten(2).transpose(1, 2)
        x_BLC = torch.cat([x_BLC.mean(1, keepdim=True), x_BLC], 1) + self.positions.to(x_BLC.dtype)
        b, length, _ = x_BLC.shape
        q = self.query(x_BLC[:, :1]).view(b, 1, self.heads, -1).transpose(1, 2)
        k = self.key(x_BLC).view(b, length, self.heads, -1).transpose(1, 2)
        v = self.value(x_BLC).view(b, length, self.heads, -1).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, self.width))


class _Normal(Linear):
    """Normal weight, torch's uniform bias."""

    def __init__(self, n_in: int, n_out: int, std: float) -> None:
        super().__init__(n_in, n_out, init=Init("normal", std))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.uniform_(self.bias, -(self.in_features**-0.5), self.in_features**-0.5)


class ModifiedResNet(nn.Module):
    """The trunk without pooling: (B, 3, H, W) -> (B, 32 * width, H / 32, W / 32).

    Args:
        layers: blocks of the four stages.
        width: channels of the stem.
    """

    def __init__(self, layers: tuple[int, int, int, int], width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = Conv2d(3, half, 3, stride=2, padding=1), BatchNorm2d(half)
        self.conv2, self.bn2 = Conv2d(half, half, 3, padding=1), BatchNorm2d(half)
        self.conv3, self.bn3 = Conv2d(half, width, 3, padding=1), BatchNorm2d(width)
        stages, n_in = [], width
        for i, count in enumerate(layers):
            planes = width * 2**i
            blocks = [Bottleneck(n_in, planes, 2 if i else 1)] + [Bottleneck(4 * planes, planes) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            n_in = 4 * planes
        self.stages = nn.ModuleList(stages)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x_BCHW = F.relu(norm(conv(x_BCHW)), inplace=True)
        x_BCHW = F.avg_pool2d(x_BCHW, 2)
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
        return x_BCHW
