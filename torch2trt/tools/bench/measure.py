"""Timing several functions in turns: A B C A B C …, so that whatever drifts meets them all alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

ROUNDS = 50
_SLICE_MS = 10.0  # of the GPU's time that one round gives each function
_LEAST, _MOST = 4, 200  # calls of a slice
_LEAD_IN = 3  # calls before the clock starts, so that the GPU is busy and the function's data at hand
_BURST = 4  # calls whose host time is taken together: few enough that no launch waits for room in the queue
_WARM = 10

Call = Callable[[int], Any]
_Key = TypeVar("_Key")


class Clock(Protocol):
    """Times calls, each with its number, one after the other."""

    def gpu_ms(self, call: Call, calls: int, *, lead_in: int) -> float:
        """Milliseconds per call on the GPU, of calls that come back to back after some that are not timed."""

    def host_us(self, call: Call, calls: int) -> float:
        """Microseconds until a call returns, when the GPU has nothing else to do."""


@dataclass
class Samples:
    """One function's times, one of each kind a round."""

    gpu_ms: list[float] = field(default_factory=list)
    host_us: list[float] = field(default_factory=list)

    @property
    def gpu_ms_p50(self) -> float:
        """The median."""
        return percentile(self.gpu_ms, 50)

    @property
    def gpu_ms_p99(self) -> float:
        """The 99th percentile of the rounds' means."""
        return percentile(self.gpu_ms, 99)

    @property
    def host_us_p50(self) -> float:
        """The median."""
        return percentile(self.host_us, 50)


def throughput(batch: int, gpu_ms: float, host_us: float) -> float:
    """Items of a batch in a second, when calls come back to back."""
    return batch / max(gpu_ms / 1e3, host_us / 1e6)


def percentile(values: list[float], percent: float) -> float:
    """The percentile, interpolated between the values beside it."""
    return float(np.percentile(values, percent))


def measure(calls: Mapping[_Key, Call], clock: Clock, *, rounds: int = ROUNDS) -> dict[_Key, Samples]:
    """Time functions on the GPU, then on the host, each in rounds of one slice per function.

    Args:
        calls: functions that are warm.
        rounds: slices that each function gets.
    """
    samples = {key: Samples() for key in calls}
    lengths = {key: _slice(clock.gpu_ms(call, _WARM, lead_in=_LEAD_IN)) for key, call in calls.items()}
    for _ in range(rounds):
        for key, call in calls.items():
            samples[key].gpu_ms.append(clock.gpu_ms(call, lengths[key], lead_in=_LEAD_IN))
    for _ in range(rounds):
        for key, call in calls.items():
            samples[key].host_us.append(clock.host_us(call, _BURST))
    return samples


def _slice(ms: float) -> int:
    return min(max(math.ceil(_SLICE_MS / ms), _LEAST), _MOST)
