"""Convolutions whose windows touch and do not overlap, as products of patches with a matrix of weights."""

from __future__ import annotations

import math

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.views import MOST_DIMS, View, emit, order_of
from torch2trt.settings import Settings
from torch2trt.sizes import Shape

aten = torch.ops.aten

# TensorRT's kernels for convolutions take this many channels at least, and compute the others for nothing.
_MOST_CHANNELS = 4
# The numbers in a patch from which on a product is certain to be faster, and what their count is a multiple of where
# kernels for products in halves read 16 bytes at a time.
_LARGE, _ALIGNED = 256, 8


def patches_as_products(program: Program, settings: Settings) -> None:
    """Write the convolutions of large patches of images as linear layers, and those between channels-last tensors.

    Vision Transformers begin with the first, of three channels; ConvNeXt makes images smaller with the others. Done
    only where the channels of the result are wanted last, as tokens are, so that no permutation comes behind the layer.
    """
    _rewrite_all(program, small=False)


def small_patches_as_products(program: Program, settings: Settings) -> None:
    """The same for patches of images with few numbers, or a number of them that kernels for products are slower with.

    Off unless ``extra_passes`` names it: whether it makes engines faster has not been timed on a GPU.
    """
    _rewrite_all(program, small=True)


def _rewrite_all(program: Program, *, small: bool) -> None:
    for node in program.calls:
        if not _is_of_patches(program, node) or not all(_puts_channels_last(program, user) for user in node.users):
            continue
        if _is_channels_last(program, bind(node)["input"]):
            fits = not small
        else:
            channels, *window = program.spec(bind(node)["weight"]).shape[1:]
            count = math.prod((channels, *window))
            fits = channels <= _MOST_CHANNELS and small != (count >= _LARGE and count % _ALIGNED == 0)
        if fits:
            _rewrite(program, node)


def _is_of_patches(program: Program, node: fx.Node) -> bool:
    """Whether a call is a convolution that reads each number once."""
    if node.target is not aten.convolution.default or IN_TORCH in node.meta:
        return False
    bound = bind(node)
    window = program.spec(bound["weight"]).shape[2:]
    spatial = program.spec(bound["input"]).shape[2:]
    return (
        not bound["transposed"]
        and bound["groups"] == 1
        and math.prod(window) > 1
        and list(window) == list(bound["stride"])
        and not any(bound["padding"])
        and all(step == 1 for step in bound["dilation"])
        and all(isinstance(size, int) and size % width == 0 for size, width in zip(spatial, window, strict=True))
        and 2 + 2 * len(window) <= MOST_DIMS
    )


def _is_channels_last(program: Program, node: fx.Node) -> bool:
    rank = program.spec(node).rank
    return order_of(program, node) == (0, rank - 1, *range(1, rank - 1))


def _puts_channels_last(program: Program, user: fx.Node) -> bool:
    """Whether a call makes of images, or of their positions in one dimension, a tensor with the channels last."""
    if user.op != "call_function" or IN_TORCH in user.meta or program.is_size(user):
        return False
    if user.target is aten.reshape.default:
        before, after = (program.spec(node).shape for node in (user.all_input_nodes[0], user))
        joined = before[:2] == after[:2] and len(after) == 3
        return joined and all(order_of(program, item) == (0, 2, 1) for item in user.users)
    order = order_of(program, user)
    return order is not None and order == (0, *range(2, len(order)), 1)


def _rewrite(program: Program, node: fx.Node) -> None:
    graph, bound = program.graph.graph, bind(node)
    source, weight = bound["input"], bound["weight"]
    out, channels, *window = program.spec(weight).shape
    rank = 2 + len(window)
    # The numbers of a patch come in the order in which they lie in memory.
    last = _is_channels_last(program, source)
    inner = (*range(3, 2 * rank - 2, 2), 1) if last else (1, *range(3, 2 * rank - 2, 2))
    with graph.inserting_before(node):
        batch, _, *spatial = program.spec(source).shape
        counts = [size // width for size, width in zip(spatial, window, strict=True)]
        split: Shape = (batch, channels, *(size for pair in zip(counts, window, strict=True) for size in pair))
        patches = View.of(program.spec(source).shape).reshape(split)
        assert patches is not None
        patches = patches.permute((0, *range(2, 2 * rank - 2, 2), *inner))
        patches = patches.reshape((batch, *counts, math.prod((channels, *window))))
        assert patches is not None
        rows = emit(program, source, patches, like=node)
        assert rows is not None
        if last:
            weight = call(graph, aten.permute.default, weight, [0, *range(2, rank), 1], like=node)
        matrix = call(graph, aten.reshape.default, weight, [out, -1], like=node)
        product = call(graph, aten.linear.default, rows, matrix, bound["bias"], like=node)
        images = call(graph, aten.permute.default, product, [0, rank - 1, *range(1, rank - 1)], like=node)
    node.replace_all_uses_with(images)
    graph.erase_node(node)
