"""A search as a picture: throughput over latency, one point for each candidate that was timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch2trt.errors import MissingPackageError, SettingError
from torch2trt.runtime.files import StrPath, atomic_file

if TYPE_CHECKING:
    from torch2trt.tools.tune.report import Tuning

_FORMATS = {".png": "png", ".svg": "svg"}


def check(path: StrPath) -> str:
    """The format of a picture.

    Raises:
        MissingPackageError: matplotlib is not installed.
        SettingError: the file's suffix names no format.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise SettingError("names no picture", subject=str(path), hint=f"end it in {' or '.join(_FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "is not installed", subject="matplotlib", hint="pip install 'torch2trt[plot]'"
        ) from error
    return _FORMATS[suffix]


def draw(tuning: Tuning, path: StrPath) -> None:
    """Write the picture.

    Raises:
        MissingPackageError, SettingError: as :func:`check`.
        ArtifactWriteError: the file could not be written whole.
    """
    form = check(path)
    # Without pyplot, which would keep the figure and look for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    right = [trial for trial in tuning.trials if trial.is_right]
    for precision in dict.fromkeys(trial.precision for trial in right):
        own = [trial for trial in right if trial.precision == precision]
        axes.plot([t.ms_p50 for t in own], [t.per_second for t in own], "o", label=precision)
    for batch in dict.fromkeys(trial.batch for trial in right):
        first = next(trial for trial in right if trial.batch == batch)
        place = first.ms_p50, first.per_second
        axes.annotate(f"batch {batch}", place, xytext=(6, -10), textcoords="offset points", fontsize=8)
    if tuning.chosen is not None:
        label = f"chosen: {tuning.chosen}"
        style = {"marker": "*", "markersize": 18, "markerfacecolor": "none", "markeredgecolor": "black"}
        axes.plot([tuning.chosen.ms_p50], [tuning.chosen.per_second], linestyle="none", label=label, **style)
    if tuning.goal.max_latency is not None:
        label = f"{tuning.goal.max_latency:g} ms allowed (p99)"
        axes.axvline(tuning.goal.max_latency, color="gray", linestyle="--", label=label)
    axes.set_title(f"{tuning.name} on {tuning.gpu}, {tuning.flavour}", fontsize=10)
    axes.set_xlabel("latency of a call, ms (median)")
    axes.set_ylabel("throughput, items/s")
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format=form, dpi=150)
