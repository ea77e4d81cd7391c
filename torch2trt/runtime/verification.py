"""Comparing results with the truth, output by output."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from torch2trt.graph.signature import Signature, SizeLeaf, TensorLeaf


@dataclass(frozen=True)
class Row:
    """One output against the truth."""

    name: str
    max_abs_error: float
    max_rel_error: float
    """Relative to the output's scale, the largest magnitude in the truth; for integers and booleans the fraction of
    elements that differ."""
    tolerance: float
    """Largest ``max_rel_error`` that passes. Integers too have one: an index such as argmax's may fall to the other
    side of a near-tie."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_rel_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What :meth:`EngineModule.verify` found."""

    name: str
    ran: Literal["engine", "reference"]
    """Whether the engine itself ran, or the reference interpreter in its place."""
    precision: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is within its tolerance."""
        return all(row.passed for row in self.rows)

    @property
    def max_abs_error(self) -> float:
        """The largest over all outputs."""
        return max((row.max_abs_error for row in self.rows), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """The largest over all outputs."""
        return max((row.max_rel_error for row in self.rows), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON values; an error that is infinite, JSON has no number for it, is null."""
        rows = [{**asdict(row), "passed": row.passed} for row in self.rows]
        data = {
            "name": self.name,
            "ran": self.ran,
            "precision": self.precision,
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "passed": self.passed,
            "outputs": [_finite(row) for row in rows],
        }
        return _finite(data)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        verdict = "passed" if self.passed else "failed"
        what = "engine" if self.ran == "engine" else "reference interpreter"
        table = Table(title=f"{self.name}: {verdict} ({what}, {self.precision})")
        for title in ("output", "max abs error", "max rel error", "tolerance", ""):
            table.add_column(title, justify="left" if title in ("output", "") else "right")
        for row in self.rows:
            numbers = (f"{value:.3g}" for value in (row.max_abs_error, row.max_rel_error, row.tolerance))
            table.add_row(row.name, *numbers, "passed" if row.passed else "failed")
        text = io.StringIO()
        Console(file=text, width=110, color_system=None).print(table)
        return text.getvalue().rstrip()


def compare(name: str, result: torch.Tensor, truth: torch.Tensor, tolerance: float) -> Row:
    """One output against the truth, of the same shape and any dtype and device.

    NaN matches NaN, and an infinity its equal; either against anything else is an infinite error.
    """
    if result.shape != truth.shape:
        return Row(name, math.inf, math.inf, tolerance)
    if truth.numel() == 0:
        return Row(name, 0.0, 0.0, tolerance)
    result, truth = result.detach().cpu(), truth.detach().cpu()
    if not result.is_floating_point():
        differs = (result != truth).double()
        error = (result.double() - truth.double()).abs().max()
        return Row(name, float(error), float(differs.mean()), tolerance)
    result, truth = result.double(), truth.double()
    same = (result == truth) | (result.isnan() & truth.isnan())
    error = torch.where(same, 0.0, (result - truth).abs()).nan_to_num(nan=math.inf, posinf=math.inf).max()
    finite = truth[truth.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return Row(name, float(error), float(error) / scale if scale else float(error), tolerance)


def compare_results(signature: Signature, result: Any, truth: Any, tolerance: float) -> tuple[Row, ...]:
    """A module's result against the true one: its tensors by name, and its sizes, which are exact."""
    rows: dict[str, Row] = {}
    pairs = zip(signature.outputs, pytree.tree_leaves(result), pytree.tree_leaves(truth), strict=True)
    for position, (leaf, have, want) in enumerate(pairs):
        match leaf:
            case TensorLeaf(name=name):
                rows[name] = compare(name, have, want, tolerance)
            case SizeLeaf():
                name = f"result {position}"
                rows[name] = compare(name, torch.tensor(have), torch.tensor(want), 0.0)
    return tuple(rows.values())


def compare_written(
    signature: Signature, found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor], tolerance: float
) -> Iterator[Row]:
    """What a module wrote into arguments and buffers against what it should have, in the order of the updates."""
    for update, have, want in zip(signature.updates, found, truth, strict=True):
        number = update.position - len(signature.inputs)
        name = f"argument {update.position}" if number < 0 else signature.state[number].buffer
        yield compare(f"{name} afterwards", have, want, tolerance)


def _finite(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in data.items()
    }
