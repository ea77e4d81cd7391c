"""The child process of :mod:`torch2trt.tools.bench.prepare`: ``python -m torch2trt.tools.bench.worker FOLDER``."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil
import torch
from torch import nn

import torch2trt
from torch2trt.engine.child import ERROR_FILE, PLAN_FILE, error_to_json
from torch2trt.engine.memory import give_back
from torch2trt.errors import BuildError, Torch2TRTError
from torch2trt.settings import Precision, Settings
from torch2trt.tools.bench import onnx_peer
from torch2trt.tools.bench.backends import arithmetic, inductor
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import Arguments, Case, Subject
from torch2trt.tools.bench.prepare import JOB_FILE, REPORT_FILE, Report, host_bytes
from torch2trt.tools.build_worker import end_with_parent
from torch2trt.tools.inputs import parse_profile
from torch2trt.trt import flavour as flavours

_WARM_CALLS = 3  # Inductor compiles in the first call and records its CUDA graphs in the second


# Seconds of what comes before the build, seconds of the build, and how to write what was built.
_Outcome = tuple[float, float, Callable[[Path], object]]


@dataclass(frozen=True)
class _Job:
    candidate: Candidate
    name: str
    precision: Precision
    module: nn.Module
    arguments: Arguments
    settings: Settings
    folder: Path
    shapes: dict[str, Any]
    """``dynamic_shapes`` and ``profiles`` of our engine."""
    lock: Path | None
    """The file whose lock a build of TensorRT holds; None: it shares the GPU with nothing."""

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, no other build of TensorRT times kernels on this GPU."""
        return contextlib.nullcontext() if self.lock is None else filelock.FileLock(self.lock)


def main(folder: Path) -> int:
    """Do the job in a folder, and leave the plan and a report there, or the error.

    Returns:
        The exit code.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    data = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    candidate = Candidate(**data["candidate"])
    try:
        lock = Path(data["lock"]) if data["lock"] else None
        job = _job(candidate, Case.from_json(data["case"]), data["settings"], folder, lock)
        with arithmetic(job.precision):
            report = _work(job)
    except Exception as error:
        traceback.print_exc()
        if not isinstance(error, Torch2TRTError):
            # Exporters and compilers have errors of their own.
            error = BuildError(f"{type(error).__name__}: {error}", subject=str(candidate))
        (folder / ERROR_FILE).write_text(json.dumps(error_to_json(error)), encoding="utf-8")
    else:
        (folder / REPORT_FILE).write_text(json.dumps(asdict(report)), encoding="utf-8")
    return 0


def _job(candidate: Candidate, case: Case, settings: dict[str, object], folder: Path, lock: Path | None) -> _Job:
    subject = Subject(case, sets=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Half precision is then the module's own.
    own = Settings.make(**settings, precision="fp32" if subject.precision == "fp32" else None)
    module, example = subject.module(device), subject.inputs(device)[0]
    profiles = [parse_profile(text) for text in case.profiles] or None
    shapes = {"dynamic_shapes": subject.dynamic_shapes, "profiles": profiles}
    return _Job(candidate, case.name, subject.precision, module, example, own, folder, shapes, lock)


def _work(job: _Job) -> Report:
    roads = {"onnx-tensorrt": _onnx, "torch2trt": _ours}
    road = roads.get(job.candidate.backend, _inductor)
    # Else the road would be measured by how much of it fits into what loading the model left.
    gc.collect()
    give_back()
    before = host_bytes(psutil.Process())
    # Python's imports and TensorRT's start belong to the first build's time, but to no model's memory.
    begin = time.time()
    first_capture_s, first_build_s, _ = road(_tiny(job))
    gc.collect()
    give_back()
    start = time.time()
    capture_s, build_s, save = road(job)
    end = time.time()
    save(job.folder / PLAN_FILE)
    return Report(first_build_s + build_s, first_capture_s + capture_s, begin, start, end, before)


def _tiny(job: _Job) -> _Job:
    """The same job for a network of one layer, timed anew: known timings would leave kernels' libraries unloaded."""
    like = next(job.module.parameters())
    module = nn.Conv2d(8, 8, 3).to(like.device, like.dtype).eval()
    example = torch.randn(1, 8, 16, 16).to(like.device, like.dtype)
    settings = dataclasses.replace(job.settings, timing_cache=False)
    return dataclasses.replace(
        job, name="tiny", module=module, arguments=((example,), {}), settings=settings, shapes={}, lock=None
    )


def _ours(job: _Job) -> _Outcome:
    keywords = {**job.shapes, **vars(job.settings)}
    with job.alone():
        compiled = torch2trt.compile(job.module, *job.arguments, name=job.name, **keywords)
    report = compiled.report
    return report["capture_s"], report["lower_s"] + report["build_s"], compiled.save


def _onnx(job: _Job) -> _Outcome:
    path = job.folder / "model.onnx"
    start = time.perf_counter()
    onnx_peer.export(job.module, *job.arguments, path, job.candidate.variant)
    exported = time.perf_counter()
    with job.alone():
        begin = time.perf_counter()
        plan = onnx_peer.build(path, flavours.load(job.settings.flavour), job.settings, name=job.name)
        end = time.perf_counter()
    return exported - start, end - begin, lambda file: file.write_bytes(plan)


def _inductor(job: _Job) -> _Outcome:
    """Compile, so that the parent finds everything in Inductor's own cache; there is nothing else to leave."""
    compiled = inductor(job.module, job.candidate.backend)
    args, kwargs = job.arguments
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(_WARM_CALLS):
            compiled(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 0.0, time.perf_counter() - start, lambda file: file.touch()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
