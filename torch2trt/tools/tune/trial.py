"""One candidate, and what came of trying it; and which of several is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch2trt.errors import SettingError
from torch2trt.settings import Precision, Settings
from torch2trt.tools.bench.measure import Samples, throughput

Objective = Literal["latency", "throughput"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")

_NOISE = 0.02
"""What is better by less than this part may not be better the next time."""


@dataclass(eq=False)
class Trial:
    """A batch size and settings; what is not known of them is None."""

    step: str
    """Of the search, in which it was tried first."""
    batch: int
    settings: Settings
    precision: Precision
    """The arithmetic: that of the settings, else the module's own."""
    error: str = ""
    """Why it does not run."""
    max_rel_error: float | None = None
    """Against the module in float64, relative to the output's scale, the largest over all outputs."""
    allowed: float | None = None
    """The largest ``max_rel_error`` that is right."""
    is_dropped: bool = False
    """Whether its results are too far from the truth; it is not timed then."""
    build_s: float | None = None
    """Seconds until the engine was there, from a build or from the engine cache."""
    cache: str = ""
    """``hit``, ``miss`` or ``off``: where the engine came from."""
    ms_p50: float | None = None
    """Milliseconds per call, of calls back to back: the GPU's time, or the host's where that is longer."""
    ms_p99: float | None = None
    host_us: float | None = None
    """Microseconds until a call returns."""
    gpu_bytes: int | None = None
    """Device memory that it takes, its weights among it."""
    compared: bool = False
    """Whether the times are those of the last run, in turns with all others; else they are of its step's run."""

    @property
    def is_right(self) -> bool:
        """Whether it was timed, which is done only where its results are within what is allowed."""
        return self.ms_p50 is not None

    @property
    def per_second(self) -> float | None:
        """Throughput in items of the batch, when calls come back to back."""
        if self.ms_p50 is None or self.host_us is None:
            return None
        return throughput(self.batch, self.ms_p50, self.host_us)

    def take(self, samples: Samples) -> None:
        """Take over what a run measured."""
        self.ms_p50, self.ms_p99, self.host_us = samples.gpu_ms_p50, samples.gpu_ms_p99, samples.host_us_p50

    def __str__(self) -> str:
        parts = [f"batch {self.batch}", self.precision, f"level {self.settings.optimization_level}"]
        if self.settings.max_aux_streams is not None:
            parts.append(f"{self.settings.max_aux_streams} auxiliary streams")
        if not self.settings.cuda_graphs:
            parts.append("no CUDA graphs")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON values; an infinite error, JSON has no number for it, is null."""
        error = self.max_rel_error
        return {
            "step": self.step,
            "batch": self.batch,
            "precision": self.precision,
            "settings": self.settings.to_json(),
            "error": self.error,
            "dropped": self.is_dropped,
            "max_rel_error": None if error is None or not math.isfinite(error) else error,
            "allowed": self.allowed,
            "build_s": self.build_s,
            "cache": self.cache,
            "ms_p50": self.ms_p50,
            "ms_p99": self.ms_p99,
            "host_us": self.host_us,
            "per_second": self.per_second,
            "gpu_bytes": self.gpu_bytes,
            "compared": self.compared,
        }


@dataclass(frozen=True)
class Goal:
    """What makes one candidate better than another.

    Raises:
        SettingError: an unknown objective, or a bound that makes no sense.
    """

    objective: Objective = "latency"
    max_latency: float | None = None
    """Milliseconds that a call may take in 99 of 100 cases, where throughput is the objective."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise SettingError(f"must be {' or '.join(OBJECTIVES)}, got {self.objective!r}", subject="objective")
        if self.max_latency is not None and self.max_latency <= 0:
            raise SettingError(f"must be positive, got {self.max_latency}", subject="max_latency")
        if self.max_latency is not None and self.objective == "latency":
            hint = "say objective='throughput'"
            raise SettingError("bounds throughput, and latency is the objective", subject="max_latency", hint=hint)

    def is_met(self, trial: Trial) -> bool:
        """Whether a candidate that was timed is within the bound."""
        return self.max_latency is None or (trial.ms_p99 or math.inf) <= self.max_latency

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """The best of those that are right; of two that differ by no more than noise the earlier.

        Where none is within the bound, it is the one that comes nearest; None where none is right.
        """
        right = [trial for trial in trials if trial.is_right]
        met = [trial for trial in right if self.is_met(trial)]
        if not met:
            return min(right, key=lambda trial: trial.ms_p99 or math.inf, default=None)
        found = met[0]
        for trial in met[1:]:
            if self._value(trial) > self._value(found) * (1 + _NOISE):
                found = trial
        return found

    def ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that are right, the best first; equal ones in their order."""
        right = [trial for trial in trials if trial.is_right]
        return sorted(right, key=lambda trial: (not self.is_met(trial), -self._value(trial)))

    def _value(self, trial: Trial) -> float:
        if self.objective == "throughput":
            return trial.per_second or 0.0
        return 1 / trial.ms_p50 if trial.ms_p50 else 0.0
