"""Engines beside ``torch.compile``, which breaks its graph at them and does not look inside."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What Dynamo calls with each frame of this thread that begins; None while nothing runs that it compiled.
_frame_callback: Callable[[], Any] | None = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)


def watched() -> bool:
    """Whether Dynamo looks at what runs here. To ask costs a tenth of leaving it."""
    return "torch._dynamo" in sys.modules and (_frame_callback is None or _frame_callback() is not None)


@functools.cache
def outside(function: _Function) -> _Function:
    """The function as one that Dynamo breaks its graph at, and looks at nothing inside of.

    Made when Dynamo is there: importing it takes as long as importing torch.
    """
    return torch.compiler.disable(function)  # type: ignore[no-any-return]
