"""``torch2trt tune``: a table and, where asked for, the settings and a picture as files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch2trt.tools.inputs import Example
from torch2trt.tools.models import Model
from torch2trt.tools.outcome import Outcome
from torch2trt.tools.tune import drawing
from torch2trt.tools.tune.tuning import tune

_INTERRUPTED = 130


def main_from_cli(
    model: Callable[[], tuple[Model, Example]],
    *,
    settings: Mapping[str, Any],
    output: Path | None,
    plot: Path | None,
    **wanted: Any,
) -> Outcome:
    """Search settings for a model.

    Args:
        model: the model and its example.
        settings: fields of :class:`torch2trt.Settings`.
        output: where the settings go.
        plot: where the picture goes.
        wanted: further arguments of :func:`torch2trt.tune`.

    Returns:
        What was found, with the exit code 1 where nothing fits, and 130 where Ctrl-C ended the search.

    Raises:
        Torch2TRTError: as :func:`torch2trt.tune` says, or a picture that cannot be drawn.
    """
    if plot is not None:
        # Before minutes of building, not after them.
        drawing.check(plot)
    resolved, example = model()
    found = tune(
        resolved.module,
        example.args,
        example.kwargs,
        dynamic_shapes=example.dynamic_shapes,
        name=resolved.name,
        report=lambda text: print(text, file=sys.stderr, flush=True),
        **wanted,
        **settings,
    )
    data = found.to_json()
    if output is not None and found.chosen is not None:
        found.save(output)
        data["output"] = str(output)
    if plot is not None:
        found.plot(plot)
        data["plot"] = str(plot)
    code = _INTERRUPTED if found.stopped == "interrupted" else 0 if found.chosen is not None else 1
    return Outcome(data, found, code)
