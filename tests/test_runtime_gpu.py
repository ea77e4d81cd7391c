"""Engines that run: results, streams, memory, threads, devices."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import torch2trt
from tests.mlp import MLP, built, close, eager, fresh, graph_count, graphs, module, no_grad
from tests.threads import in_threads
from torch2trt.errors import ArtifactMismatchError, EngineError, FrozenModuleError, InputDeviceError, InputShapeError
from torch2trt.runtime.module import EngineModule

__all__ = ["built", "eager", "graphs", "module", "no_grad"]  # fixtures, which tests name

pytestmark = pytest.mark.gpu
LONG_SLEEP = 400_000_000  # cycles: about a fifth of a second


# Results ------------------------------------------------------------------------------------------------------------


def test_agrees_with_eager_at_every_shape(module: EngineModule, eager: MLP) -> None:
    for count in (8, 1, 64, 8, 3, 1):
        x = torch.randn(count, 64, device="cuda")
        close(module(x), eager(x))


def test_results_are_fresh(module: EngineModule, eager: MLP) -> None:
    xs = [torch.randn(8, 64, device="cuda") for _ in range(4)]
    results = [module(x) for x in xs]
    assert len({result.data_ptr() for result in results}) == 4
    for x, result in zip(xs, results, strict=True):
        close(result, eager(x))


def test_inputs_of_any_strides(module: EngineModule, eager: MLP) -> None:
    base = torch.randn(64, 16, device="cuda")
    flat = torch.randn(8 * 64 + 1, device="cuda")
    complex_ = torch.randn(8, 64, device="cuda", dtype=torch.complex64)
    for x in (
        base.t(),
        base.t()[::2],
        torch.randn(1, 64, device="cuda").expand(8, 64),
        flat[1:].view(8, 64),  # contiguous, but where no kernel of TensorRT may read
        complex_.conj().imag,  # negated lazily
    ):
        close(module(x), eager(x.contiguous()))


def test_inputs_stay_as_they_are(module: EngineModule) -> None:
    x = torch.randn(8, 64, device="cuda")
    before = x.clone()
    module(x)
    assert torch.equal(x, before)


def test_inference_mode_and_after(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    with torch.inference_mode():
        close(module(x), eager(x))
        from_inside = torch.randn(8, 64, device="cuda")
    close(module(x), eager(x))
    close(module(from_inside), eager(from_inside))


def test_gradients_are_refused(module: EngineModule, eager: MLP) -> None:
    with torch.enable_grad():
        x = torch.randn(8, 64, device="cuda", requires_grad=True)
        result = module(x)
        close(result.detach(), eager(x).detach())
        with pytest.raises(FrozenModuleError, match="computes no gradients"):
            result.sum().backward()


def test_verify_runs_the_engine(built: EngineModule) -> None:
    found = built.verify(torch.randn(8, 64))
    assert found.ran == "engine"
    assert found.passed, str(found)
    assert found.max_rel_error <= 1e-4


# What does not fit --------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit(module: EngineModule) -> None:
    with pytest.raises(InputShapeError, match="'batch' is 65, the engine takes 1 to 64"):
        module(torch.randn(65, 64, device="cuda"))
    with pytest.raises(InputDeviceError, match="input 'x': is on cpu, the engine is on cuda:0"):
        module(torch.randn(8, 64))


def test_a_damaged_plan(built: EngineModule) -> None:
    plan = bytearray(built.artifact.plan)
    plan[: len(plan) // 2] = bytes(len(plan) // 2)
    module = EngineModule(dataclasses.replace(built.artifact, plan=bytes(plan)))
    with pytest.raises(EngineError, match=r"T2T506.*cannot deserialise the plan: .+"):
        module(torch.randn(8, 64, device="cuda"))


def test_an_engine_of_another_version(built: EngineModule) -> None:
    module = EngineModule(dataclasses.replace(built.artifact, flavour_version="9.9.9"))
    with pytest.raises(ArtifactMismatchError, match=r"9\.9\.9, this machine has"):
        module(torch.randn(8, 64, device="cuda"))


def test_an_engine_of_another_gpu(built: EngineModule) -> None:
    module = EngineModule(dataclasses.replace(built.artifact, gpu="NVIDIA Other (8.9)"))
    with pytest.raises(ArtifactMismatchError, match=r"built for NVIDIA Other \(8\.9\), this machine has NVIDIA"):
        module(torch.randn(8, 64, device="cuda"))


# Streams and memory -------------------------------------------------------------------------------------------------


def test_ordered_on_the_callers_stream(module: EngineModule, eager: MLP) -> None:
    """The engine reads what the stream writes before, and is read by what the stream does after."""
    values = torch.randn(8, 64, device="cuda")
    expected = eager(values)
    module(values)
    side = torch.cuda.Stream()
    for stream in (torch.cuda.default_stream(), side, torch.cuda.default_stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            x = torch.zeros(8, 64, device="cuda")
            torch.cuda._sleep(LONG_SLEEP // 4)
            x.copy_(values)
            result = module(x).clone()
            x.zero_()
        stream.synchronize()
        close(result, expected)


def test_does_not_wait_for_the_gpu(module: EngineModule) -> None:
    x = torch.randn(8, 64, device="cuda")
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            module(x)
            torch.cuda.synchronize()
            torch.cuda._sleep(LONG_SLEEP)
            start = time.perf_counter()
            module(x)
            enqueued = time.perf_counter() - start
            torch.cuda.synchronize()
            ran = time.perf_counter() - start
        assert enqueued < ran / 4


def test_streams_in_turns_share_no_scratch_at_once(module: EngineModule, eager: MLP) -> None:
    """A run that has not ended on one stream is not overwritten by one on another."""
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    xs = [torch.randn(64, 64, device="cuda") for _ in range(16)]
    expected = [eager(x) for x in xs]
    module(xs[0])
    torch.cuda.synchronize()
    results = []
    for index, x in enumerate(xs):
        with torch.cuda.stream((first, second)[index % 2]):
            if index % 4 == 0:
                torch.cuda._sleep(LONG_SLEEP // 40)
            results.append(module(x))
    torch.cuda.synchronize()
    for result, want in zip(results, expected, strict=True):
        close(result, want)


def test_memory_that_is_given_back_at_once(module: EngineModule, eager: MLP) -> None:
    """Inputs are dropped and their memory overwritten as soon as the call returns."""
    stream = torch.cuda.Stream()
    values = torch.randn(32, 8, 64, device="cuda")
    expected = torch.stack([eager(value) for value in values])
    torch.cuda.synchronize()
    for where in (torch.cuda.default_stream(), stream):
        with torch.cuda.stream(where):
            results = []
            for value in values:
                x = value.clone()
                results.append(module(x))
                del x
                torch.full((8, 64), torch.nan, device="cuda")
            torch.cuda.synchronize()
        close(torch.stack(results), expected)


def test_dropped_while_it_runs(built: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    for cuda_graphs in (True, False):
        module = fresh(built, cuda_graphs=cuda_graphs)
        module(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG_SLEEP // 4)
            result = module(x)
        del module
        gc.collect()
        # What was theirs is handed out again, and overwritten.
        sizes = (8 * 32, 8 * 64, 64 * 1024, 1 << 20)
        waste = [torch.full((size,), torch.nan, device="cuda") for size in sizes for _ in range(32)]
        torch.cuda.synchronize()
        del waste
        close(result, eager(x))


def test_shapes_share_one_scratch_memory(graphs: EngineModule) -> None:
    """A further shape costs its input and output buffers, and no activations."""
    xs = {count: torch.randn(count, 64, device="cuda") for count in (1, 8, 64)}
    graphs(xs[1])
    before = torch.cuda.memory_allocated()
    graphs(xs[8])
    graphs(xs[64])
    assert graph_count(graphs) == 3
    assert torch.cuda.memory_allocated() - before == (8 + 64) * (64 + 32) * 4


# Threads ------------------------------------------------------------------------------------------------------------


def test_threads_with_streams_of_their_own(module: EngineModule, eager: MLP) -> None:
    def work(seed: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(30):
                x = torch.randn(1 + (seed + turn) % 6, 64, device="cuda")
                close(module(x), eager(x))

    in_threads(work, 6)


@pytest.mark.parametrize("own_streams", [True, False], ids=["own", "default"])
@pytest.mark.parametrize("most", [1, 2, 4, 16])
def test_threads_get_what_one_thread_gets(module: EngineModule, own_streams: bool, most: int) -> None:
    """To the bit, whether they wait for each other's memory or have their own."""
    module = fresh(module, max_concurrent_runs=most)
    alone = fresh(module)
    xs = torch.randn(8, 40, 16, 64, device="cuda")
    sizes = [1 + 3 * (turn % 5) for turn in range(40)]
    wanted = [[alone(x[:size]) for x, size in zip(own, sizes, strict=True)] for own in xs]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[] for _ in xs]

    def work(number: int) -> None:
        stream = torch.cuda.Stream() if own_streams else torch.cuda.default_stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            for x, size in zip(xs[number], sizes, strict=True):
                found[number].append(module(x[:size]))
                if number % 2:
                    stream.synchronize()

    in_threads(work, 8)
    torch.cuda.synchronize()
    for own, expected in zip(found, wanted, strict=True):
        assert all(map(torch.equal, own, expected))
    assert len(alone._session.contexts) == 1  # type: ignore[union-attr]
    count = len(module._session.contexts)  # type: ignore[union-attr]
    assert 1 <= count <= most if own_streams else count == 1


