"""Pooled regions beside torchvision's own float32, which rounds where bins begin and end: so does the network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops

import torch2trt
from tests.harness import OpCase, OpModule

POOLINGS: dict[str, tuple[Callable[..., Tensor], tuple[int, int]]] = {
    "roi_pool": (ops.roi_pool, (7, 14)),
    "ps_roi_pool": (ops.ps_roi_pool, (7, 2)),
}
IMAGES = torch.randn(2, 14, 37, 51, generator=torch.Generator().manual_seed(0))


def regions(count: int, lowest: float, highest: float) -> Tensor:
    """Of any order of corners, every other one with whole ones."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 4, generator=generator) * (highest - lowest) + lowest
    corners[::2] = corners[::2].round()
    return torch.cat([torch.arange(count)[:, None] % 2, corners], 1)


def pooling(name: str) -> tuple[nn.Module, Tensor]:
    function, size = POOLINGS[name]
    many = torch.cat([regions(1500, -200, 700), regions(500, -30_000, 60_000)])
    module = OpModule(OpCase(name, partial(function, output_size=size, spatial_scale=0.125), (IMAGES, many)))
    return module.eval(), many


def compiled(module: nn.Module, many: Tensor) -> torch2trt.EngineModule:
    found = torch2trt.compile(module, (IMAGES, many), precision="fp32", optimization_level=0, fallback=False)
    assert isinstance(found, torch2trt.EngineModule)
    return found


@pytest.mark.parametrize("name", POOLINGS)
def test_bins_are_those_of_torchvision(name: str) -> None:
    module, many = pooling(name)
    found = compiled(module, many).reference(IMAGES, many)
    torch.testing.assert_close(found, module(IMAGES, many), rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("name", POOLINGS)
def test_bins_on_the_gpu_are_those_of_torchvision(name: str) -> None:
    module, many = pooling(name)
    found = compiled(module.cuda(), many)(IMAGES.cuda(), many.cuda())
    torch.testing.assert_close(found.cpu(), module(IMAGES, many), rtol=1e-6, atol=1e-6)
