"""What both YOLO nets are made of: cross-stage-partial blocks and fast spatial pyramid pooling.

CSP: Wang et al., CSPNet, 2019 (https://arxiv.org/abs/1911.11929). Pyramid pooling: He et al., 2014
(https://arxiv.org/abs/1406.4729), with one small window three times over instead of three windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, SiLU: [N, before, H, W] to [N, after, H / stride, W / stride]."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, stride, padding=(kernel - 1) // 2, bias=False),
            nn.BatchNorm2d(after, eps=1e-3),
            nn.SiLU(),
        )


class Stem(ConvBlock):
    """A window of 6, which sees each pair of pixels that it strides over whole."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 6, 2)
        self[0] = nn.Conv2d(before, after, 6, 2, padding=2, bias=False)


class Bottleneck(nn.Module):
    """Two convolutions, with the input added where ``residual``."""

    def __init__(self, width: int, kernels: tuple[int, int], residual: bool) -> None:
        super().__init__()
        self.first = ConvBlock(width, width, kernels[0])
        self.second = ConvBlock(width, width, kernels[1])
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x))
        return x + y if self.residual else y


class PyramidPooling(nn.Module):
    """What is seen through windows of 5, 9 and 13, beside the input."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(before, before // 2)
        self.merge = ConvBlock(before * 2, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        views = [self.reduce(x)]
        for _ in range(3):
            views.append(F.max_pool2d(views[-1], 5, stride=1, padding=2))
        return self.merge(torch.cat(views, dim=1))


def double(x: torch.Tensor) -> torch.Tensor:
    """Twice the height and width, each pixel repeated."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def fuse_levels(
    levels: Sequence[torch.Tensor], tops: nn.ModuleList, ups: nn.ModuleList, downs: nn.ModuleList, outs: nn.ModuleList
) -> list[torch.Tensor]:
    """A path aggregation network: Liu et al., PANet, 2018 (https://arxiv.org/abs/1803.01534).

    Args:
        levels: three maps, fine first, each half the size of the one before.
        tops: what comes before going up, two of them; ups: what merges there, coarse first.
        downs: strided convolutions on the way back; outs: what merges there, fine first.
    """
    fine, middle, coarse = levels
    top = tops[0](coarse)
    lifted = tops[1](ups[0](torch.cat([double(top), middle], dim=1)))
    small = ups[1](torch.cat([double(lifted), fine], dim=1))
    medium = outs[0](torch.cat([downs[0](small), lifted], dim=1))
    large = outs[1](torch.cat([downs[1](medium), top], dim=1))
    return [small, medium, large]


def grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """The column and the row of each cell: [height * width, 2]."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y), dim=-1).reshape(-1, 2)
