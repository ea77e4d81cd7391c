"""The code that turns a Program into an engine: other code builds another engine."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from torch2trt.engine import digests

_ROOT = Path(__file__).parents[1]
# What comes before these leaves its mark in the Program, and what comes after them sees the plan alone.
_FOLDERS = ("converters", "engine", "graph", "trt")
_FILES = ("sizes.py", "sizes.pyc")
_SUFFIXES = (".py", ".pyc")
# Seconds to which the start of a process is known; nothing of this package that counts is loaded so soon after it.
_PRECISION = 1.0


class UnknownCodeError(Exception):
    """There is no telling which code would build an engine; the text says why."""


@functools.cache
def own_code() -> str:
    """A digest of what builds engines in this package.

    Raises:
        UnknownCodeError: its files have changed since this process started.
    """
    inside = [path for folder in _FOLDERS for path in (_ROOT / folder).iterdir()]
    return _digest([*inside, *(path for path in _ROOT.iterdir() if path.name in _FILES)], _ROOT)


@functools.cache
def code_of_package(module: str) -> tuple[str, str]:
    """The name of the package that a module is in, and a digest of all code of that package.

    Args:
        module: the name of a module that is loaded.

    Raises:
        UnknownCodeError: it is in no package, or files have changed since this process started.
    """
    name = module.partition(".")[0]
    folders = getattr(sys.modules.get(name), "__path__", None)
    if folders is None:
        # What a script or a notebook calls may be anywhere.
        raise UnknownCodeError(f"{module} is in no package, so there is no telling which code it calls")
    return name, digests.of_text(_digest(Path(folder).rglob("*"), Path(folder)) for folder in folders)


def _digest(paths: Iterable[Path], root: Path) -> str:
    started = psutil.Process().create_time() + _PRECISION
    lines: list[str] = []
    for path in sorted(paths):
        # Compiled copies in there follow the files, whenever Python likes.
        if path.suffix not in _SUFFIXES or path.parent.name == "__pycache__":
            continue
        if path.stat().st_mtime > started:
            # What runs may be what was in the file before.
            raise UnknownCodeError(f"{path} has changed since this process started")
        lines += [path.relative_to(root).as_posix(), digests.of_bytes(path.read_bytes())]
    return digests.of_text(lines)
