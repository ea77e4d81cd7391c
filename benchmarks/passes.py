"""What each pass is worth, model by model: ``python -m benchmarks.passes --rows swin_t:32 --passes merge_views``.

Each model is built with the passes that are on by default, without each of them, without any of those that can be left
out, and with each of the others; what a pass leaves as it is, is not built again. All engines of a model are then timed
in turns, in CUDA graphs over static buffers. ``--count`` needs no GPU: it builds nothing, and counts calls and layers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from benchmarks.run import add_run, names, select
from benchmarks.suites import SUITES
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.errors import SettingError, Torch2TRTError
from torch2trt.graph.program import Program
from torch2trt.settings import ExtraPass, Settings, SkippablePass
from torch2trt.tools.bench import measure, rows
from torch2trt.tools.bench.backends import arithmetic, open_call
from torch2trt.tools.bench.builds import Timings
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import INPUT_SETS, Case, Subject, error_of
from torch2trt.tools.bench.machine import CudaMachine, Machine
from torch2trt.tools.bench.prepare import prepare
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

SKIPPABLE: tuple[str, ...] = get_args(SkippablePass)
EXTRA: tuple[str, ...] = get_args(ExtraPass)
DEFAULT = "default"

_RUN, _BUILT = Candidate("torch2trt-static"), Candidate("torch2trt")


@dataclass(frozen=True)
class Variant:
    """A choice of passes."""

    name: str
    settings: Mapping[str, list[str]]


@dataclass(frozen=True)
class Row:
    """One model with one choice of passes; what was not measured is None."""

    commit: str
    date: str
    model: str
    batch: int
    precision: str
    variant: str
    """``default``, ``without <pass>``, ``without any``, or ``with <pass>``."""
    calls: int
    """Of the optimised graph."""
    layers: int
    """Of TensorRT's network."""
    same_as: str = ""
    """The variant whose graph is the same, which was built in its place."""
    gpu_ms_p50: float | None = None
    gpu_ms_p99: float | None = None
    ratio: float | None = None
    """Of gpu_ms_p50 to that of ``default``: above 1 without a pass that makes the model faster, below 1 with it."""
    max_rel_error: float | None = None
    build_s: float | None = None
    gpu: str = ""
    flavour: str = ""
    torch: str = ""
    error: str = ""

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What makes a row this row."""
        return self.model, self.batch, self.precision, self.variant

    @property
    def order(self) -> tuple[Any, ...]:
        """By model, and in the order of the variants; at the end those that there no longer are."""
        names = [*(variant.name for variant in variants((*SKIPPABLE, *EXTRA))), self.variant]
        return self.model, self.precision, self.batch, names.index(self.variant)


@dataclass(frozen=True)
class Graph:
    """What the passes make of a model."""

    calls: int
    layers: int
    structure: tuple[Any, ...]
    """Equal for graphs that are the same but for names."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:6.1f} s] {line}", flush=True)

    try:
        chosen = variants(options.passes)
        cases = [
            dataclasses.replace(case, precision=options.precision or case.precision)
            for case in select(SUITES[options.suite], options.rows)
        ]
        flavour = flavours.load()
        machine = None if options.count else CudaMachine()
        found: list[Row] = []
        with tempfile.TemporaryDirectory(prefix="torch2trt-passes-") as folder:
            work = (options.work or Path(folder)) / options.commit
            bench = Bench(machine, flavour, work, options.timing_cache, say)
            for case in cases:
                if options.deadline is not None and time.monotonic() - start > options.deadline:
                    say(f"{case}: no time is left")
                    continue
                found += bench.run(case, chosen, rounds=options.rounds, limit=options.limit, commit=options.commit)
                if machine is not None:
                    name = rows.csv_name(machine.name, flavour.name, flavour.version_text, str(torch.__version__))
                    path = options.out / f"passes-{name}"
                    rows.replace(path, found, Row)
                    say(f"{case}: {path}")
    except Torch2TRTError as error:
        print(error, file=sys.stderr)
        return 2
    Console(width=140).print(table(found))
    return 0


