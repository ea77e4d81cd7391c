"""An operator with a kernel in Triton; apart, since Triton is there on few systems."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _swish(x, y, slope, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(x + index, mask=inside).to(tl.float32)
    tl.store(y + index, value * tl.sigmoid(slope * value), mask=inside)


@torch.library.triton_op("t2t_triton::swish", mutates_args=())
def swish(x: Tensor, slope: float) -> Tensor:
    """``x * sigmoid(slope * x)``"""
    y = torch.empty_like(x)
    torch.library.wrap_triton(_swish)[(triton.cdiv(x.numel(), 256),)](x, y, slope, x.numel(), BLOCK=256)
    return y


@swish.register_kernel("cpu")
def _(x: Tensor, slope: float) -> Tensor:
    return x * torch.sigmoid(slope * x)
