"""What operators on complex numbers are in real ones: a rule for each, of the operands' real and imaginary parts."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx

from torch2trt.graph.ops import DFT, REAL_INVERSE_DFT
from torch2trt.graph.schema import parameters_of
from torch2trt.passes.complex_algebra import Algebra, Complex, Part, parts, real_dtype

aten = torch.ops.aten

Rule = Callable[..., Complex | fx.Node | None]
Function = TypeVar("Function", bound=Rule)

RULES: dict[Any, Rule] = {}
"""By operator: a function of an :class:`Algebra` and, by name, the operator's arguments, what is complex among them as
:class:`Complex`. It returns the parts, or the node, that take the result's place, or None where it has no answer."""


def rule(*targets: Any) -> Callable[[Function], Function]:
    """Register the rule of operator overloads."""

    def register(function: Function) -> Function:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


# -- operators that treat both parts alike -----------------------------------------------------------------------------

# Arguments that hold the numbers which are moved or added up; others say which and where.
_NUMBERS = ("input", "tensors", "src", "values", "other", "value", "fill_value")


def _each_part(algebra: Algebra, **_: Any) -> Complex:
    target = algebra.node.target
    dtype = real_dtype(_dtype(algebra.node))
    names = parameters_of(target)

    def part(name: str, value: Any, which: int) -> Any:
        if isinstance(value, Complex):
            return value[which]
        if isinstance(value, torch.dtype):
            return real_dtype(value)
        if name not in _NUMBERS:
            return value
        if isinstance(value, list | tuple):
            return [part(name, item, which) for item in value]
        if isinstance(value, fx.Node):
            value = algebra.cast(value, dtype)
            return algebra.call(aten.zeros_like.default, value) if which else value
        return 0 if which and isinstance(value, int | float) else value

    def half(which: int) -> fx.Node:
        args = [part(name, value, which) for name, value in zip(names, algebra.args, strict=False)]
        kwargs = {name: part(name, value, which) for name, value in algebra.kwargs.items()}
        return algebra.call(target, *args, **kwargs)  # type: ignore[no-any-return]

    return Complex(half(0), half(1))


def _dtype(node: fx.Node) -> torch.dtype:
    value = node.meta["val"]
    return value[0].dtype if isinstance(value, list | tuple) else value.dtype  # type: ignore[no-any-return]


_ALIKE = (
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default, aten.transpose.int),
    *(aten.t.default, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.default),
    *(aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.repeat.default, aten.clone.default),
    *(aten.alias.default, aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default),
    *(aten.flip.default, aten.roll.default, aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.diagonal.default, aten.unfold.default, aten.gather.default, aten.index_select.default, aten.index.Tensor),
    *(aten.tril.default, aten.triu.default, aten.diag_embed.default, aten.movedim.int, aten.movedim.intlist),
    *(aten.cat.default, aten.stack.default, aten.where.self, aten.copy.default, aten.constant_pad_nd.default),
    *(aten.pad.default, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.slice_scatter.default),
    *(aten.select_scatter.default, aten.scatter.src, aten.index_put.default, aten._unsafe_index_put.default),
    *(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumsum.default),
    *(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten.zero.default),
    *(aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default),
    *(aten.full.default, aten.full_like.default, aten.new_full.default, aten.fill.Scalar, aten.fill.Tensor),
    *(aten.neg.default, aten._neg_view.default, aten.resolve_conj.default, aten.resolve_neg.default),
)
rule(*_ALIKE)(_each_part)


