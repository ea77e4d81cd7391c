"""Profiling: a call's engines run layer by layer, what runs in torch as a whole, all of it at the call's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from torch2trt import api
from torch2trt.errors import NoGPUError, SettingError
from torch2trt.examples import Calls
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature, TensorLeaf, dtype_to_json
from torch2trt.runtime import inputs as checks
from torch2trt.runtime.artifact import Artifact, TorchPart
from torch2trt.runtime.context import Context, Engine
from torch2trt.runtime.cuda_graphs import GraphCache
from torch2trt.runtime.hybrid import Chain, in_torch, open_session
from torch2trt.runtime.layers import LayerTimes, time_layers
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools.bench.machine import CudaMachine, Machine
from torch2trt.tools.bench.measure import measure
from torch2trt.tools.profile.attribution import Call, calls_of, claimed, flops_of_kernels
from torch2trt.tools.profile.limits import measure_limits
from torch2trt.tools.profile.report import Kernel, Memory, Profile
from torch2trt.trt import flavour as flavours
from torch2trt.trt.inspector import Layer, LayerTensor, layers, printable

RUNS = 20
"""How often each kernel is timed."""
_ROUNDS = 20


def profile(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str | None = None,
    runs: int = RUNS,
    **settings: Any,
) -> Profile:
    """Say where the time of a call goes, kernel by kernel, by module and by source line, beside the GPU's limits.

    The module is compiled with ``profiling_verbosity="detailed"``, which changes no kernel. TensorRT's profiler gives
    the time of each kernel (the median of several runs after warm-up), the whole run is timed without it. A kernel
    that computes several calls shares its time among them by their FLOPs, or equally where they have none; a call that
    is several kernels gives its FLOPs to those that multiply. FLOPs are counted as ``torch.utils.flop_counter`` does,
    bytes as if every element of a kernel's inputs, outputs and weights moved once.
    What runs in torch is one row for each segment.

    Args:
        module, args, kwargs, examples, dynamic_shapes, profiles, name, settings: as :func:`torch2trt.compile` takes
            them; the call that is profiled is the example, and its sizes say which optimization profile runs. Or a
            compiled module, with a call's arguments and no settings. Of one that was compiled with another verbosity
            only names and times are known, of one that was loaded without its Program no lines and FLOPs.
        runs: how often each kernel is timed.

    Returns:
        A table when printed, a page in a notebook; ``to_json()``, ``to_html()`` and ``to_svg()``.

    Raises:
        NoGPUError: there is none.
        Torch2TRTError: the module cannot be compiled or called so.
    """
    check_gpu()
    if runs < 1:
        raise SettingError(f"must be positive, got {runs}", subject="runs")
    if isinstance(module, EngineModule):
        if settings or any(given is not None for given in (examples, dynamic_shapes, profiles, name)):
            raise SettingError("was compiled before: it takes a call's arguments alone", subject=module.artifact.name)
        return profile_artifact(
            module.artifact,
            tensors_of(module.artifact, args, kwargs or {}),
            module.program() if module.has_program else None,
            runs=runs,
        )
    chosen = Settings.make(**{"profiling_verbosity": "detailed", **settings})
    flavour = flavours.load(chosen.flavour)
    args, kwargs, calls = api.first_call(module, args, kwargs, examples)
    captured = api.capture(
        module, args, kwargs, calls=calls, dynamic_shapes=dynamic_shapes, profiles=profiles, name=name
    )
    program = api.optimize(captured, chosen, flavour)
    artifact = api.build(program, flavour, chosen).artifact
    return profile_artifact(artifact, tensors_of(artifact, args, dict(kwargs or {})), program, runs=runs)


def check_gpu() -> None:
    """Refuse where there is none.

    Raises:
        NoGPUError: there is none.
    """
    if not torch.cuda.is_available():
        raise NoGPUError(
            "kernels are timed on NVIDIA GPUs, and torch finds none on this machine",
            subject="profile",
            hint="torch2trt inspect shows a model's layers and FLOPs without one",
        )


def tensors_of(artifact: Artifact, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that the engine reads in a call, from any device; the state as it was compiled or saved.

    Raises:
        InputStructureError: it is called in another way.
    """
    signature = artifact.signature
    leaves = signature.flatten(args, dict(kwargs))
    own = [value for leaf, value in zip(signature.inputs, leaves, strict=True) if isinstance(leaf, TensorLeaf)]
    return own + [artifact.state[leaf.buffer] for leaf in signature.state]


def profile_artifact(
    artifact: Artifact, inputs: Sequence[torch.Tensor], program: Program | None, *, runs: int = RUNS
) -> Profile:
    """Profile what was built.

    Args:
        inputs: in the signature's order, the state among them, from any device; none is written to.
        program: what the engines were lowered from, if it is at hand.

    Raises:
        NoGPUError, UnsupportedGPUError, ArtifactMismatchError: it cannot run on this machine.
        InputDtypeError, InputShapeError: an input that it does not take.
        EngineError: TensorRT failed.
    """
    dims = checks.check(artifact.signature, inputs)
    machine = CudaMachine()
    calls = None if program is None else calls_of(program, dims)
    with torch.no_grad():
        values = [value.detach().to(machine.device) for value in inputs]
        limits = measure_limits(machine, artifact.precision)
        run = _Run(machine, calls, runs)
        outputs = run.of(artifact)(values)
        if artifact.parts:
            session, shapes = open_session(artifact, machine.device), tuple(tuple(value.shape) for value in values)
            run_ms, in_graph = _median_ms(machine, lambda _: session.run(values, shapes)), False
        else:
            run_ms, in_graph = run.whole
    names = [leaf.name for leaf in artifact.signature.tensor_inputs]
    return Profile(
        name=artifact.name,
        flavour=f"{artifact.flavour} {artifact.flavour_version}",
        gpu=machine.name,
        precision=artifact.precision,
        shapes={name: tuple(value.shape) for name, value in zip(names, inputs, strict=True)},
        kernels=tuple(run.kernels),
        run_ms=run_ms,
        in_cuda_graph=in_graph,
        runs=runs,
        limits=limits,
        memory=Memory(
            plan=artifact.engine_bytes,
            weights=run.weights,
            activations=run.activations,
            io=sum(value.nbytes for value in (*inputs, *outputs)),
        ),
        has_program=program is not None,
    )


