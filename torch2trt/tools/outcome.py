"""What a command found, and how it is printed."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch2trt.errors import Torch2TRTError

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Outcome:
    """What a command found: JSON values, the same to read, and the exit code."""

    data: dict[str, Any]
    shown: RenderableType
    code: int = 0


def report(command: Callable[[], Outcome], *, as_json: bool) -> int:
    """Run a command, print what it found or why it failed, and return the exit code."""
    try:
        # What models and libraries print is no part of the result.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            outcome = command()
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        message = f"{error.subject}: {error.reason}" if error.subject else error.reason
        failure = {"code": error.code, "message": message, "source": error.source, "hint": error.hint}
        outcome = Outcome({"error": failure}, "", code=2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        traceback.print_exc()
        failure = {"code": "", "message": f"{type(error).__name__}: {error}", "source": "", "hint": ""}
        outcome = Outcome({"error": failure}, "", code=3)
    if as_json:
        print(json.dumps(outcome.data))
    elif outcome.shown:
        from rich.console import Console

        # Brackets are shapes and extras here, not markup.
        Console(markup=False, emoji=False, highlight=False).print(outcome.shown)
    return outcome.code
