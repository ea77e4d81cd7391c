"""Rows for the operator test, one table a converter file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.harness import OpCase


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """The same normally distributed numbers whenever the shape and the seed are the same."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def together(*functions: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Several functions of the same arguments as one row: its time goes into the capture."""
    return lambda *args, **kwargs: tuple(function(*args, **kwargs) for function in functions)


def all_rows() -> list[OpCase]:
    """The rows of every table, but those that this torch cannot take."""
    rows: list[OpCase] = []
    for module in pkgutil.iter_modules(__path__):
        rows += importlib.import_module(f"{__name__}.{module.name}").CASES
    return [case for case in rows if case.needs is None or case.needs()]
