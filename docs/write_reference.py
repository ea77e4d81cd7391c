"""Writes docs/errors.md and docs/settings.md from the code: ``python docs/write_reference.py``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch2trt import errors
from torch2trt.settings import Settings

FOLDER = Path(__file__).parent

_GROUPS = {
    "1": "1xx: the call",
    "2": "2xx: conversion",
    "3": "3xx: environment",
    "4": "4xx: build",
    "5": "5xx: running",
    "6": "6xx: artifacts",
}

_ERRORS = """# Errors

Every error that torch2trt raises on purpose is a `torch2trt.Torch2TRTError`. It has a number that stays, and says
what it is about, why, where in your code, and what to do:

```text
[T2T304] resnet50: engines run on NVIDIA GPUs, and torch finds none on this machine
  what to do: .reference(...) runs the compiled network on the CPU
```

The parts are attributes: `code`, `subject` (the operator, argument or file), `reason`, `source` (your line, as
`file:line in function`) and `hint`; the last two may be empty. `UnsupportedOpsError` also has `nodes`, one
`UnsupportedNode` for each node that cannot be converted. The command line prints the same text to stderr and exits
with 2; with `--json` it prints an object with the same parts.

Some errors are also one of Python's own, so that `except ValueError` finds them.
"""

_SETTINGS = """# Settings

A setting is a keyword of `torch2trt.compile` and `torch2trt.export`, a key of `options=` for
`torch.compile(model, backend="torch2trt", options={...})`, and a flag of the command line (`optimization_level` is
`--optimization-level`; a bool is `--cuda-graphs` or `--no-cuda-graphs`). An unknown name is an error (T2T101) that
suggests the nearest, and so is a value of another kind. `None` is unset: the last column says what happens then.

`settings=` and `--settings` take a JSON file of them, such as [`torch2trt.tune`](tuning.md) saves; keywords and options
win over it. In Python it may also be a mapping or a `torch2trt.Settings`.

Nothing is configured elsewhere, except the cache folder: `TORCH2TRT_CACHE_DIR` in the environment names it where
`cache_dir` does not. [caches.md](caches.md) says what is kept in it, and why engines of `tensorrt` are where those of
`tensorrt_rtx` are not.
"""


def errors_page() -> str:
    """The page of errors, by number."""
    kinds = sorted(
        (kind for kind in vars(errors).values() if _is_numbered(kind)), key=lambda kind: (kind.code, kind.__name__)
    )
    parts = [_ERRORS]
    for group, title in _GROUPS.items():
        rows = [
            (kind.code, f"`{kind.__name__}`", _builtin(kind), _text(kind.__doc__))
            for kind in kinds
            if kind.code[3] == group
        ]
        parts.append(f"## {title}\n\n" + _table(("number", "class", "also a", "meaning"), rows))
    return _page(parts)


def settings_page() -> str:
    """The page of settings, in the order of the fields."""
    hints = get_type_hints(Settings)
    rows = [
        (
            f"`{item.name}`",
            _values(hints[item.name]),
            f"`{item.default!r}`",
            "yes" if item.metadata["engine"] else "no",
            _text(item.metadata["help"]),
        )
        for item in dataclasses.fields(Settings)
    ]
    return _page([_SETTINGS, _table(("setting", "values", "default", "changes the engine", "meaning"), rows)])


PAGES = {"errors.md": errors_page, "settings.md": settings_page}


def _is_numbered(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, errors.Torch2TRTError) and kind is not errors.Torch2TRTError


def _builtin(kind: type[Exception]) -> str:
    return ", ".join(f"`{base.__name__}`" for base in kind.__bases__ if base.__module__ == "builtins")


def _values(hint: Any) -> str:
    kinds = [hint] if get_origin(hint) in (Literal, tuple) else list(get_args(hint)) or [hint]
    texts: list[str] = []
    for kind in kinds:
        texts += [repr(value) for value in get_args(kind)] if get_origin(kind) is Literal else [_spell(kind)]
    return ", ".join(f"`{text}`" for text in texts)


def _spell(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {_spell(get_args(kind)[0])}"
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    return "None" if kind is NoneType else str(kind.__name__)


def _text(text: str | None) -> str:
    assert text is not None
    return " ".join(inspect.cleandoc(text).split()).replace("``", "`").replace("|", "\\|")


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _page(parts: Sequence[str]) -> str:
    return "<!-- Written by docs/write_reference.py: change the code, then run it. -->\n\n" + "\n".join(parts)


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8", newline="\n")
