"""What the benchmark builds: the peer's ONNX, engines in processes of their own, timings that are kept."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest
import torch

import torch2trt
from tests.benching import MODELS, QUIET, case_of, models
from torch2trt.engine.child import PLAN_FILE
from torch2trt.errors import BuildCrashError, BuildTimeoutError, ModelNameError
from torch2trt.runtime.module import EngineModule
from torch2trt.tools.bench import builds, onnx_peer, worker
from torch2trt.tools.bench.builds import Skipped, Timings, build_all
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import error_of, tensors
from torch2trt.tools.bench.prepare import JOB_FILE, Prepared, prepare
from torch2trt.trt import flavour

__all__ = ["models"]  # a fixture, which tests name


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

    def build(*args: Any, environment: dict[str, str], lock: Path, **kwargs: Any) -> Prepared:
        used.append((environment["CUDA_VISIBLE_DEVICES"], lock.name))
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
    assert sorted(used) == [("3", "3.lock"), ("3", "3.lock"), ("GPU-5", "GPU-5.lock"), ("GPU-5", "GPU-5.lock")]


@pytest.mark.parametrize(
    ("candidate", "builder"),
    [(Candidate("torch2trt"), (torch2trt, "compile")), (Candidate("onnx-tensorrt", "dynamo"), (onnx_peer, "build"))],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_one_engine_is_built_at_a_time_on_a_gpu(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidate: Candidate, builder: tuple[Any, str]
) -> None:
    build, lock = getattr(*builder), filelock.FileLock(tmp_path / "3.lock", is_singleton=False)
    alone: dict[str, bool] = {}

    def noted(*args: Any, name: str, **kwargs: Any) -> Any:
        try:
            with lock.acquire(timeout=0):
                alone[name] = False
        except filelock.Timeout:
            alone[name] = True
        return build(*args, name=name, **kwargs)

    monkeypatch.setattr(*builder, noted)
    case = case_of(models)
    job = {"case": case.to_json(), "candidate": asdict(candidate), "settings": QUIET, "lock": lock.lock_file}
    (tmp_path / JOB_FILE).write_text(json.dumps(job))
    monkeypatch.setattr(worker, "end_with_parent", lambda: None)
    assert worker.main(tmp_path) == 0
    assert (tmp_path / PLAN_FILE).exists()
    # The network of one layer, which comes first, is no measurement.
    assert alone == {"tiny": False, case.name: True}


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
