"""A module that changes when it runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counter(nn.Module):
    """Rows [N, 4], times the sums of all rows that were ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum(0)
        return x * self.seen
