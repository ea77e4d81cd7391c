"""Depthwise convolutions that a kernel in Triton computes, as plugins, where TensorRT has plugins."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.passing import targets
from tests.plugging import Added, added, enterprise, optimized
from torch2trt.converters.lower import lower
from torch2trt.graph.flops import flops
from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.plugged_ops import DEPTHWISE_CONV
from torch2trt.trt import flavour as flavours

__all__ = ["added"]  # fixtures, which tests name

aten = torch.ops.aten
PLUGGED: dict[str, Any] = {"precision": "fp16"}
TOLERANCE = 300.0  # of results in float32 that were computed in halves
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


class Block(nn.Module):
    """What ConvNeXt is made of.

    Args:
        conv: its convolution.
        last: whether the channels are last around it.
        inner: whether it is in a network of images.
    """

    def __init__(self, conv: nn.Conv2d, *, last: bool = True, inner: bool = False) -> None:
        super().__init__()
        self.conv, self.last, self.inner = conv, last, inner
        self.norm, self.mix = nn.LayerNorm(conv.out_channels), nn.Linear(conv.out_channels, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.inner:
            return self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        x = x.sin().permute(0, 3, 1, 2) if self.last else x.permute(0, 3, 1, 2).sin()
        if not self.last:
            return self.conv(x).relu()  # type: ignore[no-any-return]
        return self.mix(self.norm(self.conv(x).permute(0, 2, 3, 1)))  # type: ignore[no-any-return]


def conv(window: Any = 7, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(12, 12, window, **{"padding": 3, "groups": 12, **options})


X = torch.randn(2, 9, 13, 12, generator=torch.Generator().manual_seed(1))
TAKEN = {
    "padded": Block(conv()),
    "not padded": Block(conv(padding=0)),
    "without a bias": Block(conv(bias=False)),
    "oblong": Block(conv((7, 9), padding=(2, 4))),
}
LEFT = {
    "small windows": Block(conv(5, padding=2)),
    "strides": Block(conv(stride=2)),
    "dilation": Block(conv(dilation=2)),
    "groups of two": Block(conv(groups=6)),
    "channels first": Block(conv(), last=False),
}


@needs_triton
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_one_operator(name: str) -> None:
    program = optimized(TAKEN[name].eval(), X, **PLUGGED)
    assert targets(program).count(DEPTHWISE_CONV) == 1
    assert not {CONV_BLOCK, aten.permute.default, aten.transpose.int} & {*targets(program)}
    compare(program(X), truth(TAKEN[name], (X,)), TOLERANCE)


class Stage(nn.Module):
    """What comes before a first block of ConvNeXt's, blocks with residuals, and what makes images smaller.

    Args:
        before: what makes images of the input.
    """

    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.smaller = before, nn.Conv2d(12, 12, 2, 2)
        self.blocks = nn.ModuleList([Block(conv(), inner=True) for _ in range(4)])
        self.norm, self.pool = nn.LayerNorm(12), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for block in self.blocks[:2]:
            x = x + block(x)
        x = self.smaller(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        for block in self.blocks[2:]:
            x = x + block(x)
        return self.pool(x)  # type: ignore[no-any-return]


STAGES = {
    "behind a convolution": Stage(nn.Conv2d(3, 12, 3, padding=1)),
    "behind a convolution and its activation": Stage(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.GELU())),
}


@needs_triton
@pytest.mark.parametrize("name", STAGES)
def test_whole_stages_have_the_channels_last(name: str) -> None:
    module, x = STAGES[name].eval(), torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    program = optimized(module, x, **PLUGGED)
    assert targets(program).count(DEPTHWISE_CONV) == 4
    # The convolution before the stages, what cuts the patches out, and what is pooled.
    assert targets(program).count(CONV_BLOCK) == 1
    assert targets(program).count(aten.permute.default) == 3
    compare(program(x), truth(module, (x,)), TOLERANCE)
    sizes: Any = ({0: Dim("batch", min=1, max=8)},)
    dynamic = optimized(module, x, shapes=sizes, **PLUGGED)
    assert sorted(map(str, targets(dynamic))) == sorted(map(str, targets(program)))
    compare(dynamic(x[:1]), truth(module, (x[:1],)), TOLERANCE)


@needs_triton
@pytest.mark.parametrize("before", [nn.MaxPool2d(2), nn.ReLU()], ids=["pooled", "an input"])
def test_images_with_the_channels_first_stay_so(before: nn.Module) -> None:
    module = nn.Sequential(before, Block(conv(), inner=True)).eval()
    program = optimized(module, X.permute(0, 3, 1, 2).contiguous(), **PLUGGED)
    assert DEPTHWISE_CONV not in targets(program)
    assert targets(program).count(CONV_BLOCK) == 1


@needs_triton
def test_it_is_a_plugin(added: Added) -> None:
    lower(optimized(TAKEN["padded"].eval(), X, **PLUGGED), enterprise())
    ((_, plugin),) = added
    assert plugin.call.target is DEPTHWISE_CONV


@pytest.mark.parametrize("name", LEFT)
def test_what_tensorrt_computes_as_well(name: str) -> None:
    program = optimized(LEFT[name].eval(), X, **PLUGGED)
    assert targets(program).count(CONV_BLOCK) == 1
    assert DEPTHWISE_CONV not in targets(program)


@needs_triton
def test_it_can_be_left_out_and_is_in_halves() -> None:
    module = TAKEN["padded"].eval()
    for settings in (PLUGGED | {"skip_passes": ["plug_depthwise"]}, PLUGGED | {"precision": "fp32"}):
        assert DEPTHWISE_CONV not in targets(optimized(module, X, **settings))


@needs_triton
def test_its_operations_are_counted() -> None:
    module = TAKEN["padded"].eval()
    plain, plugged = (
        sum(flops(optimized(module, X, **each), {}).values())
        for each in (PLUGGED | {"skip_passes": ["plug_depthwise"]}, PLUGGED)
    )
    assert plain == plugged


_INTERPRETED = """
import torch
from torch2trt.graph.depthwise_kernel import depthwise
from torch2trt.graph.plugged_ops import DEPTHWISE_CONV
for shape, window, padding in (
    ((2, 9, 13, 20), (7, 7), [3, 3]), ((1, 7, 7, 70), (7, 7), [3, 3]), ((1, 8, 18, 8), (7, 9), [0, 2])
):
    x, taps, bias = torch.randn(shape), torch.randn(*window, shape[-1]), torch.randn(shape[-1])
    for own in (bias, None):
        wanted = DEPTHWISE_CONV(x.double(), taps.double(), None if own is None else own.double(), padding)
        found = depthwise(x, taps, own, padding, torch.empty(wanted.shape))
        assert (found - wanted).abs().max() < 1e-4, (found - wanted).abs().max()
"""


@needs_triton
def test_the_kernel_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", TAKEN)
def test_engines_with_it_are_right(name: str) -> None:
    module, x = copy.deepcopy(TAKEN[name]).eval().cuda(), X.cuda()
    compiled = torch2trt.compile(module, (x,), optimization_level=0, progress="none", **PLUGGED)
    assert len(compiled.artifact.calls) == (compiled.artifact.flavour == flavours.TENSORRT)
    for _ in range(3):
        compare(compiled(x), truth(module, (x,)), TOLERANCE)
