"""Which operators compute each element of their result from one element of each argument, broadcast."""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten

# Torch tags most of them.
_UNTAGGED = frozenset(
    {
        *(aten._to_copy.default, aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf),
        *(aten.masked_fill.Tensor, aten.hardswish.default, aten.log_sigmoid.default, aten.floor_divide.default),
        *(aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Tensor),
    }
)


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node is the call of such an operator, with one result."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in _UNTAGGED
