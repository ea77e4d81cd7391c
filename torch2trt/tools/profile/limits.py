"""What this GPU can do, measured: a copy larger than its caches, and a product of large matrices."""

from __future__ import annotations

import torch

from torch2trt.settings import Precision
from torch2trt.tools.bench.backends import arithmetic
from torch2trt.tools.bench.machine import Machine
from torch2trt.tools.bench.measure import Call, measure
from torch2trt.tools.profile.report import Limits

_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_COPY = 1 << 29  # bytes, several times the largest cache there is
_SIDE = 8192  # of the matrices: larger ones run no faster
_ROUNDS = 10


def measure_limits(machine: Machine, precision: Precision) -> Limits:
    """Measure both; where the GPU's memory is small, with smaller sizes.

    Args:
        precision: the arithmetic of the product.
    """
    machine.release()
    room, dtype = machine.free_bytes() // 2, _DTYPES[precision]
    side = _SIDE
    while 3 * side * side * dtype.itemsize > room and side > 256:
        side //= 2
    count = min(_COPY, room // 2)
    with torch.no_grad(), arithmetic(precision):
        source = torch.zeros(count, dtype=torch.uint8, device=machine.device)
        target = torch.empty_like(source)
        # Products of zeros are faster, for they take less power.
        first, second = (torch.randn(side, side, device=machine.device).to(dtype) for _ in range(2))
        result = torch.empty_like(first)
        calls: dict[str, Call] = {
            "copy": lambda _: target.copy_(source),
            "product": lambda _: torch.matmul(first, second, out=result),
        }
        for call in calls.values():
            call(0)
        times = {name: samples.gpu_ms_p50 for name, samples in measure(calls, machine, rounds=_ROUNDS).items()}
    return Limits(2 * count / times["copy"] / 1e6, 2 * side**3 / times["product"] / 1e9)
