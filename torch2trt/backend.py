"""The backend of ``torch.compile``: ``torch.compile(model, backend="torch2trt", options={"precision": "fp16"})``.

It is for inference, under ``torch.no_grad()`` or ``torch.inference_mode()``. What Dynamo captures becomes engines, with
the weights inside; the first call builds them. Sizes that differ from call to call are a range of one engine where
``torch._dynamo.mark_dynamic(x, 0, min=2, max=64)`` gives them one, and otherwise each size has an engine of its own.

Weights that are
changed later lead to another engine, unless they are changed in place through ``.data``, which torch does not record:
call ``torch._dynamo.reset()`` then.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import fx

from torch2trt import api
from torch2trt.errors import (
    BuildError,
    CaptureError,
    DynamicShapeError,
    ExampleInputError,
    InputShapeError,
    NetworkError,
    RandomOpError,
    TooSmallError,
    Torch2TRTError,
    UnsupportedOpsError,
    WeightError,
)
from torch2trt.frontend.dynamo import Region
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.graph.program import Program
from torch2trt.partition.partitioner import check_worth
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

log = logging.getLogger(__name__)

_NAME = "torch2trt"

# What one region cannot be compiled for; settings and the environment are the same for all.
REFUSALS = (
    *(CaptureError, DynamicShapeError, ExampleInputError, RandomOpError, WeightError),
    *(UnsupportedOpsError, NetworkError, BuildError, TooSmallError),
)

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""A call's arguments to its results."""

Build = Callable[[], EngineModule]
Find = Callable[[Region, Sequence[Any], Build], EngineModule]
"""A region, a call's arguments and how to build an engine for it, to one that was there before, or is built now."""


