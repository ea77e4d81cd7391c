"""Rows of torch2trt/converters/products.py."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import Dim

from tests.cases import normal, together
from tests.harness import OpCase
from torch2trt.graph.ops import ACTIVATIONS, LINEAR_BLOCK

WEIGHT, BIAS = normal(5, 6, seed=1), normal(5, seed=2)
ROWS, BATCH = Dim("rows", min=1, max=7), Dim("batch", min=1, max=4)
LENGTH = Dim("length", min=3, max=7)

LINEAR = [
    *(
        OpCase(f"linear-rank-{x.dim()}", F.linear, (x, WEIGHT, BIAS), weights=(1, 2))
        for x in (normal(6), normal(3, 6), normal(2, 3, 6), normal(2, 1, 3, 6))
    ),
    OpCase("linear-no-bias", F.linear, (normal(3, 6), WEIGHT), weights=(1,)),
    OpCase("linear-vector", F.linear, (normal(3, 6), normal(6)), weights=(1,)),
    OpCase("linear-weights-as-inputs", F.linear, (normal(2, 3, 6), WEIGHT, BIAS)),
    OpCase("linear-bias-as-input", F.linear, (normal(3, 6), WEIGHT, BIAS), weights=(1,)),
    OpCase(
        "linear-dynamic", F.linear, (normal(2, 3, 6), WEIGHT, BIAS), weights=(1, 2), dynamic={0: {0: BATCH, 1: ROWS}}
    ),
    *(
        OpCase(
            f"linear-{str(dtype)[6:]}",
            F.linear,
            tuple(each.to(dtype) for each in (normal(3, 6), WEIGHT, BIAS)),
            weights=(1, 2),
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
]


def blocks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activations: tuple[str, ...]) -> Any:
    bounds = {"clip": (-0.5, 0.8), "leaky_relu": (0.2, 0.0)}
    return tuple(LINEAR_BLOCK(x, weight, bias, name, *bounds.get(name, (0.0, 0.0))) for name in activations)


BLOCKS = [
    OpCase("linear_block", blocks, (normal(2, 3, 6), WEIGHT, BIAS, tuple(ACTIVATIONS)), weights=(1, 2)),
    OpCase("linear-by-a-vector", lambda x, w: F.relu(F.linear(x, w)), (normal(2, 3, 6), normal(6)), weights=(1,)),
    OpCase("linear_block-vector", blocks, (normal(6), WEIGHT, BIAS, ("relu",)), weights=(1, 2)),
    OpCase(
        "linear_block-dynamic",
        blocks,
        (normal(2, 3, 6), WEIGHT, BIAS, ("gelu", "relu")),
        weights=(1, 2),
        dynamic={0: {0: BATCH, 1: ROWS}},
    ),
    OpCase(
        "linear_block-fused",
        lambda x, w, b: F.gelu(F.linear(x, w, b)),
        (normal(2, 3, 6).half(), WEIGHT.half(), BIAS.half()),
        weights=(1, 2),
    ),
]

SHAPES = (
    ((3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (6, 4, 5)),
    ((3, 4), (2, 4, 5)),
    ((3, 4), (4,)),
    ((4,), (4, 5)),
    ((4,), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)),
)


def matmuls(*factors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.matmul(*pair) for pair in zip(factors[::2], factors[1::2], strict=True))


PRODUCTS = [
    OpCase("matmul", matmuls, [normal(*shape) for shapes in SHAPES for shape in shapes]),
    OpCase("matmul-constant", torch.matmul, (normal(2, 3, 4), normal(4, 5)), weights=(1,)),
    OpCase(
        "matmul-dynamic",
        torch.matmul,
        (normal(2, 3, 4), normal(2, 4, 5)),
        dynamic={0: {0: BATCH, 1: ROWS}, 1: {0: BATCH}},
    ),
    OpCase("matmul-dynamic-inner", torch.matmul, (normal(3, 4), normal(4, 5)), dynamic={0: {1: ROWS}, 1: {0: ROWS}}),
    OpCase("matmul-float16", torch.matmul, (normal(3, 64).half(), normal(64, 5).half())),
    OpCase("matmul-bfloat16", torch.matmul, (normal(3, 64).bfloat16(), normal(64, 5).bfloat16())),
    OpCase("mm", torch.mm, (normal(3, 4), normal(4, 5))),
    OpCase("bmm", torch.bmm, (normal(2, 3, 4), normal(2, 4, 5))),
    OpCase("mv", torch.mv, (normal(3, 4), normal(4))),
    OpCase("dot", torch.dot, (normal(4), normal(4, seed=1))),
    OpCase(
        "addmm",
        together(torch.addmm, partial(torch.addmm, beta=0.5, alpha=2), partial(torch.addmm, alpha=-1)),
        (normal(5), normal(3, 4), normal(4, 5)),
    ),
    OpCase("addmm-no-input", partial(torch.addmm, beta=0), (torch.full((3, 5), math.nan), normal(3, 4), normal(4, 5))),
    OpCase("addmv", partial(torch.addmv, beta=2, alpha=0.5), (normal(3), normal(3, 4), normal(4))),
    OpCase("baddbmm", partial(torch.baddbmm, beta=2), (normal(1, 3, 5), normal(2, 3, 4), normal(2, 4, 5))),
    OpCase("addbmm", partial(torch.addbmm, beta=2, alpha=0.5), (normal(3, 5), normal(2, 3, 4), normal(2, 4, 5))),
    OpCase("addr", partial(torch.addr, beta=2, alpha=0.5), (normal(3, 5), normal(3), normal(5))),
    OpCase(
        "bilinear",
        F.bilinear,
        (normal(2, 3, 4), normal(2, 3, 6), normal(5, 4, 6), BIAS),
        weights=(2, 3),
        dynamic={0: {0: BATCH}, 1: {0: BATCH}},
    ),
]

LAST_DIGITS = 2**31 + 1  # no float32


def integers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers of both signs; products of those of 64 bits have more digits than a float."""
    return (normal(*shape) * 9 * (LAST_DIGITS if dtype == torch.int64 else 1)).to(dtype)


