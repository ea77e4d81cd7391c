"""Reasons to refuse a call that several families of operators share; each is an ``unsupported=`` of its own."""

from __future__ import annotations

from typing import Any

from torch2trt.sizes import Shape, TensorSpec
from torch2trt.trt.core import FLOAT_DTYPES


def only_floats(**arguments: Any) -> str | None:
    """Every tensor must be float32, float16 or bfloat16."""
    for value in arguments.values():
        if isinstance(value, TensorSpec) and value.dtype not in FLOAT_DTYPES:
            return f"TensorRT computes it in floating point only (got {value.dtype})"
    return None


def shape_of_negative(said: Shape, shape: Shape, argument: str) -> str | None:
    """A result must have the shape that torch says, which for some operators is wrong where a dimension is negative."""
    if said == shape:
        return None
    return f"torch.export takes its shape for {list(said)}: pass {argument} counted from the front"
