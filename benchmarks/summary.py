"""The README's table of speeds, from a committed CSV: ``python -m benchmarks.summary`` writes it anew."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from torch2trt.tools.bench import rows
from torch2trt.tools.bench.rows import Row

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "NVIDIA-H200-tensorrt10.6.0-torch2.11.0.csv"
README = ROOT / "README.md"

_HEAD = ("model, batch", "torch2trt, ms", "× eager", "× Inductor", "× ONNX → TensorRT", "commit")
_PEERS = (("eager",), ("inductor-max-autotune", "inductor-reduce-overhead"), ("onnx-tensorrt",))
_FIRST, _LAST = "| " + " | ".join(_HEAD) + " |\n", "\n\n"


def markdown(found: Iterable[Row]) -> str:
    """A line for each case: our median GPU time, and how many times as long each peer took in the same run.

    And one of the geometric means.
    """
    lines = [_FIRST, "|---|" + "---:|" * (len(_HEAD) - 2) + "---|\n"]
    static = [row for row in found if not row.sizes]
    every: list[list[float]] = [[] for _ in _PEERS]
    for (model, precision, batch), group in groupby(static, lambda row: (row.model, row.precision, row.batch)):
        times = {row.backend: row for row in group if row.gpu_ms_p50 is not None}
        own = times.get("torch2trt")
        if own is None:
            continue
        ratios = []
        for names, those in zip(_PEERS, every, strict=True):
            # A row that was replaced singly is of another run.
            peers = [times[name] for name in names if name in times and times[name].commit == own.commit]
            if peers:
                those.append(peers[0].gpu_ms_p50 / own.gpu_ms_p50)  # type: ignore[operator]
            ratios.append(f"{those[-1]:.2f}" if peers else "–")
        cells = (f"{model}, {batch}, {precision}", f"{own.gpu_ms_p50:.3f}", *ratios, own.commit)
        lines.append("| " + " | ".join(cells) + " |\n")
    if len(lines) > 3:
        means = (f"{statistics.geometric_mean(those):.2f}" if those else "–" for those in every)
        lines.append("| " + " | ".join(("geometric mean", "", *means, "")) + " |\n")
    return "".join(lines)


def written(text: str, table: str) -> str:
    """A document with its table replaced.

    Raises:
        ValueError: it has none.
    """
    start = text.index(_FIRST)
    return text[:start] + table.rstrip("\n") + text[text.index(_LAST, start) :]


def main(argv: Sequence[str] | None = None) -> int:
    """Bring the README up to date."""
    path, *_ = [*(argv or []), str(RESULTS)]
    README.write_text(written(README.read_text(encoding="utf-8"), markdown(rows.read(Path(path)))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
