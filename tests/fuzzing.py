"""Random graphs of operators that convert, each step checked in eager while it is drawn, and a process that runs them.

A graph is Python source. A step stays when eager can execute it at every size of the dynamic dimension, and rounding
does not decide its result: what is left is right or wrong whatever the arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import math
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import CodeType, SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from tests import worker as processes
from torch2trt import api
from torch2trt.errors import BuildError, ContractError, InterpreterError, Torch2TRTError
from torch2trt.graph.exact import Exact, widened
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

Draw = Callable[[Any], Any]
Size = int | Literal["n"]
Status = Literal["right", "refused", "wrong", "crash", "hang"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64, "int32": torch.int32}
DTYPES["bool"] = torch.bool
_TUPLES = ("chunk", "split", "unbind", "tensor_split", "aminmax", "max", "min")
_MOST_ELEMENTS, _MOST_AXES, _MOST_INT = 2048, 5, 1 << 16
_LARGEST = {"float32": 1e4, "float16": 500.0}
# By whether a graph has float16: how far inputs are moved to see what rounding does, the largest difference that a
# step may make of it, and the error allowed beside ten times that difference.
_NOISE = {False: 1e-6, True: 1e-3}
_UNSTABLE = {False: 1e-4, True: 3e-2}
_ALLOWED = {False: 1e-5, True: 3e-3}


# A graph --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """A tensor that a graph is given."""

    shape: tuple[Size, ...]
    dtype: str
    below: int = 5
    """Integers lie between its negative and it, or between 0 and it where it is an index's."""
    index: bool = False

    def make(self, n: int, seed: int) -> torch.Tensor:
        """The tensor where the dynamic dimension has this size."""
        generator = torch.Generator().manual_seed(seed)
        shape = [n if size == "n" else size for size in self.shape]
        dtype = DTYPES[self.dtype]
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        if dtype == torch.bool:
            return torch.rand(shape, generator=generator) > 0.4
        return torch.randint(0 if self.index else -self.below, self.below, shape, generator=generator, dtype=dtype)


@dataclass(frozen=True)
class Graph:
    """A function of tensors, as source, with what it is given."""

    inputs: dict[str, Spec]
    weights: dict[str, Spec]
    lines: tuple[str, ...]
    returned: tuple[str, ...]
    sizes: tuple[int, int, int]
    """The dynamic dimension's min, opt and max; equal where there is none."""
    precision: str | None
    build: bool
    """Whether an engine is built, too."""

    @property
    def source(self) -> str:
        """Its forward."""
        body = [*self.lines, f"return ({''.join(f'{name}, ' for name in self.returned)})"]
        return f"def forward(self, {', '.join(self.inputs)}):\n" + textwrap.indent("\n".join(body), "    ")

    @property
    def half(self) -> bool:
        """Whether FP16 rounds something."""
        texts = (*self.lines, *(spec.dtype for spec in (*self.inputs.values(), *self.weights.values())))
        return self.precision == "fp16" or any("float16" in text for text in texts)

    def module(self) -> nn.Module:
        """It as a module."""
        names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
        exec(self.source, names)
        module = type("Fuzzed", (nn.Module,), {"forward": names["forward"]})()
        for name, spec in self.weights.items():
            module.register_buffer(name, spec.make(0, _seed_of(name)))
        return module.eval()  # type: ignore[no-any-return]

    def arguments(self, n: int) -> tuple[torch.Tensor, ...]:
        """Inputs of one size."""
        return tuple(spec.make(n, 10 * seed + n) for seed, spec in enumerate(self.inputs.values()))

    @property
    def dynamic_shapes(self) -> Any:
        """As ``torch.export`` takes it."""
        low, _, high = self.sizes
        if low == high:
            return None
        dim = Dim("n", min=low, max=high)
        return tuple(
            {axis: dim for axis, size in enumerate(spec.shape) if size == "n"} for spec in self.inputs.values()
        )

    def __repr__(self) -> str:
        given = "\n".join(f"# {name}: {spec}" for name, spec in {**self.inputs, **self.weights}.items())
        return f"\n{given}\n# n: {self.sizes}, precision: {self.precision}, built: {self.build}\n{self.source}\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # As hypothesis shows it: as source, and not field by field.
        printer.text(repr(self))


def _seed_of(weight: str) -> int:
    return 1000 + int(weight[1:])


class Runs(NamedTuple):
    """One value at one size: as eager has it, exactly, and exactly of inputs that lie a little beside."""

    eager: torch.Tensor
    exact: torch.Tensor
    moved: torch.Tensor


def moved(value: torch.Tensor, half: bool) -> torch.Tensor:
    """A tensor a little beside, in float64."""
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return value.double() * (1 + _NOISE[half] * noise) if value.is_floating_point() else value


def sensitivity(runs: Runs) -> float:
    """What rounding does to a value, relative to its largest magnitude; infinite where it decides it."""
    if not runs.eager.is_floating_point():
        same = torch.equal(runs.eager, runs.exact) and torch.equal(runs.eager, runs.moved)
        return 0.0 if same else math.inf
    scale = float(runs.exact.abs().max()) if runs.exact.numel() else 0.0
    others = (runs.eager.double(), runs.moved)
    error = max((float((other - runs.exact).abs().max()) for other in others if other.numel()), default=0.0)
    return error / scale if scale else (math.inf if error else 0.0)


