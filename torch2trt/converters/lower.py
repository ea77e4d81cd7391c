"""From a Program to a network: the node loop, and the question which nodes can be converted at all."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from torch2trt.converters import registry
from torch2trt.errors import CaptureError, ContractError, NetworkError, UnsupportedNode, UnsupportedOpsError
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.schema import bind, name_of
from torch2trt.sizes import DimRange, TensorSpec, largest, symbols
from torch2trt.trt.core import SUPPORTED_DTYPES
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.network import Network
from torch2trt.trt.tensor import Tensor


def unsupported_nodes(program: Program, flavour: Flavour) -> list[UnsupportedNode]:
    """Every input and node of the main graph that cannot be converted, with the reason."""
    found: list[UnsupportedNode] = []
    for leaf in program.signature.tensor_inputs:
        if reason := _unsupported_dtype(leaf.spec.dtype, flavour):
            found.append(UnsupportedNode(leaf.name, "input", reason))
    ranges = dict(program.signature.dims)
    for node in program.calls:
        reason = unsupported_reason(program, node, flavour, ranges)
        if reason:
            module, source = provenance(node)
            found.append(UnsupportedNode(node.name, name_of(node.target), reason, source, module))
        else:
            ranges |= sizes_from_data(program, node, ranges)
    return found


def unsupported_reason(program: Program, node: fx.Node, flavour: Flavour, ranges: Mapping[str, DimRange]) -> str | None:
    """Why a call cannot be converted, or None.

    Args:
        ranges: of the named dimensions, and of the sizes that depend on data and are known where the call is.
    """
    if program.is_size(node):
        return unsupported_number(program, node, ranges)
    if node.target is operator.getitem:
        return None
    if any(_is_complex(program, each) for each in (node, *node.all_input_nodes)):
        return _unsupported_complex(program, node)
    converter = registry.find(node.target)
    if converter is None:
        return registry.refusal(node.target)
    bound = _bound(program, node)
    reads, yields = (
        [item for item in _leaves(values) if isinstance(item, TensorSpec)]
        for values in (list(bound.values()), program.result(node))
    )
    for spec in (*reads, *yields):
        if reason := _unsupported_dtype(spec.dtype, flavour):
            return reason
        if spec.rank > 8:
            return f"TensorRT tensors have at most 8 dimensions, this has {spec.rank}"
    if converter.unsupported is not None:
        result = program.result(node)
        results = result if isinstance(result, list) else [result]
        named = inspect.signature(converter.unsupported).parameters
        asked = {"flavour": flavour, "ranges": ranges, "results": results, "used": _used(node)}
        given = bound | {name: value for name, value in asked.items() if name in named}
        if reason := converter.unsupported(**registry.arguments_for(converter.unsupported, given)):
            return reason
    known_of = reads if converter.at_most is not None else (*reads, *yields)
    if any(symbols(spec.shape) - ranges.keys() for spec in known_of):
        return "a size that depends on data"
    return None


def sizes_from_data(program: Program, node: fx.Node, ranges: Mapping[str, DimRange]) -> dict[str, DimRange]:
    """The sizes that depend on data which a call that is converted makes, by name.

    Args:
        ranges: of the sizes that are known before.
    """
    new = set() if program.is_size(node) else program.symbols(node) - ranges.keys()
    converter = registry.find(node.target) if new else None
    if converter is None or converter.at_most is None:
        return {}
    most = largest(converter.at_most(**registry.arguments_for(converter.at_most, _bound(program, node))), ranges)
    return {name: DimRange(0, most, most) for name in new}


def _bound(program: Program, node: fx.Node) -> dict[str, Any]:
    """A call's arguments by name, tensors as specs."""
    return _map_nodes(bind(node), lambda arg: program.size(arg) if program.is_size(arg) else program.result(arg))


def _unsupported_dtype(dtype: torch.dtype, flavour: Flavour) -> str | None:
    """Why no tensor can have a dtype, or None."""
    if dtype not in SUPPORTED_DTYPES:
        return f"TensorRT has no {dtype}"
    if dtype == torch.int8 and not flavour.has("int8_numbers"):
        # 10.6 takes a cast of INT8 for quantization, and fails to build where the layer behind it cannot be quantized.
        return f"TensorRT has no {dtype} but for quantized numbers, pass torch.int32 or torch.uint8"
    return None


def _is_complex(program: Program, node: fx.Node) -> bool:
    leaves = [] if program.is_size(node) else _leaves(program.result(node))
    return any(isinstance(item, TensorSpec) and item.dtype.is_complex for item in leaves)


def _unsupported_complex(program: Program, node: fx.Node) -> str:
    """Why a call with complex numbers is still there after the pass that rewrites them."""
    if node in program.output_node.all_input_nodes:
        return "the module returns complex numbers, which TensorRT has not: return torch.view_as_real of them"
    if node.target in (torch.ops.aten.complex.default, torch.ops.aten.view_as_real.default):
        return "complex numbers for, or from, an operator that is not rewritten in real ones"
    return "TensorRT has no complex numbers, and this call is not among those that are rewritten in real ones"


