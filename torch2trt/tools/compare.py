"""Call by call, how far a compiled module is from the truth: where an error begins, and what overflows."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn

from torch2trt import api
from torch2trt.examples import Calls
from torch2trt.graph.exact import run_exact
from torch2trt.graph.marking import marked, output_name
from torch2trt.graph.program import Program
from torch2trt.graph.signature import dtype_to_json
from torch2trt.partition.explain import Placement, html_table
from torch2trt.partition.explain import explain as placements_of
from torch2trt.runtime.profiles import nearest
from torch2trt.runtime.profiles import profiles as profiles_of
from torch2trt.runtime.verification import Row
from torch2trt.runtime.verification import compare as compare_values
from torch2trt.settings import Settings
from torch2trt.sizes import TensorSpec, spell, volume
from torch2trt.tolerance import effective_precision
from torch2trt.tolerance import tolerance as allowed
from torch2trt.tools.sizes import At, inputs_at
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

Runs = Literal["engine", "reference"]

# Values that are kept at once, in bytes: the truth in float64 and what it is compared with, both sides.
_AT_ONCE = 1 << 31
_BYTES_EACH = 16
_ROWS_SHOWN = 24


@dataclass(frozen=True)
class CallError:
    """One call of the optimised graph: its result against the truth."""

    call: Placement
    """The call, the module and line that it comes from, and whether it runs in an engine."""
    dtype: str
    max_abs_error: float
    max_rel_error: float
    """Relative to the largest magnitude in the truth; for integers and booleans the fraction that differs."""
    largest: float
    """The largest finite magnitude in the truth."""
    limit: float | None
    """The largest number that the dtype has; None for integers and booleans."""
    not_finite: int
    """Elements that are infinite or NaN where the truth is finite."""
    tolerance: float
    """Largest ``max_rel_error`` that passes."""
    sizes: str = ""
    """Those of the dynamic dimensions, as ``batch 8``; empty where there are none."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.max_rel_error <= self.tolerance

    @property
    def overflows(self) -> bool:
        """Whether the dtype cannot hold the result, or what it was computed from."""
        return self.not_finite > 0 or (self.limit is not None and self.largest > self.limit)

    @property
    def note(self) -> str:
        """What to know of it in a few words."""
        if self.overflows:
            lost = f", {self.not_finite} elements are infinite or NaN" if self.not_finite else ""
            return f"overflow: up to {self.largest:.3g}, {self.dtype} ends at {self.limit or 0:.3g}{lost}"
        return "" if self.passed else "above the tolerance"

    def to_json(self) -> dict[str, Any]:
        """JSON values; an error that is infinite is null."""
        numbers = {key: value for key, value in asdict(self).items() if key != "call"}
        numbers = {key: None if value == math.inf else value for key, value in numbers.items()}
        place = asdict(self.call)
        return {**place, **numbers, "passed": self.passed, "overflows": self.overflows}


@dataclass(frozen=True)
class SizeError:
    """The calls at one of several sizes."""

    sizes: str
    """Of the dynamic dimensions, as ``batch 8, seq 128``."""
    profile: str
    """The optimization profile that ran them, where there are several."""
    above: int
    """How many calls are above the tolerance."""
    max_rel_error: float
    first: str
    """The first call above the tolerance; empty where there is none."""


@dataclass(frozen=True)
class ModuleError:
    """The calls of one module and of its children."""

    module: str
    calls: int
    above: int
    """How many are above the tolerance, at some size."""
    max_rel_error: float


