"""``torch2trt bench``: some models, measured on all backends, as a table."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2trt import __version__
from torch2trt.errors import ModelNameError, SettingError
from torch2trt.tools.bench import candidate, measure, rows, table
from torch2trt.tools.bench.case import Case, Subject
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.session import Options, Request, Session

if TYPE_CHECKING:
    from rich.console import RenderableType


def main_from_cli(
    models: Sequence[str],
    *,
    inputs: Sequence[str],
    profiles: Sequence[str],
    settings: Mapping[str, Any],
    backends: Sequence[str] | None,
    batches: Sequence[int] | None,
    repeats: int | None,
    results: Path | None,
    seed: int,
) -> tuple[dict[str, Any], RenderableType]:
    """Measure models.

    Args:
        models: as :func:`torch2trt.tools.models.resolve` takes them.
        inputs: of each, as :meth:`torch2trt.tools.inputs.InputSpec.parse` takes them; empty: its own. Where a dimension
            is dynamic, so is our engine.
        profiles: of our engine, as :func:`torch2trt.tools.inputs.parse_profile` takes them.
        settings: fields of :class:`torch2trt.Settings`.
        backends: of :data:`torch2trt.tools.bench.candidate.BACKENDS`; None: the usual ones.
        batches: batch sizes; None: that of the inputs, and of each profile the one that it is tuned for.
        repeats: rounds of measurements; None: the usual number.
        results: a folder for the CSV.

    Returns:
        JSON values, and tables.

    Raises:
        NoGPUError: there is no GPU.
        SettingError, ModelNameError, ExampleInputError: an unknown backend or model, or unfit inputs.
        DynamicShapeError: profiles that do not fit the inputs, or none that holds a batch size.
    """
    if not models:
        hint = (
            "name one, as in torchvision:resnet50; the project's own suite is python -m benchmarks.run in its checkout"
        )
        raise ModelNameError("no model to measure", subject="bench", hint=hint)
    wanted = tuple(name for text in backends for name in text.split(",")) if backends else candidate.DEFAULT
    candidate.candidates(wanted)
    if repeats is not None and repeats < 1:
        raise SettingError(f"must be positive, got {repeats}", subject="repeats")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    precision: Any = given.pop("precision", None)
    machine = CudaMachine()
    with tempfile.TemporaryDirectory(prefix="torch2trt-bench-") as folder:
        session = Session(
            Options(
                Path(folder),
                settings=given,
                rounds=repeats or measure.ROUNDS,
                commit=commit_here(),
                say=lambda line: print(line, file=sys.stderr, flush=True),
            ),
            machine,
        )
        wholes = [
            Case(model.rpartition(":")[2], model, None, precision, tuple(inputs), seed, tuple(profiles))
            for model in models
        ]
        cases = [_checked(case) for whole in wholes for batch in batches or (None,) for case in whole.measured(batch)]
        found = session.run(
            [Request(case, wanted) for case in cases],
            lambda new: rows.replace(results / session.csv_name, new) if results is not None else None,
        )
    return {"rows": [row.to_json() for row in found]}, table.show(found)


def _checked(case: Case) -> Case:
    """The case with its batch size and precision; what is wrong with it is raised before anything is built."""
    subject = Subject(case, sets=1)
    # Where there are sizes, the batch is one of them, or as the inputs have it.
    batch = case.batch if case.sizes else subject.batch
    return dataclasses.replace(case, batch=batch, precision=subject.precision)


def commit_here() -> str:
    """The commit of this package's checkout, ``-dirty`` where files differ from it; its version without a history."""
    root = Path(__file__).resolve().parents[3]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    if (root / ".git").exists() and shutil.which("git"):
        described = subprocess.run(command, check=False, capture_output=True, text=True)
        if described.returncode == 0:
            return described.stdout.strip()
    return f"v{__version__}"
