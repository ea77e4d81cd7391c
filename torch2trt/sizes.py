"""Sizes that may be symbolic: integers, or sympy expressions over the named dynamic dimensions."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, ToFloat, TruncToInt

Size: TypeAlias = int | sympy.Expr
"""A dimension: a plain int where it is known, otherwise an expression such as ``12*batch``."""

Shape = tuple[Size, ...]


@dataclass(frozen=True)
class DimRange:
    """The sizes one named dimension may take: an engine is tuned at ``opt`` and valid from ``min`` to ``max``."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of one tensor."""

    shape: Shape
    dtype: torch.dtype

    @property
    def is_static(self) -> bool:
        """Whether every size is a plain int."""
        return all(isinstance(size, int) for size in self.shape)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def at(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the named dimensions have these sizes."""
        return tuple(evaluate(size, values) for size in self.shape)


def to_size(value: Any) -> Size:
    """An int or a symbolic number of torch's as :data:`Size`."""
    if isinstance(value, torch.SymInt):
        return simplify(value.node.expr)
    if isinstance(value, torch.SymFloat | torch.SymBool):
        return value.node.expr  # no size, and never to be rounded to one
    if isinstance(value, sympy.Expr):
        return simplify(value)
    return int(value)


def to_shape(values: Iterable[Any]) -> Shape:
    """A ``torch.Size`` as :data:`Shape`."""
    return tuple(to_size(value) for value in values)


def simplify(expr: sympy.Expr) -> Size:
    """A constant expression as an int, one without floating point where that says the same."""
    if expr.is_number:
        return int(expr)
    return expr.replace(TruncToInt, _scaled)


def _scaled(expr: sympy.Expr) -> sympy.Expr:
    """``int(1.5 * size)`` as ``3 * size // 2``; factors that floating point only approximates stay as they are."""
    factor, rest = expr.as_coeff_Mul()
    numerator, denominator = float(factor).as_integer_ratio()
    if isinstance(rest, ToFloat) and denominator <= 64:
        return FloorDiv(numerator * rest.args[0], denominator)
    return TruncToInt(expr)


def symbols(shape: Iterable[Size]) -> set[str]:
    """The names of the symbols in sizes."""
    return {item.name for size in shape if isinstance(size, sympy.Expr) for item in size.free_symbols}


def volume(shape: Iterable[Size]) -> Size:
    """The number of elements of a shape."""
    result: Size = 1
    for size in shape:
        result = result * size
    return result


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """The number that a size is where the named dimensions have these sizes."""
    if isinstance(size, int):
        return size
    return int(size.subs({symbol: values[symbol.name] for symbol in size.free_symbols}))


def largest(size: Size, ranges: Mapping[str, DimRange]) -> int:
    """The most that a size can be, taken at the ends of the ranges; ``sys.maxsize`` where a symbol has no range."""
    if isinstance(size, int):
        return size
    names = sorted(symbol.name for symbol in size.free_symbols)
    if not ranges.keys() >= set(names):
        return sys.maxsize
    ends = itertools.product(*((ranges[name].min, ranges[name].max) for name in names))
    return max(evaluate(size, dict(zip(names, values, strict=True))) for values in ends)


def size_to_json(size: Size) -> int | str:
    """A size as a JSON value: an int, or the expression's text."""
    return size if isinstance(size, int) else str(size)


def size_from_json(value: int | str) -> Size:
    """The inverse of :func:`size_to_json`.

    The text is parsed as arithmetic only (names, numbers, operators, min, max and roundings), never evaluated as
    Python.
    """
    if isinstance(value, int):
        return value
    return simplify(_parse(value))


def _parse(text: str) -> sympy.Expr:
    import ast

    from torch.utils._sympy import functions

    binary: dict[type, Any] = {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.Pow: lambda a, b: a**b,
        ast.Div: lambda a, b: a / b,
        ast.FloorDiv: functions.FloorDiv,
        ast.Mod: functions.Mod,
    }
    names = (
        *("FloorDiv", "Mod", "PythonMod", "IntTrueDiv", "FloatTrueDiv", "ToFloat"),
        *("CeilToInt", "FloorToInt", "RoundToInt", "TruncToInt"),
    )
    calls: dict[str, Any] = {"Max": sympy.Max, "Min": sympy.Min} | {name: getattr(functions, name) for name in names}

    def walk(node: ast.AST) -> sympy.Expr:
        match node:
            case ast.Expression(body=body):
                return walk(body)
            case ast.Constant(value=int() as value):
                return sympy.Integer(value)
            case ast.Constant(value=float() as value):
                return sympy.Float(value)
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(op=ast.Pow(), right=right) if not isinstance(
                right, ast.Constant
            ) or right.value not in range(9):
                raise ValueError(f"not a size: {text!r}")  # sizes are polynomials; a tower of powers would never end
            case ast.BinOp(left=left, op=op, right=right) if type(op) in binary:
                return binary[type(op)](walk(left), walk(right))
            case ast.Call(func=ast.Name(id=name), args=args) if name in calls:
                return calls[name](*(walk(arg) for arg in args))
        raise ValueError(f"not a size: {text!r}")

    return walk(ast.parse(text, mode="eval"))


def symbol(name: str) -> sympy.Symbol:
    """The symbol of a named dynamic dimension, or of a size that depends on data, which may be 0."""
    if depends_on_data(name):
        return sympy.Symbol(name, integer=True, nonnegative=True)
    return sympy.Symbol(name, integer=True, positive=True)


def depends_on_data(name: str) -> bool:
    """Whether a name is one of u0, u1, …, which torch.export gives to sizes that depend on data."""
    return re.fullmatch(r"u\d+", name) is not None
