"""Casts of casts, and casts around what moves data."""

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
from torch2trt.graph.schema import bind
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.simplify_casts import CAST, simplify_casts, widens
from torch2trt.passes.unify_views import unify_views
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES = (unify_views, remove_noops, simplify_casts)
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, HALF, BRAIN, SINGLE)
X = drawn(2, 6, 4)


def _values(dtype: torch.dtype) -> Tensor:
    """Every value of a dtype of up to 16 bits, and of wider ones those that tell them apart."""
    if dtype == torch.bool:
        return torch.tensor([False, True])
    if dtype in (HALF, BRAIN):
        every = torch.arange(1 << 16, dtype=torch.int32).sub(1 << 15).to(torch.int16).view(dtype)
        return every[every.isfinite()]
    if dtype == SINGLE:
        return torch.tensor([1e-45, 1 + 2**-23, 3.4e38, 1e-40])
    info = torch.iinfo(dtype)
    if info.bits <= 16:
        return torch.arange(info.min, info.max + 1).to(dtype)
    return torch.tensor([info.min, info.max, 2**24 + 1, 2 ** (info.bits - 2) + 1], dtype=dtype)


@pytest.mark.parametrize("target", DTYPES, ids=str)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_a_dtype_that_holds_all_values_of_another(source: torch.dtype, target: torch.dtype) -> None:
    values = _values(source)
    kept = values.to(target)
    # Casts from floats to integers that cannot hold them say nothing.
    same = torch.equal(kept.to(torch.float64), values.to(torch.float64)) and torch.equal(kept.to(source), values)
    if source.is_floating_point and not target.is_floating_point:
        same = False
    if source == torch.int64 and target == torch.int64:
        same = True
    assert widens(source, target) == same


FEWER: dict[str, tuple[Callable[[Tensor], Any], list[torch.dtype]]] = {
    "there-and-back": (lambda x: x.half().float().half().exp(), [HALF]),
    "further": (lambda x: x.half().float().bfloat16().exp(), [HALF, BRAIN]),
    "a-chain": (lambda x: x.half().float().half().float().half().exp(), [HALF]),
    "from-integers": (lambda x: x.to(torch.int8).to(torch.int32).to(SINGLE).exp(), [torch.int8, SINGLE]),
    "from-a-mask": (lambda x: (x > 0).to(torch.int64).to(SINGLE).exp(), [SINGLE]),
    "a-mask-and-back": (lambda x: (x > 0).to(SINGLE).to(torch.bool).logical_not(), []),
    "through-a-view": (lambda x: x.half().float().reshape(12, 4).half().exp(), [HALF]),
    "through-a-permutation": (lambda x: x.half().float().permute(2, 0, 1).reshape(8, 6).half().exp(), [HALF]),
    "through-a-slice": (lambda x: x.half().float()[:, 1:3].half().exp(), [HALF]),
    "through-a-selection": (lambda x: x.half().float()[:, 1].half().exp(), [HALF]),
}