# Drawing one ----------------------------------------------------------------------------------------------------------


@dataclass
class Pool:
    """A graph while it is drawn: the values so far, at each of the sizes that the dynamic dimension has."""

    draw: Draw
    sizes: tuple[int, ...]
    half: bool
    values: dict[str, list[Runs]] = field(default_factory=dict)
    inputs: dict[str, Spec] = field(default_factory=dict)
    weights: dict[str, Spec] = field(default_factory=dict)
    held: tuple[SimpleNamespace, ...] = field(default_factory=lambda: tuple(SimpleNamespace() for _ in Runs._fields))
    """What ``self`` is in each of a value's runs: it has the weights."""
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def pick(self, wanted: Callable[[torch.Tensor], bool] = lambda value: True) -> str | None:
        """A value that an operator takes; later ones more often, so that graphs become deep."""
        names = [name for name in self.values if wanted(self.eager(name))]
        return self.draw(st.sampled_from(names[::-1])) if names else None

    def eager(self, name: str) -> torch.Tensor:
        """A value at the size in the middle."""
        return self.values[name][len(self.sizes) // 2].eager

    def fixed(self, name: str, axis: int) -> bool:
        """Whether an axis has one size."""
        return len({runs.eager.shape[axis] for runs in self.values[name]}) == 1

    def axis(self, name: str) -> int:
        """An axis, counted from either end."""
        rank = self.eager(name).dim()
        return self.draw(st.integers(-rank, rank - 1)) if rank else 0

    def constant(self, spec: Spec) -> str:
        """A weight."""
        name = f"w{len(self.weights)}"
        self.weights[name] = spec
        for own, value in zip(self.held, self._kinds(spec.make(0, _seed_of(name))), strict=True):
            setattr(own, name, value)
        return f"self.{name}"

    def give(self, spec: Spec) -> None:
        """A new input."""
        name = f"x{len(self.inputs)}"
        self.values[name] = []
        for size in self.sizes:
            self.values[name].append(self._kinds(spec.make(size, 10 * len(self.inputs) + size)))
        self.inputs[name] = spec

    def _kinds(self, value: torch.Tensor) -> Runs:
        return Runs(value, widened(value), moved(value, self.half))

    def step(self, names: tuple[str, ...], expression: str) -> bool:
        """Add a line where it makes tensors that rounding does not decide; says whether it does."""
        code = compile(expression, "<step>", "eval")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = [self._run(code, position) for position in range(len(self.sizes))]
        except Exception:  # what eager does not take is no graph
            return False
        count = len(found[0])
        if not count or any(len(runs) != count for runs in found) or not all(map(self._fits, _flat(found))):
            return False
        if any(len({runs.eager.dim() for runs in at_sizes}) > 1 for at_sizes in zip(*found, strict=True)):
            return False  # such as squeeze, at one size of the dynamic dimension
        made = [f"v{len(self.lines)}" + ("abcdefgh"[item] if count > 1 else "") for item in range(count)]
        # What yields a tuple may yield one of one.
        comma = "," if any(f".{name}(" in expression for name in _TUPLES) else ""
        self.lines.append(f"{', '.join(made)}{comma} = {expression}")
        for item, name in enumerate(made):
            self.values[name] = [runs[item] for runs in found]
        self.used |= {name for name in names if name is not None}
        return True

    def _run(self, code: CodeType, position: int) -> list[Runs]:
        columns = []
        for kind, own in enumerate(self.held):
            names = {name: runs[position][kind] for name, runs in self.values.items()}
            with torch.no_grad(), Exact() if kind else contextlib.nullcontext():
                made = eval(code, {"torch": torch, "F": torch.nn.functional, "self": own}, names)
            columns.append(pytree.tree_leaves(made))
        return [Runs(*values) for values in zip(*columns, strict=True)]

    def _fits(self, runs: Runs) -> bool:
        eager = runs.eager
        name = str(eager.dtype).removeprefix("torch.")
        if name not in DTYPES or eager.numel() > _MOST_ELEMENTS or eager.dim() > _MOST_AXES or not eager.numel():
            return False
        if eager.is_floating_point():
            if not runs.exact.isfinite().all() or float(runs.exact.abs().max()) > _LARGEST[name]:
                return False
        elif eager.dtype != torch.bool and int(eager.abs().max()) > _MOST_INT:
            return False
        return eager.shape == runs.exact.shape and sensitivity(runs) <= _UNSTABLE[self.half]


def _flat(found: list[list[Runs]]) -> Iterator[Runs]:
    for runs in found:
        yield from runs


@st.composite
def graphs(draw: Draw) -> Graph:
    """Random graphs."""
    from tests.fuzzing_steps import STEPS

    dynamic, half = draw(st.booleans()), draw(st.sampled_from([False, False, True]))
    sizes = draw(st.sampled_from([(1, 3, 5), (2, 4, 6)])) if dynamic else (3, 3, 3)
    pool = Pool(draw, tuple(dict.fromkeys(sizes)), half)
    floats = ["float32", "float16"] if half else ["float32"]
    for number in range(draw(st.integers(1, 3))):
        dtypes = floats if number == 0 else [*floats, "float32", "int64", "int32", "bool"]
        shape: list[Size] = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6, 8]), min_size=0 if number else 1, max_size=4))
        if dynamic and (number == 0 or draw(st.booleans())) and shape:
            shape[draw(st.integers(0, len(shape) - 1))] = "n"
        pool.give(Spec(tuple(shape), draw(st.sampled_from(dtypes))))
    for _ in range(draw(st.integers(1, 12))):
        draw(st.sampled_from(STEPS))(pool)
    made = [name for name in pool.values if name.startswith("v")]
    if not made:
        pool.step(("x0",), "x0 + 1")
        made = ["v0"]
    text = "\n".join(pool.lines)
    return Graph(
        pool.inputs,
        {name: spec for name, spec in pool.weights.items() if f"self.{name}" in text},
        tuple(pool.lines),
        tuple(name for name in made if name not in pool.used),
        sizes,
        precision=draw(st.sampled_from([None, "fp16"])) if half else "fp32",
        build=draw(st.integers(0, 3)) == 0,
    )


