"""Rows of torch2trt/converters/shapes.py."""

from __future__ import annotations

import torch
from torch.export import Dim

from tests import torch_can
from tests.cases import normal, together
from tests.harness import OpCase

X = normal(2, 6, 4)
INTS = torch.arange(48).reshape(2, 6, 4)
FLAGS, BYTES, INT8 = X > 0, INTS.to(torch.uint8), (INTS - 9).to(torch.int8)
SCALAR = torch.tensor(1.5)
BATCH, BOTH = {0: {0: (1, 5)}}, {0: {0: (1, 5), 1: (4, 12)}}
ALL = {0: {0: (1, 5), 1: (4, 12), 2: (2, 6)}}
EVEN = {0: {1: 2 * Dim("half", min=1, max=6)}}

VIEWS = together(
    lambda x: x.reshape(-1, 4),
    lambda x: x.view(x.shape[0], 3, 2, 4),
    lambda x: x.flatten(1),
    lambda x: x.ravel(),
    lambda x: x.unsqueeze(1),
    lambda x: x.unsqueeze(-1).squeeze(-1),
    lambda x: x[:, None, :, None].squeeze((1, 3)),
    lambda x: x[:, None].squeeze(1),
    lambda x: x.unflatten(2, (2, 2)),
    lambda x: x.permute(2, 0, 1),
    lambda x: x.transpose(1, -1),
    lambda x: x.mT,
    lambda x: x.movedim(0, -1),
    lambda x: x.swapaxes(0, 2),
    lambda x: x[0].t(),
    lambda x: x[0].T,
)
DYNAMIC_VIEWS = together(
    lambda x: x.flatten(1),
    lambda x: x.flatten(0, 1),
    lambda x: x.reshape(-1),
    lambda x: x.view(x.shape[0], -1, 2, 2),
    lambda x: x.transpose(0, 1).reshape(x.shape[1], -1),
    lambda x: x.permute(2, 1, 0).unsqueeze(1),
    lambda x: x.reshape(x.shape[1], 2, x.shape[0], 2),
    lambda x: x.unsqueeze(0).squeeze(0),
    lambda x: x.unsqueeze(2),
)
EXPANSIONS = together(
    lambda x: x[:1].expand(3, -1, -1),
    lambda x: x[:, :1].expand(2, x.shape[0], 5, 4),
    lambda x: x[:1, :1].expand_as(x),
    lambda x: torch.broadcast_to(x, (2, *x.shape)),
    lambda x: torch.broadcast_tensors(x, x[:, :1]),
    lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
)
SLICES = together(
    lambda x: x[:, 1:3],
    lambda x: x[..., -2:],
    lambda x: x[:, :-1],
    lambda x: x[:, 1:-1],
    lambda x: x[:, ::2],
    lambda x: x[:, -4:-1:2],
    lambda x: x[:, 2:100],
    lambda x: x[:, -100:2],
    lambda x: x[:, 3:],
    lambda x: x[:, -1],
    lambda x: x[:, 2, 1],
    lambda x: x[:, 1 : 1 + 2, None],
    lambda x: x.narrow(1, 1, 2),
)
DYNAMIC_SLICES = together(
    SLICES,
    lambda x: x[:, x.shape[1] - 2 :],
    lambda x: x[:, : x.shape[1] - 2],
    lambda x: x[:, x.shape[1] // 2],
)
COMPUTED_SLICES = (
    lambda x: x[:, : x.shape[1] // 2],
    lambda x: x[:, x.shape[1] // 2 :],
    lambda x: x[:, -x.shape[0] :],
    lambda x: x[:, x.shape[0] : 7],
    lambda x: x[:, 5:],
)
SIZE_OF_SLICE = "" if torch_can.compute_ends_of_slices() else "the size of a slice"
PARTS = together(
    lambda x: x.split(4, 1),
    lambda x: x.split([1, 3, 2], 1),
    lambda x: x.chunk(4, 1),
    lambda x: x.unbind(-1),
    lambda x: x.tensor_split(4, 1),
    lambda x: x.tensor_split((1, 4), 1),
    lambda x: x.hsplit(3),
)
JOINS = together(
    lambda x: torch.cat([x, x[:, :2], x], 1),
    lambda x: torch.cat([x, x.new_empty(0)]),
    lambda x: torch.stack([x, x * 2], -1),
    lambda x: torch.stack([x, x]),
    lambda x: torch.hstack([x, x[:, :1]]),
    lambda x: torch.vstack([x, x]),
    lambda x: torch.column_stack([x, x]),
    lambda x: torch.dstack([x, x]),
)
REPETITIONS = together(
    lambda x: x.repeat(2, 1, 3),
    lambda x: x.repeat(2, 1, 1, 2),
    lambda x: x[:, :1].repeat(1, 3, 1),
    lambda x: x.tile(2),
    lambda x: torch.tile(x, (3, 1, 2)),
    lambda x: x.repeat_interleave(2, 1),
    lambda x: x.repeat_interleave(3, -1),
    lambda x: x.repeat_interleave(2),
)
ORDER = together(
    lambda x: x.roll(1, 1),
    lambda x: x.roll((-1, 2), (0, 2)),
    lambda x: x.roll((7, -9), (1, 1)),
    lambda x: x.roll(3),
    lambda x: x.flip(1),
    lambda x: x.flip((0, -1)),
    lambda x: x.fliplr(),
    lambda x: x.rot90(),
)

CASES = [
    OpCase("views", VIEWS, (X,)),
    OpCase("views-bool", VIEWS, (FLAGS,)),
    OpCase("views-bytes", VIEWS, (BYTES,)),
    OpCase("views-int8", VIEWS, (INT8,), tensorrt="torch.int8"),
    OpCase("views-bfloat16", VIEWS, (X.bfloat16(),)),
    OpCase("views-dynamic-batch", VIEWS, (X,), dynamic=BATCH),
    OpCase("views-dynamic", DYNAMIC_VIEWS, (X,), dynamic=BOTH),
    OpCase("views-scalar", together(lambda x: x.reshape(1, 1), lambda x: x.unsqueeze(0), lambda x: x.t()), (SCALAR,)),
    OpCase("squeeze-all", torch.squeeze, (X[:1, :, None],)),
    OpCase("expansions", EXPANSIONS, (X,)),
    OpCase("expansions-int", EXPANSIONS, (INTS,)),
    OpCase("expansions-dynamic", EXPANSIONS, (X,), dynamic=BOTH),
    OpCase("expand-scalar", lambda x: x.expand(2, 3), (SCALAR,)),
    OpCase("expand-to-sizes", lambda x: x[:, :, 0, None].expand(-1, -1, x.shape[0]), (X,), dynamic=BOTH),
    OpCase("slices", SLICES, (X,)),
    OpCase("slices-int32", SLICES, (INTS.to(torch.int32),)),
    OpCase("slices-bool", SLICES, (FLAGS,)),
    OpCase("slices-bytes", SLICES, (BYTES,)),
    OpCase("slices-int8", SLICES, (INT8,), tensorrt="torch.int8"),
    OpCase(
        "slices-int8-weight",
        lambda x, w: (x + w[1:2, 0], w.flip(0) * x[0, 0, 0]),
        (INT8, INT8 * 5),
        weights=(1,),
        tensorrt="torch.int8",
    ),
    OpCase("slices-dynamic", DYNAMIC_SLICES, (X,), dynamic=BOTH),
    *(
        OpCase(f"slices-computed-{number}", function, (X,), dynamic=BOTH, raises=SIZE_OF_SLICE)
        for number, function in enumerate(COMPUTED_SLICES)
    ),
    OpCase(
        "slice-of-unknown-sign",
        lambda x: x[:, x.shape[1] - 3 : x.shape[1] - 1],
        (X,),
        dynamic=BOTH,
        unsupported="may be negative or not",
    ),
    OpCase("parts", PARTS, (X,)),
    OpCase("parts-dynamic-batch", PARTS, (X,), dynamic=BATCH),
    OpCase("chunk-dynamic", lambda x: (x.chunk(2, 1), x.split(x.shape[1] // 2, 1)), (X,), dynamic=EVEN),
    OpCase(
        "split-to-sizes", lambda x: x.split((x.shape[0], x.shape[1] - x.shape[0]), 1), (X,), dynamic={0: {1: (4, 9)}}
    ),
    OpCase(
        "split-at-values",
        torch.tensor_split,
        (X, torch.tensor([1, 2])),
        unsupported="a number taken from the values of a tensor",
    ),
    OpCase("joins", JOINS, (X,)),
    OpCase("joins-bytes", JOINS, (BYTES // 2,)),
    OpCase("joins-int8", JOINS, (INT8,), tensorrt="torch.int8"),
    OpCase("joins-dynamic", JOINS, (X,), dynamic=BOTH),
    OpCase("roll-of-nothing", lambda x: (x.roll(1, 1), x.roll((2, 1), (0, 2)), x.roll(3)), (X[:, :0],)),
    OpCase("cat-of-nothing", lambda x, y: torch.cat([x, y, y], 1), (INTS[0, 0, :0], X[:, :0])),
    OpCase("cat-promoted", lambda x, y: (torch.cat([x, y]), torch.stack([y, x])), (X.half(), INTS)),
    OpCase("cat-bool", lambda x, y: torch.cat([x, y], -1), (FLAGS, FLAGS)),
    OpCase("repetitions", REPETITIONS, (X,)),
    OpCase("repetitions-int", REPETITIONS, (INTS,)),
    OpCase("repetitions-dynamic", REPETITIONS, (X,), dynamic=BOTH),
    OpCase("repeat-by-size", lambda x: x.repeat(1, x.shape[0], 1), (X,), dynamic=BOTH),
    OpCase("repeat-each", lambda x: x.repeat(3, 2, 2, 3, 2), (normal(2, 1, 3, 2, 2),)),
    OpCase("repeat-each-of-6", lambda x: x.repeat(2, 2, 3, 2, 2, 2), (normal(2, 3, 2, 1, 3, 2),)),
    OpCase("repeat-each-of-7", lambda x: x.tile(2, 2, 2, 2, 2, 2, 2), (normal(2, 3, 2, 2, 3, 2, 2),)),
    OpCase("repeat-one-of-7", lambda x: x.repeat(1, 1, 3, 1, 1, 1, 1), (normal(2, 2, 2, 2, 3, 2, 2),)),
    OpCase("repeat-and-more", lambda x: x.repeat(2, 3, 2, 2, 1, 2), (normal(3, 2, 2, 2),)),
    OpCase("repeat-int64", lambda x: x.repeat(2, 2, 2, 2, 2), (torch.arange(32).reshape(2, 2, 2, 2, 2),)),
    OpCase("repeat-each-dynamic", lambda x: x.repeat(3, 2, 2, 3, 2), (normal(2, 4, 3, 2, 2),), dynamic=BOTH),
    OpCase("repeat_interleave-of-7", lambda x: x.repeat_interleave(3, -2), (normal(2, 2, 2, 2, 3, 2, 2),)),
    OpCase("repeat-rank-6", lambda x: x.repeat(1, 2, 1, 1, 1, 3), (normal(1, 2, 1, 2, 1, 2),)),
    OpCase("order", ORDER, (X,)),
    OpCase("order-of-nothing", lambda x: x.flip(0, 1), (X[:, :0],)),
    OpCase("order-bool", ORDER, (FLAGS,)),
    OpCase("order-dynamic", ORDER, (X,), dynamic=ALL),
    OpCase("pixel-shuffle", lambda x: torch.pixel_shuffle(x, 2), (normal(2, 8, 3, 3),), dynamic=BATCH),
]
