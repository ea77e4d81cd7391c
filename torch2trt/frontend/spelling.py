"""Regions in a canonical spelling: equal lines are equal computations, in whatever process they were traced.

Names of nodes are no part of it, nor are devices, since an engine has all of it on its own, nor what weights hold.
All else that a region's engine is made of is: each call with its arguments, dtypes, shapes and strides, the sizes and
numbers that are built in, ranges of others, what is made, and the state of torch that capture looks at.
"""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx.node import _get_qualified_name

from torch2trt.frontend.dynamo import Region

# Functions by whose names all is said. What another does nobody knows from its name; operators are as in any artifact,
# where a name stands for one too.
_KNOWN = frozenset({"torch", "_operator", "math", "builtins"})
_PLAIN = frozenset({type(None), bool, int, float, complex, str, EllipsisType})


class NoSpellingError(Exception):
    """There is no telling what a region computes from what can be written down; the text says why."""


@dataclass(frozen=True)
class Spelling:
    """What a region computes."""

    lines: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    """What it holds, whose content is not in the lines: weights in the order of the arguments, then constants."""


def spell(region: Region, args: Sequence[Any]) -> Spelling:
    """The spelling of a region for a call's sizes, numbers and weights.

    Raises:
        NoSpellingError: it has something that has none.
    """
    speller = _Speller(region)
    lines = [speller.line(node) for node in region.graph.graph.nodes if node.op != "output"]
    lines.append(f"made {', '.join(speller.known[node] for node in region.made)}")
    lines.append(f"built in {speller.value(region.constants(args))}")
    told = [(speller.symbol(name), root, size) for name, (root, size) in region.sizes.items()]
    lines += ["range {} {}..{}".format(name, *region.ranges[root]) for name, root, _ in told]
    # A size that is no linear one of the caller's has no name of its own.
    lines += [f"{name} is {size}" for name, root, size in told if root in region.called]
    for profile in region.profiles:
        lines.append(f"profile {', '.join(f'{name} {profile[root]}' for name, root, _ in told if root in profile)}")
    tensors = (*(args[position] for position in region.weights), *speller.tensors)
    for tensor in tensors:
        _check_tensor(tensor)
    return Spelling((*lines, *_surroundings()), tensors)


def _surroundings() -> list[str]:
    """What changes the meaning of calls, and is none itself."""
    found = [f"default dtype {torch.get_default_dtype()}"]
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            found.append(f"autocast on {device} to {torch.get_autocast_dtype(device)}")
    return found


class _Speller:
    def __init__(self, region: Region) -> None:
        self.known: dict[fx.Node, str] = {}
        self.tensors: list[torch.Tensor] = []
        self._module = region.graph
        self._symbols: dict[str, sympy.Symbol] = {}
        placeholders = [node for node in region.graph.graph.nodes if node.op == "placeholder"]
        self._weights = {placeholders[position] for position in region.weights}
        self._inputs = {placeholders[position] for position in region.inputs}

    def line(self, node: fx.Node) -> str:
        """What a node is, in terms of those before it."""
        name = self.known[node] = f"%{len(self.known)}"
        return f"{name} = {self._what(node)} -> {self._result(node.meta.get('example_value'))}"

    def _what(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return "weight" if node in self._weights else "input" if node in self._inputs else "number"
        if node.op == "get_attr":
            held = operator.attrgetter(str(node.target))(self._module)
            if not isinstance(held, torch.Tensor):
                raise NoSpellingError(f"its graph holds a {type(held).__name__}")
            self.tensors.append(held)
            return f"constant {self._result(held)}"
        if node.op == "call_method":
            called = f".{node.target}"
        elif node.op == "call_function":
            called = _name(node.target)
        else:
            raise NoSpellingError(f"its graph has a {node.op}")
        return f"{called}{self.value(tuple(node.args))}{self.value(dict(sorted(node.kwargs.items())))}"

    def value(self, value: Any) -> str:
        """An argument."""
        # Of a subclass, an enumeration for example, there is no telling what else it holds.
        if type(value) in _PLAIN:
            return repr(value)
        match value:
            case fx.Node():
                return self.known[value]
            case list():
                return f"[{self._values(value)}]"
            case tuple():
                return f"({self._values(value)})"
            case dict():
                return f"{{{', '.join(f'{self.value(key)}: {self.value(item)}' for key, item in value.items())}}}"
            case slice():
                return f"slice({self._values((value.start, value.stop, value.step))})"
            case torch.dtype() | torch.memory_format() | torch.layout():
                return str(value)
            case torch.device():
                return "device"
        raise NoSpellingError(f"an argument of type {type(value).__name__} has no spelling")

    def _values(self, values: Sequence[Any]) -> str:
        return ", ".join(map(self.value, values))

    def _result(self, value: Any) -> str:
        """What Dynamo knows of a value."""
        match value:
            case torch.Tensor():
                strides = value.stride() if value.layout is torch.strided else value.layout
                return f"{value.dtype}{self._sizes(value.shape)} by {self._sizes(strides)}"
            case list() | tuple():
                return f"[{', '.join(map(self._result, value))}]"
            case torch.SymInt() | torch.SymFloat() | torch.SymBool():
                return self._size(value)
        # What a call makes of all else follows from the call, and numbers of the caller's are among those built in.
        return type(value).__name__

    def _sizes(self, sizes: Any) -> str:
        return f"[{', '.join(map(self._size, sizes))}]" if isinstance(sizes, tuple) else str(sizes)

    def _size(self, size: Any) -> str:
        if isinstance(size, int):
            return str(size)
        expression = size.node.expr
        found = sorted(expression.free_symbols, key=str)
        return str(expression.xreplace({each: self.symbol(str(each)) for each in found}))

    def symbol(self, name: str) -> sympy.Symbol:
        """A size by its place, since Dynamo's names of them come from those of variables."""
        return self._symbols.setdefault(name, sympy.Symbol(f"n{len(self._symbols)}", integer=True))


def _name(target: Any) -> str:
    """What a function is called by all; it is checked that they mean this one."""
    if isinstance(target, OpOverload | OpOverloadPacket):
        return f"torch.ops.{target}"
    if isinstance(target, HigherOrderOperator):
        # Some know what they call by a number that this process gave it.
        raise NoSpellingError(f"it calls {target.name()}, which calls functions of its own")
    try:
        name = _get_qualified_name(target)
    except (RuntimeError, AttributeError) as error:
        raise NoSpellingError(f"it calls {target!r}, which has no name") from error
    if "." not in name:
        name = f"builtins.{name}"
    if name.partition(".")[0] not in _KNOWN or _found(name) is not target:
        raise NoSpellingError(f"it calls {name}, which is no function of torch")
    return name


def _found(name: str) -> Any:
    """What has this name."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = builtins if parts[:count] == ["builtins"] else sys.modules.get(".".join(parts[:count]))
        if module is not None:
            try:
                return operator.attrgetter(".".join(parts[count:]))(module)
            except AttributeError:
                continue
    return None


def _check_tensor(tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise NoSpellingError(f"it holds a tensor of type {type(tensor).__name__} and layout {tensor.layout}")
    if tensor.is_quantized or tensor.device.type == "meta":
        raise NoSpellingError("it holds a tensor that is quantized or without values")