@dataclass(frozen=True)
class Comparison:
    """A compiled module beside the truth, size by size in the order of the calls."""

    name: str
    ran: Runs
    """Whether the engine itself ran, or the reference interpreter in its place."""
    precision: str
    tolerance: float
    """The largest error allowed, relative to the largest magnitude of a call's result."""
    calls: tuple[CallError, ...]
    profiles: Mapping[str, str] = field(default_factory=dict)
    """The optimization profile that ran each of the sizes, as ``batch 8``; empty where there is one."""

    @property
    def passed(self) -> bool:
        """Whether every call is within its tolerance."""
        return self.first is None

    @property
    def first(self) -> CallError | None:
        """The first call above its tolerance: what comes after it may only hand its error on."""
        return next((each for each in self.calls if not each.passed), None)

    @property
    def overflows(self) -> list[CallError]:
        """The calls whose dtype cannot hold their results."""
        return [each for each in self.calls if each.overflows]

    @property
    def profile(self) -> str:
        """The optimization profile that ran, where there are several and one size."""
        return next(iter(self.profiles.values())) if len(self.profiles) == 1 else ""

    @property
    def sizes(self) -> list[SizeError]:
        """Errors by the sizes of the dynamic dimensions; one for a module without any."""
        members: dict[str, list[CallError]] = {}
        for each in self.calls:
            members.setdefault(each.sizes, []).append(each)
        return [
            SizeError(
                sizes,
                self.profiles.get(sizes, ""),
                _count(each for each in calls if not each.passed),
                max(each.max_rel_error for each in calls),
                next((each.call.node for each in calls if not each.passed), ""),
            )
            for sizes, calls in members.items()
        ]

    @property
    def modules(self) -> list[ModuleError]:
        """Errors by the path of the module, children counted, in the order in which they first run."""
        members: dict[str, list[CallError]] = {}
        for each in self.calls:
            parts = each.call.module.split(".") if each.call.module else []
            for length in range(len(parts) + 1):
                members.setdefault(".".join(parts[:length]), []).append(each)
        return [
            ModuleError(
                path,
                _count(calls),
                _count(each for each in calls if not each.passed),
                max(each.max_rel_error for each in calls),
            )
            for path, calls in members.items()
        ]

    @property
    def summary(self) -> str:
        """One line."""
        above = _count(each for each in self.calls if not each.passed)
        what = "engine" if self.ran == "engine" else "reference interpreter"
        how = ", ".join(filter(None, (what, self.precision, self.profile)))
        sizes = self.sizes
        at = (
            f" at {len(sizes)} sizes"
            if len(sizes) > 1
            else "".join(f" at {each.sizes}" for each in sizes if each.sizes)
        )
        text = f"{self.name} ({how}): {_count(self.calls)} calls{at}, {above} above {self.tolerance:g}"
        if self.first is not None:
            where = f" in {self.first.call.module}" if self.first.call.module else ""
            at = f" at {self.first.sizes}" if len(sizes) > 1 else ""
            text += f", the first is {self.first.call.node} ({self.first.call.op}){where}{at}"
        if self.overflows:
            text += f"; {_count(self.overflows)} overflow"
        return text

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "ran": self.ran,
            "precision": self.precision,
            "profile": self.profile,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "first": self.first.call.node if self.first else None,
            "overflows": list(dict.fromkeys(each.call.node for each in self.overflows)),
            "sizes": [_finite(each) for each in self.sizes],
            "modules": [_finite(each) for each in self.modules],
            "calls": [each.to_json() for each in self.calls],
        }

    def to_html(self) -> str:
        """A table of the sizes where there are several, one of the modules and one of all calls, every text escaped."""
        sizes = [_size_cells(each) for each in self.sizes]
        modules = [
            (each.module or ".", str(each.calls), str(each.above), f"{each.max_rel_error:.2e}") for each in self.modules
        ]
        calls = [(*self._cells(each), each.call.where, each.call.source) for each in self.calls]
        return "\n".join(
            (
                f"<p>{html.escape(self.summary)}</p>",
                *([html_table(_SIZE_TITLES, sizes)] if len(sizes) > 1 else []),
                html_table(("module", "calls", "above the tolerance", "max rel error"), modules),
                html_table((*self._titles, "runs in", "line"), calls),
            )
        )

    def _repr_html_(self) -> str:
        return self.to_html()

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        text = io.StringIO()
        console = Console(file=text, width=140, color_system=None, markup=False, highlight=False)
        console.print(self.summary)
        if self.first is not None and self.first.call.source:
            console.print(f"  at {self.first.call.source}")
        if len(self.sizes) > 1:
            table = Table(*_SIZE_TITLES)
            for size in self.sizes:
                table.add_row(*_size_cells(size))
            console.print(table)
        table = Table(*self._titles)
        shown = self._worth_showing()
        for each in shown:
            table.add_row(*self._cells(each))
        console.print(table)
        if len(shown) < len(self.calls):
            console.print(f"{len(self.calls) - len(shown)} results with smaller errors are left out")
        return text.getvalue().rstrip()

    @property
    def _titles(self) -> tuple[str, ...]:
        sizes = ("sizes",) if len(self.sizes) > 1 else ()
        return (*sizes, "call", "module", "operator", "max abs error", "max rel error", "largest", "note")

    def _cells(self, each: CallError) -> tuple[str, ...]:
        sizes = (each.sizes,) if len(self.sizes) > 1 else ()
        numbers = (f"{value:.2e}" for value in (each.max_abs_error, each.max_rel_error, each.largest))
        return *sizes, each.call.node, each.call.module or ".", each.call.op, *numbers, each.note

    def _worth_showing(self) -> list[CallError]:
        """The first call above the tolerance, what overflows first, and the worst, in the order of the calls."""
        chosen = [*filter(None, [self.first]), *self.overflows[:4]]
        chosen += sorted(self.calls, key=lambda each: -each.max_rel_error)
        shown = set(list(dict.fromkeys((each.sizes, each.call.node) for each in chosen))[:_ROWS_SHOWN])
        return [each for each in self.calls if (each.sizes, each.call.node) in shown]


