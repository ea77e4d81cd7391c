"""Rows of torch2trt/passes/complex_rules.py: complex numbers inside the module, real ones at its borders."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.export import Dim

from tests.cases import normal
from tests.harness import OpCase

Z, W = normal(3, 4, 2), torch.view_as_complex(normal(4, 4, 2, seed=1))
BATCH = {0: {0: (1, 5)}}
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def inside(*functions: Function) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Functions of complex tensors as one of tensors whose last dimension holds the parts."""

    def function(pairs: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = torch.view_as_complex(pairs)
        results = [each(z, weight) for each in functions]
        return tuple(torch.view_as_real(result) if result.is_complex() else result for result in results)

    return function


ARITHMETIC = inside(
    lambda z, w: z + w[0],
    lambda z, w: 2 - z,
    lambda z, w: torch.sub(z, z.real, alpha=2),
    lambda z, w: z * w[0] * (1 - 2j),
    lambda z, w: z.real * 1j + 3,
    lambda z, w: z * z.imag,
    lambda z, w: -z / 4,
    lambda z, w: z / (w[0] + z),
    lambda z, w: z.real / z,
    lambda z, w: (1 + 2j) / z,
    lambda z, w: z / (2 - 1j),
    lambda z, w: z / z.abs(),
    lambda z, w: z * w[0, 0],
    lambda z, w: z * torch.arange(4),
)
FUNCTIONS = inside(
    lambda z, w: z.conj() * w[0].conj(),
    lambda z, w: z.abs(),
    lambda z, w: z.angle(),
    lambda z, w: z.exp(),
    lambda z, w: z.log(),
    lambda z, w: z.sgn(),
    lambda z, w: z.reciprocal(),
    lambda z, w: z.square() + z**3,
    lambda z, w: torch.polar(z.real.abs(), z.imag) * w[0],
    lambda z, w: torch.complex(z.real[:, :1], z.imag),
    lambda z, w: torch.linalg.vector_norm(z, dim=1),
    lambda z, w: torch.where(z == z.conj(), z, 2 * z),
    lambda z, w: z != w[0],
)
MOVED = inside(
    lambda z, w: torch.cat([z, z.real, z.conj()], 1),
    lambda z, w: torch.stack([z, z * 2], -1),
    lambda z, w: torch.where(z.real > 0, z, w[0]),
    lambda z, w: z.masked_fill(z.real > 0, 1 - 2j),
    lambda z, w: z + torch.full((4,), 2j),
    lambda z, w: z * torch.ones_like(z) + torch.zeros_like(z),
    lambda z, w: z.split(2, 1)[1] * z.unbind(1)[0][:, None],
    lambda z, w: z.sum(1) + z.mean(1),
    lambda z, w: torch.slice_scatter(z, w[0][:2].expand(z.shape[0], 2), 1, 1, 3),
    lambda z, w: F.pad(z, (1, 2)),
    lambda z, w: z[:, torch.tensor([2, 0])],
    lambda z, w: z.flip(1).roll(1, 1).unsqueeze(1).transpose(1, 2),
    lambda z, w: z.reshape(-1, 2, 2).permute(2, 0, 1),
    lambda z, w: z.real.to(torch.complex64) + z.cumsum(1),
)
PRODUCTS = inside(
    lambda z, w: z @ w,
    lambda z, w: z.conj() @ w.T.conj(),
    lambda z, w: F.linear(z, w, w[0]),
    lambda z, w: torch.addmm(w[0], z, w, beta=2, alpha=1j),
    lambda z, w: z[:, None] @ z[:, :, None],
    lambda z, w: torch.einsum("bi,io->bo", z, w),
)


def rotary(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Llama's own: pairs of neighbours as complex numbers, turned by the token's angles."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    turned = pairs * turns[: x.shape[1]].view(1, x.shape[1], 1, -1)
    return torch.view_as_real(turned).flatten(3).type_as(x)


ANGLES = torch.outer(torch.arange(8.0), 10.0 ** -torch.arange(4.0))
TURNS = torch.polar(torch.ones_like(ANGLES), ANGLES)
TOKENS = {0: {0: Dim("batch", min=1, max=4), 1: Dim("token", min=1, max=8)}}


def spectral(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A Fourier neural operator's layer: products of the lowest frequencies."""
    found = torch.fft.rfft2(x)
    result = found.new_zeros(x.shape[0], 4, *found.shape[2:])
    result[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", found[:, :, :3, :3], weight)
    return torch.fft.irfft2(result, s=x.shape[2:])


ROWS = {"arithmetic": ARITHMETIC, "functions": FUNCTIONS, "moved": MOVED, "products": PRODUCTS}
FAR_FUNCTIONS = inside(lambda z, w: z.abs(), lambda z, w: z.angle())
FAR = torch.tensor([[1e30, 1e30], [1e-30, 1e-30], [math.inf, 1.0], [3e25, -4e25]])
ZEROS = torch.tensor([[0.0, 0.0], [-0.0, 0.0], [-1.0, -0.0], [-1.0, 0.0], [0.0, -0.0], [-0.0, -0.0]])


CASES = [
    *(OpCase(f"complex-{name}", function, (Z, W), weights=(1,)) for name, function in ROWS.items()),
    *(
        OpCase(f"complex-{name}-dynamic", function, (Z, W), weights=(1,), dynamic=BATCH)
        for name, function in ROWS.items()
    ),
    *(OpCase(f"complex-far-{row}", FAR_FUNCTIONS, (FAR[row : row + 1], W), weights=(1,)) for row in range(4)),
    OpCase("complex-far-quotient", inside(lambda z, w: z / z), (FAR[[0, 1, 3]], W), weights=(1,)),
    OpCase("complex-angle-zeros", inside(lambda z, w: z.angle(), lambda z, w: z.sgn()), (ZEROS, W), weights=(1,)),
    OpCase("complex-by-zero", inside(lambda z, w: z / torch.zeros_like(z)), (ZEROS + 1, W), weights=(1,)),
    OpCase("rotary", rotary, (normal(2, 5, 3, 8), TURNS), weights=(1,)),
    OpCase("rotary-half", rotary, (normal(2, 5, 3, 8).half(), TURNS), weights=(1,)),
    OpCase("rotary-dynamic", rotary, (normal(2, 5, 3, 8), TURNS), weights=(1,), dynamic=TOKENS),
    OpCase("spectral", spectral, (normal(2, 3, 8, 8), torch.view_as_complex(normal(3, 4, 3, 3, 2))), weights=(1,)),
    OpCase("complex-result", lambda x: torch.complex(x, x), (Z,), unsupported="returns complex numbers"),
    OpCase("complex-tanh", inside(lambda z, w: z.tanh()), (Z, W), weights=(1,), unsupported="has no complex numbers"),
    OpCase("complex-root", inside(lambda z, w: z**0.5), (Z, W), weights=(1,), unsupported="has no complex numbers"),
    OpCase("complex-input", lambda z: z.abs(), (W,), raises="T2T107"),
]
