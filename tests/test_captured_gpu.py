"""Graphs captured through the driver, of what torch enqueues: results, memory, threads, and captures that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.mlp import no_grad
from tests.threads import in_threads
from torch2trt.runtime import streams
from torch2trt.runtime.captured import CapturedGraph

__all__ = ["no_grad"]  # a fixture of every test

pytestmark = pytest.mark.gpu
SIZE = 1 << 20  # of float32, 4 MiB: more than what torch keeps together in one small block


def side_stream(purpose: str = "capture") -> torch.cuda.Stream:
    return streams.own(torch.device("cuda", torch.cuda.current_device()), purpose)


def captured(work: Callable[[], object]) -> CapturedGraph:
    """After a run that is not captured, which makes what is made once."""
    side = side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        side.synchronize()
        return CapturedGraph(side, work)


def launch(graph: CapturedGraph) -> None:
    graph.launch(streams.current_handle(torch.cuda.current_device()))


class Wave:
    """Work with temporary results, whose memory torch allocates."""

    def __init__(self) -> None:
        self.x, self.y = torch.randn(2, SIZE, device="cuda")

    def __call__(self) -> None:
        inner = self.x * 2 + 1
        self.y.copy_(inner.sin() + inner)

    def check(self, graph: CapturedGraph) -> None:
        self.x.normal_()
        self.y.zero_()
        launch(graph)
        inner = self.x * 2 + 1
        torch.testing.assert_close(self.y, inner.sin() + inner)


# Results ------------------------------------------------------------------------------------------------------------


def test_a_launch_computes_what_eager_does() -> None:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)).cuda()
    x, y = torch.randn(8, 64, device="cuda"), torch.empty(8, 32, device="cuda")
    graph = captured(lambda: y.copy_(net(x)))
    torch.cuda.synchronize()
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        with torch.cuda.stream(stream):
            for _ in range(3):
                x.normal_()
                y.zero_()
                launch(graph)
                torch.testing.assert_close(y, net(x))
        stream.synchronize()


def test_nothing_runs_while_it_is_captured() -> None:
    x = torch.zeros(8, device="cuda")
    graph = captured(lambda: x.add_(1))
    assert x.tolist() == [1] * 8
    launch(graph)
    assert x.tolist() == [2] * 8


def test_the_first_thing_that_a_thread_does() -> None:
    x = torch.zeros(8, device="cuda")
    graph = captured(lambda: x.add_(1))
    torch.cuda.synchronize()
    other = torch.cuda.Stream().cuda_stream
    for handle in (0, other):
        in_threads(lambda _, handle=handle: graph.launch(handle), 1)  # type: ignore[misc]
        torch.cuda.synchronize()
    assert x.tolist() == [3] * 8


# Random numbers -----------------------------------------------------------------------------------------------------


def test_others_draw_random_numbers_meanwhile() -> None:
    wave, done, drawn = Wave(), threading.Event(), [0]

    def capture() -> None:
        try:
            graphs = [captured(wave) for _ in range(50)]
            wave.check(graphs[-1])
        finally:
            done.set()

    def draw() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            while not done.is_set():
                assert 0 < float(torch.rand(64, device="cuda").mean()) < 1
                drawn[0] += 1

    in_threads(lambda number: (capture, draw)[number](), 2)
    assert drawn[0] > 10


def test_what_draws_random_numbers_is_not_captured() -> None:
    x = torch.zeros(8, device="cuda")
    with pytest.raises(RuntimeError):
        captured(lambda: x.copy_(torch.rand(8, device="cuda")))
    assert torch.rand(8, device="cuda").unique().numel() > 1


# Captures that fail -------------------------------------------------------------------------------------------------


def looks() -> None:
    float(torch.ones(8, device="cuda").sum())


def raises() -> None:
    torch.ones(SIZE, device="cuda").mul_(2)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("not today")


def leaves_a_stream_behind() -> None:
    other = side_stream("left behind")
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        torch.ones(8, device="cuda")


@pytest.mark.parametrize("work", [looks, raises, leaves_a_stream_behind])
def test_a_capture_that_fails_leaves_torch_as_it_was(work: Callable[[], None]) -> None:
    wave = Wave()
    before = captured(wave)
    with pytest.raises(RuntimeError, match="not today" if work is raises else None):
        captured(work)
    side = side_stream()
    assert not streams.is_capturing(side.cuda_stream)
    assert torch.randn(8, device="cuda").unique().numel() > 1
    with torch.cuda.stream(side):
        assert float(torch.ones(SIZE, device="cuda").sum()) == SIZE
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    for graph in (before, captured(wave)):
        wave.check(graph)


# Memory -------------------------------------------------------------------------------------------------------------


def test_memory_of_a_capture_stays_its_own() -> None:
    wave = Wave()
    graph = captured(wave)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    others = [torch.full((SIZE,), 7.0, device="cuda") for _ in range(32)]
    for _ in range(3):
        for other in others:
            other.fill_(7)
        wave.check(graph)
        assert all(bool(other.eq(7).all()) for other in others)


def test_memory_goes_with_the_graph() -> None:
    wave = Wave()
    captured(wave)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graphs = [captured(wave) for _ in range(4)]
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() >= before + 4 * 3 * 4 * SIZE, "three results at a time in each"
    for graph in graphs:
        launch(graph)
    del graph
    # They may still be running.
    graphs.clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before


# Graphs of the caller's ---------------------------------------------------------------------------------------------


def test_a_graph_is_let_go_while_the_caller_captures() -> None:
    wave, x = Wave(), torch.ones(8, device="cuda")
    graphs = [captured(wave)]
    launch(graphs[0])
    torch.cuda.synchronize()
    caller = torch.cuda.CUDAGraph()
    with torch.cuda.graph(caller):
        y = x + 1
        graphs.clear()
        z = y * 2
    x.fill_(3)
    caller.replay()
    assert z.tolist() == [8] * 8
    torch.cuda.empty_cache()


def test_a_thread_captures_while_the_caller_does() -> None:
    wave, x, caller = Wave(), torch.ones(8, device="cuda"), torch.cuda.CUDAGraph()
    captured(wave)
    torch.cuda.synchronize()
    graphs: list[CapturedGraph] = []

    def capture(_: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            graphs.append(captured(wave))
            launch(graphs[0])

    # Which begins with the default generator: nobody draws from it until it has ended.
    with torch.cuda.graph(caller, capture_error_mode="thread_local"):
        y = x + 1
        in_threads(capture, 1)
        z = y * 2
    x.fill_(3)
    caller.replay()
    assert z.tolist() == [8] * 8
    torch.cuda.synchronize()
    wave.check(graphs[0])
