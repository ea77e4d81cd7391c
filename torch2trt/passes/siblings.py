"""Calls with weights that read one tensor, computed as one call: which of them, by what that saves and costs."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import Match, following_activation
from torch2trt.passes.views import RESHAPING

aten = torch.ops.aten
log = logging.getLogger(__name__)

# Of a kernel within a CUDA graph, and of a GPU's memory: together they give the 6.2 µs that an H200 takes for a
# normalisation of 19 MB. Only the balance matters.
LAUNCH_US = 1.5
_BYTES_PER_US = 4e6

# Slices begin at multiples of this many elements, or kernels would read them element by element.
_ALIGNED = 8

NONE: Match = ("none", 0.0, 0.0)


@dataclass(frozen=True)
class Kind:
    """What is particular to an operator with a weight [channels, …] and a bias, of which siblings are merged."""

    target: Any
    dim: int
    """The result's dimension of channels, counted from the left or from the right."""
    key: Callable[[dict[str, Any]], Hashable]
    """Of a call's arguments, what siblings have in common."""
    obstacle: Callable[[Program, fx.Node], str | None]
    """Why a call cannot be merged with others."""
    stays_apart: Callable[[Match, fx.Node, Sequence[fx.Node]], bool]
    """Whether TensorRT computes the activation that ends a call apart from it, be it merged or not.

    It is given the activation, its node, and those of all siblings.
    """
    reads_slices: Callable[[fx.Node], bool]
    """Whether a call that uses the result reads it as well where it is a slice of another tensor."""


@dataclass(frozen=True)
class _Sibling:
    """One of several calls.

    Attributes:
        node: the call.
        last: the activation that is merged with it, else the call itself.
        cost_us: what reading the result as a slice costs, beside reading it alone.
    """

    node: fx.Node
    last: fx.Node
    cost_us: float


def merge_siblings(program: Program, kind: Kind) -> None:
    """Compute calls on one tensor as one, with slices of its result in their place.

    One kernel is launched and reads its input once. A slice that its reader cannot take as it is must be copied:
    calls for which that costs more than it saves stay alone. Calls that end in different activations are not merged,
    where TensorRT computes those with them. Weights are hoisted before, and joined among themselves.

    What a launch and a copy cost is an estimate, and no engine with merged calls has been timed yet.
    """
    groups: defaultdict[Hashable, list[fx.Node]] = defaultdict(list)
    for node in program.calls:
        if node.target is kind.target:
            bound = bind(node)
            groups[bound["input"], kind.key(bound)].append(node)
    chosen: list[list[_Sibling]] = []
    weights = set(program.weight_placeholders)
    for nodes in groups.values():
        for siblings in _alike(program, kind, nodes, weights) if len(nodes) > 1 else ():
            better = _worthwhile(program, siblings)
            if not better:
                log.debug("merging %s does not pay", [sibling.node for sibling in siblings])
            chosen.append(better)
    place = {node: index for index, node in enumerate(program.calls)}
    joined: dict[tuple[fx.Node, ...], fx.Node] = {}
    for siblings in sorted(_without_copies(chosen), key=lambda siblings: place[siblings[0].node]):
        _merge(program, kind, siblings, joined)


def _alike(program: Program, kind: Kind, nodes: Sequence[fx.Node], weights: set[fx.Node]) -> list[list[_Sibling]]:
    """The calls that can be merged, by the activation that is computed with them."""
    free: list[fx.Node] = []
    for node in nodes:
        reason = kind.obstacle(program, node) or _obstacle(program, kind, node, weights)
        if reason is None:
            free.append(node)
        else:
            log.debug("%s is not merged with its siblings: %s", node, reason)
    ends = {node: following_activation(program, node) for node in free}
    lasts = [last for _, last in ends.values()]
    groups: defaultdict[Match, list[fx.Node]] = defaultdict(list)
    for node, (activation, last) in ends.items():
        groups[NONE if last is node or kind.stays_apart(activation, last, lasts) else activation].append(node)
    found = []
    for members in groups.values():
        same = len({ends[node][0] for node in members}) == 1
        siblings = [(node, ends[node][1] if same else node) for node in members]
        found.append([_Sibling(node, last, _cost_us(program, kind, last)) for node, last in siblings])
    return [siblings for siblings in found if len(siblings) > 1]


def _obstacle(program: Program, kind: Kind, node: fx.Node, weights: set[fx.Node]) -> str | None:
    bound = bind(node)
    weight, bias = bound["weight"], bound["bias"]
    if IN_TORCH in node.meta:
        return "it is to run in torch"
    if weight not in weights or not (bias is None or bias in weights):
        return "its weights are not constant"
    if any(user.target is not kind.target for user in weight.users):
        return "its weight serves elsewhere too, and would be there twice"
    width = program.spec(node).shape[kind.dim]
    if not isinstance(width, int) or width % _ALIGNED:
        return f"its channels, {width}, are no multiple of {_ALIGNED}, and slices would not be aligned"
    return None


# What pays ------------------------------------------------------------------------------------------------------------


