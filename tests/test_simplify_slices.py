"""Slices, splits, concatenations, selections and stacks of each other."""

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
from torch2trt import api
from torch2trt.graph.schema import bind
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.simplify_slices import simplify_slices
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES = (remove_noops, simplify_slices)
X, Y = drawn(2, 12, 3), drawn(2, 12, 3, seed=1)
EXACT = Settings(precision="fp32", optimization_level=0)

cat, slices, select = aten.cat.default, aten.slice.Tensor, aten.select.int

SIMPLER: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    # cat of pieces
    "halves-joined": (lambda x, y: torch.cat([x[:, :5], x[:, 5:]], 1), []),
    "a-split-joined": (lambda x, y: torch.cat(x.split(5, 1), 1), []),
    "chunks-joined": (lambda x, y: torch.cat(x.chunk(3, 1), -2), []),
    "sizes-joined": (lambda x, y: torch.cat(x.split([2, 4, 6], 1), 1), []),
    "three-of-four": (lambda x, y: torch.cat(x.split(3, 1)[1:], 1), [slices]),
    "the-middle": (lambda x, y: torch.cat([x[:, 2:4], x[:, 4:9]], 1), [slices]),
    "with-another": (lambda x, y: torch.cat([y, x[:, :5], x[:, 5:]], 1), [cat]),
    "a-run-of-each": (
        lambda x, y: torch.cat([x[:, :2], x[:, 2:4], y[:, 1:2], y[:, 2:4]], 1),
        [slices, slices, cat],
    ),
    # cat of cat
    "nested": (lambda x, y: torch.cat([torch.cat([x, y], 1), x], 1), [cat]),
    "nested-and-apart": (lambda x, y: torch.cat([torch.cat([x[:, :3], y], 1), y[:, :1]], 1), [slices, slices, cat]),
    "nested-pieces": (lambda x, y: torch.cat([torch.cat([y, x[:, :4]], 1), x[:, 4:]], 1), [cat]),
    "of-one": (lambda x, y: torch.cat([x], 1), []),
    "with-an-empty-one": (lambda x, y: torch.cat([x, y[:, :0]], 1), []),
    # slices
    "of-a-slice": (lambda x, y: x[:, 2:10][:, 1:4], [slices]),
    "of-steps": (lambda x, y: x[:, 1:12:2][:, 1:5:3], [slices]),
    "of-a-split": (lambda x, y: x.split(6, 1)[1][:, 2:4], [slices]),
    "a-split-of-a-slice": (lambda x, y: x[:, 2:8].split(3, 1)[1], [slices]),
    "of-everything": (lambda x, y: x[:, 0:12], []),
    "backwards": (lambda x, y: x[:, 2:][:, -3:-1], [slices]),
    # slices of cat
    "an-operand": (lambda x, y: torch.cat([x, y], 1)[:, 12:], []),
    "within-an-operand": (lambda x, y: torch.cat([x, y], 1)[:, 14:20], [slices]),
    "steps-within-an-operand": (lambda x, y: torch.cat([x, y], 1)[:, 13:20:3], [slices]),
    "two-of-three": (lambda x, y: torch.cat([x, y, x * 2], 1)[:, 12:], [aten.mul.Tensor, cat]),
    "a-split-of-a-cat": (lambda x, y: torch.cat([x, y], 1).split(12, 1), []),
    # selections
    "of-a-stack": (lambda x, y: torch.stack([x, y], 1)[:, 1], []),
    "the-last-of-a-stack": (lambda x, y: torch.stack([x, y], 3).select(-1, -1), []),
    "the-items-of-a-stack": (lambda x, y: torch.stack([x, y]).unbind(0), []),
    "of-a-slice-by-index": (lambda x, y: x[:, 3:6][:, 1], [select]),
    "of-a-cat": (lambda x, y: torch.cat([x, y], 1)[:, 15], [select]),
    "of-an-added-dimension": (lambda x, y: x.unsqueeze(1)[:, 0], []),
    "an-item-of-a-slice": (lambda x, y: x[:, 2:4].unbind(1)[1], [select]),
    "stacked-items": (lambda x, y: torch.stack(x.unbind(1), 1), []),
    "stacked-selections": (lambda x, y: torch.stack([x[0], x[1]]), []),
}


@pytest.mark.parametrize("name", SIMPLER)
def test_what_is_simpler(name: str) -> None:
    function, wanted = SIMPLER[name]

    def around(x: Tensor, y: Tensor) -> Any:
        # An input handed back would be no output.
        results = function(x.sin(), y.cos())
        return [result.exp() for result in (results if isinstance(results, tuple | list) else [results])]

    program = rewritten(Net(around), X, Y, passes=PASSES, tolerance=0)
    left = [target for target in targets(program) if target not in (aten.sin.default, aten.cos.default)]
    assert [target for target in left if target is not aten.exp.default] == wanted
    check_module(Net(around), (X, Y), EXACT)


OTHERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "another-order": (lambda x, y: torch.cat([x[:, 5:], x[:, :5]], 1), [slices, slices, cat]),
    "a-gap": (lambda x, y: torch.cat([x[:, :5], x[:, 6:]], 1), [slices, slices, cat]),
    "an-overlap": (lambda x, y: torch.cat([x[:, :5], x[:, 4:]], 1), [slices, slices, cat]),
    "steps": (lambda x, y: torch.cat([x[:, ::2], x[:, 1::2]], 1), [slices, slices, cat]),
    "another-dimension": (lambda x, y: torch.cat([x[:, :6], x[:, 6:]], 2), [slices, slices, cat]),
    "two-tensors": (lambda x, y: torch.cat([x[:, :5], y[:, 5:]], 1), [slices, slices, cat]),
    "of-another-dimension": (lambda x, y: x[:, 2:10][:, :, 1:], [slices, slices]),
    "across-operands": (lambda x, y: torch.cat([x, y], 1)[:, 6:18], [cat, slices]),
    "steps-across-operands": (lambda x, y: torch.cat([x, y], 1)[:, ::2], [cat, slices]),
    "of-a-cat-elsewhere": (lambda x, y: torch.cat([x, y], 1)[:, :, 1:], [cat, slices]),
    "promoted": (lambda x, y: torch.cat([x.half(), y], 1)[:, :12], [cat, slices]),
    "nested-elsewhere": (lambda x, y: torch.cat([torch.cat([x, y], 0), torch.cat([y, x], 0)], 1), [cat] * 3),
    "of-a-stack-elsewhere": (lambda x, y: torch.stack([x, y], 1)[:, :, 1], [aten.stack.default, select]),
    "an-added-dimension-elsewhere": (lambda x, y: x.unsqueeze(1)[0], [aten.unsqueeze.default, select]),
    "some-items": (
        lambda x, y: torch.stack(x.unbind(1)[:3], 1),
        [aten.unbind.int, *("getitem",) * 3, aten.stack.default],
    ),
    "items-in-another-order": (lambda x, y: torch.stack([x[1], x[0]]), [select, select, aten.stack.default]),
    "stacked-elsewhere": (lambda x, y: torch.stack([x[0], x[1]], 1), [select, select, aten.stack.default]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not(name: str) -> None:
    function, left = OTHERS[name]
    program = rewritten(Net(function), X, Y, passes=PASSES)
    found = [getattr(target, "__name__", "") if target.__name__ == "getitem" else target for target in targets(program)]
    assert [target for target in found if target is not aten._to_copy.default] == left


def test_a_cat_that_others_read_is_not_made_twice() -> None:
    def both(x: Tensor, y: Tensor) -> Any:
        inner = torch.cat([x, y], 1)
        return inner.exp(), torch.cat([inner, x], 1)

    program = rewritten(Net(both), X, Y, passes=PASSES, tolerance=0)
    assert [len(bind(node)["tensors"]) for node in calls(program, cat)] == [2, 2]


def test_pieces_that_serve_elsewhere_too() -> None:
    def both(x: Tensor, y: Tensor) -> Any:
        first, second = x[:, 1:3], x[:, 3:6]
        return first.exp(), second.exp(), torch.cat([y, first, second], 1)

    # One slice of both would be one more.
    program = rewritten(Net(both), X, Y, passes=PASSES, tolerance=0)
    assert targets(program).count(slices) == 2

    def one(x: Tensor, y: Tensor) -> Any:
        first, second = x[:, 1:3], x[:, 3:6]
        return first.exp(), torch.cat([y, first, second], 1)

    program = rewritten(Net(one), X, Y, passes=PASSES, tolerance=0)
    assert [node.args[1:] for node in calls(program, slices)] == [(1, 1, 3), (1, 1, 6)]


def test_other_dimensions_may_be_dynamic() -> None:
    def apart(x: Tensor, y: Tensor) -> Any:
        both = torch.cat([x, y], 2)
        return torch.cat([both[:, :, :1], both[:, :, 1:3]], 2) * both[:, :, 3:]

    axes = {0: Dim("batch", min=1, max=4), 1: Dim("length", min=1, max=20)}
    shapes = ((axes, axes),)
    others = [(drawn(1, 1, 3), drawn(1, 1, 3)), (drawn(4, 20, 3), drawn(4, 20, 3))]
    program = rewritten(Net(apart), X, Y, passes=PASSES, dynamic_shapes=shapes, others=others, tolerance=0)
    assert targets(program) == [aten.mul.Tensor]
    check_module(Net(apart), (X, Y), EXACT, dynamic_shapes=shapes, others=others)


def test_dynamic_dimensions_are_left_alone() -> None:
    def apart(x: Tensor, y: Tensor) -> Any:
        return torch.cat([x[:, :2], x[:, 2:]], 1), torch.cat([x, y], 1)[:, 1:]

    axes = {1: Dim("length", min=4, max=20)}
    others = [(drawn(2, 4, 3), drawn(2, 4, 3))]
    program = rewritten(Net(apart), X, Y, passes=PASSES, dynamic_shapes=((axes, axes),), others=others, tolerance=0)
    assert targets(program).count(cat) == 2
    assert targets(program).count(slices) == 3


def test_what_is_to_run_in_torch_is_left_alone() -> None:
    module = Net(lambda x, y: torch.cat([x.sin()[:, :5], y.cos()], 1)[:, :5].exp())
    program = api.optimize(api.capture(module, (X, Y)), Settings(run_in_torch=("aten.cat",)))
    assert targets(program).count(cat) == 1
