"""Rows of torch2trt/converters/bags.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import Dim

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
]
