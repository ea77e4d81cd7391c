"""ONNX models: read, sanitised, and given sizes, ready for TensorRT's parser."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy
import torch

from torch2trt.errors import CaptureError, DynamicShapeError, MissingPackageError
from torch2trt.graph.signature import TensorLeaf
from torch2trt.sizes import DimRange, Size, TensorSpec, size_from_json, symbol

log = logging.getLogger(__name__)

Shapes = Mapping[str | int, Sequence[int] | Sequence[Sequence[int]]]
"""By the name or the position of an input: one shape, or the smallest, the usual and the largest."""

_PACKAGES = ("onnx", "onnx_graphsurgeon")
# A model in one piece is at most this large; a larger one keeps its weights in files beside it.
_LARGEST = (1 << 31) - 1
_DTYPES = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class OnnxModel:
    """A sanitised model with the sizes that an engine is to take."""

    name: str
    data: bytes
    """The serialized ``ModelProto``, without external weights."""
    path: Path | None
    """The file that it comes from; external weights are found beside it."""
    inputs: tuple[TensorLeaf, ...]
    dims: Mapping[str, DimRange]
    outputs: Mapping[str, tuple[Size | None, ...]]
    """The outputs' declared sizes in terms of ``dims``, None where there is no telling; by name, in order."""
    nodes: int
    dtypes: frozenset[torch.dtype]
    """What inputs and weights are made of."""


def read(model: Any, shapes: Shapes | None = None, *, name: str | None = None) -> OnnxModel:
    """Read a model, remove what nothing needs, fold constants, and settle the sizes of its inputs.

    Args:
        model: a path, a ``ModelProto``, its bytes, or a ``torch.onnx.ONNXProgram``. It is not changed.
        shapes: the sizes of inputs that are dynamic in the model. One shape makes an input static.
        name: what to call it; unset: the file's or the graph's name.

    Raises:
        MissingPackageError: the packages that handle ONNX models are not installed.
        CaptureError: it is no ONNX model, or an input has a dtype that TensorRT has not.
        DynamicShapeError: shapes that do not fit the model, or a dynamic dimension without any.
        OSError: the file cannot be opened.
    """
    _require_packages()
    import onnx_graphsurgeon

    proto, path = load(model)
    graph = onnx_graphsurgeon.import_onnx(proto)
    inputs, dims = _settle(graph, proto, shapes or {})
    graph.cleanup().toposort()
    sanitized = _fold(onnx_graphsurgeon.export_onnx(graph), path)
    return OnnxModel(
        name=name or (path.stem if path else "") or proto.graph.name or "onnx model",
        data=sanitized.SerializeToString(),
        path=path,
        inputs=inputs,
        dims=dims,
        outputs={value.name: tuple(_declared(size, dims) for size in value.shape or ()) for value in graph.outputs},
        nodes=len(proto.graph.node),
        dtypes=frozenset(leaf.spec.dtype for leaf in inputs) | _weight_dtypes(proto),
    )


def load(model: Any) -> tuple[Any, Path | None]:
    """A model as a ``ModelProto``, whose external weights are left in their files, and the file it comes from.

    Raises:
        CaptureError: it is no ONNX model.
        OSError: the file cannot be opened.
    """
    import google.protobuf.message
    import onnx

    model = getattr(model, "model_proto", model)
    if isinstance(model, onnx.ModelProto):
        return model, None
    path = None if isinstance(model, bytes) else Path(model).absolute()
    data = model if path is None else path.read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
    except google.protobuf.message.DecodeError as error:
        raise CaptureError(f"is no ONNX model: {error}", subject=str(path or "model")) from error
    if not proto.graph.node:
        raise CaptureError("is no ONNX model: it has no nodes", subject=str(path or "model"))
    return proto, path


def taken_apart(model: OnnxModel) -> tuple[bytes, dict[str, bytes], list[Path]]:
    """A model without its weights, its weights by name, and the files in which it keeps weights; serialized all."""
    import onnx

    proto = onnx.load_model_from_string(model.data)
    files = sorted(_external_files(proto, model.path))
    weights = {weight.name: weight.SerializeToString() for weight in proto.graph.initializer}
    del proto.graph.initializer[:]
    return proto.SerializeToString(), weights, files


def _require_packages() -> None:
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingPackageError(
            "not installed, and ONNX models need it", subject=", ".join(missing), hint="pip install 'torch2trt[onnx]'"
        )


# Sizes ----------------------------------------------------------------------------------------------------------------


def _settle(graph: Any, proto: Any, shapes: Shapes) -> tuple[tuple[TensorLeaf, ...], dict[str, DimRange]]:
    """Give every dimension of every input a size or a named range; static ones are written into the graph."""
    names = [value.name for value in graph.inputs]
    shapes = {names[key] if isinstance(key, int) and key < len(names) else key: shape for key, shape in shapes.items()}
    if unknown := [str(key) for key in shapes if key not in names]:
        raise DynamicShapeError(
            f"the model has no such input; it has {', '.join(names)}", subject=", ".join(sorted(unknown))
        )
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    corners = {value.name: _corners(value, shapes[value.name]) for value in graph.inputs if value.name in shapes}
    spans: dict[str, DimRange] = {}
    for value in graph.inputs:
        for axis, span in enumerate(corners.get(value.name, ())):
            declared = value.shape[axis] if value.shape is not None else None
            if isinstance(declared, int) and declared >= 0:
                if span != DimRange(declared, declared, declared):
                    raise DynamicShapeError(
                        f"axis {axis} is {declared} in the model, shapes has {span.min} to {span.max}",
                        subject=value.name,
                    )
            elif spans.setdefault(_symbol_name(value.name, axis, declared), span) != span:
                raise DynamicShapeError(
                    f"axis {axis} is {declared!r}, which has another range elsewhere in shapes", subject=value.name
                )
    leaves: list[TensorLeaf] = []
    for value in graph.inputs:
        if value.shape is None and value.name not in corners:
            raise DynamicShapeError("the model does not say its rank", subject=value.name, hint=_hint(value))
        declared_shape = value.shape if value.shape is not None else [None] * len(corners[value.name])
        sizes = [_size(value, axis, declared, spans) for axis, declared in enumerate(declared_shape)]
        value.shape = [size if isinstance(size, int) else str(size) for size in sizes]
        leaves.append(TensorLeaf(value.name, TensorSpec(tuple(sizes), _dtype(value.name, types[value.name]))))
    return tuple(leaves), {name: span for name, span in spans.items() if span.min < span.max}