@pytest.mark.parametrize("most", [1, 2])
def test_a_busy_stream_is_waited_for_only_at_the_bound(module: EngineModule, eager: MLP, most: int) -> None:
    module = fresh(module, max_concurrent_runs=most)
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    x = torch.randn(8, 64, device="cuda")
    expected = eager(x)
    for _ in range(2):  # the first time contexts are made, which takes its time
        torch.cuda.synchronize()
        with torch.cuda.stream(first):
            one = module(x)
            torch.cuda._sleep(LONG_SLEEP)
        with torch.cuda.stream(second):
            two = module(x)
        second.synchronize()
        waited = first.query()
    torch.cuda.synchronize()
    assert waited == (most == 1)
    assert len(module._session.contexts) == most  # type: ignore[union-attr]
    assert torch.equal(one, two)
    close(one, expected)


def test_streams_that_are_done_cost_no_memory(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    for _ in range(40):
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            close(module(x), eager(x))
    assert len(module._session.contexts) == 1  # type: ignore[union-attr]


def test_captures_leave_the_streams_of_other_threads_alone(built: EngineModule) -> None:
    """What others enqueue while graphs are captured runs, on whichever stream of torch's."""
    done, counts = threading.Event(), torch.zeros(4, 40, dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    made = [0] * 4

    def count(number: int) -> None:
        streams = [torch.cuda.Stream() for _ in range(40)]
        while not done.is_set():
            for place, stream in enumerate(streams):
                with torch.cuda.stream(stream):
                    counts[number, place].add_(1)
                stream.synchronize()
            made[number] += 1

    def capture() -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(6):
                module = fresh(built, cuda_graphs=True)
                for size in range(1, 9):
                    module(torch.zeros(size, 64, device="cuda"))
                assert graph_count(module) == 8

    def work(number: int) -> None:
        try:
            capture() if number == 4 else count(number)
        finally:
            done.set()

    in_threads(work, 5)
    torch.cuda.synchronize()
    assert all(made)
    assert counts.tolist() == [[count] * 40 for count in made]


def test_threads_that_open_it_together(built: EngineModule) -> None:
    module = fresh(built)
    barrier = threading.Barrier(4)
    engines = []

    def work() -> None:
        barrier.wait()
        engines.append(module._session.open())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 4
    assert len(set(map(id, engines))) == 1


# A module among others ----------------------------------------------------------------------------------------------


def test_saved_and_loaded(built: EngineModule, eager: MLP, tmp_path: Path) -> None:
    built.save(tmp_path / "net.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "net.t2t")
    x = torch.randn(8, 64, device="cuda")
    assert not loaded._session.is_open
    close(loaded(x), eager(x))
    close(loaded.reference(x), eager(x).cpu())


def test_copied_pickled_and_nested(built: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    expected = eager(x)
    copied = copy.deepcopy(built)
    assert copied._session is built._session
    close(copied(x), expected)
    close(pickle.loads(pickle.dumps(built))(x), expected)
    target = nn.Sequential(fresh(built))
    target.load_state_dict(nn.Sequential(built).state_dict())
    close(target(x), expected)


def test_moves(built: EngineModule, eager: MLP) -> None:
    module = fresh(built)
    parent = nn.Sequential(module, nn.Linear(32, 4)).cuda().to("cuda:0").float().eval()
    x = torch.randn(8, 64, device="cuda")
    close(parent(x), parent[1](eager(x)))
    for change in (nn.Module.cpu, nn.Module.half, nn.Module.double):
        with pytest.raises(FrozenModuleError):
            change(module)
    close(module.cuda()(x), eager(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one(built: EngineModule, eager: MLP) -> None:
    module = fresh(built).to("cuda:1")
    x = torch.randn(8, 64, device="cuda:1")
    for _ in range(3):
        result = module(x)
        assert result.device == torch.device("cuda:1")
        close(result.cpu(), eager(x.to("cuda:0")).cpu())
    with pytest.raises(InputDeviceError, match="is on cuda:0, the engine is on cuda:1"):
        module(x.to("cuda:0"))
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:1 to cuda:0"):
        module.to("cuda:0")
