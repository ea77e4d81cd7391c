"""Results: one row for each model, batch size, precision and backend, in one CSV for each GPU and its software."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_type_hints

from torch2trt.runtime.files import atomic_file
from torch2trt.tools.bench.candidate import BACKENDS
from torch2trt.tools.bench.measure import throughput

_HOST_BOUND = 0.9  # of the GPU's time


@dataclass(frozen=True)
class Row:
    """One backend's result; what was not measured is None."""

    commit: str
    date: str
    """When it was measured, UTC, ISO 8601."""
    model: str
    batch: int
    precision: str
    backend: str
    variant: str = ""
    """Of eager the layout, of ONNX the exporter: the fastest one's."""
    gpu_ms_p50: float | None = None
    """Per call, of calls back to back; the host's time where that is longer."""
    gpu_ms_p99: float | None = None
    host_us: float | None = None
    """Until a call returns."""
    build_s: float | None = None
    capture_s: float | None = None
    max_rel_error: float | None = None
    """Against the original module in float64, relative to the output's scale, the largest over all outputs."""
    peak_host_bytes: int | None = None
    """While building, beyond the process with the model loaded."""
    peak_gpu_bytes: int | None = None
    """While running, beyond what was there before the backend was loaded; its weights are part of it."""
    speedup_over_eager: float | None = None
    """The ratio of gpu_ms_p50 in the same run."""
    speedup_over_onnx: float | None = None
    jobs: int = 1
    """Builds that ran at once on one GPU: more share it, and take longer."""
    timing_cache: str = ""
    """``carried`` where the build began with the timings of earlier ones."""
    gpu: str = ""
    flavour: str = ""
    flavour_version: str = ""
    torch: str = ""
    error: str = ""
    """Why there are no numbers."""
    sizes: str = ""
    """Of the dimensions that are dynamic in our engine, as ``batch 16, seq 128``: the others have them fixed."""
    profiles: str = ""
    """The optimization profiles of our engine, as the command line spells them."""
    latency_ms_p50: float | None = None
    """Of one call alone, from pinned host memory until its results are in pinned host memory."""
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    h2d_ms_p50: float | None = None
    """Of that the copies in."""
    compute_ms_p50: float | None = None
    """The run between the copies, or the host's time for it where that is longer."""
    d2h_ms_p50: float | None = None
    """The copies out."""

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        """What makes a row this row; all but the last, the backend, are its case."""
        return self.model, self.batch, self.precision, self.sizes, self.profiles, self.backend

    @property
    def order(self) -> tuple[Any, ...]:
        """By model, and in the order of the backends."""
        return self.model, self.precision, self.batch, self.sizes, self.profiles, list(BACKENDS).index(self.backend)

    @property
    def per_second(self) -> float | None:
        """Throughput in items of the batch, when calls come back to back."""
        if self.gpu_ms_p50 is None or self.host_us is None:
            return None
        return throughput(self.batch, self.gpu_ms_p50, self.host_us)

    @property
    def host_bound(self) -> bool:
        """Whether the GPU waits for the host."""
        return self.gpu_ms_p50 is not None and (self.host_us or 0.0) > _HOST_BOUND * self.gpu_ms_p50 * 1e3

    def to_json(self) -> dict[str, Any]:
        """JSON values; an infinite error, JSON has no number for it, is null."""
        data = {**dataclasses.asdict(self), "per_second": self.per_second, "host_bound": self.host_bound}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in data.items()
        }


class Keyed(Protocol):
    """A dataclass of texts and numbers, of which a file has one for each key."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it this one."""

    @property
    def order(self) -> tuple[Any, ...]:
        """Where it stands in a file."""


_Row = TypeVar("_Row", bound=Keyed)


def csv_name(gpu: str, flavour: str, flavour_version: str, torch_version: str) -> str:
    """The file of one GPU, flavour version and torch version."""
    text = f"{gpu}-{flavour}{flavour_version}-torch{torch_version.partition('+')[0]}"
    return re.sub(r"[^\w.-]+", "-", text) + ".csv"


def read(path: Path, kind: type[_Row] = Row) -> list[_Row]:  # type: ignore[assignment]
    """The rows of a file; none where there is no file. Columns that it lacks have their defaults."""
    if not path.exists():
        return []
    hints = get_type_hints(kind)
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return [kind(**{name: _parse(hints[name], text) for name, text in line.items()}) for line in lines]


def replace(path: Path, rows: Iterable[_Row], kind: type[_Row] = Row) -> None:  # type: ignore[assignment]
    """Put rows into a file, in the place of those with the same key; it is rewritten whole, or not at all.

    Raises:
        ArtifactWriteError: it could not be written.
    """
    merged = {row.key: row for row in (*read(path, kind), *rows)}
    columns = [item.name for item in dataclasses.fields(kind)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in sorted(merged.values(), key=lambda row: row.order):
        writer.writerow([_format(getattr(row, name)) for name in columns])
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def with_speedups(rows: Sequence[Row]) -> list[Row]:
    """Rows of one run, each beside its run's eager and ONNX."""
    times = {row.backend: row.gpu_ms_p50 for row in rows}

    def over(backend: str, row: Row) -> float | None:
        base = times.get(backend)
        return None if base is None or row.gpu_ms_p50 is None else base / row.gpu_ms_p50

    return [
        dataclasses.replace(row, speedup_over_eager=over("eager", row), speedup_over_onnx=over("onnx-tensorrt", row))
        for row in rows
    ]


def _format(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _parse(hint: Any, text: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if kinds[0] is str:
        return text
    return kinds[0](text) if text else None
