"""Attention among few tokens in Triton; apart, since Triton is there on few systems.

A program computes some queries of one head, with all of its keys at once or with one block of them after the other, and
the same of several entries of the batch in turn: what is added to the scores is read once for them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tiling(NamedTuple):
    """How the work is cut.

    Attributes:
        queries: of one product; 16 or more, as of the keys.
        keys: of one product; fewer than there are: in blocks, with a running maximum.
        entries: of the batch that one program computes at most.
        warps, stages: of Triton's.
    """

    queries: int
    keys: int
    entries: int
    warps: int
    stages: int


MOST_TOKENS = 256
# By the power of two that holds the tokens; the least also for fewer.
TILINGS = {64: Tiling(64, 64, 6, 4, 3), 128: Tiling(64, 64, 2, 4, 2), 256: Tiling(64, 32, 1, 4, 3)}
# Entries share a program where there are as many programs still: some for each processor of a large GPU.
_PROGRAMS = 512
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit  # type: ignore[untyped-decorator]
def _added(bias, row, key, L: tl.constexpr, S: tl.constexpr):  # type: ignore[no-untyped-def]
    """What scores are changed by, for powers of two: minus infinity where there is no key."""
    # Rows of S, a multiple of eight, are read eight numbers at a time.
    known = (row < L)[:, None] & (key < S)[None, :]
    read = tl.load(bias + row[:, None] * S + key[None, :], mask=known, other=0).to(tl.float32) * _LOG2_E
    return tl.where((key < L)[None, :], read, float("-inf"))


@triton.jit  # type: ignore[untyped-decorator]
def _rows(start, row, column, step, L: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """A head of tokens, with zeros around."""
    known = (row < L)[:, None] & (column < WIDTH)[None, :]
    return tl.load(start + row[:, None] * step + column[None, :], mask=known, other=0)


# One kernel for all sizes of batches.
@triton.jit(do_not_specialize=["count", "entries"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    packed,
    bias,
    y,
    count,
    entries,
    period,
    channels,
    first_query,
    first_key,
    first_value,
    scale,
    HEADS: tl.constexpr,
    BIASES: tl.constexpr,
    L: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # Heads of the same tokens are neighbours, so that the lines that they share are in the cache.
    head = tl.program_id(0) % HEADS
    blocks: tl.constexpr = (L + BLOCK_Q - 1) // BLOCK_Q
    row = tl.program_id(0) // HEADS % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place = tl.program_id(0) // (HEADS * blocks)
    phase = place % period
    first = place // period * entries * period + phase
    key, column, result = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    kind = y.dtype.element_ty
    if BIASES > 0:
        bias += (phase * BIASES + head % BIASES) * L * S
        # Larger ones would not fit into registers beside the scores.
        if BLOCK_K <= 64 and BLOCK_K >= L:
            kept = _added(bias, row, key, L, S)
    for n in range(first, tl.minimum(first + entries * period, count), period):
        tokens = packed + tl.cast(n, tl.int64) * L * channels
        q = _rows(tokens + first_query + head * D, row, column, channels, L, D)
        highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        sums = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
        for start in range(0, L, BLOCK_K):
            k = _rows(tokens + first_key + head * D, start + key, column, channels, L, D)
            v = _rows(tokens + first_value + head * V, start + key, result, channels, L, V)
            s = tl.dot(q, tl.trans(k)) * scale
            if BIASES > 0:
                if BLOCK_K <= 64 and BLOCK_K >= L:
                    s += kept
                else:
                    s += _added(bias, row, start + key, L, S)
            elif L % BLOCK_K:
                s = tl.where((start + key < L)[None, :], s, float("-inf"))
            if BLOCK_K >= L:
                highest = tl.max(s, 1)
            else:
                before = highest
                highest = tl.maximum(before, tl.max(s, 1))
            # Where a query attends to nothing.
            base = tl.where(highest == float("-inf"), 0.0, highest) if BIASES > 0 else highest
            p = tl.exp2(s - base[:, None])
            if BLOCK_K >= L:
                total = tl.sum(p, 1)
                sums = tl.dot(p.to(kind), v)
            else:
                shrunk = tl.exp2(before - base)
                total = total * shrunk + tl.sum(p, 1)
                sums = tl.dot(p.to(kind), v, sums * shrunk[:, None])
        made = sums / tl.where(total > 0, total, 1.0)[:, None]
        to = y + (tl.cast(n, tl.int64) * L + row[:, None]) * (HEADS * V) + head * V + result[None, :]
        tl.store(to, made.to(kind), mask=(row < L)[:, None] & (result < V)[None, :])


def tiling_of(length: int, width: int) -> Tiling:
    """How attention among so many tokens is cut, of heads of a width."""
    found = TILINGS[max(64, triton.next_power_of_2(length))]
    # All tokens of wide heads, read ahead, are more than most GPUs hold in shared memory.
    return found._replace(stages=1) if width > 64 and length <= found.keys else found


def short_attention(
    packed: torch.Tensor,
    starts: list[int],
    heads: int,
    width: int,
    value_width: int,
    bias: torch.Tensor | None,
    scale: float,
    y: torch.Tensor,
    tiling: Tiling | None = None,
) -> torch.Tensor:
    """Attention among the tokens of each entry of a batch; scores and sums in float32.

    Args:
        packed: [N, L, C], contiguous; L of :data:`MOST_TOKENS` at most.
        starts: the first channels of queries, keys and values.
        heads: H.
        width: E, channels of a query and a key.
        value_width: V, channels of a value.
        bias: [M, H or 1, L, S], contiguous, of which L columns are added to scores, of entry n those of n % M. Read
            fast where S is a multiple of eight.
        scale: of the scores.
        y: [N, L, H, V], contiguous, where the result goes; returned.
        tiling: another than :func:`tiling_of` chooses.
    """
    count, length, channels = packed.shape
    tiling = tiling or tiling_of(length, max(width, value_width))
    period, biases, _, step = (1, 0, 0, 0) if bias is None else bias.shape
    blocks = triton.cdiv(length, tiling.queries)
    entries = max(1, min(tiling.entries, heads * blocks * count // _PROGRAMS))
    programs = heads * blocks * period * triton.cdiv(count, period * entries)
    if y.numel():
        _attend[(programs,)](
            *(packed, packed if bias is None else bias, y, count, entries, period, channels, *starts),
            scale * _LOG2_E.value,
            HEADS=heads,
            BIASES=biases,
            L=length,
            S=step,
            D=width,
            V=value_width,
            BLOCK_Q=tiling.queries,
            BLOCK_K=tiling.keys,
            BLOCK_D=max(16, triton.next_power_of_2(width)),
            BLOCK_V=max(16, triton.next_power_of_2(value_width)),
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
    return y
