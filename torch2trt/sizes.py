"""Sizes that may be symbolic: integers, or sympy expressions over the named dynamic dimensions."""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod, ToFloat, TruncToInt

from torch2trt.errors import NetworkError

Value = TypeVar("Value")

Size: TypeAlias = int | sympy.Expr
"""A dimension: a plain int where it is known, otherwise an expression such as ``12*batch``."""

Shape = tuple[Size, ...]


@dataclass(frozen=True)
class DimRange:
    """The sizes one named dimension may take: an engine is tuned at ``opt`` and valid from ``min`` to ``max``."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return str(self.opt) if self.min == self.max else f"{self.min}…{self.opt}…{self.max}"


def spell(ranges: Mapping[str, DimRange | int]) -> str:
    """Ranges or sizes by the names of their dimensions in words, as ``batch 1…8…64, seq 128``."""
    return ", ".join(f"{name} {span}" for name, span in ranges.items())


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

    def span(self, ranges: Mapping[str, DimRange]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, the usual and the largest shape where the named dimensions have these ranges."""
        low, opt, high = (
            {name: getattr(span, corner) for name, span in ranges.items()} for corner in ("min", "opt", "max")
        )
        # A size such as 8 - n is largest where n is smallest.
        ends = [sorted((evaluate(size, low), evaluate(size, high))) for size in self.shape]
        return tuple(end[0] for end in ends), self.at(opt), tuple(end[1] for end in ends)


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


@functools.lru_cache(maxsize=4096)
def simplify(expr: sympy.Expr) -> Size:
    """A constant expression as an int; others without floating point or negative dividends where that is the same."""
    if expr.is_number:
        return int(expr)
    if expr.has(TruncToInt):
        expr = expr.replace(TruncToInt, _scaled)
    if expr.has(PythonMod, FloorDiv):
        expr = expr.replace(PythonMod, _remainder).replace(FloorDiv, _quotient)
    return expr


# TensorRT-RTX 1.7 takes sizes for negative that are made of the quotient of a negative number, and builds no engine.
def _quotient(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    """``-(size // 4)`` rounded up in place of ``-size // 4``."""
    if divisor.is_Integer and divisor > 0 and dividend.could_extract_minus_sign():
        return -FloorDiv(divisor - 1 - dividend, divisor)
    return FloorDiv(dividend, divisor)


def _remainder(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    if divisor.is_Integer and divisor > 0 and dividend.could_extract_minus_sign():
        return dividend - divisor * _quotient(dividend, divisor)
    return PythonMod(dividend, divisor)


# So many values of each dimension are tried.
_TRIED = 64


def are_same(one: Size, other: Size, ranges: Mapping[str, DimRange]) -> bool:
    """Whether two sizes are one, as far as trying shows: sympy does not see it of ``Min(n, 4*((n + 3)//4))``.

    Args:
        ranges: of the dimensions in them; sizes in others are the same where they are spelled the same.
    """
    if one == other:
        return True
    names = sorted(symbols([one, other]))
    if not names or not ranges.keys() >= set(names):
        return False
    spans = [ranges[name] for name in names]
    for place in range(_TRIED):
        # Steps that differ, so that the dimensions do not go up together.
        values = {
            name: span.min + (place * (1 + 2 * number) if place else 0) % (span.max - span.min + 1)
            for number, (name, span) in enumerate(zip(names, spans, strict=True))
        }
        if evaluate(one, values) != evaluate(other, values):
            return False
    highest = {name: span.max for name, span in zip(names, spans, strict=True)}
    return evaluate(one, highest) == evaluate(other, highest)


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


def linear(size: Size) -> tuple[sympy.Symbol, int, int] | None:
    """The symbol, factor and offset of a size such as ``2*half + 1``; None for any other."""
    if isinstance(size, int) or len(size.free_symbols) != 1:
        return None
    (symbol,) = size.free_symbols
    factor, offset = size.coeff(symbol), size.coeff(symbol, 0)
    if not (factor.is_Integer and offset.is_Integer and factor * symbol + offset == size):
        return None
    return symbol, int(factor), int(offset)


def computed(size: sympy.Expr, value: Callable[[Any], Value], apply: Callable[[str, Value, Value], Value]) -> Value:
    """An expression computed step by step.

    Args:
        value: gives what the expression's arguments are.
        apply: does one step: SUM, SUB, PROD, FLOOR_DIV, MAX or MIN, which is what TensorRT calls them everywhere.

    Raises:
        NetworkError: these steps do not make it.
    """
    operands = [value(argument) for argument in size.args]
    match size:
        case sympy.Add():
            operation = "SUM"
        case sympy.Mul():
            operation = "PROD"
        case FloorDiv():
            operation = "FLOOR_DIV"
        case sympy.Max() | Max():
            operation = "MAX"
        case sympy.Min() | Min():
            operation = "MIN"
        case Mod() | PythonMod():
            dividend, divisor = operands
            return apply("SUB", dividend, apply("PROD", apply("FLOOR_DIV", dividend, divisor), divisor))
        case sympy.Pow(exp=sympy.Integer() as exponent) if int(exponent) > 0:
            operands = [operands[0]] * int(exponent)
            operation = "PROD"
        case _:
            raise NetworkError(f"no shape arithmetic for {type(size).__name__}", subject=str(size))
    result = operands[0]
    for operand in operands[1:]:
        result = apply(operation, result, operand)
    return result


def derived(
    sizes: Iterable[Size],
    known: Iterable[tuple[Size, Value]],
    constant: Callable[[int], Value],
    apply: Callable[[str, Value, Value], Value],
) -> list[Value]:
    """Sizes computed from others, as those of a call's results from those of its arguments.

    Args:
        sizes: what is asked for.
        known: sizes, and what they are.
        constant: gives an integer the form of the known ones.
        apply: as :func:`computed` takes it.

    Raises:
        NetworkError: a size that the known ones do not determine.
    """
    values: dict[Any, Value] = {}
    for size, actual in known:
        if isinstance(size, int):
            continue
        values.setdefault(size, actual)
        if (found := linear(size)) and found[0] not in values:
            symbol, factor, offset = found
            values[symbol] = apply("FLOOR_DIV", apply("SUB", actual, constant(offset)), constant(factor))

    def value(size: Any) -> Value:
        if isinstance(size, int) or size.is_Integer:
            return constant(int(size))
        if size not in values:
            if isinstance(size, sympy.Symbol):
                raise NetworkError("a size that the shapes of its inputs do not tell", subject=str(size))
            values[size] = computed(size, value, apply)
        return values[size]

    return [value(size) for size in sizes]


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
