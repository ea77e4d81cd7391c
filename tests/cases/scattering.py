"""Rows of torch2trt/converters/scattering.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.export import Dim

from tests.cases import normal, together
from tests.harness import OpCase

aten = torch.ops.aten

X, Y = normal(2, 5, 4), normal(2, 5, 4, seed=1)
INTS = torch.arange(40).reshape(2, 5, 4)
FLAGS = X > 0
PICKS, NEGATIVE = torch.tensor([2, 0, 1, 3]), torch.tensor([-1, 0, 1, 2])
BOTH = {0: {0: (1, 4), 1: (4, 8)}}

# Equal writes to equal places, in whatever order.
MANY_PICKS, ENTRIES = torch.arange(700) % 5, Dim("entries", min=1, max=2000)
MORE_WRITES = together(
    lambda x, i, y: x.index_put((i,), i.unsqueeze(1) * x[:1]),
    lambda x, i, y: x.scatter(0, i.unsqueeze(1).expand_as(y), i.unsqueeze(1) + 0 * y),
)


def writing(*places: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[..., Any]:
    """Functions that write into copies of their first argument."""

    def write(place: Callable[[torch.Tensor, torch.Tensor], Any], x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        place(x, i)
        return x

    return together(*(lambda x, i, place=place: write(place, x, i) for place in places))


def put(key: Callable[[torch.Tensor], Any], value: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    return lambda x, i: x.__setitem__(key(i), value(x.clone()))


SLICES = writing(
    put(lambda i: (slice(None), slice(1, 3)), lambda x: x[:, 2:4]),
    put(lambda i: (slice(None), slice(0, 2)), lambda x: x[:, -2:]),
    put(lambda i: (slice(None), slice(-2, None)), lambda x: x[:, :2]),
    put(lambda i: (slice(None), slice(1, -1)), lambda x: 3),
    put(lambda i: (0, slice(1, None)), lambda x: x[0, 0]),
    put(lambda i: (slice(None), -1), lambda x: x[:, 0]),
    put(lambda i: (slice(None), 2, 1), lambda x: x[0, 0, 0]),
    put(lambda i: slice(None), lambda x: x[:, :1]),
)
STEPS = writing(
    put(lambda i: (slice(None), slice(None, None, 2)), lambda x: x[:, :3]),
    put(lambda i: (slice(None), slice(1, None, 3)), lambda x: 1),
)
INDICES = writing(
    put(lambda i: (slice(None), i), lambda x: x[:, 1:]),
    put(lambda i: i[1:3], lambda x: x.flip(0)),
    put(lambda i: (slice(None), i, i), lambda x: x[:, 0]),
    put(lambda i: (slice(0, 1), i, i), lambda x: 1),
    put(lambda i: (i[1:2], slice(None), i), lambda x: x[0].T),
    put(lambda i: (slice(None), i[:, None], i), lambda x: x[:, 1:]),
    put(lambda i: (..., i), lambda x: x[0, 0]),
    put(lambda i: (slice(None), [0, 3]), lambda x: x[:, 3:]),
)
COPIES = together(lambda x, i: x.index_copy(1, i, x[:, 1:]), lambda x, i: x.index_fill(2, i[:2], 1))
MASKS = writing(
    put(lambda mask: mask, lambda x: 2),
    put(lambda mask: mask, lambda x: x[0, 0, 0]),
    put(lambda mask: mask[:, :, 0], lambda x: x[0, 0]),
    put(lambda mask: mask[0, :2, 0], lambda x: x[1, :1]),
)
# As many values as there are True ones.
IN_ORDER = together(
    lambda x, mask: x.index_put((mask,), torch.arange(20).to(x.dtype)),
    lambda x, mask: x.index_put((mask,), torch.arange(20).to(x.dtype), accumulate=True),
    lambda x, mask: aten.index_put(x, [None, mask[0, :, 0]], x[:, :5]),
    lambda x, mask: aten.index_put(x, [None, mask[0, :, 0]], x[0, :1], accumulate=True),
    lambda x, mask: aten.index_put(x, [None, None, mask[0, 0]], x[0, :1, :2]),
    lambda x, mask: aten.index_put(x, [None, mask[0]], x.flatten()[:10]),
    lambda x, mask: x.index_put((mask[:, :, 0],), x[0, :1]),
)
EVERY_OTHER = (torch.arange(40) % 2 == 0).reshape(2, 5, 4)
MASKED_SCATTERS = together(
    lambda x, mask, y: x.masked_scatter(mask, y),
    lambda x, mask, y: x[0, 0].masked_scatter(mask, y),
    lambda x, mask, y: x.masked_scatter(mask[:, :, :1], y),
    lambda x, mask, y: x.masked_scatter(mask[:, :1].expand(2, 5, 4), y.flatten()),
    lambda x, mask, y: x.masked_scatter(mask[:, :1, 0].unsqueeze(-1).expand(2, 5, 4), y[0]),
    lambda x, mask, y: x.masked_scatter(mask[0, 0, 0], y),
)
SCATTERS = together(
    lambda x, i: x.scatter(1, i.reshape(1, 1, 4), x.flip(1)),
    lambda x, i: x.scatter(1, i.reshape(1, 1, 4).expand(2, 1, 4), 1),
    lambda x, i: x.scatter(-1, i[:3].reshape(1, 1, 3), x[..., 1:]),
)

MASKED_READS = writing(
    put(lambda x: x < 0, lambda x: x[x < 0] * 0.5),
    put(lambda x: x > 1, lambda x: (x.flip(1)[x > 1].clamp(-1, 1) * 2 - 1).sin()),
    put(lambda x: x[..., 0] < 0, lambda x: x[x[..., 0] < 0] + x[0, 0]),
    put(lambda x: (slice(None), x[0, :, 0] < 0), lambda x: x[:, x[0, :, 0] < 0] * x[0, 0]),
)


def masked_twice(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[mask] = x[mask].log() - x.flip(0)[mask]
    x[~mask, 1:] = x[~mask, 1:].exp()
    return x


TOKENS = {0: {0: Dim("batch", min=1, max=3), 1: Dim("length", min=2, max=8)}}
TOKENS[1] = TOKENS[0]


def put_both(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.index_put((mask[:, 0, 0], torch.tensor([1])), x[0, 0, 0])


def image_features(x: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return x.masked_scatter(mask.unsqueeze(-1).expand_as(x), features.repeat(3, 1))


DIAGONALS = together(
    lambda x, y: x.diagonal_scatter(y[:, 0, :], 0, 1, 2),
    lambda x, y: x.diagonal_scatter(y[:, 0, :2], 2, -2, -1),
    lambda x, y: x.diagonal_scatter(y[:, 0, :], 1, 2, 1),
    lambda x, y: x.diagonal_scatter(y[:, :3, 0], -2, 1, 2),
    lambda x, y: x.diagonal_scatter(y[0, :, :2], 0, 0, 2),
    lambda x, y: x[0].clone().fill_diagonal_(7),
)

CASES = [
    OpCase("write-slices", SLICES, (X, PICKS)),
    OpCase("write-slices-int", SLICES, (INTS, PICKS)),
    OpCase("write-slices-bool", SLICES, (FLAGS, PICKS)),
    OpCase("write-slices-dynamic", SLICES, (X, PICKS), dynamic=BOTH),
    OpCase("write-steps", STEPS, (X, PICKS)),
    OpCase("write-steps-dynamic", STEPS, (X, PICKS), dynamic={0: {0: (1, 4)}}),
    OpCase("write-steps-of-dynamic", STEPS, (X, PICKS), dynamic=BOTH, raises="T2T"),
    OpCase("write-indices", INDICES, (X, PICKS)),
    OpCase("write-indices-constant", INDICES, (X, PICKS), weights=(1,)),
    OpCase("write-indices-negative", INDICES, (X, NEGATIVE)),
    OpCase("write-indices-half", INDICES, (X.half(), PICKS)),
    OpCase("write-indices-int64", INDICES, (INTS, PICKS.int())),
    OpCase("write-indices-bool", INDICES, (FLAGS, PICKS)),
    OpCase(
        "write-indices-dynamic", writing(put(lambda i: (slice(None), i), lambda x: x[:, :4])), (X, PICKS), dynamic=BOTH
    ),
    OpCase("index_copy", COPIES, (X, PICKS)),
    OpCase("write-mask", MASKS, (X, FLAGS)),
    OpCase("write-mask-half", MASKS, (X.half(), FLAGS)),
    OpCase("write-mask-in-order", IN_ORDER, (X, EVERY_OTHER)),
    OpCase("write-mask-in-order-int64", IN_ORDER, (INTS, EVERY_OTHER)),
    OpCase("write-mask-and-index", put_both, (X, FLAGS), unsupported="depends on their values"),
    OpCase("write-mask-of-masked", lambda x: MASKED_READS(x, x), (X,)),
    OpCase("write-mask-of-masked-dynamic", lambda x: MASKED_READS(x, x), (X,), dynamic=BOTH),
    OpCase("write-mask-of-masked-twice", masked_twice, (X[0], X[0, :, 0] > 0)),
    OpCase("write-mask-of-unmasked", lambda x, m: x.index_put((m,), x[m].cumsum(0)), (X, FLAGS), rtx="depends"),
    OpCase("masked_scatter", MASKED_SCATTERS, (X, FLAGS, Y)),
    OpCase("masked_scatter-int64", MASKED_SCATTERS, (INTS, FLAGS, INTS.flip(1))),
    OpCase("masked_scatter-half", MASKED_SCATTERS, (X.half(), FLAGS, Y.half())),
    OpCase("masked_scatter-dynamic", image_features, (X, X[:, :, 0] > 0, normal(8, 4)), dynamic=TOKENS),
    OpCase("diagonal_scatter", DIAGONALS, (X, Y)),
    OpCase("diagonal_scatter-int64", DIAGONALS, (INTS, INTS.flip(1))),
    OpCase("diagonal_scatter-bool", DIAGONALS, (FLAGS, Y > 0)),
    OpCase(
        "diagonal_scatter-dynamic",
        lambda x, y: x.diagonal_scatter(y[:, 0, :2], 2, 1, 2),
        (X, Y),
        dynamic={0: {0: Dim("batch", min=1, max=5), 1: (2, 8)}, 1: {0: Dim("batch", min=1, max=5)}},
    ),
    OpCase("scatters", SCATTERS, (X, PICKS)),
    OpCase("scatters-int", SCATTERS, (INTS, PICKS)),
    OpCase("scatters-bool", SCATTERS, (FLAGS, PICKS)),
    OpCase("scatters-half", SCATTERS, (X.half(), PICKS)),
    OpCase("scatter-int32-indices", lambda x, i: x.scatter(1, i.reshape(1, 1, 4).long(), 3.0), (X, PICKS.int())),
    OpCase("more-writes-than-rows", MORE_WRITES, (X[0], MANY_PICKS, normal(700, 4))),
    OpCase(
        "more-writes-than-rows-dynamic",
        MORE_WRITES,
        (X[0], MANY_PICKS, normal(700, 4)),
        dynamic={1: {0: ENTRIES}, 2: {0: ENTRIES}},
    ),
]
