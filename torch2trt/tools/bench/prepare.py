"""Builds in child processes, watched from outside: how long, how much memory, and what became of them."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from torch2trt.engine.child import run_worker
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import Case

JOB_FILE = "job.json"
REPORT_FILE = "report.json"
_DONE_FILE = "prepared.json"

_WORKER = "torch2trt.tools.bench.worker"
_SAMPLE_S = 0.01


@dataclass(frozen=True)
class Prepared:
    """What a child left in a folder."""

    folder: Path
    build_s: float
    capture_s: float
    """Of the step before the build: our capture and passes, or the export to ONNX."""
    peak_host_bytes: int
    """Memory of its own, not of mapped files, beyond what building a network of one layer takes beside the model."""


@dataclass(frozen=True)
class Report:
    """What the child says of itself."""

    build_s: float
    capture_s: float
    begin: float
    """Of the build of one layer, in the clock of ``time.time``."""
    start: float
    """Of the model's own build, after it."""
    end: float
    host_bytes: int
    """Memory before both."""


def prepare(
    candidate: Candidate,
    case: Case,
    folder: Path,
    *,
    settings: dict[str, Any],
    timeout: float | None = None,
    lock: Path | None = None,
    environment: Mapping[str, str] | None = None,
    started: Callable[[psutil.Process], None] = lambda process: None,
) -> Prepared:
    """Build what a candidate needs in a child process, or take what is in the folder from an earlier time.

    Args:
        candidate: what to build, a :attr:`Candidate.source`.
        folder: where the child leaves its files; made if need be.
        settings: for :class:`torch2trt.Settings`, JSON values.
        timeout: seconds it may take.
        lock: the file whose lock it holds while TensorRT builds, so that no two builds time kernels on one GPU; unset:
            it waits for nobody.
        environment: variables that the child has beside this process's own.
        started: told the child.

    Raises:
        BuildTimeoutError, BuildCrashError, Torch2TRTError: as :func:`torch2trt.engine.child.run_worker`.
    """
    done = folder / _DONE_FILE
    if done.exists():
        return Prepared(folder, **json.loads(done.read_text(encoding="utf-8")))
    # What a failure left would be taken for the next one's.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {
        "case": case.to_json(),
        "candidate": asdict(candidate),
        "settings": settings,
        "lock": None if lock is None else str(lock),
    }
    (folder / JOB_FILE).write_text(json.dumps(job), encoding="utf-8")
    watch = _MemoryWatch()

    def begin(pid: int) -> None:
        process = psutil.Process(pid)
        started(process)
        watch.begin(process)

    try:
        run_worker(
            [sys.executable, "-m", _WORKER, str(folder)],
            folder,
            name=f"{case}, {candidate}",
            timeout=timeout,
            environment=environment,
            started=begin,
        )
    finally:
        watch.end()
    report = Report(**json.loads((folder / REPORT_FILE).read_text(encoding="utf-8")))
    least = watch.peak(report.begin, report.start, least=report.host_bytes)
    peak = watch.peak(report.start, report.end, least=least) - least
    prepared = Prepared(folder, report.build_s, report.capture_s, peak)
    values = {"build_s": report.build_s, "capture_s": report.capture_s, "peak_host_bytes": peak}
    done.write_text(json.dumps(values), encoding="utf-8")
    return prepared


def host_bytes(process: psutil.Process) -> int:
    """Memory that a process has of its own: resident, without mapped files where the system tells them apart."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


class _MemoryWatch:
    """Samples a process's memory from outside it, where nothing that it does can delay the sampling."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, process: psutil.Process) -> None:
        self._thread = threading.Thread(target=self._sample, args=(process,), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def peak(self, start: float, end: float, *, least: int) -> int:
        """The largest sample between two times of ``time.time``."""
        return max((amount for when, amount in self._samples if start <= when <= end), default=least)

    def _sample(self, process: psutil.Process) -> None:
        while not self._ended.wait(_SAMPLE_S):
            try:
                self._samples.append((time.time(), host_bytes(process)))
            except psutil.NoSuchProcess:
                return
