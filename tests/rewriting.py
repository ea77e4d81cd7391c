"""Passes run on a small module: the contract after each, and the Program in float64 beside the module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tests.passing import Function
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.exact import Exact, run_exact, widened
from torch2trt.graph.program import Program
from torch2trt.passes import pipeline
from torch2trt.settings import Settings


class Net(Function):
    """A function of its submodules and tensors, which are buffers, with seeded weights."""

    def __init__(self, function: Callable[..., Any], **members: nn.Module | torch.Tensor) -> None:
        tensors = {name: member for name, member in members.items() if isinstance(member, torch.Tensor)}
        super().__init__(function, **{name: member for name, member in members.items() if name not in tensors})
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) / max(1, value.numel() // len(value)) ** 0.5)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rewritten(
    module: nn.Module,
    *inputs: torch.Tensor,
    passes: Sequence[pipeline.Pass] | None = None,
    dynamic_shapes: Any = None,
    others: Sequence[tuple[torch.Tensor, ...]] = (),
    tolerance: float = 1e-12,
    **settings: Any,
) -> Program:
    """Capture, run passes (unset: those of the settings), and compare with the module in float64, relative to each
    result's scale.
    """
    program = capture(module, inputs, dynamic_shapes=dynamic_shapes)
    chosen = Settings.make(**settings)
    for each in pipeline.passes_of(chosen) if passes is None else passes:
        each(program, chosen)
        check(program, each.__name__)
    program.graph.recompile()
    exact = copy.deepcopy(module)._apply(widened)
    for arguments in (inputs, *others):
        with torch.no_grad():
            plain, own = program(*arguments), module(*arguments)
            with Exact():
                wanted = exact(*pytree.tree_map_only(torch.Tensor, widened, arguments))
        found, _ = run_exact(program, tuple(arguments), {})
        close(found, wanted, tolerance)
        assert [value.dtype for value in leaves(plain)] == [value.dtype for value in leaves(own)]
    return program


def leaves(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def close(found: Any, wanted: Any, tolerance: float) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, other in zip(leaves(found), leaves(wanted), strict=True):
        assert one.shape == other.shape
        if other.dtype == torch.bool:
            assert torch.equal(one, other)
        else:
            scale = max(1.0, float(other.abs().nan_to_num(posinf=0.0).max()))
            torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


def calls(program: Program, target: Any) -> list[fx.Node]:
    return [node for node in program.calls if node.target is target]