_SIZE_TITLES = ("sizes", "profile", "above the tolerance", "max rel error", "the first")


def _size_cells(each: SizeError) -> tuple[str, ...]:
    return each.sizes, each.profile, str(each.above), f"{each.max_rel_error:.2e}", each.first


def _count(errors: Iterable[CallError]) -> int:
    """How many calls they are of: one may be among them at several sizes."""
    return len({each.call.node for each in errors})


def _finite(errors: SizeError | ModuleError) -> dict[str, Any]:
    """JSON values; an error that is infinite is null."""
    return {**asdict(errors), "max_rel_error": errors.max_rel_error if math.isfinite(errors.max_rel_error) else None}


def compare(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    at: At | None = None,
    name: str | None = None,
    runs: Runs | None = None,
    tolerance: float | None = None,
    **settings: Any,
) -> Comparison:
    """Compare a module, call by call, with the same calls in float64 from the original weights.

    Every call of the optimised graph becomes an output of the network, so TensorRT fuses less around it than it does
    in :func:`torch2trt.compile`; errors add up along the graph as they do there. Calls that depend on constants and
    sizes alone are not shown. Where there are many large values, the module is run in several parts.

    Args:
        module, args, kwargs, examples, dynamic_shapes, profiles, name, settings: as :func:`torch2trt.compile` takes
            them. Where there are several profiles, the sizes say which one runs.
        at: the sizes to run at: ``{"batch": 64}``, where dimensions that are left out have the example's size; a list
            of such; or ``"all"``, the smallest, usual and largest sizes of every profile. The example's values repeat.
            Unset: the example's sizes, of ``examples`` those of the first.
        runs: ``engine`` or ``reference``, the interpreter; unset: the engine where there is a GPU that serves it.
        tolerance: the largest error allowed, relative to the largest magnitude of a call's result; unset: as
            ``verify`` has it for the precision.

    Returns:
        A table when printed or shown in a notebook; ``to_json()`` and ``to_html()``.

    Raises:
        DynamicShapeError: ``at`` names a dimension that there is not.
        InputShapeError: no profile holds the sizes.
        Torch2TRTError: the module cannot be compiled.
    """
    chosen = Settings.make(**settings)
    flavour = flavours.load(chosen.flavour)
    args, kwargs, calls = api.first_call(module, args, kwargs, examples)
    captured = api.capture(
        module, args, kwargs, calls=calls, dynamic_shapes=dynamic_shapes, profiles=profiles, name=name
    )
    program = api.optimize(captured, chosen, flavour)
    if runs is None:
        runs = "engine" if flavours.gpu() and not flavours.find(flavour.name).problem else "reference"
    signature = program.signature
    leaves = signature.flatten(args, dict(kwargs or {}))
    inputs = [value.detach().cpu() for value in leaves if isinstance(value, torch.Tensor)]
    inputs += [program.state[leaf.buffer].cpu() for leaf in signature.state]
    dtypes = [value.dtype for value in inputs] + [value.dtype for value in program.weights.sources.values()]
    precision = effective_precision(chosen.precision, dtypes)
    limit = allowed(precision, reference=runs == "reference") if tolerance is None else tolerance
    places = {each.node: each for each in placements_of(program, flavour, chosen).placements}
    cases = {spell(sizes): (sizes, values) for sizes, values in inputs_at(signature, inputs, at)}
    largest = {name: max(sizes[name] for sizes, _ in cases.values()) for name in signature.dims}
    errors: dict[str, list[CallError]] = {at: [] for at in cases}
    for nodes in _parts(program, largest):
        # The results stay outputs, so that each part runs where the whole does.
        part = marked(program, list(dict.fromkeys((*nodes, *program.output_node.all_input_nodes))))
        run = _runner(part, runs, flavour, chosen)
        for spelled, (_, values) in cases.items():
            truth = dict(zip(part.output_names, run_exact(part, tuple(values), {})[0], strict=True))
            found = run(values)
            for node in nodes:
                exact, value = truth.pop(output_name(node)), found.pop(output_name(node))
                error = _error(places[node.name], value, exact, program.spec(node), limit)
                errors[spelled].append(dataclasses.replace(error, sizes=spelled))
    ran: dict[str, str] = {}
    for spelled, (_, values) in cases.items() if len(signature.ranges) > 1 else ():
        index = nearest(profiles_of(signature), tuple(tuple(value.shape) for value in values))
        assert index is not None
        ran[spelled] = spell(signature.ranges[index])
    return Comparison(program.name, runs, precision, limit, tuple(itertools.chain(*errors.values())), ran)


