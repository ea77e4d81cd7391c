"""Merge calls that compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH
from torch2trt.settings import Settings


def merge_common_subexpressions(program: Program, settings: Settings) -> None:
    """Replace every call by an earlier one with the same operator and arguments."""
    seen: dict[Any, fx.Node] = {}
    for node in program.calls:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs), IN_TORCH in node.meta)
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            program.graph.graph.erase_node(node)


def _hashable(value: Any) -> Any:
    # The type is part of the key: 1, 1.0 and True are equal, and mean different dtypes.
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(value[key])) for key in sorted(value))
    return (type(value), repr(value)) if isinstance(value, float) else (type(value), value)
