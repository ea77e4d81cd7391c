"""Runs the suite, one model at a time: ``python -m tests.model_suite results.jsonl``.

What is in the file is not run again, except what failed with ``--again``; the last line of a model counts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from tests.model_suite import MODELS
from tests.model_suite.check import Outcome, check
from tests.worker import LostError, Work, Worker

# What a process has compiled makes the next captures no slower, but what libraries keep adds up.
_MODELS_A_PROCESS = 25


def run(path: Path, names: list[str], limit: float, check: Work = check) -> list[Outcome]:
    """Check models, each for so many seconds at most, and add a line for each to a file."""
    outcomes = []
    path.parent.mkdir(parents=True, exist_ok=True)
    worker = Worker(check, limit)
    for number, name in enumerate(names):
        if number and number % _MODELS_A_PROCESS == 0:
            worker.close()
            worker = Worker(check, limit)
        try:
            (outcome,) = worker.results(name)
        except LostError as lost:
            detail = f"{lost.how}: {lost.detail}" if lost.how == "crash" else f"hang: nothing came in {limit:.0f} s"
            outcome = Outcome(name, "failed", family=MODELS[name].family, detail=detail)
        outcomes.append(outcome)
        with path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        print(
            f"{number + 1}/{len(names)} {outcome.status:7}{outcome.seconds:7.1f} s {name} {outcome.detail}", flush=True
        )
    worker.close()
    return outcomes


def main() -> None:
    """Read the command line, and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.model_suite", description=__doc__)
    parser.add_argument("results", type=Path, help="the file of results, one JSON object a line")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="models with this in their names")
    parser.add_argument("--again", action="store_true", help="run what failed once more")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="of one model (default: 300)")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {found["name"]: found["status"] for found in map(json.loads, lines)}
    names = [
        name
        for name in MODELS
        if (not options.only or any(part in name for part in options.only))
        and (name not in done or (options.again and done[name] == "failed"))
    ]
    run(options.results, names, options.limit)


if __name__ == "__main__":
    main()
