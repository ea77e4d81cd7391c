"""Activations that models write as formulas, as the operators that fused blocks end in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

_Polynomial = dict[int, float]
"""Coefficients by power."""

# Relative: the constants in use have 6 to 17 digits.
_DIGITS = 1e-6
_TANH = {1: math.sqrt(2 / math.pi), 3: math.sqrt(2 / math.pi) * 0.044715}
_ERF = {1: math.sqrt(0.5)}
# What is multiplied with itself again and again has no end of factors, and no form of an activation has so many.
_MOST_FACTORS = 8
_HIGHEST_POWER = 3


def unify_activations(program: Program, settings: Settings) -> None:
    """Replace ``0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))``, ``0.5 x (1 + erf(x / √2))`` and ``x sigmoid(x)``.

    Factors and terms may come in any order and grouping, as in transformers' ``NewGELUActivation`` and ``FastGELU``.
    """
    for node in program.calls:
        if node.target is not aten.mul.Tensor or IN_TORCH in node.meta:
            continue
        found = _activation(program, node)
        if found is None:
            continue
        target, source, keywords = found
        if program.is_size(source) or program.spec(source) != program.spec(node):
            continue  # whole numbers become floats on the way
        with program.graph.graph.inserting_before(node):
            activation = call(node.graph, target, source, like=node, **keywords)
        node.replace_all_uses_with(activation)
    erase_unused(program.graph.graph)


def _activation(program: Program, node: fx.Node) -> tuple[Any, fx.Node, dict[str, str]] | None:
    if not program.spec(node).dtype.is_floating_point:
        return None
    factors = _factors(node)
    for gate in [factor for factor in factors if isinstance(factor, fx.Node) and IN_TORCH not in factor.meta]:
        rest = list(factors)
        rest.remove(gate)
        if gate.target is aten.sigmoid.default and rest == [bind(gate)["input"]]:
            return aten.silu.default, rest[0], {}
        inner = _one_plus(gate)
        if inner is None or inner.target not in (aten.tanh.default, aten.erf.default) or IN_TORCH in inner.meta:
            continue
        tensors = [factor for factor in rest if isinstance(factor, fx.Node)]
        scale = math.prod(factor for factor in rest if not isinstance(factor, fx.Node))
        if len(tensors) != 1 or not math.isclose(scale, 0.5, rel_tol=_DIGITS):
            continue
        argument = _polynomial(bind(inner)["input"], tensors[0], {})
        if inner.target is aten.tanh.default and _same(argument, _TANH):
            return aten.gelu.default, tensors[0], {"approximate": "tanh"}
        if inner.target is aten.erf.default and _same(argument, _ERF):
            return aten.gelu.default, tensors[0], {}
    return None


def _factors(node: fx.Node) -> list[Any]:
    """What a product multiplies: tensors, and numbers, those that it is divided by inverted."""
    found: list[Any] = []
    pending: list[Any] = [node]
    while pending:
        factor = pending.pop()
        if len(found) + len(pending) >= _MOST_FACTORS:
            return []
        if not isinstance(factor, fx.Node) or IN_TORCH in factor.meta:
            found.append(factor)
        elif factor.target is aten.mul.Tensor:
            pending += (bind(factor)["input"], bind(factor)["other"])
        elif factor.target is aten.div.Tensor and _is_divisor(bind(factor)["other"]):
            pending += (bind(factor)["input"], 1 / bind(factor)["other"])
        else:
            found.append(factor)
    return found


def _is_divisor(value: Any) -> bool:
    return isinstance(value, int | float) and value != 0


def _one_plus(node: fx.Node) -> fx.Node | None:
    """``x`` of ``1 + x``."""
    if node.target is not aten.add.Tensor or IN_TORCH in node.meta:
        return None
    bound = bind(node)
    return bound["input"] if bound["other"] == 1 and bound["alpha"] == 1 else None


def _polynomial(node: Any, variable: fx.Node, known: dict[fx.Node, _Polynomial | None]) -> _Polynomial | None:
    """What a value is made of, as a polynomial in another one; None where it is none, or of too high a power."""
    if not isinstance(node, fx.Node):
        return {0: float(node)} if isinstance(node, int | float) else None
    if node not in known:
        known[node] = _made_of(node, variable, known)
    return known[node]


def _made_of(node: fx.Node, variable: fx.Node, known: dict[fx.Node, _Polynomial | None]) -> _Polynomial | None:
    if node is variable:
        return {1: 1.0}
    if node.target not in (aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.pow.Tensor_Scalar):
        return None
    if IN_TORCH in node.meta:
        return None
    bound = bind(node)
    first = _polynomial(bound["input"], variable, known)
    if first is None:
        return None
    if node.target is aten.pow.Tensor_Scalar:
        return _product(*[first] * int(bound["exponent"])) if bound["exponent"] in (1, 2, 3) else None
    second = _polynomial(bound["other"], variable, known)
    if second is None:
        return None
    if node.target is aten.add.Tensor:
        alpha = bound["alpha"]
        powers = first.keys() | second.keys()
        return {power: first.get(power, 0.0) + alpha * second.get(power, 0.0) for power in powers}
    if node.target is aten.div.Tensor:
        if second.keys() != {0} or not _is_divisor(second[0]):
            return None
        second = {0: 1 / second[0]}
    return _product(first, second)


def _product(*factors: _Polynomial) -> _Polynomial | None:
    """The product of polynomials; None where it has a higher power than any form of an activation."""
    result: _Polynomial = {0: 1.0}
    for factor in factors:
        parts = [(one + other, a * b) for one, a in result.items() for other, b in factor.items()]
        if max(power for power, _ in parts) > _HIGHEST_POWER:
            return None
        result = {}
        for power, coefficient in parts:
            result[power] = result.get(power, 0.0) + coefficient
    return result


def _same(found: _Polynomial | None, wanted: _Polynomial) -> bool:
    if found is None or {power for power, value in found.items() if value} != wanted.keys():
        return False
    return all(math.isclose(found[power], value, rel_tol=_DIGITS) for power, value in wanted.items())
