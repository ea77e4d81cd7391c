"""Operators in terms of others, of which torch has no decomposition, or one for each kind of device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Decomposition = Callable[..., Any]


def _views() -> dict[Any, Decomposition]:
    """The operators that copy what others yield a view of: without memory in common both are the same."""
    return {
        **{getattr(aten, f"{name}_copy").default: getattr(aten, name).default for name in _PLAIN},
        aten.select_copy.int: aten.select.int,
        aten.slice_copy.Tensor: aten.slice.Tensor,
        aten.split_copy.Tensor: aten.split.Tensor,
        aten.transpose_copy.int: aten.transpose.int,
        aten.unbind_copy.int: aten.unbind.int,
        aten.view_copy.dtype: aten.view.dtype,
        aten.squeeze_copy.dim: aten.squeeze.dim,
        aten.squeeze_copy.dims: aten.squeeze.dims,
        aten._reshape_copy.default: aten.reshape.default,
        aten._neg_view_copy.default: aten.neg.default,
    }


_PLAIN = (
    *("alias", "as_strided", "detach", "diagonal", "expand", "narrow", "permute", "split_with_sizes", "squeeze", "t"),
    *("unfold", "unsqueeze", "view", "view_as_complex", "view_as_real", "_conj"),
)


def _reshape_alias_copy(input: Tensor, size: list[int], stride: list[int]) -> Tensor:
    return input.reshape(size)


_BYTES = (torch.bool, torch.uint8, torch.int8)


def _view_as_dtype(input: Tensor, dtype: torch.dtype) -> Tensor:
    """What is in memory as numbers of another dtype, as far as that is a matter of arithmetic."""
    own = input.dtype
    if own == dtype:
        return aten.alias.default(input)  # type: ignore[no-any-return]
    if own in _BYTES and dtype in _BYTES and dtype != torch.bool:
        # Casts of integers wrap around.
        return input.to(dtype)
    if dtype.is_complex and own == dtype.to_real():
        return torch.view_as_complex(input.unflatten(-1, (-1, 2)))
    if own.is_complex and dtype == own.to_real():
        return torch.view_as_real(input).flatten(-2)
    return NotImplemented  # type: ignore[no-any-return]


def _conv_tbc(input: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """A convolution of [T, B, C] with [window, C, K]."""
    return F.conv1d(input.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1)


def _tensorinv(input: Tensor, ind: int = 2) -> Tensor:
    rows = input.shape[:ind].numel()
    inverse: Tensor = torch.linalg.inv(input.reshape(rows, -1))
    return inverse.reshape((*input.shape[ind:], *input.shape[:ind]))


def _product(target: Any) -> Decomposition:
    """A product of halves with a result in float32: the halves' own numbers, multiplied and added in float32."""

    def product(*arguments: Any, **kwargs: Any) -> Tensor:
        *tensors, dtype = arguments
        return target(*(tensor.to(dtype) for tensor in tensors), **kwargs)  # type: ignore[no-any-return]

    return product


# Of these torch makes operators of its own on CUDA, which have kernels there alone.


def _lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    hidden, cell = hx
    gates = F.linear(input, w_ih, b_ih) + F.linear(hidden, w_hh, b_hh)
    take, keep, new, show = gates.chunk(4, -1)
    cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
    return show.sigmoid() * cell.tanh(), cell


def _gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    of_input = F.linear(input, w_ih, b_ih).chunk(3, -1)
    of_hidden = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    reset, keep = ((first + second).sigmoid() for first, second in zip(of_input[:2], of_hidden[:2], strict=True))
    new = (of_input[2] + reset * of_hidden[2]).tanh()
    return (hx - new) * keep + new


def _spherical_bessel_j0(x: Tensor) -> Tensor:
    quotient = torch.where(x == 0, 1.0, torch.sin(x) / x)
    return torch.where(torch.isinf(x), 0.0, quotient)


OWN: dict[Any, Decomposition] = {
    **_views(),
    aten._reshape_alias_copy.default: _reshape_alias_copy,
    aten.view.dtype: _view_as_dtype,
    aten.conv_tbc.default: _conv_tbc,
    aten.lstm_cell.default: _lstm_cell,
    aten.gru_cell.default: _gru_cell,
    aten.linalg_tensorinv.default: _tensorinv,
    aten.mm.dtype: _product(aten.mm.default),
    aten.bmm.dtype: _product(aten.bmm.default),
    aten.addmm.dtype: _product(aten.addmm.default),
    aten.special_modified_bessel_i0.default: aten.i0.default,
    aten.special_modified_bessel_i1.default: aten.special_i1.default,
    aten.special_spherical_bessel_j0.default: _spherical_bessel_j0,
}
"""What stands in the place of an operator that no converter keeps, by the operator."""
