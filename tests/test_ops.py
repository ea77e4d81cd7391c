"""The one generic test: every row of every table, on every stage."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

import tests.cases
from tests.harness import OpCase, check_case


def _rows() -> list[OpCase]:
    rows: list[OpCase] = []
    for module in pkgutil.iter_modules(tests.cases.__path__):
        rows += importlib.import_module(f"tests.cases.{module.name}").CASES
    return rows


ROWS = _rows()

# Where there is a GPU, every row runs on it too.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []


def test_names_are_unique() -> None:
    names = [case.name for case in ROWS]
    assert len(names) == len(set(names)), sorted({name for name in names if names.count(name) > 1})


@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_op(case: OpCase) -> None:
    check_case(case)
