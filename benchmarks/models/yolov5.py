"""A YOLOv5-style detector, of the small size by default.

Three maps of a CSP backbone, a path aggregation neck, and three anchors for each cell. The architecture as published:
Khanam and Hussain, What is YOLOv5, 2024 (https://arxiv.org/abs/2407.20892).
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.yolo_blocks import Bottleneck, ConvBlock, PyramidPooling, Stem, fuse_levels, grid

ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Widths and heights in pixels, of the fine map's cells first."""
STRIDES = (8, 16, 32)


class Stage(nn.Module):
    """Two halves of the channels, one of them through bottlenecks."""

    def __init__(self, before: int, after: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        half = after // 2
        self.through = ConvBlock(before, half)
        self.beside = ConvBlock(before, half)
        self.blocks = nn.Sequential(*(Bottleneck(half, (1, 3), residual) for _ in range(depth)))
        self.merge = ConvBlock(after, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.merge(torch.cat([self.blocks(self.through(x)), self.beside(x)], dim=1))


class YOLOv5(nn.Module):
    """Images [N, 3, H, W], H and W multiples of 32, to boxes [N, anchors, 5 + classes].

    A box is its centre, width and height in pixels, its objectness, and a score for each class.

    Args:
        width: channels of the first convolution, 32 in the small size.
        depth: bottlenecks of the first stage.
    """

    def __init__(self, classes: int = 80, width: int = 32, depth: int = 1) -> None:
        super().__init__()
        w1, w2, w3, w4 = (width * factor for factor in (2, 4, 8, 16))
        self.stem = nn.Sequential(Stem(3, width), ConvBlock(width, w1, 3, 2), Stage(w1, w1, depth))
        self.fine = nn.Sequential(ConvBlock(w1, w2, 3, 2), Stage(w2, w2, 2 * depth))
        self.middle = nn.Sequential(ConvBlock(w2, w3, 3, 2), Stage(w3, w3, 3 * depth))
        self.coarse = nn.Sequential(ConvBlock(w3, w4, 3, 2), Stage(w4, w4, depth), PyramidPooling(w4, w4))
        self.tops = nn.ModuleList([ConvBlock(w4, w3), ConvBlock(w3, w2)])
        self.ups = nn.ModuleList([Stage(2 * w3, w3, depth, False), Stage(2 * w2, w2, depth, False)])
        self.downs = nn.ModuleList([ConvBlock(w2, w2, 3, 2), ConvBlock(w3, w3, 3, 2)])
        self.outs = nn.ModuleList([Stage(2 * w2, w3, depth, False), Stage(2 * w3, w4, depth, False)])
        self.values = 5 + classes
        self.heads = nn.ModuleList(nn.Conv2d(channels, 3 * self.values, 1) for channels in (w2, w3, w4))
        self.register_buffer("anchors", torch.tensor(ANCHORS, dtype=torch.float32), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        levels = fuse_levels([fine, middle, self.coarse(middle)], self.tops, self.ups, self.downs, self.outs)
        found = [
            self._boxes(head(level), anchors, stride)
            for head, level, anchors, stride in zip(self.heads, levels, self.anchors, STRIDES, strict=True)
        ]
        return torch.cat(found, dim=1)

    def _boxes(self, raw: torch.Tensor, anchors: torch.Tensor, stride: int) -> torch.Tensor:
        batch, _, height, width = raw.shape
        raw = raw.view(batch, 3, self.values, height * width).transpose(2, 3).sigmoid()
        centre, size, scores = raw.split((2, 2, self.values - 4), dim=-1)
        centre = (centre * 2 - 0.5 + grid(height, width, raw)) * stride
        size = (size * 2) ** 2 * anchors[:, None]
        return torch.cat((centre, size, scores), dim=-1).flatten(1, 2)
