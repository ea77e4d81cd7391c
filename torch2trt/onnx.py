"""ONNX models to engines: ``torch2trt.onnx.compile("model.onnx")``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from torch2trt.engine import builder, digests
from torch2trt.engine.cache import Plan
from torch2trt.engine.cached import cached
from torch2trt.engine.child import build_model_in_child
from torch2trt.engine.key import Key, key_of_model
from torch2trt.errors import ExampleInputError, SettingError
from torch2trt.examples import Calls, Span
from torch2trt.frontend import onnx as frontend
from torch2trt.frontend import onnx_exact
from torch2trt.frontend.dynamic_shapes import with_profiles
from torch2trt.frontend.onnx import OnnxModel, Shapes
from torch2trt.graph.signature import Signature, TensorLeaf, spec_from_json, spec_to_json
from torch2trt.reference.interpreter import Interpreter
from torch2trt.runtime.artifact import Artifact, gpu_here
from torch2trt.runtime.module import EngineModule, Tensors
from torch2trt.settings import Settings
from torch2trt.sizes import Size, TensorSpec, spell, symbol
from torch2trt.tolerance import effective_precision
from torch2trt.trt import flavour as flavours
from torch2trt.trt.dtypes import torch_dtypes
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.parser import ParsedNetwork

__all__ = ["compile"]


def compile(
    model: Any,
    *,
    shapes: Shapes | None = None,
    examples: Iterable[Any] | Calls | None = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    **settings: Any,
) -> EngineModule:
    """Compile an ONNX model into an engine.

    The module takes tensors in the order of the model's inputs, or by their names, and returns its output: a tensor
    where there is one, otherwise a tuple in the model's order.

    Args:
        model: a path, a ``ModelProto``, its bytes, or what ``torch.onnx.export`` returned. It is not changed. One
            with external weights is passed by its path.
        shapes: the sizes of inputs that are dynamic in the model, by input name: one shape makes the input static,
            three are the smallest, the usual and the largest, ``{"x": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8))}``.
            Dimensions that the model calls by one name need be given once.
        examples: in their place, any number of calls, as :func:`torch2trt.compile` takes them, of tensors: they give
            the dimensions that are dynamic in the model their ranges, and optimization profiles. What has one size in
            all of them is static.
        profiles: several optimization profiles, as :func:`torch2trt.compile` takes them. Dimensions have the names that
            the model gives them, as identifiers, and ``x_0`` is the first of an input ``x`` where it gives none.
        name: what to call it; unset: the file's or the graph's name.
        settings: fields of :class:`torch2trt.Settings`. The model's dtypes are its own: ``precision`` only says
            whether float32 may use TF32.

    Raises:
        MissingPackageError: the packages that handle ONNX models are not installed.
        CaptureError: it is no ONNX model, or has inputs that no engine takes.
        DynamicShapeError: shapes or profiles that do not fit the model, or a dynamic dimension without any.
        ExampleInputError: examples that are no calls of one model.
        UnsupportedOpsError: lists every node that TensorRT's parser refuses.
        Torch2TRTError: numbered; the class says what is wrong.
    """
    chosen = Settings.make(**settings)
    flavour = flavours.load(chosen.flavour)
    start = time.perf_counter()
    calls = None if examples is None else Calls.of(examples)
    source = frontend.read(model, _shapes_of(calls) if calls and shapes is None else shapes, name=name)
    chosen = _with_precision(chosen, source)

    def profiled(signature: Signature) -> Signature:
        if calls is not None:
            signature = calls.profiled(signature, narrow=shapes is None)
        return with_profiles(signature, profiles)

    read = time.perf_counter()
    gpu = gpu_here()
    found = cached(
        lambda: _key(source, profiled(_signature(source, [])), flavour, chosen),
        lambda: _build(source, profiled, flavour, chosen),
        name=source.name,
        flavour=flavour,
        gpu=gpu,
        settings=chosen,
    )
    facts, known = found.plan.facts, found.state == "hit"
    outputs = [TensorLeaf(each["name"], spec_from_json(each)) for each in facts["outputs"]]
    signature = profiled(_signature(source, outputs))
    artifact = Artifact(
        name=source.name,
        plan=found.plan.data,
        signature=signature,
        settings=chosen,
        flavour=flavour.name,
        flavour_version=flavour.version_text,
        gpu=gpu,
        report={
            "nodes": source.nodes,
            "layers": facts["layers"],
            "fused_blocks": 0,
            "capture_s": read - start,
            "lower_s": 0.0 if known else facts["lower_s"],
            "build_s": 0.0 if known else facts["build_s"],
            "engine_bytes": len(found.plan.data),
            "cache": found.state,
            "cache_s": found.seconds,
            "profiles": [spell(ranges) for ranges in signature.ranges if ranges],
        },
    )
    return EngineModule(artifact, reference=_Reference(source, flavour), truth=_truth(model, signature))


def _shapes_of(calls: Calls) -> Shapes:
    """The shapes that came, by the position or the name of each input."""
    args, kwargs = calls.spans()
    shapes: dict[str | int, Any] = dict(enumerate(args))
    shapes.update(kwargs)
    for key, shape in shapes.items():
        if not isinstance(shape, Span):
            raise ExampleInputError(
                f"argument {key!r} is {type(shape).__name__}, an ONNX model takes tensors", subject="examples"
            )
    return shapes


def _with_precision(settings: Settings, model: OnnxModel) -> Settings:
    """The settings, with the precision that the model has.

    Raises:
        SettingError: settings that ask for something else.
    """
    own = effective_precision(None, model.dtypes)
    if settings.precision not in (None, own) and {settings.precision, own} != {"fp32", "tf32"}:
        raise SettingError(
            f"is {settings.precision!r}, but the model computes in {own}",
            subject="precision",
            hint="an ONNX model has its dtypes inside: export it from a module in that precision (module.half())",
        )
    return dataclasses.replace(settings, precision=settings.precision or own)


def _key(model: OnnxModel, inputs: Signature, flavour: Flavour, settings: Settings) -> Key:
    """The key of the model as it is parsed: all of it, names too."""
    graph, weights, files = frontend.taken_apart(model)
    named = {name: digests.of_bytes(data) for name, data in weights.items()}
    named |= {str(path): digests.of_file(path) for path in files}
    parts = {"graph": {"model": digests.of_bytes(graph)}, "weights": named}
    return key_of_model(parts, inputs, flavour, settings)


def _build(model: OnnxModel, profiled: Callable[[Signature], Signature], flavour: Flavour, settings: Settings) -> Plan:
    start = time.perf_counter()
    network = ParsedNetwork(flavour, model.data, model.path)
    outputs = _outputs(model, network, flavour)
    signature = profiled(_signature(model, outputs))
    parsed = time.perf_counter()
    if settings.in_child:
        plan = build_model_in_child(model.data, model.path, signature, settings, flavour.name, name=model.name)
    else:
        plan = builder.build(network, signature, settings, name=model.name)
    return Plan(
        plan,
        {
            "layers": network.definition.num_layers,
            "outputs": [{"name": leaf.name, **spec_to_json(leaf.spec)} for leaf in outputs],
            "lower_s": parsed - start,
            "build_s": time.perf_counter() - parsed,
        },
    )


def _outputs(model: OnnxModel, network: ParsedNetwork, flavour: Flavour) -> list[TensorLeaf]:
    """The model's outputs in its order, with the dtypes that the network has."""
    dtypes = torch_dtypes(flavour)
    outputs: list[TensorLeaf] = []
    for index in range(network.definition.num_outputs):
        tensor = network.definition.get_output(index)
        declared = model.outputs[tensor.name]
        sizes: list[Size] = []
        for axis, size in enumerate(tensor.shape):
            known = declared[axis] if axis < len(declared) else None
            sizes.append(size if size >= 0 else symbol(f"_{index}_{axis}") if known is None else known)
        outputs.append(TensorLeaf(tensor.name, TensorSpec(tuple(sizes), dtypes[tensor.dtype])))
    order = list(model.outputs)
    return sorted(outputs, key=lambda leaf: order.index(leaf.name))


