"""Rows for the operator test, one table a converter file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """The same normally distributed numbers whenever the shape and the seed are the same."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def together(*functions: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Several functions of the same arguments as one row: its time goes into the capture."""
    return lambda *args, **kwargs: tuple(function(*args, **kwargs) for function in functions)
