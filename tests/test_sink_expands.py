"""What is repeated is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.sink_expands import sink_expands
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES = (sink_expands, hoist_weights, remove_dead_code)
X, ROW, COLUMN = drawn(2, 5, 6), drawn(1, 6, seed=1), drawn(5, 1, seed=2)
expand, add, mul = aten.expand.default, aten.add.Tensor, aten.mul.Tensor

SUNK: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "a-sum": (lambda x, r, c: x + r.expand(2, 5, 6), [add]),
    "both": (lambda x, r, c: r.expand(5, 6) * c.expand(5, 6), [mul]),
    "one-of-both": (lambda x, r, c: r.expand(2, 5, 6) * c.expand(5, 6), [expand, mul]),
    "a-function": (lambda x, r, c: r.expand(5, 6).exp() + x, [aten.exp.default, add]),
    "a-result": (lambda x, r, c: r.expand(5, 6).exp(), [aten.exp.default, expand]),
    "a-chain": (lambda x, r, c: (r.expand(5, 6) * 2 + 1).exp() + x, [mul, add, aten.exp.default, add]),
    "itself": (lambda x, r, c: (lambda y: y * y)(r.expand(5, 6)), [mul, expand]),
    "a-mask": (
        lambda x, r, c: torch.where((r > 0).expand(2, 5, 6), x, 0.0),
        [aten.gt.Scalar, aten.where.ScalarOther],
    ),
    "several-readers": (lambda x, r, c: (lambda y: (x + y, x * y))(r.expand(2, 5, 6)), [add, mul]),
}


@pytest.mark.parametrize("name", SUNK)
def test_what_broadcasts_by_itself(name: str) -> None:
    function, wanted = SUNK[name]
    program = rewritten(Net(function), X, ROW, COLUMN, passes=PASSES)
    left = [target for target in targets(program) if target is not aten.scalar_tensor.default]
    found = [aten.where.ScalarOther if target is aten.where.self else target for target in left]
    assert found == wanted
    check_module(Net(function), (X, ROW, COLUMN), Settings(precision="fp32", optimization_level=0))


OTHERS: dict[str, Callable[..., Any]] = {
    "joined": lambda x, r, c: torch.cat([r.expand(5, 6), x[0]]),
    "a-result": lambda x, r, c: r.expand(5, 6),
    "a-product": lambda x, r, c: c.expand(5, 6).sum(1),
    "what-shapes-it": lambda x, r, c: r.expand(5, 6) + r,
    # A single number has less say in what dtype a result has.
    "a-number": lambda x, r, c: x[0].half() > r[0, 0].expand(5, 6),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_needs_the_repeated_elements(name: str) -> None:
    program = rewritten(Net(OTHERS[name]), X, ROW, COLUMN, passes=PASSES)
    assert targets(program).count(expand) == 1


def test_constants_are_not_repeated_in_memory() -> None:
    def masked(self: Any, x: Tensor) -> Tensor:
        return x + (self.mask.expand(2, 1200, 1200) * -1e9).exp()

    module = Net(masked, mask=drawn(1, 1200).abs())
    program = rewritten(module, drawn(2, 1200, 1200), passes=PASSES)
    assert targets(program) == [add]
    (weight,) = program.weights.evaluate().values()
    assert weight.numel() == 1200


def test_dynamic_sizes() -> None:
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[-1]
        return x + (1.0 - mask[:, None, :].expand(batch, tokens, tokens).float()) * -100.0

    batch, tokens = Dim("batch", min=1, max=4), Dim("tokens", min=1, max=9)
    shapes = (({0: batch, 1: tokens, 2: tokens}, {0: batch, 1: tokens}),)
    others = [(drawn(b, t, t), drawn(b, t) > 0) for b, t in ((1, 1), (4, 9))]
    inputs = (drawn(2, 5, 5), drawn(2, 5) > 0)
    program = rewritten(Net(masked), *inputs, passes=PASSES, dynamic_shapes=shapes, others=others)
    assert not calls(program, expand)
    check_module(
        Net(masked),
        inputs,
        Settings(precision="fp32", optimization_level=0),
        dynamic_shapes=shapes,
        others=others,
    )
