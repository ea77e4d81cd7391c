"""A module, some passes over it, and whether it still computes the same: for the tests of passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.program import Program
from torch2trt.passes import pipeline
from torch2trt.settings import Settings
from torch2trt.tools.weights import randomize

aten = torch.ops.aten
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
BATCH_NORM = aten._native_batch_norm_legit_no_training.default
CAST = aten._to_copy.default
X = torch.randn(2, 3)
X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 7, 6), torch.randn(1, 4, 5, 4, 3)


class Function(nn.Module):
    """A function of tensors as a module in evaluation mode; what else it is given becomes its submodules."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)
        self.eval()

    def forward(self, *inputs: Any) -> Any:
        members = self._modules or self._parameters or self._buffers
        return self.function(self, *inputs) if members else self.function(*inputs)


def transformed(
    module: nn.Module,
    *inputs: Any,
    passes: tuple[pipeline.Pass, ...],
    tolerance: float = 0.0,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Program:
    """Capture, run passes, check the contract after each, and compare with the module."""
    program = capture(module, inputs, dynamic_shapes=dynamic_shapes)
    with torch.no_grad():
        wanted = module(*inputs)
    for each in passes:
        each(program, Settings(**settings))
        program.graph.recompile()
        check(program, each.__name__)
    if settings.get("keep_io_dtypes", True):
        close(program(*inputs), wanted, tolerance)
    return program


def close(found: Any, wanted: Any, tolerance: float) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def count(program: Program, target: Any) -> int:
    return sum(node.target is target for node in program.calls)


def targets(program: Program) -> list[Any]:
    return [node.target for node in program.calls]


def only(program: Program, target: Any) -> fx.Node:
    (node,) = [node for node in program.calls if node.target is target]
    return node


def randomized(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    module.eval()
    randomize(module, inputs, seed=1)
    return module


def dtypes(program: Program, target: Any) -> list[torch.dtype]:
    """Of the first tensor argument of each call."""
    return [node.all_input_nodes[0].meta["val"].dtype for node in program.calls if node.target is target]


def named(value: object) -> str:
    """What a parameter is called: random tensors have no name of their own that all test processes agree on."""
    return "x" if isinstance(value, torch.Tensor) else str(value)
