"""Tensors that tell Dynamo which of their sizes are dynamic, and whoever takes a graph from it what these are called.

A tensor that a graph makes is the next graph's input, and its marks go with it. Dynamo's own marks come with no range
that all that is computed from a size could be told in, and one that turns out to be impossible would be an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from torch2trt.sizes import Size

_SIZES = "_torch2trt_sizes"


class Marks:
    """Marks for any number of tensors.

    Args:
        sizes: the dynamic axes, with their sizes in terms of the names of dimensions.
    """

    def __init__(self, sizes: Mapping[int, Size]) -> None:
        self._attributes = {**_dynamo_marks(frozenset(sizes)), _SIZES: dict(sizes)}

    def put(self, tensor: torch.Tensor) -> None:
        """Mark a tensor."""
        tensor.__dict__.update(self._attributes)


def sizes_of(value: Any) -> Mapping[int, Size]:
    """The sizes that a tensor's marks tell, by axis."""
    found: Mapping[int, Size] = getattr(value, "__dict__", {}).get(_SIZES, {})
    return found


@contextmanager
def marked(tensors: Sequence[tuple[torch.Tensor, Marks]]) -> Iterator[None]:
    """Inside, tensors have marks; after it they are as they were."""
    before = [(tensor, dict(tensor.__dict__)) for tensor, _ in tensors]
    for tensor, marks in tensors:
        marks.put(tensor)
    try:
        yield
    finally:
        for tensor, attributes in before:
            clear(tensor)
            tensor.__dict__.update(attributes)


def clear(tensor: torch.Tensor) -> None:
    """Take the marks off a tensor, if there are some."""
    if _SIZES in tensor.__dict__:
        for name in (*_dynamo_marks(frozenset({0})), _SIZES):
            tensor.__dict__.pop(name, None)


@functools.cache
def _dynamo_marks(axes: frozenset[int]) -> Mapping[str, Any]:
    """What Dynamo leaves on a tensor whose axes are marked; it takes much longer than leaving it there."""
    tensor = torch.empty([1] * (max(axes, default=0) + 1))
    for axis in axes:
        torch._dynamo.maybe_mark_dynamic(tensor, axis)
    return dict(tensor.__dict__)
