"""Cheaper operators that give the very same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt.passes.reduce_strength import reduce_strength
from torch2trt.settings import Settings

aten = torch.ops.aten
EDGES = torch.tensor([0.0, -0.0, 1.0, -2.5, 3e38, 1e-38, 1e-45, math.inf, -math.inf, math.nan, 7.0, -1e-30])
ROUNDED = drawn(12) * 4

mul, div, add, sub = aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor

CHEAPER: dict[str, tuple[Callable[[Tensor], Tensor], list[Any]]] = {
    "square": (lambda x: x.square(), [mul]),
    "pow-2": (lambda x: x.pow(2), [mul]),
    "pow-2.0": (lambda x: x**2.0, [mul]),
    "pow-1": (lambda x: x.pow(1).exp(), [aten.exp.default]),
    "halves": (lambda x: x / 2, [mul]),
    "eighths": (lambda x: x / -8.0, [mul]),
    "doubles": (lambda x: x / 0.5, [mul]),
    "times-1": (lambda x: (x * 1).exp(), [aten.exp.default]),
    "by-1": (lambda x: (x / 1.0).exp(), [aten.exp.default]),
    "minus-0": (lambda x: (x - 0).exp(), [aten.exp.default]),
    "plus-negative-0": (lambda x: (x + -0.0).exp(), [aten.exp.default]),
    "relu-twice": (lambda x: x.relu().relu(), [aten.relu.default]),
    "abs-twice": (lambda x: x.abs().abs(), [aten.abs.default]),
    "minus-minus": (lambda x: x.neg().neg().exp(), [aten.exp.default]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CHEAPER)
def test_every_bit_is_the_same(name: str, dtype: torch.dtype) -> None:
    function, wanted = CHEAPER[name]
    for values in (EDGES, ROUNDED):
        x = values.to(dtype)
        program = rewritten(Net(function), x, passes=(reduce_strength,))
        assert targets(program) == wanted
        with torch.no_grad():
            found, expected = program(x), function(x)
        known = ~expected.isnan()
        assert torch.equal(known, ~found.isnan())
        assert torch.equal(found[known].float(), expected[known].float())
        assert torch.equal(found[known].signbit(), expected[known].signbit())


@pytest.mark.parametrize("name", ["pow-2", "eighths"])
def test_in_engines(name: str) -> None:
    check_module(Net(CHEAPER[name][0]), (ROUNDED.abs(),), Settings(precision="fp32", optimization_level=0))


KEPT: dict[str, tuple[Callable[[Tensor], Tensor], list[Any]]] = {
    "thirds": (lambda x: x / 3, [div]),
    "tenths": (lambda x: x / 10.0, [div]),
    "by-0": (lambda x: x / 0, [div]),
    "by-nearly-nothing": (lambda x: x / 2.0**-130, [div]),
    "by-too-much": (lambda x: x / 2.0**127, [div]),
    "rounded-down": (lambda x: torch.div(x, 2, rounding_mode="floor"), [aten.div.Tensor_mode]),
    "by-a-tensor": (lambda x: x / x, [div]),
    # This makes 0.0 of -0.0.
    "plus-0": (lambda x: x + 0.0, [add]),
    "minus-negative-0": (lambda x: x - (-0.0), [sub]),
    "times-minus-1": (lambda x: x * -1, [mul]),
    "pow-3": (lambda x: x.pow(3), [aten.pow.Tensor_Scalar]),
    "reciprocal-root": (lambda x: x.sqrt().reciprocal(), [aten.sqrt.default, aten.reciprocal.default]),
    "relu-of-abs": (lambda x: x.abs().relu(), [aten.abs.default, aten.relu.default]),
    "exp-twice": (lambda x: x.exp().exp(), [aten.exp.default, aten.exp.default]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_would_round_otherwise_is_kept(name: str) -> None:
    function, left = KEPT[name]
    assert targets(rewritten(Net(function), ROUNDED, passes=(reduce_strength,))) == left


def test_narrow_dtypes_hold_fewer_inverses() -> None:
    program = rewritten(Net(lambda x: (x / 2.0**14, x / 2.0**15)), ROUNDED.half(), passes=(reduce_strength,))
    assert targets(program) == [mul, div]
    # 1e38 is no power of two, and 2**-127 no normal number.
    program = rewritten(Net(lambda x: (x / 2.0**126, x / 1e38)), ROUNDED, passes=(reduce_strength,))
    assert targets(program) == [mul, div]


def test_integers() -> None:
    def integers(x: Tensor) -> Any:
        return (x + 0).abs(), x / 2, x.pow(2), (x * 1).abs(), x * 1.0, x // 4, x - 0 * 1

    x = torch.arange(-3, 4)
    program = rewritten(Net(integers), x, passes=(reduce_strength,))
    assert add not in targets(program)
    assert sub not in targets(program)
    # True division makes floats of integers, and so does a factor of 1.0.
    assert targets(program).count(div) == 1
    assert targets(program).count(mul) == 2
    for found, wanted in zip(program(x), integers(x), strict=True):
        assert torch.equal(found, wanted)


def test_squares_stay_in_float32_where_powers_do() -> None:
    def normalised(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    x = drawn(3, 16) * 300
    program = rewritten(Net(normalised), x, precision="fp16")
    (square,) = [node for node in program.calls if node.target is mul and len(node.all_input_nodes) == 1]
    assert program.spec(square).dtype == torch.float32
    assert program(x).isfinite().all()
