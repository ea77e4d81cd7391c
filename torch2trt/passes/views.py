"""The algebra of views: any chain of reshapes and permutations as one reshape, one permutation and one reshape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sympy
import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.sizes import Shape, Size, simplify, volume

aten = torch.ops.aten

PERMUTING = frozenset({aten.permute.default, aten.transpose.int, aten.t.default})
"""The operators that bring dimensions into another order."""

RESHAPING = frozenset(
    {aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
)
"""The operators that keep the order of the elements."""

MOST_DIMS = 8
"""Of TensorRT's tensors."""

Steps = tuple[Shape | None, tuple[int, ...] | None, Shape | None]


@dataclass(frozen=True)
class View:
    """A tensor whose elements are those of a source tensor in another order.

    The source's dimensions are split into atoms; each dimension of the view is a run of atoms. Dimensions of size 1
    have none.

    Attributes:
        atoms: sizes by name of the atom.
        source: the atoms of each dimension of the source.
        dims: the atoms of each dimension of the view.
    """

    atoms: dict[int, Size]
    source: tuple[tuple[int, ...], ...]
    dims: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shape: Shape) -> View:
        """The source itself."""
        atoms = {axis: size for axis, size in enumerate(shape) if size != 1}
        dims = tuple((axis,) if axis in atoms else () for axis in range(len(shape)))
        return cls(atoms, dims, dims)

    @property
    def shape(self) -> Shape:
        """The view's shape."""
        return tuple(self.size(dim) for dim in self.dims)

    def size(self, dim: Sequence[int]) -> Size:
        """The number of elements of a run of atoms."""
        return volume(self.atoms[atom] for atom in dim)

    def permute(self, axes: Sequence[int]) -> View:
        """Dimensions in another order."""
        return replace(self, dims=tuple(self.dims[axis] for axis in axes))

    def reshape(self, shape: Shape) -> View | None:
        """The same order of elements in another shape; None where the atoms cannot be cut to fit."""
        view, pending = self, [atom for dim in self.dims for atom in dim]
        dims: list[tuple[int, ...]] = []
        for target in shape:
            taken: list[int] = []
            while (rest := _quotient(target, view.size(taken))) != 1:
                if rest is None or not pending:
                    return None
                atom = pending.pop(0)
                if _quotient(rest, view.atoms[atom]) is None:
                    inner = _quotient(view.atoms[atom], rest)
                    if inner is None:
                        return None
                    view, outer, inner_atom = view._split(atom, rest, inner)
                    pending.insert(0, inner_atom)
                    taken = [*_renamed(taken, atom, (outer, inner_atom)), outer]
                    dims = [_renamed(dim, atom, (outer, inner_atom)) for dim in dims]
                else:
                    taken.append(atom)
            dims.append(tuple(taken))
        return None if pending else replace(view, dims=tuple(dims))

    def without(self, axis: int, atom: int) -> View:
        """The view without a dimension that one atom makes up, of a source without that atom."""
        source = tuple(tuple(name for name in dim if name != atom) for dim in self.source)
        atoms = {name: size for name, size in self.atoms.items() if name != atom}
        return View(atoms, source, self.dims[:axis] + self.dims[axis + 1 :])

    def _split(self, atom: int, outer: Size, inner: Size) -> tuple[View, int, int]:
        first = max(self.atoms) + 1
        atoms = {name: size for name, size in self.atoms.items() if name != atom} | {first: outer, first + 1: inner}
        pair = (first, first + 1)
        source = tuple(_renamed(dim, atom, pair) for dim in self.source)
        return View(atoms, source, tuple(_renamed(dim, atom, pair) for dim in self.dims)), *pair

    def steps(self) -> Steps:
        """The reshape, the permutation and the reshape that make the view from its source; None where not needed."""
        # Atoms that stay neighbours move together, across the source's dimensions or only within them.
        joined = [atom for dim in self.source for atom in dim]
        within = [pair for dim in self.source for pair in itertools.pairwise(dim)]
        candidates = [self._steps(dict(itertools.pairwise(joined))), self._steps(dict(within))]
        best = min(candidates, key=_count)
        # Heads of a batch apart from each other, as TensorRT looks for them around attention.
        heads = self._steps(
            {pair[0]: pair[1] for dim in self.dims for pair in itertools.pairwise(dim) if pair in within}
        )
        return heads if heads[1] and heads[1][0] == 0 and heads[2] is None and _count(heads) <= _count(best) else best

    def _steps(self, following: dict[int, int]) -> Steps:
        order = [atom for dim in self.source for atom in dim]
        blocks: list[list[int]] = []
        for atom in (atom for dim in self.dims for atom in dim):
            if blocks and following.get(blocks[-1][-1]) == atom:
                blocks[-1].append(atom)
            else:
                blocks.append([atom])
        in_source = sorted(range(len(blocks)), key=lambda index: order.index(blocks[index][0]))
        axes = tuple(in_source.index(index) for index in range(len(blocks)))
        source_shape = tuple(self.size(dim) for dim in self.source)
        if axes == tuple(range(len(blocks))):
            return None, None, self.shape if self.shape != source_shape else None
        split = tuple(self.size(blocks[index]) for index in in_source)
        permuted = tuple(self.size(block) for block in blocks)
        if split != source_shape and len(blocks) < len(self.dims) <= MOST_DIMS and self._holds_one_each(blocks):
            # What is left to insert has size 1: the first reshape does it, in the places of the result.
            kept = [axis for axis, dim in enumerate(self.dims) if dim]
            shape: list[Size] = [1] * len(self.dims)
            order_with_ones = list(range(len(self.dims)))
            for place, size in zip(kept, split, strict=True):
                shape[place] = size
            for place, axis in zip(kept, axes, strict=True):
                order_with_ones[place] = kept[axis]
            return tuple(shape), tuple(order_with_ones), None
        return (split if split != source_shape else None, axes, self.shape if self.shape != permuted else None)

    def _holds_one_each(self, blocks: Sequence[Sequence[int]]) -> bool:
        """Whether each dimension that is not of size 1 is one of the blocks."""
        return [list(dim) for dim in self.dims if dim] == [list(block) for block in blocks]


