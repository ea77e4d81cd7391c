"""Modules that cannot be captured whole: Dynamo cuts them up, and the pieces are compiled one by one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt import api
from torch2trt import backend as backends
from torch2trt.engine.cached import joint_state
from torch2trt.errors import (
    DataDependentError,
    DynamicShapeError,
    ExampleInputError,
    NoGPUError,
    TooSmallError,
    Torch2TRTError,
)
from torch2trt.examples import Calls
from torch2trt.frontend.checks import check_module
from torch2trt.frontend.dynamo import Region
from torch2trt.partition.explain import Explanation, GraphBreak, explain, together
from torch2trt.partition.partitioner import check_worth
from torch2trt.piece_store import PieceStore
from torch2trt.runtime import pieces_file
from torch2trt.runtime.files import StrPath
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.pieces_file import PiecesFile
from torch2trt.runtime.verification import Row, Verification, compare
from torch2trt.settings import Settings
from torch2trt.tolerance import effective_precision, tolerance
from torch2trt.trt.flavour import Flavour

log = logging.getLogger(__name__)


class PiecewiseModule(nn.Module):
    """A module in engines, with its own Python between them; called, run in the reference and verified as any other.

    Further engines are built where a call takes another way through the module, or has other sizes: each piece is
    captured up to ``torch._dynamo.config.recompile_limit`` (8) times, for sizes of its own. Once one would need more,
    a warning says so, and from then on what is new runs in eager, and what is known in its engines.

    :meth:`save` writes its engines. What joins them is the module's own code, so :func:`torch2trt.load` takes the
    module too: it is traced as ever, and builds what is not in the file.

    What is not worth an engine (``Settings.min_segment``) is left to eager.

    Args:
        module: in evaluation mode.
        settings: of every engine.
        truth: takes a call's arguments and returns its true result, float64 where it is floating point.
        file: engines to begin with; unset: none.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: Settings,
        truth: Callable[..., Any],
        name: str,
        file: PiecesFile | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self.name = name
        self.settings = settings
        self._store = PieceStore(name, settings, file)
        self._graphs: Counter[str] = Counter()
        self._most = torch._dynamo.config.recompile_limit
        self._is_full = False
        # Held in a tuple: the module as an attribute would put its parameters in the state.
        self._held = (module, truth)
        options = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}

        def build(graph: Any, inputs: Any) -> Callable[..., Any]:
            frame = str(graph.meta.get("dynamo_compile_id", "")).partition("/")[0]
            self._graphs[frame] += 1
            if self._graphs[frame] > self._most:
                if not self._is_full:
                    log.warning("%s: a piece was captured %d times: what is new runs in eager now", name, self._most)
                self._is_full = True
                return graph.forward  # type: ignore[no-any-return]
            return backends.backend(graph, inputs, options=options, find=self._store.find, is_piece=True)

        # Python code that computes with sizes is seldom right for all of them, so each has a graph of its own.
        self._compiled = torch.compile(module, backend=build, dynamic=False)

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
        with _without_limit(), known:
            return self._compiled(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces on the current CUDA stream.

        Raises:
            NoGPUError: there is none.
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
        module, truth = self._held
        here = torch.cuda.is_available()
        device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
        moved = pytree.tree_map_only(torch.Tensor, lambda value: value.to(device, copy=True), (args, kwargs))
        found = self.reference(*moved[0], **moved[1])
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        dtypes = [leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        precision = effective_precision(self.settings.precision, [*dtypes, *(leaf.dtype for leaf in leaves)])
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
        self._store.save(path, program=program)

    def extra_repr(self) -> str:
        """Name and number of engines."""
        return f"{self.name}, {len(self.engines)} engines"


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
    return PiecewiseModule(module, file.settings, api.truth_of(module), file.name, file)


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
    reason: DataDependentError,
) -> PiecewiseModule:
    """Compile a module that cannot be captured whole, with the engines that the example call needs.

    Args:
        recorded: calls of which the arguments are the first; for the most frequent sizes among them there are engines
            too.
        dynamic_shapes, profiles: as :func:`torch2trt.compile` takes them.

    Raises:
        DynamicShapeError: there are profiles, which are of ranges of sizes, and engines of pieces have one size each.
        DataDependentError: too little of it became engines; it is ``reason``.
    """
    _refuse(profiles, name, reason)
    compiled = PiecewiseModule(module, settings, truth, name)
    _run_first(compiled.reference, args, kwargs, reason)
    calls = sum(engine.report["calls"] for engine in compiled.engines)
    if text := _too_few(calls, settings):
        # What cannot be converted says more than what would not pay.
        why = sorted(compiled.refusals, key=lambda error: isinstance(error, TooSmallError))
        raise _also(reason, "; ".join([text, *map(str, why[:3])])) from next(iter(why), None)
    log.warning(
        "%s: is compiled in %d pieces, torch2trt.explain says where it breaks: %s",
        *(name, len(compiled.engines), reason.reason),
    )
    _run_others(compiled.reference, module, recorded, dynamic_shapes, name)
    return compiled


def _refuse(profiles: Any, name: str, reason: DataDependentError) -> None:
    if profiles is not None:
        raise DynamicShapeError(
            f"{name} compiles in pieces, whose engines have one size each, and so no profiles: {reason.reason}",
            subject="profiles",
            source=reason.source,
            hint="leave profiles out: engines for other sizes are built when these come, or before with examples=",
        )


def _run_first(
    run: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: DataDependentError
) -> None:
    """Run the example call, on copies: modules may write into their arguments."""
    own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    try:
        run(*own_args, **own_kwargs)
    except Exception as error:
        # The module's own, or Dynamo's: there is no piecewise module either.
        raise _also(reason, f"{type(error).__name__}: {error}") from error


def _run_others(
    run: Callable[..., Any], module: nn.Module, recorded: Calls | None, dynamic_shapes: Any, name: str
) -> None:
    """Run the calls of other sizes for which there are to be engines; say which of the sizes have none."""
    if dynamic_shapes is not None:
        log.warning("%s: dynamic_shapes change nothing: each size has engines of its own", name)
    for own_args, own_kwargs in () if recorded is None else recorded.others(module):
        try:
            run(*own_args, **own_kwargs)
        except Exception as error:
            # The values are another call's: the module may rightly refuse them.
            log.warning("%s: no engines are built before the call for some sizes: %s", name, error)


def _too_few(calls: int, settings: Settings) -> str:
    """Why it is not worth while to compile so many calls; empty where it is."""
    if calls >= settings.min_segment:
        return ""
    return f"engines would get {calls} calls (min_segment is {settings.min_segment})"


def _also(reason: DataDependentError, why: str) -> DataDependentError:
    """The error of the whole, with what became of its pieces."""
    first = " ".join(why.split())[:400]
    return DataDependentError(
        f"{reason.reason} (in pieces: {first})", subject=reason.subject, source=reason.source, hint=reason.hint
    )


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
    reason: DataDependentError,
) -> Explanation:
    """Where Dynamo cuts a module that cannot be captured whole, and why, and what would run where in each piece.

    Args:
        recorded, dynamic_shapes, profiles: as :func:`compile_in_pieces` takes them.

    Raises:
        DynamicShapeError, DataDependentError: as :func:`compile_in_pieces`; too little for engines is a refusal.
    """
    _refuse(profiles, name, reason)
    regions: list[Region] = []
    pieces: dict[Region, Explanation] = {}
    calls = 0
    breaks: dict[GraphBreak, None] = {}

    def look(graph: Any, inputs: Any) -> Callable[..., Any]:
        region = Region(graph)
        regions.append(region)
        if graph.compile_subgraph_reason.graph_break:
            breaks[_break(graph.compile_subgraph_reason)] = None

        def run(*values: Any) -> Any:
            nonlocal calls
            if region.made and region.inputs and region not in pieces:
                pieces[region], count = _piece(region, values, flavour, settings)
                calls += count
            return graph(*values)

        return run

    compiled = torch.compile(module, backend=look, dynamic=False)
    with _without_limit():
        _run_first(compiled, args, kwargs, reason)
        refusal = _too_few(calls, settings)
        if not refusal:
            _run_others(compiled, module, recorded, dynamic_shapes, name)
    spelled = f"{flavour.name} {flavour.version_text}"
    found = together(name, spelled, [*pieces.values()], reason.reason, len(regions), (*breaks,))
    return dataclasses.replace(found, refusal=f"nothing is compiled: {refusal}") if refusal else found


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
    """For inference, and with the graphs that other modules of a class have not counted against one's own."""
    config = torch._dynamo.config
    with torch.no_grad(), config.patch(recompile_limit=config.accumulated_recompile_limit):
        yield


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