def _corners(value: Any, shape: Any) -> list[DimRange]:
    """The range of each dimension that the caller's shape, or shapes, give."""
    triple = list(shape) if shape and not isinstance(shape[0], int) else [shape] * 3
    rank = len(value.shape) if value.shape is not None else len(triple[0])
    if len(triple) != 3 or any(len(corner) != rank for corner in triple):
        raise DynamicShapeError(
            f"takes one shape, or the smallest, the usual and the largest, of {rank} dimension(s); got {shape}",
            subject=value.name,
            hint=_hint(value),
        )
    spans = [DimRange(int(low), int(opt), int(high)) for low, opt, high in zip(*triple, strict=True)]
    for axis, span in enumerate(spans):
        if not 0 <= span.min <= span.opt <= span.max:
            raise DynamicShapeError(f"axis {axis}: {span.min} ≤ {span.opt} ≤ {span.max} is false", subject=value.name)
    return spans


def _size(value: Any, axis: int, declared: Any, spans: Mapping[str, DimRange]) -> Size:
    if isinstance(declared, int) and declared >= 0:
        return declared
    name = _symbol_name(value.name, axis, declared)
    if name not in spans:
        raise DynamicShapeError(
            f"axis {axis} ({declared or 'unnamed'}) is dynamic in the model and has no range",
            subject=value.name,
            hint=_hint(value),
        )
    span = spans[name]
    return span.min if span.min == span.max else symbol(name)


def _hint(value: Any) -> str:
    shape = value.shape if value.shape is not None else ["?"]
    low, opt, high = (
        tuple(size if isinstance(size, int) and size >= 0 else free for size in shape) for free in (1, 8, 32)
    )
    return f"pass, for example, shapes={{{value.name!r}: ({low}, {opt}, {high})}}: smallest, usual, largest"


def _symbol_name(input_name: str, axis: int, declared: Any) -> str:
    """The name of a dimension: the model's own, where it has one, as an identifier."""
    text = declared if isinstance(declared, str) and declared else f"{input_name}_{axis}"
    identifier = re.sub(r"\W", "_", text, flags=re.ASCII)
    return identifier if not identifier[0].isdigit() else f"_{identifier}"


def _declared(size: Any, dims: Mapping[str, DimRange]) -> Size | None:
    """An output's size as the model spells it (``batch``, ``2*batch``), where it is one of the ranges'."""
    if isinstance(size, int):
        return size if size >= 0 else None
    try:
        parsed = size_from_json(size)
    except (SyntaxError, TypeError, ValueError):
        return None
    if isinstance(parsed, sympy.Expr) and {str(part) for part in parsed.free_symbols} <= dims.keys():
        return parsed
    return None


# Values ---------------------------------------------------------------------------------------------------------------


def _dtype(name: str, number: int) -> torch.dtype:
    import onnx

    kind = onnx.TensorProto.DataType.Name(number)
    if kind not in _DTYPES:
        raise CaptureError(f"is {kind}, which TensorRT has not", subject=name, hint="convert the model first")
    return _DTYPES[kind]


def _weight_dtypes(proto: Any) -> frozenset[torch.dtype]:
    import onnx

    kinds = {onnx.TensorProto.DataType.Name(weight.data_type) for weight in proto.graph.initializer}
    return frozenset(_DTYPES[kind] for kind in kinds if kind in _DTYPES)


def _fold(proto: Any, path: Path | None) -> Any:
    """Evaluate what depends on constants alone, where the packages for that are installed."""
    missing = [package for package in ("onnxruntime", "polygraphy") if importlib.util.find_spec(package) is None]
    if missing:
        log.info("constants are not folded beforehand: that takes %s, not installed", " and ".join(missing))
        return proto
    import onnx
    from polygraphy.backend.onnx import fold_constants
    from polygraphy.logger import G_LOGGER

    external = sum(path.stat().st_size for path in _external_files(proto, path))
    if proto.ByteSize() + external > _LARGEST:
        log.info("constants are not folded beforehand: the model is larger than 2 GB")
        return proto
    if external:
        assert path is not None
        onnx.load_external_data_for_model(proto, os.fspath(path.parent))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return fold_constants(proto, allow_onnxruntime_shape_inference=False)


def _external_files(proto: Any, path: Path | None) -> set[Path]:
    import onnx

    names = {
        entry.value
        for tensor in _tensors(proto.graph)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {(path.parent if path else Path()) / name for name in names}


def _tensors(graph: Any) -> Iterator[Any]:
    """The weights of a graph and of those inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _tensors(inner)
