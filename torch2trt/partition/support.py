"""Which calls of a Program cannot or shall not become TensorRT layers, and why: the converters are asked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from torch2trt.converters.lower import sizes_from_data, unsupported_number, unsupported_reason
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, asked_for
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange
from torch2trt.trt.flavour import Flavour


def reasons_for_torch(program: Program, flavour: Flavour, settings: Settings) -> dict[fx.Node, str]:
    """The calls that run in torch, each with the reason; calls that yield numbers are not looked at."""
    found: dict[fx.Node, str] = {}
    ranges = dict(program.signature.dims)
    for node in program.calls:
        if program.is_size(node):
            continue
        reason = (
            asked_for(node, settings.run_in_torch)
            or unsupported_reason(program, node, flavour, ranges)
            or node.meta.get(IN_TORCH)
            or _number_from_data(program, node, ranges)
        )
        if reason:
            found[node] = reason
        else:
            ranges |= sizes_from_data(program, node, ranges)
    return found


def _number_from_data(program: Program, node: fx.Node, ranges: Mapping[str, DimRange]) -> str | None:
    """Why a number among the arguments cannot be an engine's, or None."""
    numbers = [argument for argument in node.all_input_nodes if program.is_size(argument)]
    return next(filter(None, (unsupported_number(program, number, ranges) for number in numbers)), None)
