"""Builds in a child process, so that a crash or a hang of TensorRT is an error and not the end of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from torch2trt.engine.progress import resolve
from torch2trt.errors import (
    ArtifactWriteError,
    BuildCrashError,
    BuildTimeoutError,
    Torch2TRTError,
    UnsupportedNode,
    UnsupportedOpsError,
)
from torch2trt.graph.program import Program
from torch2trt.graph.serialize import save_program
from torch2trt.graph.signature import Signature
from torch2trt.settings import Settings

# What lies in the folder that parent and child share, beside the program or instead of it.
JOB_FILE = "job.json"
PLAN_FILE = "plan"
ERROR_FILE = "error.json"
MODEL_FILE = "model.onnx"
CALL_FILE = "call.json"
LOG_FILE = "log.jsonl"
OUTPUT_FILE = "output"

UNWRITTEN = 4
"""The exit code of a worker that built a plan and could not leave it."""

_WORKER = "torch2trt.tools.build_worker"
_LAST_LINES = 10


@dataclass(frozen=True)
class OwnOperators:
    """Operators of a Program that are neither torch's nor this package's, in JSON values."""

    operators: list[str] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    """To import: they register the operators and converters. The file of one that is not found by its name."""
    libraries: list[str] = field(default_factory=list)
    """Shared libraries to load: what is registered in C++ is registered by one of them."""
    converted: list[str] = field(default_factory=list)
    """Operators that have a converter then."""
    plugins: dict[str, dict[str, bool]] = field(default_factory=dict)
    """Operators that are plugins, and with which options."""
    path: list[str] = field(default_factory=list)
    """``sys.path``."""

    @property
    def namespaces(self) -> set[str]:
        """The namespaces of the operators."""
        return {name.partition(".")[0] for name in self.operators}


@dataclass(frozen=True)
class Job:
    """What a child is to build, beside the program."""

    name: str
    flavour: str
    settings: Settings
    device: int | None
    """The CUDA device to build on, where there is one."""
    log_level: int
    own: OwnOperators = field(default_factory=OwnOperators)

    def write(self, folder: Path) -> None:
        """Leave the job in a folder.

        Raises:
            ArtifactWriteError: it could not be written.
        """
        text = json.dumps(dataclasses.asdict(self), default=str)
        try:
            (folder / JOB_FILE).write_text(text, encoding="utf-8")
        except OSError as error:
            raise _unwritten(folder, error) from error

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job in a folder."""
        data = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        return cls(**data | {"settings": Settings.from_json(data["settings"]), "own": OwnOperators(**data["own"])})


def _unwritten(folder: Path, error: OSError) -> ArtifactWriteError:
    return ArtifactWriteError(
        f"could not be written: {error}", subject=str(folder), hint="look at the folder's free space"
    )


def build_in_child(
    program: Program, settings: Settings, flavour_name: str, *, name: str, own: OwnOperators | None = None
) -> bytes:
    """Lower and build a Program in a child process, on the current CUDA device where there is one.

    ``settings.build_timeout`` counts from the child's start, a few seconds before its build.

    Args:
        own: the Program's own operators, where it has some.

    Returns:
        The plan.

    Raises:
        BuildTimeoutError: the time is over; the child is gone.
        BuildCrashError: the child died.
        BuildImportError: the child does not find one of the operators.
        Torch2TRTError: whatever the child raised, as it raised it.
        ArtifactError, ArtifactWriteError: the program cannot be written for the child.
    """
    program = dataclasses.replace(program, signature=program.signature.flat())
    own = own or OwnOperators()
    save = functools.partial(save_program, program, namespaces=own.namespaces)
    return _build(save, settings, flavour_name, name, own)


def build_model_in_child(
    data: bytes, path: Path | None, signature: Signature, settings: Settings, flavour_name: str, *, name: str
) -> bytes:
    """Parse and build an ONNX model in a child process, as :func:`build_in_child` does a Program.

    Args:
        data: a serialized ``ModelProto``.
        path: the file that it comes from, beside which its external weights are.
        signature: how the engine is called.

    Returns:
        The plan.
    """

    def save(folder: Path) -> None:
        call = {"path": None if path is None else os.fspath(path), "signature": signature.to_json()}
        try:
            (folder / MODEL_FILE).write_bytes(data)
            (folder / CALL_FILE).write_text(json.dumps(call), encoding="utf-8")
        except OSError as error:
            raise _unwritten(folder, error) from error

    return _build(save, settings, flavour_name, name, OwnOperators())


def _build(
    save: Callable[[Path], object], settings: Settings, flavour_name: str, name: str, own: OwnOperators
) -> bytes:
    show = resolve(settings.progress) == "terminal"
    job = Job(
        name=name,
        flavour=flavour_name,
        settings=dataclasses.replace(settings, progress="terminal" if show else "none"),
        device=torch.cuda.current_device() if torch.cuda.is_available() else None,
        log_level=min(logging.getLogger("torch2trt").getEffectiveLevel(), logging.INFO),
        own=own,
    )
    with tempfile.TemporaryDirectory(prefix="torch2trt-", ignore_cleanup_errors=True) as path:
        folder = Path(path)
        save(folder)
        job.write(folder)
        command = [sys.executable, "-m", _WORKER, path]
        return run_worker(command, folder, name=name, timeout=settings.build_timeout, show=show)


