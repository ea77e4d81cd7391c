"""Which calls of a Program cannot or shall not become TensorRT layers, and why: the converters are asked."""

from __future__ import annotations

from torch import fx

from torch2trt.converters.lower import unsupported_number, unsupported_reason
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, asked_for
from torch2trt.settings import Settings
from torch2trt.sizes import TensorSpec
from torch2trt.trt.flavour import Flavour


def reasons_for_torch(program: Program, flavour: Flavour, settings: Settings) -> dict[fx.Node, str]:
    """The calls that run in torch, each with the reason; calls that yield numbers are not looked at."""
    found: dict[fx.Node, str] = {}
    for node in program.calls:
        if not program.is_size(node):
            reason = (
                asked_for(node, settings.run_in_torch)
                or unsupported_reason(program, node, flavour)
                or node.meta.get(IN_TORCH)
                or _number_from_data(program, node)
                or _size_from_data(program, node)
            )
            if reason:
                found[node] = reason
    return found


def _number_from_data(program: Program, node: fx.Node) -> str | None:
    """Why a number among the arguments cannot be an engine's, or None."""
    numbers = [argument for argument in node.all_input_nodes if program.is_size(argument)]
    return next(filter(None, (unsupported_number(program, number) for number in numbers)), None)


def _size_from_data(program: Program, node: fx.Node) -> str | None:
    """Whether a size of what a call takes or yields depends on values, or None."""
    for each in (node, *node.all_input_nodes):
        if program.is_size(each):
            continue
        result = program.result(each)
        for spec in result if isinstance(result, list) else [result]:
            if isinstance(spec, TensorSpec) and _unknown_sizes(program, spec):
                return "a size that depends on data"
    return None


def _unknown_sizes(program: Program, spec: TensorSpec) -> bool:
    names = {symbol.name for size in spec.shape if not isinstance(size, int) for symbol in size.free_symbols}
    return not names <= program.signature.dims.keys()
