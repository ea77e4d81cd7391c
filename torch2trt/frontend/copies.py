"""Calls that hand back a tensor's own memory in some sizes and a copy in others, where a later write shows which."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torch2trt.errors import DynamicShapeError
from torch2trt.frontend.assumptions import ranges, sizes_tried
from torch2trt.frontend.dynamic_shapes import Axes, dimensions
from torch2trt.frontend.memory import CASTING, CHECKS, RESHAPING, SAME, storage_of, written
from torch2trt.graph.program import provenance
from torch2trt.graph.schema import bind
from torch2trt.sizes import DimRange, Shape, evaluate, symbols, to_shape

Names = Mapping[sympy.Symbol, sympy.Expr]

_CONTIGUOUS, _RAVEL = torch.ops.aten.contiguous.default, torch.ops.aten.ravel.default
_BY_LAYOUT = RESHAPING | {_CONTIGUOUS, _RAVEL}
# Runs of a graph at sizes of which one is told from the others by nothing but the call that differs there.
_RUNS = 64


def refuse_writes_that_differ(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], axes_of: Axes
) -> None:
    """Refuse to write where what else is written depends on a dynamic size.

    ``reshape`` and ``contiguous`` hand back a view where a tensor's strides allow it, else a copy. A trace decides for
    one of them, and so does the graph without writes; in single sizes, often those where one is 1, eager may do the
    other. That is right as long as nothing else of that memory is read after a write.

    Args:
        exported: as it was traced, with its writes.
        args, kwargs: the example.
        axes_of: its dynamic axes.

    Raises:
        DynamicShapeError: a write that changes a tensor in some sizes, and in others does not.
    """
    memories = _Memories(exported.graph)
    if not memories.uncertain or not (writes := list(memories.writes())):
        return
    names, dims = dimensions(exported, args, kwargs, axes_of)
    spans = ranges(exported, names, dims)
    usual = {name: min(max(span.opt, 2), span.max) for name, span in spans.items()}
    for sizes in _sizes_that_differ(memories.uncertain, names, spans):
        run = _Run(exported.graph, names, usual | sizes, writes)
        for write, target, others in writes:
            if any(run.differs(target, other, memories.are_one(target, other)) for other in others):
                found = " and ".join(f"{name} = {size}" for name, size in sizes.items())
                raise DynamicShapeError(
                    f"it writes into what is a copy of a tensor in some sizes and its memory in others, as {found}",
                    source=provenance(write)[1],
                    hint="write into a copy, as .clone() makes one, narrow the Dim, or compile that size on its own",
                )


class _Memories:
    """Which tensors of a graph lie in one memory where it has no writes, and which may where eager runs it."""

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes = list(graph.nodes)
        self._place = {node: number for number, node in enumerate(self._nodes)}
        self._same: dict[int, int] = {}
        self._perhaps: dict[int, int] = {}
        self._members: defaultdict[int, list[fx.Node]] = defaultdict(list)
        self.uncertain = [node for node in self._nodes if self._note(node)]
        """Calls of which it depends on sizes what they hand back."""
        for node in self._nodes:
            if storage_of(node) is not None:
                self._members[_root(self._perhaps, storage_of(node))].append(node)

    def _note(self, node: fx.Node) -> bool:
        storage = storage_of(node)
        source = storage_of(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if storage is None or source is None:
            return False
        if node.target in SAME | CASTING and _hands_back(node):
            _join(self._same, storage, source)
            _join(self._perhaps, storage, source)
        if not _is_by_layout(node):
            return False
        _join(self._perhaps, storage, source)
        return _is_symbolic(node) or _is_symbolic(node.args[0])

    def are_one(self, one: fx.Node, other: fx.Node) -> bool:
        """Whether a write into one tensor changes the other in the graph without writes, where they overlap."""
        return _root(self._same, storage_of(one)) == _root(self._same, storage_of(other))

    def writes(self) -> Iterator[tuple[fx.Node, fx.Node, list[fx.Node]]]:
        """Writes into what may share its memory in some sizes only: what is written, and what else is read later."""
        first: dict[int, int] = {}
        for node in self.uncertain:
            first.setdefault(_root(self._perhaps, storage_of(node)), self._place[node])
        for moment, write in enumerate(self._nodes):
            for target in written(write):
                group = _root(self._perhaps, storage_of(target))
                if first.get(group, moment) < moment:
                    others = [node for node in self._members[group] if self._is_read_after(node, moment)]
                    if others := [node for node in others if node is not target]:
                        yield write, target, others

    def _is_read_after(self, node: fx.Node, moment: int) -> bool:
        # Arguments and buffers are the caller's, who sees what is written into them.
        return self._place[node] < moment and (
            node.op == "placeholder"
            or any(
                self._place[user] > moment
                and user.target not in CHECKS
                and not isinstance(user.meta.get("val"), torch.SymInt | int)
                for user in node.users
            )
        )


def _root(parents: Mapping[int, int], item: Any) -> int:
    while item in parents:
        item = parents[item]
    return item  # type: ignore[no-any-return]


def _join(parents: dict[int, int], item: int, other: int) -> None:
    one, two = _root(parents, item), _root(parents, other)
    if one != two:
        parents[one] = two


def _is_by_layout(node: fx.Node) -> bool:
    """Whether it depends on strides that a call hands back its argument, or a view of it."""
    if not node.args or not isinstance(node.args[0], fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    if node.target in CASTING:
        before, after = node.args[0].meta["val"], node.meta["val"]
        moved = (before.dtype, before.device) != (after.dtype, after.device)
        return not moved and bind(node).get("memory_format") is not None and not bind(node)["copy"]
    return node.target in _BY_LAYOUT


def _is_symbolic(node: Any) -> bool:
    return bool(node.meta["val"]._has_symbolic_sizes_strides)


def _hands_back(node: fx.Node) -> bool:
    """Whether a traced call yields a tensor's own memory in the graph without writes."""
    source, own = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if node.target in SAME | CASTING and not bind(node).get("copy"):
        # Traces of some versions say of what hands back its argument that it does not.
        return source.dtype == own.dtype and to_shape(source.stride()) == to_shape(own.stride())
    return storage_of(node) == storage_of(node.args[0])


