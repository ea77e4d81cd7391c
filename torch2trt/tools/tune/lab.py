"""Where candidates are built, compared with the truth, and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt import api
from torch2trt.frontend import dynamic_shapes as shapes
from torch2trt.graph.exact import Truth
from torch2trt.graph.program import Program
from torch2trt.graph.signature import Signature
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Precision, Settings
from torch2trt.tools.bench.backends import Call, in_turns
from torch2trt.tools.bench.case import INPUT_SETS, Arguments
from torch2trt.tools.bench.machine import Machine
from torch2trt.tools.bench.measure import measure
from torch2trt.tools.bench.session import one_line
from torch2trt.tools.tune.trial import Trial
from torch2trt.trt.flavour import Flavour


def opened(artifact: Artifact, truth: Callable[..., Any]) -> EngineModule:
    """What was built, as a module whose engine comes to the GPU when it is first called."""
    return EngineModule(artifact, truth=truth)


class Lab:
    """Builds and times candidates of one module.

    Args:
        module, args, kwargs, dynamic_shapes, name: as :func:`torch2trt.compile` takes them.
        overrides: fields of :class:`torch2trt.Settings` that hold for the builds alone.
        max_error: the largest error that is right, where the tolerance allows more.
        report: told what goes on, in lines.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        dynamic_shapes: Any,
        name: str | None,
        machine: Machine,
        flavour: Flavour,
        overrides: Mapping[str, Any],
        max_error: float | None,
        report: Callable[[str], object],
    ) -> None:
        self._module = module
        self._example = args, kwargs
        self._dynamic_shapes = dynamic_shapes
        self._name = name
        self._machine = machine
        self._flavour = flavour
        self._overrides = overrides
        self._max_error = max_error
        self._report = report
        self._axes = shapes.batch_axes(module, args, kwargs, dynamic_shapes)
        self._sets: dict[int, list[Arguments]] = {}
        self._truths: dict[int, _Truth] = {}
        self._artifacts: dict[Trial, Artifact] = {}
        # Candidates that come one after the other often share it.
        self._last: tuple[tuple[int, Precision | None], Program] | None = None

    @property
    def batch(self) -> int:
        """The batch size of the example."""
        return shapes.batch_of(*self._example, self._axes)

    @property
    def batch_bounds(self) -> tuple[int, float]:
        """The smallest and the largest batch that there may be."""
        return shapes.batch_bounds(self._axes)

    def arguments(self, batch: int) -> Arguments:
        """The example in a batch size."""
        return shapes.at_batch(*self._example, self._axes, batch)

    def program(self, batch: int, settings: Settings) -> Program:
        """What a candidate's engine is lowered from. Of the settings that change it, only the precision is searched.

        Raises:
            Torch2TRTError: it cannot be captured.
        """
        key = batch, settings.precision
        if self._last is None or self._last[0] != key:
            self._last = None
            args, kwargs = self.arguments(batch)
            captured = api.capture(self._module, args, kwargs, dynamic_shapes=self._dynamic_shapes, name=self._name)
            self._last = key, api.optimize(captured, settings, self._flavour)
        return self._last[1]

    def build(self, trial: Trial) -> None:
        """Build a candidate, or find it in the engine cache; where it fails, the trial says why."""
        start = time.perf_counter()
        try:
            program = self.program(trial.batch, trial.settings)
            built = api.build(program, self._flavour, replace(trial.settings, **self._overrides))
        except Exception as error:
            self._fail(trial, error)
            return
        self._artifacts[trial] = built.artifact
        trial.build_s, trial.cache = time.perf_counter() - start, built.report["cache"]
        how = "found in the engine cache" if trial.cache == "hit" else "built"
        self._report(f"{trial}: {how} in {trial.build_s:.1f} s")

    def measure(self, trials: Sequence[Trial], *, rounds: int) -> list[Trial]:
        """Time candidates that were built, in turns.

        One whose results are too far from the truth is not timed, and one for which there is no memory keeps the times
        that it has.

        Returns:
            Those that were timed.
        """
        with torch.no_grad():
            calls = self._calls(trials)
            try:
                samples = measure(calls, self._machine, rounds=rounds)
            except Exception as error:
                # It says nothing of whose call it was.
                for trial in calls:
                    self._fail(trial, error)
                samples = {}
            # Engines make room for what is built next.
            calls.clear()
            self._machine.release()
        for trial, found in samples.items():
            trial.take(found)
        return list(samples)

    def _calls(self, trials: Sequence[Trial]) -> dict[Trial, Call]:
        """Those candidates that run and are right, on the GPU, as far as it has room."""
        calls: dict[Trial, Call] = {}
        for trial in trials:
            if trial.gpu_bytes is not None and self._machine.free_bytes() < trial.gpu_bytes:
                self._report(f"{trial}: there is no memory left to time it beside the others")
                continue
            try:
                call = self._ready(trial)
            except Exception as error:
                self._fail(trial, error)
                continue
            if call is not None:
                calls[trial] = call
        return calls

    def _ready(self, trial: Trial) -> Call | None:
        """A candidate on the GPU, warm; None where its results are not right."""
        machine, sets = self._machine, self._inputs(trial.batch)
        machine.release()
        free = machine.free_bytes()
        compiled = opened(self._artifacts[trial], self._truth(trial.batch))
        if trial.max_rel_error is None:
            args, kwargs = sets[0]
            found = compiled.verify(*args, **kwargs)
            allowed = max((row.tolerance for row in found.rows), default=0.0)
            trial.max_rel_error, trial.allowed = found.max_rel_error, min(allowed, self._max_error or allowed)
            trial.is_dropped = not found.passed or trial.max_rel_error > trial.allowed
            if trial.is_dropped:
                self._report(f"{trial}: dropped, its error {trial.max_rel_error:.1e} is above {trial.allowed:g}")
                del self._artifacts[trial]
                return None
        call = in_turns(compiled, sets)
        for number in range(2 * INPUT_SETS):
            call(number)
        machine.synchronize()
        # What the truth and warming up took is given back.
        machine.release()
        trial.gpu_bytes = max(free - machine.free_bytes(), 0)
        return call

    def _inputs(self, batch: int) -> list[Arguments]:
        """Copies of the example on the machine, so that no call finds its input in the cache from the last one."""
        if batch not in self._sets:
            self._sets[batch] = [
                pytree.tree_map_only(
                    torch.Tensor,
                    lambda value: value.detach().to(self._machine.device, copy=True),
                    self.arguments(batch),
                )
                for _ in range(INPUT_SETS)
            ]
        return self._sets[batch]

    def _truth(self, batch: int) -> _Truth:
        return self._truths.setdefault(batch, _Truth(self._module, self._machine.device))

    def _fail(self, trial: Trial, error: Exception) -> None:
        text = one_line(error)
        self._report(f"{trial}: {text}")
        # What ran once may lack the memory to run beside others: then it keeps the times that it has.
        if trial.ms_p50 is None:
            trial.error = text
        # After some errors nothing runs on the GPU any more: then this raises, and ends the search.
        self._machine.synchronize()


class _Truth:
    """The module's result in float64 for the one call that all candidates of a batch are compared on."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._truths = [Truth(module, place) for place in dict.fromkeys((device, torch.device("cpu")))]
        self._known: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._known:
            self._known.append(self._computed(lambda truth: truth(*args, **kwargs)))
        return self._known[0]

    def writing(
        self, signature: Signature, state: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[torch.Tensor]]:
        """As :meth:`torch2trt.graph.exact.Truth.writing`."""
        return self._computed(lambda truth: truth.writing(signature, dict(state), args, kwargs))  # type: ignore[no-any-return]

    def _computed(self, compute: Callable[[Truth], Any]) -> Any:
        """On the GPU, or on the CPU where that lacks the memory or an operator in float64."""
        *others, last = self._truths
        for truth in others:
            try:
                return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, compute(truth))
            except RuntimeError:
                continue
        return compute(last)
