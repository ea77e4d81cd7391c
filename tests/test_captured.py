"""Graphs captured through the driver, on one that records what is asked of it: order, failures, and what is let go."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2trt
from torch2trt.runtime import driver, streams
from torch2trt.runtime.captured import CapturedGraph

STREAM, OTHER, GRAPH, HANDLE, POOL = 7, 8, 20, 30, (0, 5)
INVALIDATED, NO_CONTEXT = 901, 201


class FakeCUDA:
    """The driver's functions and those of torch's allocator, with what they have made and is still there."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.fails: dict[str, list[int]] = {}
        """By function, the codes of its next calls."""
        self.alive: set[str] = set()
        self.mode = 0  # global

    def _called(self, name: str, *arguments: Any) -> int:
        self.calls.append((name, *arguments) if arguments else name)
        codes = self.fails.get(name)
        return codes.pop(0) if codes else 0

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        if code := self._called("begin", stream, mode):
            return code
        assert "capture" not in self.alive
        self.alive.add("capture")
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        code = self._called("end", stream)
        self.alive.remove("capture")
        if not code:
            self.alive.add("graph")
            graph._obj.value = GRAPH
        return code

    def cuGraphInstantiateWithFlags(self, handle: Any, graph: int, flags: int) -> int:
        assert (graph, self.mode) == (GRAPH, driver.RELAXED)
        if code := self._called("instantiate", flags):
            return code
        self.alive.add("executable")
        handle._obj.value = HANDLE
        return 0

    def cuGraphDestroy(self, graph: int) -> int:
        assert (graph, self.mode) == (GRAPH, driver.RELAXED)
        self.alive.remove("graph")
        return self._called("destroy")

    def cuGraphLaunch(self, handle: int, stream: int) -> int:
        assert handle == HANDLE
        assert "executable" in self.alive
        return self._called("launch", stream)

    def cuGraphExecDestroy(self, handle: int) -> int:
        assert (handle, self.mode) == (HANDLE, driver.RELAXED)
        self.alive.remove("executable")
        return self._called("destroy executable")

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        self.mode, mode._obj.value = mode._obj.value, self.mode
        return 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = b"CUDA_ERROR_NAMED"
        return 0

    def begin_pool(self, device: int, pool: tuple[int, int]) -> None:
        self._called("begin pool", device, pool)
        self.alive |= {"pool", "allocation to it"}

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        self._called("end pool", device, pool)
        self.alive.remove("allocation to it")

    def release_pool(self, device: int, pool: tuple[int, int]) -> None:
        assert "executable" not in self.alive, "a graph outlives its memory"
        self._called("release pool", device, pool)
        self.alive.remove("pool")


def pretend(patch: pytest.MonkeyPatch) -> FakeCUDA:
    fake = FakeCUDA()
    patch.setattr(driver, "library", lambda: fake)
    patch.setattr(driver, "questions", lambda: fake)
    patch.setattr(streams, "enter", lambda stream: fake._called("enter"))
    patch.setattr(torch.cuda, "graph_pool_handle", lambda: POOL)
    patch.setattr(torch.cuda, "current_stream", lambda device: device)
    for name, function in {
        "_cuda_beginAllocateCurrentThreadToPool": fake.begin_pool,
        "_cuda_endAllocateToPool": fake.end_pool,
        "_cuda_releasePool": fake.release_pool,
    }.items():
        patch.setattr(torch._C, name, function, raising=False)
    return fake


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCUDA:
    return pretend(monkeypatch)


def capture(enqueue: Any) -> CapturedGraph:
    stream: Any = types.SimpleNamespace(cuda_stream=STREAM, device=torch.device("cuda", 1))
    return CapturedGraph(stream, enqueue)


def test_a_capture_from_its_beginning_to_its_end(cuda: FakeCUDA) -> None:
    graph = capture(lambda: cuda.calls.append("work"))
    # Torch's allocator knows before the capture begins and until it has ended.
    assert cuda.calls == [
        "enter",
        ("begin pool", 1, POOL),
        ("begin", STREAM, driver.THREAD_LOCAL),
        "work",
        ("end", STREAM),
        ("instantiate", 1),
        "destroy",
        ("end pool", 1, POOL),
    ]
    assert cuda.alive == {"executable", "pool"}
    cuda.calls.clear()
    graph.launch(STREAM)
    graph.launch(OTHER)
    assert cuda.calls == [("launch", STREAM), ("launch", OTHER)]
    cuda.calls.clear()
    del graph
    assert cuda.calls == ["destroy executable", ("release pool", 1, POOL)]
    assert not cuda.alive
    assert cuda.mode == 0


def refuse() -> None:
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("fails", "work", "error", "seen"),
    [
        ({"begin": [900]}, refuse, "refused to begin a capture: CUDA_ERROR_NAMED", ["begin"]),
        ({}, refuse, "not today", ["begin", "end", "destroy"]),
        # What was enqueued has broken the capture: there is no graph to destroy.
        ({"end": [INVALIDATED]}, refuse, "not today", ["begin", "end"]),
        ({"end": [INVALIDATED]}, lambda: None, r"refused to end a capture: .* \(901\)", ["begin", "end"]),
        ({"instantiate": [2]}, lambda: None, "refused to instantiate", ["begin", "end", "instantiate", "destroy"]),
    ],
)
def test_what_fails_leaves_nothing(
    cuda: FakeCUDA, fails: dict[str, list[int]], work: Any, error: str, seen: list[str]
) -> None:
    cuda.fails = fails
    with pytest.raises(ValueError if work is refuse and "begin" not in fails else RuntimeError, match=error):
        capture(work)
    names = [call if isinstance(call, str) else call[0] for call in cuda.calls]
    assert names == ["enter", "begin pool", *seen, "end pool", "release pool"]
    assert not cuda.alive
    assert cuda.mode == 0


def test_a_thread_that_has_no_context_yet_gets_one(cuda: FakeCUDA) -> None:
    graph = capture(lambda: None)
    cuda.calls.clear()
    cuda.fails = {"launch": [NO_CONTEXT]}
    graph.launch(0)
    assert cuda.calls == [("launch", 0), "enter", ("launch", 0)]
    # What that does not cure is an error.
    cuda.fails = {"launch": [700, 700]}
    with pytest.raises(RuntimeError, match=r"refused to launch a graph: CUDA_ERROR_NAMED \(700\)"):
        graph.launch(0)


ENDS = """
import pytest
from tests.test_captured import capture, pretend

fake = pretend(pytest.MonkeyPatch())
pytest.kept = capture(lambda: None)
fake._called = lambda *call: print("asked", *call, flush=True) or 0
print("ends", flush=True)
"""


def test_the_end_of_the_process_asks_nothing_of_cuda(tmp_path: Path) -> None:
    """CUDA may have gone before."""
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    root = Path(torch2trt.__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert (ran.stdout, ran.stderr) == ("ends\n", "")
