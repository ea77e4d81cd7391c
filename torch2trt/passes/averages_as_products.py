"""Sums and means along the last dimension of what other reductions made, as products with a row of equal numbers.

TensorRT 10.6 computes ``y * (s / mean(s))``, where ``s`` is a norm of ``y`` over other dimensions, in one kernel, and
wrongly where the images are small: of 2x2 positions behind a linear layer it makes no numbers with 640, 672 and 1280
channels, and wrong ones with 64. A product it computes apart.
"""

from __future__ import annotations

import torch
from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.passes.pointwise import is_pointwise
from torch2trt.settings import Settings

aten = torch.ops.aten

_SUMS = frozenset({aten.sum.dim_IntList, aten.mean.dim})
_REDUCTIONS = _SUMS | {
    *(
        aten.linalg_vector_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.prod.dim_int,
        aten.amax.default,
        aten.amin.default,
    ),
    *(aten.var.dim, aten.var.correction, aten.std.dim, aten.std.correction),
}


def averages_as_products(program: Program, settings: Settings) -> None:
    """Write such sums and means of float32 as linear layers without bias.

    This comes after the precision is set, since sums keep float32 and products do not. In the precision ``tf32`` what
    is added up is rounded as the inputs of any other product.
    """
    reduced: set[fx.Node] = set()
    for node in program.calls:
        if program.is_size(node):
            continue
        if node.target in _REDUCTIONS:
            if node.target in _SUMS and reduced.intersection(node.all_input_nodes) and IN_TORCH not in node.meta:
                _replace(program, node)
            reduced.add(node)
        elif is_pointwise(node) and reduced.intersection(node.all_input_nodes):
            reduced.add(node)


def _replace(program: Program, node: fx.Node) -> None:
    bound = bind(node)
    source: fx.Node = bound["input"]
    spec = program.spec(source)
    if not spec.rank:
        return
    count = spec.shape[-1]
    along_last = [axis % spec.rank for axis in bound["dim"] or range(spec.rank)] == [spec.rank - 1]
    if not along_last or not bound["keepdim"] or not isinstance(count, int) or count < 2:
        return
    if not spec.dtype == program.spec(node).dtype == torch.float32:
        return
    graph = program.graph.graph
    with graph.inserting_before(node):
        value = 1.0 if node.target is aten.sum.dim_IntList else 1.0 / count
        device = source.meta["val"].device
        row = call(graph, aten.full.default, [1, count], value, like=node, dtype=torch.float32, device=device)
        product = call(graph, aten.linear.default, source, row, like=node)
    node.replace_all_uses_with(product)
    graph.erase_node(node)
