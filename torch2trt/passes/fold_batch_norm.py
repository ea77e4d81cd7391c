"""Batch normalisation in evaluation is an affine map of channels: part of the convolution or linear before it."""

from __future__ import annotations

import operator

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.channel_scales import LAYERS, cast, channel_of, scaled
from torch2trt.settings import Settings

aten = torch.ops.aten

BATCH_NORMS = frozenset({aten._native_batch_norm_legit_no_training.default})
"""The operators that this pass leaves none of where their result alone is read."""


def fold_batch_norm(program: Program, settings: Settings) -> None:
    """Fold batch norm into the weights it follows, else write it as ``x * scale + shift``.

    The weights' arithmetic is in float32 whatever their dtype; being made of parameters alone, it is hoisted later.
    """
    graph = program.graph.graph
    for node in program.calls:
        if node.target not in BATCH_NORMS:
            continue
        result = only_user(node)
        if result is None or result.target is not operator.getitem or result.args[1] != 0:
            continue  # someone reads the statistics, which are empty in evaluation
        with graph.inserting_before(node):
            replacement = _folded(program, node) or _affine(program, node)
        result.replace_all_uses_with(replacement)
        source = bind(node)["input"]
        for each in (result, node):
            graph.erase_node(each)
        if not source.users:
            graph.erase_node(source)


def _scale_and_shift(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """``gamma / sqrt(var + eps)`` and ``beta - mean * scale``, float32 vectors."""
    bound, graph = bind(node), node.graph

    def wide(name: str) -> fx.Node | None:
        value = bound[name]
        if value is None or value.meta["val"].dtype == torch.float32:
            return value  # type: ignore[no-any-return]
        return call(graph, aten._to_copy.default, value, dtype=torch.float32, like=node)

    mean, variance, gamma, beta = (wide(name) for name in ("running_mean", "running_var", "weight", "bias"))
    stable = call(graph, aten.add.Scalar, variance, bound["eps"], like=node)
    scale = call(graph, aten.rsqrt.default, stable, like=node)
    if gamma is not None:
        scale = call(graph, aten.mul.Tensor, scale, gamma, like=node)
    shift = call(graph, aten.neg.default, call(graph, aten.mul.Tensor, mean, scale, like=node), like=node)
    if beta is not None:
        shift = call(graph, aten.add.Tensor, shift, beta, like=node)
    return scale, shift


def _folded(program: Program, node: fx.Node) -> fx.Node | None:
    """The convolution or linear before the batch norm with new weights, or None where there is none to fold into."""
    source = bind(node)["input"]
    if source.target not in LAYERS or only_user(source) is not node:
        return None
    before = bind(source)
    weight, bias = before["weight"], before["bias"]
    if not all(item is None or item.op == "placeholder" for item in (weight, bias)):
        return None
    if channel_of(before) is None:
        return None
    if source.target is aten.linear.default and len(program.spec(source).shape) != 2:
        return None  # the channels of a batch norm are dimension 1, a linear's are its last
    return scaled(source, *_scale_and_shift(node), like=node)


def _affine(program: Program, node: fx.Node) -> fx.Node:
    source, graph = bind(node)["input"], node.graph
    spec = program.spec(source)
    shape = [-1 if axis == 1 else 1 for axis in range(spec.rank)]
    scale, shift = (
        cast(call(graph, aten.view.default, item, shape, like=node), spec.dtype, node)
        for item in _scale_and_shift(node)
    )
    scaled = call(graph, aten.mul.Tensor, source, scale, like=node)
    return call(graph, aten.add.Tensor, scaled, shift, like=node)
