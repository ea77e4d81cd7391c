"""What is measured: one model in one precision and size, with the inputs that every backend gets alike."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.errors import DynamicShapeError, ExampleInputError
from torch2trt.frontend.dynamic_shapes import resolve_profiles
from torch2trt.runtime.verification import compare
from torch2trt.settings import Precision
from torch2trt.sizes import DimRange, spell
from torch2trt.tolerance import effective_precision
from torch2trt.tools import models, weights
from torch2trt.tools.inputs import Axis, Example, InputSpec, note, parse_profile

INPUT_SETS = 4
"""Inputs that calls take in turn, so that none finds its input in the cache merely because it just read it."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a call."""

_FEW = 4  # images that batch norms are fitted on
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One model in one precision and size: what a child process is told."""

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
    profiles: tuple[str, ...] = ()
    """Optimization profiles of our engine, as :func:`torch2trt.tools.inputs.parse_profile` takes them."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Of the dynamic dimensions of the inputs, by their names. The other backends are made for them alone."""

    def __str__(self) -> str:
        parts = (self.name, f"batch {self.batch}" if self.batch else "", self.at, self.precision or "")
        return " ".join(part for part in parts if part)

    @property
    def at(self) -> str:
        """The sizes of the dynamic dimensions in words, as ``batch 16, seq 128``."""
        return spell(dict(self.sizes))

    @property
    def built(self) -> Case:
        """What our engine is built for: with dynamic dimensions, all sizes that are measured."""
        return dataclasses.replace(self, sizes=())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The case that :meth:`to_json` wrote."""
        lists = {name: tuple(data[name]) for name in ("inputs", "profiles")}
        return cls(**{**data, **lists, "sizes": tuple((name, size) for name, size in data["sizes"])})

    def measured(self, batch: int | None = None) -> list[Case]:
        """This case in the sizes that each profile is tuned for; itself where no dimension is dynamic.

        Args:
            batch: the first dimension's size in its place, in the profiles that hold it.

        Raises:
            ExampleInputError: a dynamic dimension without a name.
            DynamicShapeError: profiles that do not fit the inputs, or none that holds the batch.
        """
        specs = [InputSpec.parse(text) for text in self.inputs]
        dims = _dims(specs)
        ranges: list[dict[str, DimRange]] = [dims]
        if self.profiles:
            ranges = [
                {**dims, **own} for own in resolve_profiles([parse_profile(text) for text in self.profiles], dims)
            ]
        first = {axis.name for spec in specs for axis in spec.shape[:1] if axis.dynamic}
        if not first or batch is None:
            alone = dataclasses.replace(self, batch=batch)
            return _distinct(dataclasses.replace(alone, sizes=_sizes(each)) for each in ranges)
        holding = [each for each in ranges if all(each[name].min <= batch <= each[name].max for name in first)]
        if not holding:
            raise DynamicShapeError(
                f"no profile holds {batch}: they are {'; '.join(map(spell, ranges))}", subject=", ".join(sorted(first))
            )
        exactly = dict.fromkeys(first, DimRange(batch, batch, batch))
        return _distinct(dataclasses.replace(self, sizes=_sizes({**each, **exactly})) for each in holding)


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
            few = case.built if case.batch is None else dataclasses.replace(case.built, batch=_FEW)
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
    def dynamic_shapes(self) -> dict[str, Any] | None:
        """``torch.export``'s form of the dynamic dimensions, in :attr:`Case.built`."""
        return self._examples[0].dynamic_shapes

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
    """The inputs in the case's sizes; none where they are tensors that came with the model.

    Raises:
        ExampleInputError: inputs whose sizes are fixed.
    """
    if not case.inputs and isinstance(model.default, Example):
        if case.batch is not None or case.profiles:
            hint = "describe them with --input"
            raise ExampleInputError("its own inputs have fixed sizes", subject=case.name, hint=hint)
        return []
    specs = [InputSpec.parse(text) for text in case.inputs] or list(model.default)  # type: ignore[arg-type]
    sizes = dict(case.sizes)

    def sized(axis: Axis) -> Axis:
        size = sizes.get(axis.name)
        return axis if size is None or not axis.dynamic else Axis(size, size, size)

    specs = [dataclasses.replace(spec, shape=tuple(map(sized, spec.shape))) for spec in specs]
    if case.batch is None:
        return specs
    axis = Axis(case.batch, case.batch, case.batch)
    return [dataclasses.replace(spec, shape=(axis, *spec.shape[1:])) for spec in specs]


def _dims(specs: Sequence[InputSpec]) -> dict[str, DimRange]:
    """The dynamic dimensions by name."""
    known: dict[str, Axis] = {}
    for spec in specs:
        for axis in spec.shape:
            if axis.dynamic and not axis.name:
                raise ExampleInputError(
                    "has a dynamic dimension without a name, by which rows tell its sizes apart",
                    subject=spec.name or "input",
                    hint=f"name it, as in batch={axis.min}..{axis.opt}..{axis.max}",
                )
            if axis.dynamic:
                note(axis, axis.name, known)
    return {name: DimRange(axis.min, axis.opt, axis.max) for name, axis in known.items()}


def _sizes(ranges: Mapping[str, DimRange]) -> tuple[tuple[str, int], ...]:
    return tuple((name, span.opt) for name, span in ranges.items())


def _distinct(cases: Iterable[Case]) -> list[Case]:
    return list(dict.fromkeys(cases))