def _signature(model: OnnxModel, outputs: Sequence[TensorLeaf]) -> Signature:
    """How the engine is called."""
    return Signature(
        inputs=model.inputs,
        outputs=tuple(outputs),
        in_spec=pytree.tree_structure(((0,) * len(model.inputs), {})),
        out_spec=pytree.tree_structure(0 if len(outputs) == 1 else (0,) * len(outputs)),
        dims=model.dims,
        parameters=tuple(leaf.name for leaf in model.inputs),
    )


class _Reference:
    """Runs the network in the reference interpreter; it is parsed again when that is first asked for."""

    def __init__(self, model: OnnxModel, flavour: Flavour) -> None:
        self._model = model
        self._flavour = flavour
        self._parsed: tuple[ParsedNetwork, Interpreter] | None = None

    def __call__(self, inputs: Tensors) -> Tensors:
        if self._parsed is None:
            network = ParsedNetwork(self._flavour, self._model.data, self._model.path)
            self._parsed = network, Interpreter(self._flavour, network.definition)
        return self._parsed[1].run(inputs)


def _truth(model: Any, signature: Signature) -> Callable[..., Any]:
    """A function from a call's arguments to what the model itself gives in float64, outside TensorRT."""
    names = [leaf.name for leaf in signature.tensor_outputs]

    def truth(*args: Any, **kwargs: Any) -> Any:
        tensors = signature.flatten(args, kwargs)
        inputs = {leaf.name: value for leaf, value in zip(signature.tensor_inputs, tensors, strict=True)}
        return pytree.tree_unflatten(onnx_exact.evaluate(model, inputs, names), signature.out_spec)

    return truth