def _parts(program: Program, dims: Mapping[str, int]) -> Iterator[list[fx.Node]]:
    """The calls that depend on the inputs and yield one tensor, in parts whose values fit into memory at once."""
    depends = set(program.input_placeholders)
    part: list[fx.Node] = []
    held = 0
    for node in program.calls:
        if program.is_size(node) or depends.isdisjoint(node.all_input_nodes):
            continue
        depends.add(node)
        result = program.result(node)
        if not isinstance(result, TensorSpec):
            continue
        size = _BYTES_EACH * _elements(result, dims)
        if part and held + size > _AT_ONCE:
            yield part
            part, held = [], 0
        part.append(node)
        held += size
    if part:
        yield part


def _elements(spec: TensorSpec, dims: Mapping[str, int]) -> int:
    """How many there are, as far as it is known before running."""
    known = volume(spec.shape)
    if not isinstance(known, int):
        known = known.subs({symbol: dims.get(symbol.name, 1) for symbol in known.free_symbols})
    return int(known)


def _runner(
    program: Program, runs: Runs, flavour: Flavour, settings: Settings
) -> Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]:
    """A Program, compiled: from its inputs to its outputs by name, on the CPU."""
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    if runs == "reference":
        interpreted = api.interpret(program, flavour.name, settings)
        return lambda inputs: interpreted(dict(zip(names, inputs, strict=True)))
    # It runs once in each size: there is nothing to replay, and nobody else wants it.
    compiled = api.build(program, flavour, dataclasses.replace(settings, cuda_graphs=False, engine_cache=False))

    def run(inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            outputs = compiled(*(value.cuda() for value in inputs))
        return {name: value.cpu() for name, value in zip(program.output_names, outputs, strict=True)}

    return run


def _error(place: Placement, value: torch.Tensor, truth: torch.Tensor, spec: TensorSpec, limit: float) -> CallError:
    row: Row = compare_values(place.node, value, truth, limit)
    finite = truth[truth.isfinite()].abs()
    is_float = spec.dtype.is_floating_point
    lost = ~value.isfinite() & truth.isfinite() if value.shape == truth.shape else torch.zeros(0)
    return CallError(
        call=place,
        dtype=dtype_to_json(spec.dtype),
        max_abs_error=row.max_abs_error,
        max_rel_error=row.max_rel_error,
        largest=float(finite.max()) if finite.numel() else 0.0,
        limit=torch.finfo(spec.dtype).max if is_float else None,
        not_finite=int(lost.sum()),
        tolerance=limit,
    )
