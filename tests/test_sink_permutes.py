"""Permutations that cancel through pointwise operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt import api
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.sink_permutes import sink_permutes
from torch2trt.passes.views import PERMUTING
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES = (remove_noops, sink_permutes, hoist_weights, remove_dead_code)
X, Y = drawn(2, 3, 4, 5), drawn(2, 3, 4, 5, seed=1)
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)

FEWER: dict[str, tuple[Callable[..., Any], int]] = {
    "there-and-back": (lambda s, x, y: F.relu(x.permute(NHWC)).permute(NCHW), 0),
    "a-chain": (lambda s, x, y: ((x.permute(NHWC) * 2).exp() - 1).permute(NCHW), 0),
    "a-cast": (lambda s, x, y: (x.permute(NHWC).half() * 2).permute(NCHW), 0),
    "transposes": (lambda s, x, y: F.gelu(x.transpose(1, 2)).transpose(-2, 1), 0),
    "a-sum": (lambda s, x, y: (x.permute(NHWC) + y.permute(NHWC)).permute(NCHW), 0),
    "a-sum-that-stays": (lambda s, x, y: x.permute(NHWC) + y.permute(NHWC), 1),
    "a-sum-and-further": (lambda s, x, y: (x.permute(NHWC) + y.permute(NHWC)).permute(3, 2, 1, 0), 1),
    "a-vector-of-channels": (lambda s, x, y: (x.permute(NHWC) * s.channels).permute(NCHW), 0),
    "an-image": (lambda s, x, y: (x.permute(NHWC) + s.image).permute(NCHW), 0),
    "a-number": (lambda s, x, y: (x.permute(NHWC) * s.number).permute(NCHW), 0),
    "a-tensor-of-one-number": (lambda s, x, y: (x.permute(NHWC) * y.sum()).permute(NCHW), 0),
    "two-results": (lambda s, x, y: (lambda z: (z.permute(NCHW), z.exp().permute(NCHW)))(x.permute(NHWC).sin()), 0),
    "a-choice": (lambda s, x, y: torch.where(x.permute(NHWC) > 0, y.permute(NHWC), 0.0).permute(NCHW), 0),
    "another-order": (lambda s, x, y: F.relu(x.permute(NHWC)).permute(NHWC), 1),
    "one-of-two-results": (lambda s, x, y: (lambda z: (z.permute(NCHW), z.softmax(-1)))(F.relu(x.permute(NHWC))), 1),
    "one-of-two-results-of-a-sum": (
        lambda s, x, y: (lambda z: (z.permute(NCHW), z.sum(0)))(x.permute(NHWC).sin() + y.permute(NHWC)),
        1,
    ),
}


def net(function: Callable[..., Any]) -> Net:
    members = {"channels": drawn(3, seed=2), "image": drawn(1, 4, 5, 3, seed=3), "number": torch.tensor(1.5)}
    return Net(function, **members)


def permutations(program: Any) -> int:
    return sum(target in PERMUTING for target in targets(program))


@pytest.mark.parametrize("name", FEWER)
def test_fewer_permutations_are_left(name: str) -> None:
    function, wanted = FEWER[name]
    program = rewritten(net(function), X, Y, passes=PASSES)
    assert permutations(program) == wanted
    check_module(net(function), (X, Y), Settings(precision="fp32", optimization_level=0))


KEPT: dict[str, tuple[Callable[..., Any], int]] = {
    "alone": (lambda s, x, y: F.relu(x.permute(NHWC)), 1),
    "a-sum-of-orders": (lambda s, x, y: x.permute(NHWC) + y.reshape(2, 4, 5, 3), 1),
    "no-pointwise-operator": (lambda s, x, y: x.permute(NHWC).softmax(-1).permute(NCHW), 2),
    "a-tensor-that-broadcasts": (lambda s, x, y: (x.permute(NHWC) + y[0, :, 0, 0]).permute(NCHW), 2),
    "another-reader": (lambda s, x, y: (lambda z: (F.relu(z).sum(1), z))(x.permute(NHWC)), 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_would_leave_as_many(name: str) -> None:
    function, left = KEPT[name]
    assert permutations(rewritten(net(function), X, Y, passes=PASSES)) == left


def test_what_is_to_run_in_torch_is_left_alone() -> None:
    program = api.capture(net(FEWER["there-and-back"][0]), (X, Y))
    program = api.optimize(program, Settings(run_in_torch=("aten.relu",)))
    assert permutations(program) == 2


def test_dynamic_sizes_and_a_network_of_both_orders() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(4)
            self.scale = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x).permute(NHWC))
            return x + (F.gelu(y) * self.scale).permute(NCHW)

    def blocks(self: Any, x: Tensor) -> Tensor:
        return self.second(self.first(x).permute(NHWC).sigmoid().permute(NCHW))

    axes = {0: Dim("batch", min=1, max=3), 2: Dim("height", min=2, max=9)}
    others = [(drawn(1, 4, 2, 5),), (drawn(3, 4, 9, 5),)]
    module = Net(blocks, first=Block(), second=Block())
    shapes = ((axes,),)
    x = drawn(2, 4, 6, 5)
    program = rewritten(module, x, passes=PASSES, dynamic_shapes=shapes, others=others)
    assert permutations(program) == 4
    check_module(module, (x,), Settings(precision="fp32", optimization_level=0), dynamic_shapes=shapes, others=others)
