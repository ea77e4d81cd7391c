"""Layers that compute: elementwise, unary, activations, casts, matrix products, reductions, softmax, top-k."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from torch2trt.sizes import Size, largest, volume
from torch2trt.trt.core import BYTES, FLOAT_DTYPES
from torch2trt.trt.dims import broadcast
from torch2trt.trt.shaping import Shaping
from torch2trt.trt.tensor import Tensor

Operand = Tensor | Size | float | bool

_COMPARISONS = ("EQUAL", "GREATER", "LESS")
_LOGICAL = ("AND", "OR", "XOR")
_NARROW = (torch.bool, *BYTES)
_FOR_BOOL = (*_LOGICAL, "EQUAL")
# What is computed at once on constants that are no weights.
_EARLY: dict[str, Callable[..., torch.Tensor]] = {
    "SUM": torch.add,
    "SUB": torch.sub,
    "PROD": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "LESS": torch.lt,
    "EQUAL": torch.eq,
    "FLOOR_DIV": torch.floor_divide,
}
_FLOAT_UNARY = (
    *("EXP", "LOG", "SQRT", "RECIP", "SIN", "COS", "TAN", "SINH", "COSH", "ASIN", "ACOS", "ATAN"),
    *("ASINH", "ACOSH", "ATANH", "ERF", "CEIL", "FLOOR", "ROUND", "ISINF", "ISNAN"),
)


class Arithmetic(Shaping):
    """The computing layers of a network."""

    # -- types --------------------------------------------------------------------------------------------------------

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in another dtype; floats become integers by truncation, as in torch."""
        if tensor.dtype == dtype:
            return tensor
        if tensor.value is not None and (tensor.value.numel() <= 1024 or tensor.dtype in BYTES):
            return self.constant(tensor.value.to(dtype))
        if dtype in BYTES:
            # What a byte cannot hold wraps around.
            if tensor.dtype != torch.bool:
                tensor = self._wrapped(self.cast(tensor, torch.int32), torch.iinfo(dtype).min)
            return Tensor(self, None, tensor.shape, dtype, floats=self.cast(tensor, torch.float16))
        if tensor.floats is not None:
            return self.cast(tensor.floats, dtype)
        if tensor.dtype == torch.uint8 and dtype not in (torch.float32, torch.float16):
            # It is cast from and to floats only.
            return self.cast(self.cast(tensor, torch.float16), dtype)
        layer = self.add("add_cast", tensor.itensor, self.dtype(dtype))
        return self.output_of(layer, tensor.shape)

    def _wrapped(self, tensor: Tensor, lowest: int) -> Tensor:
        """Integers as a byte holds them whose lowest number is 0 or -128."""
        count, first = (self.constant(torch.tensor(number, dtype=tensor.dtype)) for number in (256, lowest))
        above = self.elementwise("SUB", tensor, first) if lowest else tensor
        quotient = self.elementwise("FLOOR_DIV", above, count)
        return self.elementwise("SUB", tensor, self.elementwise("PROD", quotient, count))

    def tensor(self, operand: Operand, dtype: torch.dtype | None = None) -> Tensor:
        """An operand as a tensor: Python numbers become 0-d constants, symbolic sizes are computed.

        Args:
            dtype: cast to it; unset: the tensor's own, or torch's default for the number.
        """
        if isinstance(operand, sympy.Expr):
            operand = self.reshape(self.dims.tensor(operand), ())
        if not isinstance(operand, Tensor):
            return self.constant(torch.tensor(operand, dtype=dtype))
        return operand if dtype is None else self.cast(operand, dtype)

    def promoted_dtype(self, *operands: Operand) -> torch.dtype:
        """The dtype that torch's type promotion gives these operands."""

        def example(operand: Operand) -> Any:
            if isinstance(operand, sympy.Expr):
                return 0
            if not isinstance(operand, Tensor):
                return operand
            return torch.empty((1,) * min(operand.rank, 1), dtype=operand.dtype, device="meta")

        def join(first: Any, second: Any) -> torch.Tensor:
            shaped = any(isinstance(operand, torch.Tensor) and operand.dim() for operand in (first, second))
            return torch.empty((1,) * shaped, dtype=torch.result_type(first, second), device="meta")

        joined = functools.reduce(join, map(example, operands))
        return joined.dtype if isinstance(joined, torch.Tensor) else torch.tensor(joined).dtype

    def promote(self, *operands: Operand) -> list[Tensor]:
        """The operands as tensors of one dtype, by torch's type promotion."""
        dtype = self.promoted_dtype(*operands)
        return [self.tensor(operand, dtype) for operand in operands]

    # -- elementwise --------------------------------------------------------------------------------------------------

    def elementwise(self, operation: str, first: Tensor, second: Tensor) -> Tensor:
        """A binary ``ElementWiseOperation`` on tensors of one dtype, with broadcasting; comparisons give BOOL."""
        if first.dtype != second.dtype:
            raise self.error(f"{operation} takes one dtype, got {first.dtype} and {second.dtype}")
        shape = broadcast(first.shape, second.shape)
        dtype = first.dtype
        if operation in _EARLY and all(_is_small_constant(tensor) for tensor in (first, second)):
            return self.constant(_EARLY[operation](first.value, second.value))
        if dtype in _NARROW and not (dtype == torch.bool and operation in _FOR_BOOL):
            # Only the logical operations and EQUAL take BOOL, and 8-bit arithmetic is for quantized values.
            wide = self.elementwise(operation, self.cast(first, torch.int32), self.cast(second, torch.int32))
            return wide if operation in _COMPARISONS else self.cast(wide, dtype)
        operands = [self.to_rank(tensor, len(shape)).itensor for tensor in (first, second)]
        layer = self.add("add_elementwise", *operands, getattr(self.trt.ElementWiseOperation, operation))
        return self.output_of(layer, shape)

    def binary(self, operation: str, first: Operand, second: Operand) -> Tensor:
        """:meth:`elementwise` after torch's type promotion."""
        return self.elementwise(operation, *self.promote(first, second))

    def unary(self, operation: str, tensor: Tensor) -> Tensor:
        """A ``UnaryOperation``; those that only floats have see integers as float32, narrow ones as int32."""
        if operation == "NOT":
            tensor = self.cast(tensor, torch.bool)
        elif operation in _FLOAT_UNARY and tensor.dtype not in FLOAT_DTYPES:
            tensor = self.cast(tensor, torch.float32)
        elif tensor.dtype in _NARROW:
            tensor = self.cast(tensor, torch.int32)
        scalar = tensor.rank == 0
        layer = self.add(
            "add_unary",
            (self.reshape(tensor, (1,)) if scalar else tensor).itensor,
            getattr(self.trt.UnaryOperation, operation),
        )
        result = self.output_of(layer, (1,) if scalar else tensor.shape)
        return self.reshape(result, ()) if scalar else result

    def activation(self, kind: str, tensor: Tensor, alpha: float | None = None, beta: float | None = None) -> Tensor:
        """An ``ActivationType`` with its parameters."""
        if tensor.dtype not in FLOAT_DTYPES:
            tensor = self.cast(tensor, torch.float32)
        if tensor.rank == 0:
            return self.reshape(self.activation(kind, self.reshape(tensor, (1,)), alpha, beta), ())
        layer = self.add("add_activation", tensor.itensor, getattr(self.trt.ActivationType, kind))
        if alpha is not None:
            layer.alpha = alpha
        if beta is not None:
            layer.beta = beta
        return self.output_of(layer, tensor.shape)

    # -- products -----------------------------------------------------------------------------------------------------

    def matmul(
        self, first: Tensor, second: Tensor, *, transpose_first: bool = False, transpose_second: bool = False
    ) -> Tensor:
        """A matrix product over the last two dimensions; the leading ones broadcast, as ``torch.matmul``.

        Operands of rank 1 are vectors. Of integers every product is laid out.
        """
        vectors = first.rank == 1, second.rank == 1
        if vectors[0]:
            first = self.unsqueeze(first, 0)
        if vectors[1]:
            second = self.unsqueeze(second, 1)
        rank = max(first.rank, second.rank)
        first, second = self.to_rank(first, rank), self.to_rank(second, rank)
        multiply = self._product_of_floats if first.dtype in FLOAT_DTYPES else self._product_of_integers
        result = multiply(first, second, transpose_first, transpose_second)
        if vectors[1]:
            result = self.squeeze(result, -1)
        if vectors[0]:
            result = self.squeeze(result, -1 if vectors[1] else -2)
        return result

    def _product_of_floats(
        self, first: Tensor, second: Tensor, transpose_first: bool, transpose_second: bool
    ) -> Tensor:
        operation = self.trt.MatrixOperation
        layer = self.add(
            "add_matrix_multiply",
            first.itensor,
            operation.TRANSPOSE if transpose_first else operation.NONE,
            second.itensor,
            operation.TRANSPOSE if transpose_second else operation.NONE,
        )
        rows = first.shape[-1 if transpose_first else -2]
        columns = second.shape[-2 if transpose_second else -1]
        return self.output_of(layer, (*broadcast(first.shape[:-2], second.shape[:-2]), rows, columns))

    def _product_of_integers(
        self, first: Tensor, second: Tensor, transpose_first: bool, transpose_second: bool
    ) -> Tensor:
        first = self.transpose(first, -2, -1) if transpose_first else first
        second = second if transpose_second else self.transpose(second, -2, -1)
        products = self.elementwise("PROD", self.unsqueeze(first, -2), self.unsqueeze(second, -3))
        return self.reduce("SUM", products, [-1], keep_dims=False)

    def einsum(self, equation: str, operands: Sequence[Tensor], shape: Sequence[Size]) -> Tensor:
        """An Einstein sum; the caller knows the result's shape."""
        layer = self.add("add_einsum", [tensor.itensor for tensor in operands], equation)
        return self.output_of(layer, shape)

    # -- reductions ---------------------------------------------------------------------------------------------------

    def reduce(self, operation: str, tensor: Tensor, axes: Sequence[int], keep_dims: bool) -> Tensor:
        """A ``ReduceOperation`` over dimensions; no axes means all of them.

        Narrow integers are reduced, and may overflow, as int32; of booleans MAX is any and MIN is all.
        """
        if tensor.rank == 0:
            return tensor
        axes = sorted({axis % tensor.rank for axis in axes} or range(tensor.rank))
        if tensor.dtype in _NARROW:
            wide = self.reduce(operation, self.cast(tensor, torch.int32), axes, keep_dims)
            return self.cast(wide, tensor.dtype)
        layer = self.add(
            "add_reduce",
            tensor.itensor,
            getattr(self.trt.ReduceOperation, operation),
            mask_of(axes),
            keep_dims,
        )
        kept = [1 if axis in axes else size for axis, size in enumerate(tensor.shape) if keep_dims or axis not in axes]
        return self.output_of(layer, kept)

    def softmax(self, tensor: Tensor, axis: int) -> Tensor:
        """Softmax along a dimension."""
        if tensor.rank < 2:
            # TensorRT wants two dimensions.
            return self.reshape(self.softmax(self.to_rank(tensor, 2), -1), tensor.shape)
        layer = self.add("add_softmax", tensor.itensor)
        layer.axes = 1 << (axis % tensor.rank)
        return self.output_of(layer, tensor.shape)

    def top_k(self, tensor: Tensor, count: Size, axis: int, *, largest: bool) -> tuple[Tensor, Tensor]:
        """The largest or smallest elements along a dimension, in order, NaN as the largest, and their INT32 indices."""
        axis %= tensor.rank
        if tensor.dtype.is_floating_point:
            # TensorRT 10.6 returns wrong places where there is NaN.
            keys = self._without_nan(tensor, 1 if largest else -1)
            _, indices = self._top_k(keys, count, axis, largest=True)
            return self.gather_elements(tensor, indices, axis), indices
        return self._top_k(tensor, count, axis, largest=largest)

    def _top_k(self, tensor: Tensor, count: Size, axis: int, *, largest: bool) -> tuple[Tensor, Tensor]:
        if tensor.dtype in _NARROW:
            values, indices = self._top_k(self.cast(tensor, torch.int32), count, axis, largest=largest)
            return self.cast(values, tensor.dtype), indices
        if tensor.rank == 1:
            values, indices = self._top_k(self.unsqueeze(tensor, 0), count, 1, largest=largest)
            return self.squeeze(values, 0), self.squeeze(indices, 0)
        if axis < tensor.rank - 4:
            # TensorRT looks along one of the last four dimensions.
            values, indices = self._top_k(self.transpose(tensor, axis, -1), count, -1, largest=largest)
            return self.transpose(values, axis, -1), self.transpose(indices, axis, -1)
        operation = self.trt.TopKOperation.MAX if largest else self.trt.TopKOperation.MIN
        layer = self.add("add_topk", tensor.itensor, operation, count if isinstance(count, int) else 1, 1 << axis)
        if not isinstance(count, int):
            layer.set_input(1, self.cast(self.tensor(count), torch.int32).itensor)
        shape = [*tensor.shape[:axis], count, *tensor.shape[axis + 1 :]]
        values, indices = (self.output_of(layer, shape, index) for index in (0, 1))
        return values, indices

    def _without_nan(self, tensor: Tensor, sign: int) -> Tensor:
        """Numbers in the same (sign 1) or the opposite order (-1), with infinity in the place of NaN, or its negative.

        To have it for itself, infinity becomes what the largest number is, which becomes its neighbour.
        """
        limits = torch.finfo(tensor.dtype)
        nan, infinite, beside = (
            self.tensor(sign * value, tensor.dtype)
            for value in (math.inf, limits.max, limits.max * (1 - limits.eps / 2))
        )
        keys = tensor if sign > 0 else self.unary("NEG", tensor)
        keys = self.elementwise("MIN" if sign > 0 else "MAX", keys, beside)
        is_infinite = self.elementwise("EQUAL", tensor, self.tensor(math.inf, tensor.dtype))
        keys = self.select(is_infinite, infinite, keys)
        return self.select(self.unary("ISNAN", tensor), nan, keys)

    def cumulative_sum(self, tensor: Tensor, axis: int) -> Tensor:
        """Running sums along a dimension, of int32, int64 or float."""
        axis %= tensor.rank
        if axis != tensor.rank - 1:
            return self.transpose(self.cumulative_sum(self.transpose(tensor, axis, -1), -1), axis, -1)
        count = tensor.shape[-1]
        if self.flavour.has("cumulative"):
            # Networks with layers along several axes give wrong sums in TensorRT 11 (NVIDIA/TensorRT issue 4551):
            # here they all go along the second of two.
            flat = self.reshape(tensor, (volume(tensor.shape[:-1]), count))
            along = self.constant(torch.tensor(1, dtype=torch.int32)).itensor
            layer = self.add("add_cumulative", flat.itensor, along, self.trt.CumulativeOperation.SUM, False, False)
            return self.reshape(self.output_of(layer, flat.shape), tensor.shape)
        others, reach = [0] * (tensor.rank - 1), 1
        while reach < largest(count, self.ranges):
            # Every element is the sum of as many as it reaches back: adding those before them doubles that.
            earlier = self.pad(tensor, [*others, reach], [*others, -reach])
            tensor, reach = self.elementwise("SUM", tensor, earlier), 2 * reach
        return tensor

    def iota(self, start: Operand, step: Operand, size: Size, dtype: torch.dtype) -> Tensor:
        """``start + step * [0, 1, … size - 1]``."""
        if isinstance(size, int) and isinstance(start, int | float) and isinstance(step, int | float):
            return self.constant((start + step * torch.arange(size, dtype=torch.float64)).to(dtype))
        if dtype not in (torch.float32, torch.int32, torch.int64):
            return self.cast(self.iota(start, step, size, torch.float32), dtype)
        layer = self.add("add_fill", (0,), self.trt.FillOperation.LINSPACE, self.dtype(dtype))
        layer.set_input(0, self.shape_tensor([size]).itensor)
        layer.set_input(1, self.reshape(self.tensor(start, dtype), ()).itensor)
        layer.set_input(2, self.reshape(self.tensor(step, dtype), (1,)).itensor)
        return self.output_of(layer, (size,))

    def triangle(self, rows: Size, columns: Size, diagonal: int, *, upper: bool) -> Tensor:
        """A BOOL matrix, True on a diagonal (0 is the main one, positive ones lie above) and above or below it."""
        row = self.iota(diagonal, 1, rows, torch.int64)
        column = self.iota(0, 1, columns, torch.int64)
        beyond = self.elementwise("LESS" if upper else "GREATER", self.unsqueeze(column, 0), self.unsqueeze(row, 1))
        return self.unary("NOT", beyond)


def _is_small_constant(tensor: Tensor) -> bool:
    wide = tensor.dtype not in _NARROW
    return wide and tensor.value is not None and not tensor.label and 0 < tensor.value.numel() <= 1024


def mask_of(axes: Sequence[int]) -> int:
    """Axes as TensorRT's bit mask."""
    mask = 0
    for axis in axes:
        mask |= 1 << axis
    return mask
