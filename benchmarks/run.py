"""Measure a suite on this machine's GPU: ``python -m benchmarks.run --suite road``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from benchmarks.suites import SUITES
from torch2trt.errors import SettingError, Torch2TRTError
from torch2trt.settings import Precision
from torch2trt.tools.bench import candidate, measure, rows, table
from torch2trt.tools.bench.case import Case
from torch2trt.tools.bench.command import commit_here
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.session import Options, Request, Session


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="torch2trt-bench-") as folder:
            session = Session(
                Options(
                    options.work or Path(folder),
                    jobs=options.jobs,
                    together=options.together,
                    rounds=options.rounds,
                    limit=options.limit,
                    deadline=options.deadline,
                    timings=options.timing_cache,
                    commit=options.commit,
                    say=lambda line: print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True),
                ),
                CudaMachine(),
            )
            path = options.out / session.csv_name
            known = [] if options.again else rows.read(path)
            requests = pending(requests_of(options), known, options.commit)
            found = session.run(requests, lambda new: keep(path, new))
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=120).print(table.show(found))
    print(f"{len(found)} rows in {path}")
    return 0


def requests_of(options: argparse.Namespace) -> list[Request]:
    """What the options ask for, in the order that they name, or the suite's.

    Raises:
        SettingError: a row that the suite does not have, or an unknown backend.
    """
    cases = select(SUITES[options.suite], options.rows)
    tuned = select(cases, options.max_autotune) if options.max_autotune else []
    requests = []
    for case in cases:
        backends = (*options.backends, "inductor-max-autotune") if case in tuned else options.backends
        requests.append(Request(dataclasses.replace(case, precision=options.precision or case.precision), backends))
        candidate.candidates(backends)
    return requests


def select(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases named ``model`` or ``model:batch``, in the order of the names; all of them where none is named."""
    keys = {name: [case for case in cases if name in (case.name, f"{case.name}:{case.batch}")] for name in names}
    for name, found in keys.items():
        if not found:
            known = ", ".join(f"{case.name}:{case.batch}" for case in cases)
            raise SettingError("is no row of the suite", subject=name, hint=f"its rows are: {known}")
    chosen = dict.fromkeys(case for found in keys.values() for case in found)
    return list(chosen) if names else list(cases)


def pending(requests: Iterable[Request], known: Iterable[Row], commit: str) -> list[Request]:
    """The requests of which a row is missing, failed, or is of another commit; -dirty is another each time."""
    done = {row.key for row in known if row.commit == commit and not row.error and not commit.endswith("-dirty")}
    return [
        request
        for request in requests
        if any((*_key(request.case), backend) not in done for backend in request.backends)
    ]


def _key(case: Case) -> tuple[str, int | None, str | None, str, str]:
    return case.name, case.batch, case.precision, case.at, "; ".join(case.profiles)


def keep(path: Path, new: list[Row]) -> None:
    rows.replace(path, new)
    for row in new:
        text = row.error or f"{row.gpu_ms_p50:.3f} ms, host {row.host_us:.0f} µs, error {row.max_rel_error:.1e}"
        print(f"    {row.backend:26} {row.variant:11} {text}", flush=True)


def names(text: str) -> tuple[str, ...]:
    """An option's list."""
    return tuple(text.split(","))


def add_run(parser: argparse.ArgumentParser, *, suite: str) -> None:
    """What is measured, how, and where it is kept: options of every runner.

    Args:
        suite: the usual one.
    """
    parser.add_argument("--suite", choices=SUITES, default=suite)
    parser.add_argument("--rows", type=names, default=(), metavar="MODEL[:BATCH],…", help="only these of the suite")
    parser.add_argument("--precision", choices=get_args(Precision), help="unset: the suite's own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR", help="of the CSV")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep builds there for the next run of this commit")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="TensorRT's timings, carried from run to run")
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS, metavar="N", help="measurements of each")
    parser.add_argument("--limit", type=float, default=900.0, metavar="SECONDS", help="that one build may take")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="begin nothing after that")
    parser.add_argument("--commit", default=commit_here(), help="to record, where there is no git (default: HEAD)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False)
    add_run(parser, suite="road")
    parser.add_argument("--backends", type=names, default=candidate.DEFAULT, metavar="NAME,…", help="only these")
    parser.add_argument(
        "--max-autotune", type=names, default=(), metavar="MODEL[:BATCH],…", help="rows to measure Inductor's best on"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="child processes at a time that export and build (default: 1)"
    )
    parser.add_argument(
        "--together", type=int, default=1, metavar="N", help="rows built before the first is measured (default: 1)"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that this commit has already, too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
