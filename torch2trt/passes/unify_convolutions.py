"""Every convolution as ``aten.convolution``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

_FORWARD = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv1d.padding: 1,
    aten.conv2d.padding: 2,
    aten.conv3d.padding: 3,
}
_TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
CONVOLUTIONS = frozenset({*_FORWARD, *_TRANSPOSED})
"""The operators that this pass leaves none of."""


def unify_convolutions(program: Program, settings: Settings) -> None:
    """Rewrite the operators for 1 to 3 dimensions, named padding and transposition as the general one."""
    for node in program.calls:
        if node.target in CONVOLUTIONS:
            with program.graph.graph.inserting_before(node):
                replacement = _general(program, node)
            node.replace_all_uses_with(replacement)
            program.graph.graph.erase_node(node)
        elif node.target is aten.convolution.default:
            _complete(program, node)


def _general(program: Program, node: fx.Node) -> fx.Node:
    transposed = node.target in _TRANSPOSED
    spatial = (_TRANSPOSED if transposed else _FORWARD)[node.target]  # type: ignore[index]
    bound = bind(node)
    stride, dilation = _full(bound["stride"], spatial), _full(bound["dilation"], spatial)
    source, padding = bound["input"], bound["padding"]
    if isinstance(padding, str):
        window = program.spec(bound["weight"]).shape[2:]
        source, padding = _named_padding(node, source, padding, window, dilation)
    extra = _full(bound.get("output_padding", 0), spatial)
    # The general one takes batches only.
    batched = program.spec(node).rank == spatial + 2
    if not batched:
        source = call(node.graph, aten.unsqueeze.default, source, 0, like=node)
    result = call(
        node.graph,
        aten.convolution.default,
        source,
        bound["weight"],
        bound["bias"],
        stride,
        _full(padding, spatial),
        dilation,
        transposed,
        extra,
        bound["groups"],
        like=node,
    )
    return result if batched else call(node.graph, aten.squeeze.dim, result, 0, like=node)


def _complete(program: Program, node: fx.Node) -> None:
    """Spell out numbers that stand for all dimensions: so torch leaves a padding that was ``"valid"``."""
    bound = bind(node)
    spatial = program.spec(bound["weight"]).rank - 2
    lists = ("stride", "padding", "dilation", "output_padding")
    node.args = tuple(_full(value, spatial) if name in lists else value for name, value in bound.items())
    node.kwargs = {}


def _full(value: int | Sequence[int], spatial: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values


def _named_padding(
    node: fx.Node, source: fx.Node, padding: str, window: Sequence[int], dilation: Sequence[int]
) -> tuple[fx.Node, list[int]]:
    """``"valid"`` and ``"same"`` as numbers; what cannot be halved is padded after, as torch does."""
    if padding == "valid":
        return source, [0] * len(window)
    totals = [reach * (size - 1) for reach, size in zip(dilation, window, strict=True)]
    if any(total % 2 for total in totals):
        # constant_pad_nd counts from the last dimension.
        odd = [amount for total in reversed(totals) for amount in (0, total % 2)]
        source = call(node.graph, aten.constant_pad_nd.default, source, odd, 0.0, like=node)
    return source, [total // 2 for total in totals]
