"""The one generic test: every row of every table, on every stage."""

from __future__ import annotations

import pytest
import torch

from tests.cases import all_rows
from tests.harness import OpCase, check_case

ROWS = all_rows()

# Where there is a GPU, every row runs on it too.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


def test_names_are_unique() -> None:
    names = [case.name for case in ROWS]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_op(case: OpCase) -> None:
    check_case(case)
