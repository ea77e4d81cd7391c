"""Every product with a matrix of weights as ``aten.linear``, so that what is done to linear layers is done to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call, only_user
from torch2trt.graph.schema import bind
from torch2trt.passes.constants import constants
from torch2trt.settings import Settings

aten = torch.ops.aten


def unify_linears(program: Program, settings: Settings) -> None:
    """Replace ``addmm``, ``mm`` and ``matmul`` with constant matrices, and put the bias that is added alone into it.

    This is what makes a linear layer of GPT-2's ``Conv1D`` and of ``x @ weight + bias``. The transposed matrix depends
    on weights alone, and is hoisted.
    """
    constant = constants(program)
    for node in program.calls:
        rewrite = _REWRITES.get(node.target)
        if (
            rewrite is None
            or node in constant
            or IN_TORCH in node.meta
            or not program.spec(node).dtype.is_floating_point
        ):
            continue
        with program.graph.graph.inserting_before(node):
            replacement = rewrite(program, node, constant)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
            program.graph.graph.erase_node(node)
    for node in program.calls:
        if node.target is aten.linear.default and bind(node)["bias"] is None:
            _take_bias(program, node, constant)


def _product(program: Program, node: fx.Node, constant: set[fx.Node]) -> fx.Node | None:
    bound = bind(node)
    matrix: fx.Node = bound["mat2" if "mat2" in bound else "other"]
    if not _is_matrix(program, matrix, constant) or not program.spec(bound["input"]).rank:
        return None
    return _linear(node, bound["input"], matrix, None)


def _product_and_sum(program: Program, node: fx.Node, constant: set[fx.Node]) -> fx.Node | None:
    bound = bind(node)
    if not _is_matrix(program, bound["mat2"], constant) or bound["alpha"] != 1 or bound["beta"] not in (0, 1):
        return None
    added = bound["input"]
    if bound["beta"] == 0:  # even where what is added is not a number
        return _linear(node, bound["mat1"], bound["mat2"], None)
    if program.spec(added).shape == program.spec(node).shape[-1:]:
        return _linear(node, bound["mat1"], bound["mat2"], added)
    product = _linear(node, bound["mat1"], bound["mat2"], None)
    return call(node.graph, aten.add.Tensor, product, added, like=node)


_REWRITES: dict[Any, Callable[[Program, fx.Node, set[fx.Node]], fx.Node | None]] = {
    aten.mm.default: _product,
    aten.matmul.default: _product,
    aten.addmm.default: _product_and_sum,
}


def _is_matrix(program: Program, matrix: fx.Node, constant: set[fx.Node]) -> bool:
    return matrix in constant and program.spec(matrix).rank == 2


def _linear(node: fx.Node, rows: fx.Node, matrix: fx.Node, bias: fx.Node | None) -> fx.Node:
    weight = call(node.graph, aten.t.default, matrix, like=node)
    return call(node.graph, aten.linear.default, rows, weight, bias, like=node)


def _take_bias(program: Program, linear: fx.Node, constant: set[fx.Node]) -> None:
    """Make a constant vector that is added to a linear layer without a bias, and only there, its bias."""
    total = only_user(linear)
    if total is None or total.target is not aten.add.Tensor or linear in constant:
        return
    bound = bind(total)
    (bias,) = [bound[name] for name in ("input", "other") if bound[name] is not linear] or [None]
    spec = program.spec(linear)
    if bias not in constant or bound["alpha"] != 1 or program.spec(total) != spec:
        return
    if program.spec(bias).shape != spec.shape[-1:] or program.spec(bias).dtype != spec.dtype:
        return
    args = bind(linear)
    if program.spec(args["weight"]).rank != 2:
        return  # what a vector makes has no channels
    # The vector may come after the layer.
    with linear.graph.inserting_before(total):
        whole = call(linear.graph, aten.linear.default, args["input"], args["weight"], bias, like=linear)
    total.replace_all_uses_with(whole)
    for node in (total, linear):
        linear.graph.erase_node(node)
