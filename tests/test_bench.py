"""The benchmark: what is timed in which order, what is kept, and what becomes of everything that fails."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import run as suite_runner
from benchmarks import summary
from benchmarks.suites import SUITES
from torch2trt.errors import (
    ArtifactWriteError,
    BuildCrashError,
    BuildTimeoutError,
    ModelNameError,
    NoGPUError,
    SettingError,
)
from torch2trt.runtime import files
from torch2trt.runtime.module import EngineModule
from torch2trt.tools import weights
from torch2trt.tools.bench import builds, main_from_cli, measure, onnx_peer, rows, session, table
from torch2trt.tools.bench.backends import inputs_for
from torch2trt.tools.bench.builds import Skipped, Timings, build_all
from torch2trt.tools.bench.candidate import BACKENDS, Candidate, candidates
from torch2trt.tools.bench.case import Case, Subject, error_of, tensors
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.prepare import Prepared, prepare
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.session import Options, Request, Session
from torch2trt.tools.inputs import InputSpec
from torch2trt.trt import flavour

CPU = torch.device("cpu")
QUIET = {"progress": "none", "timing_cache": False}

MODELS = """
import os, time
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.line = nn.Linear(4, 4)

    def forward(self, ids, *, scale=None, shift=0.0):
        line = self.line(self.table(ids))
        return {"sum": line.sum(-1), "all": (line, None if scale is None else line * scale + shift)}

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 40_000))

def crash():
    os._exit(7)

def sleep():
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    return path


def case_of(models: Path, name: str = "net", **changes: Any) -> Case:
    return dataclasses.replace(Case(name, f"{models}:{name}", 2, "fp32", ("1x3x8x8",)), **changes)


# Timing ---------------------------------------------------------------------------------------------------------------


class FakeMachine:
    """Tells the times that it is given, in milliseconds by function, and keeps what was asked for."""

    def __init__(self, times: dict[str, float] | None = None) -> None:
        self.device = CPU
        self.name = "Fake 9000"
        self.gpus = ["0", "1"]
        self.times = times or {}
        self.asked: list[tuple[str, Any, int]] = []
        self.free = 1 << 30

    def gpu_ms(self, call: Callable[[int], Any], calls: int, *, lead_in: int) -> float:
        self.asked.append(("gpu", call, calls))
        return self.times.get(getattr(call, "name", ""), 1.0)

    def host_us(self, call: Callable[[int], Any], calls: int) -> float:
        self.asked.append(("host", call, calls))
        return 7.0

    def synchronize(self) -> None: ...

    def release(self) -> None: ...

    def free_bytes(self) -> int:
        self.free -= 100
        return self.free


def named(name: str, result: Any = None) -> Callable[[int], Any]:
    def call(number: int) -> Any:
        return result

    call.name = name  # type: ignore[attr-defined]
    return call


def test_functions_take_turns() -> None:
    machine = FakeMachine({"a": 0.01, "b": 1.0, "c": 100.0})
    calls = {name: named(name) for name in "abc"}
    samples = measure.measure(calls, machine, rounds=3)
    order = [(kind, call.name) for kind, call, _ in machine.asked]
    # One look at each, to know how many calls fill a slice; then the rounds.
    assert order == [("gpu", name) for name in "abc" * 4] + [("host", name) for name in "abc" * 3]
    slices = {call.name: calls for kind, call, calls in machine.asked[3:] if kind == "gpu"}
    assert slices == {"a": 200, "b": 10, "c": 4}
    assert samples["b"].gpu_ms == [1.0] * 3
    assert samples["b"].host_us_p50 == 7.0


def test_percentiles_lie_between_values() -> None:
    samples = measure.Samples(gpu_ms=[float(value) for value in range(1, 102)])
    assert samples.gpu_ms_p50 == 51.0
    assert samples.gpu_ms_p99 == 100.0
    assert measure.percentile([1.0, 2.0], 75) == 1.75


# Rows -----------------------------------------------------------------------------------------------------------------


