"""Masks of attention whose values are known: left out, made causal, or kept once where they repeat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants, value_of
from torch2trt.settings import Settings

aten = torch.ops.aten

# Elements of the largest mask that is looked at.
_LARGEST = 1 << 26


@dataclass(frozen=True)
class _Finding:
    """What is known of a mask.

    Attributes:
        hides_nothing: every query attends to every key.
        is_causal: every query attends to the keys that do not come after it, and to no others.
        repeats: the dimensions along which it is the same all over.
    """

    hides_nothing: bool = False
    is_causal: bool = False
    repeats: tuple[int, ...] = ()


def simplify_masks(program: Program, settings: Settings) -> None:
    """Leave out masks that hide nothing, say ``is_causal`` for those that do that, and keep one of equal ones.

    Models make masks for every batch and head from positions, also where these are constants: an engine would compute
    them in every run, read them in every layer, and correct what queries see that may attend to nothing.

    A mask that is added hides what it gives the lowest number of its dtype, or less, and nothing else may be added.
    """
    constant = constants(program)
    known: dict[tuple[Any, ...], _Finding] = {}
    for node in program.calls:
        if node.target is not aten.scaled_dot_product_attention.default or IN_TORCH in node.meta:
            continue
        bound = bind(node)
        mask = bound["attn_mask"]
        if mask is None or mask not in constant or not _is_small(program, mask):
            continue
        query, key = (program.spec(bound[name]).shape for name in ("query", "key"))
        place = mask, query[-2], key[-2]
        if place not in known:
            known[place] = _look(value_of(program, mask), *place[1:])
        _apply(program, node, bound, known[place])
    erase_unused(program.graph.graph)


def _is_small(program: Program, mask: fx.Node) -> bool:
    shape = program.spec(mask).shape
    return len(shape) >= 2 and all(isinstance(size, int) for size in shape) and math.prod(shape) <= _LARGEST


def _look(mask: torch.Tensor, queries: Any, keys: Any) -> _Finding:
    repeats = tuple(
        axis for axis in range(mask.dim() - 2) if mask.shape[axis] > 1 and bool((mask == mask.narrow(axis, 0, 1)).all())
    )
    once = _first(mask, repeats)
    visible = once
    if mask.dtype != torch.bool:
        visible = once == 0
        hidden = once <= torch.finfo(once.dtype).min
        if not bool((visible | hidden).all()):
            return _Finding(repeats=repeats)
    if bool(visible.all()):
        return _Finding(hides_nothing=True)
    if isinstance(queries, int) and visible.shape[-2:] == (queries, keys):
        causal = torch.ones(queries, keys, dtype=torch.bool).tril()
        if bool((visible == causal).all()):
            return _Finding(is_causal=True)
    return _Finding(repeats=repeats)


def _first(mask: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    for axis in axes:
        mask = mask.narrow(axis, 0, 1)
    return mask


def _apply(program: Program, node: fx.Node, bound: dict[str, Any], found: _Finding) -> None:
    if found == _Finding():
        return
    graph, mask = program.graph.graph, bound["attn_mask"]
    with graph.inserting_before(node):
        if found.hides_nothing or found.is_causal:
            mask = None
        for axis in found.repeats:
            mask = call(graph, aten.slice.Tensor, mask, axis, 0, 1, like=node)
        arguments = {**bound, "attn_mask": mask, "is_causal": bound["is_causal"] or found.is_causal}
        named = {name: arguments.pop(name) for name in ("scale", "enable_gqa")}
        simpler = call(graph, node.target, *arguments.values(), like=node, **named)
    node.replace_all_uses_with(simpler)
    graph.erase_node(node)
