"""Other kernels for torch's operators while a graph is traced or its values are computed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten

_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)


@contextlib.contextmanager
def replaced_kernels(kernels: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Within, composite operators are what these functions compute."""
    own = {operator: dict(operator.py_kernels) for operator in kernels}
    try:
        for operator, kernel in kernels.items():
            _set_kernels(operator, own[operator] | dict.fromkeys(_KEYS, kernel))
        yield
    finally:
        for operator, before in own.items():
            _set_kernels(operator, before)


def _set_kernels(operator: Any, kernels: dict[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()


def shapes_of_quantiles() -> contextlib.AbstractContextManager[None]:
    """Within, quantiles of fake tensors have a shape: up to torch 2.11 they look at values, to check them."""
    return replaced_kernels({operator: _quantile(operator) for operator in QUANTILES})


QUANTILES = (aten.quantile.default, aten.quantile.scalar, aten.nanquantile.default, aten.nanquantile.scalar)
"""The operators of quantiles."""


def _quantile(operator: Any) -> Callable[..., Tensor]:
    def quantile(
        input: Tensor,
        q: Tensor | float,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        interpolation: str = "linear",
    ) -> Tensor:
        if not isinstance(input, FakeTensor):
            found: Tensor = operator._op_dk(_KEYS[0], input, q, dim, keepdim, interpolation=interpolation)
            return found
        if isinstance(q, float) and not 0 <= q <= 1:
            raise RuntimeError(f"quantile() q must be in the range [0, 1] but got {q}")
        if input.dtype not in (torch.float32, torch.float64) or (isinstance(q, Tensor) and q.dtype != input.dtype):
            raise RuntimeError("quantile() input and q must be float or double tensors of one dtype")
        rest = input.amax(() if dim is None else dim, keepdim)
        return input.new_empty((*q.shape, *rest.shape) if isinstance(q, Tensor) else rest.shape)

    return quantile
