"""The road from a module to an engine, and back from a file: compile, load, export."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.graph.exact import Exact, widened
from torch2trt.graph.program import Program
from torch2trt.runtime import artifact as artifacts
from torch2trt.runtime.artifact import Artifact, StrPath
from torch2trt.runtime.module import EngineModule, Tensors
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour


def compile(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str | None = None,
    **settings: Any,
) -> EngineModule:
    """Compile a module into an engine that is called like it.

    Args:
        module: in evaluation mode, on the device where it is to run.
        args, kwargs: example inputs; where a dimension is dynamic, their size is the one to tune for.
        dynamic_shapes: as ``torch.export.export`` takes it: a ``torch.export.Dim`` with min and max for each dynamic
            dimension.
        name: what to call it; unset: the module's class.
        settings: fields of :class:`torch2trt.Settings`.

    Returns:
        A module with the same signature and the same structure of results.

    Raises:
        Torch2TRTError: numbered; the class says what is wrong.
    """
    chosen = Settings.make(**settings)
    flavour = flavours.load(chosen.flavour)
    start = time.perf_counter()
    program = optimize(capture(module, args, kwargs, dynamic_shapes=dynamic_shapes, name=name), chosen)
    capture_s = time.perf_counter() - start
    return build(program, flavour, chosen, truth=truth_of(module), report={"capture_s": capture_s})


def load(path: StrPath | bytes, *, device: torch.device | str | None = None) -> EngineModule:
    """The module that :meth:`EngineModule.save` wrote; the engine is deserialised at the first call.

    Args:
        path: the file, or its bytes.
        device: the CUDA device to run on; unset: the one that is current at the first call.

    Raises:
        ArtifactError: it is no artifact, truncated, corrupt, or of another format version.
        OSError: the file cannot be opened.
    """
    return EngineModule.load(path, interpret=interpret, device=device)


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
        options: further keywords of :func:`compile`.

    Raises:
        ArtifactWriteError: the files could not be written whole; neither is left behind.
    """
    compiled = compile(module, args, kwargs, **options)
    artifacts.export_plan(compiled.artifact, path)
    return compiled


# The stages -----------------------------------------------------------------------------------------------------------


def capture(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Program:
    """Capture a module as a Program of the operators that have converters."""
    from torch2trt.converters import registry
    from torch2trt.frontend import export as frontend
    from torch2trt.passes.pipeline import REWRITTEN

    def keep(target: Any) -> bool:
        return target in REWRITTEN or registry.has_converter(target)

    return frontend.capture(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, keep=keep, name=name)


def optimize(program: Program, settings: Settings) -> Program:
    """Bring a captured Program into the form that is lowered; it is changed in place, and returned."""
    from torch2trt.passes.pipeline import run_passes

    return run_passes(program, settings)


def build(
    program: Program,
    flavour: Flavour,
    settings: Settings,
    *,
    truth: Callable[..., Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> EngineModule:
    """Lower an optimised Program, build its engine and wrap it as a module.

    Args:
        truth: see :class:`EngineModule`.
        report: what to add to the module's report.
    """
    from torch2trt.converters.lower import lower
    from torch2trt.engine import builder
    from torch2trt.engine.memory import give_back
    from torch2trt.graph.ops import FUSED_BLOCKS

    start = time.perf_counter()
    network = lower(program, flavour)
    lowered, layers = time.perf_counter(), network.definition.num_layers
    if settings.in_child:
        from torch2trt.engine.child import build_in_child

        network.release()
        plan = build_in_child(program, settings, flavour.name, name=program.name)
    else:
        plan = builder.build(network, program.signature, settings, name=program.name)
        network.release()
    give_back()
    artifact = Artifact(
        name=program.name,
        plan=plan,
        signature=program.signature,
        settings=settings,
        flavour=flavour.name,
        flavour_version=flavour.version_text,
        gpu=artifacts.gpu_here(),
        report={
            "nodes": program.captured_nodes,
            "calls": len(program.calls),
            "layers": layers,
            "fused_blocks": sum(node.target in FUSED_BLOCKS for node in program.calls),
            "lower_s": lowered - start,
            "build_s": time.perf_counter() - lowered,
            "engine_bytes": len(plan),
            "weight_bytes": program.weights.source_bytes,
            **(report or {}),
        },
    )
    return EngineModule(artifact, program=program, interpret=interpret, truth=truth)


def interpret(program: Program, flavour_name: str) -> Callable[[Tensors], Tensors]:
    """Lower a Program and hand it to the reference interpreter: a function from inputs to outputs by name."""
    from torch2trt.converters.lower import lower
    from torch2trt.reference.interpreter import Interpreter

    flavour = flavours.load(flavour_name)
    network = lower(program, flavour)
    interpreter = Interpreter(flavour, network.definition, network.constants)

    def run(inputs: Tensors) -> Tensors:
        # The network, whose builder and weights the interpreter reads, lives as long as this function.
        assert network.definition is not None
        return interpreter.run(inputs)

    return run


def truth_of(module: nn.Module) -> Callable[..., Any]:
    """A function from a call's arguments to the module's result in float64, with the weights as they are now."""

    def truth(*args: Any, **kwargs: Any) -> Any:
        exact = copy.deepcopy(module).cpu()._apply(widened)
        moved = pytree.tree_map_only(torch.Tensor, lambda tensor: widened(tensor.detach().cpu()), (args, kwargs))
        with torch.no_grad(), Exact():  # type: ignore[no-untyped-call]
            return exact(*moved[0], **moved[1])

    return truth
