"""Rows of torch2trt/converters/integer.py."""

from __future__ import annotations

import torch

from tests.cases import normal, together
from tests.harness import OpCase

A = torch.tensor([7, -7, 7, -7, 0, 6, -6, 13, -1])
B = torch.tensor([2, 2, -2, -2, 3, -3, 3, 5, 5])
X, Y = normal(2, 3, 4) * 5, normal(2, 3, 4, seed=1)
# Multiples, whose quotients are whole numbers or round to one.
WHOLE = torch.tensor([3.0, -3.0, 4.5, -4.5, 2999999.75, -2999999.75])
BYTES = torch.arange(245, 256, dtype=torch.uint8)
FLAGS, OTHER_FLAGS = X > 0, Y > 0
DIVISIONS = together(
    torch.floor_divide,
    lambda a, b: torch.div(a, b, rounding_mode="floor"),
    lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    torch.remainder,
    torch.fmod,
)

DIVISION = [
    OpCase("division-int", DIVISIONS, (A, B)),
    OpCase("division-int32-int64", DIVISIONS, (A.to(torch.int32), B)),
    OpCase("division-int-number", DIVISIONS, (A, 3)),
    OpCase("division-int-negative-number", DIVISIONS, (A, -3)),
    OpCase("division-int-float-number", DIVISIONS, (A, 2.5)),
    OpCase("division-bytes", DIVISIONS, (BYTES, 7)),
    OpCase("division-float", DIVISIONS, (X, Y)),
    OpCase("division-float-number", DIVISIONS, (X, 0.7)),
    OpCase("division-float-negative-number", DIVISIONS, (X, -0.7)),
    OpCase("division-whole", DIVISIONS, (WHOLE, 0.75)),
    OpCase("division-whole-negative", DIVISIONS, (WHOLE, torch.tensor(-1.5))),
    OpCase("division-half", DIVISIONS, (X.half(), 0.75)),
    OpCase("division-float-int", DIVISIONS, (X, torch.arange(1, 5))),
    OpCase("division-dynamic", DIVISIONS, (X, torch.arange(1, 5)), dynamic={0: {0: (1, 5)}}),
    OpCase("division-not-rounded", lambda a, b: torch.div(a, b, rounding_mode=None), (A, B)),
    OpCase("remainder-of-number", torch.remainder, (17, B)),
    OpCase("floor_divide-size", lambda x: x // x.shape[0], (A,), dynamic={0: {0: (1, 9)}}),
]

SHIFTS_FAR = (
    *(torch.bitwise_left_shift, torch.bitwise_right_shift),
    *(lambda a, b: a << 63, lambda a, b: a >> 62, lambda a, b: a >> 63, lambda a, b: a >> 64, lambda a, b: a << 64),
)
# Numbers of any 64 bits, the outermost among them.
EDGES = torch.tensor([2**63 - 1, -(2**63), 0, -1])
WIDE = torch.cat([EDGES, torch.randint(-(2**62), 2**62, (8,), generator=torch.Generator().manual_seed(3)) * 2]).view(
    3, 4
)
BITWISE = together(torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor)
BITWISE_NUMBER = together(
    lambda a: a & -6, lambda a: a | 4, lambda a: a ^ -3, lambda a: torch.bitwise_xor(5, a), lambda a: (a > 0) | 6
)
BITS = [
    OpCase("shifts", together(lambda a: a << 3, lambda a: a >> 1, lambda a: a.bitwise_left_shift(2)), (A,)),
    OpCase("shifts-tensor", together(torch.bitwise_left_shift, torch.bitwise_right_shift), (A, B.abs())),
    # Up to the sign, beyond it, and by negative numbers of places.
    OpCase("shifts-far", together(*SHIFTS_FAR), (A, torch.tensor([62, 63, 64, 99, -1, -64, 63, 0, 63]))),
    OpCase(
        "shifts-far-int32",
        together(*SHIFTS_FAR[:2], lambda a, b: a << 31, lambda a, b: a >> 31, lambda a, b: a >> 40),
        tuple(torch.tensor(values, dtype=torch.int32) for values in ([7, -7, -7, -1, -5], [30, 31, 32, -1, 31])),
    ),
    OpCase("shifts-bytes", together(lambda a: a << 3, lambda a: a >> 1, lambda a: a << 9, lambda a: a >> 9), (BYTES,)),
    OpCase("shifts-int32", together(lambda a: a << 3, lambda a: a >> 1), (A.to(torch.int32),)),
    OpCase("low-bits", together(lambda a: a & 3, lambda a: a & 1, lambda a: a.bitwise_and(15)), (A,)),
    OpCase("low-bit-of-bool", lambda a: a & 1, (FLAGS,)),
    OpCase("bits-of-integers", BITWISE, (WIDE, WIDE.flip(1) + 1), tensorrt="more than 8 bits"),
    OpCase("bits-of-int32", BITWISE, ((WIDE >> 32).int(), (WIDE.flip(1) >> 32).int()), tensorrt="more than 8 bits"),
    OpCase("bits-of-bytes", BITWISE, (torch.arange(256).to(torch.uint8), torch.arange(256).flip(0).to(torch.uint8))),
    OpCase("bits-promoted", BITWISE, (WIDE, WIDE.int()), tensorrt="more than 8 bits"),
    OpCase("bits-of-one", BITWISE, (WIDE, WIDE[1, 1]), tensorrt="more than 8 bits"),
    OpCase("bits-of-number", BITWISE_NUMBER, (WIDE,), dynamic={0: {0: (1, 5)}}, tensorrt="more than 8 bits"),
    OpCase(
        "bits-of-many",
        torch.bitwise_or,
        (torch.zeros(2**21, dtype=torch.int64), 4),
        unsupported="bits of more",
        tensorrt="more than 8 bits",
    ),
    OpCase("bits-not", torch.bitwise_not, (A,)),
    OpCase(
        "bits-bool",
        together(torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor, lambda a, b: a & ~b, lambda a, b: a ^ True),
        (FLAGS, OTHER_FLAGS[:1]),
    ),
]

SHIFTS = together(
    lambda x: 1 << x,
    lambda x: torch.bitwise_left_shift(-5, x),
    lambda x: torch.bitwise_right_shift(1000, x),
    lambda x: torch.bitwise_right_shift(-1000, x),
)
SHIFTED = [
    *(
        OpCase(f"shifted-number-{dtype}".replace("torch.", ""), SHIFTS, (torch.arange(7, dtype=dtype),))
        for dtype in (torch.int32, torch.int64)
    ),
    OpCase("shifted-number-dynamic", SHIFTS, (torch.arange(6).reshape(2, 3),), dynamic={0: {0: (1, 4)}}),
    OpCase("gcd", torch.gcd, (torch.arange(6), torch.arange(6)), unsupported="Euclid"),
]

CASES = [*DIVISION, *BITS, *SHIFTED]