BASE = Row("abc", "now", "net", 4, "fp16", "eager", gpu_ms_p50=2.0, gpu_ms_p99=2.5, host_us=100.0)


def row(backend: str = "eager", **changes: Any) -> Row:
    return dataclasses.replace(BASE, backend=backend, **changes)


def test_rows_are_replaced_singly_and_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.csv"
    first = [row("torch2trt", peak_host_bytes=1 << 40), row("eager", variant="nhwc"), row("eager", batch=1)]
    rows.replace(path, first)
    assert rows.read(path) == [first[2], first[1], first[0]]  # by batch, then in the order of the backends
    rows.replace(path, [row("eager", gpu_ms_p50=None, error='said "no",\nthen died')])
    kept = rows.read(path)
    assert [item.key for item in kept] == [item.key for item in (first[2], first[1], first[0])]
    assert kept[1].error == 'said "no",\nthen died'
    assert kept[1].gpu_ms_p50 is None
    assert kept[2] == first[0]
    columns = path.read_text().splitlines()[0].split(",")
    assert {"commit", "date", "model", "batch", "precision", "backend", "gpu_ms_p50", "gpu_ms_p99", "host_us"} < {
        *columns
    }
    assert {"build_s", "capture_s", "max_rel_error", "peak_host_bytes", "peak_gpu_bytes"} < {*columns}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.csv"
    rows.replace(path, [row()])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ArtifactWriteError, match="No space left"):
        rows.replace(path, [row(gpu_ms_p50=9.0)])
    monkeypatch.undo()
    assert rows.read(path) == [row()]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_named_after_what_the_numbers_depend_on() -> None:
    name = rows.csv_name("NVIDIA H200", "tensorrt", "10.6.0", "2.11.0+cu130")
    assert name == "NVIDIA-H200-tensorrt10.6.0-torch2.11.0.csv"


def test_speedups_are_of_the_same_run() -> None:
    eager, onnx, ours = rows.with_speedups(
        [
            row("eager", gpu_ms_p50=4.0),
            row("onnx-tensorrt", gpu_ms_p50=None, error="x"),
            row("torch2trt", gpu_ms_p50=1.0),
        ]
    )
    assert (eager.speedup_over_eager, onnx.speedup_over_eager, ours.speedup_over_eager) == (1.0, None, 4.0)
    assert ours.speedup_over_onnx is None


def test_the_slower_of_host_and_gpu_is_the_throughput() -> None:
    assert row(gpu_ms_p50=2.0, host_us=100.0).per_second == pytest.approx(2000)
    bound = row(gpu_ms_p50=2.0, host_us=4000.0)
    assert bound.per_second == pytest.approx(1000)
    assert bound.host_bound
    assert not row().host_bound
    assert row(max_rel_error=math.inf).to_json()["max_rel_error"] is None


def test_the_table_warns_and_says_what_failed() -> None:
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    failed = row("onnx-tensorrt", gpu_ms_p50=None, gpu_ms_p99=None, host_us=None, error="no parser")
    console.print(table.show([row(host_us=3000.0, variant="nhwc"), failed]))
    console.file.close()
    text = console.export_text()
    assert "net, batch 4, fp16" in text
    assert "eager (nhwc)" in text
    assert "Bound by the host, the GPU waits: eager" in text
    assert "onnx-tensorrt failed: no parser" in text


# Cases ----------------------------------------------------------------------------------------------------------------


def test_a_subject_is_the_same_in_every_process(models: Path) -> None:
    case = Case.from_json(case_of(models).to_json())
    assert case == case_of(models)
    one, two = Subject(case), Subject(case)
    args, kwargs = one.inputs(CPU)[0]
    assert args[0].shape == (2, 3, 8, 8)
    assert kwargs == {}
    torch.testing.assert_close(one.module(CPU)(*args), two.module(CPU)(*two.inputs(CPU)[0][0]), rtol=0, atol=0)
    assert not torch.equal(one.inputs(CPU)[0][0][0], one.inputs(CPU)[1][0][0])


