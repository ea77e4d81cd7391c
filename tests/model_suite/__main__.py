"""Runs the suite: ``python -m tests.model_suite results.jsonl``.

What is in the file is not run again, except what failed with ``--again``; the last line of a model counts.
"""

from __future__ import annotations

import argparse
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.model_suite import MODELS
from tests.model_suite.check import Outcome, check
from tests.worker import LostError, Work, Worker
from torch2trt.trt import flavour as flavours

# What a process has compiled makes the next captures no slower, but what libraries keep adds up.
_MODELS_A_PROCESS = 25


def run(path: Path, names: list[str], limit: float, check: Work = check, jobs: int = 1) -> list[Outcome]:
    """Check models, each for so many seconds at most, in so many processes, and add a line for each to a file."""
    outcomes: list[Outcome] = []
    waiting, lock = iter(names), threading.Lock()
    path.parent.mkdir(parents=True, exist_ok=True)

    def next_name() -> str | None:
        with lock:
            return next(waiting, None)

    def note(outcome: Outcome) -> None:
        with lock:
            outcomes.append(outcome)
            with path.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            count = f"{len(outcomes)}/{len(names)}"
            print(f"{count} {outcome.status:7}{outcome.seconds:7.1f} s {outcome.name} {outcome.detail}", flush=True)

    def work() -> None:
        worker = Worker(check, limit)
        done = 0
        while (name := next_name()) is not None:
            if done and done % _MODELS_A_PROCESS == 0:
                worker.close()
                worker = Worker(check, limit)
            note(_outcome(worker, name, limit))
            done += 1
        worker.close()

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work) for _ in range(jobs)]:
            future.result()
    return outcomes


def _outcome(worker: Worker, name: str, limit: float) -> Outcome:
    try:
        (outcome,) = worker.results(name)
    except LostError as lost:
        detail = f"{lost.how}: {lost.detail}" if lost.how == "crash" else f"hang: nothing came in {limit:.0f} s"
        return Outcome(name, "failed", family=MODELS[name].family, flavour=flavours.load().name, detail=detail)
    assert isinstance(outcome, Outcome)
    return outcome


def main() -> None:
    """Read the command line, and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.model_suite", description=__doc__)
    parser.add_argument("results", type=Path, help="the file of results, one JSON object a line")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="models with this in their names")
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of one model (default: 300)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {found["name"]: found["status"] for found in map(json.loads, lines)}
    names = [
        name
        for name in MODELS
        if (not options.only or any(part in name for part in options.only))
        and (name not in done or (options.again and done[name] == "failed"))
    ]
    run(options.results, names, options.limit, jobs=options.jobs)


if __name__ == "__main__":
    main()