def unsupported_number(program: Program, node: fx.Node, ranges: Mapping[str, DimRange]) -> str | None:
    """Why a tensor operator cannot take the number that a node yields, or None: integers made of sizes are fine."""
    value = node.meta.get("val")
    if all(program.is_size(user) for user in node.users if user.op == "call_function"):
        return None
    if isinstance(value, torch.SymFloat | torch.SymBool):
        return "a number made of dynamic sizes, or taken from a tensor, that is no integer"
    if program.symbols(node) - ranges.keys():
        return "a number taken from the values of a tensor"
    return None


def lower(program: Program, flavour: Flavour) -> Network:
    """Emit the program's main graph as a TensorRT network.

    Raises:
        UnsupportedOpsError: lists every node that cannot be converted.
        CaptureError: there is nothing to compute.
        NetworkError: TensorRT refused a layer, or a layer's result differs from the graph's.
    """
    if unsupported := unsupported_nodes(program, flavour):
        raise UnsupportedOpsError(unsupported)
    if not program.output_names:
        raise CaptureError("computes nothing: its results are its arguments and constants", subject=program.name)
    net = Network(flavour)
    net.ranges = ranges = dict(program.signature.dims)
    values: dict[fx.Node, Any] = {}
    with net.scope("inputs"):
        for node, leaf in zip(program.input_placeholders, program.signature.tensor_inputs, strict=True):
            stored = net.input(leaf.name, leaf.stored.shape, leaf.spec.dtype)
            values[node] = net.permute(stored, leaf.axes) if leaf.order else stored
    weights = program.weights.evaluate()
    for node in program.weight_placeholders:
        name = str(node.target)
        values[node] = net.constant(weights.pop(name), label=name)
    for node in program.calls:
        if not program.is_size(node):
            ranges |= sizes_from_data(program, node, ranges)
            values[node] = _lower_node(net, program, node, values)
    with net.scope("outputs"):
        orders = {leaf.name: leaf.order for leaf in program.signature.tensor_outputs}
        for name, node in zip(program.output_names, program.output_node.args[0], strict=True):  # type: ignore[arg-type]
            order = orders[name]
            net.mark_output(name, net.permute(values[node], order) if order else values[node])
    return net


def _lower_node(net: Network, program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    arguments = _map_nodes(bind(node), lambda arg: program.size(arg) if program.is_size(arg) else values[arg])
    if node.target is operator.getitem:
        return arguments["input"][arguments["index"]]
    converter = registry.find(node.target)
    assert converter is not None
    module, source = provenance(node)
    result = program.result(node)
    with net.scope(node.name, module=module, source=source):
        net.results = result if isinstance(result, list) else [result]
        net.used = _used(node)
        try:
            produced = converter.function(net, **registry.arguments_for(converter.function, arguments))
        except NetworkError:
            raise
        except Exception as error:
            raise ContractError(
                f"the converter failed: {type(error).__name__}: {error}",
                subject=name_of(node.target),
                source=source,
            ) from error
        _check(net, node, produced, result)
    return produced


def _used(node: fx.Node) -> set[Any]:
    """The positions of a call's results that something reads."""
    return {user.args[1] for user in node.users if user.target is operator.getitem}


def _check(net: Network, node: fx.Node, produced: Any, expected: Any) -> None:
    """Compare what a converter produced with what the graph says, and let the graph name the symbolic sizes."""
    if isinstance(expected, list | tuple):
        for one, spec in zip(produced, expected, strict=True):
            if one is not None:
                _check(net, node, one, spec)
        return
    if not isinstance(produced, Tensor):
        raise net.error(f"{name_of(node.target)} produced {type(produced).__name__}, not a tensor")
    if produced.dtype != expected.dtype:
        raise net.error(f"{name_of(node.target)} produced {produced.dtype}, the graph has {expected.dtype}")
    differs = produced.rank != expected.rank or any(
        isinstance(have, int) and isinstance(want, int) and have != want
        for have, want in zip(produced.shape, expected.shape, strict=True)
    )
    if differs:
        raise net.error(
            f"{name_of(node.target)} produced shape {list(produced.shape)}, the graph has {list(expected.shape)}"
        )
    produced.shape = expected.shape
    for axis, size in enumerate(produced.shape):
        if isinstance(size, sympy.Symbol):
            # Of a size that depends on data this is the first that has it.
            net.dims.bind(size, produced, axis)


def _map_nodes(bound: dict[str, Any], function: Any) -> dict[str, Any]:
    return {name: _mapped(value, function) for name, value in bound.items()}


def _mapped(value: Any, function: Any) -> Any:
    # fx.map_arg would turn lists into its immutable kind and leave sizes alone; converters get plain lists. No inner
    # function does this, because one that calls itself would keep the weights alive until the garbage collector comes.
    if isinstance(value, fx.Node):
        return function(value)
    if isinstance(value, list | tuple):
        return [_mapped(item, function) for item in value]
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]