@rule(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones(algebra: Algebra, **arguments: Any) -> Complex:
    """1 + 0i."""
    found = _each_part(algebra)
    return Complex(found.real, algebra.call(aten.zeros_like.default, found.real))


@rule(aten._to_copy.default)
def to_copy(algebra: Algebra, input: Any, dtype: torch.dtype | None, **_: Any) -> Complex | fx.Node:
    """Real numbers become complex ones; of complex ones that become real, the real part is left."""
    if isinstance(input, Complex) and dtype is not None and not dtype.is_complex:
        return algebra.cast(input.real, dtype)  # type: ignore[arg-type]
    return algebra.result(*parts(input))


# -- parts -------------------------------------------------------------------------------------------------------------


@rule(aten.view_as_complex.default)
def view_as_complex(algebra: Algebra, input: fx.Node) -> Complex:
    """The last dimension, of size 2, holds the parts."""
    if input.target is aten.stack.default and input.args[1:] in ((-1,), (input.meta["val"].dim() - 1,)):
        return Complex(*input.args[0])  # type: ignore[misc]
    return Complex(*(algebra.call(aten.select.int, input, -1, which) for which in (0, 1)))


@rule(aten.view_as_real.default)
def view_as_real(algebra: Algebra, input: Complex) -> fx.Node:
    """The parts in a new last dimension."""
    for user in list(algebra.node.users):
        # torch.real and torch.imag are these two.
        if user.target is aten.select.int and user.args[1] in (-1, algebra.node.meta["val"].dim() - 1):
            user.replace_all_uses_with(input[user.args[2]])  # type: ignore[index, arg-type]
    return algebra.call(aten.stack.default, list(input), -1)  # type: ignore[no-any-return]


@rule(aten.complex.default)
def complex(algebra: Algebra, real: fx.Node, imag: fx.Node) -> Complex:
    """The parts themselves."""
    return algebra.result(real, imag)


@rule(aten.polar.default)
def polar(algebra: Algebra, abs: fx.Node, angle: fx.Node) -> Complex:
    """``abs cos(angle) + abs sin(angle) i``."""
    turns = (algebra.call(target, angle) for target in (aten.cos.default, aten.sin.default))
    return algebra.result(*(algebra.times(abs, turn) for turn in turns))


@rule(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)
def conj(algebra: Algebra, input: Complex) -> Complex:
    """``a - bi``."""
    return Complex(input.real, algebra.negative(input.imag))


@rule(aten.abs.default)
def abs(algebra: Algebra, input: Complex) -> fx.Node:
    """The root of ``a² + b²``."""
    return algebra.size(input)


@rule(aten.angle.default)
def angle(algebra: Algebra, input: Complex) -> fx.Node:
    """From -pi to pi."""
    return algebra.angle(input)


# -- arithmetic --------------------------------------------------------------------------------------------------------


@rule(aten.add.Tensor, aten.add.Scalar)
def add(algebra: Algebra, input: Any, other: Any, alpha: Any) -> Complex:
    """``input + alpha other``."""
    first, second = parts(input), algebra.product(parts(other), parts(alpha))
    return algebra.result(*map(algebra.plus, first, second))


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(algebra: Algebra, input: Any, other: Any, alpha: Any) -> Complex:
    """``input - alpha other``."""
    first, second = parts(input), algebra.product(parts(other), parts(alpha))
    return algebra.result(*map(algebra.minus, first, second))


@rule(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(algebra: Algebra, input: Any, other: Any, alpha: Any) -> Complex:
    """``other - alpha input``."""
    return sub(algebra, other, input, alpha)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def mul(algebra: Algebra, input: Any, other: Any) -> Complex:
    """``(a + bi)(c + di)``."""
    return algebra.result(*algebra.product(parts(input), parts(other)))


@rule(aten.square.default)
def square(algebra: Algebra, input: Complex) -> Complex:
    """``(a + bi)²``."""
    return algebra.product(input, input)


@rule(aten.div.Tensor, aten.div.Scalar)
def div(algebra: Algebra, input: Any, other: Any) -> Complex:
    """``(a + bi) / (c + di)``, Smith's way: squares of c and d might overflow."""
    dividend, divisor = parts(input), parts(other)
    if not any(isinstance(part, fx.Node) for part in divisor):
        number = 1 / _number(divisor)
        return algebra.result(*algebra.product(dividend, Complex(number.real, number.imag)))
    if divisor.imag == 0:
        quotients = (algebra.call(aten.div.Tensor, part, divisor.real) for part in _tensors(algebra, dividend, divisor))
        return algebra.result(*quotients)
    return algebra.result(*_quotient(algebra, dividend, divisor))


def _number(value: Complex) -> Any:
    return value.real + 1j * value.imag  # type: ignore[operator]


def _tensors(algebra: Algebra, value: Complex, like: Complex) -> list[fx.Node]:
    """Parts as tensors, numbers of another's shape."""
    given = [part for part in (*value, *like) if isinstance(part, fx.Node)]
    return [
        part if isinstance(part, fx.Node) else algebra.call(aten.full_like.default, given[0], part) for part in value
    ]


def _quotient(algebra: Algebra, dividend: Complex, divisor: Complex) -> Complex:
    c, d = divisor
    steep = algebra.call(aten.gt.Tensor, algebra.call(aten.abs.default, d), algebra.call(aten.abs.default, c))

    def choose(first: Part, second: Part) -> fx.Node:
        first, second = _tensors(algebra, Complex(first, second), divisor)
        return algebra.call(aten.where.self, steep, first, second)  # type: ignore[no-any-return]

    larger, smaller = choose(d, c), choose(c, d)
    # Where both are 0 the quotients by them are infinite, or no numbers, and not the ratio.
    nothing = algebra.call(aten.eq.Scalar, larger, 0)
    ratio = algebra.call(aten.masked_fill.Scalar, algebra.call(aten.div.Tensor, smaller, larger), nothing, 0.0)
    total = algebra.plus(larger, algebra.times(smaller, ratio))
    a, b = dividend
    scaled = [algebra.times(part, ratio) for part in (a, b)]
    real = choose(algebra.plus(scaled[0], b), algebra.plus(a, scaled[1]))
    imag = choose(algebra.minus(scaled[1], a), algebra.minus(b, scaled[0]))
    return Complex(*(algebra.call(aten.div.Tensor, part, total) for part in (real, imag)))


@rule(aten.reciprocal.default)
def reciprocal(algebra: Algebra, input: Complex) -> Complex:
    """``1 / (a + bi)``."""
    return algebra.result(*_quotient(algebra, Complex(1.0, 0.0), input))


@rule(aten.pow.Tensor_Scalar)
def pow(algebra: Algebra, input: Any, exponent: Any) -> Complex | None:
    """Small whole powers, by multiplication."""
    if not isinstance(input, Complex) or exponent not in range(1, 9):
        return None
    power = functools.reduce(algebra.product, [input] * int(exponent))
    return algebra.result(*power)


@rule(aten.exp.default)
def exp(algebra: Algebra, input: Complex) -> Complex:
    """``exp(a) (cos(b) + i sin(b))``."""
    size = algebra.call(aten.exp.default, input.real)
    turns = (algebra.call(target, input.imag) for target in (aten.cos.default, aten.sin.default))
    return Complex(*(algebra.times(size, turn) for turn in turns))


@rule(aten.log.default)
def log(algebra: Algebra, input: Complex) -> Complex:
    """``log |z| + angle(z) i``."""
    return Complex(algebra.call(aten.log.default, algebra.size(input)), algebra.angle(input))


@rule(aten.sgn.default)
def sgn(algebra: Algebra, input: Complex) -> Complex:
    """``z / |z|``, 0 of 0."""
    size = algebra.size(input)
    nothing = algebra.call(aten.eq.Scalar, size, 0)
    divisor = algebra.call(aten.masked_fill.Scalar, size, nothing, 1.0)
    return Complex(*(algebra.call(aten.div.Tensor, part, divisor) for part in input))


@rule(aten.linalg_vector_norm.default)
def linalg_vector_norm(algebra: Algebra, input: Complex, **_: Any) -> fx.Node:
    """The norm of the absolute values."""
    return algebra.call(  # type: ignore[no-any-return]
        aten.linalg_vector_norm.default, algebra.size(input), *algebra.args[1:], **algebra.kwargs
    )


@rule(aten.eq.Tensor, aten.eq.Scalar)
def eq(algebra: Algebra, input: Any, other: Any) -> fx.Node:
    """Both parts are equal."""
    same = []
    for first, second in zip(parts(input), parts(other), strict=True):
        if not isinstance(first, fx.Node):
            first, second = second, first
        target = aten.eq.Tensor if isinstance(second, fx.Node) else aten.eq.Scalar
        same.append(algebra.call(target, first, second))
    return algebra.call(aten.logical_and.default, *same)  # type: ignore[no-any-return]


@rule(aten.ne.Tensor, aten.ne.Scalar)
def ne(algebra: Algebra, input: Any, other: Any) -> fx.Node:
    """A part differs."""
    return algebra.call(aten.logical_not.default, eq(algebra, input, other))  # type: ignore[no-any-return]


# -- products of tensors -----------------------------------------------------------------------------------------------


@rule(*(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default))
def matmul(algebra: Algebra, **factors: Complex) -> Complex:
    """A sum of products, as of numbers."""
    return _bilinear(algebra, algebra.node.target, *factors.values())


def _bilinear(algebra: Algebra, target: Any, first: Complex, second: Complex) -> Complex:
    (a, b), (c, d) = first, second
    times = functools.partial(algebra.call, target)
    return Complex(algebra.minus(times(a, c), times(b, d)), algebra.plus(times(a, d), times(b, c)))


@rule(aten.linear.default)
def linear(algebra: Algebra, input: Complex, weight: Complex, bias: Complex | None) -> Complex:
    """``input @ weight.T + bias``."""
    product = _bilinear(algebra, aten.linear.default, input, weight)
    return product if bias is None else Complex(*map(algebra.plus, product, bias))


@rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(algebra: Algebra, input: Complex, beta: Any, alpha: Any, **factors: Complex) -> Complex:
    """``beta input + alpha first @ second``."""
    products: dict[Any, Any] = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}
    target = products.get(algebra.node.target, aten.mv.default)
    product = algebra.product(_bilinear(algebra, target, *factors.values()), parts(alpha))
    added = algebra.product(input, parts(beta)) if beta != 0 else Complex(0, 0)
    return Complex(*map(algebra.plus, product, added))


# -- Fourier transforms ------------------------------------------------------------------------------------------------


def _dft(algebra: Algebra, points: Complex, dim: int, *, inverse: bool, onesided: bool, normalization: int) -> Complex:
    imag = points.imag if isinstance(points.imag, fx.Node) else None
    found = algebra.call(DFT, points.real, imag, dim, inverse, onesided, normalization)
    return Complex(*(algebra.call(operator.getitem, found, which) for which in (0, 1)))


@rule(aten._fft_r2c.default)
def fft_r2c(algebra: Algebra, input: fx.Node, dim: list[int], normalization: int, onesided: bool) -> Complex:
    """Of real numbers, along the last of the dimensions first, of which half may be enough."""
    found = parts(input)
    for axis in reversed(dim):
        half = onesided and axis == dim[-1]
        found = _dft(algebra, found, axis, inverse=False, onesided=half, normalization=normalization)
    return found


@rule(aten._fft_c2c.default)
def fft_c2c(algebra: Algebra, input: Complex, dim: list[int], normalization: int, forward: bool) -> Complex:
    """One dimension after the other."""
    for axis in dim:
        input = _dft(algebra, input, axis, inverse=not forward, onesided=False, normalization=normalization)
    return input


@rule(aten._fft_c2r.default)
def fft_c2r(algebra: Algebra, input: Complex, dim: list[int], normalization: int, last_dim_size: Any) -> fx.Node:
    """Back to real numbers, along the last of the dimensions last."""
    for axis in dim[:-1]:
        input = _dft(algebra, input, axis, inverse=True, onesided=False, normalization=normalization)
    return algebra.call(REAL_INVERSE_DFT, *input, dim[-1], last_dim_size, normalization)  # type: ignore[no-any-return]
