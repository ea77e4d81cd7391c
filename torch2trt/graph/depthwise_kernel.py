"""Depthwise convolution of channels-last images in Triton; apart, since Triton is there on few systems.

A program computes four rows of a strip of pixels for a block of channels: what is read of a row serves each of the
results that it is part of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Of ten that were tried on an H200 for ConvNeXt-T's four sizes of images, none is faster by more than timings vary.
_PIXELS, _CHANNELS, _WARPS = 8, 32, 2


@triton.jit  # type: ignore[untyped-decorator]
def _four_rows(  # type: ignore[no-untyped-def]
    x,
    taps,
    bias,
    y,
    height,
    width,
    channels,
    out_height,
    out_width,
    top,
    left,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    strips = tl.cdiv(out_width, PIXELS)
    row = tl.program_id(0) // strips * 4
    column = tl.program_id(0) % strips * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.program_id(2).to(tl.int64)
    known = channel < channels
    start = tl.zeros([PIXELS, CHANNELS], tl.float32)
    if HAS_BIAS:
        start += tl.load(bias + channel, mask=known, other=0).to(tl.float32)[None, :]
    first, second, third, fourth = start, start, start, start
    x += image * height * width * channels
    for down in tl.static_range(KH + 3):
        source = row + down - top + tl.zeros([PIXELS], tl.int32)
        inside = (source >= 0) & (source < height)
        for across in tl.static_range(KW):
            place = column + across - left
            mask = (inside & (place >= 0) & (place < width))[:, None] & known[None, :]
            read = tl.load(x + (source * width + place)[:, None] * channels + channel[None, :], mask=mask, other=0)
            read = read.to(tl.float32)
            if down < KH:
                tap = tl.load(taps + (down * KW + across) * channels + channel, mask=known, other=0)
                first += read * tap.to(tl.float32)[None, :]
            if (down >= 1) & (down < KH + 1):
                tap = tl.load(taps + ((down - 1) * KW + across) * channels + channel, mask=known, other=0)
                second += read * tap.to(tl.float32)[None, :]
            if (down >= 2) & (down < KH + 2):
                tap = tl.load(taps + ((down - 2) * KW + across) * channels + channel, mask=known, other=0)
                third += read * tap.to(tl.float32)[None, :]
            if down >= 3:
                tap = tl.load(taps + ((down - 3) * KW + across) * channels + channel, mask=known, other=0)
                fourth += read * tap.to(tl.float32)[None, :]
    y += image * out_height * out_width * channels
    place = (row * out_width + column)[:, None] * channels + channel[None, :]
    rows = row + tl.zeros([PIXELS], tl.int32)
    inside = column < out_width
    step = out_width * channels
    kind = y.dtype.element_ty
    tl.store(y + place + 0 * step, first.to(kind), mask=(inside & (rows + 0 < out_height))[:, None] & known[None, :])
    tl.store(y + place + 1 * step, second.to(kind), mask=(inside & (rows + 1 < out_height))[:, None] & known[None, :])
    tl.store(y + place + 2 * step, third.to(kind), mask=(inside & (rows + 2 < out_height))[:, None] & known[None, :])
    tl.store(y + place + 3 * step, fourth.to(kind), mask=(inside & (rows + 3 < out_height))[:, None] & known[None, :])


def depthwise(
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    padding: list[int],
    y: torch.Tensor,
) -> torch.Tensor:
    """A convolution of each channel with a window of its own, summed in float32.

    Args:
        x: [N, H, W, C], contiguous.
        taps: [KH, KW, C], contiguous.
        bias: [C].
        padding: zeros above and below, and on both sides.
        y: where the result goes, contiguous; returned.
    """
    count, height, width, channels = x.shape
    window_height, window_width, _ = taps.shape
    _, out_height, out_width, _ = y.shape
    grid = (triton.cdiv(out_width, _PIXELS) * triton.cdiv(out_height, 4), triton.cdiv(channels, _CHANNELS), count)
    if y.numel():
        _four_rows[grid](
            *(x, taps, bias, y, height, width, channels, out_height, out_width, *padding),
            KH=window_height,
            KW=window_width,
            PIXELS=_PIXELS,
            CHANNELS=_CHANNELS,
            HAS_BIAS=bias is not None,
            num_warps=_WARPS,
        )
    return y
