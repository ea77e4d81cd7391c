"""Cheaper operators where they give the very same numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants
from torch2trt.settings import Settings

aten = torch.ops.aten

_IDEMPOTENT = frozenset(
    {
        *(aten.relu.default, aten.relu6.default, aten.abs.default, aten.sign.default),
        *(aten.ceil.default, aten.floor.default, aten.trunc.default, aten.round.default),
    }
)
_INVOLUTIONS = frozenset({aten.neg.default, aten.logical_not.default, aten.bitwise_not.default})


def reduce_strength(program: Program, settings: Settings) -> None:
    """Write squares and divisions by powers of two as products, and drop what does nothing.

    Only what is exact to the bit: ``1 / sqrt(x)`` is not quite ``rsqrt(x)``, and ``x + 0.0`` makes ``0.0`` of ``-0.0``.
    This comes after the precision is set, since powers are computed in float32 and products are not.
    """
    constant = constants(program)
    for node in program.calls:
        if program.is_size(node) or node in constant or IN_TORCH in node.meta:
            continue
        with program.graph.graph.inserting_before(node):
            replacement = _cheaper(program, node)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            program.graph.graph.erase_node(node)
    erase_unused(program.graph.graph)


def _cheaper(program: Program, node: fx.Node) -> fx.Node | None:
    bound = bind(node) if isinstance(node.target, torch._ops.OpOverload) else {}
    source = bound.get("input")
    if not isinstance(source, fx.Node) or program.is_size(source):
        return None
    if _does_nothing(program, node, bound):
        return source if program.spec(source) == program.spec(node) else None
    if node.target in _IDEMPOTENT and source.target is node.target and IN_TORCH not in source.meta:
        return source
    if node.target in _INVOLUTIONS and source.target is node.target and IN_TORCH not in source.meta:
        first: fx.Node = bind(source)["input"]
        return first if program.spec(first) == program.spec(node) else None
    if node.target is aten.square.default or (node.target is aten.pow.Tensor_Scalar and bound["exponent"] == 2):
        same = program.spec(source).dtype == program.spec(node).dtype != torch.bool
        return call(node.graph, aten.mul.Tensor, source, source, like=node) if same else None
    if node.target is aten.div.Tensor and _has_exact_inverse(program.spec(source).dtype, bound["other"]):
        return call(node.graph, aten.mul.Tensor, source, 1 / bound["other"], like=node)
    return None


def _does_nothing(program: Program, node: fx.Node, bound: dict[str, Any]) -> bool:
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return _is_number(bound["other"]) and bound["other"] == 1
    if node.target is aten.pow.Tensor_Scalar:
        return bool(bound["exponent"] == 1)
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        number = bound["other"]
        if not _is_number(number) or number * bound["alpha"] != 0:
            return False
        negative = math.copysign(1, number * bound["alpha"]) < 0
        return not program.spec(node).dtype.is_floating_point or negative == (node.target is aten.add.Tensor)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_exact_inverse(dtype: torch.dtype, divisor: Any) -> bool:
    """Whether dividing by a number is multiplying by another one: both are powers of two that the dtype holds."""
    if not dtype.is_floating_point or not _is_number(divisor):
        return False
    info = torch.finfo(dtype)
    held = info.smallest_normal <= abs(divisor) <= info.max and info.smallest_normal <= abs(1 / divisor) <= info.max
    return held and abs(math.frexp(divisor)[0]) == 0.5
