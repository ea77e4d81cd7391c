"""What compiling costs: ``python -m benchmarks.compiling``, a ResNet-50 at batch 1 unless told otherwise.

A process compiles with an empty engine cache, and the same model again and again from the cache; a second process finds
the engine of the first. Each has compiled a network of one layer before, so that no time has imports in it. Seconds of
``torch2trt.compile``, from the module to one that can be called; of the cold one also those of the build by TensorRT.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
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


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    case = case_of(options)
    with tempfile.TemporaryDirectory(prefix="torch2trt-compiling-") as folder:
        settings = {"cache_dir": folder, "engine_cache": True, "timing_cache": False, "progress": "none"}
        try:
            times = {**_alone(case, settings, options.times), **_renamed(_alone(case, settings, options.times))}
        except Torch2TRTError as error:
            print(error, file=sys.stderr)
            return 2
    Console(width=120).print(show(str(case), times))
    if options.csv:
        write(options.csv, options.commit, str(case), times)
    return 0


def _alone(case: Case, settings: dict[str, Any], count: int) -> Times:
    """:func:`compilations` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compilations, case, settings, count).result()


def _renamed(times: Times) -> Times:
    return {f"another process: {name}": seconds for name, seconds in times.items()}


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
