"""Convolutions of one tensor as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt import api
from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings
from torch2trt.tools.weights import randomize

aten = torch.ops.aten
MERGING: dict[str, Any] = {"extra_passes": ("merge_sibling_convolutions",)}
EXACT = Settings(precision="fp32", optimization_level=0, **MERGING)
X = drawn(2, 8, 7, 6)


def widths(program: Program) -> list[int]:
    return [program.spec(node).shape[1] for node in calls(program, CONV_BLOCK)]  # type: ignore[misc]


def conv(width: int, size: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(8, width, size, **options)


def results(self: Any, x: Tensor) -> Any:
    return F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(x))


MERGED: dict[str, dict[str, nn.Module]] = {
    "1x1": {"a": conv(8), "b": conv(16), "c": conv(24)},
    "without-biases": {name: conv(8, bias=False) for name in "abc"},
    "one-bias": {"a": conv(8), "b": conv(16, bias=False), "c": conv(8, bias=False)},
    "3x3": {name: conv(16, 3, stride=2, padding=1) for name in "abc"},
    "dilated": {name: conv(16, 3, dilation=2, padding=(1, 2)) for name in "abc"},
    "norms": {name: nn.Sequential(conv(8, bias=False), nn.BatchNorm2d(8)) for name in "abc"},
}


@pytest.mark.parametrize("name", MERGED)
def test_convolutions_with_one_window(name: str) -> None:
    module = Net(results, **MERGED[name])
    if name == "norms":
        randomize(module, (X,))
    program = rewritten(module, X, tolerance=1e-6 if name == "norms" else 1e-12, **MERGING)
    (block,) = calls(program, CONV_BLOCK)
    assert (bind(block)["activation"], len(calls(program, aten.slice.Tensor))) == ("relu", 3)
    assert len(program.weight_placeholders) == 1 + (name != "without-biases")
    check_module(module, (X,), EXACT)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d, (2, 8, 9)), (nn.Conv3d, (2, 8, 4, 3, 5))], ids=["1d", "3d"])
def test_other_numbers_of_dimensions(layer: Any, shape: tuple[int, ...]) -> None:
    module = Net(results, **{name: layer(8, 16, 1) for name in "abc"})
    program = rewritten(module, drawn(*shape), **MERGING)
    assert widths(program) == [48]
    check_module(module, (drawn(*shape),), EXACT)


def test_heads_that_are_permuted() -> None:
    def detector(self: Any, x: Tensor) -> Any:
        boxes, classes = (each(x).permute(0, 2, 3, 1).flatten(1, 2) for each in (self.a, self.b))
        return torch.cat([boxes, classes.sigmoid()], 2)

    axes = {0: Dim("batch", min=1, max=3), 2: Dim("height", min=3, max=9)}
    module = Net(detector, a=conv(16, 3, padding=1), b=conv(24, 3, padding=1))
    others = [(drawn(1, 8, 3, 6),), (drawn(3, 8, 9, 6),)]
    program = rewritten(module, X, dynamic_shapes=((axes,),), others=others, **MERGING)
    assert widths(program) == [40]
    check_module(module, (X,), EXACT, dynamic_shapes=((axes,),), others=others)


def inception(self: Any, x: Tensor) -> Tensor:
    """An Inception block of four branches; three begin with a 1x1 convolution of the input."""
    direct, reduced, twice = F.relu(self.a(x)), F.relu(self.b(x)), F.relu(self.c(x))
    pooled = F.relu(self.d(F.avg_pool2d(x, 3, 1, 1)))
    return torch.cat([direct, self.b2(reduced), self.c2(twice), pooled], 1)


def block(before: int, widths: tuple[int, int, int]) -> Net:
    a, b, c = widths
    return Net(
        inception,
        a=nn.Conv2d(before, a, 1),
        b=nn.Conv2d(before, b, 1),
        c=nn.Conv2d(before, c, 1),
        d=nn.Conv2d(before, 8, 1),
        b2=nn.Conv2d(b, 8, 3, padding=1),
        c2=nn.Conv2d(c, 8, 3, padding=1),
    )


def test_what_pays_depends_on_the_sizes() -> None:
    # Concatenations and convolutions read copies of the slices.
    def made(images: int, before: int, widths: tuple[int, int, int]) -> int:
        program = rewritten(block(before, widths), drawn(images, before, 28, 28), **MERGING)
        return len(calls(program, CONV_BLOCK))

    assert made(1, 64, (32, 32, 32)) == 6
    assert made(32, 64, (32, 32, 32)) == 6
    assert made(32, 256, (32, 16, 16)) == 4
    # The wide one stays alone.
    assert made(32, 256, (192, 16, 16)) == 5


KEPT: dict[str, tuple[Callable[[Any, Tensor], Any], dict[str, nn.Module], str]] = {
    "other-inputs": (lambda self, x: (self.a(x), self.b(x * 2)), {"a": conv(8), "b": conv(8)}, ""),
    "other-windows": (lambda self, x: (self.a(x), self.b(x)), {"a": conv(8), "b": conv(8, 3, padding=1)}, ""),
    "other-strides": (lambda self, x: (self.a(x), self.b(x)), {"a": conv(8), "b": conv(8, stride=2)}, ""),
    "other-padding": (lambda self, x: (self.a(x), self.b(x)), {"a": conv(8), "b": conv(8, padding=1)}, ""),
    "other-dilation": (lambda self, x: (self.a(x), self.b(x)), {"a": conv(8, 3), "b": conv(8, 3, dilation=2)}, ""),
    "other-activations": (lambda self, x: (F.relu(self.a(x)), self.b(x)), {"a": conv(8), "b": conv(8)}, ""),
    "groups": (lambda self, x: (self.a(x), self.b(x)), {name: conv(8, groups=2) for name in "ab"}, "has 2 groups"),
    "transposed": (
        lambda self, x: (self.a(x), self.b(x)),
        {name: nn.ConvTranspose2d(8, 8, 1) for name in "ab"},
        "transposed",
    ),
    "odd-channels": (lambda self, x: (self.a(x), self.b(x)), {"a": conv(6), "b": conv(8)}, "no multiple of 8"),
    "residual-sums": (
        lambda self, x: (F.relu(self.a(x) + x), F.relu(self.b(x) + x)),
        {name: conv(8) for name in "ab"},
        "sum that follows",
    ),
    "pools": (
        lambda self, x: (F.max_pool2d(self.a(x), 2), F.max_pool2d(self.b(x), 2)),
        {name: conv(8) for name in "ab"},
        "does not pay",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_apart(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, layers, reason = KEPT[name]
    with caplog.at_level(logging.DEBUG, logger="torch2trt.passes"):
        program = rewritten(Net(function, **layers), X, **MERGING)
    assert aten.slice.Tensor not in targets(program)
    assert reason in caplog.text


def test_what_is_to_run_in_torch_stays_apart() -> None:
    module = Net(results, **MERGED["1x1"])
    program = api.optimize(api.capture(module, (X,)), Settings(run_in_torch=("aten.conv2d",), **MERGING))
    assert len(calls(program, CONV_BLOCK)) == 3


def test_only_where_it_is_asked_for() -> None:
    program = api.capture(Net(results, **MERGED["1x1"]), (X,))
    assert widths(api.optimize(program, Settings())) == [8, 16, 24]


@pytest.mark.gpu
def test_engines() -> None:
    module, x = block(256, (32, 16, 16)).cuda(), drawn(32, 256, 28, 28).cuda()
    options: dict[str, Any] = {"precision": "fp16", "progress": "none", "optimization_level": 1}
    compiled = torch2trt.compile(module, (x,), **options, **MERGING)
    assert compiled.report["fused_blocks"] == 4
    found = compiled.verify(x)
    assert found.ran == "engine"
    assert found.passed, str(found)