def test_a_subject_has_its_precision_and_its_truth_has_not(models: Path) -> None:
    subject = Subject(case_of(models, precision="bf16"))
    args, _ = subject.inputs(CPU)[0]
    assert args[0].dtype == torch.bfloat16
    result = subject.module(CPU)(*args)
    assert result.dtype == torch.bfloat16
    (truth,) = subject.truth(CPU)
    torch.testing.assert_close(truth, subject.exact(args[0].float()).double(), rtol=1e-5, atol=1e-6)
    assert 1e-4 < error_of(result, [truth]) < 5e-2
    assert error_of(truth, [truth]) == 0.0


def test_the_batch_is_that_of_the_inputs_unless_given(models: Path) -> None:
    assert Subject(case_of(models, batch=None)).batch == 1
    assert Subject(case_of(models)).batch == 2


def test_layouts(models: Path) -> None:
    subject = Subject(case_of(models), sets=2)
    assert subject.has_layouts
    sets = subject.inputs(CPU)
    (changed,), _ = inputs_for(Candidate("eager", "nhwc"), sets)[1]
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(changed, sets[1][0][0])
    assert inputs_for(Candidate("eager", "nchw"), sets) is sets


def test_backends_and_their_variants() -> None:
    assert candidates(["torch2trt", "eager"]) == [
        Candidate("eager", "nchw"),
        Candidate("eager", "nhwc"),
        Candidate("torch2trt"),
    ]
    assert Candidate("torch2trt-static").source == Candidate("torch2trt")
    with pytest.raises(SettingError, match="tensorflow"):
        candidates(["tensorflow"])


# Weights --------------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Twenty blocks whose activations vanish with initial weights, and a head that starts as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(20))
        )
        self.pooled = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        means = self.blocks(x).mean((2, 3), keepdim=True)
        return self.head((self.pooled(means) * scale).flatten(1))


def test_random_weights_are_numerically_meaningful() -> None:
    torch.manual_seed(0)
    module = Deep().eval()
    x = torch.randn(6, 8, 10, 10)
    with torch.no_grad():
        assert module.blocks(x).std() < 1e-3
        weights.randomize(module, (x,), {"scale": torch.tensor([[[[2.0]]]])}, seed=3)
        value = module.blocks(x)
        assert 0.1 < value.std() < 10
        assert module(x, torch.tensor(2.0)).std() > 1e-2
    constant = [name for name, value in module.named_parameters() if bool((value == value.flatten()[0]).all())]
    assert constant == []


