"""The search: one knob after the other, each from the best that is known, and at last all in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch2trt.settings import Precision, Settings
from torch2trt.tools.tune.lab import Lab
from torch2trt.tools.tune.trial import Goal, Trial

_LOOK = 10
"""Rounds of measurements in a step: enough to go on from the best."""


@dataclass(frozen=True)
class Plan:
    """What may be tried."""

    base: Settings
    batches: tuple[int, ...]
    """In rising order."""
    first: int
    """The batch that precisions are compared at."""
    precisions: tuple[tuple[Precision | None, Precision], ...]
    """The setting, and the arithmetic that it means; the most accurate first."""
    levels: tuple[int, ...]
    """In rising order: the first, which builds quickest, is the one that batches and precisions are compared at."""
    streams: tuple[int, ...] = ()
    graphs: tuple[bool, ...] = ()
    """Settings of ``cuda_graphs`` to try beside that of the base."""


class Search:
    """One search.

    Args:
        budget: seconds after which no build is begun; what is built is still measured.
        rounds: measurements of the last run.
        report: told what goes on, in lines.
    """

    def __init__(
        self,
        lab: Lab,
        plan: Plan,
        goal: Goal,
        *,
        budget: float | None,
        rounds: int,
        report: Callable[[str], object],
    ) -> None:
        self._lab = lab
        self._plan = plan
        self._goal = goal
        self._budget = budget
        self._rounds = rounds
        self._report = report
        self._start = time.monotonic()
        self._best: Trial | None = None
        self.trials: list[Trial] = []
        """In the order in which they were tried."""
        self.chosen: Trial | None = None
        """The best that is right and within the bound."""
        self.stopped = ""
        """Why not all was tried."""

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._start

    def run(self) -> None:
        """Search; Ctrl-C ends it with what is known.

        Raises:
            KeyboardInterrupt: nothing is known yet.
        """
        try:
            self._walk()
            self._compare()
        except KeyboardInterrupt:
            self.trials = [trial for trial in self.trials if trial.error or trial.is_dropped or trial.is_right]
            if not any(trial.is_right for trial in self.trials):
                raise
            self.stopped = "interrupted"
            self._choose(self._best or self._goal.best(self.trials))

    def _walk(self) -> None:
        plan = self._plan
        level = replace(plan.base, optimization_level=plan.levels[0])
        self._step("precision", [(plan.first, replace(level, precision=each), own) for each, own in plan.precisions])
        self._vary("batch", lambda best: ((each, best.settings) for each in plan.batches if each != best.batch))
        self._vary("level", lambda best: _each(best, "optimization_level", plan.levels[1:]))
        self._vary("streams", lambda best: _each(best, "max_aux_streams", plan.streams))
        # At this level the bound may allow more than at the lowest.
        before = None
        while self._goal.max_latency is not None and self._best is not before:
            before = self._best
            self._vary("larger batch", self._larger)
        self._vary("CUDA graphs", lambda best: _each(best, "cuda_graphs", plan.graphs))

    def _larger(self, best: Trial) -> list[tuple[int, Settings]]:
        return [(size, best.settings) for size in self._plan.batches if size > best.batch][:1]

    def _vary(self, step: str, others: Callable[[Trial], Iterable[tuple[int, Settings]]]) -> None:
        best = self._best
        if best is not None and not self.stopped:
            self._step(step, [(batch, settings, best.precision) for batch, settings in others(best)])

    def _step(self, step: str, candidates: list[tuple[int, Settings, Precision]]) -> None:
        """Build candidates, and time them in turns with the best so far, which stays it unless one is better."""
        new: list[Trial] = []
        for batch, settings, precision in candidates:
            trial = Trial(step, batch, settings, precision)
            # There is a result in any case.
            if self.trials and self._budget is not None and self.seconds >= self._budget:
                self.stopped = f"the {self._budget:g} s of the budget were over before {trial}"
                self._report(self.stopped)
                break
            self.trials.append(trial)
            new.append(trial)
            self._lab.build(trial)
        known = [self._best] if self._best is not None else []
        built = [trial for trial in new if not trial.error]
        if built:
            self._lab.measure([*known, *built], rounds=_LOOK)
        self._best = self._goal.best([*known, *new])
        if new and self._best is not None:
            self._report(f"{step}: the best is {self._best}")

    def _compare(self) -> None:
        """Time all that are right in turns, and choose."""
        # The best first: where memory is short, the others go without.
        timed = self._lab.measure(self._goal.ranked(self.trials), rounds=self._rounds)
        for trial in timed:
            trial.compared = True
        among = [trial for trial in self.trials if trial.compared]
        self._choose(self._goal.best(among) if among else self._best)

    def _choose(self, trial: Trial | None) -> None:
        self.chosen = trial if trial is not None and self._goal.is_met(trial) else None


def _each(best: Trial, name: str, values: Iterable[object]) -> Iterable[tuple[int, Settings]]:
    changed = (replace(best.settings, **{name: value}) for value in values)  # type: ignore[arg-type]
    return ((best.batch, settings) for settings in changed if settings != best.settings)
