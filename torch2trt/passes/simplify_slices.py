"""Taking tensors apart and putting them together, as little as that takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.pieces import Piece, piece_of, selection_of
from torch2trt.settings import Settings

aten = torch.ops.aten


def simplify_slices(program: Program, settings: Settings) -> None:
    """Simplify slices, splits, concatenations, selections and stacks of each other.

    A slice of a slice is one slice; a slice of a concatenation is the operand that it lies in, or joins those that it
    covers; a concatenation of consecutive slices is one slice, or the tensor itself; concatenations of concatenations
    are one; what is selected from a stack is what was stacked, and a stack of all that was selected from a tensor is
    that tensor. Sizes along the dimension must be known, others may be dynamic.
    """
    graph = program.graph.graph
    changed = True
    while changed:
        changed = False
        for node in program.calls:
            if program.is_size(node) or IN_TORCH in node.meta:
                continue
            with graph.inserting_before(node):
                replacement = _simplified(program, node)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                graph.erase_node(node)
                changed = True
        erase_unused(graph)


def _simplified(program: Program, node: fx.Node) -> fx.Node | None:
    if node.target is aten.cat.default:
        return _joined(program, node)
    if node.target is aten.stack.default:
        return _stacked(program, node)
    selected = selection_of(program, node)
    if selected is not None:
        return _selection(program, node, *selected)
    piece = piece_of(program, node)
    return None if piece is None else _slice(program, node, piece)


# Slices ---------------------------------------------------------------------------------------------------------------


def _slice(program: Program, node: fx.Node, piece: Piece) -> fx.Node | None:
    if program.spec(node) == program.spec(piece.source):
        return piece.source
    outer = piece_of(program, piece.source)
    if outer is not None and outer.dim == piece.dim:
        return piece.of(outer).emit(like=node)
    found = _operands_within(program, piece)
    if found is None:
        return None
    operands, start = found
    if len(operands) > 1:
        return call(node.graph, aten.cat.default, operands, piece.dim, like=node)
    inner = Piece(operands[0], piece.dim, start, piece.length, piece.step)
    return operands[0] if program.spec(operands[0]) == program.spec(node) else inner.emit(like=node)


def _operands_within(program: Program, piece: Piece) -> tuple[list[fx.Node], int] | None:
    """Of a concatenation: the operand that holds a piece, and where it begins in there; or those that make it up."""
    operands = _operands(program, piece.source, piece.dim)
    if operands is None:
        return None
    covered: list[fx.Node] = []
    first = 0
    for operand in operands:
        size = program.spec(operand).shape[piece.dim]
        if not isinstance(size, int):
            return None
        last = first + size
        if first <= piece.start and piece.end <= last:
            return [operand], piece.start - first
        if piece.step == 1 and piece.start <= first and last <= piece.end and size:
            covered.append(operand)
        elif first < piece.end and piece.start < last:
            return None  # it ends inside this one
        first = last
    return (covered, 0) if covered else None


def _operands(program: Program, node: fx.Node, dim: int) -> list[fx.Node] | None:
    """What a concatenation along a dimension joins, where all have its dtype and rank."""
    if node.target is not aten.cat.default or IN_TORCH in node.meta:
        return None
    bound, spec = bind(node), program.spec(node)
    if bound["dim"] % spec.rank != dim:
        return None
    specs = [program.spec(operand) for operand in bound["tensors"]]
    if any(each.dtype != spec.dtype or each.rank != spec.rank for each in specs):
        return None
    return list(bound["tensors"])


# Selections -----------------------------------------------------------------------------------------------------------


def _selection(program: Program, node: fx.Node, source: fx.Node, dim: int, index: int) -> fx.Node | None:
    if IN_TORCH in source.meta:
        return None
    spec = program.spec(node)
    if source.target is aten.stack.default:
        bound = bind(source)
        item: fx.Node = bound["tensors"][index] if bound["dim"] % program.spec(source).rank == dim else node
        return item if item is not node and program.spec(item) == spec else None
    if source.target is aten.unsqueeze.default:
        bound = bind(source)
        return bound["input"] if bound["dim"] % program.spec(source).rank == dim else None
    piece = Piece(source, dim, index, 1)
    outer = piece_of(program, source)
    if outer is not None and outer.dim == dim:
        piece = piece.of(outer)
        return call(node.graph, aten.select.int, piece.source, dim, piece.start, like=node)
    found = _operands_within(program, piece)
    if found is None:
        return None
    (operand,), start = found
    return call(node.graph, aten.select.int, operand, dim, start, like=node)


# Concatenations and stacks --------------------------------------------------------------------------------------------


def _joined(program: Program, node: fx.Node) -> fx.Node | None:
    dim = bind(node)["dim"] % program.spec(node).rank
    operands = _operands(program, node, dim)
    if operands is None:
        return None
    simple = list(_merged(program, list(_flat(program, node, operands, dim)), dim, node)) or operands[:1]
    if len(simple) == 1:
        return simple[0]
    return None if simple == operands else call(node.graph, aten.cat.default, simple, dim, like=node)


def _flat(program: Program, node: fx.Node, operands: Sequence[fx.Node], dim: int) -> Iterator[fx.Node]:
    """The operands, with those of concatenations that nothing else needs in their place, and without empty ones."""
    for operand in operands:
        inner = _operands(program, operand, dim) if only_user(operand) is node else None
        if inner is not None:
            yield from inner
        elif program.spec(operand).shape[dim] != 0:
            yield operand


def _merged(program: Program, operands: Sequence[fx.Node], dim: int, node: fx.Node) -> Iterator[fx.Node]:
    """The operands, with consecutive pieces of one tensor as one."""
    run: list[fx.Node] = []
    whole: Piece | None = None

    def ended() -> Iterator[fx.Node]:
        if whole is None or len(run) < 2:
            yield from run
        elif whole.length == program.spec(whole.source).shape[dim]:
            yield whole.source
        elif any(len(operand.users) == 1 for operand in run):
            yield whole.emit(like=node)
        else:
            yield from run  # all are needed elsewhere too, so one of them all would be one more

    for operand in operands:
        piece = piece_of(program, operand)
        if piece is not None and (piece.dim != dim or piece.step != 1):
            piece = None
        if whole is not None and piece is not None and piece.source is whole.source and piece.start == whole.end:
            whole = Piece(whole.source, dim, whole.start, whole.length + piece.length)
            run.append(operand)
        else:
            yield from ended()
            run, whole = [operand], piece
    yield from ended()


def _stacked(program: Program, node: fx.Node) -> fx.Node | None:
    bound = bind(node)
    items = [selection_of(program, item) for item in bound["tensors"]]
    if items[0] is None:
        return None
    source = items[0][0]
    dim = bound["dim"] % program.spec(node).rank
    inorder = [(source, dim, index) for index in range(len(items))]
    return source if items == inorder and program.spec(source) == program.spec(node) else None
