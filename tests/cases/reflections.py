"""Rows of torch2trt/converters/reflections.py."""

from __future__ import annotations

import torch
from torch.export import Dim

from tests.cases import normal, together
from tests.cases.linalg import BATCH, TRIANGLE, ZERO_FIRST, A
from tests.harness import OpCase

linalg = torch.linalg
ORTHOGONAL = together(linalg.qr, *(lambda a, m=m: linalg.qr(a, mode=m)[m == "r" :] for m in ("complete", "r")))
TALL = normal(2, 5, 3)
NORMALS, SCALES = torch.geqrf(TALL)
OTHER, BEFORE = normal(2, 5, 4, seed=1), normal(2, 4, 5, seed=1)
PRODUCTS = together(
    *(
        lambda a, t, b, c, turned=turned, left=left: torch.ormqr(a, t, b if left else c, left, turned)
        for turned in (False, True)
        for left in (False, True)
    ),
    lambda a, t, b, c: linalg.householder_product(a, t),
    lambda a, t, b, c: torch.orgqr(a, t[:, :2]),
)

CASES = [
    OpCase("orthogonal", ORTHOGONAL, (A,)),
    *(
        OpCase(f"orthogonal-{m}-{n}", ORTHOGONAL, (normal(2, m, n),), tolerance=3)
        for m, n in ((1, 1), (1, 4), (5, 1), (3, 7), (16, 16), (40, 3), (3, 40))
    ),
    OpCase("orthogonal-triangle", ORTHOGONAL, (TRIANGLE.triu(),)),
    OpCase("orthogonal-identity", ORTHOGONAL, (torch.eye(4)[:, [0, 2, 1, 3]] * torch.tensor([1.0, -1, 2, -0.0]),)),
    OpCase("orthogonal-zero-first", ORTHOGONAL, (ZERO_FIRST,)),
    OpCase("orthogonal-zero", ORTHOGONAL, (torch.zeros(4, 3),)),
    OpCase("orthogonal-extreme", ORTHOGONAL, (A * torch.tensor([1e-30, 1e30, 1e-25, 1e25]),)),
    OpCase("orthogonal-dynamic", ORTHOGONAL, (A,), dynamic=BATCH),
    OpCase("orthogonal-large", linalg.qr, (normal(17, 20),), unsupported="16 at most of either"),
    *(
        OpCase(f"geqrf-{m}-{n}", torch.geqrf, (normal(2, m, n),), tolerance=3)
        for m, n in ((1, 1), (1, 4), (5, 1), (3, 7))
    ),
    OpCase("geqrf", together(torch.geqrf, lambda a: torch.geqrf(a.mT)), (TALL,)),
    OpCase("geqrf-zero-first", torch.geqrf, (ZERO_FIRST,)),
    OpCase("geqrf-large", torch.geqrf, (normal(17, 20),), unsupported="16 at most of either"),
    OpCase("geqrf-empty", torch.geqrf, (torch.ones(2, 0),), unsupported="no elements"),
    OpCase("reflections", PRODUCTS, (NORMALS, SCALES, OTHER, BEFORE)),
    OpCase(
        "reflections-dynamic",
        PRODUCTS,
        (NORMALS, SCALES, OTHER, BEFORE),
        dynamic={at: {0: Dim("b", min=1, max=4)} for at in range(4)},
    ),
    OpCase("reflections-none", linalg.householder_product, (NORMALS, SCALES[:, :0]), unsupported="no elements"),
    OpCase("reflections-large", linalg.householder_product, (normal(20, 18), normal(17)), unsupported="16 at most"),
]
