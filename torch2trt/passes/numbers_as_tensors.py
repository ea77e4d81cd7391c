"""Numbers that operators take, and that no engine can know as numbers, as tensors of one element.

A network has tensors, and integers that sizes make. ``x * size ** -0.5`` takes a number that is no integer, and
``x / y.max().item()`` one out of a tensor: both are computed like any other tensor then.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind, parameter_name
from torch2trt.settings import Settings

aten = torch.ops.aten

_TAKEN = frozenset({aten.item.default, aten._local_scalar_dense.default})
_TWO: dict[Any, Any] = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.pow: aten.pow.Tensor_Tensor,
    torch.sym_max: aten.maximum.default,
    torch.sym_min: aten.minimum.default,
}
_ONE: dict[Any, Any] = {
    operator.neg: aten.neg.default,
    torch._sym_sqrt: aten.sqrt.default,  # type: ignore[attr-defined]
}
_FILLED = frozenset({aten.full.default, aten.new_full.default, aten.scalar_tensor.default})


def numbers_as_tensors(program: Program, settings: Settings) -> None:
    """Compute such numbers in float32, integers in int64, and give them to the operators' overloads for tensors.

    Where an operator has none, or a number is made by a function that is none of arithmetic, all stays as it is.
    """
    numbers = _Numbers(program)
    for node in program.calls:
        if program.is_size(node) or not isinstance(node.target, torch._ops.OpOverload) or IN_TORCH in node.meta:
            continue
        bound = bind(node)
        given = [name for name, value in bound.items() if isinstance(value, fx.Node) and numbers.is_lacking(value)]
        if given:
            _replace(program, node, bound, given, numbers)
    program.graph.graph.eliminate_dead_code()


class _Numbers:
    """The tensors that numbers have become."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._made: dict[fx.Node, fx.Node | None] = {}

    def is_lacking(self, node: fx.Node) -> bool:
        """Whether a node yields a number that a network cannot know."""
        if not self._program.is_size(node):
            return False
        value = node.meta.get("val")
        return isinstance(value, torch.SymFloat) or (isinstance(value, torch.SymInt) and self._is_taken(node))

    def _is_taken(self, node: fx.Node) -> bool:
        """Whether an integer comes out of the values of tensors alone."""
        if node.target in _TAKEN:
            return True
        sources = node.all_input_nodes
        return bool(sources) and all(self._program.is_size(each) and self._is_taken(each) for each in sources)

    def tensor(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """A number as a tensor of no dimensions, for a user and those after it; None where it cannot be computed."""
        if node not in self._made:
            self._made[node] = self._tensor(node, user)
        return self._made[node]

    def _tensor(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
            with user.graph.inserting_before(user):
                return call(user.graph, target, *args, like=user, **kwargs)

        is_integer = isinstance(node.meta["val"], torch.SymInt)
        dtype = torch.int64 if is_integer else torch.float32
        if node.target in _TAKEN:
            return insert(aten._to_copy.default, insert(aten.reshape.default, node.args[0], []), dtype=dtype)
        if is_integer and not self._is_taken(node):
            return insert(aten.scalar_tensor.default, node, dtype=torch.float32)
        if node.target is torch.sym_float and isinstance(node.args[0], fx.Node):
            made = self.tensor(node.args[0], user)
            return made and insert(aten._to_copy.default, made, dtype=dtype)
        target = _TWO.get(node.target) or _ONE.get(node.target)
        if target is None:
            return None
        arguments = []
        for argument in node.args:
            one = self.tensor(argument, user) if isinstance(argument, fx.Node) else argument
            if one is None:
                return None
            arguments.append(one if isinstance(one, fx.Node) else insert(aten.scalar_tensor.default, one, dtype=dtype))
        return insert(target, *arguments)


def _replace(program: Program, node: fx.Node, bound: dict[str, Any], given: list[str], numbers: _Numbers) -> None:
    """Have a call take numbers as tensors, if it can."""
    graph, before = node.graph, node.meta["val"]
    assert isinstance(node.target, torch._ops.OpOverload)
    overload = _overload(node.target, bound, given)
    if overload is None and node.target not in _FILLED:
        return
    made = {name: numbers.tensor(bound[name], node) for name in given}
    if any(each is None for each in made.values()):
        return

    def insert(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with graph.inserting_before(node):
            return call(graph, target, *args, like=node, **kwargs)

    if overload is None:
        (number,) = made.values()
        cast = insert(aten._to_copy.default, number, dtype=before.dtype)
        result = insert(aten.expand.default, cast, bound.get("size", []))
    else:
        for name, argument in zip(bound, overload._schema.arguments, strict=True):
            value = made.get(name, bound[name])
            if _takes_tensor(argument) and isinstance(value, int | float):
                value = insert(aten.scalar_tensor.default, value, dtype=torch.float32)
            if name in given and overload.name() in _OF_ONE_DTYPE:
                value = insert(aten._to_copy.default, value, dtype=before.dtype)
            bound[name] = value
        args, kwargs = _spelled(overload, bound)
        result = insert(overload, *args, **kwargs)
        if result.meta["val"].dtype != before.dtype:
            # A number does not make a tensor of one element wider, as a tensor does.
            result = insert(aten._to_copy.default, result, dtype=before.dtype)
    node.replace_all_uses_with(result)
    graph.erase_node(node)


_OF_ONE_DTYPE = frozenset({"aten::masked_fill.Tensor", "aten::fill.Tensor"})


def _overload(target: torch._ops.OpOverload, bound: dict[str, Any], given: list[str]) -> torch._ops.OpOverload | None:
    """The overload of an operator that takes the same arguments, of which those that are given are tensors."""
    packet = target.overloadpacket
    others: list[torch._ops.OpOverload] = [getattr(packet, name) for name in packet.overloads()]
    for overload in (target, *others):
        arguments = overload._schema.arguments
        if [parameter_name(each.name) for each in arguments] != [*bound] or overload._schema.is_mutable:
            continue
        if all(
            _takes_tensor(argument) if name in given else _takes(argument, value)
            for argument, (name, value) in zip(arguments, bound.items(), strict=True)
        ):
            return overload
    return None


def _takes_tensor(argument: torch.Argument) -> bool:
    return str(argument.type) in ("Tensor", "Optional[Tensor]")


def _takes(argument: torch.Argument, value: Any) -> bool:
    if _takes_tensor(argument):
        # A number beside one that is a tensor becomes a tensor too.
        return value is None or isinstance(value, fx.Node | int | float)
    return not isinstance(value, fx.Node) or argument.type.kind() != "TensorType"


def _spelled(target: torch._ops.OpOverload, bound: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    pairs = list(zip(target._schema.arguments, bound.values(), strict=True))
    args = tuple(value for argument, value in pairs if not argument.kwarg_only)
    return args, {argument.name: value for argument, value in pairs if argument.kwarg_only}