@pytest.mark.parametrize("name", FEWER)
def test_casts_that_lose_nothing_on_the_way(name: str) -> None:
    function, wanted = FEWER[name]
    program = rewritten(Net(function), X, passes=PASSES)
    assert [bind(node)["dtype"] for node in calls(program, CAST)] == wanted
    with torch.no_grad():
        assert torch.equal(program(X), function(X))


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "rounding": lambda x: x.half().float().exp(),
    "rounding-twice": lambda x: x.half().bfloat16().half().exp(),
    "whole-numbers": lambda x: (x * 3).to(torch.int32).float().exp(),
    "a-condition": lambda x: x.half().to(torch.bool).to(HALF).exp(),
    "another-reader-between": lambda x: (lambda y: y.exp() + y.half().float())(x.half().float() + 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_casts_that_round_are_kept(name: str) -> None:
    before = rewritten(Net(KEPT[name]), X, passes=(unify_views, remove_noops))
    program = rewritten(Net(KEPT[name]), X, passes=PASSES)
    assert targets(program) == targets(before)
    assert torch.equal(program(X), KEPT[name](X))


def order(program: Any) -> list[Any]:
    return [target for target in targets(program) if target is not aten.exp.default]


reshape, permute, expand = aten.reshape.default, aten.permute.default, aten.expand.default

MOVED: dict[str, tuple[Callable[[Tensor], Any], list[Any]]] = {
    "widened-after": (lambda x: x.float().permute(2, 0, 1).reshape(4, 12).exp(), [permute, reshape, CAST]),
    "widened-after-a-slice": (lambda x: x.float()[:, 1:].exp(), [aten.slice.Tensor, CAST]),
    "widened-before-an-expansion": (
        lambda x: x[:, :1].expand(2, 6, 4).float().exp(),
        [aten.slice.Tensor, CAST, expand],
    ),
}
NARROWED: dict[str, tuple[Callable[[Tensor], Any], list[Any]]] = {
    "narrowed-before": (lambda x: x.permute(2, 0, 1).reshape(4, 12).half().exp(), [CAST, permute, reshape]),
    "narrowed-after-a-slice": (lambda x: x[:, 1:].half().exp(), [aten.slice.Tensor, CAST]),
    "a-slice-of-what-is-narrowed": (lambda x: x.half()[:, 1:].exp(), [aten.slice.Tensor, CAST]),
    "narrowed-before-an-expansion": (
        lambda x: x[:, :1].expand(2, 6, 4).half().exp(),
        [aten.slice.Tensor, CAST, expand],
    ),
    "of-the-same-size": (lambda x: x.permute(2, 0, 1).to(torch.int32) * 2, [permute, CAST, aten.mul.Tensor]),
}


@pytest.mark.parametrize("name", [*MOVED, *NARROWED])
def test_the_smaller_dtype_is_moved(name: str) -> None:
    function, wanted = (MOVED | NARROWED)[name]
    x = X.half() if name in MOVED else X
    program = rewritten(Net(function), x, passes=PASSES)
    assert order(program) == wanted
    assert torch.equal(program(x), function(x))
    check_module(Net(function), (x,), Settings(optimization_level=0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_bytes_are_not_moved(dtype: torch.dtype) -> None:
    # TensorRT only casts them, so moving them would take more casts.
    def moved(x: Tensor) -> Any:
        return x.float().permute(2, 0, 1).exp(), x.float()[:, 1:].exp(), x.float().exp().flip(0).to(dtype)

    x = (X.abs() * 3).to(dtype)
    program = rewritten(Net(moved), x, passes=PASSES)
    assert [node.meta["val"].dtype for node in program.calls if node.target in (permute, aten.slice.Tensor)] == [
        SINGLE,
        SINGLE,
    ]
    assert targets(program)[-2:] == [aten.flip.default, CAST]
    check_module(Net(moved), (x,), Settings(precision="fp32", optimization_level=0))


def test_a_cast_that_others_read_stays_where_it_is() -> None:
    def both(x: Tensor) -> Any:
        wide = x.float()
        return wide.permute(2, 0, 1).exp(), wide.sin()

    program = rewritten(Net(both), X.half(), passes=PASSES)
    assert targets(program)[0] is CAST
    assert targets(program).count(CAST) == 1


def test_weights_are_rounded_as_the_module_says() -> None:
    module = Net(lambda self, x: x * self.w.half().float().t(), w=drawn(4, 6) * 100)
    program = rewritten(module, X, passes=PASSES)
    assert order(program) == [CAST, CAST, aten.t.default, aten.mul.Tensor]
    assert torch.equal(program(X), module(X))


def test_dynamic_sizes() -> None:
    def moved(x: Tensor) -> Tensor:
        return x.float().permute(0, 2, 1).reshape(x.shape[0], -1).half().exp()

    shapes = ({0: Dim("batch", min=1, max=5)},)
    others = [(drawn(1, 6, 4).half(),), (drawn(5, 6, 4).half(),)]
    program = rewritten(Net(moved), X.half(), passes=PASSES, dynamic_shapes=(shapes,), others=others)
    assert CAST not in targets(program)
