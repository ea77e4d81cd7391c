"""Whole runs of the benchmark: what becomes a row, and what becomes of everything that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benching import CPU, FakeMachine, case_of, models, named
from torch2trt.errors import BuildCrashError
from torch2trt.tools.bench import session
from torch2trt.tools.bench.builds import Skipped
from torch2trt.tools.bench.candidate import BACKENDS, Candidate
from torch2trt.tools.bench.case import Subject
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.prepare import Prepared
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.session import Options, Request, Session

__all__ = ["models"]  # a fixture, which tests name


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
    fake_backends["outcomes"] = {"torch2trt": BuildCrashError("died of SIGSEGV")}
    fake_backends["errors"] = {
        "onnx-tensorrt (dynamo)": RuntimeError("no\nopset"),
        "eager (nhwc)": RuntimeError("no layout"),
    }
    said: list[str] = []
    found = run_one(models, tmp_path, FakeMachine(), say=said.append)
    assert found["torch2trt"].error == "BuildCrashError: [T2T403] died of SIGSEGV"
    assert found["torch2trt-static"].error == found["torch2trt"].error
    assert found["torch2trt"].gpu_ms_p50 is None
    assert (found["onnx-tensorrt"].variant, found["onnx-tensorrt"].error) == ("torchscript", "")
    assert found["eager"].variant == "nchw"
    assert any("RuntimeError: no opset" in line for line in said)


def test_a_case_of_which_a_build_had_no_time_has_no_rows(
    models: Path, tmp_path: Path, fake_backends: dict[str, Any]
) -> None:
    fake_backends["outcomes"] = {"inductor-max-autotune": Skipped()}
    said: list[str] = []
    assert run_one(models, tmp_path, FakeMachine(), say=said.append) == {}
    assert "no time is left to build it" in said[0]


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
    events.clear()
    made = Session(Options(tmp_path, rounds=2, together=2), FakeMachine())
    made.run([*requests, requests[0]], lambda found: events.append(f"keep {found[0].batch}"))
    assert events == ["build 3", "keep 3", "keep 1", "build 3", "keep 3"]


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
