"""Rows of torch2trt/converters/grid_sample.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

IMAGE, VOLUME = normal(2, 3, 5, 6), normal(2, 3, 3, 4, 5)
# Coordinates inside and outside; those of the volume go far out.
GRID, GRID3 = normal(2, 4, 3, 2, seed=3) * 0.8, normal(2, 2, 4, 3, 3, seed=3) * 2
# In float32, 3e38 is too large for torch's own kernel: as a number of elements it is infinite.
EXTREMES = torch.tensor([[1e37, 0.0], [1e9, -1e9], [-1.0, 1.0], [1.0, -1.0], [0.0, 1.1]])


def samples(mode: str) -> Callable[..., Any]:
    return together(
        *(
            partial(F.grid_sample, mode=mode, padding_mode=padding, align_corners=aligned)
            for padding in ("zeros", "border", "reflection")
            for aligned in (False, True)
        )
    )


def moved(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(x, F.affine_grid(theta, [2, 3, 4, 4], False), align_corners=False)


def grids(*sizes: int) -> Callable[..., Any]:
    """Without the warning of ``F.affine_grid`` where a size is 1."""
    return together(
        *(
            lambda theta, aligned=aligned: torch.affine_grid_generator(theta, [theta.shape[0], 3, *sizes], aligned)
            for aligned in (False, True)
        )
    )


CASES = [
    *(OpCase(f"grid_sample-{mode}", samples(mode), (IMAGE, GRID)) for mode in ("bilinear", "nearest", "bicubic")),
    *(OpCase(f"grid_sample-volume-{mode}", samples(mode), (VOLUME, GRID3)) for mode in ("bilinear", "nearest")),
    *(
        OpCase(
            f"grid_sample-dynamic-{mode}",
            samples(mode),
            (IMAGE, GRID),
            dynamic={0: {2: (1, 9)}, 1: {1: (2, 6), 2: (2, 6)}},
        )
        for mode in ("bilinear", "nearest", "bicubic")
    ),
    OpCase(
        "grid_sample-volume-dynamic",
        samples("bilinear"),
        (VOLUME, GRID3),
        dynamic={0: {2: (1, 4), 4: (2, 7)}, 1: {1: (1, 3), 3: (2, 6)}},
    ),
    *(
        OpCase(
            f"grid_sample-{str(dtype)[6:]}",
            F.grid_sample,
            (IMAGE.to(dtype), GRID.to(dtype), "bilinear", "zeros", False),
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
    OpCase("grid_sample-extremes", F.grid_sample, (IMAGE[:1], EXTREMES[None, None], "bilinear", "zeros", False)),
    OpCase("grid_sample-one-element", samples("bilinear"), (IMAGE[:, :, :1, :1], GRID)),
    OpCase("grid_sample-affine", moved, (IMAGE, normal(2, 2, 3))),
    *(
        OpCase(f"affine_grid-{'-'.join(map(str, sizes))}", grids(*sizes), (normal(2, len(sizes), len(sizes) + 1),))
        for sizes in ((4, 5), (1, 1), (1, 7), (3, 1), (2, 3, 4), (1, 3, 1), (1, 1, 1))
    ),
    OpCase("affine_grid-float16", grids(4, 5), (normal(2, 2, 3).half(),)),
    OpCase("affine_grid-constant", moved, (IMAGE, normal(2, 2, 3)), weights=(1,)),
    OpCase("affine_grid-dynamic", grids(1, 5), (normal(2, 2, 3),), dynamic={0: {0: (1, 4)}}),
]
