"""Symbolic sizes inside a network: which tensor's dimension each symbol is, and shape tensors computed from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sympy
import torch

from torch2trt.errors import NetworkError
from torch2trt.sizes import Shape, Size, computed, linear

if TYPE_CHECKING:
    from torch2trt.trt.core import NetworkCore
    from torch2trt.trt.tensor import Tensor


class Dims:
    """The symbols of one network, and the INT64 tensors of shape [1] that hold their values."""

    def __init__(self, net: NetworkCore) -> None:
        self._net = net
        self._bound: dict[sympy.Symbol, tuple[int, int, Tensor, int]] = {}
        self._tensors: dict[Size, Tensor] = {}
        self._fresh = 0

    def bind(self, size: sympy.Expr, tensor: Tensor, axis: int) -> None:
        """Say that this tensor's dimension has a size: a symbol, or a linear function of one such as ``2*half + 1``.

        The first binding of a symbol stays.
        """
        if found := linear(size):
            symbol, factor, offset = found
            self._bound.setdefault(symbol, (factor, offset, tensor, axis))

    def fresh(self) -> sympy.Symbol:
        """A symbol for a size that only TensorRT knows."""
        self._fresh += 1
        return sympy.Symbol(f"_{self._fresh}", integer=True, nonnegative=True)

    def tensor(self, size: Size) -> Tensor:
        """The size as an INT64 tensor of shape [1]."""
        if size not in self._tensors:
            self._tensors[size] = self._compute(size)
        return self._tensors[size]

    def _compute(self, size: Size) -> Tensor:
        net = self._net
        if isinstance(size, int) or size.is_Integer:
            return net.constant(torch.tensor([int(size)]))
        if isinstance(size, sympy.Symbol):
            if size not in self._bound:
                raise NetworkError(f"the size {size} belongs to no input", subject=str(size))
            factor, offset, tensor, axis = self._bound[size]
            actual = net.size_of(tensor, axis)
            if (factor, offset) == (1, 0):
                return actual
            rest = net.elementwise("SUB", actual, self.tensor(offset))
            return net.elementwise("FLOOR_DIV", rest, self.tensor(factor))
        return computed(size, self.tensor, net.elementwise)


def broadcast(*shapes: Shape) -> Shape:
    """The shape that tensors of these shapes broadcast to."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result: list[Size] = []
    for sizes in zip(*padded, strict=True):
        others = [size for size in sizes if size != 1]
        known = [size for size in others if isinstance(size, int)]
        if len(set(known)) > 1:
            raise NetworkError(f"shapes {', '.join(str(list(shape)) for shape in shapes)} do not broadcast")
        result.append(known[0] if known else others[0] if others else 1)
    return tuple(result)
