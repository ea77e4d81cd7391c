"""Running a hybrid: engines, and between them what runs in torch, one after the other on the caller's stream."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from torch2trt.graph.devices import placed
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature
from torch2trt.runtime.artifact import Artifact, TorchPart
from torch2trt.runtime.context_pool import ContextPool
from torch2trt.runtime.profiles import Shapes
from torch2trt.runtime.session import Session, pool_for

Run = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
"""A part's inputs to its outputs, in its signature's order."""


class Chain:
    """Parts that run in turn, each on what the caller gave and the earlier ones made.

    Args:
        steps: the parts with their signatures, whose inputs and outputs are named alike where they are the same value.
        inputs: names of what the caller gives.
        outputs: names of what the caller gets.
    """

    def __init__(self, steps: Sequence[tuple[Signature, Run]], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        last: dict[str, int] = {}
        for number, (signature, _) in enumerate(steps):
            last |= {leaf.name: number for leaf in (*signature.tensor_inputs, *signature.tensor_outputs)}
        kept = set(outputs)
        self._steps = [
            (
                run,
                tuple(leaf.name for leaf in signature.tensor_inputs),
                tuple(dict.fromkeys(leaf.name for leaf in signature.tensor_outputs)),
                # Freed as early as in eager.
                tuple(name for name, number_of_last in last.items() if number_of_last == number and name not in kept),
            )
            for number, (signature, run) in enumerate(steps)
        ]

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run all parts."""
        values = dict(zip(self._inputs, inputs, strict=True))
        for run, reads, makes, done in self._steps:
            values.update(zip(makes, run([values[name] for name in reads]), strict=True))
            for name in done:
                del values[name]
        return [values[name] for name in self._outputs]


def in_torch(program: Program, device: torch.device) -> Run:
    """A Program as a function that torch executes on a device."""
    module = placed(program.graph, device)
    evaluated = program.weights.evaluate(device=device)
    weights = [evaluated[str(node.target)] for node in program.weight_placeholders]

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        with torch.no_grad():
            return module(*inputs, *weights)  # type: ignore[no-any-return]

    return run


@dataclass(frozen=True)
class Opened:
    """What there is to know of a hybrid that is on its device, as of a :class:`torch2trt.runtime.context.Engine`."""

    device: torch.device
    host_inputs: frozenset[str] = frozenset()


class HybridSession:
    """The engines and torch parts of one artifact; stands where :class:`Session` stands for a single engine.

    The engines run one after the other, so their contexts come from one pool, with scratch memory for the largest.

    Args:
        artifact: what to run.
        device: the CUDA device to run on; unset: the one that is current when it is first needed.
    """

    def __init__(self, artifact: Artifact, device: torch.device | None = None) -> None:
        self.artifact = artifact
        self.device = device
        self._chain: Chain | None = None
        self._pool = pool_for(artifact)
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether its parts are on their device."""
        return self._chain is not None

    @property
    def pool(self) -> ContextPool:
        """Where the contexts of its engines come from."""
        return self._pool

    def share(self, pool: ContextPool) -> None:
        """Draw on a pool; as :meth:`Session.share`."""
        with self._lock:
            if self._chain is None:
                self._pool = pool

    def open(self) -> Opened:
        """Deserialise the engines and move the weights of what runs in torch, once.

        Raises:
            NoGPUError, UnsupportedGPUError, FlavourNotFoundError, ArtifactMismatchError, EngineError: as
                :class:`torch2trt.runtime.context.Engine` says.
        """
        with self._lock:
            if self._chain is None:
                self._chain = self._open()
            assert self.device is not None
            return Opened(self.device)

    def _open(self) -> Chain:
        artifact = self.artifact
        sessions = {
            number: Session(part, self.device, self._pool)
            for number, part in enumerate(artifact.parts)
            if isinstance(part, Artifact)
        }
        for session in sessions.values():
            # The first says where the others go.
            session.device = self.device
            self.device = session.open().device
        steps: list[tuple[Signature, Run]] = []
        for number, part in enumerate(artifact.parts):
            if isinstance(part, TorchPart):
                assert self.device is not None
                steps.append((part.program.signature, in_torch(part.program, self.device)))
            else:
                steps.append((part.signature, _in_engine(sessions[number])))
        inputs = [leaf.name for leaf in artifact.signature.tensor_inputs]
        return Chain(steps, inputs, list(artifact.results.values()))

    def run(self, inputs: Sequence[torch.Tensor], shapes: Shapes) -> list[torch.Tensor]:
        """Enqueue one run on the caller's current stream; as :meth:`Session.run`."""
        chain = self._chain
        if chain is None:
            self.open()
            chain = self._chain
            assert chain is not None
        with torch.cuda.device(self.device):
            return chain(inputs)


def _in_engine(session: Session) -> Run:
    host = session.open().host_inputs
    places = [leaf.name in host for leaf in session.artifact.signature.tensor_inputs]

    def run(inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if host:
            inputs = [value.cpu() if on_host else value for value, on_host in zip(inputs, places, strict=True)]
        return session.run(inputs, tuple([tuple(value.shape) for value in inputs]))

    return run


def open_session(artifact: Artifact, device: torch.device | None = None) -> Session | HybridSession:
    """What runs an artifact."""
    return HybridSession(artifact, device) if artifact.parts else Session(artifact, device)
