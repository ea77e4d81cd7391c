"""Calls from host memory to host memory: copies in, the run, copies out, and how long all of it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch.utils import _pytree as pytree

from torch2trt.tools.bench.case import Arguments, tensors
from torch2trt.tools.bench.measure import Call, percentile

_Key = TypeVar("_Key")

STAGES = ("latency", "h2d", "compute", "d2h")


@dataclass(frozen=True)
class Stages:
    """Milliseconds of one call, or of one percentile of many."""

    latency: float
    """By the host's clock, from the first copy until all results are in host memory."""
    h2d: float
    compute: float
    """The GPU's, or the host's where that takes longer to enqueue it."""
    d2h: float


class WholeCall:
    """One backend's calls with copies from and to pinned host memory.

    Args:
        call: runs an input set.
        sets: the input sets, on a CUDA device, which ``call`` reads.
    """

    def __init__(self, call: Call, sets: Sequence[Arguments]) -> None:
        self.call = call
        self._there = [tensors(arguments) for arguments in sets]
        self._here = [[pinned(value).copy_(value) for value in values] for values in self._there]
        self._results: list[torch.Tensor] = []

    def copy_in(self, number: int) -> None:
        """Enqueue the copies of a set; they change nothing, since they are what is there."""
        index = number % len(self._there)
        for there, here in zip(self._there[index], self._here[index], strict=True):
            there.copy_(here, non_blocking=True)

    def copy_out(self, result: Any) -> None:
        """Enqueue the copies of a result."""
        found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if [leaf.shape for leaf in found] != [here.shape for here in self._results]:
            self._results = [pinned(leaf) for leaf in found]
        for here, there in zip(self._results, found, strict=True):
            here.copy_(there, non_blocking=True)


class Watch(Protocol):
    """Times calls one by one."""

    def stages_ms(self, whole: WholeCall, number: int) -> Stages:
        """One call, from an idle GPU, on the input set whose turn it is at this number."""


@dataclass
class Wholes:
    """One backend's calls, one a round."""

    calls: list[Stages] = field(default_factory=list)

    def at(self, percent: float) -> Stages:
        """A percentile of each stage by itself."""
        return Stages(*(percentile([getattr(call, stage) for call in self.calls], percent) for stage in STAGES))


def measure_whole(wholes: Mapping[_Key, WholeCall], watch: Watch, *, rounds: int) -> dict[_Key, Wholes]:
    """Time whole calls in turns: A B C A B C …; the first of each is not counted."""
    found = {key: Wholes() for key in wholes}
    for number in range(rounds + 1):
        for key, whole in wholes.items():
            stages = watch.stages_ms(whole, number)
            if number:
                found[key].calls.append(stages)
    return found


def pinned(value: torch.Tensor) -> torch.Tensor:
    """Host memory like a tensor's that the GPU reads and writes by itself."""
    return torch.empty_like(value, device="cpu", pin_memory=torch.cuda.is_available())
