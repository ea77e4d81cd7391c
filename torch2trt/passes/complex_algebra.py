"""Complex tensors as pairs of real ones, and the arithmetic of their parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import fx

from torch2trt.graph.rewrite import call
from torch2trt.sizes import to_shape

aten = torch.ops.aten

Part: TypeAlias = fx.Node | int | float
"""A tensor of real numbers; a number stands for a tensor of it."""


class Complex(NamedTuple):
    """A complex tensor, or number, as two real ones of the same shape."""

    real: Part
    imag: Part


def parts(value: Any) -> Complex:
    """An operand's two parts."""
    return value if isinstance(value, Complex) else Complex(value, 0)


@dataclass(frozen=True)
class Algebra:
    """Real arithmetic, inserted where the node that is rewritten stands.

    Attributes:
        args, kwargs: the node's arguments, :class:`Complex` in place of what is complex.
    """

    node: fx.Node
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A call in the node's place."""
        return call(self.node.graph, target, *args, like=self.node, **kwargs)

    def plus(self, first: Part, second: Part) -> Part:
        """The sum, a number where both are."""
        if isinstance(first, fx.Node) and isinstance(second, fx.Node):
            return self.call(aten.add.Tensor, first, second)  # type: ignore[no-any-return]
        if isinstance(second, fx.Node):
            first, second = second, first
        if not isinstance(first, fx.Node):
            return first + second  # type: ignore[operator]
        return first if second == 0 else self.call(aten.add.Scalar, first, second)

    def minus(self, first: Part, second: Part) -> Part:
        """The difference."""
        if isinstance(first, fx.Node) and isinstance(second, fx.Node):
            return self.call(aten.sub.Tensor, first, second)  # type: ignore[no-any-return]
        return self.plus(first, self.negative(second))

    def negative(self, part: Part) -> Part:
        """The part with the other sign."""
        return self.call(aten.neg.default, part) if isinstance(part, fx.Node) else -part

    def times(self, first: Part, second: Part) -> Part:
        """The product, 0 where a factor is the number 0."""
        if isinstance(first, fx.Node) and isinstance(second, fx.Node):
            return self.call(aten.mul.Tensor, first, second)  # type: ignore[no-any-return]
        if isinstance(second, fx.Node):
            first, second = second, first
        if not isinstance(first, fx.Node):
            return first * second  # type: ignore[operator]
        if second in (0, 1):
            return first if second else 0
        return self.call(aten.mul.Scalar, first, second)  # type: ignore[no-any-return]

    def product(self, first: Complex, second: Complex) -> Complex:
        """``(a + bi)(c + di)``."""
        (a, b), (c, d) = first, second
        real = self.minus(self.times(a, c), self.times(b, d))
        return Complex(real, self.plus(self.times(a, d), self.times(b, c)))

    def size(self, value: Complex) -> fx.Node:
        """The absolute value of a tensor."""
        return self.call(aten.hypot.default, *value)  # type: ignore[no-any-return]

    def angle(self, value: Complex) -> fx.Node:
        """The angle of a tensor, from -pi to pi."""
        return self.call(aten.atan2.default, value.imag, value.real)  # type: ignore[no-any-return]

    def result(self, real: Part, imag: Part) -> Complex:
        """Parts as tensors of the result's shape and dtype."""
        shape = to_shape(self.node.meta["val"].shape)
        dtype = real_dtype(self.node.meta["val"].dtype)

        def is_whole(part: Part) -> bool:
            return isinstance(part, fx.Node) and to_shape(part.meta["val"].shape) == shape

        def spread(part: Part) -> fx.Node:
            if not isinstance(part, fx.Node):
                return self.call(aten.full_like.default, whole, part)  # type: ignore[no-any-return]
            return part if is_whole(part) else self.call(aten.add.Tensor, part, zeros)

        real, imag = (self.cast(part, dtype) if isinstance(part, fx.Node) else part for part in (real, imag))
        whole = next((part for part in (real, imag) if is_whole(part)), None) or self.plus(real, imag)
        zeros = self.call(aten.zeros_like.default, whole)
        return Complex(spread(real), spread(imag))

    def cast(self, node: fx.Node, dtype: torch.dtype) -> fx.Node:
        """A tensor in another dtype."""
        if node.meta["val"].dtype == dtype:
            return node
        return self.call(aten._to_copy.default, node, dtype=dtype)  # type: ignore[no-any-return]


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a complex dtype's parts; of others, the dtype itself."""
    return dtype.to_real() if dtype.is_complex else dtype
