"""Streams of our own, and questions about others'."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from torch2trt.runtime import driver, streams

IDLE, BUSY, CAPTURED = 8, 16, 24


class FakeDriver:
    """The driver's functions, as it declares them."""

    def __init__(self) -> None:
        self.mode = 0  # global
        self.broken = False

    def cuStreamIsCapturing(self, stream: ctypes.c_void_p, status: Any) -> int:
        status._obj.value = int(stream.value == CAPTURED)
        return streams._IMPLICIT if stream.value is None else 0

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
        self.mode, mode._obj.value = mode._obj.value, self.mode
        return 0

    def cuStreamQuery(self, stream: ctypes.c_void_p) -> int:
        # Another thread's capture, or this stream's, ends where this is not allowed.
        self.broken |= self.mode != driver.RELAXED or stream.value == CAPTURED
        return 600 if stream.value == BUSY else 0


def test_a_question_leaves_captures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver()
    monkeypatch.setattr(driver, "questions", lambda: fake)
    assert {handle: streams.is_idle(handle) for handle in (IDLE, BUSY, CAPTURED, 0)} == {
        IDLE: True,
        BUSY: False,
        CAPTURED: False,
        0: False,
    }
    assert [streams.is_capturing(handle) for handle in (IDLE, BUSY, CAPTURED, 0)] == [False, False, True, True]
    assert (fake.mode, fake.broken) == (0, False)


# On the GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_what_torch_hands_out_is_never_ours() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    ours = [streams.own(device, purpose) for purpose in ("one", "another")]
    handles = {torch.cuda.Stream(device).cuda_stream for _ in range(100)}
    assert len({stream.cuda_stream for stream in ours}) == 2
    assert not handles & {stream.cuda_stream for stream in ours}
    assert streams.own(device, "one") is ours[0]
    with torch.cuda.stream(ours[0]):
        found = torch.arange(8, device=device).sum()
    ours[0].synchronize()
    assert int(found) == 28


@pytest.mark.gpu
def test_idle_and_busy_streams() -> None:
    stream = torch.cuda.Stream()
    stream.synchronize()
    assert streams.is_idle(stream.cuda_stream)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(400_000_000)
    assert not streams.is_idle(stream.cuda_stream)
    torch.cuda.synchronize()
    assert streams.is_idle(stream.cuda_stream)
    assert streams.is_idle(0)


@pytest.mark.gpu
def test_a_capture_goes_on_when_streams_are_asked() -> None:
    other, x = torch.cuda.Stream(), torch.ones(8, device="cuda")
    graph, found = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        y = x + 1
        found = [streams.is_idle(other.cuda_stream), streams.is_capturing(torch.cuda.current_stream().cuda_stream)]
        found.append(streams.is_idle(torch.cuda.current_stream().cuda_stream))
        y = y * 2
    assert found == [True, True, False]
    graph.replay()
    assert y.eq(4).all()
