"""Where the host's time of one call goes: ``python -m benchmarks.host``, a ResNet-18 at batch 1 unless told otherwise.

From the inside out: the launch of the CUDA graph; with fresh outputs; with what the session does; the whole call. And
the peer, ``torch.compile`` in the mode ``reduce-overhead``. All are timed in turns, from an idle GPU, in bursts of so
many calls: in longer ones the host may wait for the GPU.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import torch2trt
from torch2trt.errors import Torch2TRTError
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.session import Session
from torch2trt.tools.bench.backends import inductor
from torch2trt.tools.bench.case import Case, Subject
from torch2trt.tools.bench.command import commit_here
from torch2trt.tools.bench.machine import CudaMachine, Machine
from torch2trt.tools.bench.measure import percentile

BURSTS = (1, 4, 16)
_WARM = 20  # calls until the run that reads its input where it lies has been captured


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    case = case_of(options)
    try:
        machine = CudaMachine()
        with torch.no_grad():
            calls = calls_of(Subject(case, sets=1), machine.device, peer=not options.alone)
            found = measure(calls, machine, rounds=options.rounds)
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=120).print(show(str(case), found))
    if options.csv:
        write(options.csv, options.commit, str(case), machine.name, found)
    return 0


def calls_of(subject: Subject, device: torch.device, *, peer: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by name, each of them warm."""
    ((args, kwargs),) = subject.inputs(device)
    module = torch2trt.compile(subject.module(device), args, dict(kwargs), progress="none")
    for _ in range(_WARM):
        module(*args, **kwargs)
    calls: dict[str, Callable[[], Any]] = {"nothing": lambda: None}
    calls |= _inner(module, args, kwargs)
    calls["call of the module"] = lambda: module(*args, **kwargs)
    if peer:
        compiled = inductor(subject.module(device), "inductor-reduce-overhead")

        def run() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*args, **kwargs)

        for _ in range(_WARM):
            run()
        calls["torch.compile, reduce-overhead"] = run
    return calls


def _inner(module: EngineModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The parts of a call of one engine; none where it is not replayed."""
    session = module._session
    if not isinstance(session, Session):
        return {}
    graph = next((graph for contexts in session.contexts for graph in contexts.graphs), None)
    if graph is None:
        return {}
    leaves = module.artifact.signature.flatten(args, kwargs)
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    stored = session.open().as_stored(inputs)
    shapes = tuple(tuple(value.shape) for value in inputs)
    replayed = next(iter(graph._in_place), graph._buffered)
    stream = torch.cuda.current_stream().cuda_stream
    return {
        "launch of the graph": lambda: replayed.launch(stream),
        "launch, and fresh outputs": lambda: graph.replay(stored, stream),
        "run of the session": lambda: session.run(inputs, shapes),
    }


def measure(calls: dict[str, Callable[[], Any]], machine: Machine, *, rounds: int) -> dict[str, list[float]]:
    """The medians of the microseconds of a call, for each of the bursts."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in BURSTS] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for own, burst in zip(taken[name], BURSTS, strict=True):
                own.append(machine.host_us(lambda _, call=call: call(), burst))  # type: ignore[misc]
    return {name: [percentile(own, 50) for own in times] for name, times in taken.items()}


def show(title: str, found: dict[str, list[float]]) -> Table:
    """The times as a table."""
    table = Table("µs until it returns", *(f"{burst} in a row" for burst in BURSTS), title=title)
    for name, times in found.items():
        table.add_row(name, *(f"{time:.1f}" for time in times))
    return table


def write(path: Path, commit: str, case: str, gpu: str, found: dict[str, list[float]]) -> None:
    """The times as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["commit", "gpu", "torch", "case", "what", *(f"us_in_{burst}" for burst in BURSTS)])
        for name, times in found.items():
            known = [commit, gpu, torch.__version__, case, name]
            writer.writerow([*known, *(f"{time:.2f}" for time in times)])


def add_case(parser: argparse.ArgumentParser) -> None:
    """One model, and where to keep what is measured: options of the benchmarks that have no suite."""
    parser.add_argument("--model", default="torchvision:resnet18", help="as torch2trt bench takes it")
    parser.add_argument("--input", action="append", default=[], help="an input, as torch2trt bench takes it")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="fp16", choices=("fp32", "tf32", "fp16", "bf16"))
    parser.add_argument("--csv", type=Path, help="write the table there too")
    parser.add_argument("--commit", default=commit_here(), help="to record, where there is no git (default: HEAD)")


def case_of(options: argparse.Namespace) -> Case:
    """What :func:`add_case` asks for."""
    return Case(options.model, options.model, options.batch, options.precision, tuple(options.input))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.splitlines()[0])
    add_case(parser)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--alone", action="store_true", help="without torch.compile, which takes a while")
    return parser


if __name__ == "__main__":
    sys.exit(main())
