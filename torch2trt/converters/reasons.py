"""Reasons to refuse a call that several families of operators share; each is an ``unsupported=`` of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from torch2trt.sizes import DimRange, Shape, Size, TensorSpec, depends_on_data, largest, symbols
from torch2trt.trt.core import FLOAT_DTYPES
from torch2trt.trt.flavour import Flavour


def only_floats(**arguments: Any) -> str | None:
    """Every tensor must be float32, float16 or bfloat16."""
    for value in arguments.values():
        if isinstance(value, TensorSpec) and value.dtype not in FLOAT_DTYPES:
            return f"TensorRT computes it in floating point only (got {value.dtype})"
    return None


_MOST_PRODUCTS = 2**24  # of integers, laid out at once: 128 MB of int64


def products(count: Size, specs: Iterable[TensorSpec], flavour: Flavour, ranges: Mapping[str, DimRange]) -> str | None:
    """Tensors whose products are added up are of floats, or of integers where each product can be laid out.

    Args:
        count: how many products there are.
    """
    reason = only_floats(**{str(number): spec for number, spec in enumerate(specs)})
    if reason is None or not flavour.has("exact_integers"):
        return reason
    if largest(count, ranges) > _MOST_PRODUCTS:
        return f"sums of more than {_MOST_PRODUCTS} products of integers, which are laid out"
    return None


def shape_of_negative(said: Shape, shape: Shape, argument: str) -> str | None:
    """A result must have the shape that torch says, which for some operators is wrong where a dimension is negative."""
    if said == shape:
        return None
    return f"torch.export takes its shape for {list(said)}: pass {argument} counted from the front"


def wrong_dtype(results: Iterable[TensorSpec], dtype: torch.dtype) -> str | None:
    """Results must have the dtype that eager gives them; some versions of torch trace them with that of an input."""
    said = next((result.dtype for result in results if result.dtype != dtype), None)
    return None if said is None else f"torch {torch.__version__} traces a result as {said}, and it is {dtype}"


def not_of_selections(**arguments: Any) -> str | None:
    """No tensor may have a size that depends on data.

    In an engine with many uses of one selection TensorRT 10.6 gives a float's bits for argmax, and a concatenation is
    wrong.
    """
    for value in arguments.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, TensorSpec) and any(map(depends_on_data, symbols(item.shape))):
                return "TensorRT has given wrong values for it with a size that depends on data"
    return None