def run_worker(
    command: Sequence[str],
    folder: Path,
    *,
    name: str,
    timeout: float | None = None,
    show: bool = False,
    environment: Mapping[str, str] | None = None,
    started: Callable[[int], object] = lambda pid: None,
) -> bytes:
    """Run a command that leaves a plan or an error in a folder.

    Its records of ``logging`` are repeated here when it has ended. Its stdin ends when this process does.

    Args:
        command: the program and its arguments.
        folder: where it leaves its files.
        name: the model's, for errors.
        timeout: seconds it may take.
        show: whether its stderr is this process's own.
        environment: variables that it has beside this process's own.
        started: told the child's process id.

    Raises:
        BuildTimeoutError, BuildCrashError, Torch2TRTError: as :func:`build_in_child`.
    """
    try:
        code = run_child(command, folder, timeout=timeout, show=show, environment=environment, started=started)
    except subprocess.TimeoutExpired:
        raise BuildTimeoutError(
            f"the build did not end within {timeout:g} s",
            subject=name,
            hint="raise build_timeout, or lower optimization_level",
        ) from None
    finally:
        records = list(_records(folder))
        for record in records:
            logging.getLogger(record["name"]).log(record["level"], "%s", record["message"])
    if (folder / ERROR_FILE).exists():
        raise error_from_json(json.loads((folder / ERROR_FILE).read_text(encoding="utf-8")))
    if code == 0 and (folder / PLAN_FILE).exists():
        return (folder / PLAN_FILE).read_bytes()
    if code == UNWRITTEN:
        raise ArtifactWriteError(
            "the plan could not be written", subject=str(folder), hint="look at the folder's free space"
        )
    raise _crash(code, records, folder, name)


def run_child(
    command: Sequence[str],
    folder: Path,
    *,
    timeout: float | None = None,
    show: bool = False,
    environment: Mapping[str, str] | None = None,
    started: Callable[[int], object] = lambda pid: None,
) -> int:
    """Run a command that finds this package, and end it and what it started when this process wants to go on.

    Args:
        command, timeout, show, environment, started: as :func:`run_worker` takes them.
        folder: where its output goes, to :data:`OUTPUT_FILE`.

    Returns:
        The exit code; negative is the signal that it died of.

    Raises:
        subprocess.TimeoutExpired: the time is over.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    with open(folder / OUTPUT_FILE, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if show else output,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            # Ctrl-C reaches this process alone, which then ends the child.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    try:
        started(process.pid)
        return _wait(process, timeout)
    finally:
        _end(process)


def death_of(code: int) -> str | None:
    """How a process ended that did not end by itself, such as SIGSEGV; None for an exit code."""
    if code >= 0:
        return None
    names = {int(number): number.name for number in signal.Signals}
    return names.get(-code, f"signal {-code}")


def error_to_json(error: Torch2TRTError) -> dict[str, Any]:
    """An error of this package as JSON values."""
    data = {"code": error.code, "hint": error.hint}
    if isinstance(error, UnsupportedOpsError):
        return data | {"nodes": [dataclasses.asdict(node) for node in error.nodes]}
    return data | {"reason": error.reason, "subject": error.subject, "source": error.source}


def error_from_json(data: dict[str, Any]) -> Torch2TRTError:
    """The error that :func:`error_to_json` wrote, of the same class."""
    classes = {kind.code: kind for kind in _kinds(Torch2TRTError)}
    if data["code"] == UnsupportedOpsError.code:
        return UnsupportedOpsError([UnsupportedNode(**node) for node in data["nodes"]], hint=data["hint"])
    return classes[data.pop("code")](data.pop("reason"), **data)


def _kinds(kind: type[Torch2TRTError]) -> Iterator[type[Torch2TRTError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> int:
    start = time.monotonic()
    while True:
        left = None if timeout is None else start + timeout - time.monotonic()
        # In slices, because on Windows Ctrl-C does not end a wait.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(0.2 if left is None else min(0.2, max(left, 0)))
        if left is not None and left <= 0:
            raise subprocess.TimeoutExpired(process.args, timeout or 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, and the processes that it started."""
    if process.poll() is None:
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / LOG_FILE
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            # A crash may leave half a line.
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def _crash(code: int, records: list[dict[str, Any]], folder: Path, name: str) -> BuildCrashError:
    hint = "build again, or with a lower optimization_level or another precision"
    if death := death_of(code):
        what = f"died of {death}"
        if death == "SIGKILL":
            hint = "the system may have run out of memory"
    else:
        what = f"ended with exit code {code:#x}" if code > 255 else f"ended with exit code {code}"
    lines = [line for record in records for line in record["message"].splitlines()]
    lines += (folder / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    last = "".join(f"\n  | {line}" for line in lines[-_LAST_LINES:])
    return BuildCrashError(
        f"the build process {what}" + (f"; it said last:{last}" if last else ""), subject=name, hint=hint
    )
