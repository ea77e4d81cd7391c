"""What a search found: a table, a picture, and a file of settings."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2trt.errors import NoCandidateError
from torch2trt.runtime.files import StrPath, atomic_file
from torch2trt.settings import Settings
from torch2trt.tools.tune.trial import Goal, Trial

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Tuning:
    """What was tried, and what is the best of it."""

    name: str
    gpu: str
    flavour: str
    goal: Goal
    trials: tuple[Trial, ...]
    """In the order in which they were tried."""
    chosen: Trial | None
    """None where none runs, is right and is within the bound."""
    stopped: str
    """Why not all was tried; empty where all was."""
    seconds: float

    @property
    def best(self) -> Trial:
        """The candidate that was chosen.

        Raises:
            NoCandidateError: there is none.
        """
        if self.chosen is not None:
            return self.chosen
        right = [trial for trial in self.trials if trial.is_right]
        if right:
            fastest = min(trial.ms_p99 or 0.0 for trial in right)
            reason = f"the fastest takes {fastest:.3f} ms, and {self.goal.max_latency:g} ms are allowed"
            hint = "allow more, a smaller batch, or another precision"
        else:
            reason = next((trial.error for trial in self.trials if trial.error), "all results are too far from float64")
            reason, hint = f"no candidate runs and is right: {reason}", "print what tune returned: it says why for each"
        raise NoCandidateError(reason, subject=self.name, hint=hint)

    @property
    def settings(self) -> Settings:
        """Those that were given, with what was found, for ``torch2trt.compile(…, settings=…)``.

        Raises:
            NoCandidateError: there are none.
        """
        return self.best.settings

    @property
    def batch(self) -> int:
        """The batch size that was found.

        Raises:
            NoCandidateError: there is none.
        """
        return self.best.batch

    def save(self, path: StrPath) -> None:
        """Write the settings as JSON, for ``settings=`` of :func:`torch2trt.compile` and ``--settings``.

        Those that only say how a build goes, such as the cache's folder, are left out, and so is the batch size, which
        is no setting.

        Raises:
            NoCandidateError: there are none.
            ArtifactWriteError: the file could not be written whole.
        """
        text = json.dumps(self.settings.to_json(), indent=2)
        with atomic_file(path) as file:
            file.write(f"{text}\n".encode())

    def plot(self, path: StrPath) -> None:
        """Draw latency against throughput, the chosen point marked, as PNG or SVG by the file's suffix.

        Raises:
            MissingPackageError: matplotlib is not installed.
            SettingError: another suffix.
            ArtifactWriteError: the file could not be written whole.
        """
        from torch2trt.tools.tune.drawing import draw

        draw(self, path)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "gpu": self.gpu,
            "flavour": self.flavour,
            "objective": self.goal.objective,
            "max_latency": self.goal.max_latency,
            "settings": None if self.chosen is None else self.chosen.settings.to_json(),
            "chosen": None if self.chosen is None else self.trials.index(self.chosen),
            "stopped": self.stopped,
            "seconds": self.seconds,
            "candidates": [trial.to_json() for trial in self.trials],
        }

    @property
    def summary(self) -> str:
        """One line."""
        what: str = self.goal.objective
        if self.goal.max_latency is not None:
            what += f" within {self.goal.max_latency:g} ms"
        text = f"{self.name} on {self.gpu}, {self.flavour}, for {what}: "
        if self.chosen is None:
            return text + "nothing fits"
        return text + f"{self.chosen}: {self.chosen.ms_p50:.3f} ms, {self.chosen.per_second:,.0f} items/s"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", "step", "precision")
        for title in (
            "batch",
            "level",
            "streams",
            "graphs",
            "p50 ms",
            "p99 ms",
            "items/s",
            "host µs",
            "error",
            "build s",
        ):
            table.add_column(title, justify="right")
        table.add_column("")
        for trial in self.trials:
            table.add_row(*self._cells(trial))
        lines = [self.summary, *([f"Not all was tried: {self.stopped}"] if self.stopped else [])]
        failed = [f"{trial}: {trial.error}" for trial in self.trials if trial.error]
        return Group(*map(Text, lines), table, *map(Text, failed))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=150, color_system=None).print(self)
        return text.getvalue().rstrip()

    def _cells(self, trial: Trial) -> tuple[str, ...]:
        settings = trial.settings
        numbers = (
            (trial.ms_p50, ".3f"),
            (trial.ms_p99, ".3f"),
            (trial.per_second, ",.0f"),
            (trial.host_us, ".0f"),
            (trial.max_rel_error, ".1e"),
            (trial.build_s, ".1f"),
        )
        return (
            "→" if trial is self.chosen else "",
            trial.step,
            trial.precision,
            str(trial.batch),
            str(settings.optimization_level),
            "auto" if settings.max_aux_streams is None else str(settings.max_aux_streams),
            "on" if settings.cuda_graphs else "off",
            *("" if value is None else format(value, form) for value, form in numbers),
            self._note(trial),
        )

    def _note(self, trial: Trial) -> str:
        if trial.error:
            return "failed"
        if trial.is_dropped:
            return f"dropped: above {trial.allowed:g}"
        if not trial.is_right:
            return "not measured"
        if not self.goal.is_met(trial):
            return "too slow"
        return "" if trial.compared else "not in the last run"
