"""Attention whose keys and values are repeated for several heads, as attention of grouped queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.views import PERMUTING, RESHAPING, View, applied, emit
from torch2trt.settings import Settings
from torch2trt.sizes import Shape

aten = torch.ops.aten


def group_attention(program: Program, settings: Settings) -> None:
    """Let heads that have a key and a value in common share them, where the module repeats both for each head.

    Models repeat them by ``expand``, ``repeat`` or ``repeat_interleave``, with views around it. Queries that share keys
    become rows of one product, and nothing is copied.
    """
    for node in program.calls:
        if node.target is aten.scaled_dot_product_attention.default and IN_TORCH not in node.meta:
            _group(program, node)
    erase_unused(program.graph.graph)


def _group(program: Program, node: fx.Node) -> None:
    graph, bound = program.graph.graph, bind(node)
    tensors = [bound[name] for name in ("query", "key", "value")]
    shapes = [program.spec(tensor).shape for tensor in tensors]
    if bound["enable_gqa"] or min(map(len, shapes)) < 3:
        return
    heads = {shape[-3] for shape in shapes}
    if len(heads) > 1 or not all(isinstance(count, int) for count in heads):
        return
    key, value = (_repeated(program, tensor) for tensor in tensors[1:])
    if key is None or value is None or key.view.shape[-3] != value.view.shape[-3]:
        return
    with graph.inserting_before(node):
        shared = [emit(program, each.source, each.view, like=node) for each in (key, value)]
        if None in shared:
            return
        rest = (bound[name] for name in ("attn_mask", "dropout_p", "is_causal"))
        grouped = call(graph, node.target, tensors[0], *shared, *rest, scale=bound["scale"], enable_gqa=True, like=node)
    node.replace_all_uses_with(grouped)
    graph.erase_node(node)


@dataclass(frozen=True)
class _Shared:
    """Keys or values before they are repeated: the tensor that holds them, and the view of it that they are."""

    source: fx.Node
    view: View


def _repeated(program: Program, node: fx.Node) -> _Shared | None:
    """What a tensor [..., heads, tokens, size] repeats, each head several times in a row."""
    chain: list[fx.Node] = []
    while (node.target in PERMUTING or node.target in RESHAPING) and IN_TORCH not in node.meta:
        chain.append(node)
        node = node.all_input_nodes[0]
    repeat = _repeat_of(program, node)
    if repeat is None:
        return None
    source, wide, axis = repeat
    view = View.of(wide).reshape(program.spec(node).shape)
    for step in reversed(chain):
        view = view and applied(program, step, view)
    if view is None:
        return None
    times = view.source[axis]
    *_, heads, _, _ = view.dims
    if heads[-len(times) :] != times:
        return None
    atoms = {atom: size for atom, size in view.atoms.items() if atom not in times}
    held, dims = (
        tuple(tuple(atom for atom in dim if atom not in times) for dim in each) for each in (view.source, view.dims)
    )
    if len(wide) > program.spec(source).rank:
        held = held[:axis] + held[axis + 1 :]
    return _Shared(source, View(atoms, held, dims))


def _repeat_of(program: Program, node: fx.Node) -> tuple[fx.Node, Shape, int] | None:
    """The tensor that a call repeats, the shape of the result with an axis for the times, and that axis."""
    if IN_TORCH in node.meta:
        return None
    if node.target is aten.repeat_interleave.self_int:
        bound = bind(node)
        shape, times = program.spec(bound["input"]).shape, bound["repeats"]
        if bound["dim"] is None or not isinstance(times, int) or times < 2:
            return None
        axis = bound["dim"] % len(shape) + 1
        return bound["input"], (*shape[:axis], times, *shape[axis:]), axis
    if node.target not in (aten.expand.default, aten.repeat.default):
        return None
    source = bind(node)["input"]
    shape, wide = program.spec(source).shape, program.spec(node).shape
    if len(shape) != len(wide):
        return None
    grown = [axis for axis, (before, after) in enumerate(zip(shape, wide, strict=True)) if before != after]
    if len(grown) != 1 or shape[grown[0]] != 1 or not isinstance(wide[grown[0]], int):
        return None
    return source, wide, grown[0]
