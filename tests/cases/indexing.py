"""Rows of torch2trt/converters/indexing.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 5, 4)
INTS = torch.arange(40).reshape(2, 5, 4)
FLAGS, BYTES = X > 0, INTS.to(torch.uint8)
TABLE, IDS = normal(7, 3), torch.tensor([[0, 6, 2], [3, 3, 1]])
PICKS, NEGATIVE = torch.tensor([2, 0, 1, 3]), torch.tensor([-1, 2, -3, 0])
BOTH = {0: {0: (1, 4), 1: (4, 8)}}

READS = together(
    lambda x, i: x.index_select(1, i),
    lambda x, i: x[:, i],
    lambda x, i: x[..., i],
    lambda x, i: x[:, i[:, None]],
    lambda x, i: x[:, i, i],
    lambda x, i: x[i % 2, :, i],
    lambda x, i: x[i[:, None] % 2, i],
    lambda x, i: x[:, -1 - i],
    lambda x, i: x[:, None, i, 1:3],
    lambda x, i: x.gather(1, i.reshape(1, 1, 4).expand(2, 3, 4)),
    lambda x, i: x.gather(2, i.reshape(1, 4, 1)[:, :, :1]),
    lambda x, i: torch.take_along_dim(x, i.reshape(1, 1, 4), 1),
    lambda x, i: x.take(i * 3),
    lambda x, i: x[:, [0, 2, -1]],
)
DYNAMIC_READS = together(
    lambda x, i: x.index_select(1, i),
    lambda x, i: x[:, i],
    lambda x, i: x[:, -1 - i],
    lambda x, i: x[:, i, i],
    lambda x, i: x[torch.arange(x.shape[0]), -1],
    lambda x, i: x[torch.arange(x.shape[0]), x[:, :, 0].argmax(-1)],
    lambda x, i: x[torch.arange(x.shape[0])[:, None], :, i],
    lambda x, i: x.gather(1, i.reshape(1, 1, 4).expand(x.shape[0], 2, 4)),
)
PLACES = together(
    lambda x: x.unfold(1, 2, 1),
    lambda x: x.unfold(2, 3, 1),
    lambda x: x.unfold(1, 2, 3),
    lambda x: x[0, 0].unfold(0, 2, 2),
    lambda x: x.diagonal(0, 1, 2),
    lambda x: x.diagonal(1, 0, -1),
    lambda x: x[0].diagonal(-2),
    lambda x: x[0].diag(1),
    torch.tril,
    torch.triu,
    lambda x: x.tril(-1),
    lambda x: x[0].triu(2),
)

# Slices and windows, once a pass has seen to them.
STRIDED = together(
    lambda x: x.as_strided((2, 4, 5), (20, 1, 4)),
    lambda x: x.as_strided((2, 3), (20, 5), 7),
    lambda x: x.as_strided((3, 8), (16, 1)),
    lambda x: x.as_strided((7, 3, 2), (4, 2, 1)),
    lambda x: x.as_strided((3, 3, 3), (3, 2, 1)),
    lambda x: (x.mT * 2).as_strided((3, 8), (16, 1)),
    lambda x: x.as_strided_scatter(x.flatten()[:6].reshape(2, 3), (2, 3), (20, 5)),
    lambda x: x.as_strided_scatter(x.flatten()[:3], (3,), (5,), 1),
)


def repeated(x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What is read also goes to a pointwise layer beside a transposition and a reshape."""
    read = x[:, i]
    return read, read.relu(), read.sigmoid().transpose(0, 2).flatten(1), read.cumsum(0)


REPEATED = normal(3, 4, 2).half(), torch.tensor([0, 3, 3, 1])


CASES = [
    OpCase("embedding", F.embedding, (IDS, TABLE), weights=(1,)),
    OpCase("embedding-int32-half", F.embedding, (IDS.int(), TABLE.half()), {"padding_idx": 0}, weights=(1,)),
    OpCase("embedding-dynamic", F.embedding, (IDS, TABLE), weights=(1,), dynamic={0: {0: (1, 4), 1: (1, 6)}}),
    OpCase("embedding-one", F.embedding, (torch.tensor(3), TABLE), weights=(1,)),
    OpCase("reads", READS, (X, PICKS)),
    OpCase("reads-constant", READS, (X, PICKS), weights=(1,)),
    OpCase("reads-of-bool", READS, (FLAGS, PICKS)),
    OpCase("reads-of-int32", READS, (INTS.int(), PICKS)),
    OpCase("reads-of-bytes", READS, (BYTES, PICKS)),
    OpCase("reads-of-half", READS, (X.half(), PICKS)),
    OpCase("reads-repeated-half", repeated, REPEATED, weights=(1,)),
    OpCase("reads-repeated-bfloat16", repeated, (REPEATED[0].bfloat16(), REPEATED[1])),
    OpCase("reads-repeated-half-dynamic", repeated, REPEATED, weights=(1,), dynamic={0: {0: (1, 5)}}),
    OpCase("reads-dynamic", DYNAMIC_READS, (X, PICKS), dynamic=BOTH),
    OpCase("read-negative", lambda x, j: (x[:, j], x[:, j, j], x.take(j)), (X, NEGATIVE)),
    OpCase("read-negative-int32", lambda x, j: x[:, j, j.flip(0)], (X, NEGATIVE.int()), weights=(1,)),
    OpCase("read-scalar-index", lambda x, i: x.index_select(1, i), (X, torch.tensor(2))),
    OpCase("read-of-scalar", lambda x, i: x.index_select(0, i), (torch.tensor(2.0), torch.tensor([0]))),
    OpCase("mask-half", lambda x, mask: x[mask], (X.half(), FLAGS), rtx="has a runner"),
    OpCase("gather-nothing", torch.gather, (X, 1, BYTES[:, :0])),
    OpCase("places", PLACES, (X,)),
    OpCase("places-int", PLACES, (INTS,)),
    OpCase("places-bool", PLACES, (FLAGS,)),
    OpCase("places-dynamic", PLACES, (X,), dynamic=BOTH),
    OpCase("im2col", F.unfold, (normal(2, 3, 5, 6), (2, 3), 1, (1, 0), (2, 1))),
    OpCase("strided", STRIDED, (X,)),
    OpCase("strided-int64", STRIDED, (INTS,)),
    OpCase(
        "strided-refused",
        lambda x: x.as_strided((2, 4), (4, 1), 0),
        (X.flatten()[4:],),
        unsupported="memory of an input begins",
    ),
    OpCase("one_hot", lambda i: (F.one_hot(i, 7), F.one_hot(i[0, 0], 7)), (IDS,)),
    OpCase("one_hot-dynamic", F.one_hot, (IDS, 7), dynamic={0: {1: (1, 5)}}),
]
