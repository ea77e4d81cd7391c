"""The next number in a direction, to the bit: float64 has other neighbours, so that the generic test cannot tell."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import torch2trt


class Next(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nextafter(x, y)


LIMITS = torch.finfo(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neighbours(dtype: torch.dtype) -> None:
    exponents = 2.0 ** torch.arange(-149, 128)
    bits = torch.randint(0, 0x7F800000, (4000,), dtype=torch.int32).view(torch.float32)
    special = torch.tensor([0.0, LIMITS.max, LIMITS.tiny, 1 - LIMITS.eps / 2, 3e-39, math.inf])
    values = torch.cat([exponents, torch.nextafter(exponents, torch.tensor(0.0)), bits, special]).to(dtype)
    values = torch.cat([values, -values])
    module = Next().eval()
    inputs = values, torch.tensor([math.inf], dtype=dtype)
    compiled = torch2trt.compile(module, inputs)
    for direction in (math.inf, -math.inf, 0.0, 1.0):
        towards = torch.tensor([direction], dtype=dtype)
        found, expected = compiled.reference(values, towards), torch.nextafter(values, towards)
        assert found.dtype == dtype
        assert torch.equal(found, expected), values[found != expected]
