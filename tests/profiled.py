"""Modules and their optimization profiles, and which of those TensorRT took, for tests of what becomes of profiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from torch2trt.engine import builder
from torch2trt.sizes import DimRange

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none"}
BATCH = {"x": {0: Dim("batch", min=1, max=64)}}
TWO: list[dict[str, Any]] = [{"batch": 1}, {"batch": (2, 16, 32)}]
ONE, MANY = DimRange(1, 1, 1), DimRange(2, 16, 32)

Taken = list[dict[str, DimRange]]


class Linear(nn.Module):
    """x [n, 8] → [n, 4]; times a mask [n, 1], where there is one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)
        self.eval()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return y if mask is None else y * mask


class Parts(nn.Module):
    """Two dynamic dimensions; behind what runs in torch there is only the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().mean(1).sigmoid()).relu()


PARTS = {"x": {0: Dim("batch", min=1, max=16), 1: Dim("length", min=2, max=32)}}
PARTS_PROFILES: list[dict[str, Any]] = [
    {"batch": 1, "length": (2, 8, 32)},
    {"batch": (2, 4, 16), "length": (2, 8, 32)},
    {"batch": (2, 4, 16), "length": 32},
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """The ranges of each profile that came into a builder's configuration, in order."""
    found: Taken = []
    add = builder._add_profile

    def watched(network: Any, config: Any, inputs: Any, ranges: Any) -> bool:
        before = config.num_optimization_profiles
        assert add(network, config, inputs, ranges)
        assert config.num_optimization_profiles == before + 1
        found.append(dict(ranges))
        return True

    monkeypatch.setattr(builder, "_add_profile", watched)
    return found
