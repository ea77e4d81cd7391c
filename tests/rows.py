"""Runs the rows of the tables and notes the operators of their graphs: ``python -m tests.rows build/rows.jsonl``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

from tests import opinfo
from tests.cases import all_rows
from tests.opinfo import Outcome
from tests.worker import LostError, Worker

ROW = "row"
"""Stands in place of the dtype, which a row may have several of."""


def check(name: str) -> Iterator[Outcome]:
    """Take one row through every stage; what it says is refused shall be."""
    (case,) = (case for case in all_rows() if case.name == name)
    bare = dataclasses.replace(case, unsupported="", raises="", tensorrt="")
    status, detail, operators = opinfo.outcome_of(bare)
    yield Outcome(name, ROW, 0, status, detail, operators)


def main(path: Path) -> None:
    """Check the rows that are not in the file yet."""
    done = {outcome.op for outcome in opinfo.recorded(path) if not outcome.is_defect}
    worker = Worker(check)
    for case in all_rows():
        if case.name not in done:
            try:
                outcomes = list(worker.results(case.name))
            except LostError as lost:
                outcomes = [Outcome(case.name, ROW, 0, lost.how, lost.detail)]
            opinfo.append(path, outcomes)
    worker.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