def variants(passes: Sequence[str]) -> list[Variant]:
    """The passes on by default; of those named, all but each that is, and all and each that is not; and none that is.

    The last only where all of them are named.

    Raises:
        SettingError: one is no pass that can be left out or added.
    """
    for name in passes:
        if name not in (*SKIPPABLE, *EXTRA):
            known = ", ".join((*SKIPPABLE, *EXTRA))
            raise SettingError("is no pass that can be left out or added", subject=name, hint=f"these can: {known}")
    found = [Variant(DEFAULT, {})]
    found += [Variant(f"without {name}", {"skip_passes": [name]}) for name in SKIPPABLE if name in passes]
    if set(passes).issuperset(SKIPPABLE):
        found.append(Variant("without any", {"skip_passes": list(SKIPPABLE)}))
    return found + [Variant(f"with {name}", {"extra_passes": [name]}) for name in EXTRA if name in passes]


class Bench:
    """Builds and measurements on one machine.

    Args:
        machine: None: only count.
        work: folder for what is built.
        timings: as :class:`torch2trt.tools.bench.builds.Timings` takes it.
        say: takes lines of progress.
    """

    def __init__(
        self,
        machine: Machine | None,
        flavour: Flavour,
        work: Path,
        timings: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self._machine = machine
        self._flavour = flavour
        self._work = work
        self._timings = Timings(timings, work.resolve() / "cache", flavour)
        self._say = say

    def run(self, case: Case, chosen: Sequence[Variant], *, rounds: int, limit: float, commit: str) -> list[Row]:
        """The rows of one case, in the order of the variants."""
        subject = Subject(case)
        graphs = graphs_of(subject, self._flavour, chosen)
        first: dict[tuple[Any, ...], str] = {}
        found = []
        for variant in chosen:
            graph = graphs[variant.name]
            same = first.setdefault(graph.structure, variant.name)
            row = Row(
                commit=commit,
                date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                model=case.name,
                batch=subject.batch,
                precision=subject.precision,
                variant=variant.name,
                calls=graph.calls,
                layers=graph.layers,
                same_as=same if same != variant.name else "",
                flavour=f"{self._flavour.name} {self._flavour.version_text}",
                torch=str(torch.__version__),
            )
            found.append(row)
        self._say(f"{case}: {len(first)} different graphs of {len(chosen)}")
        if self._machine is None:
            return found
        settings = {variant.name: variant.settings for variant in chosen if variant.name in first.values()}
        return self._measured(subject, found, settings, self._machine, rounds, limit)

    def _measured(
        self,
        subject: Subject,
        found: Sequence[Row],
        settings: Mapping[str, Mapping[str, list[str]]],
        machine: Machine,
        rounds: int,
        limit: float,
    ) -> list[Row]:
        results: dict[str, dict[str, Any]] = {}
        calls: dict[str, Callable[[int], Any]] = {}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(arithmetic(subject.precision))
            truth, sets = subject.truth(machine.device), subject.inputs(machine.device)
            for name, own in settings.items():
                try:
                    prepared = prepare(
                        _BUILT,
                        subject.case,
                        (self._work / "-".join((*str(subject.case).split(), *name.split()))).resolve(),
                        settings={"progress": "none", "timing_cache": False, **self._timings.settings, **own},
                        timeout=limit,
                    )
                    self._timings.keep()
                    call = open_call(_RUN, subject, sets, prepared, self._flavour, machine.device)
                    for number in range(2 * INPUT_SETS):
                        call(number)
                    results[name] = {"max_rel_error": error_of(call(0), truth), "build_s": prepared.build_s}
                    calls[name] = call
                    self._say(f"{subject.case}: {name} built in {prepared.build_s:.1f} s")
                except Torch2TRTError as error:
                    results[name] = {"error": " ".join(str(error).split())[:400]}
                    self._say(f"{subject.case}: {name} failed: {results[name]['error']}")
            for name, samples in measure.measure(calls, machine, rounds=rounds).items():
                results[name] |= {"gpu_ms_p50": samples.gpu_ms_p50, "gpu_ms_p99": samples.gpu_ms_p99}
        base = results[DEFAULT].get("gpu_ms_p50")
        measured = []
        for row in found:
            values = results[row.same_as or row.variant]
            own = values.get("gpu_ms_p50")
            ratio = own / base if base and own else None
            measured.append(dataclasses.replace(row, **values, ratio=ratio, gpu=machine.name))
        return measured


def graphs_of(subject: Subject, flavour: Flavour, chosen: Sequence[Variant]) -> dict[str, Graph]:
    """What each choice of passes makes of a case's model in its precision, by name."""
    cpu = torch.device("cpu")
    args, kwargs = subject.inputs(cpu)[0]
    captured = api.capture(subject.module(cpu), args, kwargs, name=subject.case.name)
    precision = "fp32" if subject.precision == "fp32" else None  # half precision is the module's own
    layers: dict[tuple[Any, ...], int] = {}
    found = {}
    for variant in chosen:
        program = api.optimize(copied(captured), Settings.make(**variant.settings, precision=precision), flavour)
        shape = structure(program)
        if shape not in layers:
            network = lower(program, flavour)
            layers[shape] = network.definition.num_layers
            network.release()
        found[variant.name] = Graph(len(program.calls), layers[shape], shape)
    return found


def copied(program: Program) -> Program:
    """A Program whose graphs are its own and whose weights are the same tensors."""
    weights = program.weights
    own = dataclasses.replace(weights, graph=_copied(weights.graph), inputs=dict(weights.inputs))
    return dataclasses.replace(program, graph=_copied(program.graph), weights=own)


def _copied(module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return fx.GraphModule({}, graph)


def structure(program: Program) -> tuple[Any, ...]:
    """The nodes with their arguments, as numbers in place of names."""
    places = {node: index for index, node in enumerate(program.nodes)}

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return "node", places[value]
        if isinstance(value, list | tuple):
            return tuple(plain(item) for item in value)
        if isinstance(value, dict):
            return tuple((name, plain(item)) for name, item in sorted(value.items()))
        return type(value).__name__, str(value)

    return tuple(
        (node.op, str(node.target) if node.op == "call_function" else "", plain(node.args), plain(node.kwargs))
        for node in program.nodes
    )


def table(found: Sequence[Row]) -> Table:
    """The rows to read; what a pass leaves as it is, is left out."""
    shown = Table()
    for column in ("model", "passes"):
        shown.add_column(column)
    for column in ("calls", "layers", "p50 ms", "p99 ms", "× default", "max rel error", "build s"):
        shown.add_column(column, justify="right")
    for row in found:
        if row.same_as == DEFAULT:
            continue
        numbers = (
            (row.calls, "d"),
            (row.layers, "d"),
            (row.gpu_ms_p50, ".4f"),
            (row.gpu_ms_p99, ".4f"),
            (row.ratio, ".3f"),
            (row.max_rel_error, ".1e"),
            (row.build_s, ".1f"),
        )
        name = f"{row.variant} (= {row.same_as})" if row.same_as else row.variant
        cells = ("" if value is None else format(value, form) for value, form in numbers)
        shown.add_row(f"{row.model}, {row.batch}, {row.precision}", row.error or name, *cells)
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description=__doc__, allow_abbrev=False)
    add_run(parser, suite="passes")
    parser.add_argument("--passes", type=names, default=(*SKIPPABLE, *EXTRA), metavar="NAME,…", help="only these")
    parser.add_argument("--count", action="store_true", help="build nothing: count calls and layers, without a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
