"""PyTorch's own operator samples: the first of each operator here, all of them with ``--sweep``."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.opinfo import DTYPES, OPS, Outcome, SampleInput, Worker, append, recorded

_REFUSED = {
    "draws random numbers": "randn",
    "no converter": "resize_",
    "the places of a scalar": "nonzero",
    "TensorRT has no torch.": """
        cdouble char double float_power log_softmax.with_dtype nn.functional.softmin.with_dtype short
        softmax.with_dtype to""",
    "a number taken from the values of a tensor": "tensor_split",
    "a number taken from a tensor": "item",
}
REFUSED = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
"""Operators whose first sample may be refused, and part of the reason."""


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("name", [name for name, op in OPS.items() if op.supports_dtype(DTYPES["float32"], "cpu")])
def test_first_sample(worker: Worker, name: str) -> None:
    (outcome,) = worker.check(name, "float32", limit=1)
    if outcome.status == "refused" and name in REFUSED:
        assert REFUSED[name] in outcome.detail, outcome
    else:
        assert outcome.status == "right", outcome


# The sweep, which may be stopped and taken up again -------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(pytestconfig: pytest.Config) -> Path:
    path: Path = pytestconfig.getoption("opinfo_results")
    return path


@pytest.fixture(scope="module")
def done(results: Path) -> dict[tuple[str, str], list[Outcome]]:
    """What was right or refused in an earlier run."""
    found = defaultdict(list)
    for outcome in recorded(results):
        found[outcome.op, outcome.dtype].append(outcome)
    return {key: outcomes for key, outcomes in found.items() if not any(outcome.is_defect for outcome in outcomes)}


@pytest.mark.sweep
@pytest.mark.timeout(0)  # some have a thousand samples; the worker sees to those that hang
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for dtype in DTYPES for name, op in OPS.items() if op.supports_dtype(DTYPES[dtype], "cpu")],
)
def test_all_samples(
    worker: Worker, results: Path, done: dict[tuple[str, str], list[Outcome]], name: str, dtype: str
) -> None:
    if (name, dtype) in done:
        pytest.skip(f"done, see {results}")
    outcomes = worker.check(name, dtype)
    append(results, outcomes)
    defects = [outcome for outcome in outcomes if outcome.is_defect]
    assert not defects, "\n".join(map(str, defects))


# The worker -----------------------------------------------------------------------------------------------------------


def _falls(name: str, dtype: str, index: int, sample: SampleInput) -> Outcome:
    if index == 1:
        os.abort()
    if index == 2:
        time.sleep(60)
    return Outcome(name, dtype, index, "right")


def test_a_crash_and_a_hang_cost_one_sample_each(tmp_path: Path) -> None:
    worker = Worker(_falls, patience=1.0)
    outcomes = worker.check("reshape", "float32", limit=4)
    worker.close()
    assert [outcome.status for outcome in outcomes] == ["right", "crash", "hang", "right"]
    assert outcomes[1].detail == "exit code -6"
    append(tmp_path / "results.jsonl", outcomes)
    append(tmp_path / "results.jsonl", [Outcome("reshape", "float32", 1, "right")])
    assert [outcome.status for outcome in recorded(tmp_path / "results.jsonl")] == ["right", "right", "hang", "right"]
