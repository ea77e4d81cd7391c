"""Rows of torch2trt/converters/bags.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import Dim

from tests import torch_can
from tests.cases import normal, together
from tests.harness import OpCase

TABLE, BIG = normal(9, 3), normal(50, 16)
IDS = torch.tensor([0, 8, 2, 3, 3, 1, 2, 2, 7, 5])
STARTS = torch.tensor([0, 3, 3, 4, 10])
MODES = ("sum", "mean", "max")


def bags(**kwargs: Any) -> Callable[..., tuple[Any, ...]]:
    return together(
        *(
            lambda ids, table, *starts, mode=mode: F.embedding_bag(ids, table, *starts, mode=mode, **kwargs)
            for mode in MODES
        )
    )


WEIGHTED = together(
    lambda ids, table, starts, w: F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=w),
    lambda ids, table, starts, w: F.embedding_bag(
        ids.reshape(2, 5), table, mode="sum", per_sample_weights=w.reshape(2, 5), padding_idx=3
    ),
)


def segments(**kwargs: Any) -> Callable[..., tuple[Any, ...]]:
    """Every reduction, from its own start and from a given one."""
    return together(
        *(
            lambda data, lengths, how=how, first=first: torch.segment_reduce(
                data, how, initial=first, **{**({"lengths": lengths} if lengths is not None else {}), **kwargs}
            )
            for how in ("sum", "mean", "max", "min", "prod")
            for first in (None, 1.5)
        )
    )


def between(**kwargs: Any) -> Callable[..., tuple[Any, ...]]:
    return lambda data, offsets: segments(offsets=offsets, **kwargs)(data, None)


BATCH = Dim("batch", min=1, max=6)
LENGTHS = torch.tensor([3, 0, 4, 1, 0])
LINES = torch.tensor([[2, 0, 3], [5, 0, 0]])
FAR = torch.full((25,), 168)

CASES = [
    OpCase("bags", bags(), (IDS, TABLE, STARTS)),
    OpCase("bags-last", bags(include_last_offset=True), (IDS, TABLE, STARTS)),
    OpCase("bags-padding", bags(padding_idx=2), (IDS, TABLE, STARTS)),
    OpCase("bags-int32-half", bags(padding_idx=-2), (IDS.int(), TABLE.half(), STARTS.int()), weights=(1,)),
    OpCase("bags-weighted", WEIGHTED, (IDS, TABLE, STARTS, normal(10))),
    OpCase("bags-constant", bags(), (IDS, TABLE, STARTS), weights=(1, 2)),
    OpCase("bags-even", bags(padding_idx=2), (IDS.reshape(2, 5), TABLE), weights=(1,)),
    OpCase("bags-even-dynamic", bags(), (IDS.reshape(2, 5), TABLE), weights=(1,), dynamic={0: {0: (1, 6), 1: (1, 7)}}),
    OpCase("bags-dynamic", bags(padding_idx=2), (IDS, TABLE, STARTS[:4]), weights=(1,), dynamic={0: {0: (10, 40)}}),
    OpCase(
        "bags-many",
        bags(),
        (torch.arange(5000) % 50, BIG, torch.arange(60) ** 2),
        weights=(1,),
        dynamic={0: {0: Dim("entries", min=3600, max=9000)}},
    ),
    OpCase(
        "bags-many-padding", bags(padding_idx=4), (torch.arange(5000) % 50, BIG, torch.arange(70) ** 2), weights=(1,)
    ),
    OpCase(
        "bags-of-training",
        lambda ids, table, starts: torch.ops.aten._embedding_bag(table, ids, starts)[1],
        (IDS, TABLE, STARTS),
        unsupported="only the reduced embeddings",
    ),
    OpCase("segments", segments(), (normal(8), LENGTHS)),
    OpCase("segments-wide", segments(), (normal(8, 3, 2), LENGTHS.int())),
    OpCase("segments-inner", segments(axis=1), (normal(2, 5, 3), LINES)),
    OpCase("segments-last", segments(axis=-1), (normal(2, 5), LINES), needs=torch_can.trace_last_segments),
    OpCase(
        "segments-negative",
        segments(axis=-2),
        (normal(2, 5, 3), LINES),
        unsupported="axis counted from the front",
        needs=torch_can.trace_last_segments,
    ),
    OpCase("segments-some", segments(unsafe=True), (normal(12, 2), LENGTHS)),
    OpCase("segments-one", segments(), (normal(1), LENGTHS[3:4])),
    OpCase("segments-empty", segments(), (normal(0, 2), LENGTHS * 0)),
    OpCase("segments-half", segments(), (normal(8, 3).half(), LENGTHS)),
    OpCase("segments-infinite", segments(), (torch.tensor([1.0, -torch.inf, 2, -torch.inf] * 2), LENGTHS)),
    OpCase("segments-offsets", between(), (normal(9, 2), torch.tensor([1, 3, 3, 7]))),
    OpCase("segments-offsets-inner", between(axis=1), (normal(2, 5), torch.tensor([[0, 2, 5], [1, 1, 4]]))),
    OpCase("segments-many", lambda x, n: torch.segment_reduce(x, "mean", lengths=n), (normal(4200, 40), FAR)),
    OpCase(
        "segments-dynamic",
        segments(unsafe=True),
        (normal(10, 2), LENGTHS),
        dynamic={0: {0: (9, 40)}, 1: {0: (1, 5)}},
    ),
    OpCase(
        "segments-rows-dynamic",
        segments(axis=1),
        (normal(2, 5, 3), LINES),
        dynamic={0: {0: BATCH}, 1: {0: BATCH}},
    ),
]
