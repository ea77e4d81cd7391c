"""Plugins: what torch computes in an engine it computes here, too."""

from __future__ import annotations

import torch

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import layer
from torch2trt.trt.plugins import CARRIED


@layer("PLUGIN_V3")
def plugin(node: Node, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An operator of torch, in float64 where the interpreter computes in that."""
    call = getattr(node.api.plugin, "call", None)
    if call is None:
        raise node.error("the interpreter does not execute plugins of others")
    given = [x.to(spec.dtype) if spec.dtype in CARRIED else x for x, spec in zip(inputs, call.inputs, strict=True)]
    try:
        results = call.run(given)
    except NotImplementedError as error:
        device = inputs[0].device.type
        raise node.error(f"{call.name} has no kernel for {device} tensors: {str(error).splitlines()[0]}") from error
    # A kernel may round to float32 what it is given in float64.
    return tuple(result.to(node.dtype(index)) for index, result in enumerate(results))
