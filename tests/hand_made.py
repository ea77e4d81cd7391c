"""A network of convolutions to build, made with TensorRT's own calls."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils import _pytree as pytree

from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec
from torch2trt.trt import flavour
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.logger import make_logger

FLAVOUR = flavour.load()
TRT = FLAVOUR.trt
QUIET = Settings(progress="none")


@dataclasses.dataclass
class HandMade:
    """A network of convolutions, without the network builder of this package."""

    flavour: Flavour
    logger: Any
    builder: Any
    definition: Any
    constants: dict[str, torch.Tensor]


def convolutions(batch: int = 4, depth: int = 3, dtype: Any = TRT.float32) -> HandMade:
    logger = make_logger(FLAVOUR)
    builder = TRT.Builder(logger)
    definition = builder.create_network(1 << int(TRT.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    weights = {}
    tensor = definition.add_input("x", dtype, (batch, 8, 16, 16))
    for index in range(depth):
        weight = torch.randn(8, 8, 3, 3)
        weights[str(index)] = weight
        kernel = TRT.Weights(TRT.float32, weight.data_ptr(), weight.numel())
        layer = definition.add_convolution_nd(tensor, 8, (3, 3), kernel)
        layer.padding_nd = (1, 1)
        tensor = definition.add_activation(layer.get_output(0), TRT.ActivationType.RELU).get_output(0)
    tensor.name = "y"
    definition.mark_output(tensor)
    return HandMade(FLAVOUR, logger, builder, definition, weights)


def signature(batch: Any = 4, **dims: DimRange) -> Signature:
    spec = TensorSpec((batch, 8, 16, 16), torch.float32)
    in_spec = pytree.tree_flatten(((0,), {}))[1]
    out_spec = pytree.tree_flatten(0)[1]
    return Signature((TensorLeaf("x", spec),), (TensorLeaf("y", spec),), in_spec, out_spec, dims)
