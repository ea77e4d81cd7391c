"""Modules that child processes import too, and scripts that run in one."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@contextlib.contextmanager
def importable(folder: Path, name: str, text: str) -> Iterator[ModuleType]:
    """A module of this name and text, imported; while the block runs, children that take over the path find it."""
    (folder / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module(name)


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a process that can import what this one can."""
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_path({str(path)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