def test_random_weights_depend_on_the_seed_alone() -> None:
    x, scale = torch.randn(2, 8, 6, 6), torch.ones(())

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = Deep().eval()
        torch.randn(seed + 1)  # torch's own generator is elsewhere
        weights.randomize(module, (x, scale), seed=seed)
        return torch.cat([value.flatten() for value in module.state_dict().values()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


# The peer -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_the_peer_exports_nested_calls(models: Path, tmp_path: Path, exporter: str) -> None:
    from onnx.reference import ReferenceEvaluator

    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    module = scope["Pair"]().eval()
    args, kwargs = (torch.tensor([[1, 2, 3]]),), {"scale": torch.randn(4), "shift": 0.5}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    onnx_peer.export(module, args, kwargs, tmp_path / "m.onnx", exporter)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    evaluator = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    assert evaluator.input_names == ["in0", "in1"]
    assert evaluator.output_names == ["out0", "out1", "out2"]
    found = evaluator.run(None, {"in0": args[0].numpy(), "in1": kwargs["scale"].numpy()})
    with torch.no_grad():
        wanted = tensors(module(*args, **kwargs))
    assert error_of([torch.from_numpy(value) for value in found], wanted) < 1e-5


# Builds ---------------------------------------------------------------------------------------------------------------


def test_builds_in_children(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, missing = case_of(models, "wide", precision="fp16"), case_of(models, name="absent", model=f"{models}:absent")
    crash = case_of(models, name="crash", model=f"{models}:crash")
    tasks = [
        (good, Candidate("torch2trt")),
        (good, Candidate("onnx-tensorrt", "torchscript")),
        (missing, Candidate("torch2trt")),
        (crash, Candidate("onnx-tensorrt", "dynamo")),
    ]
    said: list[str] = []
    timings = Timings(None, tmp_path / "cache", flavour.load())
    common: dict[str, Any] = {"settings": QUIET, "timings": timings, "jobs": 2, "say": said.append}
    outcomes = build_all(tasks, tmp_path, limit=100, deadline=math.inf, **common)
    assert list(outcomes) == tasks

    ours, peer, absent, crashed = outcomes.values()
    assert isinstance(ours, Prepared), said
    assert isinstance(peer, Prepared), said
    module = EngineModule.load(ours.folder / "plan")
    assert module.artifact.precision == "fp16"
    assert (peer.folder / "plan").stat().st_size > 1000
    for prepared in (ours, peer):
        assert prepared.build_s > 0
        assert prepared.capture_s > 0
        assert 2 * 192 * 40_000 <= prepared.peak_host_bytes < 200 << 20
    assert isinstance(absent, ModelNameError)
    assert isinstance(crashed, BuildCrashError)
    assert "exit code 7" in str(crashed)
    assert len(said) == 4

    # What is there is not built again; what failed is.
    monkeypatch.setattr(builds, "prepare", lambda *args, **kwargs: prepare(*args, **{**kwargs, "timeout": 0.01}))
    again = build_all(tasks[1:3], tmp_path, limit=100, deadline=math.inf, **common)
    assert again[tasks[1]] == peer
    assert isinstance(again[tasks[2]], BuildTimeoutError)
    # When the time is over, nothing has failed: it was not tried, or not to its end.
    for deadline in (time.monotonic() - 1, time.monotonic() + 50):
        late = build_all(tasks[2:3], tmp_path, limit=100, deadline=deadline, **common)
        assert isinstance(late[tasks[2]], Skipped)


def test_builds_are_spread_over_the_gpus(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used, both = [], threading.Barrier(2, timeout=10)

    def build(*args: Any, environment: dict[str, str], **kwargs: Any) -> Prepared:
        used.append(environment["CUDA_VISIBLE_DEVICES"])
        both.wait()
        return Prepared(tmp_path, 1.0, 1.0, 0)

    monkeypatch.setattr(builds, "prepare", build)
    tasks = [(case_of(models, batch=size), Candidate("torch2trt")) for size in (1, 2, 3, 4)]
    build_all(
        tasks,
        tmp_path,
        settings=QUIET,
        timings=Timings(None, tmp_path, flavour.load()),
        jobs=2,
        gpus=["3", "GPU-5"],
        limit=1,
        deadline=math.inf,
        say=lambda line: None,
    )
    assert sorted(used) == ["3", "3", "GPU-5", "GPU-5"]


def test_interrupted_builds_take_their_children_along(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def interrupted(*args: Any, started: Callable[[psutil.Process], None], **kwargs: Any) -> Prepared:
        started(psutil.Process(child.pid))
        raise KeyboardInterrupt

    monkeypatch.setattr(builds, "prepare", interrupted)
    timings = Timings(None, tmp_path, flavour.load())
    with pytest.raises(KeyboardInterrupt):
        build_all(
            [(case_of(models), Candidate("torch2trt"))],
            tmp_path,
            settings=QUIET,
            timings=timings,
            jobs=1,
            limit=1,
            deadline=math.inf,
            say=print,
        )
    assert child.wait(10) != 0


def test_timings_travel(tmp_path: Path) -> None:
    file = tmp_path / "timings"
    timings = Timings(file, tmp_path / "one", flavour.load())
    timings.keep()
    assert not file.exists()
    (kept,) = [tmp_path / "one" / "timing"]
    kept.mkdir(parents=True)
    (kept / timings._cache.name).write_bytes(b"known")
    timings.keep()
    assert file.read_bytes() == b"known"
    other = Timings(file, tmp_path / "two", flavour.load())
    assert (tmp_path / "two" / "timing" / timings._cache.name).read_bytes() == b"known"
    assert other.settings == {"timing_cache": True, "cache_dir": str(tmp_path / "two")}
    assert Timings(None, tmp_path / "three", flavour.load()).settings == {}


# Whole runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_backends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Builds that return what the test says, and backends that return the truth plus an error."""
    told: dict[str, Any] = {"outcomes": {}, "errors": {}}

    def build(tasks: list[Any], *_: Any, deadline: float, **__: Any) -> dict[Any, Any]:
        told["deadline"] = deadline
        prepared = Prepared(tmp_path, 3.0, 1.0, 1000)
        return {task: told["outcomes"].get(task[1].backend, prepared) for task in tasks}

    def open_call(candidate: Candidate, subject: Subject, sets: Any, *_: Any) -> Callable[[int], Any]:
        error = told["errors"].get(str(candidate), 0.0)
        if isinstance(error, Exception):
            raise error
        args, kwargs = sets[0]
        result = subject.module(CPU)(*args, **kwargs)
        return named(str(candidate), result + error * result.abs().max())

    monkeypatch.setattr(session, "build_all", build)
    monkeypatch.setattr(session, "open_call", open_call)
    return told


def run_one(models: Path, tmp_path: Path, machine: FakeMachine, *backends: str, **options: Any) -> dict[str, Row]:
    made = Session(Options(tmp_path, rounds=2, commit="abc", **options), machine)
    kept: list[Row] = []
    found = made.run([Request(case_of(models), backends or tuple(BACKENDS))], kept.extend)
    assert kept == found
    return {item.backend: item for item in found}


def test_the_fastest_right_variant_is_the_row(models: Path, tmp_path: Path, fake_backends: dict[str, Any]) -> None:
    times = {
        "eager (nchw)": 4.0,
        "eager (nhwc)": 3.0,
        "onnx-tensorrt (dynamo)": 1.0,
        "onnx-tensorrt (torchscript)": 2.0,
    }
    fake_backends["errors"] = {"onnx-tensorrt (dynamo)": 0.3}
    found = run_one(models, tmp_path, FakeMachine({**times, "torch2trt": 1.5}))
    assert list(found) == list(BACKENDS)
    eager, onnx, ours = found["eager"], found["onnx-tensorrt"], found["torch2trt"]
    assert (eager.variant, eager.gpu_ms_p50, eager.build_s) == ("nhwc", 3.0, None)
    assert (onnx.variant, onnx.gpu_ms_p50, onnx.build_s, onnx.peak_host_bytes) == ("torchscript", 2.0, 3.0, 1000)
    assert ours.speedup_over_eager == 2.0
    assert ours.speedup_over_onnx == pytest.approx(4 / 3)
    assert ours.max_rel_error is not None
    assert ours.max_rel_error < 1e-5
    assert ours.peak_gpu_bytes == 100
    assert (ours.gpu, ours.commit, ours.batch, ours.precision) == ("Fake 9000", "abc", 2, "fp32")


def test_a_failed_backend_is_a_row_with_a_reason(models: Path, tmp_path: Path, fake_backends: dict[str, Any]) -> None:
    fake_backends["outcomes"] = {"torch2trt": BuildCrashError("died of SIGSEGV"), "inductor-max-autotune": Skipped()}
    fake_backends["errors"] = {
        "onnx-tensorrt (dynamo)": RuntimeError("no\nopset"),
        "eager (nhwc)": RuntimeError("no layout"),
    }
    said: list[str] = []
    found = run_one(models, tmp_path, FakeMachine(), say=said.append)
    assert found["torch2trt"].error == "BuildCrashError: [T2T403] died of SIGSEGV"
    assert found["torch2trt-static"].error == found["torch2trt"].error
    assert found["torch2trt"].gpu_ms_p50 is None
    assert "inductor-max-autotune" not in found
    assert (found["onnx-tensorrt"].variant, found["onnx-tensorrt"].error) == ("torchscript", "")
    assert found["eager"].variant == "nchw"
    assert any("RuntimeError: no opset" in line for line in said)


def test_a_model_that_cannot_be_loaded_fails_in_every_row(
    models: Path, tmp_path: Path, fake_backends: dict[str, Any]
) -> None:
    made = Session(Options(tmp_path), FakeMachine())
    absent = case_of(models, name="absent", model=f"{models}:absent")
    found = made.run([Request(absent, ("eager", "torch2trt")), Request(case_of(models), ("eager",))])
    assert [(item.model, bool(item.error)) for item in found] == [("absent", True), ("absent", True), ("net", False)]
    assert "absent" in found[0].error


def test_a_case_is_measured_before_the_next_is_built(
    models: Path, tmp_path: Path, fake_backends: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    build = session.build_all

    def noted(tasks: list[Any], *args: Any, **kwargs: Any) -> dict[Any, Any]:
        events.append(f"build {tasks[0][0].batch}")
        return build(tasks, *args, **kwargs)

    monkeypatch.setattr(session, "build_all", noted)
    requests = [Request(case_of(models, batch=size), ("eager", "torch2trt")) for size in (3, 1)]
    made = Session(Options(tmp_path, rounds=2), FakeMachine())
    made.run(requests, lambda found: events.append(f"keep {found[0].batch}"))
    assert events == ["build 3", "keep 3", "build 1", "keep 1"]


def test_a_run_ends_before_its_deadline(models: Path, tmp_path: Path, fake_backends: dict[str, Any]) -> None:
    said: list[str] = []
    assert run_one(models, tmp_path, FakeMachine(), "eager", deadline=10.0, say=said.append) == {}
    assert "no time is left" in said[0]
    start = time.monotonic()
    assert run_one(models, tmp_path, FakeMachine(), "eager", deadline=100.0).keys() == {"eager"}
    assert 80 < fake_backends["deadline"] - start < 90  # what measuring takes is kept back


def test_what_fails_while_it_is_timed_fails_in_every_row(
    models: Path, tmp_path: Path, fake_backends: dict[str, Any]
) -> None:
    class Late(FakeMachine):
        def host_us(self, call: Callable[[int], Any], calls: int) -> float:
            raise RuntimeError("TensorRT refused to run")

    found = run_one(models, tmp_path, Late(), "eager", "torch2trt")
    assert [item.error for item in found.values()] == ["RuntimeError: TensorRT refused to run"] * 2


def test_a_dead_gpu_ends_the_run(models: Path, tmp_path: Path, fake_backends: dict[str, Any]) -> None:
    class Dead(FakeMachine):
        def synchronize(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    fake_backends["errors"] = {"torch2trt": RuntimeError("it crashed")}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_one(models, tmp_path, Dead(), "torch2trt")


def test_torchs_switches_are_as_they_were_after_a_run(
    models: Path, tmp_path: Path, fake_backends: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def switches() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    seen = []

    class Seeing(FakeMachine):
        def host_us(self, call: Callable[[int], Any], calls: int) -> float:
            seen.append(switches())
            return super().host_us(call, calls)

    before = switches()
    run_one(models, tmp_path, Seeing(), "eager")
    assert set(seen) == {("highest", True)}
    assert switches() == before


# The suites and the command line --------------------------------------------------------------------------------------


def test_suites_name_models_that_exist() -> None:
    import torchvision
    import transformers

    from benchmarks.models import language

    names = {
        "torchvision": torchvision.models.list_models(),
        "transformers": dir(transformers),
        language.__name__: dir(language),
    }
    for cases in SUITES.values():
        assert len({(case.name, case.batch, case.precision) for case in cases}) == len(cases)
        for case in cases:
            library, _, name = case.model.partition(":")
            assert name in names[library]
            assert case.precision
            assert [InputSpec.parse(text) for text in case.inputs]
    wanted = "resnet50:1 resnet50:32 resnet50:256 efficientnet_b0:1 efficientnet_b0:32 mobilenet_v3_large:1 "
    wanted += "convnext_tiny:32 vit_b_16:1 vit_b_16:32 swin_t:32 bert-base:1 bert-base:32"
    assert [f"{case.name}:{case.batch}" for case in SUITES["road"]] == wanted.split()


def test_the_runner_measures_what_is_missing() -> None:
    options = suite_runner._parser().parse_args(
        ["--rows", "resnet50:32,swin_t", "--max-autotune", "swin_t", "--backends", "eager,torch2trt", "--commit", "abc"]
    )
    requests = suite_runner.requests_of(options)
    assert [(request.case.name, request.case.batch) for request in requests] == [("resnet50", 32), ("swin_t", 32)]
    assert [request.backends[2:] for request in requests] == [(), ("inductor-max-autotune",)]
    known = [row(name, model="resnet50", batch=32) for name in ("eager", "torch2trt")]
    assert suite_runner.pending(requests, known, "abc") == requests[1:]
    assert suite_runner.pending(requests, known, "def") == requests
    failed = [known[0], dataclasses.replace(known[1], error="died")]
    assert suite_runner.pending(requests, failed, "abc") == requests
    dirty = [dataclasses.replace(item, commit="abc-dirty") for item in known]
    assert suite_runner.pending(requests, dirty, "abc-dirty") == requests
    with pytest.raises(SettingError, match="resnet51"):
        suite_runner.select(SUITES["road"], ["resnet51"])


def test_the_readme_has_what_was_measured() -> None:
    found = rows.read(summary.RESULTS)
    table = summary.markdown(found)
    assert table in summary.README.read_text(encoding="utf-8"), "run python -m benchmarks.summary"
    assert {row.model for row in found} == {case.name for case in SUITES["road"]}
    fast = [
        row("eager", gpu_ms_p50=3.0),
        row("torch2trt", gpu_ms_p50=2.0),
        row("onnx-tensorrt", gpu_ms_p50=3.0, commit="x"),
    ]
    assert "| net, 4, fp16 | 2.000 | 1.50 | – | – | abc |" in summary.markdown(fast)
    assert summary.written(f"a\n\n{summary.markdown([])}| old |\n\nb", table) == f"a\n\n{table}\nb"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    common: dict[str, Any] = {
        "inputs": [],
        "profiles": [],
        "settings": {},
        "batches": None,
        "repeats": None,
        "results": None,
        "seed": 0,
    }
    with pytest.raises(NoGPUError):
        main_from_cli(["torchvision:resnet18"], backends=None, **common)
    with pytest.raises(NoGPUError):
        main_from_cli(["torchvision:resnet18"], backends=["eager,torch2trt"], **common)
    with pytest.raises(ModelNameError):
        main_from_cli([], backends=None, **common)
    with pytest.raises(SettingError):
        main_from_cli(["torchvision:resnet18"], backends=["eager,tensorflow"], **common)
    assert suite_runner.main(["--rows", "resnet50:1"]) == 2
    assert "T2T304" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_run_on_the_gpu(models: Path, tmp_path: Path) -> None:
    backends = ("eager", "onnx-tensorrt", "torch2trt", "torch2trt-static")
    case = case_of(models, precision="fp16")
    found = Session(Options(tmp_path, rounds=3, jobs=4), CudaMachine()).run([Request(case, backends)])
    assert [item.backend for item in found] == list(backends)
    for item in found:
        assert item.error == ""
        assert item.max_rel_error is not None
        assert item.max_rel_error < 1e-2
        assert item.gpu_ms_p50
        assert item.gpu_ms_p99 is not None
        assert item.gpu_ms_p50 <= item.gpu_ms_p99
        assert item.host_us
        assert 0 < item.host_us < 1e5
    assert found[2].peak_gpu_bytes is not None  # the GPU's own count, which changes with whatever else runs there
