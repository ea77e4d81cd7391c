"""As few casts as give the same values, and data moved in the smaller of two dtypes."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused, only_user, refresh
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants
from torch2trt.settings import Settings

aten = torch.ops.aten

CAST = aten._to_copy.default

# Operators that hand on the elements of one tensor, each once at most: a cast after them is cheaper where they drop
# some, and where the cast widens.
_MOVING = frozenset(
    {
        *(aten.reshape.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.unsqueeze.default),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.slice.Tensor, aten.select.int),
        *(aten.flip.default, aten.roll.default),
    }
)
# The first of these keep all elements: a cast that narrows comes before them at no cost.
_KEEPING = _MOVING - {aten.slice.Tensor, aten.select.int}
_GROWING = frozenset({aten.expand.default, aten.repeat.default})
# TensorRT only casts these: it moves them in another dtype, between two casts more.
_BYTES = frozenset({torch.uint8, torch.int8})


def simplify_casts(program: Program, settings: Settings) -> None:
    """Drop casts that lose nothing on the way to another cast, and move casts so that fewer bytes are moved.

    A cast to a dtype that holds all values of the one before, and from there to a third, is a cast to the third, or
    nothing. A cast that widens comes after what only moves data, and one that narrows before it; either comes before
    what repeats data. There it may meet another cast. What is made of weights alone keeps the order in which it is
    rounded.
    """
    constant = constants(program)
    changed = True
    while changed:
        changed = False
        for node in program.calls:
            if node.target is CAST and node not in constant and IN_TORCH not in node.meta and is_plain(node):
                changed |= _merge(program, node) or _raise(program, node) or _sink(program, node)
        erase_unused(program.graph.graph)


def widens(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether a dtype holds every value of another one."""
    if source == target or source == torch.bool:
        return not target.is_complex
    if source.is_complex or target.is_complex or target == torch.bool:
        return False
    if source.is_floating_point:
        return target.is_floating_point and _holds(torch.finfo(target), torch.finfo(source))
    number = torch.iinfo(source)
    if target.is_floating_point:
        # Every whole number up to this one.
        return max(-number.min, number.max) <= 2 / torch.finfo(target).eps <= torch.finfo(target).max
    other = torch.iinfo(target)
    return other.min <= number.min and number.max <= other.max


def _holds(wide: torch.finfo, own: torch.finfo) -> bool:
    smallest = wide.smallest_normal * wide.eps <= own.smallest_normal * own.eps
    return smallest and wide.eps <= own.eps and wide.max >= own.max


def is_plain(node: fx.Node) -> bool:
    """Whether a call casts and does nothing else."""
    bound = bind(node)
    return bound["dtype"] is not None and isinstance(bound["input"], fx.Node)


def _cast(node: fx.Node, dtype: torch.dtype, *, like: fx.Node) -> fx.Node:
    return call(like.graph, CAST, node, dtype=dtype, like=like)


def _merge(program: Program, node: fx.Node) -> bool:
    """Leave out a cast before this one."""
    before = bind(node)["input"]
    if before.target is not CAST or IN_TORCH in before.meta or not is_plain(before):
        return False
    source = bind(before)["input"]
    own, between, target = (program.spec(each).dtype for each in (source, before, node))
    if not widens(own, between):
        return False
    if own == target:
        replacement = source
    else:
        with node.graph.inserting_before(node):
            replacement = _cast(source, target, like=node)
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)
    return True


def _raise(program: Program, node: fx.Node) -> bool:
    """Bring a cast before what moves data for it alone."""
    move = bind(node)["input"]
    if only_user(move) is not node or move.target not in _KEEPING | _GROWING:
        return False
    source = bind(move)["input"]
    own, target = program.spec(source).dtype, program.spec(node).dtype
    if target in _BYTES or (move.target not in _GROWING and own.itemsize <= target.itemsize):
        return False
    with node.graph.inserting_before(move):
        narrow = _cast(source, target, like=node)
    move.replace_input_with(source, narrow)
    refresh(move)
    node.replace_all_uses_with(move)
    node.graph.erase_node(node)
    return True


def _sink(program: Program, node: fx.Node) -> bool:
    """Bring a cast behind what moves its result alone."""
    move = only_user(node)
    if move is None or move.target not in _MOVING:
        return False
    source = bind(node)["input"]
    own, target = program.spec(source).dtype, program.spec(node).dtype
    if own in _BYTES or (move.target in _KEEPING and own.itemsize >= target.itemsize):
        return False
    move.replace_input_with(node, source)
    refresh(move)
    with node.graph.inserting_after(move):
        wide = _cast(move, target, like=node)
    move.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide)
    return True
