"""A detector's calling convention: nested arguments, keywords and results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree


@dataclass
class Features:
    """Maps [N, C, H, W], coarse first, and what they were made from."""

    maps: list[torch.Tensor]
    image: torch.Tensor
    mask: torch.Tensor | None = None


pytree.register_dataclass(Features)


class Boxes(NamedTuple):
    corners: torch.Tensor
    scores: torch.Tensor


class Detector(nn.Module):
    """Image [N, 3, H, W] and options to a dictionary of everything that a model may return."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.deeper = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.corners = nn.Linear(width, 4)
        self.scores = nn.Linear(width, 5)

    def forward(
        self,
        image: torch.Tensor,
        extra: tuple[torch.Tensor, list[torch.Tensor]],
        options: dict[str, Any],
        *,
        mask: torch.Tensor | None = None,
        normalise: bool = True,
    ) -> dict[str, Any]:
        fine = self.stem(image) * options["gain"]
        coarse = F.relu(self.deeper(fine)) + extra[0]
        pooled = coarse.mean((2, 3)) + extra[1][0]
        if options["mode"] == "centred":
            pooled = pooled - pooled.mean(1, keepdim=True)
        if mask is not None:
            fine = fine.masked_fill(mask, 0.0)
        scores = self.scores(pooled)
        return {
            "features": Features([coarse, fine], image, mask),
            "boxes": Boxes(self.corners(pooled).sigmoid(), scores.softmax(1) if normalise else scores),
            "best": (scores.argmax(1), None, image.shape[0]),
            "options": [normalise, options["mode"], 3],
        }
