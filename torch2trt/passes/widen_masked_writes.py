"""``x[mask] = f(y[mask])`` as ``where(mask, f(y), x)``: no size then depends on the values of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten

_READS = (aten.index.Tensor, aten._unsafe_index.Tensor)
_WRITES = (aten.index_put.default, aten._unsafe_index_put.default)


def widen_masked_writes(program: Program, settings: Settings) -> None:
    """Compute what is written by a mask everywhere, where pointwise operators make it of what that mask reads."""
    for node in program.calls:
        if node.target not in _WRITES:
            continue
        bound = bind(node)
        mask, place = _only_mask(bound["indices"])
        if mask is None or bound["accumulate"]:
            continue
        rank = bound["input"].meta["val"].dim()
        widening = _Widening(node, mask, place, rank - place - mask.meta["val"].dim())
        if not widening.is_of_mask(bound["values"]):
            continue
        with program.graph.graph.inserting_before(node):
            values = widening.wide(bound["values"])
            for _ in range(widening.inner):
                mask = call(node.graph, aten.unsqueeze.default, mask, -1, like=node)
            written = call(node.graph, aten.where.self, mask, values, bound["input"], like=node)
        node.replace_all_uses_with(written)
        program.graph.graph.erase_node(node)


def _only_mask(indices: Any) -> tuple[fx.Node | None, int]:
    """The one index among them, where it is a mask, and its place."""
    given = [(index, place) for place, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][0].meta["val"].dtype != torch.bool:
        return None, 0
    return given[0]


class _Widening:
    """What a mask reads, computed for all elements.

    Args:
        node: the write.
        place: the number of dimensions before those of the mask.
        inner: and after them.
    """

    def __init__(self, node: fx.Node, mask: fx.Node, place: int, inner: int) -> None:
        self.inner = inner
        self._node, self._mask, self._place = node, mask, place
        self._shape = bind(node)["input"].meta["val"].shape
        self._wide: dict[fx.Node, fx.Node] = {}

    def is_of_mask(self, value: fx.Node) -> bool:
        """Whether pointwise operators make a value of reads by the mask, numbers, and what is broadcast behind it."""
        if value.target in _READS:
            bound = bind(value)
            same = _only_mask(bound["indices"]) == (self._mask, self._place)
            return same and bound["input"].meta["val"].shape == self._shape
        if torch.Tag.pointwise not in getattr(value.target, "tags", ()):
            return False
        return all(self._is_behind(argument) or self.is_of_mask(argument) for argument in value.all_input_nodes)

    def _is_behind(self, value: fx.Node) -> bool:
        found = value.meta.get("val")
        return isinstance(found, torch.Tensor) and found.dim() <= self.inner

    def wide(self, value: fx.Node) -> fx.Node:
        """The value for all elements; what is not read by the mask as it is."""
        if self._is_behind(value):
            return value
        if value not in self._wide:
            self._wide[value] = self._widened(value)
        return self._wide[value]

    def _widened(self, value: fx.Node) -> fx.Node:
        if value.target in _READS:
            return bind(value)["input"]  # type: ignore[no-any-return]
        args, kwargs = fx.map_arg((value.args, value.kwargs), self.wide)
        return call(value.graph, value.target, *args, like=value, **kwargs)
