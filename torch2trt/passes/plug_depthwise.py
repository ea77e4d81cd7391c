"""Depthwise convolutions that engines leave to a kernel in Triton, as plugins."""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.plugged_ops import DEPTHWISE_CONV
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants
from torch2trt.passes.plug_kernels import plug_kernels
from torch2trt.passes.pointwise import is_pointwise
from torch2trt.passes.views import order_of
from torch2trt.settings import Settings

aten = torch.ops.aten

_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
# TensorRT has kernels of its own for windows of 3 and 5.
_LEAST_WINDOW = 7


def plug_depthwise(program: Program, settings: Settings) -> None:
    """Let a kernel in Triton compute depthwise convolutions with large windows in halves, between channels-last layers.

    Done only where the module itself has the channels last behind the layer, as ConvNeXt has, and all before it comes
    from channels-last layers or from convolutions, which have the channels last within TensorRT; and where TensorRT has
    plugins and Triton is installed. What is pointwise in between is computed with the channels last by
    :func:`torch2trt.passes.sink_permutes.sink_permutes`, so this comes before it.
    """
    constant = constants(program)

    # The layers come in order, so that one that is a plugin already has its channels last for the next.
    def fits(program: Program, node: fx.Node) -> bool:
        return _fits(program, node) and _comes_channels_last(program, bind(node)["input"], constant)

    plug_kernels(program, fits, _rewrite)


def _fits(program: Program, node: fx.Node) -> bool:
    if node.target is not aten.convolution.default or IN_TORCH in node.meta:
        return False
    bound = bind(node)
    source, weight = bound["input"], program.spec(bound["weight"]).shape
    plain = list(bound["stride"]) == list(bound["dilation"]) == [1, 1] and not bound["transposed"]
    return (
        plain
        and program.spec(node).dtype in (torch.float16, torch.bfloat16)
        and bound["groups"] == weight[0] == program.spec(source).shape[1]
        and min(weight[2:]) >= _LEAST_WINDOW
        and all(order_of(program, user) == _CHANNELS_LAST for user in node.users)
    )


def _comes_channels_last(program: Program, source: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a tensor is pointwise in channels-last tensors and results of convolutions."""
    found, pending = {source}, [source]
    while pending:
        node = pending.pop()
        if order_of(program, node) == _CHANNELS_FIRST or node.target is aten.convolution.default:
            continue
        if not is_pointwise(node) or IN_TORCH in node.meta or program.spec(node).rank != len(_CHANNELS_FIRST):
            return False
        following = {*node.all_input_nodes} - found - constant
        found |= following
        pending += following
    return True


def _rewrite(program: Program, node: fx.Node) -> None:
    graph, bound = program.graph.graph, bind(node)
    channels, _, *window = program.spec(bound["weight"]).shape
    with graph.inserting_before(node):
        taps = call(graph, aten.permute.default, bound["weight"], [2, 3, 0, 1], like=node)
        taps = call(graph, aten.reshape.default, taps, [*window, channels], like=node)
        # The permutations meet those around them, and cancel.
        source = call(graph, aten.permute.default, bound["input"], list(_CHANNELS_LAST), like=node)
        result = call(graph, DEPTHWISE_CONV, source, taps, bound["bias"], list(bound["padding"]), like=node)
    for user in list(node.users):
        user.replace_all_uses_with(result)
