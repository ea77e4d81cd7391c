"""Merge chains of reshapes and permutations, through linear layers where that lets them cancel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.passes.views import MOST_DIMS, PERMUTING, View, axes_of, emit
from torch2trt.settings import Settings

aten = torch.ops.aten

_RESHAPING = frozenset(
    {aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims}
)


def merge_views(program: Program, settings: Settings) -> None:
    """Replace chains of views by at most a reshape, a permutation and a reshape.

    A linear layer works on the last dimension alone, so an order of the others can wait until after it: the transposes
    around the projections of attention meet there, and cancel. Selecting from a permuted stack, as merged query, key
    and value are taken apart, becomes a slice of what was stacked.
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
        for node in reversed(self.program.calls):
            if not node.users:
                self.graph.erase_node(node)

    def _follow(self, node: fx.Node) -> _Tracked | None:
        """The node as a view, if it is one."""
        if node.target in PERMUTING or node.target in _RESHAPING:
            base = self._base(node.all_input_nodes[0])
            view = self._applied(node, base.view)
            must_go = base.must_go or len(self.program.spec(node).shape) > MOST_DIMS
            return None if view is None else _Tracked(base.source, view, base.calls + 1, must_go)
        if node.target is aten.select.int:
            return self._selected(node)
        if node.target is aten.linear.default:
            return self._through_linear(node)
        return None

    def _base(self, node: fx.Node) -> _Tracked:
        return self.tracked.get(node) or _Tracked(node, View.of(self.program.spec(node).shape), 0, False)

    def _applied(self, node: fx.Node, view: View) -> View | None:
        if node.target in _RESHAPING:
            return view.reshape(self.program.spec(node).shape)
        return view.permute(axes_of(node, len(view.dims)))

    def _selected(self, node: fx.Node) -> _Tracked | None:
        bound = bind(node)
        base = self.tracked.get(bound["input"])
        if base is None or not isinstance(bound["index"], int):
            return None
        axis = bound["dim"] % len(base.view.dims)
        if len(base.view.dims[axis]) != 1:
            return None
        (atom,) = base.view.dims[axis]
        dim = next(index for index, atoms in enumerate(base.view.source) if atom in atoms)
        inner = base.view.size(base.view.source[dim][1:])
        count = base.view.atoms[atom]
        if base.view.source[dim][0] != atom or not isinstance(inner, int) or not isinstance(count, int):
            return None
        start = (bound["index"] % count) * inner
        with self.graph.inserting_before(node):
            source = call(self.graph, aten.slice.Tensor, base.source, dim, start, start + inner, like=node)
        without = tuple(tuple(name for name in atoms if name != atom) for atoms in base.view.source)
        dims = base.view.dims[:axis] + base.view.dims[axis + 1 :]
        atoms = {name: size for name, size in base.view.atoms.items() if name != atom}
        return _Tracked(source, View(atoms, without, dims), base.calls + 1, True)

    def _through_linear(self, node: fx.Node) -> _Tracked | None:
        bound = bind(node)
        base = self.tracked.get(bound["input"])
        views = PERMUTING | _RESHAPING | {aten.select.int}
        if base is None or not node.users or any(user.target not in views for user in node.users):
            return None
        view = base.view
        last = view.dims[-1]
        order = [atom for dim in view.source for atom in dim]
        leading = sorted((atom for dim in view.dims[:-1] for atom in dim), key=order.index)
        if not last or not leading:
            return None
        early = View(view.atoms, view.source, (*((atom,) for atom in leading), last))
        with self.graph.inserting_before(node):
            rows = emit(self.graph, base.source, early, like=node)
            if rows is None:
                return None
            linear = call(self.graph, aten.linear.default, rows, bound["weight"], bound["bias"], like=node)
        # The atoms of the result: the leading ones, and the new channels in the place of the old.
        channels = max(view.atoms) + 1
        atoms = {atom: view.atoms[atom] for atom in leading} | {channels: self.program.spec(linear).shape[-1]}
        source = (*((atom,) for atom in leading), (channels,))
        return _Tracked(linear, View(atoms, source, (*view.dims[:-1], (channels,))), base.calls, True)

    def _made(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The node that computes a tracked one in the fewest calls."""
        if node not in self.made:
            known = self.tracked[node]
            needed = sum(step is not None for step in known.view.steps())
            made: fx.Node | None = None
            if known.must_go or needed < known.calls:
                with self.graph.inserting_before(before):
                    made = emit(self.graph, known.source, known.view, like=node)
            # The chain as it was is still there.
            self.made[node] = made or node
        return self.made[node]
