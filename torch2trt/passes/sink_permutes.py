"""Permutations moved through pointwise operators where that leaves fewer of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.passes.constants import constants
from torch2trt.passes.pointwise import is_pointwise
from torch2trt.passes.views import order_of
from torch2trt.settings import Settings

aten = torch.ops.aten


def sink_permutes(program: Program, settings: Settings) -> None:
    """Compute pointwise operators in the order that their arguments have before they are permuted, where that pays.

    The permutations before them are dropped, those after them cancel, and what still needs the order gets it behind
    them. Constants are permuted instead, which is done once. Done only where fewer permutations are left.
    """
    constant = constants(program)
    # First where none is added.
    for most in (0, len(program.calls)):
        refused: set[tuple[fx.Node, tuple[int, ...]]] = set()
        for node in program.calls:
            for axes in dict.fromkeys(order_of(program, source) for source in node.all_input_nodes if node.users):
                if axes is None or not _fits(program, node, axes, constant):
                    continue
                if (node, axes) not in refused:
                    wide = _region(program, node, axes, constant)
                    if _apply(program, wide, axes, constant, most):
                        break
                    refused |= {(member, axes) for member in wide}
                if _apply(program, _chain(program, node, axes, constant), axes, constant, most):
                    break


def _fits(program: Program, node: fx.Node, axes: tuple[int, ...], constant: set[fx.Node]) -> bool:
    """Whether a call is pointwise, with arguments that can be permuted back."""
    if not is_pointwise(node) or node in constant or IN_TORCH in node.meta or program.spec(node).rank != len(axes):
        return False
    tensors = [source for source in node.all_input_nodes if not program.is_size(source)]
    return all(source in constant or program.spec(source).rank in (0, len(axes)) for source in tensors)


def _region(program: Program, seed: fx.Node, axes: tuple[int, ...], constant: set[fx.Node]) -> list[fx.Node]:
    """All calls that fit and are connected to one through calls that do."""
    found, pending = {seed}, [seed]
    while pending:
        node = pending.pop()
        for other in (*node.all_input_nodes, *node.users):
            if other not in found and other.op == "call_function" and _fits(program, other, axes, constant):
                found.add(other)
                pending.append(other)
    return [node for node in program.calls if node in found]


def _chain(program: Program, seed: fx.Node, axes: tuple[int, ...], constant: set[fx.Node]) -> list[fx.Node]:
    """The calls that fit from one on, up to where several use the result."""
    chain = [seed]
    while len(chain[-1].users) == 1:
        following = next(iter(chain[-1].users))
        if following.op != "call_function" or not _fits(program, following, axes, constant):
            break
        chain.append(following)
    return chain


def _apply(program: Program, region: list[fx.Node], axes: tuple[int, ...], constant: set[fx.Node], most: int) -> bool:
    """Rewrite a region in the order before the permutation, if fewer permutations are left and at most so many new."""
    members = set(region)
    outside = _inputs(program, region, constant)
    before = {source for source in outside if order_of(program, source) == axes}
    dropped = sum(members.issuperset(source.users) for source in before)
    added = len(outside) - len(before)
    for node in region:
        users = [user for user in node.users if user not in members]
        cancelled = [user for user in users if _composed(program, axes, user) == tuple(range(len(axes)))]
        dropped += len(cancelled)
        added += any(order_of(program, user) is None for user in users)
    if dropped <= added or added > most:
        return False
    _rewrite(program, region, axes, constant)
    return True


def _inputs(program: Program, region: Iterable[fx.Node], constant: set[fx.Node]) -> set[fx.Node]:
    """The tensors from outside that are not constant and have dimensions to permute."""
    members = set(region)
    sources = {source for node in region for source in node.all_input_nodes} - members - constant
    return {source for source in sources if not program.is_size(source) and program.spec(source).rank}


def _composed(program: Program, axes: tuple[int, ...], user: fx.Node) -> tuple[int, ...] | None:
    second = order_of(program, user) if user.op == "call_function" else None
    return None if second is None else tuple(axes[axis] for axis in second)


def _rewrite(program: Program, region: list[fx.Node], axes: tuple[int, ...], constant: set[fx.Node]) -> None:
    graph, members = program.graph.graph, set(region)
    inverse = tuple(sorted(range(len(axes)), key=axes.__getitem__))
    made: dict[fx.Node, fx.Node] = {}

    def permuted_back(source: fx.Node, node: fx.Node) -> fx.Node:
        if source in made:
            return made[source]
        if program.is_size(source) or program.spec(source).rank == 0:
            return source
        if source not in constant and order_of(program, source) == axes:
            return source.all_input_nodes[0]
        whole = source
        for _ in range(len(axes) - program.spec(source).rank):
            whole = call(graph, aten.unsqueeze.default, whole, 0, like=node)
        back = call(graph, aten.permute.default, whole, list(inverse), like=node)
        made[source] = back
        if source in constant:
            constant.update((back, *back.all_input_nodes))
        return back

    for node in region:
        with graph.inserting_before(node):
            args, kwargs = fx.map_arg((node.args, node.kwargs), functools.partial(permuted_back, node=node))
            made[node] = call(graph, node.target, *args, like=node, **kwargs)
    for node in region:
        whole: fx.Node | None = None
        for user in [user for user in node.users if user not in members]:
            composed = _composed(program, axes, user)
            if composed is None:
                with graph.inserting_after(node):
                    whole = whole or call(graph, aten.permute.default, made[node], list(axes), like=node)
                user.replace_input_with(node, whole)
            elif composed == tuple(range(len(axes))):
                user.replace_all_uses_with(made[node])
            else:
                with graph.inserting_before(user):
                    other = call(graph, aten.permute.default, made[node], list(composed), like=user)
                user.replace_all_uses_with(other)
    erase_unused(graph)
