"""``torch2trt.tune``: what may be tried, tried in an order that needs few builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from torch2trt.errors import DynamicShapeError, SettingError
from torch2trt.settings import Precision, Settings, merged
from torch2trt.tolerance import RELATIVE, effective_precision
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.measure import ROUNDS
from torch2trt.tools.tune.lab import Lab
from torch2trt.tools.tune.report import Tuning
from torch2trt.tools.tune.search import Plan, Search
from torch2trt.tools.tune.trial import Goal, Objective
from torch2trt.trt import flavour as flavours

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LEVELS = (1, 3, 5)
STREAMS = (0, 4)

# For the builds of a search, where nothing else is asked for: the next search finds the engines again, and a crash of
# TensorRT is one candidate's.
_BUILDS: dict[str, Any] = {"engine_cache": True, "build_in_subprocess": True, "progress": "none"}


def tune(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str | None = None,
    objective: Objective = "latency",
    max_latency: float | None = None,
    batches: Sequence[int] | None = None,
    precisions: Sequence[Precision] | None = None,
    levels: Sequence[int] | None = None,
    streams: Sequence[int] | None = None,
    max_error: float | None = None,
    budget: float | None = None,
    rounds: int = ROUNDS,
    report: Callable[[str], object] = lambda text: None,
    **settings: Any,
) -> Tuning:
    """Find good settings for a module, and a batch size, on the GPU that is current.

    It is a search along one setting after the other, each from the best so far: precision, batch, builder optimisation
    level, auxiliary streams, CUDA graphs. The first two are compared at the lowest level, which builds quickest. What
    is compared is timed in turns, and at the end all that is right is timed in turns once more. Engines come from the
    engine cache where they are known.

    A candidate whose result is further from the module in float64 than the tolerance of its precision is dropped, and
    one that fails is a row that says why. Ctrl-C ends the search with what was measured.

    Args:
        module, args, kwargs, dynamic_shapes, name: as :func:`torch2trt.compile` takes them. The example's items repeat
            in larger batches. The batch is the dynamic dimension that is some tensor's first; without one it is the
            first dimension of all tensors that are as large there as the first tensor is.
        objective: ``latency`` or ``throughput``.
        max_latency: milliseconds that a call may take, 99 of 100 rounds of calls, where throughput is the objective.
        batches: unset: that of the example; for throughput the powers of two up to 64 as well, within the range of the
            dimension. For latency the smallest one wins, of course.
        precisions: those that are allowed; unset: that of the settings, else the module's own.
        levels: builder optimisation levels; unset: 1, 3 and 5.
        streams: numbers of auxiliary streams to try beside TensorRT's own choice; unset: none and 4.
        max_error: the largest error relative to the output's scale, where the tolerance allows more.
        budget: seconds after which no build is begun. One candidate is built in any case, and what is built is
            measured.
        rounds: measurements of each candidate in the last run.
        report: told what goes on, in lines.
        settings: further fields of :class:`torch2trt.Settings`. They hold for every candidate; one that is given is not
            searched. Where nothing else is given, engines are kept in the engine cache and each is built in a process
            of its own (``build_in_subprocess``).

    Returns:
        A table when printed; ``settings``, ``batch``, ``save()``, ``plot()`` and ``to_json()``.

    Raises:
        NoGPUError: there is none.
        SettingError: what is asked for contradicts itself, or is unknown.
        DynamicShapeError: a batch that is not within the range of its dimension.
        KeyboardInterrupt: before anything was measured.
        Torch2TRTError: the module cannot be captured.
    """
    goal = Goal(objective, max_latency)
    for what, number in {"max_error": max_error, "budget": budget, "rounds": rounds}.items():
        if number is not None and number <= 0:
            raise SettingError(f"must be positive, got {number}", subject=what)
    given = merged(settings)
    base = Settings.make(**given)
    searched = {"precisions": "precision", "levels": "optimization_level", "streams": "max_aux_streams"}
    for wanted, one in searched.items():
        if {"precisions": precisions, "levels": levels, "streams": streams}[wanted] is not None and one in given:
            raise SettingError(f"is given, and so is {one}", subject=wanted, hint="leave one of them out")
    machine = CudaMachine("tune")
    flavour = flavours.load(base.flavour)
    lab = Lab(
        module,
        args,
        dict(kwargs or {}),
        dynamic_shapes=dynamic_shapes,
        name=name,
        machine=machine,
        flavour=flavour,
        overrides={key: value for key, value in _BUILDS.items() if key not in given},
        max_error=max_error,
        report=report,
    )
    dtypes = {value.dtype for value in module.parameters()}
    if precisions is not None and not precisions:
        raise SettingError("names none", subject="precisions")
    allowed: list[tuple[Precision | None, Precision]] = []
    for each in dict.fromkeys(precisions or (base.precision,)):
        Settings.make(precision=each)
        allowed.append((each, effective_precision(each, dtypes)))
    sizes = _batches(lab, objective, batches)
    plan = Plan(
        base=base,
        batches=sizes,
        first=lab.batch if lab.batch in sizes else sizes[len(sizes) // 2],
        precisions=tuple(sorted(allowed, key=lambda item: RELATIVE[item[1]])),
        levels=_values("optimization_level", given, LEVELS if levels is None else levels),
        streams=_values("max_aux_streams", given, STREAMS if streams is None else streams),
        graphs=() if "cuda_graphs" in given else (False,),
    )
    if not plan.levels:
        raise SettingError("names none", subject="levels")
    # What is wrong with the module itself is no candidate's fault.
    program = lab.program(plan.first, replace(base, precision=plan.precisions[0][0]))
    search = Search(lab, plan, goal, budget=budget, rounds=rounds, report=report)
    search.run()
    return Tuning(
        name=program.name,
        gpu=machine.name,
        flavour=f"{flavour.name} {flavour.version_text}",
        goal=goal,
        trials=tuple(search.trials),
        chosen=search.chosen,
        stopped=search.stopped,
        seconds=search.seconds,
    )


def _batches(lab: Lab, objective: Objective, wanted: Sequence[int] | None) -> tuple[int, ...]:
    low, high = lab.batch_bounds
    if wanted is None:
        usual = [size for size in BATCHES if low <= size <= high] if objective == "throughput" else []
        return tuple(sorted({lab.batch, *usual}))
    if not wanted:
        raise SettingError("names none", subject="batches")
    for size in wanted:
        if not low <= size <= high:
            span = f"{low} to {high}" if high < 2**31 else f"at least {low}"
            raise DynamicShapeError(f"is not within the dimension's range, {span}", subject=f"batch {size}")
    return tuple(sorted(set(wanted)))


def _values(field: str, given: Mapping[str, Any], wanted: Sequence[int]) -> tuple[int, ...]:
    """The values of a field to try, in rising order; of one that is given there are no others."""
    if given.get(field) is not None:
        return (given[field],)
    for value in wanted:
        Settings.make(**{field: value})
    return tuple(sorted(set(wanted)))
