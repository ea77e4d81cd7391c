"""Builds that are watched: in a terminal, in a notebook, or not at all."""

from __future__ import annotations

import io
import sys

import pytest

from tests.hand_made import FLAVOUR, QUIET, convolutions, signature
from torch2trt.engine import progress
from torch2trt.engine.builder import build
from torch2trt.engine.progress import build_monitor
from torch2trt.errors import MissingPackageError
from torch2trt.settings import Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr  # type: ignore[return-value]


def test_terminal_shows_nested_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with build_monitor(FLAVOUR, "auto", "resnet50") as monitor:
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing", "Building engine", 3)
        monitor.step_complete("Timing", 0)
        monitor._display.refresh()
        shown = terminal.getvalue()
        monitor.phase_finish("Timing")
        assert len(monitor._display.tasks) == 1
        monitor.phase_finish("Building engine")
        assert not monitor._display.tasks
    assert "resnet50: Building engine" in shown
    assert "  Timing" in shown
    assert "1/3" in shown


def test_terminal_build(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    assert build(convolutions(), signature(), Settings(progress="terminal"), name="resnet50")
    assert "resnet50" in terminal.getvalue()


def test_none_writes_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    terminal = make_terminal(monkeypatch)
    assert build(convolutions(), signature(), QUIET, name="net")
    assert terminal.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.resolve("auto") == "none"
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    assert progress.resolve("auto") == "notebook"
    assert progress.resolve("none") == "none"
    widgets = False
    assert progress.resolve("auto") == "none"
    with pytest.raises(MissingPackageError, match="ipywidgets"):
        progress.resolve("notebook")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.resolve("auto") == "terminal"
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.resolve("auto") == "none"


def test_notebook_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress._in_notebook()

    class Shell:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert progress._in_notebook()
