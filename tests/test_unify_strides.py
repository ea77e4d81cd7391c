"""Reads and writes by strides: which become slices, windows or look-ups, and which stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.program import Program
from torch2trt.passes.unify_strides import unify_strides
from torch2trt.settings import Settings

aten = torch.ops.aten

Function = Callable[[torch.Tensor], torch.Tensor]


class Module(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) + 1


def unified(function: Function, x: torch.Tensor) -> Program:
    program = capture(Module(function).eval(), (x,))
    unify_strides(program, Settings())
    program.graph.recompile()
    check(program, "unify_strides")
    torch.testing.assert_close(program(x), function(x) + 1, rtol=0, atol=0)
    return program


def strided(program: Program) -> int:
    return sum(node.target in (aten.as_strided.default, aten.as_strided_scatter.default) for node in program.calls)


X = torch.arange(60.0).reshape(3, 4, 5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.as_strided((3, 4, 5), (20, 5, 1)),
        lambda x: x.as_strided((5, 3, 4), (1, 20, 5)),
        lambda x: x.as_strided((60,), (1,)),
        lambda x: x.as_strided((2, 3), (20, 5), 21),
        lambda x: x.as_strided((2, 2, 2), (40, 5, 3), 4),
        lambda x: x.as_strided((3, 4), (20, 6)),
        lambda x: x.as_strided((4,), (19,), 2),
        lambda x: x.as_strided((), (), 7),
        lambda x: x.as_strided((1, 3, 1, 2), (7, 20, 0, 1), 3),
        lambda x: x.as_strided((3, 2, 4), (20, 0, 5)),
        lambda x: x.as_strided((7, 12), (8, 1)),
        lambda x: x.as_strided((28, 3), (2, 2)),
        lambda x: x.as_strided((3, 3, 2, 5), (20, 5, 5, 1)),
        lambda x: x.as_strided((3, 2, 2, 2), (20, 10, 2, 1)),
        lambda x: x.reshape(6, 10)[2:].as_strided((3, 4), (10, 1)),
        lambda x: x.as_strided_scatter(torch.ones(3), (3,), (7,), 5),
        lambda x: x.as_strided_scatter(torch.ones(2, 1), (2, 1), (59, 4)),
        lambda x: x.as_strided_scatter(torch.ones(()), (), (), 5),
        lambda x: x[0].clone().fill_diagonal_(3),
    ],
)
def test_nested_steps_become_slices(function: Function) -> None:
    program = unified(function, X)
    assert strided(program) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.as_strided((5, 4, 3), (6, 4, 3)),  # steps of which none is a multiple of the next
        lambda x: x.as_strided((3, 3, 3), (3, 2, 1)),  # three windows in one another
        lambda x: x.as_strided((2, 1, 3, 2, 2), (1, 5, 1, 0, 3), 7),
    ],
)
def test_others_become_look_ups(function: Function) -> None:
    program = unified(function, X)
    assert strided(program) == 0
    assert any(node.target is aten.index.Tensor for node in program.calls)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(0, 1).as_strided((4, 5), (5, 1)),  # of what is not contiguous
        lambda x: x.reshape(6, 10)[2:].as_strided((3, 4), (10, 1), 5),  # from before the slice
        lambda x: x.as_strided((50, 100, 40), (0, 0, 1)).as_strided((4, 4), (1, 1)),  # of what is expanded
        lambda x: x.repeat(3, 1, 1).as_strided((51, 52, 53), (1, 1, 1)),  # in no nested steps, of many elements
        lambda x: x.as_strided_scatter(torch.ones(3, 4), (3, 4), (20, 5)),
    ],
)
def test_others_stay(function: Function) -> None:
    program = unified(function, X)
    assert strided(program) == 1
