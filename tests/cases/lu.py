"""Rows of torch2trt/converters/lu.py."""

from __future__ import annotations

import torch

from tests.cases import normal, together
from tests.cases.linalg import BATCH, SINGULAR, ZERO_FIRST, A, B
from tests.harness import OpCase

linalg = torch.linalg
# Equally long pivots, of which the first is taken, among rows that were swapped before.
TIES = torch.tensor([[1.0, 2, 1, 1], [2, 1, 1, -1], [-2, 1, -1, 1], [2, -1, 1, 1]])
FACTORS = together(linalg.lu, linalg.lu_factor, linalg.lu_factor_ex, torch.lu, lambda a: linalg.lu(a).U)
OF_SINGULAR = together(linalg.lu, linalg.lu_factor_ex)
FACTOR, PIVOTS = linalg.lu_factor(A)
UNPACKED = together(
    torch.lu_unpack,
    lambda a, p: torch.lu_unpack(a, p, unpack_pivots=False)[1:],
    lambda a, p: torch.lu_unpack(a, p, unpack_data=False)[0],
)
SOLUTIONS = together(
    *(
        lambda a, p, b, left=left, adjoint=adjoint: linalg.lu_solve(
            a, p, b if left else b.mT, left=left, adjoint=adjoint
        )
        for left in (True, False)
        for adjoint in (False, True)
    ),
    lambda a, p, b: torch.lu_solve(b, a, p),
)

CASES = [
    OpCase("lu", FACTORS, (A,)),
    OpCase("lu-dynamic", FACTORS, (A,), dynamic=BATCH),
    *(
        OpCase(f"lu-{m}-{n}", FACTORS, (normal(2, m, n),), tolerance=5)
        for m, n in ((1, 1), (1, 4), (5, 1), (3, 7), (7, 3), (16, 16), (40, 3), (3, 40))
    ),
    OpCase("lu-zero-first", FACTORS, (ZERO_FIRST,)),
    OpCase("lu-singular", OF_SINGULAR, (SINGULAR,)),
    OpCase("lu-zero", OF_SINGULAR, (torch.zeros(3, 3),)),
    OpCase("lu-ties", FACTORS, (TIES,)),
    OpCase("lu-extreme", FACTORS, (A * torch.tensor([1e-30, 1e30, 1e-25, 1e25]),)),
    OpCase("lu-large", linalg.lu, (normal(17, 20),), unsupported="16 at most of either"),
    OpCase("lu-empty", linalg.lu, (torch.ones(2, 0, 3),), unsupported="no elements"),
    OpCase("lu-rows-dynamic", linalg.lu, (A,), dynamic={0: {1: (2, 5)}}, unsupported="a dynamic number of rows"),
    OpCase("lu_unpack", UNPACKED, (FACTOR, PIVOTS)),
    OpCase("lu_unpack-wide", UNPACKED, tuple(linalg.lu_factor(normal(2, 3, 5)))),
    OpCase("lu_unpack-tall", UNPACKED, tuple(linalg.lu_factor(normal(2, 5, 3)))),
    OpCase("lu_solve", SOLUTIONS, (FACTOR, PIVOTS, B)),
    OpCase("lu_solve-broadcast", SOLUTIONS, (FACTOR[0], PIVOTS[0], B)),
    OpCase("lu_solve-more-factors", SOLUTIONS, (FACTOR, PIVOTS, B[0])),
    OpCase("lu_solve-dynamic", SOLUTIONS, (FACTOR, PIVOTS, B), dynamic={2: {2: (1, 4)}}),
    OpCase("lu_solve-whole", lambda a, b: linalg.lu_solve(*linalg.lu_factor(a), b), (A, B)),
    OpCase("lu_solve-empty", SOLUTIONS, (FACTOR, PIVOTS, B[..., :0]), unsupported="no elements"),
]
