"""Attention that engines may leave to torch's kernels."""

from __future__ import annotations

import torch

from torch2trt.graph.ops import PLUGGABLE_ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import IN_TORCH, call
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings

aten = torch.ops.aten


def plug_attention(program: Program, settings: Settings) -> None:
    """Let attention in halves be a plugin, where TensorRT has plugins and its own kernels are slower.

    Whether they are depends on the sizes, and whether a mask is no more than causal on its values, so the converter
    decides.
    """
    graph = program.graph.graph
    for node in program.calls:
        if node.target is not aten.scaled_dot_product_attention.default or IN_TORCH in node.meta:
            continue
        bound = bind(node)
        if program.spec(node).dtype not in (torch.float16, torch.bfloat16) or bound["dropout_p"]:
            continue
        names = ("query", "key", "value", "attn_mask", "is_causal", "scale", "enable_gqa")
        with graph.inserting_before(node):
            pluggable = call(graph, PLUGGABLE_ATTENTION, *(bound[name] for name in names), like=node)
        node.replace_all_uses_with(pluggable)
        graph.erase_node(node)