class _Run:
    """One run through the parts of an artifact, each of which is timed when its turn comes.

    Args:
        calls: of the graph, by name; None where it is not there.
        runs: how often each kernel is timed.
    """

    def __init__(self, machine: Machine, calls: Mapping[str, Call] | None, runs: int) -> None:
        self._machine = machine
        self._calls = calls
        self._runs = runs
        self.kernels: list[Kernel] = []
        self.whole = (0.0, False)
        """Milliseconds of the last engine without the profiler, and whether in a CUDA graph."""
        self.weights: int | None = 0
        self.activations = 0

    def of(self, artifact: Artifact) -> Chain:
        """The artifact as a function that times its parts."""
        parts = artifact.parts or (artifact,)
        steps = [
            (
                part.signature if isinstance(part, Artifact) else part.program.signature,
                self._engine(part, number) if isinstance(part, Artifact) else self._torch(part, number),
            )
            for number, part in enumerate(parts)
        ]
        results = artifact.results.values() or dict.fromkeys(leaf.name for leaf in artifact.signature.tensor_outputs)
        return Chain(steps, [leaf.name for leaf in artifact.signature.tensor_inputs], list(results))

    def _engine(self, artifact: Artifact, number: int) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
        def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            engine = Engine(artifact, self._machine.device)
            found = time_layers(engine, inputs, runs=self._runs)
            self.kernels += _kernels(found, self._calls, number)
            self.whole = _whole(engine, found.inputs, self._machine)
            more = engine.weight_bytes
            self.weights = None if self.weights is None or more is None else self.weights + more
            # Engines that run one after the other share it.
            self.activations = max(self.activations, engine.scratch_bytes)
            return found.outputs

        return run

    def _torch(self, part: TorchPart, number: int) -> Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]:
        program = part.program
        compute = in_torch(program, self._machine.device)

        def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
            outputs = compute(inputs)
            names = {node.name for node in program.calls if not program.is_size(node)}
            calls = tuple(call for name, call in (self._calls or {}).items() if name in names)
            counts = [call.flops for call in calls if call.flops is not None]
            kernel = Kernel(
                name=program.name,
                kind="torch",
                tactic="",
                segment=number,
                ms=_median_ms(self._machine, lambda _: compute(inputs)),
                inputs=_tensors(program.signature, inputs, outputs=False),
                outputs=_tensors(program.signature, outputs, outputs=True),
                flops=sum(counts) if counts else None,
                calls=calls,
            )
            self.kernels.append(kernel)
            return outputs

        return run


def _kernels(found: LayerTimes, calls: Mapping[str, Call] | None, segment: int) -> list[Kernel]:
    """The layers that the inspector knows, in its order, and behind them those that only the profiler does."""
    known = layers(found.information)
    ms = {printable(name): time for name, time in found.ms.items()}
    names = {printable(layer.name) for layer in known}
    every = [*known, *(Layer(name) for name in ms if name not in names)]
    # Of several layers of one name the profiler tells the sum.
    times = [ms.pop(printable(layer.name), 0.0) for layer in every]
    claims = claimed(every, calls)
    counts = flops_of_kernels(every, times, claims)
    return [
        Kernel(
            name=printable(layer.name),
            kind=layer.kind,
            tactic=printable(layer.tactic),
            segment=segment,
            ms=time,
            inputs=layer.inputs,
            outputs=layer.outputs,
            bytes=layer.bytes,
            flops=count,
            calls=tuple(own),
        )
        for layer, time, count, own in zip(every, times, counts, claims, strict=True)
    ]


def _whole(engine: Engine, inputs: Sequence[torch.Tensor], machine: Machine) -> tuple[float, bool]:
    """Milliseconds of a run without the profiler, and whether it was a CUDA graph."""
    shapes, scratch = tuple(tuple(value.shape) for value in inputs), engine.new_scratch()
    graph = GraphCache(engine, scratch, enabled=True).get(shapes, inputs)
    if graph is not None:
        return _median_ms(machine, lambda _: graph.repeat()), True
    context = Context(engine, scratch, engine.profile_of(shapes))
    side = torch.cuda.Stream(engine.device)
    side.wait_stream(torch.cuda.current_stream(engine.device))
    with torch.cuda.stream(side):
        placed, outputs = context.prepare(inputs, shapes)
        return _median_ms(machine, lambda _: context.enqueue(placed, outputs, side.cuda_stream)), False


def _median_ms(machine: Machine, call: Callable[[int], Any]) -> float:
    call(0)
    return measure({"": call}, machine, rounds=_ROUNDS)[""].gpu_ms_p50


def _tensors(signature: Signature, values: Sequence[torch.Tensor], *, outputs: bool) -> tuple[LayerTensor, ...]:
    leaves = signature.tensor_outputs if outputs else signature.tensor_inputs
    names = dict.fromkeys(leaf.name for leaf in leaves) if outputs else [leaf.name for leaf in leaves]
    return tuple(
        LayerTensor(name, tuple(value.shape), _SHORT.get(value.dtype, dtype_to_json(value.dtype)))
        for name, value in zip(names, values, strict=True)
    )


_SHORT = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
