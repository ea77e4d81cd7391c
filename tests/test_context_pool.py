"""Which contexts a run gets: by stream, by what the GPU is still doing, and within a captured graph."""

from __future__ import annotations

import random
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.threads import in_threads
from torch2trt.runtime import context_pool, streams
from torch2trt.runtime.context_pool import ContextPool, ContextSet, EngineContexts


class GPU:
    """Streams that do what is enqueued when they are told to, and know what they have waited for."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.captured: set[int] = set()
        self._of_thread = threading.local()

    @property
    def current(self) -> Stream:
        """The thread's current stream."""
        return self._of_thread.stream  # type: ignore[no-any-return]

    @current.setter
    def current(self, stream: Stream) -> None:
        self._of_thread.stream = stream

    def stream(self, handle: int) -> Stream:
        return self.streams.setdefault(handle, Stream(self, handle))

    def is_idle(self, handle: int) -> bool:
        return handle not in self.captured and self.streams[handle].is_idle()


class Stream:
    def __init__(self, gpu: GPU, handle: int) -> None:
        self.gpu = gpu
        self.cuda_stream = handle
        self.enqueued = 0
        self.done = 0
        self.after: dict[int, int] = {}
        """How much of each other stream is done before what comes next here."""

    def is_idle(self) -> bool:
        return self.done == self.enqueued

    def record_event(self) -> dict[int, int]:
        assert self.cuda_stream not in self.gpu.captured, "an event of a capture is no event outside it"
        return {**self.after, self.cuda_stream: self.enqueued}

    def wait_event(self, event: dict[int, int]) -> None:
        for handle, count in event.items():
            self.after[handle] = max(self.after.get(handle, 0), count)

    def run(self) -> tuple[int, int]:
        """Enqueue one run; returns which one it is."""
        self.enqueued += 1
        return self.cuda_stream, self.enqueued

    def comes_after(self, run: tuple[int, int]) -> bool:
        """Whether a run is done, or will be before what comes next here."""
        handle, number = run
        if handle == self.cuda_stream or number <= self.gpu.streams[handle].done:
            return True
        return number <= self.after.get(handle, 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> GPU:
    made = GPU()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: made.current)
    monkeypatch.setattr(streams, "is_idle", made.is_idle)
    monkeypatch.setattr(streams, "is_capturing", lambda handle: handle in made.captured)
    # The memory is the CPU's, which knows no streams.
    monkeypatch.setattr(ContextSet, "tensors", lambda self: [])
    return made


def engine(size: int = 512) -> Any:
    return types.SimpleNamespace(
        device=torch.device("cpu"), scratch_bytes=size, host_inputs=frozenset(), is_capturable=True, name="net"
    )


class Engine(types.SimpleNamespace):
    """As above, and a key of a dictionary."""

    __hash__ = object.__hash__


def pool_of(most: int, *engines: Any) -> ContextPool:
    pool = ContextPool(most, cuda_graphs=True)
    for each in engines or (engine(),):
        pool.add(each)
    return pool


def run_on(gpu: GPU, pool: ContextPool, handle: int) -> ContextSet:
    """Enqueue one run on a stream; returns where it runs."""
    gpu.current = gpu.stream(handle)
    taken = pool.take(handle)
    gpu.current.run()
    taken.lock.release()
    return taken


def finish(gpu: GPU, *handles: int) -> None:
    for handle in handles or tuple(gpu.streams):
        gpu.streams[handle].done = gpu.streams[handle].enqueued


# Which set -----------------------------------------------------------------------------------------------------------


def test_one_stream_has_one_set(gpu: GPU) -> None:
    pool = pool_of(4)
    assert len({run_on(gpu, pool, 1) for _ in range(10)}) == 1
    assert not gpu.streams[1].after


def test_busy_streams_have_a_set_each_and_keep_it(gpu: GPU) -> None:
    pool = pool_of(4)
    first = {handle: run_on(gpu, pool, handle) for handle in (1, 2, 3)}
    assert len({*first.values()}) == 3
    for handle in (3, 1, 2, 2, 3):
        assert run_on(gpu, pool, handle) is first[handle]
    # Whoever waits for nothing runs at once.
    assert not any(stream.after for stream in gpu.streams.values())


def test_what_is_idle_is_taken_before_more_is_made(gpu: GPU) -> None:
    pool = pool_of(4)
    one = run_on(gpu, pool, 1)
    finish(gpu)
    assert run_on(gpu, pool, 2) is one
    assert not gpu.streams[2].after
    # It is the other stream's now.
    two = run_on(gpu, pool, 1)
    assert two is not one
    finish(gpu, 1)
    assert run_on(gpu, pool, 3) is two


def test_at_the_bound_the_one_that_was_used_longest_ago_is_waited_for(gpu: GPU) -> None:
    pool = pool_of(2)
    one, two = run_on(gpu, pool, 1), run_on(gpu, pool, 2)
    run_on(gpu, pool, 1)
    assert run_on(gpu, pool, 3) is two
    assert gpu.streams[3].after == {2: 1}
    assert run_on(gpu, pool, 2) is one
    assert gpu.streams[2].after == {1: 2}


def test_a_bound_of_one_waits_as_if_there_were_no_pool(gpu: GPU) -> None:
    pool = pool_of(1)
    assert len({run_on(gpu, pool, handle) for handle in (1, 2, 1)}) == 1
    assert gpu.streams[2].after == {1: 1}
    assert gpu.streams[1].after == {1: 1, 2: 1}


