"""Tuning: what is tried in which order, what is chosen, and what becomes of all that fails; engines are torch's."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.pretending import no_gpu, running
from tests.test_bench import CPU, FakeMachine
from torch2trt import api
from torch2trt.errors import (
    BuildCrashError,
    CaptureError,
    DynamicShapeError,
    ExampleInputError,
    MissingPackageError,
    NoCandidateError,
    NoGPUError,
    SettingError,
)
from torch2trt.graph.program import Program
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools import cli
from torch2trt.tools.bench.backends import in_turns
from torch2trt.tools.tune import lab, tuning
from torch2trt.tools.tune.report import Tuning
from torch2trt.tools.tune.trial import Goal, Trial

QUIET: dict[str, Any] = {"progress": "none"}
X = torch.randn(4, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


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
    told = World()
    programs: dict[int, Program] = {}

    def build(program: Program, flavour: Any, settings: Settings) -> EngineModule:
        batch = int(program.signature.tensor_inputs[0].spec.at(usual(program))[0])
        told.built.append((batch, settings))
        if error := told.fails(batch, settings):
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
        )
        programs[id(artifact)] = program
        # The artifact lives as long as its program, whose key it is.
        program.graph.meta.setdefault("artifacts", []).append(artifact)
        return EngineModule(artifact)

    def opened(artifact: Artifact, truth: Callable[..., Any]) -> EngineModule:
        program = programs[id(artifact)]

        def computed(*inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(value + told.error(artifact.settings) * value.abs().max() for value in program.run(*inputs))

        names = [leaf.name for leaf in program.signature.tensor_inputs]

        def reference(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            results = computed(*(inputs[name] for name in names))
            return dict(zip(program.output_names, results, strict=True))

        return running(EngineModule(artifact, truth=truth, reference=reference), computed)

    def turned(compiled: EngineModule, sets: Any) -> Any:
        call: Any = in_turns(compiled, sets)
        call.what = (int(sets[0][0][0].shape[0]), compiled.artifact.settings)
        return call

    def measured(calls: Any, machine: Any, *, rounds: int) -> Any:
        told.runs.append([])
        return real(calls, machine, rounds=min(rounds, 2))

    def compute(truth: api.Truth, *args: Any, **kwargs: Any) -> Any:
        told.truths.append(int(args[0].shape[0]))
        return exact(truth, *args, **kwargs)

    real, exact = lab.measure, api.Truth.__call__
    monkeypatch.setattr(api, "build", build)
    monkeypatch.setattr(api.Truth, "__call__", compute)
    monkeypatch.setattr(lab, "opened", opened)
    monkeypatch.setattr(lab, "in_turns", turned)
    monkeypatch.setattr(lab, "measure", measured)
    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Machine(told))
    return told


def usual(program: Program) -> dict[str, int]:
    return {name: span.opt for name, span in program.signature.dims.items()}


def named(trial: Trial) -> str:
    """A trial in few words."""
    settings = trial.settings
    streams = "" if settings.max_aux_streams is None else f" s{settings.max_aux_streams}"
    graphs = "" if settings.cuda_graphs else " plain"
    return f"{trial.step}: {trial.precision} b{trial.batch} l{settings.optimization_level}{streams}{graphs}"


def tuned(**options: Any) -> Tuning:
    return torch2trt.tune(Net().eval(), (X,), **{**QUIET, **options})


# The search -----------------------------------------------------------------------------------------------------------


def times(batch: int, settings: Settings) -> float:
    """FP16 is the fastest, batches pay up to 8, as does level 3; streams and graphs do what they usually do."""
    each = {"fp32": 2.0, "tf32": 1.6, "fp16": 1.0, "bf16": 1.1}[settings.precision or "tf32"]
    found = each * (1 + batch / 8 if batch <= 8 else batch / 4)
    found *= {1: 1.0, 3: 0.8, 5: 0.79}[settings.optimization_level or 3]
    found *= {None: 1.0, 0: 1.2, 4: 0.9}[settings.max_aux_streams]
    return found if settings.cuda_graphs else found * 1.5


def test_one_setting_after_the_other(world: World) -> None:
    world.ms = times
    said: list[str] = []
    found = tuned(
        objective="throughput", batches=(1, 4, 8, 16), precisions=("fp16", "tf32"), report=said.append, rounds=3
    )
    assert [named(trial) for trial in found.trials] == [
        "precision: tf32 b4 l1",
        "precision: fp16 b4 l1",
        "batch: fp16 b1 l1",
        "batch: fp16 b8 l1",
        "batch: fp16 b16 l1",
        "level: fp16 b8 l3",
        "level: fp16 b8 l5",
        "streams: fp16 b8 l3 s0",
        "streams: fp16 b8 l3 s4",
        "CUDA graphs: fp16 b8 l3 s4 plain",
    ]
    assert found.chosen is found.trials[8]
    assert found.batch == 8
    assert found.settings == Settings(precision="fp16", optimization_level=3, max_aux_streams=4, progress="none")
    # Level 5 is faster by less than what is noise.
    assert found.trials[6].ms_p50 < found.trials[5].ms_p50  # type: ignore[operator]
    assert found.chosen.per_second == pytest.approx(8 / (times(8, found.settings) / 1e3))
    # Each step is timed beside the best so far, and at last everything in turns, the best first.
    assert [len(run) for run in world.runs] == [2, 4, 3, 3, 2, 10]
    assert world.runs[1][0] == (4, world.built[1][1])
    assert world.runs[-1][0] == (8, world.built[8][1])
    assert all(trial.compared for trial in found.trials)
    # Each batch has one truth, and each candidate one build.
    assert world.truths == [4, 1, 8, 16]
    assert len(world.built) == 10
    assert any("batch: the best is batch 8, fp16, level 1" in line for line in said)


def test_builds_are_kept_and_cannot_crash_unless_asked(world: World) -> None:
    tuned(levels=(3,), streams=())
    assert {(s.engine_cache, s.build_in_subprocess, s.progress) for _, s in world.built} == {(True, True, "none")}
    world.built.clear()
    found = tuned(levels=(3,), streams=(), engine_cache=False, build_in_subprocess=False)
    assert {(s.engine_cache, s.build_in_subprocess) for _, s in world.built} == {(False, False)}
    assert found.settings.engine_cache is False


def test_latency_is_of_the_examples_batch(world: World) -> None:
    world.ms = times
    found = tuned(precisions=("tf32", "fp16"))
    assert {trial.batch for trial in found.trials} == {4}
    assert found.settings.precision == "fp16"
    assert named(tuned(batches=(8, 2)).best) == "streams: tf32 b2 l3 s4"


def test_batches_of_throughput(world: World) -> None:
    world.ms = times
    assert {trial.batch for trial in tuned(objective="throughput").trials} == {1, 2, 4, 8, 16, 32, 64}
    shapes = {"x": {0: Dim("batch", min=2, max=8)}}
    found = tuned(objective="throughput", dynamic_shapes=shapes)
    assert {trial.batch for trial in found.trials} == {2, 4, 8}
    with pytest.raises(DynamicShapeError, match="batch 16: is not within the dimension's range, 2 to 8"):
        tuned(objective="throughput", dynamic_shapes=shapes, batches=(4, 16))


def test_a_bound_on_latency(world: World) -> None:
    world.ms = times
    options: dict[str, Any] = {"objective": "throughput", "batches": (1, 4, 8, 16), "precisions": ("fp16",)}
    found = tuned(**options, max_latency=1.3)
    # At the lowest level it would be too slow.
    assert [named(trial) for trial in found.trials if trial.step == "larger batch"] == [
        "larger batch: fp16 b4 l3 s4",
        "larger batch: fp16 b8 l3 s4",
    ]
    assert found.batch == 4
    assert found.best.ms_p99 is not None
    assert found.best.ms_p99 <= 1.3
    assert "too slow" in str(found)
    nothing = tuned(**options, max_latency=0.1)
    assert nothing.chosen is None
    assert nothing.to_json()["settings"] is None
    with pytest.raises(NoCandidateError, match=r"T2T111.*the fastest takes .* ms, and 0\.1 ms are allowed"):
        _ = nothing.settings
    assert "nothing fits" in str(nothing)
    with pytest.raises(SettingError, match="bounds throughput"):
        tuned(max_latency=3.0)


def test_what_is_not_right_is_dropped(world: World) -> None:
    world.ms = times
    world.error = lambda settings: {"fp16": 0.5, "bf16": 0.05}.get(settings.precision or "", 0.0)
    found = tuned(precisions=("tf32", "fp16", "bf16"), levels=(3,), streams=())
    fp16 = found.trials[1]
    assert (fp16.precision, fp16.is_dropped, fp16.is_right, fp16.ms_p50) == ("fp16", True, False, None)
    assert fp16.max_rel_error == pytest.approx(0.5, rel=1e-2)
    assert fp16.allowed == 2e-2
    assert "dropped: above 0.02" in str(found)
    assert found.settings.precision == "bf16"
    assert all(settings.precision != "fp16" for run in world.runs for _, settings in run)
    # The user may allow less.
    strict = tuned(precisions=("tf32", "bf16"), levels=(3,), streams=(), max_error=0.02)
    assert [trial.is_dropped for trial in strict.trials] == [False, True, False]
    assert strict.settings.precision == "tf32"
    world.error = lambda settings: math.inf
    none = tuned(levels=(3,))
    assert none.to_json()["candidates"][0]["max_rel_error"] is None
    with pytest.raises(NoCandidateError, match="all results are too far from float64"):
        _ = none.batch


def test_what_fails_is_a_row(world: World) -> None:
    world.ms = times

    def fails(batch: int, settings: Settings) -> Exception | None:
        if settings.optimization_level == 3:
            return BuildCrashError("died of SIGSEGV", subject="net")
        return RuntimeError("out of\nmemory") if batch == 8 else None

    world.fails = fails
    found = tuned(objective="throughput", batches=(4, 8, 16), streams=(0,))
    errors = {named(trial): trial.error for trial in found.trials if trial.error}
    assert errors == {
        "batch: tf32 b8 l1": "RuntimeError: out of memory",
        "level: tf32 b16 l3": "BuildCrashError: [T2T403] net: died of SIGSEGV",
    }
    assert named(found.best) == "level: tf32 b16 l5"
    assert "died of SIGSEGV" in str(found).replace("\n", " ")
    world.fails = lambda batch, settings: RuntimeError("no kernel")
    with pytest.raises(NoCandidateError, match="no candidate runs and is right: RuntimeError: no kernel"):
        _ = tuned().best


def test_what_cannot_run_beside_others_keeps_its_times(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(levels=(1, 3), streams=())
    assert found.chosen is found.trials[0]

    class Full(Machine):
        def free_bytes(self) -> int:
            # After the first of the last run there is nothing left.
            return 1 if len(self.world.runs) == 3 and self.asked else super().free_bytes()

        def synchronize(self) -> None:
            self.asked.append(("", None, 0))

    world.runs.clear()
    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Full(world))
    said: list[str] = []
    found = tuned(levels=(1, 3), streams=(), report=said.append)
    assert [trial.compared for trial in found.trials] == [False] * 3
    assert found.chosen is found.trials[0]
    assert "not in the last run" in str(found)
    assert any("no memory left" in line for line in said)


# The end --------------------------------------------------------------------------------------------------------------


def test_a_budget_ends_the_builds_and_not_the_measuring(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ms = times
    clock = Clock(monkeypatch)
    world.fails = lambda batch, settings: clock.advance(10)
    found = tuned(objective="throughput", batches=(1, 2, 4, 8), budget=25)
    assert [named(trial) for trial in found.trials] == [
        "precision: tf32 b4 l1",
        "batch: tf32 b1 l1",
        "batch: tf32 b2 l1",
    ]
    assert found.stopped == "the 25 s of the budget were over before batch 8, tf32, level 1"
    assert found.stopped in str(found)
    assert all(trial.compared for trial in found.trials)
    assert found.batch == 4
    # There is a result in any case.
    assert len(tuned(budget=1e-9).trials) == 1


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch2trt.tools.tune import search

        self.now = 0.0
        monkeypatch.setattr(search.time, "monotonic", lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


def test_ctrl_c_keeps_what_was_measured(world: World) -> None:
    world.ms = times
    world.fails = lambda batch, settings: KeyboardInterrupt() if settings.optimization_level == 5 else None
    found = tuned()
    assert [named(trial) for trial in found.trials] == ["precision: tf32 b4 l1"]
    assert found.stopped == "interrupted"
    assert found.settings.optimization_level == 1
    world.fails = lambda batch, settings: None
    world.runs.clear()
    world.interrupts = 3 + 1  # while the last step is timed
    found = tuned()
    assert {trial.step for trial in found.trials} == {"precision", "level", "streams"}
    assert named(found.best) == "streams: tf32 b4 l3 s4"
    world.runs.clear()
    world.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        tuned()


def test_a_dead_gpu_ends_the_search(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Machine):
        def synchronize(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Dead(world))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuned()


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "objective: must be latency or throughput"),
        ({"objective": "throughput", "max_latency": 0}, "max_latency: must be positive"),
        ({"budget": -1}, "budget: must be positive"),
        ({"rounds": 0}, "rounds: must be positive"),
        ({"max_error": 0.0}, "max_error: must be positive"),
        ({"precisions": ("fp17",)}, "precision: takes 'fp32'"),
        ({"precisions": ()}, "precisions: names none"),
        ({"levels": (1, 6)}, "optimization_level: must be 0 to 5"),
        ({"levels": ()}, "levels: names none"),
        ({"streams": (-1,)}, "max_aux_streams: must not be negative"),
        ({"batches": ()}, "batches: names none"),
        ({"precisions": ("fp16",), "precision": "fp16"}, "precisions: is given, and so is precision"),
        ({"levels": (3,), "settings": {"optimization_level": 3}}, "levels: is given, and so is optimization_level"),
        ({"level": 3}, "level: unknown setting"),
    ],
    ids=str,
)
def test_what_makes_no_sense(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tuned(**options)
    assert world.built == []


def test_what_is_given_is_not_searched(world: World) -> None:
    found = tuned(settings=Settings(precision="fp16", optimization_level=2, max_aux_streams=1, cuda_graphs=False))
    assert [named(trial) for trial in found.trials] == ["precision: fp16 b4 l2 s1 plain"]


def test_batches_that_there_cannot_be(world: World) -> None:
    with pytest.raises(DynamicShapeError, match="batch 0: is not within the dimension's range, at least 1"):
        tuned(batches=(0,))


def test_what_is_wrong_with_the_module_is_raised(world: World) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(7, 7)

    with pytest.raises(CaptureError):
        torch2trt.tune(Wide().eval(), (X,), **QUIET)
    with pytest.raises(ExampleInputError, match="no tensor has a dimension"):
        torch2trt.tune(nn.ReLU().eval(), (torch.tensor(1.0),), **QUIET)
    assert world.built == []


class Pair(nn.Module):
    """Ids and their mask grow with the batch, a table does not, and a flat list grows by twos."""

    def forward(self, ids: Tensor, table: Tensor, *, mask: Tensor, pairs: Tensor) -> Tensor:
        return (table[ids] * mask[..., None]).sum((1, 2)) + pairs.reshape(-1, 2).sum(1)


def test_every_tensor_of_the_batch_grows_with_it(world: World) -> None:
    ids, table = torch.arange(6).reshape(2, 3), torch.randn(9, 4)
    kwargs = {"mask": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "pairs": torch.randn(4)}
    batch = Dim("batch", min=1, max=16)
    shapes = {"ids": {0: batch}, "table": None, "mask": {0: batch}, "pairs": {0: 2 * batch}}
    seen = dict[int, Any]()

    def take(program: Program, flavour: Any, settings: Settings) -> EngineModule:
        seen.update({program.signature.dims["batch"].opt: program.signature.dims})
        return build(program, flavour, settings)

    build = api.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "build", take)
        found = torch2trt.tune(
            Pair().eval(),
            (ids, table),
            kwargs,
            dynamic_shapes=shapes,
            batches=(2, 5),
            objective="throughput",
            levels=(3,),
            streams=(),
            **QUIET,
        )
    assert [trial.error for trial in found.trials] == [""] * 3
    assert list(seen) == [2, 5]
    bench = lab.Lab(
        Pair().eval(),
        (ids, table),
        kwargs,
        dynamic_shapes=shapes,
        name=None,
        machine=Machine(world),
        flavour=None,  # type: ignore[arg-type]
        overrides={},
        max_error=None,
        report=print,
    )
    args, more = bench.arguments(5)
    assert [value.shape[0] for value in (*args, *more.values())] == [5, 9, 5, 10]
    assert torch.equal(args[0], ids[[0, 1, 0, 1, 0]])
    assert bench.batch == 2
    assert bench.arguments(2) == ((ids, table), kwargs) or torch.equal(bench.arguments(2)[0][0], ids)


# The result -----------------------------------------------------------------------------------------------------------


def test_the_result_is_a_table_json_and_a_file(world: World, tmp_path: Path) -> None:
    world.ms = times
    found = tuned(precisions=("fp16",), cache_dir=tmp_path)
    text = str(found)
    assert "Net on Fake 9000" in text
    assert f"{found.best.ms_p50:.3f} ms" in text
    (line,) = (line for line in text.splitlines() if "→" in line)
    assert "streams" in line
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["chosen"] == found.trials.index(found.best)
    assert len(data["candidates"]) == len(found.trials)
    assert data["settings"] == {"precision": "fp16", "optimization_level": 3, "max_aux_streams": 4}
    found.save(tmp_path / "tuned.json")
    assert json.loads((tmp_path / "tuned.json").read_text()) == data["settings"]
    assert Settings.make(settings=tmp_path / "tuned.json", progress="none") == dataclasses.replace(
        found.settings, cache_dir=None
    )


@pytest.mark.filterwarnings("ignore")  # matplotlib's own
@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("SVG", b"<?xml")])
def test_the_picture(world: World, tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    world.ms = times
    found = tuned(objective="throughput", batches=(1, 4, 8), max_latency=2.0)
    path = tmp_path / f"tuned.{suffix}"
    found.plot(path)
    assert path.read_bytes().startswith(start)
    nothing = dataclasses.replace(found, chosen=None, trials=())
    nothing.plot(path)
    assert path.read_bytes().startswith(start)


def test_pictures_that_cannot_be_drawn(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(levels=(3,), streams=())
    with pytest.raises(SettingError, match="names no picture"):
        found.plot(tmp_path / "tuned.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"torch2trt\[plot\]"):
        found.plot(tmp_path / "tuned.png")
    assert list(tmp_path.iterdir()) == []


def test_near_ties_go_to_the_earlier() -> None:
    trials = [
        Trial("level", 1, Settings(optimization_level=n), "tf32", ms_p50=ms, ms_p99=ms, host_us=1.0)
        for n, ms in enumerate((1.0, 0.985, 0.97, 0.96))
    ]
    assert Goal().best(trials) is trials[2]
    assert Goal("throughput").best(trials) is trials[2]
    assert Goal().ranked(trials) == trials[::-1]
    assert Goal().best([]) is None


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tuned_net.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    )
    yield "tuned_net.py:net"
    sys.modules.pop("tuned_net.py", None)


def test_the_command(world: World, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.ms = times
    argv = ["tune", model, "--input", "x=1..2..8x3x8x8".replace("x=", "input:batch="), "--objective", "throughput"]
    argv += [
        "--max-latency",
        "50",
        "--batches",
        "2,8",
        "--precisions",
        "tf32,fp16",
        "--levels",
        "1,3",
        "--streams",
        "0",
    ]
    assert cli.main([*argv, "--max-error", "0.01", "--budget", "1000", "-o", "tuned.json", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["settings"] == {"precision": "fp16", "optimization_level": 3}
    assert data["output"] == "tuned.json"
    assert {each["batch"] for each in data["candidates"]} == {2, 8}
    assert {each["allowed"] for each in data["candidates"]} == {1e-2, 1e-4}
    assert "precision: the best is batch 2, fp16, level 1" in err
    assert cli._settings(cli._parser().parse_args(["compile", "m", "-o", "m.t2t", "--settings", "tuned.json"])) == {
        "precision": "fp16",
        "optimization_level": 3,
    }
    world.interrupts = len(world.runs) + 2
    assert cli.main(argv) == 130
    assert "Not all was tried: interrupted" in capsys.readouterr().out
    world.interrupts, world.fails = None, lambda batch, settings: RuntimeError("no kernel")
    assert cli.main([*argv, "-o", "none.json"]) == 1
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--batches", "1,x"], "T2T101", "takes numbers with commas between"),
        (["--objective", "speed"], "T2T101", "speed"),
        (["-o", "no/such/tuned.json"], "T2T603", "no/such"),
        (["--plot", "tuned.pdf"], "T2T101", "names no picture"),
    ],
)
def test_commands_that_cannot_be(
    world: World, model: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: str, text: str
) -> None:
    assert cli.main(["tune", model, "--input", "1x3x8x8", *argv, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert text in json.dumps(error)
    assert world.built == []


@no_gpu
def test_without_a_gpu(model: str) -> None:
    with pytest.raises(NoGPUError, match="tune: engines are measured on NVIDIA GPUs"):
        tuned()
    assert cli.main(["tune", "torch.nn:Absent", "--input", "1"]) == 2


# Real builds ----------------------------------------------------------------------------------------------------------


@no_gpu
def test_engines_come_from_the_cache_the_second_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but the running is real: builds in children, the engine cache, errors by the interpreter."""
    told, programs = World(), dict[str, EngineModule]()
    build = api.build

    def kept(*args: Any) -> EngineModule:
        made = build(*args)
        programs[repr(made.artifact.settings)] = made
        return made

    def opened(artifact: Artifact, truth: Callable[..., Any]) -> EngineModule:
        program = programs[repr(artifact.settings)].program()
        made = EngineModule(artifact, program=program, interpret=api.interpret, truth=truth)
        return running(made, program.run)

    def turned(compiled: EngineModule, sets: Any) -> Any:
        call: Any = in_turns(compiled, sets)
        call.what = (int(sets[0][0][0].shape[0]), compiled.artifact.settings)
        return call

    def measured(calls: Any, machine: Any, *, rounds: int) -> Any:
        told.runs.append([])
        return real(calls, machine, rounds=1)

    real = lab.measure
    monkeypatch.setattr(api, "build", kept)
    monkeypatch.setattr(lab, "opened", opened)
    monkeypatch.setattr(lab, "in_turns", turned)
    monkeypatch.setattr(lab, "measure", measured)
    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Machine(told))
    told.ms = lambda batch, settings: 1.0 if settings.precision == "fp16" else 2.0
    module = Net().eval()
    options: dict[str, Any] = {"precisions": ("tf32", "fp16"), "levels": (0, 1), "streams": (0,), "cache_dir": tmp_path}
    found = torch2trt.tune(module, (X,), **options)
    assert [trial.error for trial in found.trials] == [""] * 5
    # CUDA graphs are no part of an engine.
    assert [trial.cache for trial in found.trials] == ["miss", "miss", "miss", "miss", "hit"]
    assert found.settings.precision == "fp16"
    assert 0 < (found.best.max_rel_error or 0) < 2e-2
    again = torch2trt.tune(module, (X,), **options)
    assert {trial.cache for trial in again.trials} == {"hit"}
    assert again.to_json()["settings"] == found.to_json()["settings"] == {"precision": "fp16", "optimization_level": 0}
    monkeypatch.undo()
    found.save(tmp_path / "tuned.json")
    compiled = torch2trt.compile(module, (X,), settings=tmp_path / "tuned.json", fallback=False, progress="none")
    assert compiled.artifact.settings.precision == "fp16"
    assert compiled.verify(X).passed
    assert compiled.reference(X).device == CPU
