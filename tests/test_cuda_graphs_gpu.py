"""CUDA graphs: which are captured, what they read in place, and engines inside the caller's own."""

from __future__ import annotations

import logging
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from tests.mlp import MLP, built, close, eager, fresh, graph_count, graphs, in_place_count, module, no_grad, plain
from tests.threads import in_threads
from torch2trt.errors import EngineError
from torch2trt.runtime.context import Context
from torch2trt.runtime.cuda_graphs import _DISPLACES, CAPACITY
from torch2trt.runtime.module import EngineModule

__all__ = ["built", "eager", "graphs", "module", "no_grad", "plain"]  # fixtures, which tests name

pytestmark = pytest.mark.gpu


def test_one_graph_per_shape(graphs: EngineModule, eager: MLP) -> None:
    for count in (8, 4, 8, 4, 8):
        x = torch.randn(count, 64, device="cuda")
        close(graphs(x), eager(x))
    assert graph_count(graphs) == 2


def test_graphs_can_be_switched_off(plain: EngineModule) -> None:
    for _ in range(3):
        plain(torch.randn(8, 64, device="cuda"))
    assert graph_count(plain) == 0


def test_more_shapes_than_graphs(graphs: EngineModule, eager: MLP) -> None:
    counts = [*range(1, CAPACITY + 6)] * 20
    for count in counts:
        x = torch.randn(count, 64, device="cuda")
        close(graphs(x), eager(x))
    assert graph_count(graphs) == CAPACITY


def test_inputs_that_stay_where_they_are_are_read_there(graphs: EngineModule, eager: MLP) -> None:
    x, y = (torch.randn(8, 64, device="cuda") for _ in range(2))
    results, expected = [], []
    for number in range(12):
        x.normal_()
        results.append(graphs(x))
        expected.append(eager(x))
        if number % 2:
            close(graphs(y), eager(y))
    assert in_place_count(graphs) == 2
    # Every result is its own, though all inputs were in one place.
    close(torch.stack(results), torch.stack(expected))


