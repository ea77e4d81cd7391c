"""Functions as modules, their Programs, and the comparison of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.program import Program


@dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor | None = None


pytree.register_dataclass(Pair)


class Function(nn.Module):
    """A function as a module in evaluation mode, so that its parameters keep their names."""

    def __new__(cls, function: Callable[..., Any]) -> Function:
        named = type(function.__name__, (cls,), {"forward": staticmethod(function)})
        return super().__new__(named)

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.eval()


def captured(module: nn.Module, *args: Any, dynamic_shapes: Any = None, **kwargs: Any) -> Program:
    """Capture, and compare Program and module on the example."""
    program = capture(module, args, kwargs, dynamic_shapes=dynamic_shapes)
    check(program, "capture")
    same(program, module, *args, **kwargs)
    return program


def same(program: Program, module: nn.Module, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        wanted = module(*args, **kwargs)
    found = program(*args, **kwargs)
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert type(one) is type(other)
            assert one == other


def kinds(program: Program) -> list[type]:
    return [type(leaf) for leaf in program.signature.outputs]


def targets(program: Program) -> list[Any]:
    return [node.target for node in program.calls]


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
BATCH = Dim("batch", min=1, max=8)
