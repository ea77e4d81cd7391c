"""Calls that compute sizes in an exported graph, from those that it has and from the shapes of its tensors."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from torch2trt.errors import NetworkError
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.sizes import Size, derived, to_shape, to_size

Made = Callable[[fx.Node], int | fx.Node]
"""Yields a size, for use by a node: a number, or a call in front of that node."""

_SIZE = torch.ops.aten.sym_size.int
_STEPS: Mapping[str, Any] = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "FLOOR_DIV": operator.floordiv,
    "MAX": torch.sym_max,
    "MIN": torch.sym_min,
}


class SizeNodes:
    """The sizes that a graph knows of, up to the node that this was last told of."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._numbers: dict[Size, Made] = {}
        self._made: dict[tuple[Any, ...], fx.Node] = {}
        inputs = (node for node in graph.nodes if node.op == "placeholder")
        self._of_inputs = [found for source in inputs for found in self._sizes_of(source, None)]

    def note(self, node: fx.Node) -> None:
        """Tell of a node that yields a size, which those after it may use."""
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            self._numbers.setdefault(to_size(value), lambda user: node)

    def shape(self, node: fx.Node) -> list[Made] | None:
        """The sizes of a call's result, computed from what is known before it; None where that does not tell them."""
        wanted = to_shape(node.meta["val"].shape)
        own = [(name, value) for name, value in bind(node).items() if isinstance(value, fx.Node)]
        of_arguments = (found for name, value in own for found in self._sizes_of(value, name))
        # A tensor that is asked for its shape has one more user, so inputs come first.
        for more in ((), of_arguments):
            with contextlib.suppress(NetworkError):
                return derived(wanted, [*self._numbers.items(), *self._of_inputs, *more], _constant, self._apply)
        return None

    def size(self, value: torch.SymInt) -> Made | None:
        """A size computed from those known and the shapes of inputs; None where they do not tell it."""
        with contextlib.suppress(NetworkError):
            return derived([to_size(value)], [*self._numbers.items(), *self._of_inputs], _constant, self._apply)[0]
        return None

    def _sizes_of(self, source: fx.Node, name: str | None) -> Iterator[tuple[Size, Made]]:
        """The sizes of a tensor: of an input, or of the argument of this name, which may be another node by then."""
        value = source.meta["val"]
        for axis, size in enumerate(to_shape(value.shape) if isinstance(value, torch.Tensor) else ()):
            if not isinstance(size, int):
                yield size, self._size_of(source, name, axis)

    def _size_of(self, source: fx.Node, name: str | None, axis: int) -> Made:
        return lambda user: self._call(user, _SIZE, bind(user)[name] if name else source, axis)

    def _apply(self, step: str, one: Made, other: Made) -> Made:
        return lambda user: self._call(user, _STEPS[step], one(user), other(user))

    def _call(self, user: fx.Node, *made: Any) -> fx.Node | int:
        target, *args = made
        if not any(isinstance(each, fx.Node) for each in args):
            return target(*args)  # type: ignore[no-any-return]
        if made not in self._made:
            values = [each.meta["val"] if isinstance(each, fx.Node) else each for each in args]
            known = values[0].shape[args[1]] if target is _SIZE else target(*values)
            with self._graph.inserting_before(user):
                self._made[made] = call(self._graph, target, *args, like=user, known=known)
        return self._made[made]


def _constant(number: int) -> Made:
    return lambda user: number
