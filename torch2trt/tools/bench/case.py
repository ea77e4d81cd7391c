"""What is measured: one model at one batch size and precision, with the inputs that every backend gets alike."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.errors import ExampleInputError
from torch2trt.runtime.verification import compare
from torch2trt.settings import Precision
from torch2trt.tolerance import effective_precision
from torch2trt.tools import models, weights
from torch2trt.tools.inputs import Axis, Example, InputSpec

INPUT_SETS = 4
"""Inputs that calls take in turn, so that none finds its input in the cache merely because it just read it."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""

_FEW = 4  # images that batch norms are fitted on
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One model at one batch size and precision: what a child process is told."""

    name: str
    """The ``model`` column."""
    model: str
    """As :func:`torch2trt.tools.models.resolve` takes it."""
    batch: int | None = None
    """Unset: that of the inputs."""
    precision: Precision | None = None
    """Unset: the module's own dtypes, with TF32 where they are float32."""
    inputs: tuple[str, ...] = ()
    """As :meth:`InputSpec.parse` takes them; empty: the model's own."""
    seed: int = 0

    def __str__(self) -> str:
        parts = (self.name, f"batch {self.batch}" if self.batch else "", self.precision or "")
        return " ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The case that :meth:`to_json` wrote."""
        return cls(**{**data, "inputs": tuple(data["inputs"])})


class Subject:
    """A case's module and inputs; equal in every process.

    Args:
        case: what to load.
        sets: the number of input sets.

    Raises:
        ModelNameError, MissingPackageError, ExampleInputError: as for any model by name.
    """

    def __init__(self, case: Case, *, sets: int = INPUT_SETS) -> None:
        self.case = case
        model = models.resolve(case.model, seed=case.seed)
        self.exact = model.module
        """The original module, on the CPU."""
        specs = _specs(case, model)
        self._examples = [model.example(specs, seed=case.seed + number) for number in range(sets)]
        if model.random:
            # The same weights at every batch size.
            few = case if case.batch is None else dataclasses.replace(case, batch=_FEW)
            example = model.example(_specs(few, model), seed=case.seed)
            weights.randomize(self.exact, example.args, example.kwargs, seed=case.seed)
        self.precision = effective_precision(case.precision, (value.dtype for value in self.exact.parameters()))
        first = next(value for value in pytree.tree_leaves(self.arguments(0)) if isinstance(value, torch.Tensor))
        self.batch = case.batch or (int(first.shape[0]) if first.dim() else 1)

    def module(self, device: torch.device) -> nn.Module:
        """A copy of the module in the case's precision."""
        return copy.deepcopy(self.exact).to(device, _DTYPES[self.precision])

    def inputs(self, device: torch.device) -> list[Arguments]:
        """The arguments of a call, set by set, in the case's precision."""
        return [
            pytree.tree_map_only(torch.Tensor, lambda value: _cast(value, _DTYPES[self.precision], device), arguments)
            for arguments in map(self.arguments, range(len(self._examples)))
        ]

    @property
    def has_layouts(self) -> bool:
        """Whether NHWC is another way to run it: it has weights of images."""
        return any(value.dim() == 4 for value in self.exact.parameters())

    def arguments(self, number: int) -> Arguments:
        """The arguments of one set as they were drawn, on the CPU."""
        example = self._examples[number]
        return example.args, example.kwargs

    def truth(self, device: torch.device) -> list[torch.Tensor]:
        """The tensors that the original module returns in float64 for the first of :meth:`inputs`, flattened."""
        module = copy.deepcopy(self.exact).to(device, torch.float64)
        cast = pytree.tree_map_only(
            torch.Tensor, lambda value: _cast(value, torch.float64, device), self.inputs(device)[0]
        )
        with torch.no_grad():
            return tensors(module(*cast[0], **cast[1]))


def tensors(result: Any) -> list[torch.Tensor]:
    """The tensors among a result's leaves."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def error_of(result: Any, truth: list[torch.Tensor]) -> float:
    """The largest error over all outputs, relative to each output's scale."""
    pairs = zip(tensors(result), truth, strict=True)
    return max(compare("", have, want, 0.0).max_rel_error for have, want in pairs)


def _cast(value: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _specs(case: Case, model: models.Model) -> list[InputSpec]:
    """The inputs at the case's batch size; none where they are tensors that came with the model.

    Raises:
        ExampleInputError: a dynamic dimension, or inputs whose batch size is fixed.
    """
    if not case.inputs and isinstance(model.default, Example):
        if case.batch is not None:
            hint = "describe them with --input"
            raise ExampleInputError("its own inputs have a fixed batch size", subject=case.name, hint=hint)
        return []
    specs = [InputSpec.parse(text) for text in case.inputs] or list(model.default)  # type: ignore[arg-type]
    for spec in specs:
        if any(axis.dynamic for axis in spec.shape):
            raise ExampleInputError(
                "has a dynamic dimension, and what is measured has one shape",
                subject=spec.name or "input",
                hint="give each dimension one size; --batch may come several times",
            )
    if case.batch is None:
        return specs
    axis = Axis(case.batch, case.batch, case.batch)
    return [dataclasses.replace(spec, shape=(axis, *spec.shape[1:])) for spec in specs]
