"""Tuning: what is tried in which order, what is chosen, and what becomes of all that fails."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.models.counter import Counter
from tests.tuning import QUIET, Machine, Net, World, X, named, times, tuned, world
from torch2trt import api
from torch2trt.errors import (
    BuildCrashError,
    CaptureError,
    DynamicShapeError,
    ExampleInputError,
    NoCandidateError,
    SettingError,
)
from torch2trt.settings import Settings
from torch2trt.tools.tune import lab, search, tuning
from torch2trt.tools.tune.trial import Goal, Trial

__all__ = ["world"]  # a fixture, which tests name

# The search -----------------------------------------------------------------------------------------------------------


def test_one_setting_after_the_other(world: World) -> None:
    world.ms = times
    said: list[str] = []
    found = tuned(
        objective="throughput", batches=(1, 4, 8, 16), precisions=("fp16", "tf32"), report=said.append, rounds=3
    )
    assert [named(trial) for trial in found.trials] == [
        "precision: tf32 b4 l1",
        "precision: fp16 b4 l1",
        "batch: fp16 b1 l1",
        "batch: fp16 b8 l1",
        "batch: fp16 b16 l1",
        "level: fp16 b8 l3",
        "level: fp16 b8 l5",
        "streams: fp16 b8 l3 s0",
        "streams: fp16 b8 l3 s4",
        "CUDA graphs: fp16 b8 l3 s4 plain",
    ]
    assert found.chosen is found.trials[8]
    assert found.batch == 8
    assert found.settings == Settings(precision="fp16", optimization_level=3, max_aux_streams=4, progress="none")
    # Level 5 is faster by less than what is noise.
    assert found.trials[6].ms_p50 < found.trials[5].ms_p50  # type: ignore[operator]
    assert found.chosen.per_second == pytest.approx(8 / (times(8, found.settings) / 1e3))
    # Each step is timed beside the best so far, and at last everything in turns, the best first.
    assert [len(run) for run in world.runs] == [2, 4, 3, 3, 2, 10]
    assert world.runs[1][0] == (4, world.built[1][1])
    assert world.runs[-1][0] == (8, world.built[8][1])
    assert all(trial.compared for trial in found.trials)
    # Each batch has one truth, and each candidate one build.
    assert world.truths == [4, 1, 8, 16]
    assert len(world.built) == 10
    assert any("batch: the best is batch 8, fp16, level 1" in line for line in said)


def test_builds_are_kept_and_cannot_crash_unless_asked(world: World) -> None:
    tuned(levels=(3,), streams=())
    assert {(s.engine_cache, s.build_in_subprocess, s.progress) for _, s in world.built} == {(True, True, "none")}
    world.built.clear()
    found = tuned(levels=(3,), streams=(), engine_cache=False, build_in_subprocess=False)
    assert {(s.engine_cache, s.build_in_subprocess) for _, s in world.built} == {(False, False)}
    assert found.settings.engine_cache is False


def test_latency_is_of_the_examples_batch(world: World) -> None:
    world.ms = times
    found = tuned(precisions=("tf32", "fp16"))
    assert {trial.batch for trial in found.trials} == {4}
    assert found.settings.precision == "fp16"
    assert named(tuned(batches=(8, 2)).best) == "streams: tf32 b2 l3 s4"


def test_batches_of_throughput(world: World) -> None:
    world.ms = times
    assert {trial.batch for trial in tuned(objective="throughput").trials} == {1, 2, 4, 8, 16, 32, 64}
    shapes = {"x": {0: Dim("batch", min=2, max=8)}}
    found = tuned(objective="throughput", dynamic_shapes=shapes)
    assert {trial.batch for trial in found.trials} == {2, 4, 8}
    with pytest.raises(DynamicShapeError, match="batch 16: is not within the dimension's range, 2 to 8"):
        tuned(objective="throughput", dynamic_shapes=shapes, batches=(4, 16))


def test_a_bound_on_latency(world: World) -> None:
    world.ms = times
    options: dict[str, Any] = {"objective": "throughput", "batches": (1, 4, 8, 16), "precisions": ("fp16",)}
    found = tuned(**options, max_latency=1.3)
    # At the lowest level it would be too slow.
    assert [named(trial) for trial in found.trials if trial.step == "larger batch"] == [
        "larger batch: fp16 b4 l3 s4",
        "larger batch: fp16 b8 l3 s4",
    ]
    assert found.batch == 4
    assert found.best.ms_p99 is not None
    assert found.best.ms_p99 <= 1.3
    assert "too slow" in str(found)
    nothing = tuned(**options, max_latency=0.1)
    assert nothing.chosen is None
    assert nothing.to_json()["settings"] is None
    with pytest.raises(NoCandidateError, match=r"T2T111.*the fastest takes .* ms, and 0\.1 ms are allowed"):
        _ = nothing.settings
    assert "nothing fits" in str(nothing)
    with pytest.raises(SettingError, match="bounds throughput"):
        tuned(max_latency=3.0)


def test_what_is_not_right_is_dropped(world: World) -> None:
    world.ms = times
    world.error = lambda settings: {"fp16": 0.5, "bf16": 0.05}.get(settings.precision or "", 0.0)
    found = tuned(precisions=("tf32", "fp16", "bf16"), levels=(3,), streams=())
    fp16 = found.trials[1]
    assert (fp16.precision, fp16.is_dropped, fp16.is_right, fp16.ms_p50) == ("fp16", True, False, None)
    assert fp16.max_rel_error == pytest.approx(0.5, rel=1e-2)
    assert fp16.allowed == 2e-2
    assert "dropped: above 0.02" in str(found)
    assert found.settings.precision == "bf16"
    assert all(settings.precision != "fp16" for run in world.runs for _, settings in run)
    # The user may allow less.
    strict = tuned(precisions=("tf32", "bf16"), levels=(3,), streams=(), max_error=0.02)
    assert [trial.is_dropped for trial in strict.trials] == [False, True, False]
    assert strict.settings.precision == "tf32"
    world.error = lambda settings: math.inf
    none = tuned(levels=(3,))
    assert none.to_json()["candidates"][0]["max_rel_error"] is None
    with pytest.raises(NoCandidateError, match="all results are too far from float64"):
        _ = none.batch


def test_what_fails_is_a_row(world: World) -> None:
    world.ms = times

    def fails(batch: int, settings: Settings) -> Exception | None:
        if settings.optimization_level == 3:
            return BuildCrashError("died of SIGSEGV", subject="net")
        return RuntimeError("out of\nmemory") if batch == 8 else None

    world.fails = fails
    found = tuned(objective="throughput", batches=(4, 8, 16), streams=(0,))
    errors = {named(trial): trial.error for trial in found.trials if trial.error}
    assert errors == {
        "batch: tf32 b8 l1": "RuntimeError: out of memory",
        "level: tf32 b16 l3": "BuildCrashError: [T2T403] net: died of SIGSEGV",
    }
    assert named(found.best) == "level: tf32 b16 l5"
    assert "batch 16, tf32, level 3: BuildCrashError: [T2T403] net: died of SIGSEGV" in str(found)
    world.fails = lambda batch, settings: RuntimeError("no kernel")
    with pytest.raises(NoCandidateError, match="no candidate runs and is right: RuntimeError: no kernel"):
        _ = tuned().best


def test_what_cannot_run_beside_others_keeps_its_times(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(levels=(1, 3), streams=())
    assert found.chosen is found.trials[0]

    class Full(Machine):
        """After the first of the last run there is no room."""

        is_full = False

        def free_bytes(self) -> int:
            return 1 if self.is_full else super().free_bytes()

        def synchronize(self) -> None:
            self.is_full = len(self.world.runs) == 3

    world.runs.clear()
    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Full(world))
    said: list[str] = []
    found = tuned(levels=(1, 3), streams=(), report=said.append)
    assert [trial.compared for trial in found.trials] == [True, False, False]
    assert all(trial.is_right for trial in found.trials)
    assert found.chosen is found.trials[0]
    assert "not in the last run" in str(found)
    assert any("no memory left" in line for line in said)


# The end --------------------------------------------------------------------------------------------------------------


def test_a_budget_ends_the_builds_and_not_the_measuring(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ms = times
    clock = Clock(monkeypatch)
    world.fails = lambda batch, settings: clock.advance(10)
    found = tuned(objective="throughput", batches=(1, 2, 4, 8), budget=25)
    assert [named(trial) for trial in found.trials] == [
        "precision: tf32 b4 l1",
        "batch: tf32 b1 l1",
        "batch: tf32 b2 l1",
    ]
    assert found.stopped == "the 25 s of the budget were over before batch 8, tf32, level 1"
    assert found.stopped in str(found)
    assert all(trial.compared for trial in found.trials)
    assert found.batch == 4
    # There is a result in any case.
    assert len(tuned(budget=1e-9).trials) == 1


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(search.time, "monotonic", lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds


def test_ctrl_c_keeps_what_was_measured(world: World) -> None:
    world.ms = times
    world.fails = lambda batch, settings: KeyboardInterrupt() if settings.optimization_level == 5 else None
    found = tuned()
    assert [named(trial) for trial in found.trials] == ["precision: tf32 b4 l1"]
    assert found.stopped == "interrupted"
    assert found.settings.optimization_level == 1
    world.fails = lambda batch, settings: None
    world.runs.clear()
    world.interrupts = 3 + 1  # while the last step is timed
    found = tuned()
    assert {trial.step for trial in found.trials} == {"precision", "level", "streams"}
    assert named(found.best) == "streams: tf32 b4 l3 s4"
    world.runs.clear()
    world.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        tuned()


def test_a_dead_gpu_ends_the_search(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(Machine):
        def synchronize(self) -> None:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(tuning, "CudaMachine", lambda subject: Dead(world))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuned()


def test_near_ties_go_to_the_earlier() -> None:
    trials = [
        Trial("level", 1, Settings(optimization_level=n), "tf32", ms_p50=ms, ms_p99=ms, host_us=1.0)
        for n, ms in enumerate((1.0, 0.985, 0.97, 0.96))
    ]
    assert Goal().best(trials) is trials[2]
    assert Goal("throughput").best(trials) is trials[2]
    assert Goal().ranked(trials) == trials[::-1]
    assert Goal().best([]) is None


# What is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "speed"}, "objective: must be latency or throughput"),
        ({"objective": "throughput", "max_latency": 0}, "max_latency: must be positive"),
        ({"budget": -1}, "budget: must be positive"),
        ({"rounds": 0}, "rounds: must be positive"),
        ({"max_error": 0.0}, "max_error: must be positive"),
        ({"precisions": ("fp17",)}, "precision: takes 'fp32'"),
        ({"precisions": ()}, "precisions: names none"),
        ({"levels": (1, 6)}, "optimization_level: must be 0 to 5"),
        ({"levels": ()}, "levels: names none"),
        ({"streams": (-1,)}, "max_aux_streams: must not be negative"),
        ({"batches": ()}, "batches: names none"),
        ({"precisions": ("fp16",), "precision": "fp16"}, "precisions: is given, and so is precision"),
        ({"levels": (3,), "settings": {"optimization_level": 3}}, "levels: is given, and so is optimization_level"),
        ({"level": 3}, "level: unknown setting"),
    ],
    ids=str,
)
def test_what_makes_no_sense(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        tuned(**options)
    assert world.built == []


def test_what_is_given_is_not_searched(world: World) -> None:
    found = tuned(settings=Settings(precision="fp16", optimization_level=2, max_aux_streams=1, cuda_graphs=False))
    assert [named(trial) for trial in found.trials] == ["precision: fp16 b4 l2 s1 plain"]


def test_batches_that_there_cannot_be(world: World) -> None:
    with pytest.raises(DynamicShapeError, match="batch 0: is not within the dimension's range, at least 1"):
        tuned(batches=(0,))


def test_what_is_wrong_with_the_module_is_raised(world: World) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.ones(7, 7)

    with pytest.raises(CaptureError):
        torch2trt.tune(Wide().eval(), (X,), **QUIET)
    with pytest.raises(ExampleInputError, match="no tensor has a dimension"):
        torch2trt.tune(nn.ReLU().eval(), (torch.tensor(1.0),), **QUIET)
    assert world.built == []


def test_what_a_module_writes_is_compared_too(world: World) -> None:
    module = Counter().eval()
    options: dict[str, Any] = {"levels": (3,), "streams": (), **QUIET}
    found = torch2trt.tune(module, (torch.ones(3, 4),), **options)
    assert [(trial.error, trial.is_right) for trial in found.trials] == [("", True)] * 2
    assert not module.get_buffer("seen").any()
    world.error = lambda settings: 0.5
    found = torch2trt.tune(module, (torch.ones(3, 4),), **options)
    assert [trial.is_dropped for trial in found.trials] == [True]


def test_the_truth_goes_to_the_cpu_where_the_gpu_cannot_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def compute(truth: api.Truth, x: Tensor) -> Tensor:
        tried.append(str(truth._device))
        if str(truth._device) == "cuda:0":
            raise torch.OutOfMemoryError("no memory")
        return exact(truth, x)

    exact = api.Truth.__call__
    monkeypatch.setattr(api.Truth, "__call__", compute)
    truth = lab._Truth(Net().eval(), torch.device("cuda", 0))
    assert truth(X).dtype == torch.float64
    assert truth(X) is truth(X)
    assert tried == ["cuda:0", "cpu"]


class Pair(nn.Module):
    """Ids and their mask grow with the batch, a table does not, and a flat list grows by twos."""

    def forward(self, ids: Tensor, table: Tensor, *, mask: Tensor, pairs: Tensor) -> Tensor:
        return (table[ids] * mask[..., None]).sum((1, 2)) + pairs.reshape(-1, 2).sum(1)


def test_every_tensor_of_the_batch_grows_with_it(world: World) -> None:
    ids, table = torch.arange(6).reshape(2, 3), torch.randn(9, 4)
    kwargs = {"mask": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "pairs": torch.randn(4)}
    batch = Dim("batch", min=1, max=16)
    shapes = {"ids": {0: batch}, "table": None, "mask": {0: batch}, "pairs": {0: 2 * batch}}
    options: dict[str, Any] = {"objective": "throughput", "batches": (2, 5), "levels": (3,), "streams": (), **QUIET}
    found = torch2trt.tune(Pair().eval(), (ids, table), kwargs, dynamic_shapes=shapes, **options)
    assert [trial.error for trial in found.trials] == [""] * 3
    assert [batch for batch, _ in world.built] == [2, 5, 5]
    bench = lab.Lab(
        Pair().eval(),
        (ids, table),
        kwargs,
        dynamic_shapes=shapes,
        name=None,
        machine=Machine(world),
        flavour=None,  # type: ignore[arg-type]
        overrides={},
        max_error=None,
        report=print,
    )
    args, more = bench.arguments(5)
    assert [value.shape[0] for value in (*args, *more.values())] == [5, 9, 5, 10]
    assert torch.equal(args[0], ids[[0, 1, 0, 1, 0]])
    assert bench.batch == 2
    assert bench.arguments(2)[0][0] is ids