FLOATS_ONLY = "TensorRT computes it in floating point only"
INTEGERS = [
    OpCase(
        "matmul-int64",
        matmuls,
        [integers(*shape) // (1 if first else 2**20) for shapes in SHAPES for first, shape in enumerate(shapes)],
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "matmul-int32",
        together(torch.matmul, lambda x, y: torch.relu(F.linear(x, y.mT))),
        (integers(2, 3, 4, dtype=torch.int32), integers(4, 5, dtype=torch.int32)),
        weights=(1,),
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "matmul-uint8",
        torch.matmul,
        tuple(integers(*shape, dtype=torch.int32).abs().to(torch.uint8) for shape in ((3, 64), (64, 5))),
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "matmul-int-dynamic",
        torch.matmul,
        (integers(2, 3, 4), integers(2, 4, 5, dtype=torch.int32).long()),
        dynamic={0: {0: BATCH, 1: ROWS}, 1: {0: BATCH}},
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "addmm-int",
        together(torch.addmm, partial(torch.addmm, beta=2, alpha=-3), partial(torch.addmm, beta=0)),
        (integers(5), integers(3, 4) // LAST_DIGITS, integers(4, 5)),
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "addbmm-int",
        together(torch.addbmm, lambda x, y, z: torch.baddbmm(x, y, z)),
        (integers(3, 5), integers(2, 3, 4) // LAST_DIGITS, integers(2, 4, 5)),
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "matmul-int-large",
        torch.mm,
        (torch.ones(257, 256).int(), torch.ones(256, 256).int()),
        unsupported="sums of more than 16777216 products",
        tensorrt=FLOATS_ONLY,
    ),
    OpCase(
        "matmul-int-rank-8",
        torch.matmul,
        (torch.ones(1, 1, 1, 1, 1, 1, 2, 2).int(), torch.ones(2, 2).int()),
        unsupported="products of integers take one",
    ),
]

# Made of products by torch.
EINSUMS = {
    "bhqd,bhkd->bhqk": ((2, 3, 4, 5), (2, 3, 6, 5)),
    "bhwc,hkc->bhwk": ((2, 3, 4, 5), (3, 6, 5)),
    "...i,ij->...j": ((2, 3, 4), (4, 5)),
    "i,j->ij": ((3,), (4,)),
    "bij->bji": ((2, 3, 4),),
    "bi,bij,bj->b": ((2, 3), (2, 3, 4), (2, 4)),
    "ii->i": ((4, 4),),
    "ii": ((4, 4),),
    "iji->j": ((4, 3, 4),),
    "...ii->...i": ((2, 3, 4, 4),),
    "bii,bi->bi": ((2, 4, 4), (2, 4)),
    "ij": ((2, 3),),
    "ba": ((2, 3),),
    "ij->": ((2, 3),),
    "ij,ij->": ((2, 3), (2, 3)),
    "ij,jk": ((2, 3), (3, 4)),
    "ij...,jk...->ik...": ((2, 3, 5), (3, 4, 5)),
    "...ij,...jk->...ik": ((6, 1, 2, 3), (5, 3, 4)),
    "i...->...": ((3, 2, 4),),
    "ij,jk,kl->il": ((2, 3), (3, 4), (4, 5)),
    "abc,cd,ef->abdf": ((2, 3, 4), (4, 5), (3, 2)),
    "i,ii->": ((3,), (3, 3)),
    ",i->i": ((), (3,)),
}


def einsums(*operands: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.einsum(equation, *each) for equation, each in zip(EINSUMS, operands, strict=True))


COMPOSED = [
    OpCase("einsum", einsums, [[normal(*shape) for shape in shapes] for shapes in EINSUMS.values()]),
    OpCase("einsum-half", einsums, [[normal(*shape).half() for shape in shapes] for shapes in EINSUMS.values()]),
    OpCase(
        "einsum-dynamic",
        together(
            lambda x, y: torch.einsum("bij,bjk->bik", x, y),
            lambda x, y: torch.einsum("bij,bjk,bkl", x, y, x),
            lambda x, y: torch.einsum("bij,bjk->", x, y),
            lambda x, y: torch.einsum("b...i,...bi->b", x, y.permute(2, 0, 1)),
            lambda x, y: torch.einsum("bii->b", x @ y),
        ),
        (normal(2, 3, 4), normal(2, 4, 3)),
        dynamic={0: {0: BATCH, 1: LENGTH}, 1: {0: BATCH, 2: LENGTH}},
    ),
    OpCase(
        "einsum-of-lists",
        lambda x, y: (torch.einsum(x, [0, 1], y, [1, 2], [2, 0]), torch.einsum(x, [..., 1], y, [1, 2], [..., 2])),
        (normal(2, 3), normal(3, 4)),
    ),
    OpCase("tensordot", partial(torch.tensordot, dims=2), (normal(2, 3, 4), normal(3, 4, 5))),
    OpCase("outer", together(torch.outer, torch.kron), (normal(3), normal(4))),
    OpCase("inner", torch.inner, (normal(2, 3), normal(4, 3))),
    OpCase("multi_dot", lambda *factors: torch.linalg.multi_dot(factors), (normal(2, 3), normal(3, 4), normal(4, 2))),
]

CASES = [*LINEAR, *BLOCKS, *PRODUCTS, *INTEGERS, *COMPOSED]
