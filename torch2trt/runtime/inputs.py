"""What an engine accepts: the checks of a call's tensors, made once per combination of shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch

from torch2trt.errors import InputDeviceError, InputDtypeError, InputShapeError
from torch2trt.graph.signature import Signature, TensorLeaf, dtype_to_json, ordered
from torch2trt.runtime.profiles import nearest, profiles
from torch2trt.sizes import evaluate, spell


def check(signature: Signature, inputs: Sequence[torch.Tensor]) -> dict[str, int]:
    """Check dtypes and shapes of the tensor inputs, in the signature's order.

    Returns:
        The sizes of the named dimensions.

    Raises:
        InputDtypeError, InputShapeError: name the input, and for shapes the axis and what it may be.
    """
    leaves = signature.tensor_inputs
    dims: dict[str, int] = {}
    seen: dict[str, str] = {}
    for leaf, value in zip(leaves, inputs, strict=True):
        if value.dtype != leaf.spec.dtype:
            wanted = dtype_to_json(leaf.spec.dtype)
            raise InputDtypeError(
                f"is {dtype_to_json(value.dtype)}, the engine takes {wanted}",
                subject=f"input {leaf.name!r}",
                hint=f"pass {leaf.name}.to(torch.{wanted}), or compile again with an example of this dtype",
            )
        if value.dim() != leaf.spec.rank:
            raise _shape_error(
                leaf, f"has {value.dim()} dimension(s) {list(value.shape)}, the engine takes {_spell(leaf)}"
            )
        for axis, size in enumerate(leaf.spec.shape):
            actual = value.shape[axis]
            if isinstance(size, int) and actual != size:
                raise _shape_error(leaf, f"axis {axis} is {actual}, the engine takes {size}: {_spell(leaf)}")
            if isinstance(size, sympy.Symbol):
                _bind(dims, seen, leaf, axis, size.name, actual)
    # Expressions such as 2*h come last: most of their symbols are known by then.
    for leaf, value in zip(leaves, inputs, strict=True):
        for axis, size in enumerate(leaf.spec.shape):
            if isinstance(size, int | sympy.Symbol):
                continue
            actual = value.shape[axis]
            for symbol in size.free_symbols:
                if symbol.name not in dims:
                    _bind(dims, seen, leaf, axis, symbol.name, _solve(leaf, axis, size, symbol, dims, actual))
            if evaluate(size, dims) != actual:
                raise _shape_error(leaf, f"axis {axis} is {actual}, the engine takes {size} = {evaluate(size, dims)}")
    if signature.profiles:
        _check_profiles(signature, inputs, dims)
    for name, actual in dims.items():
        span = signature.dims.get(name)
        if span is not None and not span.min <= actual <= span.max:
            raise InputShapeError(
                f"{name!r} is {actual}, the engine takes {span.min} to {span.max}",
                subject=seen[name],
                hint=f"compile again with Dim({name!r}, min={min(actual, span.min)}, max={max(actual, span.max)})",
            )
    return dims


def as_call(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and keywords of a call that is given as one object.

    Args:
        item: a tuple or list of arguments, a mapping of keywords, or the one argument that there is.
    """
    if isinstance(item, Mapping):
        return (), dict(item)
    return (tuple(item) if isinstance(item, tuple | list) else (item,)), {}


def check_devices(
    signature: Signature, inputs: Sequence[torch.Tensor], device: torch.device, on_host: frozenset[str]
) -> None:
    """Check that the inputs are where the engine is.

    Args:
        on_host: inputs that the engine reads from host memory; they may come from either side.

    Raises:
        InputDeviceError: names the input and both devices.
    """
    for leaf, value in zip(signature.tensor_inputs, inputs, strict=True):
        if value.device != device and not (leaf.name in on_host and value.device.type == "cpu"):
            raise InputDeviceError(
                f"is on {value.device}, the engine is on {device}",
                subject=f"input {leaf.name!r}",
                hint=f"pass {leaf.name}.to({str(device)!r})",
            )


def _check_profiles(signature: Signature, inputs: Sequence[torch.Tensor], dims: Mapping[str, int]) -> None:
    shapes = tuple(
        ordered(value.shape, leaf.order) for leaf, value in zip(signature.tensor_inputs, inputs, strict=True)
    )
    if nearest(profiles(signature), shapes) is None:
        raise InputShapeError(
            f"no profile of the engine holds {spell(dims)}: it has {'; '.join(map(spell, signature.ranges))}",
            subject="inputs",
            hint="compile again with a profile that does",
        )


def _bind(dims: dict[str, int], seen: dict[str, str], leaf: TensorLeaf, axis: int, name: str, actual: int) -> None:
    if dims.setdefault(name, actual) != actual:
        raise _shape_error(leaf, f"axis {axis} ({name}) is {actual}, but it is {dims[name]} in {seen[name]}")
    seen.setdefault(name, f"input {leaf.name!r} axis {axis}")


def _solve(
    leaf: TensorLeaf, axis: int, size: sympy.Expr, symbol: sympy.Symbol, dims: dict[str, int], actual: int
) -> int:
    """The size of a dimension that occurs in expressions only, such as ``h`` where an input's axis is ``2*h``."""
    known = size.subs({other: dims[other.name] for other in size.free_symbols if other.name in dims})
    solutions = sympy.solve(sympy.Eq(known, actual), symbol)
    if len(solutions) != 1 or not solutions[0].is_Integer:
        raise _shape_error(leaf, f"axis {axis} is {actual}, which is not {size} for any {symbol}")
    return int(solutions[0])


def _shape_error(leaf: TensorLeaf, reason: str) -> InputShapeError:
    return InputShapeError(
        reason, subject=f"input {leaf.name!r}", hint="compile again with this shape, or declare it in dynamic_shapes"
    )


def _spell(leaf: TensorLeaf) -> str:
    return f"[{', '.join(map(str, leaf.spec.shape))}]"
