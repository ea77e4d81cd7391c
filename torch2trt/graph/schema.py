"""Arguments of a node bound to the names of its ATen schema."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

TensorOp = torch._ops.OpOverload


def name_of(target: Any) -> str:
    """``aten.add.Tensor`` for an operator overload, ``operator.getitem`` for a Python function."""
    if isinstance(target, TensorOp):
        return str(target)
    return f"{getattr(target, '__module__', '?').lstrip('_')}.{getattr(target, '__name__', target)}"


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator call by schema name, defaults filled in.

    ``self`` becomes ``input``, as in torch's own Python functions.
    """
    target = node.target
    if target is operator.getitem:
        return {"input": node.args[0], "index": node.args[1]}
    assert isinstance(target, TensorOp), node.format_node()
    bound: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        name = parameter_name(argument.name)
        if not argument.kwarg_only and position < len(node.args):
            bound[name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[name] = argument.default_value
        else:
            raise TypeError(f"{node.format_node()}: no value for {argument.name!r}")
    return bound


def parameter_name(schema_name: str) -> str:
    """The Python parameter that takes a schema argument."""
    return "input" if schema_name == "self" else schema_name


def parameters_of(target: Any) -> list[str]:
    """The parameter names that :func:`bind` yields for an operator."""
    if target is operator.getitem:
        return ["input", "index"]
    return [parameter_name(argument.name) for argument in target._schema.arguments]
