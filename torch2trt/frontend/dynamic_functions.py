"""Functions that would fix a dynamic size, or fail, where torch traces them, in other words while that is done."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from torch2trt.frontend.decompositions import replaced
from torch2trt.graph.kernels import replaced_kernels

aten = torch.ops.aten

# With more rows torch computes Euclidean distances by products, and so asks how many there are.
_WITHOUT_PRODUCTS = 2


@contextlib.contextmanager
def dynamic_functions() -> Iterator[None]:
    """Within, they are computed of operators that take sizes of any kind; where all sizes are known, as ever."""
    with (
        replaced_kernels({operator: _where_dynamic(operator, function) for operator, function in _KERNELS.items()}),
        replaced(math, "sqrt", _sqrt),
        replaced(nn.Module, "to", _moved),
        # It looks whether a mask is causal, for a kernel that needs none: the trace would depend on it.
        replaced(transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: bool(is_causal)),
        _Functions(),
    ):
        yield


class _Functions(TorchFunctionMode):
    """``torch.linspace``, whose number of steps is fixed before any operator is called."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.linspace:
            found = _linspace(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        return func(*args, **(kwargs or {}))


def _linspace(
    start: Any,
    end: Any,
    steps: Any = None,
    *,
    out: Any = None,
    dtype: torch.dtype | None = None,
    device: Any = None,
    **_: Any,
) -> Any:
    """From both ends to the middle, as torch counts; its last number is the end itself."""
    dtype = dtype or torch.get_default_dtype()
    if not _is_dynamic((start, end, steps)) or out is not None or not dtype.is_floating_point:
        return NotImplemented
    index = torch.arange(steps, dtype=torch.float32, device=device)
    last = index.new_ones(()) * (steps - 1)
    step = (end - start) / last.clamp(min=1)
    return (
        torch.where(index < last - index, start + index * step, end - (last - index) * step)
        .where(last > 0, start * torch.ones_like(index))
        .to(dtype)
    )


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return input.reshape(-1).gather(0, indices.reshape(-1))
    dim %= input.dim()

    def beside(tensor: Tensor) -> list[Any]:
        return [*tensor.shape[:dim], 1, *tensor.shape[dim + 1 :]]

    shape = [*torch.broadcast_shapes(beside(input), beside(indices))]
    shapes = ([*shape[:dim], tensor.shape[dim], *shape[dim + 1 :]] for tensor in (input, indices))
    own, chosen = (tensor.expand(each) for tensor, each in zip((input, indices), shapes, strict=True))
    return own.gather(dim, chosen)


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
    size = input.shape[dim]
    if not isinstance(size, torch.SymInt) or size % chunks != 0:
        return NotImplemented
    return input.split_with_sizes([size // chunks] * chunks, dim)


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    return aten._cdist_forward(x1, x2, p, _WITHOUT_PRODUCTS)  # type: ignore[no-any-return]


_KERNELS: dict[Any, Callable[..., Any]] = {
    aten.take_along_dim.default: _take_along_dim,
    aten.chunk.default: _chunk,
    aten.cdist.default: _cdist,
}


def _where_dynamic(operator: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if _is_dynamic(args):
            found = function(*args, **kwargs)
            if found is not NotImplemented:
                return found
        return operator._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)

    return kernel


def _is_dynamic(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value._has_symbolic_sizes_strides)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return any(map(_is_dynamic, value))
    return isinstance(value, torch.SymInt | torch.SymFloat)


def _sqrt(number: Any) -> Any:
    return torch.sym_sqrt(number) if isinstance(number, torch.SymInt | torch.SymFloat) else _SQRT(number)


_SQRT = math.sqrt
_TO = nn.Module.to


def _moved(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A module where it is already: moving its parameters, if only there, cannot be traced."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    held = [*self.parameters(), *self.buffers()]
    if all(device in (None, each.device) and (dtype in (None, each.dtype) or not _is_float(each)) for each in held):
        return self
    return _TO(self, *args, **kwargs)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