def test_what_another_thread_is_enqueuing_on_is_not_idle(gpu: GPU) -> None:
    pool = pool_of(2)
    one = run_on(gpu, pool, 1)
    finish(gpu)
    held, done = threading.Event(), threading.Event()

    def enqueue() -> None:
        taken = pool.take(1)
        held.set()
        assert done.wait(10)
        taken.lock.release()

    other = threading.Thread(target=enqueue)
    other.start()
    assert held.wait(10)
    assert run_on(gpu, pool, 2) is not one
    done.set()
    other.join()


def test_streams_that_are_captured_are_not_waited_for(gpu: GPU) -> None:
    """The caller captures something else on a stream that has run the engine before."""
    pool = pool_of(1)
    one = run_on(gpu, pool, 1)
    gpu.captured = {1}
    two = run_on(gpu, pool, 2)
    assert two is not one
    assert run_on(gpu, pool, 3) is two
    gpu.captured = set()
    finish(gpu)
    assert run_on(gpu, pool, 1) is one


def test_no_memory_for_more_is_as_if_the_bound_were_reached(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, asked = pool_of(4), 0
    one = run_on(gpu, pool, 1)

    def none(*args: Any, **kwargs: Any) -> None:
        nonlocal asked
        asked += 1
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(context_pool, "ContextSet", none)
    for handle in (2, 3, 2, 1):
        assert run_on(gpu, pool, handle) is one
    assert asked == 1
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_on(gpu, pool_of(4), 1)


@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_two_runs_are_on_one_set_at_once(gpu: GPU, most: int) -> None:
    """Whatever comes on which stream, and however far each of them is."""
    generator = random.Random(most)
    last: dict[ContextSet, tuple[int, int]] = {}
    pool = pool_of(most)
    for _ in range(5000):
        handle = generator.randrange(1, 7)
        if generator.random() < 0.4:
            stream = gpu.stream(handle)
            stream.done = generator.randint(stream.done, stream.enqueued)
            # What was waited for is done by then.
            if stream.done == stream.enqueued:
                for other, count in stream.after.items():
                    gpu.streams[other].done = max(gpu.streams[other].done, count)
            continue
        gpu.current = gpu.stream(handle)
        taken = pool.take(handle)
        assert taken not in last or gpu.current.comes_after(last[taken])
        last[taken] = gpu.current.run()
        taken.lock.release()
    assert len(last) == most


def test_threads_are_never_in_one_set_together(gpu: GPU) -> None:
    pool = pool_of(3)
    inside: dict[ContextSet, int] = {}

    def work(number: int) -> None:
        for turn in range(300):
            handle = number if turn % 3 else 9
            gpu.current = gpu.stream(handle)
            taken = pool.take(handle)
            inside[taken] = inside.get(taken, 0) + 1
            assert inside[taken] == 1
            gpu.stream(handle).run()
            finish(gpu, handle)
            inside[taken] -= 1
            taken.lock.release()

    for number in range(10):
        gpu.stream(number)
    in_threads(work, 8)
    assert len(inside) <= 3


# Graphs of the caller's -----------------------------------------------------------------------------------------------


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, set[Any]]]:
    """By the memory of contexts, the shapes that they are warm at."""
    found: dict[int, set[Any]] = {}

    def look(self: EngineContexts, shapes: Any) -> Any:
        return (id(self), shapes) if shapes in found.get(id(self), ()) else None

    monkeypatch.setattr(EngineContexts, "warm", look)
    return found  # type: ignore[return-value]


def test_a_capture_gets_what_its_stream_has_used_and_keeps_it(gpu: GPU, warm: dict[int, set[Any]]) -> None:
    net = Engine(**vars(engine()))
    pool = pool_of(4, net)
    sets = {handle: run_on(gpu, pool, handle) for handle in (1, 2, 3)}
    assert pool.warm(net, "shapes", 1) is None
    for handle in (1, 2):
        warm[id(sets[handle].of(net))] = {"shapes"}
    finish(gpu, 1)

    def lent(handle: int) -> ContextSet:
        found = pool.warm(net, "shapes", handle)
        assert found is not None
        taken, context = found
        assert context == (id(taken.of(net)), "shapes")
        taken.lent = True
        taken.lock.release()
        return taken

    # On a stream of its own, one that is idle.
    assert lent(7) is sets[1]
    # The rest of the capture gets the same, and later runs never do.
    assert lent(7) is sets[1]
    finish(gpu)
    assert sets[1] not in [run_on(gpu, pool, handle) for handle in (1, 2, 3, 4)]
    assert lent(2) is sets[2]


def test_what_is_lent_is_replaced_even_if_its_stream_goes_on(gpu: GPU) -> None:
    pool = pool_of(1)
    one = run_on(gpu, pool, 1)
    one.lent = True
    two = run_on(gpu, pool, 1)
    assert two is not one
    assert run_on(gpu, pool, 1) is two
    assert pool._lent == [one]


# Memory ---------------------------------------------------------------------------------------------------------------


def test_engines_that_take_turns_share_memory_for_the_largest(gpu: GPU) -> None:
    small, large = Engine(**vars(engine(512))), Engine(**vars(engine(4096)))
    pool = pool_of(4, small, large)
    for handle in (1, 2):
        taken = run_on(gpu, pool, handle)
        scratch = [taken.of(each)._scratch for each in (small, large)]
        assert scratch[0] is scratch[1]
        assert scratch[0].numel() == 4096
        assert taken.of(small) is taken.of(small)
    assert len(pool.contexts(large)) == 2


def test_an_engine_that_comes_later_may_need_more(gpu: GPU) -> None:
    small, large = Engine(**vars(engine(512))), Engine(**vars(engine(4096)))
    pool = pool_of(4, small)
    taken = run_on(gpu, pool, 1)
    before = taken.of(small)._scratch
    pool.add(large)
    assert taken.of(large)._scratch.numel() == 4096
    assert taken.of(small)._scratch is before
    assert before.numel() == 512
