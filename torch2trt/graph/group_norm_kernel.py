"""Normalisation of groups of channels of channels-last images in Triton; apart, since Triton is there on few systems.

Two kernels over the same tiles. The first reduces each to a mean and a sum of squared distances from it for each group,
in float32 and from numbers that a pixel of the tile was subtracted from, so that a mean far from zero costs no digits.
The second merges what the tiles of an image say, and normalises.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        lanes: channels that a program reads at once, about; always whole groups.
        elements: of the block that a program holds in registers.
        warps: of a program.
        programs: about so many are wanted in all.
    """

    lanes: int = 64
    elements: int = 4096
    warps: int = 4
    programs: int = 512


TILING = Tiling()
# A program of the second kernel reads what all tiles of an image say of its groups, into registers.
_MOST_TILES = 256
_MOST_GROUPS = 8
# A sector of memory holds 16 halves, and a thread reads 8 at once.
_ALIGNED = 16, 8, 1


@triton.jit  # type: ignore[untyped-decorator]
def _members(WIDTH: tl.constexpr, GROUPS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """[GROUPS, LANES]: whether a lane's channel is of a group."""
    group = tl.arange(0, LANES) // WIDTH
    return tl.arange(0, GROUPS)[:, None] == group[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _reduce(  # type: ignore[no-untyped-def]
    x,
    shift,
    moments,
    pixels,
    span,
    tiles,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
):
    tile, chunk, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, LANES)
    channel = chunk * CHUNK + lane
    known = (lane < CHUNK) & (channel < CHANNELS)
    start = tile * span
    end = tl.minimum(start + span, pixels)
    x += image * pixels * CHANNELS
    base = tl.load(x + start * CHANNELS + channel, mask=known, other=0).to(tl.float32)
    total = tl.zeros([PIXELS, LANES], tl.float32)
    squares = tl.zeros([PIXELS, LANES], tl.float32)
    for first in range(start, end, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        inside = (pixel < end)[:, None] & known[None, :]
        read = tl.load(x + pixel[:, None] * CHANNELS + channel[None, :], mask=inside, other=0).to(tl.float32)
        distance = tl.where(inside, read - base[None, :], 0.0)
        total += distance
        squares += distance * distance
    count = (end - start).to(tl.float32)
    mean = tl.sum(total, 0) / count
    spread = tl.maximum(tl.sum(squares, 0) - count * mean * mean, 0.0)
    mean += base
    if HAS_SHIFT:
        mean += tl.load(shift + image * CHANNELS + channel, mask=known, other=0).to(tl.float32)
    # From channels to groups.
    member = _members(WIDTH, GROUPS, LANES) & known[None, :]
    means = tl.sum(tl.where(member, mean[None, :], 0.0), 1) / WIDTH
    apart = mean[None, :] - means[:, None]
    spreads = tl.sum(tl.where(member, spread[None, :] + count * apart * apart, 0.0), 1)
    group = chunk * (CHUNK // WIDTH) + tl.arange(0, GROUPS)
    own = (tl.arange(0, GROUPS) < CHUNK // WIDTH) & (group < CHANNELS // WIDTH)
    moments += (image * (CHANNELS // WIDTH) + group) * 2 * tiles + tile
    tl.store(moments, means, mask=own)
    tl.store(moments + tiles, spreads, mask=own)


@triton.jit  # type: ignore[untyped-decorator]
def _normalize(  # type: ignore[no-untyped-def]
    x,
    shift,
    moments,
    weight,
    bias,
    y,
    pixels,
    span,
    tiles,
    eps,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
    PIXELS: tl.constexpr,
    TILES: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
):
    tile, chunk, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = chunk * (CHUNK // WIDTH) + tl.arange(0, GROUPS)
    own = (tl.arange(0, GROUPS) < CHUNK // WIDTH) & (group < CHANNELS // WIDTH)
    other = tl.arange(0, TILES)
    moments += (image * (CHANNELS // WIDTH) + group)[:, None] * 2 * tiles + other[None, :]
    there = own[:, None] & (other < tiles)[None, :]
    counts = (tl.minimum(span, pixels - other * span) * WIDTH).to(tl.float32)
    counts = tl.where(there, counts[None, :], 0.0)
    whole = pixels * 1.0 * WIDTH
    means = tl.load(moments, mask=there, other=0)
    spreads = tl.load(moments + tiles, mask=there, other=0)
    # Distances from the first tile's mean, of which sums lose no digits.
    base = tl.sum(tl.where((other == 0)[None, :], means, 0.0), 1)
    mean = base + tl.sum(counts * (means - base[:, None]), 1) / whole
    apart = means - mean[:, None]
    variance = tl.sum(spreads + counts * apart * apart, 1) / whole
    inverse = 1 / tl.sqrt(variance + eps)
    # From groups to channels.
    lane = tl.arange(0, LANES)
    channel = chunk * CHUNK + lane
    known = (lane < CHUNK) & (channel < CHANNELS)
    member = _members(WIDTH, GROUPS, LANES)
    center = tl.sum(tl.where(member, mean[:, None], 0.0), 0)
    scale = tl.sum(tl.where(member, inverse[:, None], 0.0), 0)
    if HAS_SHIFT:
        center -= tl.load(shift + image * CHANNELS + channel, mask=known, other=0).to(tl.float32)
    if HAS_WEIGHT:
        scale *= tl.load(weight + channel, mask=known, other=0).to(tl.float32)
    offset = tl.zeros([LANES], tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + channel, mask=known, other=0).to(tl.float32)
    start = tile * span
    end = tl.minimum(start + span, pixels)
    x += image * pixels * CHANNELS
    y += image * pixels * CHANNELS
    for first in range(start, end, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        inside = (pixel < end)[:, None] & known[None, :]
        place = pixel[:, None] * CHANNELS + channel[None, :]
        read = tl.load(x + place, mask=inside, other=0).to(tl.float32)
        found = (read - center[None, :]) * scale[None, :] + offset[None, :]
        if SILU:
            found = found * tl.sigmoid(found)
        tl.store(y + place, found.to(y.dtype.element_ty), mask=inside)


def group_norm(
    x: torch.Tensor,
    shift: torch.Tensor | None,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    *,
    silu: bool,
    out: torch.Tensor | None = None,
    tiling: Tiling = TILING,
) -> torch.Tensor:
    """Groups of channels with mean 0 and variance 1, computed in float32.

    Args:
        x: [N, C, H, W], channels-last.
        shift: [N, C], contiguous, which is added to each pixel before.
        num_groups: divides C.
        weight, bias: [C], contiguous.
        eps: is added to the variance.
        silu: whether ``y * sigmoid(y)`` follows.
        out: where the result goes, of the input's shape, channels-last; None: into memory of its own.
    """
    count, channels, height, width = x.shape
    y = torch.empty_like(x, memory_format=torch.channels_last) if out is None else out
    pixels = height * width
    if not y.numel():
        return y
    chunk = _chunk(channels, channels // num_groups, tiling.lanes)
    lanes = triton.next_power_of_2(chunk)
    chunks = triton.cdiv(channels, chunk)
    block = max(1, tiling.elements // lanes)
    tiles = min(triton.cdiv(tiling.programs, chunks * count), triton.cdiv(pixels, block), _MOST_TILES)
    span = triton.cdiv(triton.cdiv(pixels, tiles), block) * block
    tiles = triton.cdiv(pixels, span)
    moments = torch.empty(count, num_groups, 2, tiles, dtype=torch.float32, device=x.device)
    shared = {
        "CHANNELS": channels,
        "WIDTH": channels // num_groups,
        "CHUNK": chunk,
        "LANES": lanes,
        "GROUPS": triton.next_power_of_2(chunk * num_groups // channels),
        "PIXELS": block,
        "HAS_SHIFT": shift is not None,
        "num_warps": tiling.warps,
    }
    grid = (tiles, chunks, count)
    _reduce[grid](x, shift, moments, pixels, span, tiles, **shared)
    _normalize[grid](
        *(x, shift, moments, weight, bias, y, pixels, span, tiles, eps),
        **shared,
        TILES=triton.next_power_of_2(tiles),
        HAS_WEIGHT=weight is not None,
        HAS_BIAS=bias is not None,
        SILU=silu,
    )
    return y


def _chunk(channels: int, width: int, lanes: int) -> int:
    """How many channels a program has: whole groups, as many as there are lanes for, best aligned in memory."""
    most = max(width, min(lanes, max(width * _MOST_GROUPS, _ALIGNED[0]), channels))
    fitting = range(most // width * width, 0, -width)
    return next(chunk for step in _ALIGNED for chunk in fitting if chunk % step == 0)