# Checking one ---------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a graph."""

    status: Status
    detail: str = ""


def check(graph: Graph) -> Outcome:
    """Compile a graph; compare the interpreter at each size with float64, and build it where it says so."""
    module, flavour = graph.module(), flavours.load()
    settings = Settings(precision=graph.precision, optimization_level=0, progress="none", min_segment=1)  # type: ignore[arg-type]
    try:
        program = api.optimize(
            api.capture(module, graph.arguments(graph.sizes[1]), dynamic_shapes=graph.dynamic_shapes), settings
        )
        if graph.build:
            api.build(program, flavour, settings)
        run = api.interpret(program, flavour.name, settings)
        names = [leaf.name for leaf in program.signature.tensor_inputs]
        positions = [position for position, leaf in enumerate(program.signature.inputs) if hasattr(leaf, "name")]
        for size in dict.fromkeys(graph.sizes):
            arguments = graph.arguments(size)
            outputs = run({name: arguments[position] for name, position in zip(names, positions, strict=True)})
            found = program.signature.unflatten(outputs, list(arguments), {"n": size})
            if problem := _problem(graph, module, arguments, found):
                return Outcome("wrong", f"n={size}: {problem}")
    except (ContractError, InterpreterError, BuildError) as error:
        return Outcome("wrong", f"{type(error).__name__}: {error}")
    except Torch2TRTError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    except Exception as error:  # a defect
        return Outcome("wrong", f"{type(error).__name__}: {error}")
    return Outcome("right")


def _problem(graph: Graph, module: nn.Module, arguments: tuple[torch.Tensor, ...], found: Any) -> str:
    with torch.no_grad():
        eager = module(*arguments)
    exact = api.truth_of(module)(*arguments)
    beside = graph.module().double()
    for name in graph.weights:
        setattr(beside, name, moved(getattr(module, name), graph.half))
    with torch.no_grad(), Exact():  # type: ignore[no-untyped-call]
        near = beside(*(moved(value, graph.half) for value in arguments))
    for name, value, *rest in zip(graph.returned, found, eager, exact, near, strict=True):
        runs = Runs(*rest)
        if value.dtype != runs.eager.dtype or value.shape != runs.eager.shape:
            return f"{name} is {value.dtype}{list(value.shape)}, not {runs.eager.dtype}{list(runs.eager.shape)}"
        unsure = sensitivity(runs)
        if not value.is_floating_point():
            if unsure == 0 and not torch.equal(value, runs.eager):
                return f"{name} is\n{value}\nnot\n{runs.eager}"
            continue
        error, scale = float((value.double() - runs.exact).abs().max()), float(runs.exact.abs().max())
        if not error <= (_ALLOWED[graph.half] + 10 * unsure) * scale + _ALLOWED[graph.half] / 10:
            return f"{name} has error {error:.3g}, scale {scale:.3g}:\n{value}\nnot\n{runs.exact}"
    return ""


class Worker:
    """A process that checks graphs, each once; where TensorRT takes it down or never returns, that costs one graph."""

    def __init__(self, patience: float = 120.0, check: Callable[[Graph], Outcome] = check) -> None:
        self._process = processes.Worker(functools.partial(_work, check), patience)
        self._known: dict[str, Outcome] = {}

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def check(self, graph: Graph) -> Outcome:
        """Check one graph."""
        source = repr(graph)
        if source not in self._known:
            self._known[source] = self._check(graph)
        return self._known[source]

    def _check(self, graph: Graph) -> Outcome:
        try:
            (outcome,) = self._process.results(graph)
        except processes.LostError as lost:
            return Outcome(lost.how, lost.detail)
        assert isinstance(outcome, Outcome)
        return outcome


def _work(check: Callable[[Graph], Outcome], graph: Graph) -> Iterator[Outcome]:
    yield check(graph)
