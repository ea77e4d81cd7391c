"""Reads and writes by strides: what they become, and which are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import Dim

import torch2trt
from torch2trt.errors import UnsupportedOpsError
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
        lambda x: x.transpose(0, 1).as_strided((4, 5), (5, 1)),  # of what is not contiguous
        lambda x: x.permute(2, 0, 1).relu().as_strided((4, 3, 2), (1, 20, 8), 3),
        lambda x: x.transpose(0, 2).sin().transpose(1, 2).as_strided((3, 8), (16, 1)),
        lambda x: x.mul(2).flatten()[7:].as_strided((3, 2), (4, 3)),
        lambda x: x.reshape(6, 10)[2:].as_strided((3, 4), (10, 1), 5),  # from before the slice
        lambda x: x.mul(2)[:, 1].as_strided_scatter(torch.ones(2), (2,), (5,), 0),  # and half beside it
        lambda x: x.permute(2, 0, 1).exp().as_strided_scatter(torch.ones(4), (4,), (3,), 2),
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
        lambda x: x.as_strided((3, 2, 3, 3), (3, 0, 2, 1), 7),
        lambda x: x.permute(2, 1, 0).relu().as_strided((5, 4, 3), (6, 4, 3), 2),
        lambda x: x.as_strided_scatter(torch.ones(3, 4), (3, 4), (20, 5)),
        lambda x: x.permute(2, 1, 0).relu().as_strided_scatter(torch.ones(4, 3), (4, 3), (5, 20), 1),
    ],
)
def test_others_become_gathers_and_scatters(function: Function) -> None:
    program = unified(function, X)
    assert strided(program) == 0
    assert {node.target for node in program.calls} & {aten.index_select.default, aten.scatter.src}


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: x.as_strided((2, 4), (4, 1), 0), X.flatten()[10:30]),  # the rest of its memory is not an input
        (lambda x: x.as_strided((5, 4), (4, 1)), X[:, 0]),
        (lambda x: x.expand(3, 5).as_strided((2, 5), (5, 1)), X[0, 0]),
        (lambda x: x.as_strided_scatter(torch.ones(2, 3), (2, 3), (1, 1)), X),  # in what order?
    ],
)
def test_unknown_memory_is_refused(function: Function, x: torch.Tensor) -> None:
    program = capture(Module(function).eval(), (x,))
    with pytest.raises(UnsupportedOpsError, match="memory"):
        unify_strides(program, Settings())


def test_dynamic_sizes_are_refused() -> None:
    module = Module(lambda x: x.as_strided((x.shape[0], 4), (20, 1))).eval()
    program = capture(module, (X,), dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    with pytest.raises(UnsupportedOpsError, match="dynamic sizes"):
        unify_strides(program, Settings())


def test_layouts_in_engines_do_not_matter() -> None:
    class Chunks(nn.Module):
        """Overlapping windows, which Longformer takes from what a linear layer computes with time as the first axis."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = self.linear(x.transpose(0, 1)).view(4, 2, 2, 3).transpose(0, 1)
            return heads.transpose(1, 2).reshape(4, 2, 2, 3).as_strided((4, 3, 2, 3), (3, 12, 12, 1)).relu()

    module, x = Chunks().eval(), torch.randn(2, 4, 6)
    compiled = torch2trt.compile(module, (x,), min_segment=1, precision="fp32", optimization_level=0, progress="none")
    with torch.no_grad():
        torch.testing.assert_close(compiled.reference(x), module(x))
