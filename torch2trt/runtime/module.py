"""An engine as an ``nn.Module``: called, saved, nested and printed like the module that it was compiled from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.errors import (
    ArtifactError,
    ArtifactMismatchError,
    ProgramMissingError,
    UnsupportedGPUError,
)
from torch2trt.graph import serialize
from torch2trt.graph.exact import run_exact
from torch2trt.graph.program import Program
from torch2trt.graph.signature import TensorLeaf
from torch2trt.runtime import artifact as artifacts
from torch2trt.runtime import dynamo, placement, state, summary
from torch2trt.runtime import inputs as checks
from torch2trt.runtime.artifact import Artifact, LoadedArtifact, TorchPart
from torch2trt.runtime.files import StrPath
from torch2trt.runtime.gradients import Inference
from torch2trt.runtime.hybrid import HybridSession, open_session
from torch2trt.runtime.outputs import Assemble, Results
from torch2trt.runtime.profiles import Shapes
from torch2trt.runtime.session import Session
from torch2trt.runtime.verification import Verification, compare_results, compare_written
from torch2trt.settings import Settings
from torch2trt.tolerance import tolerance

Tensors = dict[str, torch.Tensor]
Interpret = Callable[[Program, str, Settings], Callable[[Tensors], Tensors]]
"""A Program, the flavour to lower it for and the settings that partition it, to a function from inputs to outputs by
name, both on the CPU."""

_Self = TypeVar("_Self", bound="EngineModule")

_CALLS_KEPT = 1024  # combinations of shapes whose checks are remembered


@dataclass(frozen=True)
class _Call:
    """What was decided when a combination of shapes came for the first time."""

    shapes: Shapes
    assemble: Assemble


class EngineModule(nn.Module):
    """A compiled module: same signature, same result structure as the module it was made from.

    It computes no gradients, has no parameters, and is fixed: its device once it has run, its dtypes always. In a
    ``state_dict`` it is one uint8 tensor that holds the artifact, so modules that contain it save and load as usual.
    Threads may share it.

    Args:
        artifact: the engine and how it is called.
        program: what it was lowered from, or a function that restores it; for :meth:`reference` and ``save``.
        interpret: runs a Program in the reference interpreter. A function of a module, since pickles name it.
        truth: takes a call's arguments and returns its true result, float64 where it is floating point; for
            :meth:`verify`. It stays behind when the module is pickled.
        reference: runs the network in the reference interpreter, from inputs to outputs by name, both on the CPU; for
            an engine that was lowered from no Program. It stays behind too.
        device: the CUDA device to run on; unset: the one that is current at the first call.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        program: Program | Callable[[], Program] | None = None,
        interpret: Interpret | None = None,
        truth: Callable[..., Any] | None = None,
        reference: Callable[[Tensors], Tensors] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self._interpret = interpret
        # Only where there is some: what has no state has no other entry in a state_dict than its engine.
        if artifact.state:
            self.state = state.hold(artifact.state)
        # Held in a tuple: an nn.Module as attribute would become a child and put its parameters in the state.
        self._truth = (truth,)
        self._set(artifact, program, open_session(artifact, placement.with_index(device)), reference)

    @classmethod
    def load(
        cls: type[_Self],
        source: StrPath | bytes,
        *,
        interpret: Interpret | None = None,
        device: torch.device | str | None = None,
        namespaces: Collection[str] = (),
    ) -> _Self:
        """The module that :meth:`save` wrote. The engine is deserialised at the first call.

        Args:
            namespaces: of operators that the file may name, beside torch's own and torchvision's.

        Raises:
            ArtifactError: it is no artifact, truncated, corrupt, or of another format version.
        """
        loaded = artifacts.load(source, namespaces=namespaces)
        return cls(loaded.artifact, program=_program_of(loaded), interpret=interpret, device=device)

    def _set(
        self,
        artifact: Artifact,
        program: Program | Callable[[], Program] | None,
        session: Session | HybridSession,
        reference: Callable[[Tensors], Tensors] | None = None,
    ) -> None:
        self.artifact = artifact
        self._program = program
        self._session = session
        self._reference = reference
        signature = artifact.signature
        self._results = Results(signature)
        count = len(signature.inputs)
        self._positions = [i for i, leaf in enumerate(signature.inputs) if isinstance(leaf, TensorLeaf)]
        self._positions += range(count, count + len(signature.state))
        self._state_paths = tuple(leaf.buffer for leaf in signature.state)
        self._orders: dict[tuple[Any, ...], list[int]] = {}
        self._calls: dict[tuple[Any, ...], _Call] = {}
        self._replicas: dict[torch.device | None, EngineModule] = {}

    # -- calling ------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the engine on the current CUDA stream.

        Tensors must have the dtypes and device of the engine, and shapes of its profile; strides are free.
        Those of the example, where it is contiguous or channels-last, need no copy.

        Returns:
            The module's result structure, with fresh tensors.

        Raises:
            InputStructureError, InputDtypeError, InputShapeError, InputDeviceError: what does not fit, and how.
            NoGPUError, UnsupportedGPUError, ArtifactMismatchError: the engine cannot run on this machine.
            EngineError: TensorRT failed.
        """
        if torch.compiler.is_dynamo_compiling() or dynamo.watched():
            return dynamo.outside(EngineModule._run)(self, args, kwargs)
        return self._run(args, kwargs)

    def map(
        self,
        calls: Iterable[Any],
        *,
        in_flight: int = 2,
        to_host: bool = True,
        devices: Sequence[torch.device | str] | None = None,
    ) -> Iterator[Any]:
        """The results of many calls, in order, with several of them in flight.

        While one is computed, the tensors of the next are copied to the GPU and the results of the last one back.
        What is in host memory and not pinned is copied to pinned memory first.

        Args:
            calls: each a tuple of arguments, a mapping of keywords, or one tensor; a data loader, say.
            in_flight: calls that have begun and whose results are still to come, at most, on each device; 1 overlaps
                nothing.
            to_host: bring results to pinned host memory; else they are on the engine's device, and the stream that is
                current when they come waits for them.
            devices: GPUs of one kind that take turns, each with the engine in its memory; unset: the module's own.

        Raises:
            SettingError: ``in_flight`` is not positive, or there are no ``devices``.
            FrozenModuleError: the module writes into its arguments, and these are copies; or it changes a state, which
                several devices would have one each of.
            NoGPUError, UnsupportedGPUError, ArtifactMismatchError: the engine cannot run on one of the devices.
            As :meth:`forward`: while the results are taken.
        """
        from torch2trt.runtime.pipeline import pipelined

        modules = [self] if devices is None else [self.on(device) for device in devices]
        sessions = [module._session for module in modules]
        return pipelined(modules, sessions, self.artifact, calls, in_flight=in_flight, to_host=to_host)

    def on(self, device: torch.device | str) -> EngineModule:
        """The same module on a GPU: itself where it is there, else one more, which is kept.

        Buffers that the module changes are each one's own, with the values that they had when this was compiled.
        """
        wanted = placement.with_index(device)
        if wanted == self._session.device:
            return self
        if wanted not in self._replicas:
            self._replicas[wanted] = EngineModule(
                self.artifact, program=self._program, interpret=self._interpret, truth=self._truth[0], device=wanted
            )
        return self._replicas[wanted]

    def share_activations(self, other: EngineModule) -> None:
        """Have activations in the same memory as another module on the same device, before this one has run.

        For modules that run one after the other: together they have ``max_concurrent_runs`` on the GPU at once.
        """
        self._session.share(other._session.pool)

    def open(self) -> None:
        """Deserialise the engine now, and not at the first call.

        Raises:
            NoGPUError, UnsupportedGPUError, FlavourNotFoundError, ArtifactMismatchError, EngineError: as a call.
        """
        self._session.open()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        order = self._orders.get((len(args), *kwargs))
        if order is None:
            leaves = self._leaves(args, kwargs)
            inputs = [leaves[position] for position in self._positions]
            self._learn_order(args, kwargs)
        else:
            values = (*args, *kwargs.values())
            leaves = inputs = [values[index] for index in order]
            if self._state_paths:
                inputs += self._held()
        try:
            call = self._calls[tuple([(value.shape, value.dtype, value.device) for value in inputs])]
        except (KeyError, AttributeError):
            call = self._first_call(args, kwargs)
            if self._state_paths:
                # Now it is where the engine is.
                leaves = self._leaves(args, kwargs)
                inputs = [leaves[position] for position in self._positions]
        if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
            outputs = Inference.apply(self._session, call.shapes, *inputs)
        else:
            outputs = self._session.run(inputs, call.shapes)
        return call.assemble(outputs, leaves)

    def _first_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
        """Check a call whose shapes, dtypes and devices come for the first time."""
        signature = self.artifact.signature
        leaves = self._leaves(args, kwargs)
        dims = checks.check(signature, [leaves[position] for position in self._positions])
        engine = self._session.open()
        # Where that is, is where the state is now.
        leaves = self._leaves(args, kwargs)
        inputs = [leaves[position] for position in self._positions]
        checks.check_devices(signature, inputs, engine.device, engine.host_inputs)
        call = _Call(tuple(tuple(value.shape) for value in inputs), self._results.at(dims))
        if len(self._calls) >= _CALLS_KEPT:
            self._calls.clear()
        self._calls[tuple((value.shape, value.dtype, value.device) for value in inputs)] = call
        return call

    def _learn_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember where the inputs are in calls of this form, which spares flattening where all are plain tensors."""
        values = (*args, *kwargs.values())
        if len(self._positions) - len(self._state_paths) < len(self.artifact.signature.inputs) or not all(
            map(torch.is_tensor, values)
        ):
            return
        # The same tensor may come twice, so marks take their places.
        marks = [torch.empty(0) for _ in values]
        leaves = self.artifact.signature.flatten(
            tuple(marks[: len(args)]), dict(zip(kwargs, marks[len(args) :], strict=True))
        )
        places = {id(mark): index for index, mark in enumerate(marks)}
        self._orders[(len(args), *kwargs)] = [places[id(leaf)] for leaf in leaves]

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The call's leaves, followed by the state."""
        return self.artifact.signature.flatten(args, kwargs) + self._held()

    def _held(self) -> list[torch.Tensor]:
        """The state, where the engine is if that is known."""
        return state.tensors(self.state, self._state_paths, self._session.device) if self._state_paths else []

    # -- checking -----------------------------------------------------------------------------------------------------

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled network in the reference interpreter: slow, on the CPU, without a GPU.

        Takes what the module takes, from any device, and returns its result structure with tensors on the CPU.

        Raises:
            ProgramMissingError: the artifact was saved without its Program.
            InputStructureError, InputDtypeError, InputShapeError: as in a call.
        """
        signature = self.artifact.signature
        leaves = self._leaves(args, kwargs)
        inputs = [leaves[position] for position in self._positions]
        dims = checks.check(signature, inputs)
        if self._reference is None:
            self._reference = self._interpreter()
        named = {leaf.name: value.detach().cpu() for leaf, value in zip(signature.tensor_inputs, inputs, strict=True)}
        outputs = self._reference(named)
        return self._results.at(dims)([outputs[name] for name in self._results.names], leaves)

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare with the truth: float64 eager with the original weights, after loading the Program in float64.

        Runs the engine where there is a GPU that it serves, else the reference interpreter.

        Raises:
            ProgramMissingError: it was loaded, and saved without its Program.
        """
        (truth,) = self._truth
        device = self._device_of_engine()
        before = dict(zip(self._state_paths, (value.detach().clone() for value in self._held()), strict=True))
        try:
            # What the call writes stays in copies, and the state is as it was when all is said.
            own = pytree.tree_map_only(
                torch.Tensor, lambda value: value.detach().to(device or "cpu", copy=True), (args, kwargs)
            )
            with torch.no_grad():
                result = (self.reference if device is None else self)(*own[0], **own[1])
            leaves = self._leaves(*own)
            written = [leaves[update.position].detach().clone() for update in self.artifact.signature.updates]
        finally:
            for name, value in before.items():
                self.state.get_buffer(name).copy_(value)
        allowed = tolerance(self.artifact.precision, reference=device is None)
        if truth is None:
            exact, exactly_written = run_exact(self.program(), args, kwargs, before)
        elif self.artifact.signature.updates:
            exact, exactly_written = truth.writing(self.artifact.signature, before, args, kwargs)  # type: ignore[attr-defined]
        else:
            exact, exactly_written = truth(*args, **kwargs), []
        signature = self.artifact.signature
        rows = (
            *compare_results(signature, result, exact, allowed),
            *compare_written(signature, written, exactly_written, allowed),
        )
        return Verification(
            self.artifact.name, "reference" if device is None else "engine", self.artifact.precision, rows
        )

    def _device_of_engine(self) -> torch.device | None:
        """Where the engine runs, None where there is no GPU that its flavour serves."""
        if not torch.cuda.is_available():
            return None
        try:
            return self._session.open().device
        except UnsupportedGPUError:
            return None

    def _interpreter(self) -> Callable[[Tensors], Tensors]:
        if self._interpret is None:
            raise ProgramMissingError(
                "was made without the reference interpreter",
                subject=self.artifact.name,
                hint="load it with torch2trt.load, or compile it with torch2trt.compile",
            )
        return self._interpret(self.program(), self.artifact.flavour, self.artifact.settings)

    @property
    def has_program(self) -> bool:
        """Whether :meth:`program` has something to give."""
        return self._program is not None

    def program(self) -> Program:
        """What its engines were lowered from.

        Raises:
            ProgramMissingError: the artifact was saved without it, or made of an ONNX model.
        """
        if self._program is None:
            raise ProgramMissingError(
                "the artifact does not carry its Program",
                subject=self.artifact.name,
                hint="save it with .save(path, program=True)",
            )
        if not isinstance(self._program, Program):
            self._program = self._program()
        return self._program

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, path: StrPath, program: bool = False) -> None:
        """Write one file that :func:`torch2trt.load` reads.

        Args:
            program: write the Program too, with its weights, for :meth:`reference` and rebuilding.

        Raises:
            ArtifactWriteError: it could not be written whole; nothing is left behind.
            ProgramMissingError: it has no Program to write.
        """
        if program and self._program is None:
            raise ProgramMissingError(
                "has no Program to write: it was loaded without one, or made of an ONNX model",
                subject=self.artifact.name,
                hint="save it without program=True, and keep what it was made of",
            )
        artifacts.save(self._as_it_is(), path, program=self.program() if program else None)

    def get_extra_state(self) -> torch.Tensor:
        """The artifact, as bytes in a uint8 tensor."""
        return torch.frombuffer(bytearray(artifacts.to_bytes(self.artifact)), dtype=torch.uint8)

    def _as_it_is(self) -> Artifact:
        """The artifact with the state of now."""
        return dataclasses.replace(self.artifact, state=dict(zip(self._state_paths, self._held(), strict=True)))

    def set_extra_state(self, state: Any) -> None:
        """Take the engine out of :meth:`get_extra_state`'s tensor.

        Raises:
            ArtifactError: it is none.
            ArtifactMismatchError: it is called in another way than this module.
        """
        if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8:
            raise ArtifactError("its state is no tensor of bytes", subject=self.artifact.name)
        new = artifacts.load(state.cpu().numpy().tobytes(), namespaces=_namespaces(self.artifact)).artifact
        if new.signature.to_json() != self.artifact.signature.to_json():
            raise ArtifactMismatchError(
                f"the state holds {new.name!r}, {summary.signature(new)}; this is {summary.signature(self.artifact)}",
                subject=self.artifact.name,
            )
        if new.parts or new.plan != self.artifact.plan:
            # What this module came from says nothing of the new engine.
            self._truth = (None,)
            self._set(new, None, open_session(new, self._session.device))

    def __getstate__(self) -> dict[str, Any]:
        program = None if self._program is None else self.program()
        own = {name: value for name, value in self.__dict__.items() if name not in _RUNTIME_STATE}
        names = _namespaces(self.artifact)
        names |= set() if program is None else serialize.namespaces_of(program)
        return {**own, "_bytes": artifacts.to_bytes(self.artifact, program=program), "_namespaces": names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        loaded = artifacts.load(own.pop("_bytes"), namespaces=own.pop("_namespaces"))
        self.__dict__.update(own, _truth=(None,))
        self._set(loaded.artifact, _program_of(loaded), open_session(loaded.artifact))

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        # Nothing of an engine changes, so copies share it.
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(
            {
                name: value if name in _RUNTIME_STATE else copy.deepcopy(value, memo)
                for name, value in self.__dict__.items()
            }
        )
        return copied

    # -- being a module -----------------------------------------------------------------------------------------------

    def train(self: _Self, mode: bool = True) -> _Self:
        """An engine has no modes: changes nothing."""
        return self

    def _apply(self: _Self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _Self:
        """Let ``.to()`` and its kin pass where they change nothing, and refuse them otherwise."""
        wanted = placement.after(fn, self.artifact, self._session.device)
        if self._session.device is None and wanted is not None:
            self._session = open_session(self.artifact, wanted)
        return self

    # -- showing itself -----------------------------------------------------------------------------------------------

    @property
    def report(self) -> dict[str, Any]:
        """What the compilation says of itself: nodes, layers, fused_blocks, build_s, engine_bytes and more."""
        return {**self.artifact.report, "engine_bytes": self.artifact.engine_bytes}

    def extra_repr(self) -> str:
        """Name, flavour, precision and signature on one line."""
        return summary.line(self.artifact)

    def _repr_html_(self) -> str:
        return summary.html_table(self.artifact)


# Shared by copies, left out of pickles.
_RUNTIME_STATE = frozenset(
    (
        *("artifact", "_program", "_truth", "_session", "_reference"),
        *("_results", "_positions", "_state_paths", "_orders", "_calls", "_replicas"),
    )
)


def _namespaces(part: Artifact | TorchPart) -> set[str]:
    if isinstance(part, TorchPart):
        return serialize.namespaces_of(part.program)
    return {call.namespace for call in part.calls}.union(*(_namespaces(each) for each in part.parts))


def _program_of(loaded: LoadedArtifact) -> Callable[[], Program] | None:
    return loaded.program if loaded.has_program else None
