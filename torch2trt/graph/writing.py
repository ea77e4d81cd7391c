"""Overloads of operators that write their results into tensors that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torch2trt.graph.schema import TensorOp

Writing = Callable[..., torch.Tensor]

_LIBRARIES: list[torch.library.Library] = []  # what one defines goes when it does


def writing_overload(target: TensorOp) -> TensorOp | None:
    """The overload of an operator that takes the same and writes its results into tensors that it is given, if any.

    Those tensors, ``out`` in most of torch's own operators, come last and by name alone, one for each result.
    """
    packet = getattr(getattr(torch.ops, target.namespace), target._schema.name.partition("::")[2])
    taken = [_taken(argument) for argument in target._schema.arguments]
    for overload in packet.overloads():
        found: TensorOp = getattr(packet, overload)
        written = [each for each in found._schema.arguments if each.is_out]
        plain = [_taken(each) for each in found._schema.arguments if not each.is_out]
        if plain == taken and len(written) == len(target._schema.returns) > 0:
            return found
    return None


def writes(operator: torch._library.custom_ops.CustomOpDef) -> Callable[[Writing], Writing]:
    """A decorator of the function that computes such an overload, ``out``, on CUDA, of an operator that yields one."""

    def register(function: Writing) -> Writing:
        schema = str(operator._opoverload._schema)
        namespace, _, name = operator._qualname.partition("::")
        arguments = schema.partition("(")[2].rpartition(") -> ")[0]
        library = torch.library.Library(namespace, "FRAGMENT")
        library.define(f"{name}.out({arguments}, *, Tensor(a!) out) -> Tensor(a!)")
        library.impl(f"{name}.out", function, "CUDA")
        _LIBRARIES.append(library)
        return function

    return register


def _taken(argument: Any) -> tuple[str, str, bool]:
    return argument.name, str(argument.type), argument.kwarg_only
