"""The one generic test: every row of every table, on every stage."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.cases import all_rows
from tests.cases.indexing import CASES
from tests.harness import OpCase, check_case

ROWS = all_rows()

# Where there is a GPU, every row runs on it too.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


def test_names_are_unique() -> None:
    names = [case.name for case in ROWS]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


def test_rows_that_this_torch_cannot_take_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, left = replace(CASES[0], needs=lambda: True), replace(CASES[1], needs=lambda: False)
    monkeypatch.setattr("tests.cases.indexing.CASES", [kept, left])
    names = [case.name for case in all_rows()]
    assert kept.name in names
    assert left.name not in names


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_op(case: OpCase) -> None:
    check_case(case)
