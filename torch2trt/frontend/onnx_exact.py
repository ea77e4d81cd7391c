"""An ONNX model in float64, run by onnx's own evaluator: what an engine made of it is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torch2trt.frontend.onnx import load
from torch2trt.graph.exact import widened

_DTYPES = ("to", "dtype")
"""Attributes of operators that name a dtype."""


def evaluate(model: Any, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> list[torch.Tensor]:
    """Run a model on the CPU, its weights and all that it computes in float64, casts to other floats included.

    Args:
        model: as :func:`torch2trt.frontend.onnx.load` takes it; it is not changed.
        inputs: by name, floats of any dtype.
        outputs: their names.

    Returns:
        The outputs in order; floats as float64.

    Raises:
        NotImplementedError: the model has an operator that ONNX does not define.
    """
    import onnx
    import onnx.reference

    proto, path = load(model)
    exact = onnx.ModelProto()
    exact.CopyFrom(proto)
    if path is not None:
        onnx.load_external_data_for_model(exact, os.fspath(path.parent))
    _widen_graph(exact.graph)
    for function in exact.functions:
        _widen_nodes(function.node)
    given = {name: widened(value.detach().cpu()).numpy() for name, value in inputs.items()}
    found = onnx.reference.ReferenceEvaluator(exact).run(list(outputs), given)
    return [torch.as_tensor(value) for value in found]


def _widen_graph(graph: Any) -> None:
    for weight in graph.initializer:
        _widen_tensor(weight)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        kind.elem_type = _widen_dtype(kind.elem_type)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[Any]) -> None:
    import onnx

    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            elif attribute.name in _DTYPES:
                attribute.i = _widen_dtype(attribute.i)


def _widen_tensor(tensor: Any) -> None:
    from onnx import numpy_helper

    if _widen_dtype(tensor.data_type) != tensor.data_type:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float64"), tensor.name))


def _widen_dtype(dtype: int) -> int:
    from onnx import TensorProto

    narrow = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return TensorProto.DOUBLE if dtype in narrow else dtype
