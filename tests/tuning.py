"""Tuning without a GPU: engines are torch's, and how long they take is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from tests.benching import FakeMachine
from tests.pretending import running
from torch2trt import api
from torch2trt.graph.program import Program
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools.bench.backends import in_turns
from torch2trt.tools.tune import lab, tuning
from torch2trt.tools.tune.report import Tuning
from torch2trt.tools.tune.trial import Trial

QUIET: dict[str, Any] = {"progress": "none"}
X = torch.randn(4, 6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x).relu()


@dataclasses.dataclass
class World:
    """What engines do here: how long they take, how far off they are, which cannot be built."""

    ms: Callable[[int, Settings], float] = lambda batch, settings: 1.0
    error: Callable[[Settings], float] = lambda settings: 0.0
    fails: Callable[[int, Settings], Exception | BaseException | None] = lambda batch, settings: None
    built: list[tuple[int, Settings]] = dataclasses.field(default_factory=list)
    runs: list[list[tuple[int, Settings]]] = dataclasses.field(default_factory=list)
    """What each run of measurements timed, in the order of the turns."""
    truths: list[int] = dataclasses.field(default_factory=list)
    """Batches that were computed in float64."""
    interrupts: int | None = None
    """The run of measurements in which Ctrl-C comes."""


class Machine(FakeMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def gpu_ms(self, call: Any, calls: int, *, lead_in: int) -> float:
        if self.world.interrupts == len(self.world.runs):
            raise KeyboardInterrupt
        return self.world.ms(*call.what)

    def host_us(self, call: Any, calls: int) -> float:
        turns = self.world.runs[-1]
        if call.what not in turns:
            turns.append(call.what)
        return 7.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Engines that torch runs, of which nothing is built."""
    told = World()
    # Artifacts live as long as this does, so that each has an id of its own.
    made: dict[int, tuple[Artifact, Program]] = {}

    def build(program: Program, flavour: Any, settings: Settings) -> EngineModule:
        told.built.append((_batch(program), settings))
        if error := told.fails(*told.built[-1]):
            raise error
        artifact = Artifact(
            name="net",
            plan=b"",
            signature=program.signature,
            settings=settings,
            flavour="tensorrt",
            flavour_version="10.6.0",
            gpu=None,
            report={"cache": "miss"},
            state=program.state,
        )
        made[id(artifact)] = artifact, program
        return EngineModule(artifact)

    def opened(artifact: Artifact, truth: Callable[..., Any]) -> EngineModule:
        _, program = made[id(artifact)]

        def computed(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(value + told.error(artifact.settings) * value.abs().max() for value in program.run(*inputs))

        names = [leaf.name for leaf in program.signature.tensor_inputs]

        def reference(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            results = computed(*(inputs[name] for name in names))
            return dict(zip(program.output_names, results, strict=True))

        return running(EngineModule(artifact, truth=truth, reference=reference), computed)

    def compute(truth: api.Truth, *args: Any, **kwargs: Any) -> Any:
        told.truths.append(int(args[0].shape[0]))
        return exact(truth, *args, **kwargs)

    exact = api.Truth.__call__
    monkeypatch.setattr(api.Truth, "__call__", compute)
    pretend(monkeypatch, told, build, opened)
    return told


def pretend(monkeypatch: pytest.MonkeyPatch, told: World, build: Any, opened: Any) -> None:
    """Let a search build and open engines in these ways, and time them as it is told."""

    def turned(compiled: EngineModule, sets: Any) -> Any:
        call: Any = in_turns(compiled, sets)
        call.what = (int(sets[0][0][0].shape[0]), compiled.artifact.settings)
        return call

    def measured(calls: Any, machine: Any, *, rounds: int) -> Any:
        told.runs.append([])
        return real(calls, machine, rounds=min(rounds, 2))

    real = lab.measure
    monkeypatch.setattr(api, "build", build)
    monkeypatch.setattr(lab, "opened", opened)
    monkeypatch.setattr(lab, "in_turns", turned)
    monkeypatch.setattr(lab, "measure", measured)
    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Machine(told))


def _batch(program: Program) -> int:
    usual = {name: span.opt for name, span in program.signature.dims.items()}
    return int(program.signature.tensor_inputs[0].spec.at(usual)[0])


def named(trial: Trial) -> str:
    """A trial in few words."""
    settings = trial.settings
    streams = "" if settings.max_aux_streams is None else f" s{settings.max_aux_streams}"
    graphs = "" if settings.cuda_graphs else " plain"
    return f"{trial.step}: {trial.precision} b{trial.batch} l{settings.optimization_level}{streams}{graphs}"


def tuned(**options: Any) -> Tuning:
    return torch2trt.tune(Net().eval(), (X,), **{**QUIET, **options})


def times(batch: int, settings: Settings) -> float:
    """FP16 is the fastest, batches pay up to 8, as does level 3; streams and graphs do what they usually do."""
    each = {"fp32": 2.0, "tf32": 1.6, "fp16": 1.0, "bf16": 1.1}[settings.precision or "tf32"]
    found = each * (1 + batch / 8 if batch <= 8 else batch / 4)
    found *= {1: 1.0, 3: 0.8, 5: 0.79}[settings.optimization_level or 3]
    found *= {None: 1.0, 0: 1.2, 4: 0.9}[settings.max_aux_streams]
    return found if settings.cuda_graphs else found * 1.5
