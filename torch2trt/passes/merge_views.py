"""Merge chains of reshapes and permutations, through linear layers where that lets them cancel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, erase_unused
from torch2trt.graph.schema import bind
from torch2trt.passes.pieces import selection_of
from torch2trt.passes.views import MOST_DIMS, PERMUTING, RESHAPING, View, applied, emit
from torch2trt.settings import Settings

aten = torch.ops.aten

# Attention reads heads where a projection leaves them: [batch, tokens, heads, size] as [batch, heads, tokens, size].
_WIDTH_OF_ATTENTION = 4


def merge_views(program: Program, settings: Settings) -> None:
    """Replace chains of views by at most a reshape, a permutation and a reshape.

    A linear layer works on the last dimension alone, so an order of the others can wait until after it: the transposes
    around the projections of attention meet there, and cancel. It waits only where that saves a permutation, and makes
    no other one that attention cannot take along: windows are cut out before query, key and value are made of them.
    Selecting from a permuted stack, as query, key and value are taken apart, becomes a slice of what was stacked.
    """
    _Merger(program).run()


@dataclass(frozen=True)
class _Tracked:
    """What is known of a node: the view of a source that it is, and how many calls the graph spends on it."""

    source: fx.Node
    view: View
    calls: int
    must_go: bool
    """The source is new, so that using the node itself would compute something twice; or it, or what it is made of, has
    more dimensions than TensorRT's tensors."""


class _Merger:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = program.graph.graph
        self.tracked: dict[fx.Node, _Tracked] = {}
        self.made: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in [*self.program.calls, self.program.output_node]:
            if node.op == "call_function" and self.program.is_size(node):
                continue
            found = self._follow(node) if node.op == "call_function" else None
            if found is not None:
                self.tracked[node] = found
                continue
            for argument in node.all_input_nodes:
                if argument in self.tracked:
                    node.replace_input_with(argument, self._made(argument, node))
        erase_unused(self.graph)

    def _follow(self, node: fx.Node) -> _Tracked | None:
        """The node as a view, if it is one."""
        if IN_TORCH in node.meta:
            return None
        if node.target in PERMUTING or node.target in RESHAPING:
            base = self._base(node.all_input_nodes[0])
            view = applied(self.program, node, base.view)
            must_go = base.must_go or len(self.program.spec(node).shape) > MOST_DIMS
            return None if view is None else _Tracked(base.source, view, base.calls + 1, must_go)
        if selection_of(self.program, node) is not None:
            return self._selected(node)
        if node.target is aten.linear.default:
            return self._through_linear(node)
        return None

    def _base(self, node: fx.Node) -> _Tracked:
        return self.tracked.get(node) or _Tracked(node, View.of(self.program.spec(node).shape), 0, False)

    def _selected(self, node: fx.Node) -> _Tracked | None:
        selection = selection_of(self.program, node)
        base = self.tracked.get(selection[0]) if selection is not None else None
        if base is None or selection is None or (atom := self._atom_selected(node, base.view)) is None:
            return None
        _, axis, index = selection
        dim = next(index for index, atoms in enumerate(base.view.source) if atom in atoms)
        inner = base.view.size(base.view.source[dim][1:])
        start = index * inner
        with self.graph.inserting_before(node):
            source = call(self.graph, aten.slice.Tensor, base.source, dim, start, start + inner, like=node)
        return _Tracked(source, base.view.without(axis, atom), base.calls + 1, True)

    def _atom_selected(self, node: fx.Node, view: View) -> int | None:
        """The atom of the dimension that a call selects from, if that takes a slice of the view's source."""
        selection = selection_of(self.program, node)
        atoms = view.dims[selection[1]] if selection is not None else ()
        if len(atoms) != 1:
            return None
        dim = next(dim for dim in view.source if atoms[0] in dim)
        return atoms[0] if dim[0] == atoms[0] and isinstance(view.size(dim[1:]), int) else None

    def _through_linear(self, node: fx.Node) -> _Tracked | None:
        bound = bind(node)
        base = self.tracked.get(bound["input"])
        views = PERMUTING | RESHAPING | {aten.select.int, aten.unbind.int}
        if base is None or not node.users or any(user.target not in views for user in node.users):
            return None
        view = base.view
        last = view.dims[-1]
        order = [atom for dim in view.source for atom in dim]
        wanted = [atom for dim in view.dims[:-1] for atom in dim]
        leading = sorted(wanted, key=order.index)
        if not last or not leading:
            return None
        # Where the source's own last dimension is the layer's, its shape can stay.
        own = view.source[-1] == last and order == [*leading, *last]
        rows_of = view.source[:-1] if own else tuple((atom,) for atom in leading)
        early = View(view.atoms, view.source, (*rows_of, last))
        # The atoms of the result: the leading ones, and the new channels in the place of the old.
        channels = max(view.atoms) + 1
        atoms = {atom: view.atoms[atom] for atom in leading} | {channels: self.program.spec(node).shape[-1]}
        late = View(atoms, (*rows_of, (channels,)), (*view.dims[:-1], (channels,)))
        if leading != wanted and not self._saves(node, late):
            return None
        with self.graph.inserting_before(node):
            rows = emit(self.program, base.source, early, like=node)
            if rows is None:
                return None
            linear = call(self.graph, aten.linear.default, rows, bound["weight"], bound["bias"], like=node)
        return _Tracked(linear, late, base.calls, True)

    def _saves(self, node: fx.Node, late: View) -> bool:
        """Whether fewer permutations are left when an order waits until after a linear layer, and no wider ones."""
        plain = View.of(self.program.spec(node).shape)
        before, after = ([_width(view) for view in self._ends(node, start)] for start in (plain, late))
        fewer = sum(map(bool, after)) < 1 + sum(map(bool, before))
        return fewer and max(after, default=0) <= max(_WIDTH_OF_ATTENTION, *before)

    def _ends(self, node: fx.Node, view: View) -> list[View]:
        """What a chain of views from a node on comes to, where something else uses it."""
        found: list[View] = []
        stops = False
        users = [user for user in node.users if user.target is not aten.unbind.int]
        users += [item for user in node.users if user.target is aten.unbind.int for item in user.users]
        for user in users:
            following = None if IN_TORCH in user.meta else self._followed_by(user, view)
            if following is None:
                stops = True
            else:
                found += self._ends(user, following)
        return [*found, view] if stops else found

    def _followed_by(self, user: fx.Node, view: View) -> View | None:
        if user.target in PERMUTING or user.target in RESHAPING:
            return applied(self.program, user, view)
        if (atom := self._atom_selected(user, view)) is None:
            return None
        return view.without(view.dims.index((atom,)), atom)

    def _made(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The node that computes a tracked one in the fewest calls."""
        if node not in self.made:
            known = self.tracked[node]
            needed = sum(step is not None for step in known.view.steps())
            made: fx.Node | None = None
            if known.must_go or needed < known.calls:
                with self.graph.inserting_before(before):
                    made = emit(self.program, known.source, known.view, like=node)
            # The chain as it was is still there.
            self.made[node] = made or node
        return self.made[node]


def _width(view: View) -> int:
    """The number of dimensions that the permutation in a view has; 0 where there is none."""
    return len(view.steps()[1] or ())
