"""Rows of torch2trt/converters/linalg.py."""

from __future__ import annotations

import torch
from torch.export import Dim

from tests.cases import normal, together
from tests.harness import OpCase

linalg = torch.linalg
# The largest element of the first column is not on the diagonal, and a zero is.
A = normal(2, 4, 4) + torch.tensor([[0.0, 0, 3, 0], [3, 0, 0, 0], [0, 0, 0, 3], [0, 3, 0, 0]])
B, VECTOR = normal(2, 4, 3, seed=1), normal(2, 4, seed=2)
ZERO_FIRST = torch.tensor([[0.0, 2, 1], [1, 0, 0], [3, 0, 1]])
SINGULAR = torch.tensor([[1.0, 2, 3], [0, 0, 0], [4, 5, 6]])
POSITIVE = A @ A.mT + torch.eye(4)
BATCH, BATCHES = {0: {0: (1, 5)}}, Dim("batch", min=1, max=5)

SYSTEMS = together(linalg.inv, torch.inverse, lambda a: linalg.inv_ex(a).inverse, linalg.det)
DETERMINANTS = together(linalg.det, linalg.slogdet, torch.logdet)
FACTORS = together(
    linalg.cholesky,
    lambda a: linalg.cholesky(a, upper=True),
    lambda a: linalg.cholesky_ex(a).L,
    lambda a: torch.cholesky_inverse(a),
    lambda a: torch.cholesky_inverse(a, upper=True),
)
SOLUTIONS = (
    linalg.solve,
    lambda a, b: linalg.solve(a, b.mT, left=False),
    lambda a, b: linalg.solve(a, b[0, :, :1]),
    lambda a, b: linalg.solve_ex(a, b).result,
)
INFO = together(
    lambda a, b: linalg.inv_ex(a),
    lambda a, b: linalg.solve_ex(a, b),
    lambda a, b: linalg.solve_ex(a, b.mT, left=False),
    lambda a, b: linalg.cholesky_ex(a @ a.mT + torch.eye(4)),
)
TRIANGLES = together(
    *(
        lambda a, b, upper=upper, unit=unit: linalg.solve_triangular(a, b, upper=upper, unitriangular=unit)
        for upper in (False, True)
        for unit in (False, True)
    ),
    lambda a, b: linalg.solve_triangular(a, b.mT, upper=True, left=False),
    lambda a, b: torch.cholesky_solve(b, a),
    lambda a, b: torch.cholesky_solve(b, a, upper=True),
    lambda a, b: torch.triangular_solve(b, a),
    lambda a, b: torch.triangular_solve(b, a, upper=False, transpose=True).solution,
)
TRIANGLE = linalg.cholesky(POSITIVE) + linalg.cholesky(POSITIVE).mT

CASES = [
    OpCase("systems", SYSTEMS, (A,)),
    OpCase("systems-dynamic", SYSTEMS, (A,), dynamic=BATCH),
    *(OpCase(f"systems-{n}", SYSTEMS, (normal(3, n, n) + 2 * torch.eye(n),), tolerance=5) for n in (1, 2, 3, 16)),
    OpCase("systems-zero-first", SYSTEMS, (ZERO_FIRST,)),
    OpCase("determinants", DETERMINANTS, (A,)),
    OpCase("determinants-zero-first", DETERMINANTS, (ZERO_FIRST,)),
    OpCase("determinants-singular", together(linalg.det, linalg.slogdet), (SINGULAR,)),
    OpCase("determinants-negative", together(linalg.slogdet, torch.logdet), (A[:, [1, 0, 2, 3]],)),
    *(OpCase(f"solutions-{number}", function, (A, B)) for number, function in enumerate(SOLUTIONS)),
    OpCase("solutions-vector", linalg.solve, (A, VECTOR)),
    OpCase("solutions-dynamic", linalg.solve, (A, B), dynamic={1: {2: (1, 4)}}),
    OpCase("factors", FACTORS, (POSITIVE,)),
    OpCase("factors-dynamic", FACTORS, (POSITIVE,), dynamic=BATCH),
    OpCase("triangles", TRIANGLES, (TRIANGLE, B)),
    OpCase("triangle-broadcast", lambda a, b: linalg.solve_triangular(a, b, upper=False), (TRIANGLE, B[0])),
    OpCase("systems-large", linalg.inv, (normal(17, 17),), unsupported="17 equations"),
    *(
        OpCase(f"systems-empty-{number}", function, (torch.ones(2, 0, 0),), unsupported="a system of no equations")
        for number, function in enumerate((linalg.inv, linalg.det, torch.logdet, linalg.cholesky))
    ),
    OpCase("info", INFO, (A, B)),
    OpCase("info-dynamic", INFO, (A, B), dynamic={0: {0: BATCHES}, 1: {0: BATCHES}}),
    OpCase(
        "info-singular",
        together(lambda a: linalg.inv_ex(a).info, lambda a: linalg.solve_ex(a, a).info),
        (torch.stack([SINGULAR, ZERO_FIRST, torch.zeros(3, 3), torch.ones(3, 3)]),),
    ),
    OpCase(
        "info-not-positive",
        lambda a: linalg.cholesky_ex(a).info,
        (torch.stack([torch.eye(3), -torch.eye(3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 2, -1]))]),),
    ),
    OpCase("conditions", together(*(lambda a, p=p: linalg.cond(a, p) for p in (1, -1, "fro", float("inf")))), (A,)),
    OpCase("tensorinv", lambda a: linalg.tensorinv(a[0].reshape(2, 2, 4), 2), (A,)),
    OpCase("nuclear", lambda a: linalg.matrix_norm(a, "nuc"), (A,), unsupported="no singular vectors"),
    OpCase("eigenvectors", linalg.eigh, (POSITIVE,), unsupported="no singular vectors or eigenvectors"),
    OpCase(
        "matrix-norms", together(*(lambda a, p=p: linalg.matrix_norm(a, p) for p in ("fro", 1, -1, float("inf")))), (A,)
    ),
]
