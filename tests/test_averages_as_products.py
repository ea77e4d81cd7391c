"""Means of norms as products, which TensorRT 10.6 computes rightly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt.passes.averages_as_products import averages_as_products
from torch2trt.settings import Settings

aten = torch.ops.aten

IMAGE = drawn(2, 3, 4, 8)
norm, mean, linear = aten.linalg_vector_norm.default, aten.mean.dim, aten.linear.default


def strength(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, 2, (1, 2), keepdim=True)


REPLACED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of a norm": lambda x: x * (strength(x) / (strength(x).mean(-1, keepdim=True) + 1e-6)),
    "sum of a norm": lambda x: x / strength(x).sum(-1, keepdim=True),
    "mean of a mean": lambda x: x.mean((1, 2), keepdim=True).exp().mean(3, keepdim=True),
    "mean of a deviation, without places": lambda x: x.std((1, 2)).mean(-1, keepdim=True),
    "mean of the largest": lambda x: (x.amax((1, 2)) + 1).mean(1, keepdim=True),
}

KEPT: dict[str, Callable[[Tensor], Tensor]] = {
    "of no reduction": lambda x: x.exp().mean(-1, keepdim=True),
    "along another dimension": lambda x: x.mean(-1, keepdim=True).mean(1, keepdim=True),
    "along several": lambda x: x.mean(1, keepdim=True).mean((2, 3), keepdim=True),
    "of one number": lambda x: x.mean(-1, keepdim=True).mean(-1, keepdim=True),
    "without the dimension": lambda x: x.mean(1).mean(-1),
    "of integers": lambda x: x.to(torch.int32).sum(1).sum(-1, keepdim=True),
    "of a single number": lambda x: aten.mean.dim(x.amax((0, 1, 2, 3)).exp(), [0], True),
    "behind another operator": lambda x: x.mean(1).softmax(-1).mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", REPLACED)
def test_it_is_a_product(name: str) -> None:
    program = rewritten(Net(REPLACED[name]), IMAGE, passes=(averages_as_products,), tolerance=1e-7)
    assert targets(program).count(linear) == 1
    check_module(Net(REPLACED[name]), (IMAGE,), Settings(precision="fp32", optimization_level=0))


@pytest.mark.parametrize("name", KEPT)
def test_all_else_stays(name: str) -> None:
    assert linear not in targets(rewritten(Net(KEPT[name]), IMAGE, passes=(averages_as_products,)))


def test_the_last_dimension_may_not_be_dynamic_and_others_may() -> None:
    function = REPLACED["mean of a norm"]
    for axis, count in ((0, 1), (1, 1), (3, 0)):
        shapes: Any = (({axis: Dim("size", min=2, max=16)},),)
        program = rewritten(Net(function), IMAGE, passes=(averages_as_products,), dynamic_shapes=shapes, tolerance=1e-7)
        assert targets(program).count(linear) == count


def test_it_stays_float32_in_halves() -> None:
    program = rewritten(Net(REPLACED["mean of a norm"]), IMAGE, precision="fp16", tolerance=3e-3)
    products = [node for node in program.calls if node.target is linear]
    assert [program.spec(node).dtype for node in products] == [torch.float32]
    assert mean not in targets(program)
