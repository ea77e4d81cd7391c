"""Remove operators that change nothing in a functional graph."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

IDENTITIES = frozenset(
    {
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.dropout.default,
        aten.lift_fresh_copy.default,
    }
)
"""The operators that this pass leaves none of."""
# These change nothing where dtype and shape stay.
_KEEPING = frozenset(
    {
        aten._to_copy.default,
        aten.reshape.default,
        aten.expand.default,
        aten.repeat.default,
        aten.slice.Tensor,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
    }
)
_PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})


def remove_noops(program: Program, settings: Settings) -> None:
    """Drop copies, aliases and dropout, casts, views and slices that keep everything, padding by nothing."""
    for node in program.calls:
        keeps = node.target in _KEEPING and _keeps(program, node)
        if node.target in IDENTITIES or keeps or _pads_nothing(node) or _conjugates_real(node):
            source = bind(node)["input"]
            node.replace_all_uses_with(source)
            program.graph.graph.erase_node(node)


def _keeps(program: Program, node: fx.Node) -> bool:
    source = bind(node)["input"]
    return isinstance(source, fx.Node) and program.spec(source) == program.spec(node)


def _pads_nothing(node: fx.Node) -> bool:
    return node.target in _PADS and all(isinstance(size, int) and size == 0 for size in bind(node)["pad"])


def _conjugates_real(node: fx.Node) -> bool:
    return node.target is aten.conj_physical.default and not node.meta["val"].is_complex()
