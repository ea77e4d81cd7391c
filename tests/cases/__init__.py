"""Rows for the operator test, one table a converter file."""

from __future__ import annotations

import torch


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """The same normally distributed numbers whenever the shape and the seed are the same."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)
