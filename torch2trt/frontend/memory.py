"""Which tensors of an exported graph lie in the same memory, and whether one of them may be written into."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx

from torch2trt.errors import CaptureError
from torch2trt.graph.program import provenance
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.sizes import to_shape

aten = torch.ops.aten

# Composite operators that yield views, of which torch's own functionalisation leaves none.
RESHAPING = frozenset(
    {aten.reshape.default, aten.reshape_as.default, aten.flatten.using_ints, aten.unflatten.int, aten.view_as.default}
)
CASTING = frozenset({aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other})
SAME = frozenset({aten.contiguous.default, aten.dropout.default, aten.feature_dropout.default})
"""What hands back its argument, or a copy of it that lies otherwise."""
_PERHAPS_THE_SAME = RESHAPING | CASTING | SAME

CHECKS = frozenset(
    {
        aten._assert_scalar.default,
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
"""Checks of what was traced, which are dropped later."""

SCATTERS = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}
"""What takes a part out of a tensor, and what puts another in its place."""


class Memory:
    """The memory of a graph as it was exported."""

    def __init__(self, graph: fx.Graph) -> None:
        self.place = {node: number for number, node in enumerate(graph.nodes)}
        """The position of each node."""
        self._storages: dict[fx.Node, int] = {}
        one_of: dict[int, int] = {}
        self._sharing: defaultdict[int, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            storage = storage_of(node)
            if storage is None:
                continue
            # Traces of some versions say of what hands back its argument that it does not, so both are taken for one.
            source = node.args[0] if _may_be_its_argument(node) else None
            if isinstance(source, fx.Node) and source in self._storages and storage not in one_of:
                one_of[storage] = self._storages[source]
            self._storages[node] = one_of.setdefault(storage, storage)
            self._sharing[self._storages[node]].append(node)

    def is_free(self, node: fx.Node, written: fx.Node) -> bool:
        """Whether nothing but a tensor that a node writes into shows, later, what was in its memory before."""
        storage = self._storages.get(written)
        if storage is None or storage != self._storages.get(node):
            return False
        for other in self._sharing[storage]:
            if other.op == "placeholder":
                return False
            before = self.place[other] < self.place[node]
            if before and other is not written and any(self.place[user] > self.place[node] for user in other.users):
                return False
        return True


def refuse_writes_in_part(graph: fx.Graph) -> None:
    """Refuse to write into some of the places at which an expanded tensor shows the same memory.

    In eager all of these places change; in graphs without writes, and so in those that torch makes, only some would.

    Raises:
        CaptureError: a call does.
    """
    for node in graph.nodes:
        if any(map(_is_part_of_repeated, written(node))):
            raise CaptureError(
                "it writes into a part of an expanded tensor, other parts of which are the same memory",
                source=provenance(node)[1],
                hint="write into a copy, as expand(…).clone() makes one",
            )


def writes(node: fx.Node) -> bool:
    """Whether a call writes into an argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that a call writes into."""
    if not writes(node):
        return []
    pairs = zip(node.target._schema.arguments, bind(node).values(), strict=True)  # type: ignore[union-attr]
    return [value for argument, value in pairs if argument.is_write and isinstance(value, fx.Node)]


def _is_part_of_repeated(written: fx.Node) -> bool:
    own, source = _repeated(written), written
    while source.op == "call_function" and source.args and isinstance(before := source.args[0], fx.Node):
        if storage_of(before) is None or storage_of(before) != storage_of(source):
            return False
        source = before
        if (repeated := _repeated(source)) and repeated != own:
            return True
    return False


def _repeated(node: fx.Node) -> list[str]:
    """The sizes of the dimensions along which a tensor shows the same memory."""
    value = node.meta["val"]
    pairs = zip(to_shape(value.shape), to_shape(value.stride()), strict=True)
    return sorted(str(size) for size, step in pairs if step == 0 and size != 1)


def whole(part: fx.Node) -> tuple[int, fx.Node]:
    """Of how many parts of parts a tensor is one, and of what in the end."""
    depth = 0
    while part.target in SCATTERS:
        depth, part = depth + 1, part.args[0]  # type: ignore[assignment]
    return depth, part


def scattered(part: Any, value: fx.Node, depth: int) -> tuple[fx.Node, fx.Node]:
    """What a tensor is a part of, and a new node after a value: that with the value in the part's place."""
    for _ in range(depth):
        source, *place = part.args
        with value.graph.inserting_after(value):
            # It is what the whole is when it has been written into: as eager lays it out.
            known = source.meta["val"]
            value = call(
                value.graph, SCATTERS[part.target], source, value, *place, like=part, known=known, **part.kwargs
            )
        part = source
    return part, value


def at_example(value: Any) -> Any:
    """A traced value in the sizes of the example, where nothing is symbolic; None where a size depends on data."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value.node.hint if value.node.has_hint() else None
    if not isinstance(value, torch.Tensor) or not value._has_symbolic_sizes_strides:
        return value
    shape, strides = ([at_example(size) for size in sizes] for sizes in (value.shape, value.stride()))
    if None in shape or None in strides:
        return None
    with value.fake_mode:  # type: ignore[attr-defined]
        return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)


def _may_be_its_argument(node: fx.Node) -> bool:
    """Whether a call may hand back its argument, or a view of it, in place of a copy."""
    if node.target not in _PERHAPS_THE_SAME:
        return False
    source, own = node.args[0], node.meta.get("val")
    if not isinstance(source, fx.Node) or not isinstance(own, torch.Tensor):
        return False
    value = source.meta["val"]
    if node.target is aten.contiguous.default:
        wanted: Any = [*node.args[1:], *node.kwargs.values(), torch.contiguous_format][0]
        # Where that is another for other sizes, the trace says so, and the graph checks it.
        example = at_example(value)
        return example is None or bool(example.is_contiguous(memory_format=wanted))
    return bool(value.dtype == own.dtype)


def storage_of(node: Any) -> int | None:
    """The memory of a node's traced tensor; None where it yields no tensor."""
    value = node.meta.get("val")
    # What vmap batches has no memory that it tells of: torch itself takes such graphs apart.
    if not isinstance(value, torch.Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None
    number: int = value.untyped_storage()._cdata
    return number
