"""Which calls of a graph each kernel of an engine computes, and how its time and their FLOPs are shared out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch2trt.graph.flops import flops
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.schema import name_of
from torch2trt.trt.inspector import Layer, names_in, range_in

# Kernels that multiply, by what TensorRT calls them: a call's FLOPs are theirs where it is several kernels.
_MULTIPLIES = re.compile(r"conv|gemm|matmul|matrix|einsum|mha|attention|fully|xmma|cutlass|rnn|lstm|gru", re.IGNORECASE)


@dataclass(frozen=True)
class Call:
    """One call of the optimised graph."""

    node: str
    op: str = ""
    """Empty where the graph is not there."""
    module: str = ""
    """Path of the module that the call is in; empty for the outermost."""
    source: str = ""
    """The user's line, as ``file:line in function``; empty where unknown."""
    flops: int | None = None
    """As :func:`torch2trt.graph.flops.flops` counts them; None where they are unknown."""


def calls_of(program: Program, dims: Mapping[str, int]) -> dict[str, Call]:
    """The calls of a Program by their names.

    Args:
        dims: sizes of the named dimensions.
    """
    counted = flops(program, dims)
    return {
        node.name: Call(node.name, name_of(node.target), *provenance(node), counted.get(node.name))
        for node in program.calls
        if not program.is_size(node)
    }


def claimed(layers: Sequence[Layer], calls: Mapping[str, Call] | None) -> list[list[Call]]:
    """The calls that each layer computes, none for what TensorRT does on its own account.

    Where a layer carries the names that it was given in the network's metadata, they say it; else its own name does,
    in which TensorRT joins those of the network's layers.

    Args:
        calls: of the graph, by name; None where it is not there: then they are what the layers themselves tell.
    """
    if calls is None:
        marked = {node: Call(node, module=module) for layer in layers for node, module in layer.origins.items()}
        if not marked:
            return [[Call(node) for node in names_in(layer.name)] for layer in layers]
        calls = marked
    order = list(calls)
    found: list[list[Call]] = []
    for layer in layers:
        names = [node for node in layer.origins if node in calls] or names_in(layer.name, calls)
        ends = None if layer.origins else range_in(layer.name)
        if ends is not None:
            first, last = ([order.index(node) for node in names_in(end, calls)] for end in ends)
            names = order[first[0] : last[-1] + 1] if first and last else names
        found.append([calls[name] for name in names])
    return found


def shares(calls: Sequence[Call]) -> list[float]:
    """The part of a kernel's time that each of its calls has: as their FLOPs are, equal where there are none."""
    known = [call.flops or 0 for call in calls]
    total = sum(known)
    return [count / total for count in known] if total else [1 / len(calls)] * len(calls)


def flops_of_kernels(
    layers: Sequence[Layer], times: Sequence[float], claims: Sequence[Sequence[Call]]
) -> list[int | None]:
    """The FLOPs of each kernel; None where those of its calls are not known.

    A call that is several kernels gives its FLOPs to those that multiply, going by their names, and among them by their
    times. Copies into another layout have none.

    Args:
        times: of the layers.
        claims: from :func:`claimed`.
    """
    kernels: dict[str, list[int]] = {}
    for number, calls in enumerate(claims):
        for call in calls:
            kernels.setdefault(call.node, []).append(number)
    found: list[float] = [0.0] * len(layers)
    by_name = {call.node: call for calls in claims for call in calls}
    for node, numbers in kernels.items():
        count = by_name[node].flops
        if not count:
            continue
        able = [number for number in numbers if not layers[number].is_reformat] or numbers
        able = [number for number in able if _multiplies(layers[number])] or able
        total = sum(times[number] for number in able)
        for number in able:
            found[number] += count * (times[number] / total if total else 1 / len(able))
    unknown = [bool(calls) and all(call.flops is None for call in calls) for calls in claims]
    return [None if blank else round(count) for blank, count in zip(unknown, found, strict=True)]


def _multiplies(layer: Layer) -> bool:
    return any(_MULTIPLIES.search(text) for text in (layer.kind, layer.tactic, layer.name))
