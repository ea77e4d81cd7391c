"""Modules that cannot be captured whole: Dynamo cuts them up, and the pieces are compiled one by one."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt import api
from torch2trt import backend as backends
from torch2trt.engine.cached import joint_state
from torch2trt.errors import (
    CaptureError,
    ExampleInputError,
    NoGPUError,
    TooSmallError,
    Torch2TRTError,
)
from torch2trt.examples import Calls
from torch2trt.frontend.checks import check_module
from torch2trt.frontend.dynamo import Region
from torch2trt.frontend.marking import Marks, clear
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.graph.program import Program
from torch2trt.partition.explain import Explanation, GraphBreak, explain, together
from torch2trt.partition.partitioner import check_worth
from torch2trt.piece_calls import (
    also,
    dynamic_of,
    first_call,
    named,
    others,
    run_first,
    run_others,
    too_few,
    without_limit,
)
from torch2trt.piece_store import PieceStore
from torch2trt.runtime import pieces_file
from torch2trt.runtime.files import StrPath
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.verification import Row, Verification, compare
from torch2trt.settings import Settings
from torch2trt.sizes import spell
from torch2trt.tolerance import effective_precision, tolerance, with_halves
from torch2trt.trt.flavour import Flavour

log = logging.getLogger(__name__)

_Self = TypeVar("_Self", bound="PiecewiseModule")


class PiecewiseModule(nn.Module):
    """A module in engines, with its own Python between them; called, run in the reference and verified as any other.

    Parameters, buffers and submodules are those of the module, under its own names: ``state_dict``, ``.to()`` and the
    like see and change them, and engines for other weights are built when it is called next. ``train`` and ``eval``
    change nothing. A copy has weights of its own and shares engines; a pickle has the module and the engines.

    Further engines are built where a call takes another way through the module, or has other sizes: each piece is
    captured up to ``torch._dynamo.config.recompile_limit`` (8) times, for sizes of its own. Once one would need more,
    a warning says so, and from then on what is new runs in eager, and what is known in its engines.

    Sizes that are declared dynamic have a range in each piece that takes one, with its own part of the optimization
    profiles, which follow from the arithmetic of sizes between the inputs and the piece; sizes such as n and 2*n are
    one dimension of it. A piece that is right for some sizes alone is captured once more for the others, size 1 always;
    one for which no range is possible has an engine for each size; so has what depends on sizes that data tell.

    :meth:`save` writes its engines. What joins them is the module's own code, so :func:`torch2trt.load` takes the
    module too: it is traced as ever, and builds what is not in the file.

    What is not worth an engine (``Settings.min_segment``) is left to eager.

    Args:
        module: in evaluation mode.
        settings: of every engine.
        truth: takes a call's arguments and returns its true result, float64 where it is floating point.
        store: engines to begin with; unset: none.
        dynamic: the sizes that have ranges; unset: none.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        truth: Callable[..., Any],
        name: str,
        store: PieceStore | None = None,
        dynamic: DynamicInputs | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self.name = name
        self.settings = settings
        self.dynamic = dynamic
        """The dimensions of the inputs that have a name and a range, and the optimization profiles."""
        self._store = PieceStore(name, settings) if store is None else store
        self._graphs: Counter[str] = Counter()
        self._most = torch._dynamo.config.recompile_limit
        self._is_full = False
        options = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}

        def build(graph: Any, inputs: Any) -> Callable[..., Any]:
            frame = str(graph.meta.get("dynamo_compile_id", "")).partition("/")[0]
            self._graphs[frame] += 1
            if self._graphs[frame] > self._most:
                if not self._is_full:
                    log.warning("%s: a piece was captured %d times: what is new runs in eager now", name, self._most)
                self._is_full = True
                return graph.forward  # type: ignore[no-any-return]
            return backends.backend(
                graph, inputs, options=options, find=self._store.find, is_piece=True, dynamic=dynamic
            )

        # Python code that computes with sizes is seldom right for all of them, so each has a graph of its own. Where
        # some are declared dynamic, numbers that Python hands from piece to piece have to be, once they differ.
        compiled = torch.compile(module, backend=build, dynamic=None if dynamic is not None and dynamic.dims else False)
        # Held in a tuple: as attributes they would be submodules.
        self._held = (module, truth, compiled)
        self._marks = {} if dynamic is None else {path: Marks(sizes) for path, sizes in dynamic.axes.items()}
        self._called = inspect.signature(module.forward)
        # Whoever goes through modules finds the module's own, and changes them where they are.
        for each in _SHARED:
            self.__dict__[each] = module.__dict__[each]

    @property
    def engines(self) -> list[EngineModule]:
        """The engines so far, in the order in which they were built; those of a file from the beginning."""
        return self._store.engines

    @property
    def refusals(self) -> list[Torch2TRTError]:
        """Why pieces are left to eager."""
        return self._store.refusals

    def _run(self, args: Any, kwargs: Any) -> Any:
        known = torch.compiler.set_stance("eager_on_recompile") if self._is_full else contextlib.nullcontext()
        with without_limit(), known, named(self.dynamic, self._marks, self._called, args, kwargs):
            found = self._held[2](*args, **kwargs)
        if self._marks:
            for leaf in pytree.tree_leaves(found):
                if isinstance(leaf, torch.Tensor):
                    clear(leaf)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces on the current CUDA stream.

        Raises:
            NoGPUError: there is none.
            InputShapeError: sizes that are not in the ranges that were declared.
        """
        if not torch.cuda.is_available():
            raise NoGPUError("there is no GPU to run it", subject=self.name, hint=".reference() runs it on the CPU")
        return self._run(args, kwargs)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces on the CPU, those that are engines in the reference interpreter, where there is no GPU."""
        return self._run(args, kwargs)

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare with the truth, float64 eager with the original weights.

        Results whose number depends on data may differ in number where a score is close to a threshold.
        """
        module, truth, _ = self._held
        here = torch.cuda.is_available()
        device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
        moved = pytree.tree_map_only(torch.Tensor, lambda value: value.to(device, copy=True), (args, kwargs))
        found = self.reference(*moved[0], **moved[1])
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        dtypes = [leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        precision = effective_precision(self.settings.precision, [*dtypes, *(leaf.dtype for leaf in leaves)])
        precision = with_halves(precision, {name for each in self.engines for name in each.report.get("halves", ())})
        exact = [leaf for leaf in pytree.tree_leaves(truth(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
        rows: Iterator[Row] = (
            compare(f"output{number}", have, want, tolerance(precision, reference=not here))
            for number, (have, want) in enumerate(zip(leaves, exact, strict=True))
        )
        return Verification(self.name, "engine" if here else "reference", precision, tuple(rows))

    @property
    def report(self) -> dict[str, Any]:
        """What the compilation says of itself: engines, build_s, engine_bytes and more, summed over the engines."""
        names = (
            "nodes",
            "calls",
            "layers",
            "fused_blocks",
            "build_s",
            "cache_s",
            "engine_bytes",
            "weight_bytes",
            "calls_in_torch",
        )
        return {
            "engines": len(self.engines),
            "cache": joint_state(engine.report["cache"] for engine in self.engines),
            **{name: sum(engine.report[name] for engine in self.engines) for name in names},
            "profiles": [spell(ranges) for ranges in self.dynamic.ranges if ranges] if self.dynamic else [],
        }

    def save(self, path: StrPath, program: bool = False) -> None:
        """Write the engines, and why other pieces are left to eager, to one file.

        ``torch2trt.load(path, module=module)`` reads it. Each engine stands there for the calls, sizes and weights that
        it was built for, and for no others.

        Args:
            program: write their Programs too, with the weights, for :meth:`reference` where there is no GPU: without
                them the pieces are captured there, though none is built.

        Raises:
            ArtifactWriteError: there is no engine to write, or it could not be written whole; nothing is left behind.
            ProgramMissingError: an engine has no Program to write.
        """
        self._store.save(path, program=program, dynamic=self.dynamic)

    def train(self: _Self, mode: bool = True) -> _Self:
        """Engines have no modes: changes nothing."""
        return self

    def _apply(self: _Self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _Self:
        self._held[0]._apply(fn, recurse)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._held[0]._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._held[0]._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> PiecewiseModule:
        module = copy.deepcopy(self._held[0], memo)
        # What an engine stands for is known by content, so copies share them.
        copied = PiecewiseModule(module, self.settings, api.truth_of(module), self.name, self._store, self.dynamic)
        memo[id(self)] = copied
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self._held[0], self.settings, self.name, self._store, self.dynamic)

    def extra_repr(self) -> str:
        """Name and number of engines."""
        return f"{self.name}, {len(self.engines)} engines"


# What of a module tells its parameters, buffers and submodules, and who is asked when they are saved and loaded.
_SHARED = (
    *("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def _unpickled(
    module: nn.Module, settings: Settings, name: str, store: PieceStore, dynamic: DynamicInputs | None
) -> PiecewiseModule:
    return PiecewiseModule(module, settings, api.truth_of(module), name, store, dynamic)


def load(source: StrPath | bytes, module: nn.Module, *, namespaces: Collection[str] = ()) -> PiecewiseModule:
    """The module that :meth:`PiecewiseModule.save` wrote, with the Python of the one that it was compiled from.

    Args:
        module: in evaluation mode, where it is to run.
        namespaces: of operators that the file may name, beside torch's own and torchvision's.

    Raises:
        ArtifactError: it is no such file, or one of a whole module, truncated, corrupt, or of another format version.
        ExampleInputError, TrainingModeError, WeightError: the module is none that can be compiled.
        OSError: the file cannot be opened.
    """
    if not isinstance(module, nn.Module):
        raise ExampleInputError(
            f"is {type(module).__name__}, and not the module that was compiled", subject="module", hint="pass the model"
        )
    file = pieces_file.load(source, namespaces=namespaces)
    check_module(module)
    store = PieceStore(file.name, file.settings, file)
    return PiecewiseModule(module, file.settings, api.truth_of(module), file.name, store, file.dynamic)


def compile_in_pieces(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    settings: Settings,
    truth: Callable[..., Any],
    *,
    recorded: Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str,
    reason: CaptureError,
) -> PiecewiseModule:
    """Compile a module that cannot be captured whole, with the engines that the example call needs.

    Args:
        recorded: calls of which the arguments are the first; for the most frequent sizes among them there are engines
            too.
        dynamic_shapes, profiles: as :func:`torch2trt.compile` takes them. There are engines for the sizes that each
            profile is tuned for, and without profiles for the smallest.

    Raises:
        DynamicShapeError: the example is not within the dimensions, or profiles are of others.
        CaptureError: too little of it became engines; it is ``reason``, of its class.
    """
    dynamic = dynamic_of(module, args, kwargs, recorded, dynamic_shapes, profiles, name)
    args, kwargs = first_call(module, args, kwargs, dynamic)
    compiled = PiecewiseModule(module, settings, truth, name, dynamic=dynamic)
    run_first(compiled.reference, args, kwargs, reason)
    calls = sum(engine.report["calls"] for engine in compiled.engines)
    if text := too_few(calls, settings):
        # What cannot be converted says more than what would not pay.
        why = sorted(compiled.refusals, key=lambda error: isinstance(error, TooSmallError))
        raise also(reason, "; ".join([text, *map(str, why[:3])])) from next(iter(why), None)
    log.warning(
        "%s: is compiled in %d pieces, torch2trt.explain says where it breaks: %s",
        *(name, len(compiled.engines), reason.reason),
    )
    run_others(compiled.reference, others(module, args, kwargs, recorded, dynamic), name)
    return compiled


def explain_breaks(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    flavour: Flavour,
    settings: Settings,
    *,
    recorded: Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str,
    reason: CaptureError,
) -> Explanation:
    """Where Dynamo cuts a module that cannot be captured whole, and why, and what would run where in each piece.

    Args:
        recorded, dynamic_shapes, profiles: as :func:`compile_in_pieces` takes them.

    Raises:
        DynamicShapeError, CaptureError: as :func:`compile_in_pieces`; too little for engines is a refusal.
    """
    pieces: dict[Region, Explanation] = {}

    def look(region: Region, values: Sequence[Any]) -> int:
        if region in pieces:
            return 0
        pieces[region], count = _piece(region, values, flavour, settings)
        return count

    dynamic = dynamic_of(module, args, kwargs, recorded, dynamic_shapes, profiles, name)
    graphs, breaks, refusal = _visit(module, args, kwargs, settings, recorded, dynamic, name, reason, look)
    spelled = f"{flavour.name} {flavour.version_text}"
    found = together(name, spelled, [*pieces.values()], reason.reason, graphs, breaks)
    return dataclasses.replace(found, refusal=f"nothing is compiled: {refusal}") if refusal else found


def programs_of(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    flavour: Flavour,
    settings: Settings,
    *,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    name: str,
    reason: CaptureError,
) -> list[Program]:
    """The optimised Programs of which :func:`compile_in_pieces` would make engines.

    Raises:
        DynamicShapeError, CaptureError: as :func:`compile_in_pieces`, too little for engines included.
    """
    found: dict[tuple[Region, tuple[Any, ...]], Program] = {}

    def look(region: Region, values: Sequence[Any]) -> int:
        if (region, region.constants(values)) in found:
            return 0
        try:
            program = api.optimize(backends.capture(region, values), settings, flavour)
            check_worth(program, flavour, settings)
        except backends.REFUSALS:
            return 0
        # Whether its sizes have ranges is known now.
        found[region, region.constants(values)] = program
        return len(program.calls)

    dynamic = dynamic_of(module, args, kwargs, None, dynamic_shapes, profiles, name)
    *_, refusal = _visit(module, args, kwargs, settings, None, dynamic, name, reason, look)
    if refusal:
        raise also(reason, refusal)
    return [*found.values()]


def _visit(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    settings: Settings,
    recorded: Calls | None,
    dynamic: DynamicInputs | None,
    name: str,
    reason: CaptureError,
    look: Callable[[Region, Sequence[Any]], int],
) -> tuple[int, tuple[GraphBreak, ...], str]:
    """Run the calls for which there would be engines in eager, where Dynamo cuts the module.

    Args:
        look: is shown each piece that could be an engine, with a call's values, and tells how many calls it would get.

    Returns:
        The number of graphs, where it is cut, and why the calls are too few; empty where they are not.
    """
    args, kwargs = first_call(module, args, kwargs, dynamic)
    marks = {} if dynamic is None else {path: Marks(sizes) for path, sizes in dynamic.axes.items()}
    signature = inspect.signature(module.forward)
    graphs = calls = 0
    breaks: dict[GraphBreak, None] = {}

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        nonlocal graphs
        region = Region(graph)
        if dynamic is not None:
            region.name_sizes(inputs, dynamic)
        graphs += 1
        if graph.compile_subgraph_reason.graph_break:
            breaks[_break(graph.compile_subgraph_reason)] = None

        def run(*values: Any) -> Any:
            nonlocal calls
            if region.made and region.inputs:
                calls += look(region, values)
            return graph(*values)

        return backends.marking(region, run)

    compiled = torch.compile(module, backend=backend, dynamic=False if dynamic is None else None)

    def run(*args: Any, **kwargs: Any) -> None:
        with named(dynamic, marks, signature, args, kwargs):
            compiled(*args, **kwargs)

    with without_limit():
        run_first(run, args, kwargs, reason)
        refusal = too_few(calls, settings)
        if not refusal:
            run_others(run, others(module, args, kwargs, recorded, dynamic), name)
    return graphs, (*breaks,), refusal


def _break(found: Any) -> GraphBreak:
    lines = [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in found.user_stack]
    return GraphBreak(" ".join(found.reason.strip().splitlines()[:1]), lines[-1] if lines else "")


def _piece(region: Region, values: Sequence[Any], flavour: Flavour, settings: Settings) -> tuple[Explanation, int]:
    """Where a piece runs, and how many calls it brings to a module of which engines get a part."""
    shapes = ", ".join("x".join(map(str, values[position].shape)) or "scalar" for position in region.inputs)
    try:
        program = api.optimize(backends.capture(region, values), settings, flavour)
        check_worth(program, flavour, settings)
        found = dataclasses.replace(explain(program, flavour, settings), inputs=shapes)
        return found, 0 if found.refusal else len(program.calls)
    except Torch2TRTError as error:
        spelled = f"{flavour.name} {flavour.version_text}"
        return Explanation(region.name, spelled, (), refusal=f"runs in torch: {error.reason}", inputs=shapes), 0
