"""What compiling costs: ``python -m benchmarks.compiling``, a ResNet-50 at batch 1 unless told otherwise.

A process compiles with an empty engine cache, and the same model again and again from the cache; a second process finds
the engine of the first. Each has compiled a network of one layer before, so that no time has imports in it. Seconds of
``torch2trt.compile``, from the module to one that can be called; of the cold one also those of the build by TensorRT.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import torch2trt
from benchmarks.host import add_case, case_of
from torch2trt.errors import Torch2TRTError
from torch2trt.tools.bench.case import Case, Subject
from torch2trt.trt import flavour

Times = dict[str, float]

_TIMES = "times.json"


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_args(given)
    case = case_of(options)
    if options.within:
        return _compile_within(options.within, case, options.times)
    times: Times = {}
    with tempfile.TemporaryDirectory(prefix="torch2trt-compiling-") as folder:
        for prefix in ("", "another process: "):
            code = subprocess.call([sys.executable, "-m", "benchmarks.compiling", *given, "--within", folder])
            if code:
                return code
            own = json.loads((Path(folder) / _TIMES).read_text(encoding="utf-8"))
            times |= {prefix + name: seconds for name, seconds in own.items()}
    Console(width=120).print(show(str(case), times))
    if options.csv:
        write(options.csv, options.commit, str(case), times)
    return 0


def _compile_within(folder: Path, case: Case, count: int) -> int:
    """What each of the processes does, with the engine cache in a folder, where it leaves its times."""
    settings = {"cache_dir": str(folder), "engine_cache": True, "timing_cache": False, "progress": "none"}
    try:
        times = compilations(case, settings, count)
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        return 2
    (folder / _TIMES).write_text(json.dumps(times), encoding="utf-8")
    return 0


def compilations(case: Case, settings: dict[str, Any], count: int) -> Times:
    """The seconds of the first compilation in this process, and the least and the most of some more, by name.

    Args:
        settings: for :class:`torch2trt.Settings`.
        count: compilations after the first.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = Subject(case, sets=1)
    ((args, kwargs),) = subject.inputs(device)
    torch2trt.compile(nn.Conv2d(8, 8, 3).to(device).eval(), (torch.randn(1, 8, 16, 16).to(device),), progress="none")
    times: Times = {}
    repeated = []
    for number in range(1 + count):
        module = subject.module(device)
        start = time.perf_counter()
        compiled = torch2trt.compile(module, args, dict(kwargs), **settings)
        seconds = time.perf_counter() - start
        if number:
            repeated.append(seconds)
        else:
            times["first"] = seconds
            if compiled.report["cache"] != "hit":
                times["TensorRT's build in the first"] = compiled.report["build_s"]
    return {**times, "found again, least": min(repeated), "found again, most": max(repeated)}


def show(title: str, times: Times) -> Table:
    """The times as a table."""
    table = Table("seconds", "", title=f"{title}, {flavour.load().name}")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.2f}")
    return table


def write(path: Path, commit: str, case: str, times: Times) -> None:
    """The times as CSV."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["commit", "gpu", "torch", "case", "what", "seconds"])
        writer.writerows(
            [commit, gpu, torch.__version__, case, name, f"{seconds:.3f}"] for name, seconds in times.items()
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiling", description=__doc__.splitlines()[0])
    add_case(parser)
    parser.set_defaults(model="torchvision:resnet50")
    parser.add_argument("--times", type=int, default=5, help="compilations from the cache in each process (default: 5)")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
