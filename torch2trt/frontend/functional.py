"""Functionalising most exported graphs by rewriting them, where torch would trace them anew."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind

aten = torch.ops.aten

Keep = Callable[[Any], bool]

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default

# Composite operators that yield views, of which torch's own functionalisation leaves none.
_RESHAPING = frozenset(
    {aten.reshape.default, aten.reshape_as.default, aten.flatten.using_ints, aten.unflatten.int, aten.view_as.default}
)
_CASTING = frozenset({aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other})
_SAME = frozenset({aten.contiguous.default, aten.dropout.default, aten.feature_dropout.default})
_PERHAPS_THE_SAME = _RESHAPING | _CASTING | _SAME
# What takes a part out of a tensor, and what puts another in its place.
_SCATTERS = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}
# Checks of what was traced, which are dropped later.
_CHECKS = frozenset({aten._assert_tensor_metadata.default})


def functionalize(exported: ExportedProgram, keep: Keep) -> bool:
    """Bring an exported graph into the form that ``run_decompositions`` would, if that is simple.

    Tracing a graph once more takes longer than exporting it. Of graphs whose sizes are all known, with no writing but
    into what the graph itself has made and reads as nothing else, and of operators that are kept, that is not needed:
    operators that write become those that do not, and the composite ones that yield views become plain ones.

    Args:
        keep: says for an operator whether it stays as it is.

    Returns:
        Whether it was done; the graph is changed in place then, and as it was otherwise.
    """
    graph = exported.graph_module.graph
    rewriter = _Rewriter(graph, keep)
    if not all(map(rewriter.plan, graph.nodes)):
        return False
    rewriter.apply()
    return True


class _Rewriter:
    def __init__(self, graph: fx.Graph, keep: Keep) -> None:
        self._graph = graph
        self._keep = keep
        self._place = {node: number for number, node in enumerate(graph.nodes)}
        self._keep_scatters = all(map(keep, _SCATTERS.values()))
        self._storages: dict[fx.Node, int] = {}
        one_of: dict[int, int] = {}
        self._sharing: defaultdict[int, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            storage = _storage(node)
            if storage is None:
                continue
            # Traces of some versions say of what hands back its argument that it does not, so both are taken for one.
            source = node.args[0] if _may_be_its_argument(node) else None
            if isinstance(source, fx.Node) and source in self._storages and storage not in one_of:
                one_of[storage] = self._storages[source]
            self._storages[node] = one_of.setdefault(storage, storage)
            self._sharing[self._storages[node]].append(node)
        self._steps: list[Callable[[], None]] = []

    def apply(self) -> None:
        """Do what was planned."""
        for step in self._steps:
            step()

    def plan(self, node: fx.Node) -> bool:
        """Whether a node can stay, or note what becomes of it."""
        if node.op in ("placeholder", "output"):
            return _is_static(node)
        if node.op != "call_function" or not _is_static(node):
            return False
        target = node.target
        if target is operator.getitem or target in _CHECKS:
            return True
        if not isinstance(target, torch._ops.OpOverload):
            return False
        if target._schema.is_mutable:
            return self._plan_writing(node, target)
        if target is aten.batch_norm.default:
            return self._plan_batch_norm(node)
        if target in _RESHAPING:
            return self._plan_as(node, aten.reshape.default, lambda shape: (node.args[0], shape))
        if target in _CASTING or target in _SAME:
            return self._plan_cast(node)
        if target is aten.expand_as.default:
            return self._plan_as(node, aten.expand.default, lambda shape: (node.args[0], shape))
        if target is aten.chunk.default:
            return self._plan_chunk(node)
        if target is aten.diff.default and not self._keep(target):
            return self._plan_diff(node)
        # What yields views of its arguments and is composite, torch takes apart.
        viewing = any(argument.alias_info is not None for argument in target._schema.arguments)
        return self._keep(target) and not (viewing and _is_composite(target))

    def _plan_writing(self, node: fx.Node, target: torch._ops.OpOverload) -> bool:
        functional = _functional(target)
        if functional is None or not self._keep(functional):
            return False
        written = node.args[0]
        if not isinstance(written, fx.Node):
            return False
        depth = 0
        if not self._is_free(node, written):
            # Where what it is a part of is read later, that is another tensor then.
            depth, whole = _whole(written)
            if not depth or not self._keep_scatters or not self._is_free(node, whole):
                return False
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
        with written.meta["val"].fake_mode:
            value = functional(*args, **kwargs)
        own = node.meta["val"]
        if (value.dtype, value.shape, value.device) != (own.dtype, own.shape, own.device):
            return False

        def step() -> None:
            node.target = functional
            place = self._place[node]
            # What it was when this was planned may have been replaced.
            now, following = _scattered(node.args[0], node, depth)
            now.replace_all_uses_with(following, delete_user_cb=lambda user: self._place.get(user, -1) > place)

        self._steps.append(step)
        return True

    def _is_free(self, node: fx.Node, written: fx.Node) -> bool:
        """Whether nothing but the written tensor itself shows, later, what was in its memory before."""
        storage = self._storages.get(written)
        if storage is None or storage != self._storages.get(node):
            return False
        for other in self._sharing[storage]:
            if other.op == "placeholder":
                return False
            before = self._place[other] < self._place[node]
            if before and other is not written and any(self._place[user] > self._place[node] for user in other.users):
                return False
        return True

    def _plan_batch_norm(self, node: fx.Node) -> bool:
        bound = bind(node)
        mean, variance = bound["running_mean"], bound["running_var"]
        if bound["training"] or not isinstance(mean, fx.Node) or not isinstance(variance, fx.Node):
            return False
        if not self._keep(_BATCH_NORM):
            return False

        def step() -> None:
            # What its arguments were when this was planned may have been replaced.
            bound, own = bind(node), node.meta["val"]
            names = ("input", "weight", "bias", "running_mean", "running_var", "momentum", "eps")
            with self._graph.inserting_before(node):
                whole = self._graph.call_function(_BATCH_NORM, tuple(bound[name] for name in names))
                whole.meta = {**node.meta, "val": (own, own.new_empty(0), own.new_empty(0))}
                item = self._graph.call_function(operator.getitem, (whole, 0))
                item.meta = dict(node.meta)
            self._replace(node, item)

        self._steps.append(step)
        return True

    def _plan_as(self, node: fx.Node, target: Any, arguments: Callable[[list[int]], tuple[Any, ...]]) -> bool:
        """Another operator in a node's place, if it is kept.

        Args:
            arguments: of it, from the shape of the result.
        """

        def step() -> None:
            node.args, node.kwargs = arguments([*node.meta["val"].shape]), {}
            node.target = target

        self._steps.append(step)
        return self._keep(target)

    def _plan_chunk(self, node: fx.Node) -> bool:
        bound = bind(node)
        size = bound["input"].meta["val"].shape[bound["dim"]]
        if not size:
            return False

        def step() -> None:
            node.target, node.kwargs = aten.split.Tensor, {}
            node.args = (node.args[0], -(-size // bound["chunks"]), bound["dim"])

        self._steps.append(step)
        return self._keep(aten.split.Tensor)

    def _plan_diff(self, node: fx.Node) -> bool:
        bound = bind(node)
        dim, dtype = bound["dim"], node.meta["val"].dtype
        if bound["n"] != 1 or dtype is torch.bool or not bound["input"].meta["val"].dim():
            return False
        if not all(map(self._keep, (aten.cat.default, aten.slice.Tensor, aten.sub.Tensor))):
            return False

        def step() -> None:
            bound = bind(node)
            parts = [bound[name] for name in ("prepend", "input", "append") if bound[name] is not None]
            with self._graph.inserting_before(node):
                source = call(self._graph, aten.cat.default, parts, dim, like=node) if len(parts) > 1 else parts[0]
                size = source.meta["val"].shape[dim]
                before = call(self._graph, aten.slice.Tensor, source, dim, 0, size - 1, like=node)
                after = call(self._graph, aten.slice.Tensor, source, dim, 1, size, like=node)
                self._replace(node, call(self._graph, aten.sub.Tensor, after, before, like=node))

        self._steps.append(step)
        return True

    def _plan_cast(self, node: fx.Node) -> bool:
        bound = bind(node)
        source = bound["input"]
        if not isinstance(source, fx.Node) or bound.get("train"):
            return False
        if node.target in _CASTING and bound.get("memory_format") is not None:
            return False
        before, after = source.meta["val"], node.meta["val"]
        if before.device != after.device:
            return False
        if before.dtype == after.dtype and before.stride() == after.stride():
            self._steps.append(lambda: self._replace(node, node.args[0]))
            return True
        if node.target in _SAME:
            return self._keep(node.target)
        # Where only the layout is another, it is the result's alone to tell.
        if before.dtype == after.dtype or not self._keep(aten._to_copy.default):
            return False

        def step() -> None:
            node.args, node.kwargs = (node.args[0],), {"dtype": after.dtype}
            node.target = aten._to_copy.default

        self._steps.append(step)
        return True

    def _replace(self, node: fx.Node, other: Any) -> None:
        node.replace_all_uses_with(other)
        self._graph.erase_node(node)


def _whole(part: fx.Node) -> tuple[int, fx.Node]:
    """Of how many parts of parts a tensor is one, and of what in the end."""
    depth = 0
    while part.target in _SCATTERS:
        depth, part = depth + 1, part.args[0]  # type: ignore[assignment]
    return depth, part


def _scattered(part: Any, value: fx.Node, depth: int) -> tuple[fx.Node, fx.Node]:
    """What a tensor is a part of, and a new node after a value: that with the value in the part's place."""
    for _ in range(depth):
        source, *place = part.args
        with value.graph.inserting_after(value):
            value = call(value.graph, _SCATTERS[part.target], source, value, *place, like=part, **part.kwargs)
        # It is what the whole is when it has been written into: as eager lays it out.
        value.meta["val"] = source.meta["val"]
        part = source
    return part, value


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
        return bool(value.is_contiguous(memory_format=wanted))
    return bool(value.dtype == own.dtype)


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def _is_static(node: fx.Node) -> bool:
    """Whether all that it yields are tensors of known sizes, or nothing."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return all(
        each is None
        or (isinstance(each, torch.Tensor) and not each._has_symbolic_sizes_strides)
        or (node.op == "placeholder" and isinstance(each, int | float | bool | str))
        for each in values
    )


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _functional(target: torch._ops.OpOverload) -> Any:
    """The operator that yields what another writes into its first argument; None where there is no such."""
    schema = target._schema
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    if [argument.name for argument in written] != [schema.arguments[0].name]:
        return None
    namespace, _, name = schema.name.partition("::")
    if not name.endswith("_") or len(schema.returns) != 1:
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    overload = schema.overload_name or "default"
    found = getattr(packet, overload, None) if packet is not None else None
    if found is None or found._schema.is_mutable:
        return None
    # Some call the first one self, and others input.
    types, own = ([str(each.type) for each in each_of.arguments] for each_of in (found._schema, schema))
    return found if types == own else None
