"""A run: case after case is built, and then measured alone on the GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from torch2trt.tolerance import tolerance
from torch2trt.tools.bench import measure, rows
from torch2trt.tools.bench.backends import Call, arithmetic, inputs_for, open_call
from torch2trt.tools.bench.builds import Outcome, Skipped, Task, Timings, build_all
from torch2trt.tools.bench.candidate import Candidate, candidates
from torch2trt.tools.bench.case import INPUT_SETS, Arguments, Case, Subject, error_of
from torch2trt.tools.bench.machine import Machine
from torch2trt.tools.bench.prepare import Prepared
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.whole import WholeCall, Wholes, measure_whole
from torch2trt.trt import flavour as flavours

# Seconds that a case's measurement takes before one has been seen, and more with Inductor, which loads its cache.
_CASE_S, _INDUCTOR_S = 12.0, 12.0
_ERROR_LENGTH = 400


@dataclass(frozen=True)
class Request:
    """A case, and the backends to measure it on."""

    case: Case
    backends: tuple[str, ...]

    @property
    def candidates(self) -> list[Candidate]:
        """All variants of the backends."""
        return candidates(self.backends)

    @property
    def tasks(self) -> list[Task]:
        """All that has to be built."""
        return [task for candidate in self.candidates if (task := self.task(candidate)) is not None]

    def task(self, candidate: Candidate) -> Task | None:
        """What has to be built for a candidate; one engine of ours serves all sizes of a dynamic case."""
        source = candidate.source
        if source is None:
            return None
        return self.case.built if source.backend == "torch2trt" else self.case, source


@dataclass(frozen=True)
class Options:
    """How to run."""

    work: Path
    """Folder for what is built, and where what was built there before is found."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For :class:`torch2trt.Settings`, JSON values; those for TensorRT's builder are the peer's too."""
    jobs: int = 1
    """Child processes at a time, spread over the machine's GPUs; on each TensorRT builds for one of them at a time."""
    together: int = 1
    """Cases that are built before the first of them is measured."""
    rounds: int = measure.ROUNDS
    limit: float = 900.0
    """Seconds that one build may take."""
    deadline: float | None = None
    """Seconds after which nothing new is begun."""
    timings: Path | None = None
    """As :class:`torch2trt.tools.bench.builds.Timings` takes it."""
    commit: str = ""
    say: Callable[[str], None] = lambda line: None
    """Takes lines of progress."""


@dataclass
class _Ready:
    """A candidate that runs."""

    call: Call
    sets: Sequence[Arguments]
    error: float
    gpu_bytes: int
    prepared: Prepared | None


