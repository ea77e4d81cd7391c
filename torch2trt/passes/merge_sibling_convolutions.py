"""Convolutions of one tensor with the same window as one, such as the 1x1 branches of an Inception block."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import Match
from torch2trt.passes.siblings import Kind, merge_siblings
from torch2trt.passes.views import PERMUTING
from torch2trt.settings import Settings

aten = torch.ops.aten


def merge_sibling_convolutions(program: Program, settings: Settings) -> None:
    """Merge the convolutions of one tensor, as :func:`torch2trt.passes.siblings.merge_siblings` says.

    They have the same window, stride, padding and dilation, and one group. Off unless ``extra_passes`` names it:
    whether it makes engines faster has not been timed on a GPU.
    """
    merge_siblings(program, _CONVOLUTION)


def _key(bound: dict[str, Any]) -> Hashable:
    window = tuple(bound["weight"].meta["val"].shape[2:])
    return window, *(tuple(bound[name]) for name in ("stride", "padding", "dilation"))


def _obstacle(program: Program, node: fx.Node) -> str | None:
    bound = bind(node)
    if bound["transposed"]:
        return "it is transposed"
    if bound["groups"] != 1:
        return f"it has {bound['groups']} groups"
    total = only_user(node)
    if total is not None and total.target is aten.add.Tensor and isinstance(bind(total)["other"], fx.Node):
        return "the sum that follows is computed with it"
    return None


def _stays_apart(activation: Match, last: fx.Node, lasts: Sequence[fx.Node]) -> bool:
    return False


def _reads_slices(user: fx.Node) -> bool:
    # Other convolutions, pooling and concatenations take tensors that lie apart. What the engine returns is brought
    # into the caller's layout in any case, and so is what is permuted.
    return user.op == "output" or user.target in PERMUTING


_CONVOLUTION = Kind(
    target=aten.convolution.default,
    dim=1,
    key=_key,
    obstacle=_obstacle,
    stays_apart=_stays_apart,
    reads_slices=_reads_slices,
)