def axes_of(node: fx.Node, rank: int) -> tuple[int, ...]:
    """The order into which a call of one of :data:`PERMUTING` brings the dimensions."""
    axes = list(range(rank))
    if node.target is aten.permute.default:
        axes = [axis % rank for axis in bind(node)["dims"]]
    elif node.target is aten.t.default:
        axes.reverse()
    elif rank:
        first, second = (bind(node)[name] % rank for name in ("dim0", "dim1"))
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


def order_of(program: Program, node: fx.Node) -> tuple[int, ...] | None:
    """The order into which a node brings the dimensions, if that is what it does in an engine."""
    if node.target not in PERMUTING or IN_TORCH in node.meta:
        return None
    return axes_of(node, program.spec(node).rank)


def applied(program: Program, node: fx.Node, view: View) -> View | None:
    """What a call of one of :data:`PERMUTING` or :data:`RESHAPING` makes of a view; None where the atoms do not fit."""
    if node.target in RESHAPING:
        return view.reshape(program.spec(node).shape)
    return view.permute(axes_of(node, len(view.dims)))


def emit(program: Program, source: fx.Node, view: View, *, like: fx.Node) -> fx.Node | None:
    """Insert the calls that make a view of a source; None, and no calls, where a shape has sizes that nothing tells."""
    graph = program.graph.graph
    split, axes, final = view.steps()
    wide = axes is not None and len(axes) > MOST_DIMS
    shapes = [None if shape is None else _spelled(program, shape, inputs=not wide) for shape in (split, final)]
    if [shape is None for shape in shapes] != [split is None, final is None]:
        return None
    result = source
    while split is not None and axes is not None and len(axes) > MOST_DIMS:
        split, axes, result = _less_wide(program, split, axes, result, like=like)
    if split is not None:
        shape = _spelled(program, split, inputs=not wide)
        result = call(graph, aten.reshape.default, result, shape, like=like)
    if axes is not None:
        result = call(graph, aten.permute.default, result, list(axes), like=like)
    if final is not None:
        result = call(graph, aten.reshape.default, result, shapes[1], like=like)
    return result


