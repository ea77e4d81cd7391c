"""Which optimization profile runs a call."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch2trt.graph.signature import Signature

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of the tensor inputs, as the engine has them, in the signature's order."""

Profile = tuple[Shapes, Shapes, Shapes]
"""The smallest, the usual and the largest shapes of the inputs."""


def profiles(signature: Signature) -> list[Profile]:
    """The shapes of each profile of an engine."""
    leaves = signature.tensor_inputs
    return [
        tuple(zip(*(leaf.stored.span(ranges) for leaf in leaves), strict=True))  # type: ignore[misc]
        for ranges in signature.ranges
    ]


def nearest(known: Sequence[Profile], shapes: Shapes) -> int | None:
    """The profile to run these shapes: of those that hold them, the one that is tuned for the nearest sizes.

    Sizes are as near as their ratio; of equally near ones the narrowest is taken, and then the first.

    Returns:
        Its index; None where none holds them.
    """
    holding = [index for index, (low, _, high) in enumerate(known) if _below(low, shapes) and _below(shapes, high)]
    return min(holding, key=lambda index: _distance(known[index], shapes), default=None)


def _below(smaller: Shapes, larger: Shapes) -> bool:
    return all(a <= b for one, other in zip(smaller, larger, strict=True) for a, b in zip(one, other, strict=True))


def _distance(profile: Profile, shapes: Shapes) -> tuple[float, float]:
    """How far the shapes are from the usual ones, and how wide the profile is."""
    low, opt, high = profile
    return _ratio(opt, shapes), _ratio(low, high)


def _ratio(some: Shapes, others: Shapes) -> float:
    # One more than the size, because there may be none.
    return math.prod(
        (max(a, b) + 1) / (min(a, b) + 1)
        for one, other in zip(some, others, strict=True)
        for a, b in zip(one, other, strict=True)
    )
