"""The table of converters: one function per ATen operator, its arguments bound by the operator's schema."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch2trt.graph.schema import name_of, parameters_of
from torch2trt.sizes import Size

Function = TypeVar("Function", bound=Callable[..., Any])
Unsupported = Callable[..., str | None]


@dataclass(frozen=True)
class Converter:
    """How one operator becomes TensorRT layers, and when it cannot."""

    target: Any
    function: Callable[..., Any]
    unsupported: Unsupported | None
    float32: bool = False
    """Whether it computes in float32 whatever the precision of the model."""
    at_most: Callable[..., Size] | None = None
    """How many elements it selects at most, where how many they are depends on data."""


_TABLE: dict[Any, Converter] = {}
_LATER: dict[str, Converter] = {}
_REFUSED: dict[str, str] = {}


def converter(
    *targets: Any,
    unsupported: Unsupported | None = None,
    float32: bool = False,
    at_most: Callable[..., Size] | None = None,
) -> Callable[[Function], Function]:
    """Register a function as the converter of operator overloads.

    The function takes the network builder and, by name, the arguments of the operators' schema (``self`` is called
    ``input``): tensors as :class:`torch2trt.trt.tensor.Tensor`, symbolic integers as sizes, everything else as it is.
    ``**_`` ignores those it has no use for. It returns the tensor, or the tuple of tensors, that the operator returns.

    Args:
        targets: operator overloads, ``torch.ops.aten.relu.default``; of a library that may not be loaded, or
            installed, their names, ``"torchvision.roi_align.default"``.
        unsupported: takes the same arguments with tensors as :class:`~torch2trt.sizes.TensorSpec` (and, if it names
            them, the ``flavour``, the ``ranges`` of the dynamic dimensions, ``results``, a list of what the call
            yields, and ``used``, the positions of the results that something reads) and returns why this call cannot
            be converted, or None.
        float32: compute it in float32 where the precision of the model is another.
        at_most: for operators whose results have a size that depends on data: takes the arguments as ``unsupported``
            does and returns the most that it can be.

    Raises:
        TypeError: the parameters are not the schema's, or the operator already has a converter.
    """

    def register(function: Function) -> Function:
        for target in targets:
            if isinstance(target, str):
                _LATER[target] = Converter(target, function, unsupported, float32, at_most)
            else:
                _add(Converter(target, function, unsupported, float32, at_most))
        return function

    return register


def _add(new: Converter) -> None:
    target = new.target
    if target in _TABLE:
        other = _TABLE[target].function.__name__
        raise TypeError(f"{name_of(target)} already has the converter {other}")
    _check_parameters(new.function, target, skip=("net",))
    for asked in filter(None, (new.unsupported, new.at_most)):
        _check_parameters(asked, target, skip=("flavour", "ranges", "results", "used"))
    _TABLE[target] = new


def refuse(*names: str, reason: str) -> None:
    """Say why operators have no converter."""
    _REFUSED.update(dict.fromkeys(names, reason))


def refusal(target: Any) -> str:
    """Why an operator without converter has none."""
    return _REFUSED.get(name_of(target), "no converter")


def find(target: Any) -> Converter | None:
    """The converter of an operator overload, if it has one."""
    if target not in _TABLE and (later := _LATER.pop(name_of(target), None)):
        _add(replace(later, target=target))
    return _TABLE.get(target)


def has_converter(target: Any) -> bool:
    """Whether an operator overload has a converter."""
    return find(target) is not None


def all_converters() -> Iterator[Converter]:
    """Every converter of an operator whose library is loaded and that has been asked for, by operator name."""
    return iter(sorted(_TABLE.values(), key=lambda item: name_of(item.target)))


def arguments_for(function: Callable[..., Any], bound: dict[str, Any]) -> dict[str, Any]:
    """Those of the bound arguments that a function takes."""
    parameters = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return bound
    return {name: value for name, value in bound.items() if name in parameters}


@functools.cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _check_parameters(function: Callable[..., Any], target: Any, skip: tuple[str, ...]) -> None:
    known = parameters_of(target)
    parameters = _parameters(function)
    named = [name for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD and name not in skip]
    open_ended = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    if wrong := [name for name in named if name not in known and parameters[name].default is inspect.Parameter.empty]:
        raise TypeError(f"{function.__name__}: {name_of(target)} has no argument {wrong}; it has {known}")
    if not open_ended and (missing := [name for name in known if name not in named]):
        raise TypeError(f"{function.__name__} ignores {missing} of {name_of(target)}: take them, or **_")
