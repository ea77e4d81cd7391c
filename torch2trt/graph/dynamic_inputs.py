"""Which sizes of a call's tensors have names, in what ranges, where no signature says it: of a module in pieces."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from torch2trt.errors import ArtifactError, InputShapeError
from torch2trt.sizes import (
    DimRange,
    Size,
    evaluate,
    linear,
    size_from_json,
    size_to_json,
    spell,
    symbol,
)


@dataclass(frozen=True)
class DynamicInputs:
    """Named dynamic dimensions of the inputs, with the optimization profiles that engines are to have for them."""

    axes: Mapping[str, Mapping[int, Size]]
    """By the path of a tensor among the arguments, such as ``images[0]``: its dynamic axes, linear in one name each."""
    dims: Mapping[str, DimRange]
    profiles: tuple[Mapping[str, DimRange], ...] = ()
    """The dimensions of each that differ from ``dims``; empty: one profile, of ``dims``."""

    @property
    def ranges(self) -> list[dict[str, DimRange]]:
        """The ranges of all dimensions in each optimization profile, of which there is at least one."""
        return [{**self.dims, **profile} for profile in self.profiles or ({},)]

    def sizes(self, leaves: Iterable[tuple[str, Any]]) -> dict[str, int]:
        """The sizes of the named dimensions in a call.

        Args:
            leaves: the call's leaves by path.

        Raises:
            InputShapeError: sizes that are not in range, that differ where they are one, or that no profile holds.
        """
        found: dict[str, int] = {}
        seen: dict[str, str] = {}
        for path, value in leaves:
            if not isinstance(value, torch.Tensor):
                continue
            for axis, size in self.axes.get(path, {}).items():
                name, number = self._solve(path, value, axis, size)
                if found.setdefault(name, number) != number:
                    raise InputShapeError(
                        f"axis {axis} ({size}) makes {name!r} {number}, but it is {found[name]} in {seen[name]}",
                        subject=f"input {path!r}",
                        hint="give dimensions that are not the same names of their own",
                    )
                seen.setdefault(name, f"{path!r} axis {axis}")
        for name, actual in found.items():
            span = self.dims[name]
            if not span.min <= actual <= span.max:
                raise InputShapeError(
                    f"{name!r} is {actual}, the engines take {span.min} to {span.max}",
                    subject=f"input {seen[name]}",
                    hint=f"compile again with Dim({name!r}, min={min(actual, span.min)}, max={max(actual, span.max)})",
                )
        if not self.holds(found):
            raise InputShapeError(
                f"no profile holds {spell(found)}: there are {'; '.join(map(spell, self.ranges))}",
                subject="inputs",
                hint="compile again with a profile that does",
            )
        return found

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether a profile holds the sizes of some dimensions."""
        return any(
            all(ranges[name].min <= size <= ranges[name].max for name, size in sizes.items()) for ranges in self.ranges
        )

    def _solve(self, path: str, value: torch.Tensor, axis: int, size: Size) -> tuple[str, int]:
        """The name in a size, and what it is in a call."""
        solved = linear(size)
        assert solved is not None
        root, factor, offset = solved
        if axis >= value.dim():
            raise InputShapeError(
                f"has {value.dim()} dimension(s), axis {axis} is dynamic",
                subject=f"input {path!r}",
                hint="call it as in the example that it was compiled with",
            )
        number, rest = divmod(value.shape[axis] - offset, factor)
        if rest:
            raise InputShapeError(
                f"axis {axis} is {value.shape[axis]}, which is not {size} for any {root}",
                subject=f"input {path!r}",
                hint="pad it to such a size",
            )
        return root.name, number

    def span(self, size: Size, ranges: Mapping[str, DimRange]) -> DimRange:
        """A range that holds a size wherever the named dimensions are in theirs; ``opt`` is the size at their ``opt``.

        Its ends may be further apart than the size ever gets, since they come of interval arithmetic.
        """
        if isinstance(size, int):
            return DimRange(size, size, size)
        known = {symbol(name): ValueRanges(span.min, span.max) for name, span in ranges.items()}
        bounds = bound_sympy(size, known)
        low = int(bounds.lower) if bounds.lower > -sys.maxsize else -sys.maxsize
        high = int(bounds.upper) if bounds.upper < sys.maxsize else sys.maxsize
        opt = evaluate(size, {name: span.opt for name, span in ranges.items()})
        return DimRange(low, opt, high)

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` makes an equal object."""
        return {
            "axes": {
                path: {str(axis): size_to_json(size) for axis, size in axes.items()} for path, axes in self.axes.items()
            },
            "dims": _to_json(self.dims),
            "profiles": [_to_json(profile) for profile in self.profiles],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DynamicInputs:
        """The inverse of :meth:`to_json`.

        Raises:
            ArtifactError: sizes that are not linear in a dimension that has a range, or ranges that are none.
        """
        axes = {
            path: {int(axis): size_from_json(size) for axis, size in sizes.items()}
            for path, sizes in data["axes"].items()
        }
        found = cls(axes, _from_json(data["dims"]), tuple(map(_from_json, data["profiles"])))
        for path, sizes in axes.items():
            for axis, size in sizes.items():
                solved = linear(size)
                if axis < 0 or solved is None or solved[0].name not in found.dims or solved[1] < 1:
                    raise ArtifactError(f"the size of axis {axis} of {path!r} is no named dimension: {size}")
        for spans in (found.dims, *found.profiles):
            if not all(0 < span.min <= span.opt <= span.max for span in spans.values()) or spans.keys() - found.dims:
                raise ArtifactError(f"no ranges of dimensions: {spell(spans)}")
        return found


def _to_json(ranges: Mapping[str, DimRange]) -> dict[str, list[int]]:
    return {name: [span.min, span.opt, span.max] for name, span in ranges.items()}


def _from_json(data: Mapping[str, Any]) -> dict[str, DimRange]:
    if not all(type(size) is int for sizes in data.values() for size in sizes):
        raise TypeError("sizes are integers")
    return {name: DimRange(*sizes) for name, sizes in data.items()}
