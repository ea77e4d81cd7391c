"""The progress of a build: shown in a terminal or a notebook, or not at all, and the way to stop it."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch2trt.engine.memory import give_back
from torch2trt.errors import MissingPackageError
from torch2trt.settings import ProgressMode
from torch2trt.trt.flavour import Flavour

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHARE = 0.05  # of a build's time, at most, goes into returning memory: there may be thousands of phases


def resolve(mode: ProgressMode) -> Literal["terminal", "notebook", "none"]:
    """Where progress is shown: ``auto`` is the terminal that stderr is, else the notebook, else nowhere.

    Raises:
        MissingPackageError: a notebook was asked for, and ipywidgets is not installed.
    """
    widgets = importlib.util.find_spec("ipywidgets") is not None
    if mode == "notebook" and not widgets:
        raise MissingPackageError(
            "progress in a notebook needs ipywidgets", subject="progress", hint="pip install ipywidgets"
        )
    if mode != "auto":
        return mode
    if sys.stderr is not None and sys.stderr.isatty():
        return "terminal"
    return "notebook" if widgets and _in_notebook() else "none"


@contextmanager
def build_monitor(flavour: Flavour, mode: ProgressMode, name: str) -> Iterator[Any]:
    """An ``IProgressMonitor`` that shows the phases of a build while the context is open.

    Its method ``cancel()``, which any thread may call, ends the build at TensorRT's next step. At the end of phases it
    returns freed memory to the system.

    Args:
        name: the model's, shown beside the outermost phase.

    Raises:
        MissingPackageError: see :func:`resolve`.
    """
    where = resolve(mode)
    if where == "none":
        yield _monitor_class(flavour)(None, name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(force_jupyter=True) if where == "notebook" else Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as display:
        yield _monitor_class(flavour)(display, name)


@functools.cache
def _monitor_class(flavour: Flavour) -> Any:
    class BuildMonitor(flavour.trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, display: Progress | None, name: str) -> None:
            flavour.trt.IProgressMonitor.__init__(self)
            self._display = display
            self._name = name
            self._tasks: dict[str, tuple[TaskID, int]] = {}
            self._cancelled = False
            self._gave_back = 0.0
            self._took = 0.0

        def cancel(self) -> None:
            self._cancelled = True

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if self._display is None:
                return
            depth = self._tasks[parent][1] + 1 if parent in self._tasks else 0
            text = "  " * depth + phase if depth else f"{self._name}: {phase}"
            self._tasks[phase] = self._display.add_task(text, total=steps), depth

        def step_complete(self, phase: str, step: int) -> bool:
            if self._display is not None and phase in self._tasks:
                self._display.update(self._tasks[phase][0], completed=step + 1)
            return not self._cancelled

        def phase_finish(self, phase: str) -> None:
            if self._display is not None and phase in self._tasks:
                self._display.remove_task(self._tasks.pop(phase)[0])
            # What one phase has freed may be of no use to the next.
            start = time.monotonic()
            if start - self._gave_back >= self._took / _SHARE:
                give_back()
                self._gave_back = time.monotonic()
                self._took = self._gave_back - start

    return BuildMonitor


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return hasattr(shell, "kernel")
