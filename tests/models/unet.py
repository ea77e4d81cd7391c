"""A U-Net: Ronneberger et al., U-Net, 2015 (https://arxiv.org/abs/1505.04597), padded, with normalisation."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Norm = Literal["batch", "group"]
Up = Literal["transposed", "bilinear"]


class DoubleConv(nn.Sequential):
    """Twice convolution, normalisation and activation: [N, before, H, W] to [N, after, H, W]."""

    def __init__(self, before: int, after: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers.append(nn.Conv2d(channels, after, 3, padding=1, bias=norm == "group"))
            layers.append(nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(4, after))
            layers.append(nn.ReLU() if norm == "batch" else nn.SiLU())
        super().__init__(*layers)


class Bilinear(nn.Module):
    """Twice the height and width, and other channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


class UNet(nn.Module):
    """Images [N, channels, H, W], H and W multiples of 2**depth, to maps [N, classes, H, W]."""

    def __init__(
        self,
        norm: Norm = "batch",
        up: Up = "transposed",
        *,
        channels: int = 3,
        classes: int = 4,
        width: int = 16,
        depth: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        pairs = list(pairwise(widths))
        self.first = DoubleConv(channels, width, norm)
        self.down = nn.ModuleList(DoubleConv(wide, wider, norm) for wide, wider in pairs)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wider, wide, 2, stride=2) if up == "transposed" else Bilinear(wider, wide)
            for wide, wider in reversed(pairs)
        )
        self.merge = nn.ModuleList(DoubleConv(wider, wide, norm) for wide, wider in reversed(pairs))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        y = levels.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            y = merge(torch.cat([levels.pop(), up(y)], dim=1))
        return self.head(y)
