"""Every layer that the interpreter can execute: importing this module fills the registry."""

from torch2trt.reference import (
    layers_attention,
    layers_index,
    layers_neural,
    layers_plugin,
    layers_pointwise,
    layers_resample,
    layers_shape,
)
from torch2trt.reference.registry import LAYERS

__all__ = [
    "LAYERS",
    "layers_attention",
    "layers_index",
    "layers_neural",
    "layers_plugin",
    "layers_pointwise",
    "layers_resample",
    "layers_shape",
]
