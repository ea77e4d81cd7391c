"""The GPU as a run sees it: its clock and its memory."""

from __future__ import annotations

import gc
import os
import time
from typing import Protocol

import torch

from torch2trt.errors import NoGPUError
from torch2trt.tools.bench.measure import Call, Clock
from torch2trt.tools.bench.whole import Stages, Watch, WholeCall


class Machine(Clock, Watch, Protocol):
    """Where modules run and are timed."""

    device: torch.device
    name: str
    gpus: list[str]
    """What ``CUDA_VISIBLE_DEVICES`` names it, and after it the others of its kind, which can build for it."""

    def synchronize(self) -> None:
        """Wait for everything that was enqueued; raises what went wrong there."""

    def release(self) -> None:
        """Give back memory that nothing needs any more."""

    def free_bytes(self) -> int:
        """Device memory that no process holds."""


class CudaMachine:
    """The current CUDA device.

    Args:
        subject: what wants one, for the error.

    Raises:
        NoGPUError: there is none.
    """

    def __init__(self, subject: str = "bench") -> None:
        if not torch.cuda.is_available():
            raise NoGPUError(
                "engines are measured on NVIDIA GPUs, and torch finds none on this machine",
                subject=subject,
                hint="torch2trt verify builds and checks a model without a GPU",
            )
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.name = torch.cuda.get_device_name()
        self.gpus = _alike(self.device.index)

    def gpu_ms(self, call: Call, calls: int, *, lead_in: int) -> float:
        """Between two events on the stream: what the GPU takes, or the host where that is slower."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for number in range(lead_in):
            call(number)
        start.record()
        for number in range(lead_in, lead_in + calls):
            call(number)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls

    def host_us(self, call: Call, calls: int) -> float:
        """By the host's clock, from an idle GPU, and without waiting for it in between."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for number in range(calls):
            call(number)
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds / calls * 1e6

    def stages_ms(self, whole: WholeCall, number: int) -> Stages:
        """Between events on the stream; the latency by the host's clock."""
        begin, copied, computed, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        torch.cuda.synchronize()
        start = time.perf_counter()
        begin.record()
        whole.copy_in(number)
        copied.record()
        result = whole.call(number)
        computed.record()
        whole.copy_out(result)
        end.record()
        end.synchronize()
        seconds = time.perf_counter() - start
        return Stages(
            seconds * 1e3, begin.elapsed_time(copied), copied.elapsed_time(computed), computed.elapsed_time(end)
        )

    def synchronize(self) -> None:
        """Wait for everything that was enqueued; raises what went wrong there."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """Give back memory that nothing needs any more."""
        gc.collect()
        torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        """Device memory that no process holds: TensorRT's own allocations are seen only so."""
        return torch.cuda.mem_get_info()[0]


def _alike(index: int) -> list[str]:
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    kind = torch.cuda.get_device_properties(index).name
    others = [n for n in range(count) if n != index and torch.cuda.get_device_properties(n).name == kind]
    return [names[number] for number in (index, *others)]
