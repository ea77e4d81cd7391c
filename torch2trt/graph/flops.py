"""Floating point operations of a Program's calls, counted as ``torch.utils.flop_counter`` counts them."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.sizes import TensorSpec


def flops(program: Program, dims: Mapping[str, int]) -> dict[str, int]:
    """FLOPs of each call by its node's name: two for each product that is summed up in products and convolutions.

    Whatever else there is (sums, activations, norms, Fourier transforms) counts none, as in
    :class:`torch.utils.flop_counter.FlopCounterMode`, which counts all operators but those that it does not know
    everywhere: this package's own blocks, attention, recurrent layers, products by group and deformable convolutions.

    Args:
        dims: sizes of the named dimensions.

    Returns:
        Without the calls whose sizes depend on data.
    """
    found: dict[str, int] = {}
    # On tensors without data: it is the decompositions of torch that are counted.
    with FlopCounterMode(display=False) as counter:
        for node in program.calls:
            if program.is_size(node) or node.target is operator.getitem:
                continue
            try:
                arguments, results = _shaped(program, node, dims)
            except KeyError:
                continue
            formula = _FORMULAS.get(node.target._schema.name)  # type: ignore[union-attr]
            if formula is not None:
                found[node.name] = formula(arguments, results)
            elif torch.Tag.pointwise in node.target.tags:  # type: ignore[union-attr]
                found[node.name] = 0
            else:
                found[node.name] = _counted(counter, node, arguments)
    return found


def _shaped(program: Program, node: fx.Node, dims: Mapping[str, int]) -> tuple[dict[str, Any], list[torch.Tensor]]:
    """A call's arguments by name and its results, with tensors that have no data.

    Raises:
        KeyError: a size depends on data.
    """

    def value(item: Any) -> Any:
        if isinstance(item, fx.Node):
            if program.is_size(item):
                size = program.size(item)
                return size if isinstance(size, int) else _at(size, dims)
            return pytree.tree_map_only(TensorSpec, tensor, program.result(item))
        return torch.device("meta") if isinstance(item, torch.device) else item

    def tensor(spec: TensorSpec) -> torch.Tensor:
        return torch.empty(spec.at(dims), dtype=spec.dtype, device="meta")

    result = program.result(node)
    results = [tensor(spec) for spec in (result if isinstance(result, list) else [result]) if spec is not None]
    arguments = {name: _mapped(item, value) for name, item in bind(node).items()}
    return arguments, results


def _at(size: Any, dims: Mapping[str, int]) -> int | float | bool:
    """A number made of sizes; no size itself where it is a fraction or a condition."""
    number = size.subs({symbol: dims[symbol.name] for symbol in size.free_symbols})
    return int(number) if number.is_Integer else (bool(number) if number.is_Boolean else float(number))


def _mapped(item: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(item, list | tuple):
        return [_mapped(each, function) for each in item]
    return function(item)


def _counted(counter: FlopCounterMode, node: fx.Node, arguments: dict[str, Any]) -> int:
    before = counter.get_total_flops()
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = list(arguments.values())
    positional = [value for value, each in zip(values, schema, strict=True) if not each.kwarg_only]
    keywords = {each.name: value for value, each in zip(values, schema, strict=True) if each.kwarg_only}
    # Results that depend on data need some, and what has no kernel without it is no product that torch counts.
    with contextlib.suppress(Exception):
        node.target(*positional, **keywords)  # type: ignore[operator]
    return int(counter.get_total_flops()) - int(before)


Arguments = Mapping[str, Any]
Results = Sequence[torch.Tensor]


def _linear(arguments: Arguments, results: Results) -> int:
    """Rows of an input times a matrix, whose columns it has."""
    return 2 * results[0].numel() * int(arguments["input"].shape[-1])


def _convolution(arguments: Arguments, results: Results) -> int:
    input, weight, result = (list(value.shape) for value in (arguments["input"], arguments["weight"], results[0]))
    return conv_flop_count(input, weight, result)


def _attention(arguments: Arguments, results: Results) -> int:
    """Scores and what they weigh, masked ones too."""
    return 2 * int(arguments["key"].shape[-2]) * (int(arguments["query"].numel()) + results[0].numel())


def _flash_attention(arguments: Arguments, results: Results) -> int:
    return 2 * int(arguments["key"].shape[1]) * (int(arguments["query"].numel()) + results[0].numel())


def _packed_attention(arguments: Arguments, results: Results) -> int:
    query, key = (arguments["sources"][place].shape for place in arguments["places"][:2])
    return _of_heads(arguments, list(query[:2]), key[1])


def _short_attention(arguments: Arguments, results: Results) -> int:
    queries = list(arguments["packed"].shape[:2])
    return _of_heads(arguments, queries, queries[1])


def _of_heads(arguments: Arguments, queries: list[int], keys: int) -> int:
    """Attention of so many queries, in a batch of entries, to so many keys."""
    width = arguments["width"] + arguments["value_width"]
    return 2 * int(keys) * int(math.prod(queries)) * arguments["heads"] * width  # type: ignore[no-any-return]


def _depthwise(arguments: Arguments, results: Results) -> int:
    return 2 * results[0].numel() * int(math.prod(arguments["taps"].shape[:2]))


def _recurrence(arguments: Arguments, results: Results) -> int:
    steps, batch = arguments["projected"].shape[-3:-1]
    weights = [arguments["weight"], arguments["projection"]]
    return int(2 * steps * batch * sum(weight.numel() for weight in weights if weight is not None))


def _deformable(arguments: Arguments, results: Results) -> int:
    return 2 * results[0].numel() * int(math.prod(arguments["weight"].shape[1:]))


_FORMULAS: dict[str, Callable[[Arguments, Results], int]] = {
    "torch2trt::linear_block": _linear,
    "torch2trt::conv_block": _convolution,
    "torch2trt::attention": _attention,
    "torch2trt::flash_attention": _flash_attention,
    "torch2trt::packed_attention": _packed_attention,
    "torch2trt::short_attention": _short_attention,
    "torch2trt::depthwise_conv": _depthwise,
    # Torch counts some of its kernels for attention and not others.
    "aten::scaled_dot_product_attention": _attention,
    "torch2trt::recurrence": _recurrence,
    "aten::_grouped_mm": _linear,
    "transformers::grouped_mm_fallback": _linear,
    "torchvision::deform_conv2d": _deformable,
}
