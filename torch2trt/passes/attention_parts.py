"""Queries, keys and values of attention as what they are made of: projections, heads, rotary embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2trt.graph.ops import ROTARY
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.packed_heads import HEADS_AND_TOKENS, with_heads_behind
from torch2trt.passes.simplify_casts import CAST, is_plain
from torch2trt.passes.views import RESHAPING

aten = torch.ops.aten


@dataclass(frozen=True)
class Part:
    """Queries, keys or values.

    Attributes:
        tensor: [N, heads, tokens, width], as attention reads them.
        rotary: the call that turns them, alike for all heads; a cast may come after it.
        heads_first: whether it turns them with heads in front of tokens.
        behind: [N, tokens, heads, width], before they are turned, where the graph has them so.
        source: [N, tokens, channels], of which these are reshaped.
    """

    tensor: fx.Node
    rotary: fx.Node | None
    heads_first: bool
    behind: fx.Node | None
    source: fx.Node | None

    @property
    def angles(self) -> tuple[Any, ...]:
        """Cosines and sines, and whether they are those of heads in front of tokens."""
        return () if self.rotary is None else (*self.rotary.args[1:], self.heads_first)

    @property
    def shape_behind(self) -> list[Any] | None:
        """N and tokens, as the reshape that takes heads apart is given them; None where there is none."""
        if self.behind is None or self.behind.target is not aten.reshape.default:
            return None
        shape = bind(self.behind)["shape"]
        return list(shape[:2]) if len(shape) == 4 else None

    def emit_behind(self, program: Program, *, like: fx.Node) -> fx.Node:
        """Insert what makes [N, tokens, heads, width] at the graph's insertion point."""
        if self.behind is None:
            return call(like.graph, aten.permute.default, self.tensor, list(HEADS_AND_TOKENS), like=like)
        return self.behind if self.rotary is None else self.emit_turned(program, self.behind, like=like)

    def emit_turned(self, program: Program, heads: fx.Node, *, like: fx.Node) -> fx.Node:
        """Insert the call that turns heads behind their tokens as this part's are."""
        assert self.rotary is not None
        angles = [bind(self.rotary)[name] for name in ("cos", "sin")]
        if self.heads_first:
            angles = [_angles_behind(program, angle, like=like) for angle in angles]
        made = call(like.graph, ROTARY, heads, *angles, like=like)
        dtype = program.spec(self.tensor).dtype
        return made if program.spec(made).dtype == dtype else call(like.graph, CAST, made, dtype=dtype, like=like)


def part_of(program: Program, node: fx.Node) -> Part:
    """What a tensor [N, heads, tokens, width] is made of."""
    behind = with_heads_behind(program, node)
    if behind is not None and _turns_heads_alike(program, behind, -2):
        inner = bind(behind)["input"]
        return Part(node, behind, False, inner, _source(program, node, inner))
    turned = _before_cast(node)
    if _turns_heads_alike(program, turned, -3):
        inner = bind(turned)["input"]
        behind = with_heads_behind(program, inner)
        return Part(node, turned, True, behind, _source(program, inner, behind))
    return Part(node, None, False, behind, _source(program, node, behind))


def _before_cast(node: fx.Node) -> fx.Node:
    """What a node casts, if it does nothing else; else the node."""
    return bind(node)["input"] if node.target is CAST and is_plain(node) and IN_TORCH not in node.meta else node


def _turns_heads_alike(program: Program, node: fx.Node, axis: int) -> bool:
    """Whether a call is a rotary embedding by angles that have no heads at an axis, which counts from the right."""
    if node.target is not ROTARY or IN_TORCH in node.meta:
        return False
    shapes = [program.spec(bind(node)[name]).shape for name in ("cos", "sin")]
    return all(len(shape) < -axis or shape[axis] == 1 for shape in shapes)


def _source(program: Program, node: fx.Node, behind: fx.Node | None) -> fx.Node | None:
    """The tensor [N, tokens, channels] that a tensor [N, heads, tokens, width] shows the heads of.

    Args:
        behind: its transpose, where the graph has that.
    """
    count, tokens, width = (program.spec(node).shape[axis] for axis in (1, 2, 3))
    # The transpose of a single head is a reshape.
    reshaped = node if count == 1 and behind is None else behind
    if reshaped is None or reshaped.target not in RESHAPING or IN_TORCH in reshaped.meta:
        return None
    source = reshaped.all_input_nodes[0]
    wanted = (program.spec(node).shape[0], tokens, count * width)
    return source if program.spec(source).shape == wanted else None


def _angles_behind(program: Program, angle: fx.Node, *, like: fx.Node) -> fx.Node:
    """Angles of heads in front of tokens, for heads behind them."""
    rank = program.spec(angle).rank
    if rank > 2:
        angle = call(like.graph, aten.squeeze.dim, angle, rank - 3, like=like)
    return angle if rank < 2 else call(like.graph, aten.unsqueeze.default, angle, -2, like=like)
