"""One device for a whole graph: which devices its calls name means nothing to an engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree


def unify_devices(graph: fx.Graph, device: torch.device) -> None:
    """Make every call of a graph compute on one device, and none move to another; fake values follow."""
    _place_calls(graph, device)
    for node in graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                # A copy would lose strides, and what it shares memory with.
                value.fake_device = device


def placed(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """A copy of a graph of calls that computes on a device, which is where its inputs are to be."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    _place_calls(graph, device)
    return fx.GraphModule({}, graph)


def _place_calls(graph: fx.Graph, device: torch.device) -> None:
    for node in graph.nodes:
        node.args, node.kwargs = fx.node.map_aggregate(
            (node.args, node.kwargs), lambda item: device if isinstance(item, torch.device) else item
        )
        if _is_factory(node.target):
            # Where it names none, it is the CPU.
            node.update_kwarg("device", device)
        if node.kwargs.get("pin_memory"):
            node.update_kwarg("pin_memory", False)


def _is_factory(target: Any) -> bool:
    """Whether an operator makes tensors from none."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    arguments = target._schema.arguments
    return any(each.name == "device" for each in arguments) and not any(
        "Tensor" in str(each.type) for each in arguments
    )
