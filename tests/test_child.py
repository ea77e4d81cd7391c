"""Builds in a child process: the same plan, the same errors, and a name for every way in which it can die."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.export import Dim

from torch2trt import errors
from torch2trt.converters.lower import lower
from torch2trt.engine import child
from torch2trt.engine.builder import build
from torch2trt.engine.child import Job, build_in_child, error_from_json, error_to_json, run_worker
from torch2trt.errors import (
    BuildCrashError,
    BuildError,
    BuildTimeoutError,
    Torch2TRTError,
    UnsupportedNode,
    UnsupportedOpsError,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.program import Program
from torch2trt.graph.serialize import save_program
from torch2trt.passes.pipeline import run_passes
from torch2trt.settings import Settings
from torch2trt.tools import build_worker
from torch2trt.trt import flavour


@dataclass
class Output:
    hidden: torch.Tensor
    others: tuple[torch.Tensor, ...]


torch.export.register_dataclass(Output, serialized_type_name=f"{__name__}.Output")

FLAVOUR = flavour.load()
QUIET = Settings(progress="none")


def make(module: nn.Module) -> Program:
    batch = {0: Dim("batch", min=1, max=8)}
    program = capture(module.eval(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=(batch,))
    return run_passes(program, QUIET)


@pytest.fixture(scope="module")
def program() -> Program:
    return make(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    yield
    assert not psutil.Process().children()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


# The real worker --------------------------------------------------------------------------------------------


def test_same_plan(program: Program, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "torch2trt")
    settings = Settings(progress="none", optimization_level=2, cache_dir=tmp_path, build_timeout=120.0)
    plan = build_in_child(program, settings, FLAVOUR.name, name="net")
    # What TensorRT said there is said here.
    assert "torch2trt.tensorrt" in {record.name for record in caplog.records}
    here = build(lower(program, FLAVOUR), program.signature, settings, name="net")
    assert abs(len(plan) - len(here)) < 0.01 * len(here)


def test_results_of_classes_that_the_child_has_not_imported() -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> Output:
            return Output(x + 1, (x * 2, x))

    assert build_in_child(make(Named()), QUIET, FLAVOUR.name, name="named")


def test_error_of_ours_comes_back() -> None:
    class Unsupported(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    program = make(Unsupported())
    with pytest.raises(UnsupportedOpsError) as here:
        lower(program, FLAVOUR)
    with pytest.raises(UnsupportedOpsError) as there:
        build_in_child(program, QUIET, FLAVOUR.name, name="net")
    assert str(there.value) == str(here.value)
    assert there.value.nodes == here.value.nodes


def test_time_limit(program: Program) -> None:
    start = time.monotonic()
    with pytest.raises(BuildTimeoutError, match=r"within 0\.01 s") as caught:
        build_in_child(program, Settings(progress="none", build_timeout=0.01), FLAVOUR.name, name="slow")
    assert caught.value.subject == "slow"
    assert time.monotonic() - start < 10


def test_error_that_is_not_ours(program: Program) -> None:
    # The child asks for a flavour that does not exist: a defect, seen from there.
    with pytest.raises(BuildCrashError, match=r"exit code 1; it said last:[^§]*Error"):
        build_in_child(program, QUIET, "no_such_flavour", name="net")


def test_worker_ends_with_its_parent(program: Program, tmp_path: Path) -> None:
    save_program(program, tmp_path)
    Job("net", FLAVOUR.name, QUIET, None, logging.INFO).write(tmp_path)
    # A stdin that is at its end is what a child sees whose parent is gone.
    command = [sys.executable, "-m", "torch2trt.tools.build_worker", str(tmp_path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == build_worker.ORPHANED
    assert not (tmp_path / child.PLAN_FILE).exists()


def test_job_travels_whole(tmp_path: Path) -> None:
    job = Job("net", "tensorrt", Settings(precision="fp16", cache_dir=tmp_path, workspace=1 << 30), 3, 10)
    job.write(tmp_path)
    assert Job.read(tmp_path) == job


# Ways to end ------------------------------------------------------------------------------------------------


def test_plan_of_a_worker(tmp_path: Path) -> None:
    code = "import sys, torch2trt; open(sys.argv[1] + '/plan', 'wb').write(b'plan')"
    assert run_worker([*python(code), str(tmp_path)], tmp_path, name="net") == b"plan"


@pytest.mark.skipif(os.name == "nt", reason="no signals there")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_signal(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / child.LOG_FILE).write_text('{"name": "torch2trt", "level": 20, "message": "tactic 7"}\n{"name"')
    code = f"import os; print('before the end', flush=True); os.kill(os.getpid(), {int(number)})"
    with pytest.raises(BuildCrashError) as caught:
        run_worker(python(code), tmp_path, name="resnet50")
    assert caught.value.subject == "resnet50"
    assert f"died of {number.name}" in caught.value.reason
    assert "| tactic 7\n  | before the end" in caught.value.reason
    assert ("memory" in caught.value.hint) == (number == signal.SIGKILL)


def test_exit_code(tmp_path: Path) -> None:
    with pytest.raises(BuildCrashError, match=r"exit code 1; it said last:[^§]*ValueError: no good"):
        run_worker(python("raise ValueError('no good')"), tmp_path, name="net")


def test_no_plan(tmp_path: Path) -> None:
    with pytest.raises(BuildCrashError, match=r"exit code 0\n"):
        run_worker(python("pass"), tmp_path, name="net")


def test_time_limit_ends_the_whole_family(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    code = (
        "import subprocess, sys, pathlib;"
        f"grandchild = subprocess.Popen([sys.executable, '-c', {sleep!r}]);"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(grandchild.pid)); grandchild.wait()"
    )
    with pytest.raises(BuildTimeoutError):
        run_worker([*python(code), str(tmp_path)], tmp_path, name="net", timeout=3.0)
    grandchild = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("a process was left behind")


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_worker(python("import time; time.sleep(60)"), tmp_path, name="net")
    timer.join()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("show", [False, True])
def test_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str], show: bool) -> None:
    code = "import sys; print('bar', file=sys.stderr); open(sys.argv[1] + '/plan', 'wb')"
    run_worker([*python(code), str(tmp_path)], tmp_path, name="net", show=show)
    assert capfd.readouterr() == ("", "bar\n" if show else "")


# Errors -----------------------------------------------------------------------------------------------------

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, Torch2TRTError) and kind is not UnsupportedOpsError
]


TRAVELS = {
    "json": lambda error: error_from_json(error_to_json(error)),
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
def test_errors_travel(kind: Any, travel: Callable[[Any], Any]) -> None:
    error = kind("reason", subject="subject", source="a.py:1 in f", hint="hint")
    again = travel(error)
    assert type(again) is kind
    assert str(again) == str(error)


@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
def test_unsupported_nodes_travel(travel: Callable[[Any], Any]) -> None:
    error = UnsupportedOpsError([UnsupportedNode("n", "aten.x.default", "no", "a.py:1", "layer")], hint="hint")
    again = travel(error)
    assert isinstance(again, UnsupportedOpsError)
    assert str(again) == str(error)
    assert again.nodes == error.nodes


def test_timeouts_and_crashes_are_build_errors() -> None:
    assert issubclass(BuildTimeoutError, BuildError)
    assert issubclass(BuildCrashError, BuildError)