def _cost_us(program: Program, kind: Kind, last: fx.Node) -> float:
    return 0.0 if is_read_as_slice(kind, last) else LAUNCH_US + _move_us(program, last, passes=2)


def is_read_as_slice(kind: Kind, node: fx.Node) -> bool:
    """Whether all that uses a call's result, or a reshape of it, reads it as well as a slice of another tensor."""
    return all(
        is_read_as_slice(kind, user) if user.target in RESHAPING else kind.reads_slices(user) for user in node.users
    )


def _move_us(program: Program, node: fx.Node, passes: int = 1) -> float:
    """The time to move a tensor so many times, at the sizes that the engine is tuned for."""
    spec = program.spec(node)
    return passes * math.prod(program.usual(size) or 1 for size in spec.shape) * spec.dtype.itemsize / _BYTES_PER_US


def _worthwhile(program: Program, siblings: Sequence[_Sibling]) -> list[_Sibling]:
    """Those that are better merged: each but the first saves a launch, and reading the input."""
    saved = LAUNCH_US + _move_us(program, siblings[0].node.all_input_nodes[0])
    chosen = [sibling for sibling in siblings if sibling.cost_us < saved]
    pays = sum(sibling.cost_us for sibling in chosen) < (len(chosen) - 1) * saved
    return chosen if len(chosen) > 1 and pays else []


def _without_copies(groups: list[list[_Sibling]]) -> list[list[_Sibling]]:
    """The groups whose weights are joined in the same way wherever they serve, so that none is there twice."""
    while True:
        uses = Counter(_weights(siblings) for siblings in groups)
        kept = [
            siblings
            for siblings in groups
            if siblings and all(len(weight.users) == uses[_weights(siblings)] for weight in _weights(siblings))
        ]
        if len(kept) == len(groups):
            return kept
        groups = kept


def _weights(siblings: Sequence[_Sibling]) -> tuple[fx.Node, ...]:
    return tuple(bind(sibling.node)["weight"] for sibling in siblings)


# Merging --------------------------------------------------------------------------------------------------------------


def join(program: Program, kind: Kind, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Compute calls as one whatever it costs; the slices that take their places, or none where they cannot be merged.

    Each of them has weights of its own, which serve nowhere else.
    """
    weights = set(program.weight_placeholders)
    bounds = [bind(node) for node in nodes if node.target is kind.target]
    if len({*nodes}) != len(bounds) or len({(bound["input"], kind.key(bound)) for bound in bounds}) != 1:
        return []
    held = [bound["weight"] for bound in bounds]
    if len({*held}) != len(held) or any(len(weight.users) > 1 for weight in held):
        return []
    if any(kind.obstacle(program, node) or _obstacle(program, kind, node, weights) for node in nodes):
        return []
    return _merge(program, kind, [_Sibling(node, node, 0.0) for node in nodes], {})


def _merge(
    program: Program, kind: Kind, siblings: Sequence[_Sibling], joined: dict[tuple[fx.Node, ...], fx.Node]
) -> list[fx.Node]:
    graph, first = program.graph.graph, siblings[0]
    bounds = [bind(sibling.node) for sibling in siblings]
    members = {sibling.node for sibling in siblings}
    # What reads one of them may come before the next.
    with graph.inserting_before(next(node for node in program.calls if node in members)):
        weight = _joined([bound["weight"] for bound in bounds], joined, like=first.node)
        bias = None
        if any(bound["bias"] is not None for bound in bounds):
            biases = [bound["bias"] or _zeros(bound["weight"], like=first.node) for bound in bounds]
            bias = _joined(biases, joined, like=first.node)
        arguments = {**bounds[0], "weight": weight, "bias": bias}
        whole = call(graph, kind.target, *arguments.values(), like=first.node)
        if first.last is not first.node:
            rest = first.last.args[1:]
            whole = call(graph, first.last.target, whole, *rest, like=first.last, **first.last.kwargs)
        start = 0
        parts = []
        for sibling in siblings:
            spec = program.spec(sibling.node)
            dim = kind.dim % spec.rank
            end = start + spec.shape[dim]
            part = call(graph, aten.slice.Tensor, whole, dim, start, end, like=sibling.node)
            start = end
            sibling.last.replace_all_uses_with(part)
            parts.append(part)
    for sibling in siblings:
        for node in dict.fromkeys((sibling.last, sibling.node)):
            graph.erase_node(node)
    return parts


def _joined(parts: Sequence[fx.Node], joined: dict[tuple[fx.Node, ...], fx.Node], *, like: fx.Node) -> fx.Node:
    """Weights one after the other, the same ones once."""
    key = tuple(parts)
    if key not in joined:
        joined[key] = call(like.graph, aten.cat.default, list(parts), 0, like=like)
    return joined[key]


def _zeros(weight: fx.Node, *, like: fx.Node) -> fx.Node:
    value = weight.meta["val"]
    size = [value.shape[0]]
    return call(like.graph, aten.full.default, size, 0, dtype=value.dtype, device=value.device, like=like)