class Session:
    """One run on one machine.

    Raises:
        FlavourNotFoundError, FlavourTooOldError, UnsupportedGPUError: no TensorRT that serves it.
    """

    def __init__(self, options: Options, machine: Machine) -> None:
        self._options = options
        self._machine = machine
        self._flavour = flavours.load(options.settings.get("flavour"))
        self._timings = Timings(options.timings, options.work.resolve() / "cache", self._flavour)
        # Where nothing else is asked for, every build starts as the first one on a machine does.
        own = {"progress": "none", "timing_cache": False, "engine_cache": False}
        self._settings = {**own, **options.settings, **self._timings.settings}
        self._torch = str(torch.__version__)
        self._end = time.monotonic() + (options.deadline or float("inf"))
        self._case_s = _CASE_S

    @property
    def csv_name(self) -> str:
        """The name of the file for this machine's results."""
        return rows.csv_name(self._machine.name, self._flavour.name, self._flavour.version_text, self._torch)

    def run(self, requests: Sequence[Request], keep: Callable[[list[Row]], None] = lambda rows: None) -> list[Row]:
        """Build some cases, measure them, then the next, so that a run that is stopped has measured what it has built.

        A case of which something was not built in time is not measured, since its ratios would be of other runs.

        Args:
            keep: takes the rows of a case as soon as they are there.

        Returns:
            All rows. A backend that failed has one that says why; one for which there was no time has none.
        """
        found: list[Row] = []
        for first in range(0, len(requests), self._options.together):
            group = requests[first : first + self._options.together]
            outcomes = self._build(group)
            for request in group:
                late = any(isinstance(outcomes[task], Skipped) for task in request.tasks)
                if late or self._end - time.monotonic() < self._expected(request):
                    self._options.say(f"{request.case}: no time is left to {'build' if late else 'measure'} it")
                    continue
                start = time.monotonic()
                measured = self._measure(request, outcomes)
                self._case_s = max(self._case_s, time.monotonic() - start)
                keep(measured)
                found += measured
        return found

    def _build(self, group: Sequence[Request]) -> Mapping[Task, Outcome]:
        options = self._options
        tasks = [task for request in group for task in request.tasks]
        return build_all(
            tasks,
            options.work / (options.commit or "work"),
            settings=self._settings,
            timings=self._timings,
            jobs=options.jobs,
            gpus=self._machine.gpus,
            limit=options.limit,
            deadline=self._end - sum(self._expected(request) for request in group),
            say=options.say,
        )

    def _expected(self, request: Request) -> float:
        """Seconds that measuring a case will take."""
        return self._case_s + _INDUCTOR_S * any(name.startswith("inductor") for name in request.backends)

    def _measure(self, request: Request, outcomes: Mapping[Task, Outcome]) -> list[Row]:
        case, machine = request.case, self._machine
        ready: dict[Candidate, _Ready] = {}
        # Only the texts: an exception keeps alive whatever its frames hold.
        failed: dict[Candidate, str] = {}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            try:
                subject = Subject(case)
                stack.enter_context(arithmetic(subject.precision))
                truth, sets = subject.truth(machine.device), subject.inputs(machine.device)
            except Exception as error:
                failed = dict.fromkeys(request.candidates, self._failure(case, "the model", error))
                return self._rows(request, case.precision or "", case.batch or 0, {}, {}, {}, failed)
            for candidate in request.candidates:
                task = request.task(candidate)
                built = outcomes[task] if task else None
                if candidate.variant == "nhwc" and not subject.has_layouts:
                    continue
                if isinstance(built, Exception):
                    failed[candidate] = one_line(built)
                    continue
                try:
                    ready[candidate] = self._open(candidate, subject, sets, built, truth)
                except Exception as error:
                    failed[candidate] = self._failure(case, candidate, error)
            calls = {candidate: item.call for candidate, item in ready.items()}
            try:
                samples = measure.measure(calls, machine, rounds=self._options.rounds)
                wholes = measure_whole(
                    {key: WholeCall(item.call, item.sets) for key, item in ready.items()},
                    machine,
                    rounds=self._options.rounds,
                )
            except Exception as error:
                # It says nothing of whose call it was.
                failed |= dict.fromkeys(ready, self._failure(case, "measuring", error))
                ready, samples, wholes = {}, {}, {}
        found = self._rows(request, subject.precision, subject.batch, ready, samples, wholes, failed)
        if any(name.startswith("inductor") for name in request.backends):
            torch._dynamo.reset()
        return found

    def _failure(self, case: Case, what: object, error: Exception) -> str:
        text = one_line(error)
        self._options.say(f"{case}: {what}: {text}")
        # After some errors nothing runs on the GPU any more: then this raises, and ends the run.
        self._machine.synchronize()
        return text

    def _open(
        self,
        candidate: Candidate,
        subject: Subject,
        sets: Sequence[Arguments],
        prepared: Prepared | None,
        truth: list[torch.Tensor],
    ) -> _Ready:
        machine = self._machine
        sets = inputs_for(candidate, sets)
        machine.release()
        free = machine.free_bytes()
        call = open_call(candidate, subject, sets, prepared, self._flavour, machine.device)
        # Every input set twice: compilers compile in the first call, and some record in the second.
        for number in range(2 * INPUT_SETS):
            call(number)
        error = error_of(call(0), truth)
        # What warming up took and gives back is no part of what running takes.
        machine.release()
        for number in range(INPUT_SETS):
            call(number)
        machine.synchronize()
        return _Ready(call, sets, error, free - machine.free_bytes(), prepared)

    def _rows(
        self,
        request: Request,
        precision: str,
        batch: int,
        ready: Mapping[Candidate, _Ready],
        samples: Mapping[Candidate, measure.Samples],
        wholes: Mapping[Candidate, Wholes],
        failed: Mapping[Candidate, str],
    ) -> list[Row]:
        """One row for each backend that ran or failed: its fastest variant's among those whose result is right."""
        options = self._options
        found = []
        for backend in dict.fromkeys(candidate.backend for candidate in request.candidates):
            row = Row(
                commit=options.commit,
                date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                model=request.case.name,
                batch=batch,
                precision=precision,
                backend=backend,
                jobs=math.ceil(options.jobs / len(self._machine.gpus)),
                timing_cache="carried" if self._settings["timing_cache"] else "",
                gpu=self._machine.name,
                flavour=self._flavour.name,
                flavour_version=self._flavour.version_text,
                torch=self._torch,
                sizes=request.case.at,
                profiles="; ".join(request.case.profiles),
            )
            own = [candidate for candidate in ready if candidate.backend == backend]
            errors = dict.fromkeys(error for candidate, error in failed.items() if candidate.backend == backend)
            if own:
                best = min(own, key=lambda item: _rank(ready[item].error, samples[item], precision))
                found.append(_measured(row, best, ready[best], samples[best], wholes[best]))
            elif errors:
                found.append(dataclasses.replace(row, error="; ".join(errors)))
        return rows.with_speedups(found)


def one_line(error: Exception) -> str:
    """An error as a row has it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_ERROR_LENGTH]


def _rank(error: float, samples: measure.Samples, precision: str) -> tuple[bool, float]:
    return error > tolerance(precision), samples.gpu_ms_p50  # type: ignore[arg-type]


def _measured(row: Row, candidate: Candidate, ready: _Ready, samples: measure.Samples, wholes: Wholes) -> Row:
    prepared, median = ready.prepared, wholes.at(50)
    return dataclasses.replace(
        row,
        variant=candidate.variant,
        gpu_ms_p50=samples.gpu_ms_p50,
        gpu_ms_p99=samples.gpu_ms_p99,
        host_us=samples.host_us_p50,
        build_s=prepared.build_s if prepared else None,
        capture_s=prepared.capture_s if prepared else None,
        max_rel_error=ready.error,
        peak_host_bytes=prepared.peak_host_bytes if prepared else None,
        peak_gpu_bytes=ready.gpu_bytes,
        latency_ms_p50=median.latency,
        latency_ms_p90=wholes.at(90).latency,
        latency_ms_p99=wholes.at(99).latency,
        h2d_ms_p50=median.h2d,
        compute_ms_p50=median.compute,
        d2h_ms_p50=median.d2h,
    )
