"""Regions in a canonical spelling: what differs is spelled, and names are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.piecewise import Own, regions
from tests.test_pieces import X
from torch2trt.frontend.spelling import NoSpellingError, spell


def lines(function: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    ((region, values),) = regions(function, *args)
    return spell(region, values).lines


def test_names_are_no_part_of_a_spelling() -> None:
    def one(x: Tensor) -> Tensor:
        y = x * 2
        return y.relu() + torch.arange(8)

    def other(first: Tensor) -> Tensor:
        doubled = first * 2
        return doubled.relu() + torch.arange(8)

    assert lines(one, X) == lines(other, X)


def test_what_differs_is_spelled() -> None:
    y = torch.ones(4, 8)

    def ordered(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        # An argument's place is that of its first use.
        return lambda x, y: compute(x.exp(), y.exp())

    different: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (lambda x, y: x - y, (X, y)),
        (ordered(lambda x, y: x - y), (X, y)),
        (ordered(lambda x, y: y - x), (X, y)),
        (lambda x, y: torch.rsub(x, y), (X, y)),
        (lambda x, y: torch.sub(x, y, alpha=2), (X, y)),
        (lambda x, y: torch.sub(x, y, alpha=2.0), (X, y)),
        (lambda x, y: x - y, (X.double(), y)),
        (lambda x, y: x - y, (X[:2], y[:2])),
        (lambda x, y: x - y, (X.t().contiguous().t(), y)),
        (lambda x, y: (x - y, x + y), (X, y)),
        (lambda x, y: (x + y, x - y), (X, y)),
        (lambda x, y: (x - y, x + y)[0], (X, y)),
        (lambda x, y: (x - y)[:1], (X, y)),
        (lambda x, y: (x - y)[None], (X, y)),
        (lambda x, y: (x - y)[...], (X, y)),
        (lambda x, y: (x - y).to(torch.float16), (X, y)),
        (lambda x, y: (x - y).to(torch.bfloat16), (X, y)),
        (lambda x, y: x - y + torch.tensor([1.0]), (X, y)),
        (lambda x, y: x - y + torch.tensor([-0.0]), (X, y)),
        (lambda x, y: x - y + torch.tensor([0.0]), (X, y)),
        (lambda x, y: x - y + torch.zeros(1), (X, y)),
        (ordered(lambda x, y: torch.cat([x, y])), (X, y)),
        (ordered(lambda x, y: torch.cat([y, x])), (X, y)),
        (lambda x, y: torch.cat([x, y], 1), (X, y)),
        (lambda x, y: torch.cat([x, x]), (X, y)),
    ]
    found = [lines(function, *args) for function, args in different]
    assert len(set(found)) == len(found)


def test_the_state_of_torch_is_spelled() -> None:
    before = lines(lambda x: x.relu(), X)
    with torch.autocast("cpu", torch.bfloat16):
        inside = lines(lambda x: x.relu(), X)
    assert [*before, "autocast on cpu to torch.bfloat16"] == [*inside]
    torch.set_default_dtype(torch.float64)
    try:
        assert lines(lambda x: x.relu(), X) != before
    finally:
        torch.set_default_dtype(torch.float32)


def test_ranges_are_spelled() -> None:
    def dynamic(low: int, high: int, count: int = 4) -> tuple[str, ...]:
        x = torch.ones(count, 8)
        torch._dynamo.mark_dynamic(x, 0, min=low, max=high)
        return lines(lambda x: x * x.shape[0], x)

    assert dynamic(2, 16) == dynamic(2, 16, 5)
    assert len({dynamic(2, 16), dynamic(3, 16), dynamic(2, 17), lines(lambda x: x * x.shape[0], torch.ones(4, 8))}) == 4


def test_operators_that_call_functions_have_no_spelling() -> None:
    def chosen(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    ((region, args),) = regions(chosen, X)
    with pytest.raises(NoSpellingError, match=r"cond, which calls functions|holds a GraphModule"):
        spell(region, args)


def test_functions_of_others_have_no_spelling() -> None:
    (region, args), *_ = regions(Own().eval(), X)
    with pytest.raises(NoSpellingError, match=r"own, which is no function of torch"):
        spell(region, args)
