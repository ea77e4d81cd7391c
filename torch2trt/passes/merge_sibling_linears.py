"""Linear layers of one tensor as one: query, key and value, or a gate and what it lets through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from torch2trt.graph.ops import ATTENTION, ROTARY
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.activations import Match
from torch2trt.passes.pieces import SPLITTING
from torch2trt.passes.pointwise import is_pointwise
from torch2trt.passes.siblings import Kind, is_read_as_slice, join, merge_siblings
from torch2trt.passes.views import PERMUTING
from torch2trt.settings import Settings

aten = torch.ops.aten

# Kernels that TensorRT writes itself, and products of matrices, read a slice where it lies.
_READING_SLICES = (
    PERMUTING
    | SPLITTING
    | {
        *(aten.slice.Tensor, aten.select.int, aten.unbind.int),
        *(aten.softmax.int, aten.layer_norm.default, aten.rms_norm.default, aten.mean.dim, aten.sum.dim_IntList),
        *(aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default, ATTENTION),
        ROTARY,
    }
)


def merge_sibling_linears(program: Program, settings: Settings) -> None:
    """Merge the linear layers of one tensor, as :func:`torch2trt.passes.siblings.merge_siblings` says.

    Off unless ``extra_passes`` names it: whether it makes engines faster has not been timed on a GPU.
    """
    merge_siblings(program, _LINEAR)


def join_linears(program: Program, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Compute linear layers as one, as :func:`torch2trt.passes.siblings.join` does."""
    return join(program, _LINEAR, nodes)


def reads_slices_of(node: fx.Node) -> bool:
    """Whether all that uses a linear layer reads it as well where it is a slice of a wider one."""
    return is_read_as_slice(_LINEAR, node)


def _obstacle(program: Program, node: fx.Node) -> str | None:
    return None if program.spec(bind(node)["weight"]).rank == 2 else "its weight is a vector"


def _stays_apart(activation: Match, last: fx.Node, lasts: Sequence[fx.Node]) -> bool:
    # TensorRT computes SiLU after a product in a kernel of its own; and so, whatever comes before, the product of a
    # gate with what it lets through, which takes the gate's activation along.
    following = only_user(last)
    gates = following is not None and following.target is aten.mul.Tensor
    return activation[0] == "silu" or (gates and set(lasts).issuperset(following.all_input_nodes))  # type: ignore[union-attr]


def _reads_slices(user: fx.Node) -> bool:
    return user.target in _READING_SLICES or is_pointwise(user)


_LINEAR = Kind(
    target=aten.linear.default,
    dim=-1,
    key=lambda bound: None,
    obstacle=_obstacle,
    stays_apart=_stays_apart,
    reads_slices=_reads_slices,
)
