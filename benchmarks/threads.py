"""Threads that share one module: ``python -m benchmarks.threads``, a ResNet-18 at batch 1 unless told otherwise.

Each thread has a stream of its own, calls the module, and waits until its result is there before it calls again, as a
server's threads do. The engine is one and the same; what differs is how many runs it may have on the GPU at once
(``max_concurrent_runs``): one, and as many as by default. One thread alone is there to compare with. All are timed in
turns.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import torch2trt
from benchmarks.host import add_case, case_of
from torch2trt.errors import Torch2TRTError
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools.bench.case import Subject
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.measure import percentile

_WARM = 64  # calls of each thread until its runs have been captured where they lie
_PERCENTS = (50, 10, 90)
Request = Callable[[int], None]
"""A thread's number to one call, whose result is there when it returns."""


@dataclass
class Variant:
    """What is timed: a module in some threads."""

    threads: int
    most: int
    """Runs that may be on the GPU at once."""
    request: Request
    held_bytes: int = 0
    """Device memory that it took to get warm: activations, and the buffers of CUDA graphs."""
    per_s: list[float] = field(default_factory=list)
    """Calls of all threads in a second, in each round."""

    @property
    def name(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads > 1)}, {self.most} at once"


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    case = case_of(options)
    try:
        machine = CudaMachine()
        with torch.no_grad():
            found = variants_of(Subject(case, sets=1), machine.device, options.threads, cuda_graphs=options.cuda_graphs)
            measure(found, rounds=options.rounds, calls=options.calls)
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=120).print(show(str(case), found))
    if options.csv:
        write(options.csv, options.commit, str(case), machine.name, found)
    return 0


def variants_of(subject: Subject, device: torch.device, threads: int, *, cuda_graphs: bool) -> list[Variant]:
    """One engine in one thread and in several, each of them warm."""
    ((args, kwargs),) = subject.inputs(device)
    compiled = torch2trt.compile(
        subject.module(device), args, dict(kwargs), progress="none", cuda_graphs=cuda_graphs, fallback=False
    )
    assert isinstance(compiled, EngineModule)
    most = Settings().max_concurrent_runs
    made = []
    for count, bound in ((1, most), (threads, 1), (threads, most)):
        before = torch.cuda.memory_allocated(device)
        variant = Variant(count, bound, _request(_bounded(compiled, bound), args, kwargs, device, count))
        calls_per_s(variant, _WARM)
        variant.held_bytes = torch.cuda.memory_allocated(device) - before
        made.append(variant)
    return made


def _bounded(compiled: EngineModule, most: int) -> EngineModule:
    """The same engine with so many runs at once, at most."""
    settings = dataclasses.replace(compiled.artifact.settings, max_concurrent_runs=most)
    return EngineModule(dataclasses.replace(compiled.artifact, settings=settings))


def _request(module: EngineModule, args: tuple[Any, ...], kwargs: Any, device: torch.device, threads: int) -> Request:
    streams = [torch.cuda.Stream(device) for _ in range(threads)]
    torch.cuda.synchronize(device)

    def request(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(streams[number]):
            module(*args, **kwargs)
        streams[number].synchronize()

    return request


def measure(variants: Sequence[Variant], *, rounds: int, calls: int) -> None:
    """Time all of them in turns.

    Args:
        calls: of all threads together, in a round.
    """
    for _ in range(rounds):
        for variant in variants:
            variant.per_s.append(calls_per_s(variant, -(-calls // variant.threads)))


def calls_per_s(variant: Variant, calls: int) -> float:
    """Calls of all threads in a second, of so many by each, which begin together."""
    barrier = Barrier(variant.threads + 1)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(calls):
            variant.request(number)

    with ThreadPoolExecutor(variant.threads) as pool:
        futures = [pool.submit(work, number) for number in range(variant.threads)]
        barrier.wait()
        start = time.perf_counter()
        for future in futures:
            future.result()
        seconds = time.perf_counter() - start
    return variant.threads * calls / seconds


def show(title: str, variants: Sequence[Variant]) -> Table:
    """The throughput as a table."""
    table = Table("", "calls in a second", "MB held", title=title)
    for each in variants:
        table.add_row(each.name, f"{percentile(each.per_s, 50):,.0f}", f"{each.held_bytes / 1e6:,.1f}")
    return table


def write(path: Path, commit: str, case: str, gpu: str, variants: Sequence[Variant]) -> None:
    """The throughput as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        told = ["commit", "gpu", "torch", "case", "threads", "max_concurrent_runs"]
        writer.writerow([*told, *(f"calls_per_s_p{percent}" for percent in _PERCENTS), "held_bytes"])
        for each in variants:
            known = [commit, gpu, torch.__version__, case, each.threads, each.most]
            rates = [f"{percentile(each.per_s, percent):.1f}" for percent in _PERCENTS]
            writer.writerow([*known, *rates, each.held_bytes])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=2000, help="of all threads together, in a round")
    parser.add_argument("--cuda-graphs", action=argparse.BooleanOptionalAction, default=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