def _less_wide(
    program: Program, shape: Shape, axes: tuple[int, ...], tensor: fx.Node, *, like: fx.Node
) -> tuple[Shape, tuple[int, ...], fx.Node]:
    """Make two dimensions that the permutation brings together one: what is left has a dimension less to permute.

    Returns that shape, the permutation of it, and a tensor of the same elements in another shape.
    """
    first, second = axes[0], axes[1]
    low, high = min(first, second), max(first, second)
    # The blocks before, between and behind the two move as wholes, so this takes five dimensions at most.
    runs = [range(low), range(low, low + 1), range(low + 1, high), range(high, high + 1), range(high + 1, len(shape))]
    places = [0, 1, 3, 2, 4] if low == first else [0, 3, 1, 2, 4]
    sizes = [volume(shape[axis] for axis in run) for run in runs]
    graph = program.graph.graph
    blocks = call(graph, aten.reshape.default, tensor, _spelled(program, sizes, inputs=False), like=like)
    blocks = call(graph, aten.permute.default, blocks, places, like=like)
    order = [axis for place in places for axis in runs[place]]
    joined = [axis for axis in order if axis != second]
    shape = tuple(shape[axis] * (shape[second] if axis == first else 1) for axis in joined)
    return shape, tuple(joined.index(axis) for axis in axes if axis != second), blocks


def _count(steps: Steps) -> int:
    return sum(step is not None for step in steps)


def _spelled(program: Program, shape: Sequence[Size], *, inputs: bool) -> list[int | fx.Node] | None:
    """A shape as ``aten.reshape`` takes it; None where it has several unknown sizes.

    Args:
        inputs: whether what is a size of an input counts as known, so that the engine reads it there.
    """
    unknown = [size for size in shape if not isinstance(size, int)]
    if len(unknown) <= 1:
        return [size if isinstance(size, int) else -1 for size in shape]
    known = {size: node for size in unknown if inputs and (node := _size_of_input(program, size)) is not None}
    if len(unknown) - sum(size in known for size in unknown) > 1:
        return None
    return [size if isinstance(size, int) else known.get(size, -1) for size in shape]


def _size_of_input(program: Program, size: Size) -> fx.Node | None:
    """The call that reads a size from an input, in front of all others."""
    places = (
        (source, axis)
        for source in program.input_placeholders
        for axis, found in enumerate(program.spec(source).shape)
        if found == size
    )
    for place in places:
        first = program.calls[0]
        for user in place[0].users:
            if user.target is aten.sym_size.int and user.args == place:
                first.prepend(user)
                return user
        with first.graph.inserting_before(first):
            return call(first.graph, aten.sym_size.int, *place, like=place[0])
    return None


def _renamed(dim: Sequence[int], atom: int, pair: tuple[int, int]) -> tuple[int, ...]:
    return tuple(part for name in dim for part in (pair if name == atom else (name,)))


def _quotient(size: Size, divisor: Size) -> Size | None:
    """``size / divisor`` where that is a whole number for every value of the symbols."""
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if divisor and size % divisor == 0 else None
    ratio = sympy.cancel(size / divisor)
    numerator, denominator = ratio.as_numer_denom()
    if denominator != 1 or any(not term.as_coeff_Mul()[0].is_integer for term in sympy.Add.make_args(numerator)):
        return None
    return simplify(ratio)
