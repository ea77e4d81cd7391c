"""How far a result may be from the truth: one table for tests, ``verify`` and the command line.

Errors are relative to the output's scale, the largest magnitude in the truth.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torch2trt.settings import Precision

RELATIVE: dict[Precision, float] = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 2e-2, "bf16": 1e-1}
"""Largest error by precision, for whole models against float64 eager."""


HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The dtypes of 16 bits, by name."""


def tolerance(precision: Precision, *, reference: bool = False) -> float:
    """The largest error allowed.

    Args:
        reference: the reference interpreter computed the result; it has no TF32 and computes in FP32 there.
    """
    return RELATIVE["fp32" if reference and precision == "tf32" else precision]


def effective_precision(precision: Precision | None, dtypes: Iterable[torch.dtype]) -> Precision:
    """The precision asked for, or, where none was, the coarsest that a module of these dtypes has."""
    if precision is not None:
        return precision
    return _meant(set(dtypes))


def with_halves(precision: Precision, halves: Iterable[str]) -> Precision:
    """A precision, or the coarsest of the dtypes of 16 bits, by name, in which some of it is computed all the same."""
    present = {HALVES[name] for name in halves}
    return max(precision, _meant(present), key=RELATIVE.__getitem__) if present else precision


def _meant(present: set[torch.dtype]) -> Precision:
    if torch.bfloat16 in present:
        return "bf16"
    return "fp16" if torch.float16 in present else "tf32"
