"""Which shapes keep a CUDA graph."""

from __future__ import annotations

import ctypes
import types
from typing import Any, TypeVar

import pytest
import torch

from torch2trt.runtime import cuda_graphs
from torch2trt.runtime.context import ALIGNMENT
from torch2trt.runtime.cuda_graphs import CAPACITY, Graph, GraphCache, _NotCapturable
from torch2trt.runtime.recent import Recent

STREAM = 7


class CountingCache(GraphCache):
    """Captures nothing and counts."""

    def __init__(self, *, enabled: bool = True, host_inputs: frozenset[str] = frozenset()) -> None:
        engine: Any = types.SimpleNamespace(
            name="net", device=torch.device("cuda:0"), host_inputs=host_inputs, is_capturable=True
        )
        super().__init__(engine, torch.empty(0), enabled=enabled)
        self.captured: list[Any] = []

    def _capture(self, inputs: Any) -> Any:
        self.captured += inputs
        return object()


def shapes_of(count: int) -> tuple[tuple[int, ...], ...]:
    return ((count, 3),)


_Kind = TypeVar("_Kind", bound=Graph)


def on_the_cpu(kind: type[_Kind], x: torch.Tensor) -> _Kind:
    """A graph of one input and an output like it."""
    engine: Any = types.SimpleNamespace(name="net", device=torch.device("cpu"), output_dtypes=(torch.float32,))
    shapes: Any = types.SimpleNamespace(output_shapes=lambda inputs, given: given)
    return kind(engine, shapes, [x])


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = types.SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: idle)


def test_each_shape_is_captured_once() -> None:
    cache = CountingCache()
    for count in (1, 2, 1, 2, 1):
        assert cache.get(shapes_of(count), [count]) is not None
    assert cache.captured == [1, 2]


@pytest.mark.usefixtures("stream")
def test_the_least_recently_used_is_displaced() -> None:
    cache = CountingCache()
    for count in range(1, CAPACITY + 1):
        cache.get(shapes_of(count), [])
    cache.get(shapes_of(1), [])
    while cache.get(shapes_of(99), []) is None:
        pass
    assert len(cache) == CAPACITY
    assert cache.peek(shapes_of(1)) is not None
    assert cache.peek(shapes_of(2)) is None


@pytest.mark.usefixtures("stream")
def test_shapes_that_always_change_do_not_capture_always() -> None:
    cache = CountingCache()
    for _ in range(32):
        for count in range(1, 2 * CAPACITY + 1):
            cache.get(shapes_of(count), [count])
    calls = 32 * 2 * CAPACITY
    assert len(cache.captured) < calls / 10


def test_what_is_never_captured() -> None:
    for cache in (CountingCache(enabled=False), CountingCache(host_inputs=frozenset({"n"}))):
        assert cache.get(shapes_of(1), [1]) is None
        assert not cache.captured
    cache = CountingCache()
    assert cache.get(shapes_of(0), [0]) is None
    assert not cache.captured


def test_a_capture_in_place_that_fails_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    class Placed(Graph):
        """Captures the run over its buffers, and none in place."""

        tries = 0

        def increment(self, stream: int) -> None:
            assert stream == STREAM
            self.outputs[0].copy_(self.inputs[0] + 1)

        def _capture(self, inputs: Any, outputs: Any, *, warm: bool) -> Any:
            if warm:
                return types.SimpleNamespace(launch=self.increment)
            self.tries += 1
            raise _NotCapturable("no memory")

    memory = torch.zeros(128)
    x = next(memory[start:][:64] for start in range(64) if memory[start:].data_ptr() % ALIGNMENT == 0)
    graph = on_the_cpu(Placed, x)
    for number in range(40):
        x.fill_(number)
        assert graph.replay([x], STREAM)[0].eq(number + 1).all()
    assert graph.tries == 1
    assert ["goes on copying" in record.message for record in caplog.records] == [True]


def test_outputs_that_lie_where_earlier_ones_lay_are_written_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of this size freed memory is handed out again, as on a GPU.
    captured, size = list[tuple[int, int]](), 8192

    class Copy(Graph):
        """Moves bytes from address to address, as a captured graph does, and holds no tensor."""

        def _capture(self, inputs: Any, outputs: Any, *, warm: bool) -> Any:
            source, target = inputs[0].data_ptr(), outputs[0].data_ptr()
            captured.append((source, target))
            return types.SimpleNamespace(launch=lambda stream: ctypes.memmove(target, source, 4 * size))

    monkeypatch.setattr(cuda_graphs, "ALIGNMENT", 1)
    x = torch.zeros(size)
    graph = on_the_cpu(Copy, x)
    kept = [torch.zeros(size)]
    for number in range(40):
        x.fill_(number)
        (y,) = graph.replay([x], STREAM)
        assert y.eq(number).all()
        if number % 10 == 9:
            kept.append(y)
    assert [int(y[0]) for y in kept] == [0, 9, 19, 29, 39], "what the caller holds is not written again"
    own, buffer = graph.inputs[0].data_ptr(), graph.outputs[0].data_ptr()
    assert captured[0] == (own, buffer)
    written = [target for source, target in captured if source == x.data_ptr() and target != buffer]
    assert written
    assert len(captured) == len(set(captured)) <= CAPACITY + 1


def test_what_comes_once_makes_nothing() -> None:
    kept: Recent[int, str] = Recent(2, first=3, later=5)
    assert [kept.missed(1) for _ in range(4)] == [False, False, True, True]
    kept.put(1, "one")
    assert (kept.get(1), kept.get(2), kept.full) == ("one", None, False)
    assert [kept.missed(2) for _ in range(3)] == [False, False, True]
    kept.put(2, "two")
    assert kept.full
    assert [kept.missed(3) for _ in range(5)] == [False, False, False, False, True]
    kept.get(1)
    kept.displace()
    kept.put(3, "three")
    assert list(kept) == ["one", "three"]
    # One that was displaced starts from nothing.
    assert not kept.missed(2)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("held", [0, 30])
def test_places_in_turns_do_not_capture_again_and_again(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    captured = 0

    class Counted(Graph):
        def _capture(self, inputs: Any, outputs: Any, *, warm: bool) -> Any:
            nonlocal captured
            captured += 1
            return types.SimpleNamespace(launch=lambda stream: None)

    monkeypatch.setattr(cuda_graphs, "ALIGNMENT", 1)
    # Of five inputs with results in two places, or of one with many results that are held, not all runs have a place.
    values = [torch.zeros(8) for _ in range(1 if held else 5)]
    results = [torch.zeros(8) for _ in range(held or 2)]
    graph = on_the_cpu(Counted, values[0])
    turn = iter(range(10**6))
    monkeypatch.setattr(torch, "empty_like", lambda buffer: results[next(turn) % len(results)])
    for number in range(6000):
        graph.replay([values[number % len(values)]], STREAM)
        if number == 1000:
            before = captured
    assert before == captured <= 2 * CAPACITY + 1
