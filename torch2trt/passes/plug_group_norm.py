"""Group norms that engines leave to kernels in Triton, as plugins."""

from __future__ import annotations

import math

import torch
from torch import fx

from torch2trt.graph.plugged_ops import GROUP_NORM
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import following_activation
from torch2trt.passes.plug_kernels import plug_kernels
from torch2trt.passes.views import RESHAPING, order_of
from torch2trt.settings import Settings

aten = torch.ops.aten

# TensorRT's convolutions read channels-last images in vectors of so many channels.
_VECTOR = 8
# A program of the kernels has all of a group's channels at once.
_WIDEST_GROUP = 1024
_PIXELS_FIRST = (0, 2, 1)
# On an H200 norms of 2.6 million values took 16 µs less each in a block of an SD U-Net; a plugin's edges cost 7.
_LEAST_VALUES = 1 << 20


def plug_group_norm(program: Program, settings: Settings) -> None:
    """Let kernels in Triton compute group norms of images in halves, with what is added before and a SiLU after.

    TensorRT 10.6 computes them channels-first, and moves the channels of whatever its convolutions yield and read;
    the kernels read and write images as convolutions do. Where pixels become tokens after the norm, or after
    a pointwise convolution, they are written as tokens, and the convolution is a linear layer. Done only where TensorRT
    has plugins and Triton is installed, and for images large enough that it pays.
    """
    plug_kernels(program, _fits, _rewrite)


def _fits(program: Program, node: fx.Node) -> bool:
    if node.target is not aten.group_norm.default or IN_TORCH in node.meta:
        return False
    spec, groups = program.spec(node), bind(node)["num_groups"]
    if spec.dtype not in (torch.float16, torch.bfloat16) or spec.rank != 4 or not isinstance(groups, int):
        return False
    channels = spec.shape[1]
    if not isinstance(channels, int) or channels % _VECTOR or channels // groups > _WIDEST_GROUP:
        return False
    return math.prod(program.usual(size) or 0 for size in spec.shape) >= _LEAST_VALUES


def _rewrite(program: Program, node: fx.Node) -> None:
    graph, bound = program.graph.graph, bind(node)
    activation, last = following_activation(program, node)
    silu = activation[0] == "silu"
    source, shift = _shifted(program, node, bound["input"])
    last = last if silu else node
    convolution = _pointwise(last)
    tokens = _tokens(program, convolution or last)
    rest = (bound["num_groups"], bound["weight"], bound["bias"], bound["eps"], silu, bool(tokens))
    with graph.inserting_before(node):
        if shift is not None:
            shift = _per_image(program, shift, like=node)
        made = call(graph, GROUP_NORM, source, shift, *rest, like=node)
    if not tokens:
        last.replace_all_uses_with(made)
        return
    if convolution is not None:
        with graph.inserting_before(convolution):
            made = _linear(program, made, convolution)
    for each in tokens:
        each.replace_all_uses_with(made)


def _shifted(program: Program, node: fx.Node, source: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The images that a norm alone reads the sum of with a number for each channel of each, and these numbers."""
    if source.target is not aten.add.Tensor or only_user(source) is not node or bind(source)["alpha"] != 1:
        return source, None
    spec, operands = program.spec(source), [bind(source)[name] for name in ("input", "other")]
    numbers = (*spec.shape[:2], 1, 1)
    if spec.shape == numbers or not all(isinstance(each, fx.Node) for each in operands):
        return source, None
    for images, shift in (operands, operands[::-1]):
        found = [program.spec(each) for each in (images, shift)]
        if [each.shape for each in found] == [spec.shape, numbers] and {each.dtype for each in found} == {spec.dtype}:
            return images, shift
    return source, None


def _per_image(program: Program, shift: fx.Node, *, like: fx.Node) -> fx.Node:
    """Numbers [N, C, 1, 1] as [N, C]."""
    shape = program.spec(shift).shape[:2]
    if shift.target in RESHAPING and IN_TORCH not in shift.meta:
        before = shift.all_input_nodes[0]
        if program.spec(before).shape == shape:
            return before
    return call(like.graph, aten.squeeze.dims, shift, [2, 3], like=like)


def _pointwise(node: fx.Node) -> fx.Node | None:
    """The convolution of single pixels that alone reads a node."""
    following = only_user(node)
    if following is None or following.target is not aten.convolution.default:
        return None
    bound = bind(following)
    plain = [*bound["stride"], *bound["dilation"], bound["groups"]] == [1] * 5 and not any(bound["padding"])
    window = bound["weight"].meta["val"].shape[2:]
    fits = bound["input"] is node and plain and not bound["transposed"] and list(window) == [1, 1]
    return following if fits else None


def _tokens(program: Program, node: fx.Node) -> list[fx.Node]:
    """The nodes [N, H * W, C] that images [N, C, H, W] are read as; none where someone reads them otherwise."""
    following = only_user(node)
    if following is None or following.target not in RESHAPING:
        return []
    count, channels, height, width = program.spec(node).shape
    if program.spec(following).shape != (count, channels, height * width):
        return []
    found = list(following.users)
    return found if all(order_of(program, each) == _PIXELS_FIRST for each in found) else []


def _linear(program: Program, tokens: fx.Node, convolution: fx.Node) -> fx.Node:
    """What a convolution of single pixels is for pixels that are tokens."""
    bound = bind(convolution)
    matrix = list(program.spec(bound["weight"]).shape[:2])
    weight = call(convolution.graph, aten.reshape.default, bound["weight"], matrix, like=convolution)
    return call(convolution.graph, aten.linear.default, tokens, weight, bound["bias"], like=convolution)
