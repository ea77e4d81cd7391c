"""Tensors of one number: what they no longer depend on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.export import Dim

from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.program import Program
from torch2trt.passes.pipeline import run_passes
from torch2trt.passes.unify_factories import unify_factories
from torch2trt.settings import Settings

aten = torch.ops.aten


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def unified(function: Callable[[torch.Tensor], torch.Tensor], dynamic: bool = False) -> Program:
    x = torch.randn(2, 3)
    shapes = {"x": {0: Dim("batch", min=1, max=8)}} if dynamic else None
    program = capture(Function(function).eval(), (x,), dynamic_shapes=shapes)
    unify_factories(program, Settings())
    program.graph.recompile()
    check(program, "unify_factories")
    for size in (2, 5) if dynamic else (2,):
        y = torch.randn(size, 3)
        torch.testing.assert_close(program(y), function(y), rtol=0, atol=0)
    return program


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + x.new_zeros(3),
        lambda x: x + x.new_ones((2, 1)),
        lambda x: x + x.new_full((2, 3), 7),
        lambda x: x + torch.zeros_like(x, dtype=torch.float16),
        lambda x: x + torch.ones_like(x),
        lambda x: x + torch.full_like(x, 2, dtype=torch.int64),
        lambda x: x + torch.empty_like(x).fill_(3),
        lambda x: x + torch.zeros(3, dtype=torch.float64).float() + torch.ones(3, dtype=torch.bool),
        lambda x: x + x.clone().zero_(),
    ],
)
def test_numbers_everywhere_depend_on_nothing(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    program = unified(function)
    fulls = [node for node in program.calls if node.target is aten.full.default]
    assert fulls
    assert not any(node.all_input_nodes for node in fulls)
    used = {node.target for node in program.calls if node.users}
    assert used <= {aten.full.default, aten.add.Tensor, aten._to_copy.default}


def test_dynamic_shapes_among_the_arguments() -> None:
    program = unified(lambda x: x + x.new_ones(x.shape[0], 1), dynamic=True)
    (full,) = [node for node in program.calls if node.target is aten.full.default]
    assert all(program.is_size(node) for node in full.all_input_nodes)


def test_dynamic_shapes_of_tensors_stay_with_them() -> None:
    program = unified(lambda x: x + torch.ones_like(x), dynamic=True)
    assert aten.ones_like.default in {node.target for node in program.calls}


def test_a_mask_written_piece_by_piece_becomes_a_weight() -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        mask = x.new_zeros(4, 4)
        for number, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, None))):
            mask[rows, 1:] = number
        return x + mask.ne(mask.T).float()[1, :3]

    x = torch.randn(1, 3)
    program = run_passes(capture(Function(masked).eval(), (x,)), Settings())
    assert [node.target for node in program.calls] == [aten.add.Tensor]
    torch.testing.assert_close(program(x), masked(x), rtol=0, atol=0)