def test_outputs_that_come_back_to_their_places_are_written_there(graphs: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    for _ in range(24):
        x.normal_()
        y = graphs(x)
        close(y, eager(x))
    ((graph,),) = (contexts.graphs for contexts in graphs._session.contexts)  # type: ignore[union-attr]
    assert (x.data_ptr(), y.data_ptr()) in graph._all_in_place._values
    # Results that are held are not written again.
    results, expected = [], []
    for _ in range(24):
        x.normal_()
        results.append(graphs(x))
        expected.append(eager(x))
        if len(results) > 3:
            close(results.pop(0), expected.pop(0))
    close(torch.stack(results), torch.stack(expected))


def test_other_tensors_in_the_same_place() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + torch.arange(64, device=x.device)

    x = torch.randn(64, 64, device="cuda")
    square = torch2trt.compile(Square().eval(), (x,), precision="fp32", progress="none", optimization_level=0)
    for _ in range(6):
        square(x)
    assert in_place_count(square) == 1
    for value in (x.t(), torch._neg_view(x), x.t().contiguous().t(), x[:, :1].expand(64, 64)):
        close(square(value), Square()(value))
    # Memory that was given back and handed out again.
    place = x.data_ptr()
    del x, value
    others = [torch.randn(64, 64, device="cuda") for _ in range(512)]
    (again,) = (other for other in others if other.data_ptr() == place)
    close(square(again), Square()(again))
    off = torch.randn(64 * 64 + 1, device="cuda")[1:].view(64, 64)
    for _ in range(6):
        close(square(off), Square()(off))
    assert in_place_count(square) == 1


def test_inputs_that_always_move_are_not_captured_for(graphs: EngineModule, eager: MLP) -> None:
    values = torch.randn(3 * CAPACITY, 8, 64, device="cuda")
    for _ in range(_DISPLACES - 2):
        for value in values:
            close(graphs(value), eager(value))
    ((graph,),) = (contexts.graphs for contexts in graphs._session.contexts)  # type: ignore[union-attr]
    assert len(graph._in_place) == CAPACITY


@pytest.mark.parametrize("by_cuda", [False, True], ids=["raises", "waits"])
def test_what_cannot_be_captured_runs_without(
    graphs: EngineModule, eager: MLP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by_cuda: bool
) -> None:
    enqueue = Context.enqueue

    def refuse(self: Context, inputs: Any, outputs: Any, stream: int) -> list[torch.Tensor]:
        made = enqueue(self, inputs, outputs, stream)
        if by_cuda:
            torch.cuda.current_stream().synchronize()
        elif torch.cuda.is_current_stream_capturing():
            raise EngineError("not while capturing")
        return made

    monkeypatch.setattr(Context, "enqueue", refuse)
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        for count in (8, 4, 8, 4):
            x = torch.randn(count, 64, device="cuda")
            close(graphs(x), eager(x))
    assert graph_count(graphs) == 0
    said = [record.message for record in caplog.records if "without CUDA graphs" in record.message]
    assert len(said) == 1
    # Memory and streams are in order after the broken capture.
    x = torch.randn(8, 64, device="cuda")
    close(eager(x), eager(x.clone()))


def test_others_draw_random_numbers_while_graphs_are_captured(built: EngineModule, eager: MLP) -> None:
    done, drawn = threading.Event(), [0]
    xs = [torch.randn(size, 64, device="cuda") for size in range(1, 9)]
    expected = [eager(x) for x in xs]
    torch.cuda.synchronize()

    def capture() -> None:
        try:
            for _ in range(7):
                module = fresh(built, cuda_graphs=True)
                for x, y in zip(xs, expected, strict=True):
                    close(module(x), y)
                assert graph_count(module) == len(xs)
        finally:
            done.set()

    def draw() -> None:
        while not done.is_set():
            assert 0 < float(torch.rand(64, device="cuda").mean()) < 1
            drawn[0] += 1

    def work(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            (capture, draw)[number]()

    in_threads(work, 2)
    assert drawn[0] > 10


def test_part_of_the_callers_graph(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        module(x)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        doubled = 2 * module(x)
        again = module(x + 1)
    for _ in range(3):
        x.copy_(torch.randn(8, 64, device="cuda"))
        graph.replay()
        close(doubled, 2 * eager(x))
        close(again, eager(x + 1))
        # Calls outside, at the same and other shapes, leave the caller's graph alone.
        for count in (8, 5):
            other = torch.randn(count, 64, device="cuda")
            close(module(other), eager(other))
    torch.cuda.synchronize()


def test_the_callers_graph_and_other_streams_at_once(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(64, 64, device="cuda")
    module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = module(x)
    other = torch.randn(64, 64, device="cuda")
    expected = eager(x), eager(other)
    module(other)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(50):
        with torch.cuda.stream(first):
            graph.replay()
        with torch.cuda.stream(second):
            outside = module(other)
        torch.cuda.synchronize()
        close(inside, expected[0])
        close(outside, expected[1])


def test_the_callers_graph_and_threads(plain: EngineModule, eager: MLP) -> None:
    """A graph of the caller's, replayed while threads run the engine on contexts of their own."""
    module = plain
    x = torch.randn(64, 64, device="cuda")
    module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = module(x)
    xs = torch.randn(4, 64, 64, device="cuda")
    expected, each = eager(x), [eager(other) for other in xs]
    torch.cuda.synchronize()

    def work(number: int) -> None:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if number == 4:
                    graph.replay()
                    close(inside, expected)
                else:
                    close(module(xs[number]), each[number])

    in_threads(work, 5)


def test_a_first_call_inside_a_capture(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    module(torch.randn(4, 64, device="cuda"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    def captured() -> None:
        with torch.cuda.graph(graph):
            x.mul_(1)
            module(x)

    with pytest.raises(EngineError, match="for the first time inside a CUDA graph capture"):
        captured()
    close(module(x), eager(x))


def test_a_replay_allocates_its_outputs_alone_and_waits_for_nothing(graphs: EngineModule) -> None:
    def allocations() -> int:
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    places = [torch.randn(8, 64, device="cuda") for _ in range(20)]
    for x in [places[0]] * 5 + places:
        graphs(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        # Where it was, and where it never was: read in place, and copied.
        for x in [places[0]] * 5 + places:
            before = allocations()
            result = graphs(x)
            assert allocations() - before == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.shape == (8, 32)
