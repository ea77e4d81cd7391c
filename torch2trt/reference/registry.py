"""Where layers are registered: the name of a ``LayerType``, and the function that computes such a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Result = torch.Tensor | tuple[torch.Tensor, ...]
LayerFunction = Callable[..., Result]
F = TypeVar("F", bound=LayerFunction)

NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Rule:
    """How layers of one kind are computed."""

    function: LayerFunction
    """Called with the node and then its inputs by position, None for one that is not set."""
    wide: bool
    """Whether FP16 and BF16 inputs are widened first, and the results rounded, as TensorRT computes them."""


LAYERS: dict[str, Rule] = {}


def layer(kind: str, *, wide: bool = False) -> Callable[[F], F]:
    """Register the function that computes layers of a kind.

    Args:
        kind: the name of the ``LayerType``; flavours that lack it never ask for it.
        wide: see :class:`Rule`.
    """

    def register(function: F) -> F:
        if kind in LAYERS:
            raise RuntimeError(f"{kind} is registered twice")
        LAYERS[kind] = Rule(function, wide)
        return function

    return register


def bits(mask: int) -> list[int]:
    """The axes that a bit mask names, in ascending order."""
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def sizes(api: Any, attribute: str, tensor: torch.Tensor | None) -> list[int]:
    """A list of integers that a layer takes either from an input or from its attribute.

    The attribute is read only where there is no input: TensorRT logs an error otherwise.
    """
    if tensor is not None:
        return [int(value) for value in tensor.tolist()]
    values = declared(api, attribute)
    assert values is not None, f"{attribute} is neither set nor an input"
    return values


def declared(api: Any, attribute: str) -> list[int] | None:
    """An attribute that is a list of integers, None where it is unset or this TensorRT does not have it."""
    value = getattr(api, attribute, None)
    if value is None:
        return None
    try:
        return list(value)
    except ValueError:  # TensorRT 10.6 says unset as dimensions of negative number
        return None


def along(values: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    """A 1-D tensor as one of the given rank that lies along a dimension."""
    return values.reshape([-1 if d == dim else 1 for d in range(rank)])


def pairs(pre: Sequence[int], post: Sequence[int]) -> Iterator[int]:
    """Padding of the innermost dimensions, before and after, in the order of ``torch.nn.functional.pad``."""
    for before, after in zip(reversed(pre), reversed(post), strict=True):
        yield before
        yield after
