"""A YOLOv8-style detector, of the nano size by default.

The neck of its forerunners, no anchors, and for each side of a box a distribution over distances. The architecture as
published: Yaseen, What is YOLOv8, 2024 (https://arxiv.org/abs/2408.15857); the distributions: Li et al., Generalized
Focal Loss, 2020 (https://arxiv.org/abs/2006.04388).
"""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.models.yolo_blocks import Bottleneck, ConvBlock, PyramidPooling, fuse_levels, grid

STRIDES = (8, 16, 32)
BINS = 16


class Stage(nn.Module):
    """The results of all bottlenecks in a row, beside the half of the channels that goes around them."""

    def __init__(self, before: int, after: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        half = after // 2
        self.first = ConvBlock(before, after)
        self.blocks = nn.ModuleList(Bottleneck(half, (3, 3), residual) for _ in range(depth))
        self.merge = ConvBlock((2 + depth) * half, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, dim=1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.merge(torch.cat(parts, dim=1))


def _branch(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(before, width, 3), ConvBlock(width, width, 3), nn.Conv2d(width, after, 1))


class YOLOv8(nn.Module):
    """Images [N, 3, H, W], H and W multiples of 32, to boxes [N, 4 + classes, cells].

    A box is its centre, width and height in pixels, and a score for each class.

    Args:
        width: channels of the first convolution, 16 in the nano size.
        depth: bottlenecks of the first stage.
    """

    def __init__(self, classes: int = 80, width: int = 16, depth: int = 1) -> None:
        super().__init__()
        w1, w2, w3, w4 = (width * factor for factor in (2, 4, 8, 16))
        self.stem = nn.Sequential(ConvBlock(3, width, 3, 2), ConvBlock(width, w1, 3, 2), Stage(w1, w1, depth))
        self.fine = nn.Sequential(ConvBlock(w1, w2, 3, 2), Stage(w2, w2, 2 * depth))
        self.middle = nn.Sequential(ConvBlock(w2, w3, 3, 2), Stage(w3, w3, 2 * depth))
        self.coarse = nn.Sequential(ConvBlock(w3, w4, 3, 2), Stage(w4, w4, depth), PyramidPooling(w4, w4))
        self.tops = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.ups = nn.ModuleList([Stage(w4 + w3, w3, depth, False), Stage(w3 + w2, w2, depth, False)])
        self.downs = nn.ModuleList([ConvBlock(w2, w2, 3, 2), ConvBlock(w3, w3, 3, 2)])
        self.outs = nn.ModuleList([Stage(w2 + w3, w3, depth, False), Stage(w3 + w4, w4, depth, False)])
        channels = (w2, w3, w4)
        self.sides = nn.ModuleList(_branch(each, max(16, w2 // 4, 4 * BINS), 4 * BINS) for each in channels)
        self.scores = nn.ModuleList(_branch(each, max(w2, min(classes, 100)), classes) for each in channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        fine = self.fine(self.stem(images))
        middle = self.middle(fine)
        levels = fuse_levels([fine, middle, self.coarse(middle)], self.tops, self.ups, self.downs, self.outs)
        boxes, scores = [], []
        for level, sides, classes, stride in zip(levels, self.sides, self.scores, STRIDES, strict=True):
            centres = grid(level.shape[2], level.shape[3], level).T + 0.5
            boxes.append(_box(sides(level).flatten(2), centres) * stride)
            scores.append(classes(level).flatten(2))
        return torch.cat((torch.cat(boxes, dim=2), torch.cat(scores, dim=2).sigmoid()), dim=1)


def _box(sides: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The mean distances of four distributions [N, 4 * BINS, cells] as centre, width and height [N, 4, cells]."""
    batch, _, cells = sides.shape
    chances = sides.view(batch, 4, BINS, cells).softmax(2)
    distances = torch.arange(BINS, device=sides.device, dtype=sides.dtype).view(1, 1, BINS, 1)
    before, after = (chances * distances).sum(2).chunk(2, dim=1)
    low, high = centres - before, centres + after
    return torch.cat(((low + high) / 2, high - low), dim=1)