def _sizes_that_differ(
    uncertain: Iterable[fx.Node], names: Names, spans: Mapping[str, DimRange]
) -> list[dict[str, int]]:
    """Sizes in range at which a call hands back memory where the trace has a copy, or the other way round."""
    found: dict[Any, dict[str, int]] = {}
    for node in uncertain:
        source = node.args[0].meta["val"]  # type: ignore[union-attr]
        before, after = _named(source.shape, names), _named(node.meta["val"].shape, names)
        shapes = (before, _named(source.stride(), names), after)
        call, handed_back = _repeated(node), _hands_back(node)
        form = (call, *shapes, handed_back)
        if (form, None) not in found:
            found[form, None] = {}
            for pattern, sizes in _differing(call, *shapes, handed_back, spans):
                found.setdefault((form, pattern), sizes)
    return list(filter(None, found.values()))[:_RUNS]


def _differing(
    call: Callable[[torch.Tensor, list[int]], torch.Tensor],
    shape: Shape,
    strides: Shape,
    after: Shape,
    handed_back: bool,
    spans: Mapping[str, DimRange],
) -> Iterator[tuple[tuple[bool, ...], dict[str, int]]]:
    """Sizes at which a call does not do what it does in the trace, and which sizes of its argument are 1 there."""
    for sizes in sizes_tried(symbols([*shape, *strides, *after]), spans):
        own, steps, wanted = ([evaluate(size, sizes) for size in each] for each in (shape, strides, after))
        try:
            tensor = torch.empty_strided(own, steps, device="meta")
            result = call(tensor, wanted)
        except RuntimeError:
            continue  # nor can eager do it
        if tensor.numel() and (result.untyped_storage()._cdata == tensor.untyped_storage()._cdata) != handed_back:
            yield tuple(size == 1 for size in own), sizes


@functools.cache
def _in_format(wanted: torch.memory_format) -> Callable[[torch.Tensor, list[int]], torch.Tensor]:
    return lambda tensor, shape: tensor.contiguous(memory_format=wanted)


@functools.cache
def _cast(wanted: torch.memory_format) -> Callable[[torch.Tensor, list[int]], torch.Tensor]:
    return lambda tensor, shape: tensor.to(memory_format=wanted)


def _raveled(tensor: torch.Tensor, shape: list[int]) -> torch.Tensor:
    return tensor.ravel()


def _repeated(node: fx.Node) -> Callable[[torch.Tensor, list[int]], torch.Tensor]:
    """A call of a tensor alone, and the shape of what it yields; the same for the same calls."""
    if node.target is _RAVEL:
        return _raveled
    if node.target in RESHAPING:
        return torch.reshape
    wanted = bind(node)["memory_format"]  # where it is left out, a number of the schema's
    return (_in_format if node.target is _CONTIGUOUS else _cast)(
        wanted if isinstance(wanted, torch.memory_format) else torch.contiguous_format
    )


def _named(sizes: Iterable[Any], names: Names) -> Shape:
    return to_shape(size if isinstance(size, int) else size.subs(names) for size in to_shape(sizes))


class _Run:
    """A graph as eager runs it in certain sizes, as far as writes need it."""

    def __init__(
        self,
        graph: fx.Graph,
        names: Names,
        sizes: Mapping[str, int],
        writes: Iterable[tuple[fx.Node, fx.Node, list[fx.Node]]],
    ) -> None:
        self._names, self._sizes = names, sizes
        needed: set[fx.Node] = set()
        waiting = [node for _, target, others in writes for node in (target, *others)]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        self._values: dict[fx.Node, Any] = {}
        with FakeTensorMode(), torch.no_grad():
            for node in graph.nodes:
                if node in needed:
                    self._run(node)

    def differs(self, target: fx.Node, other: fx.Node, are_one: bool) -> bool:
        """Whether a write into one tensor changes the other, and not in the graph without writes; or only there.

        Args:
            are_one: whether they lie in one memory in the graph without writes.
        """
        if target not in self._values or other not in self._values:
            return False  # eager does not come so far
        one, two = self._values[target], self._values[other]
        share = one.untyped_storage()._cdata == two.untyped_storage()._cdata
        return share != are_one and (are_one or _overlap(one, two))

    def _run(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._values[node] = pytree.tree_map(self._concrete, node.meta["val"])
        elif node.op == "call_function" and all(source in self._values for source in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
            try:
                self._values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            except (DataDependentOutputException, DynamicOutputShapeException):
                self._values[node] = pytree.tree_map(self._concrete, node.meta["val"])
            except (RuntimeError, ValueError, IndexError):
                return  # and so it fails in eager

    def _concrete(self, value: Any) -> Any:
        """A traced value in these sizes."""
        if isinstance(value, torch.SymInt):
            return evaluate(_named([value], self._names)[0], self._sizes)
        if not isinstance(value, torch.Tensor):
            return value
        shape, strides = (
            [evaluate(size, self._sizes) for size in _named(sizes, self._names)]
            for sizes in (value.shape, value.stride())
        )
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def _overlap(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors of one storage may have a place in common: whether their first and last places cross."""
    (first, last), (start, end) = map(_ends, (one, two))
    return first <= end and start <= last


def _ends(tensor: torch.Tensor) -> tuple[int, int]:
    first = int(tensor.storage_offset())
    return first, first + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
