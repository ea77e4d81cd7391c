"""Rows as tables to read, one for each model, batch size and precision."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch2trt.tools.bench.rows import Row


def show(rows: Sequence[Row]) -> RenderableType:
    """The tables, and below each what to beware of."""
    parts: list[RenderableType] = []
    for (model, batch, precision, sizes, profiles), group in itertools.groupby(rows, key=lambda row: row.key[:-1]):
        own = list(group)
        size = f"{sizes} of {profiles or 'one profile'}" if sizes else f"batch {batch}"
        parts.append(_table(f"{model}, {size}, {precision}", own))
        if any(row.latency_ms_p50 is not None for row in own):
            parts.append(_whole_table(own))
        bound = [row.backend for row in own if row.host_bound]
        if bound:
            parts.append(Text(f"Bound by the host, the GPU waits: {', '.join(bound)}", style="yellow"))
        parts += [Text(f"{row.backend} failed: {row.error}", style="red") for row in own if row.error]
    return Group(*parts)


def _whole_table(rows: Sequence[Row]) -> Table:
    table = Table(title="one call alone, from host memory to host memory, ms")
    table.add_column("backend")
    for column in ("latency p50", "p90", "p99", "copies in", "run", "copies out"):
        table.add_column(column, justify="right")
    for row in rows:
        latencies = row.latency_ms_p50, row.latency_ms_p90, row.latency_ms_p99
        stages = row.h2d_ms_p50, row.compute_ms_p50, row.d2h_ms_p50
        table.add_row(row.backend, *("" if value is None else f"{value:.3f}" for value in (*latencies, *stages)))
    return table


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    table.add_column("backend")
    for column in ("p50 ms", "p99 ms", "items/s", "host µs", "max rel error", "× eager", "× onnx", "build s"):
        table.add_column(column, justify="right")
    for row in rows:
        name = f"{row.backend} ({row.variant})" if row.variant else row.backend
        numbers = (
            (row.gpu_ms_p50, ".3f"),
            (row.gpu_ms_p99, ".3f"),
            (row.per_second, ",.0f"),
            (row.host_us, ".0f"),
            (row.max_rel_error, ".1e"),
            (row.speedup_over_eager, ".2f"),
            (row.speedup_over_onnx, ".2f"),
            (row.build_s, ".1f"),
        )
        table.add_row(name, *("" if value is None else format(value, form) for value, form in numbers))
    return table
