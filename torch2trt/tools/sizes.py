"""The sizes of dynamic dimensions at which a tool runs a module, and an example call's tensors in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from torch2trt.errors import DynamicShapeError
from torch2trt.frontend.dynamic_shapes import check_name, resized
from torch2trt.graph.signature import Signature
from torch2trt.runtime import inputs as checks

At = Mapping[str, int] | Sequence[Mapping[str, int]] | Literal["all"]
"""Sizes by the names of dimensions, several of these, or the smallest, usual and largest sizes of every profile."""

_HINT = '{"batch": 64}, a list of such, or "all"'
_GOLDEN = 0.6180339887498949


def inputs_at(
    signature: Signature, inputs: Sequence[torch.Tensor], at: At | None
) -> list[tuple[dict[str, int], list[torch.Tensor]]]:
    """An example's tensors in each of several sizes, with the sizes of all dynamic dimensions.

    Values repeat, or are left out. Those of floating point are another part smaller in each repetition, by up to half:
    were they the same, it would not show where an engine has the example's size in place of the call's.

    Args:
        signature: tells the dimensions and the profiles.
        inputs: the example's tensors, in the signature's order.
        at: dimensions that are left out have the example's size; unset: the example's sizes.

    Raises:
        DynamicShapeError: an unknown dimension, or what is no size.
        InputShapeError: no profile holds the sizes.
    """
    if at is None:
        return [(checks.check(signature, inputs), list(inputs))]
    # The example itself may be in no profile.
    own = checks.check(dataclasses.replace(signature, profiles=()), inputs)
    asked: dict[tuple[int, ...], dict[str, int]] = {}
    for given in _asked(signature, at):
        sizes = {**own, **given}
        asked.setdefault(tuple(sizes.values()), sizes)
    found = []
    for sizes in asked.values():
        values = [
            _in_shape(value, leaf.spec.at(sizes)) for leaf, value in zip(signature.tensor_inputs, inputs, strict=True)
        ]
        checks.check(signature, values)
        found.append((sizes, values))
    return found


def _asked(signature: Signature, at: Any) -> list[Mapping[str, int]]:
    if at == "all":
        return [
            {name: getattr(span, corner) for name, span in ranges.items()}
            for ranges in signature.ranges
            for corner in ("min", "opt", "max")
        ]
    asked = [at] if isinstance(at, Mapping) else at
    if not asked or isinstance(asked, str) or not all(isinstance(sizes, Mapping) for sizes in asked):
        raise DynamicShapeError(f"takes sizes by the names of dimensions, got {at!r}", subject="at", hint=_HINT)
    for sizes in asked:
        for name, size in sizes.items():
            check_name("at", name, signature.dims)
            if type(size) is not int:
                raise DynamicShapeError(f"{name!r} is {size!r}", subject="at", hint=_HINT)
    return list(asked)


def _in_shape(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    for axis, (had, size) in enumerate(zip(value.shape, shape, strict=True)):
        value = resized(value, axis, size)
        if value.is_floating_point() and size > had:
            repetition = torch.arange(size, dtype=torch.float64).div(had, rounding_mode="floor")
            # Multiples of the golden ratio lie far from each other, however many there are.
            factors = (1 - (repetition * _GOLDEN).frac() / 2).to(value.dtype)
            value = value * factors.reshape(-1, *[1] * (value.dim() - axis - 1))
    return value
