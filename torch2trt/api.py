"""The road from a module to an engine, and back from a file: compile, load, export."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
from torch import nn

from torch2trt.engine.memory import without_collections
from torch2trt.errors import CaptureError, ExampleInputError, NetworkError
from torch2trt.graph.exact import Truth
from torch2trt.graph.program import Program
from torch2trt.runtime.artifact import Artifact, TorchPart
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.runtime.files import StrPath
from torch2trt.runtime.module import EngineModule, Tensors
from torch2trt.settings import Settings
from torch2trt.sizes import spell
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

if TYPE_CHECKING:
    from torch2trt.engine.key import Key
    from torch2trt.examples import Calls
    from torch2trt.partition.explain import Explanation
    from torch2trt.partition.partitioner import Partition
    from torch2trt.pieces import PiecewiseModule

log = logging.getLogger(__name__)

_Engine = TypeVar("_Engine")
_InTorch = TypeVar("_InTorch")


@overload
def compile(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    fallback: Literal[False],
    **settings: Any,
) -> EngineModule: ...


@overload
def compile(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    fallback: bool | None = None,
    **settings: Any,
) -> EngineModule | PiecewiseModule: ...


def compile(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    fallback: bool | None = None,
    **settings: Any,
) -> EngineModule | PiecewiseModule:
    """Compile a module into an engine that is called like it.

    Args:
        module: in evaluation mode, on the device where it is to run.
        args, kwargs: example inputs; where a dimension is dynamic, their size is the one to tune for.
        examples: in their place, any number of calls, such as a data loader or what :func:`torch2trt.record` yields:
            each a tuple of arguments, a dict of keywords, or one tensor. The dimensions that differ are dynamic. Up to
            four combinations of sizes have an optimization profile each, and one more holds the sizes in between; for
            more combinations there is that one alone, tuned for the most frequent.
        dynamic_shapes: as ``torch.export.export`` takes it: a ``torch.export.Dim`` with min and max for each dynamic
            dimension.
        profiles: several optimization profiles in place of one, as ``[{"batch": 1}, {"batch": (2, 16, 64)}]``: for
            dimensions by name one size, or the smallest, the usual and the largest; those left out have their whole
            range. A call runs in the profile with the nearest usual sizes, of those that hold it.
        name: what to call it; unset: the module's class.
        fallback: let torch run what TensorRT cannot do (unset, it does), in place of an error that lists it.
        settings: further fields of :class:`torch2trt.Settings`; ``settings=`` itself is a file of them, such as
            :func:`torch2trt.tune` saves, a mapping, or a ``Settings``, over which the others win.

    Returns:
        A module with the same signature and the same structure of results; where ``torch.export`` cannot capture it
        whole, a :class:`torch2trt.pieces.PiecewiseModule`.

    Raises:
        Torch2TRTError: numbered; the class says what is wrong.
    """
    chosen = Settings.make(**settings if fallback is None else {**settings, "fallback": fallback})
    flavour = flavours.load(chosen.flavour)
    start, truth = time.perf_counter(), truth_of(module)
    args, kwargs, calls = first_call(module, args, kwargs, examples)
    try:
        with without_collections():
            captured = capture(
                module, args, kwargs, calls=calls, dynamic_shapes=dynamic_shapes, profiles=profiles, name=name
            )
            program = optimize(captured, chosen, flavour)
    except CaptureError as error:
        if not chosen.fallback:
            raise
        from torch2trt.pieces import compile_in_pieces

        return compile_in_pieces(
            *(module, args, kwargs or {}, chosen, truth),
            recorded=calls,
            dynamic_shapes=dynamic_shapes,
            profiles=profiles,
            name=name or type(module).__name__,
            reason=error,
        )
    capture_s = time.perf_counter() - start
    return build(program, flavour, chosen, truth=truth, report={"capture_s": capture_s})


@overload
def load(
    path: StrPath | bytes,
    *,
    module: None = None,
    device: torch.device | str | None = None,
    namespaces: Collection[str] = (),
) -> EngineModule: ...


@overload
def load(path: StrPath | bytes, *, module: nn.Module, namespaces: Collection[str] = ()) -> PiecewiseModule: ...


def load(
    path: StrPath | bytes,
    *,
    module: nn.Module | None = None,
    device: torch.device | str | None = None,
    namespaces: Collection[str] = (),
) -> EngineModule | PiecewiseModule:
    """The module that ``.save`` wrote; an engine is deserialised at its first call.

    Args:
        path: the file, or its bytes.
        module: for a file of a module in pieces, the module that was compiled: in evaluation mode, with the weights it
            had then, on the device where it is to run. What is not in the file is built when it is first called.
        device: the CUDA device to run on; unset: the one that is current at the first call.
        namespaces: of your own operators that the file may name (``mylib`` of ``torch.ops.mylib``), which are trusted.

    Raises:
        ArtifactError: it is no artifact, truncated, corrupt, of another format version, or needs a ``module``, or none.
        ExampleInputError: ``module`` is no module, or comes with a ``device``.
        OSError: the file cannot be opened.
    """
    if module is not None:
        from torch2trt import pieces

        if device is not None:
            raise ExampleInputError("is where the module is", subject="device", hint="move the module there instead")
        return pieces.load(path, module, namespaces=namespaces)
    return EngineModule.load(path, interpret=interpret, device=device, namespaces=namespaces)


def export(
    module: nn.Module,
    args: tuple[Any, ...],
    path: StrPath,
    kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> EngineModule:
    """Compile a module and write the bare plan, with a JSON beside it, for trtexec, Triton and DeepStream.

    Args:
        module, args, kwargs: as :func:`compile` takes them.
        path: the file to write; its description goes to ``<path>.json``.
        options: further keywords of :func:`compile` (with ``examples``, ``args`` is empty), except ``fallback``: a plan
            holds nothing that runs in torch. Of its own accord it calls no operator of torch either: the passes
            that make plugins are left out.

    Raises:
        ArtifactWriteError: the files could not be written whole; neither is left behind. Or the plan calls operators of
            torch, which none of these has.
    """
    from torch2trt.passes.pipeline import plugging_by_default

    given = Settings.make(**{name: options[name] for name in ("settings", "skip_passes") if name in options})
    options["skip_passes"] = [*given.skip_passes, *plugging_by_default()]
    compiled: EngineModule = compile(module, args, kwargs, fallback=False, **options)
    export_plan(compiled.artifact, path)
    return compiled


def explain(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    **settings: Any,
) -> Explanation:
    """Say which calls of a module would run in an engine, which in torch, and why; nothing is built.

    Args:
        module, args, kwargs, examples, dynamic_shapes, profiles, name, settings: as :func:`compile` takes them. Of a
            module in pieces, those that ``examples`` need are all explained.

    Returns:
        A table when printed or shown in a notebook; ``to_json()`` and ``to_html()``.

    Raises:
        Torch2TRTError: the module cannot be captured, or does not take the profiles.
    """
    from torch2trt.partition.explain import explain as explained

    chosen = Settings.make(**settings)
    flavour = flavours.load(chosen.flavour)
    args, kwargs, calls = first_call(module, args, kwargs, examples)
    try:
        captured = capture(
            module, args, kwargs, calls=calls, dynamic_shapes=dynamic_shapes, profiles=profiles, name=name
        )
    except CaptureError as error:
        if not chosen.fallback:
            raise
        from torch2trt.pieces import explain_breaks

        return explain_breaks(
            *(module, args, kwargs or {}, flavour, chosen),
            recorded=calls,
            dynamic_shapes=dynamic_shapes,
            profiles=profiles,
            name=name or type(module).__name__,
            reason=error,
        )
    return explained(optimize(captured, chosen, flavour), flavour, chosen)


# The stages -----------------------------------------------------------------------------------------------------------


@without_collections()
def capture(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    calls: Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
) -> Program:
    """Capture a module as a Program of the operators that have converters.

    Args:
        module, args, kwargs, dynamic_shapes, profiles, name: as :func:`compile` takes them.
        calls: of which the arguments are the first.
    """
    from torch2trt.frontend import dynamic_shapes as shapes
    from torch2trt.frontend import export as frontend

    def captured(dynamic_shapes: Any) -> Program:
        own = dict(kwargs or {})
        return frontend.capture(module, args, own, dynamic_shapes=dynamic_shapes, keep=_keep, name=name)

    program = captured(dynamic_shapes) if calls is None else calls.capture(module, captured, dynamic_shapes)
    program.signature = shapes.with_profiles(program.signature, profiles)
    return program


def first_call(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, examples: Iterable[Any] | Calls | None
) -> tuple[tuple[Any, ...], Mapping[str, Any] | None, Calls | None]:
    """The arguments to capture a module with, and all calls where there are examples, of which they are the first.

    Raises:
        ExampleInputError: both are given, or the examples are no calls of one module.
    """
    if examples is None:
        return args, kwargs, None
    from torch2trt.examples import Calls

    if args or kwargs:
        raise ExampleInputError(
            "stand in place of args and kwargs", subject="examples", hint="add them to the examples"
        )
    calls = Calls.of(examples)
    return *calls.example(module), calls


@without_collections()
def optimize(program: Program, settings: Settings, flavour: Flavour | None = None) -> Program:
    """Bring a captured Program into the form that is lowered; it is changed in place, and returned.

    Args:
        flavour: what it is for; None: any, so that nothing is left to plugins.
    """
    from torch2trt.passes.pipeline import run_passes

    plugins = flavour is not None and flavour.has("plugins")
    return run_passes(program, settings, keep=_in_any_precision, plugins=plugins)


def _keep(target: Any) -> bool:
    """Whether an operator can be converted, perhaps after the passes have rewritten it."""
    from torch2trt.converters import registry
    from torch2trt.passes.pipeline import REWRITTEN

    return target in REWRITTEN or registry.has_converter(target)


def _in_any_precision(target: Any) -> bool:
    """Whether an operator can be converted, and computes in the precision of the model."""
    from torch2trt.converters import registry

    found = registry.find(target)
    return _keep(target) and not (found is not None and found.float32)


def build(
    program: Program,
    flavour: Flavour,
    settings: Settings,
    *,
    truth: Callable[..., Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> EngineModule:
    """Lower an optimised Program, build its engine, or engines with torch between them, and wrap all of it as a module.

    Args:
        truth: see :class:`EngineModule`.
        report: what to add to the module's report.
    """
    from torch2trt.engine.cached import joint_state
    from torch2trt.graph.ops import FUSED_BLOCKS
    from torch2trt.partition.engines import engine_of
    from torch2trt.partition.split import value_of_outputs

    parted, found = _parts(
        program, flavour, settings, lambda each: engine_of(each, flavour, settings), lambda each: TorchPart(each)
    )
    whole = next(part for part in found if isinstance(part, Artifact))
    parts: tuple[Artifact | TorchPart, ...] = ()
    results: dict[str, str] = {}
    if not parted.is_whole:
        parts, results = tuple(found), value_of_outputs(program)
        whole = dataclasses.replace(whole, plan=b"", calls=())
        log.warning(
            "%s: %d of %d calls run in torch, torch2trt.explain says why: %s",
            *(program.name, len(parted.reasons), len(program.calls), ", ".join(parted.operators_in_torch)),
        )
    engines = [part for part in parts if isinstance(part, Artifact)] or [whole]
    artifact = dataclasses.replace(
        whole,
        name=program.name,
        signature=program.signature,
        state=program.state,
        parts=parts,
        results=results,
        report={
            "nodes": program.captured_nodes,
            "calls": len(program.calls),
            "layers": sum(part.report["layers"] for part in engines),
            "fused_blocks": sum(node.target in FUSED_BLOCKS for node in program.calls),
            "engines": len(engines),
            "calls_in_torch": len(parted.reasons),
            "halves": program.halves,
            "lower_s": sum(part.report["lower_s"] for part in engines),
            "build_s": sum(part.report["build_s"] for part in engines),
            "cache": joint_state(part.report["cache"] for part in engines),
            "cache_s": sum(part.report["cache_s"] for part in engines),
            "engine_bytes": sum(len(part.plan) for part in engines),
            "weight_bytes": program.weights.source_bytes,
            "profiles": [spell(ranges) for ranges in program.signature.ranges if ranges],
            **(report or {}),
        },
    )
    return EngineModule(artifact, program=program, interpret=interpret, truth=truth)


def engine_keys(program: Program, flavour: Flavour, settings: Settings) -> list[tuple[str, Key]]:
    """The names of the engines that :func:`build` would make of a Program, and their keys in the engine cache.

    What TensorRT refuses only when it is asked is not known here.

    Raises:
        NoKeyError: an engine that is never cached, and why.
    """
    from torch2trt.partition.engines import key_of

    _, found = _parts(
        program, flavour, settings, lambda each: (each.name, key_of(each, flavour, settings)), lambda each: None
    )
    return [each for each in found if each is not None]


def interpret(program: Program, flavour_name: str, settings: Settings) -> Callable[[Tensors], Tensors]:
    """Hand a Program to the reference interpreter, what runs in torch to torch: from inputs to outputs by name."""
    from torch2trt.partition.split import value_of_outputs
    from torch2trt.runtime.hybrid import Chain, in_torch

    flavour = flavours.load(flavour_name)
    parted, steps = _parts(
        program,
        flavour,
        settings,
        lambda each: (each.signature, _interpreted(each, flavour)),
        lambda each: (each.signature, in_torch(each, torch.device("cpu"))),
    )
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    results = dict(zip(program.output_names, program.output_names, strict=True))
    chain = Chain(steps, names, list((results if parted.is_whole else value_of_outputs(program)).values()))

    def run(inputs: Tensors) -> Tensors:
        return dict(zip(results, chain([inputs[name] for name in names]), strict=True))

    return run


def _parts(
    program: Program,
    flavour: Flavour,
    settings: Settings,
    engine: Callable[[Program], _Engine],
    in_torch: Callable[[Program], _InTorch],
) -> tuple[Partition, list[_Engine | _InTorch]]:
    """Partition a Program and make something of each segment; what TensorRT refuses on the way goes to torch."""
    from torch2trt.partition.partitioner import partition
    from torch2trt.partition.split import split

    refused: dict[str, str] = {}
    while True:
        parted = partition(program, flavour, settings, refused)
        try:
            if parted.is_whole:
                return parted, [engine(program)]
            segments = split(program, parted)
            return parted, [(engine if each.is_engine else in_torch)(each.program) for each in segments]
        except NetworkError as error:
            names = {node.name for node in program.calls} - refused.keys()
            if not settings.fallback or error.subject not in names:
                raise
            refused[error.subject] = f"TensorRT refuses it: {error.reason}"


def _interpreted(program: Program, flavour: Flavour) -> Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]:
    """Lower a Program and hand it to the reference interpreter: from its inputs to its outputs, in order."""
    from torch2trt.converters.lower import lower
    from torch2trt.reference.interpreter import Interpreter

    network = lower(program, flavour)
    interpreter = Interpreter(flavour, network.definition, network.constants)
    reads = program.signature.tensor_inputs
    writes = {leaf.name: leaf for leaf in program.signature.tensor_outputs}

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        # The network, whose builder and weights the interpreter reads, lives as long as this function.
        assert network.definition is not None
        outputs = interpreter.run({leaf.name: leaf.store(value) for leaf, value in zip(reads, inputs, strict=True)})
        return [writes[name].show(outputs[name].contiguous()) for name in program.output_names]

    return run


def truth_of(module: nn.Module) -> Truth:
    """A function from a call's arguments to the module's result in float64, with the weights as they are now."""
    return Truth(module)