def backend(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    name: str | None = None,
    find: Find = lambda region, args, build: build(),
    is_piece: bool = False,
    dynamic: DynamicInputs | None = None,
    **unknown: Any,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo's.

    Nothing is built before the first call, so that errors reach the caller as they are: what a backend raises Dynamo
    wraps in an error of its own.

    Args:
        graph: torch functions, with the weights among its arguments.
        example_inputs: looked at for the marks of sizes that have names.
        options: fields of :class:`torch2trt.Settings`.
        name: what to call the engines.
        find: where engines come from; it may raise why a graph is left to eager.
        is_piece: of a module, of which other pieces are compiled too: what is not worth an engine is left to eager.
        dynamic: names of sizes, which the tensors of a call may tell of theirs.
    """
    if torch.is_grad_enabled():
        _say_once(
            "gradients are enabled and engines have none: the graph is left to eager. Call the model under "
            "torch.no_grad() or torch.inference_mode()"
        )
        return graph.forward
    region = Region(graph, name)
    if dynamic is not None:
        region.name_sizes(example_inputs, dynamic)
    if not region.made or not region.inputs:
        return marking(region, graph.forward)
    return marking(region, _CompiledRegion(region, {**(options or {}), **unknown}, find, is_piece))


def marking(region: Region, run: Callable[..., Any]) -> Callable[..., Any]:
    """What runs a region, with marks on those results whose sizes have names, for who takes them in."""
    if not region.marks:
        return run

    def marked(*args: Any) -> Any:
        results = run(*args)
        region.mark(results)
        return results

    return marked


class _Weights:
    """The engines for one set of weights."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.runs: dict[tuple[Any, ...], Run] = {}
        """By the sizes and numbers that are built in."""
        self._tensors = tensors
        # What is made in inference mode has no version.
        self._versioned = [tensor for tensor in tensors if not tensor.is_inference()]
        self._seen = self._look()

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the weights, with whatever values."""
        return all(map(operator.is_, self._tensors, tensors))

    def have_changed(self) -> bool:
        """Whether their values may be others than those in the engines."""
        return self._look() != self._seen

    def _look(self) -> list[int]:
        # Part of every call, so it has no Python of its own for each tensor.
        return [*map(_version, self._versioned), *map(torch.Tensor.data_ptr, self._tensors)]


class _CompiledRegion:
    """What takes the place of a graph of Dynamo's: engines by weights and sizes, built when they are first needed.

    Dynamo runs one compiled graph for several modules of a class, so each call's weights are looked at.
    """

    def __init__(self, region: Region, options: dict[str, Any], find: Find, is_piece: bool) -> None:
        self._region = region
        self._options = options
        self._engine_for = find
        self._is_piece = is_piece
        self._weights_of = _picker(region.weights)
        self._inputs_of = _picker(region.inputs)
        self._known: list[_Weights] = []
        self._others: _CompiledRegion | None = None
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Sequence[Any]:
        if self._region.written and self._region.overlap(args):
            _say_once(
                f"{self._region.name}: writes into memory that it reads as another tensor: such calls run in eager"
            )
            return self._region.graph(*args)  # type: ignore[no-any-return]
        run = self._find(args)
        if run is None:
            with self._lock:
                run = self._find(args) or self._add(args)
        return run(args)

    def _find(self, args: Sequence[Any]) -> Run | None:
        tensors = self._weights_of(args)
        for known in self._known:
            if known.are(tensors):
                return None if known.have_changed() else known.runs.get(self._region.constants(args))
        return None

    def _add(self, args: Sequence[Any]) -> Run:
        region, graph = self._region, self._region.graph
        tensors = self._weights_of(args)
        known = next((each for each in self._known if each.are(tensors)), None)
        if known is not None and known.have_changed():
            log.warning("%s: its weights have changed, so its engines are built again", region.name)
            self._known.remove(known)
            known = None
        if known is None:
            known = _Weights(tensors)
            self._known.append(known)
        count = sum(len(each.runs) for each in self._known)
        if count >= torch._dynamo.config.recompile_limit:
            _say_once(
                f"{region.name}: has {count} engines for different sizes or weights, as many as "
                "torch._dynamo.config.recompile_limit: others are left to eager. One engine serves a range of sizes "
                "where torch._dynamo.mark_dynamic(tensor, axis, min=..., max=...) declares it"
            )
            return lambda args: graph(*args)
        try:
            engine = self._engine_for(region, args, lambda: self._build(args))
        except REFUSALS as error:
            if not Settings.make(**self._options).fallback:
                raise
            level = logging.INFO if isinstance(error, TooSmallError) else logging.WARNING
            log.log(level, "%s: is left to eager: %s", region.name, error)
            run: Run = lambda args: graph(*args)  # noqa: E731
        else:
            run = self._runner(engine, args)
            if region.has_ranges:
                run = self._or_fixed(run)
        known.runs[region.constants(args)] = run
        return run

    def _runner(self, engine: EngineModule, args: Sequence[Any]) -> Run:
        merge, inputs_of, devices = self._region.merge, self._inputs_of, self._region.devices
        call: Callable[..., Sequence[torch.Tensor]] = engine
        if not torch.cuda.is_available():
            _say_once("there is no GPU here: compiled graphs run in the reference interpreter, on the CPU, slowly")
            call = engine.reference
        elif {*devices, *(value.device for value in inputs_of(args))} != {device := self._region.device(args)}:

            def run(args: Sequence[Any]) -> Sequence[Any]:
                made = call(*[value.to(device) for value in inputs_of(args)])
                return merge([value.to(own) for value, own in zip(made, devices, strict=True)], args)

            return run
        return lambda args: merge(call(*inputs_of(args)), args)

    def _or_fixed(self, run: Run) -> Run:
        """What runs engines of one size each where the sizes of a call are not related as those that it is for.

        Dynamo runs one graph for all sizes that it holds for, and not only for those that arithmetic has told.
        """

        def run_or_fixed(args: Sequence[Any]) -> Sequence[Any]:
            try:
                return run(args)
            except InputShapeError as error:
                if self._others is None:
                    log.warning("%s: engines of one size each for other sizes: %s", self._region.name, error.reason)
                    self._others = _CompiledRegion(
                        self._region.fixed(), self._options, self._engine_for, self._is_piece
                    )
            return self._others(*args)

        return run_or_fixed

    def _build(self, args: Sequence[Any]) -> EngineModule:
        settings = Settings.make(**self._options)
        flavour = flavours.load(settings.flavour)
        device = self._region.device(args)
        # Tensors made in inference mode cannot be traced in it.
        with torch.inference_mode(False), torch.no_grad():
            program = api.optimize(capture(self._region, args), settings, flavour)
            if self._is_piece:
                check_worth(program, flavour, settings)
            shapes = ", ".join(str(list(value.shape)) for value in self._inputs_of(args))
            log.info("%s: building an engine for inputs of %s", self._region.name, shapes)
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                engine = api.build(program, flavour, settings)
            return engine.to(device) if device.type == "cuda" else engine


def capture(region: Region, args: Sequence[Any]) -> Program:
    """Capture a region for a call's sizes and weights; where its ranges of sizes are impossible, they are fixed.

    Raises:
        Torch2TRTError: no engine can stand for it.
    """
    try:
        return _capture(region, args)
    except DynamicShapeError as error:
        if not region.has_ranges:
            raise
        log.warning("%s: one engine for each size, since a range is impossible: %s", region.name, error)
        region.fix_sizes()
        return _capture(region, args)


def misplaced(region: Region, args: Sequence[Any]) -> Torch2TRTError | None:
    """Why no engine runs a region on the devices where a call's tensors are, if that is so."""
    device = region.device(args)
    if device.type == "cpu" and torch.cuda.is_available():
        return ExampleInputError("its tensors are on the CPU", subject=region.name, hint="move the model to the GPU")
    if any(args[position].device != device for position in region.written):
        return CaptureError("it writes into tensors on several devices", subject=region.name)
    return None


def _capture(region: Region, args: Sequence[Any]) -> Program:
    if region.refusal:
        raise CaptureError(region.refusal, subject=region.name)
    if (error := misplaced(region, args)) is not None:
        raise error
    module, inputs, dynamic = region.module(args)
    program = api.capture(module, inputs, dynamic_shapes=dynamic, name=region.name)
    if program.signature.state:
        # An engine would change its own copies, and not the model's buffers.
        changed = ", ".join(leaf.buffer for leaf in program.signature.state)
        raise CaptureError(
            f"the model changes its buffers when it runs: {changed}",
            subject=region.name,
            hint="compile it with torch2trt.compile, or return the new values instead",
        )
    program.signature = region.tuned(program.signature)
    return program


_version: Callable[[torch.Tensor], int] = operator.attrgetter("_version")


def _picker(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the items at some positions out of a tuple."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    return lambda args: [args[position] for position in positions]


@functools.cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


# Dynamo finds an installed package by its entry point, and registers it then; a source tree has none.
if not entry_points(group="torch_dynamo_backends", name=_NAME):
    torch._dynamo.register_backend(backend, name=_NAME)
