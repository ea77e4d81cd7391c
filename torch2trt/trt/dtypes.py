"""The dtypes that torch and TensorRT share."""

from __future__ import annotations

from typing import Any

import torch

from torch2trt.trt.flavour import Flavour

NAMES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int64: "INT64",
    torch.int32: "INT32",
    torch.int8: "INT8",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
}
"""The name of each in ``trt.DataType``."""


def torch_dtypes(flavour: Flavour) -> dict[Any, torch.dtype]:
    """The torch dtype of each ``trt.DataType`` that torch has."""
    return {getattr(flavour.trt.DataType, name): dtype for dtype, name in NAMES.items()}
