"""Rows of torch2trt/converters/resample.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase
from tests.torch_can import have_lanczos

aten = torch.ops.aten
SEQUENCE, IMAGE, VOLUME = normal(2, 3, 6), normal(2, 3, 5, 6), normal(1, 2, 3, 4, 5)
DYNAMIC = {0: {0: (1, 4), 2: (2, 9), 3: (3, 8)}}


def resize(mode: str, aligned: bool | None = None, **options: Any) -> Callable[..., torch.Tensor]:
    return partial(F.interpolate, mode=mode, align_corners=aligned, **options)


def resizes(mode: str, *sizes: Any, aligned: bool | None = None, **options: Any) -> Callable[..., Any]:
    """To several sizes, [8, 13], or by several factors, 1.3 or (0.7, 3.0)."""
    return together(
        *(
            resize(mode, aligned, **{"size" if isinstance(size, list) else "scale_factor": size}, **options)
            for size in sizes
        )
    )


def like(x: torch.Tensor, other: torch.Tensor, modes: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """To the size of another tensor, as decoders do."""
    return tuple(F.interpolate(x, size=other.shape[2:], mode=mode) for mode in modes)


# 5 * 1.1 is 5 again, but torch scales the coordinates all the same.
SIZES = ([8, 13], [3, 2], [1, 1], 2, 0.5, 1.3, (0.7, 3.0), 1.1)

FRACTIONS = 0.5, 1.5, (2.25, 0.75), 1.25

INTERPOLATIONS = [
    *(
        OpCase(f"interpolate-{mode}", resizes(mode, *SIZES), (IMAGE,))
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    ),
    *(
        OpCase(f"interpolate-{mode}-aligned", resizes(mode, *SIZES, aligned=True), (IMAGE,))
        for mode in ("bilinear", "bicubic")
    ),
    *(
        OpCase(f"interpolate-sequence-{mode}", resizes(mode, [9], [4], 2, 1.3), (SEQUENCE,))
        for mode in ("nearest", "nearest-exact", "linear")
    ),
    *(
        OpCase(f"interpolate-volume-{mode}", resizes(mode, [4, 3, 9], 2, (1, 1.7, 2)), (VOLUME,))
        for mode in ("nearest", "nearest-exact", "trilinear")
    ),
    OpCase("interpolate-sequence-aligned", resizes("linear", [9], 1.3, aligned=True), (SEQUENCE,)),
    OpCase("interpolate-volume-aligned", resizes("trilinear", [4, 3, 9], aligned=True), (VOLUME,)),
    *(
        OpCase(f"interpolate-{mode}-{str(dtype)[6:]}", resizes(mode, 2, 1.3), (IMAGE.to(dtype),))
        for dtype in (torch.float16, torch.bfloat16)
        for mode in ("nearest", "bilinear", "bicubic")
    ),
    OpCase("interpolate-area", resizes("area", 0.5, [3, 4]), (IMAGE,)),
    OpCase("interpolate-uint8", resizes("nearest", 2, 1.3, [3, 8]), (IMAGE.abs().to(torch.uint8),)),
    OpCase("interpolate-uint8-bilinear", resizes("bilinear", 2), (IMAGE.to(torch.uint8),), unsupported="uint8"),
    *(
        OpCase(f"interpolate-dynamic-{mode}", resizes(mode, 2, [7, 4]), (IMAGE,), dynamic=DYNAMIC)
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    ),
    *(
        OpCase(f"interpolate-dynamic-height-{mode}", resizes(mode, (2, 1.3)), (IMAGE,), dynamic={0: {2: (2, 7)}})
        for mode in ("nearest", "bilinear")
    ),
    OpCase("interpolate-dynamic-aligned", resizes("bilinear", 2, aligned=True), (IMAGE,), dynamic=DYNAMIC),
    OpCase(
        "interpolate-dynamic-recomputed",
        resizes("bilinear", 1.5, recompute_scale_factor=True),
        (IMAGE,),
        dynamic={0: {2: (2, 7)}},
    ),
    *(
        OpCase(
            f"interpolate-dynamic-{mode}-fractions", resizes(mode, 0.5, 1.5, (2.25, 0.75)), (IMAGE,), dynamic=DYNAMIC
        )
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    ),
    OpCase(
        "interpolate-dynamic-float16",
        together(resize("bilinear", scale_factor=0.5), resize("bicubic", scale_factor=1.5)),
        (IMAGE.half(),),
        dynamic=DYNAMIC,
    ),
    OpCase(
        "interpolate-dynamic-volume",
        together(resize("trilinear", scale_factor=0.5), resize("nearest", scale_factor=(1.5, 2, 0.5))),
        (VOLUME,),
        dynamic={0: {2: (2, 5), 4: (2, 7)}},
    ),
    OpCase(
        "interpolate-dynamic-1.3", resizes("nearest", 1.3), (IMAGE,), dynamic=DYNAMIC, unsupported="no simple fraction"
    ),
    OpCase("interpolate-area-dynamic", resizes("area", [3, 4]), (IMAGE,), dynamic=DYNAMIC),
    OpCase(
        "interpolate-like",
        like,
        (IMAGE, normal(1, 1, 10, 9), ("nearest", "nearest-exact", "bilinear", "bicubic")),
        dynamic={**DYNAMIC, 1: {2: (4, 11)}},
    ),
    *(
        OpCase(f"interpolate-antialias-{mode}", resizes(mode, [3, 2], [7, 9], 0.45, antialias=True), (IMAGE,))
        for mode in ("bilinear", "bicubic")
    ),
    OpCase("interpolate-antialias-aligned", resizes("bilinear", [3, 9], aligned=True, antialias=True), (IMAGE,)),
    *(
        OpCase(
            f"interpolate-antialias-dynamic-{mode}",
            resizes(mode, [3, 4], 0.5, 1.5, antialias=True),
            (IMAGE,),
            # Images one element wide torch itself gets wrong.
            dynamic={0: {2: (4, 40), 3: (4, 8)}},
        )
        for mode in ("bilinear", "bicubic")
    ),
    *(
        OpCase(
            f"interpolate-lanczos-{name}",
            resizes("lanczos", *targets, antialias=True),
            (IMAGE,),
            dynamic=dynamic,
            needs=have_lanczos,
        )
        for name, targets, dynamic in (
            ("static", ([3, 2], [7, 9], 0.45), {}),
            ("dynamic", ([3, 4], 0.5, 1.5), {0: {2: (4, 40), 3: (4, 8)}}),
        )
    ),
    OpCase(
        "interpolate-antialias-dynamic-aligned",
        resizes("bilinear", [3, 4], aligned=True, antialias=True),
        (IMAGE,),
        dynamic={0: {2: (4, 8)}},
        unsupported="antialias",
    ),
    OpCase("upsample_nearest2d", aten.upsample_nearest2d.default, (IMAGE, [10, 12], 2.0, 2.0)),
    OpCase("upsample_linear1d", aten.upsample_linear1d.default, (SEQUENCE, [8], False, 1.4)),
]

BLOCKS = normal(2, 8, 3, 4)
SHUFFLES = [
    OpCase("pixel_shuffle", F.pixel_shuffle, (BLOCKS, 2)),
    OpCase("pixel_shuffle-unbatched", F.pixel_shuffle, (BLOCKS[0], 2)),
    OpCase("pixel_shuffle-more-dims", F.pixel_shuffle, (BLOCKS.reshape(2, 1, 8, 3, 4), 2)),
    OpCase("pixel_shuffle-dynamic", F.pixel_shuffle, (BLOCKS, 2), dynamic={0: {0: (1, 3), 2: (2, 5), 3: (2, 6)}}),
    OpCase("pixel_shuffle-int64", F.pixel_shuffle, (torch.arange(72).reshape(1, 18, 2, 2), 3)),
    OpCase("pixel_unshuffle", F.pixel_unshuffle, (normal(2, 3, 4, 6), 2)),
    OpCase("pixel_unshuffle-unbatched", F.pixel_unshuffle, (normal(3, 6, 3), 3)),
    OpCase("pixel_unshuffle-dynamic", F.pixel_unshuffle, (normal(2, 3, 4, 6), 2), dynamic={0: {0: (1, 3)}}),
    OpCase("channel_shuffle", F.channel_shuffle, (BLOCKS, 4)),
    OpCase("channel_shuffle-sequence", F.channel_shuffle, (BLOCKS[:, :, 0], 2)),
    OpCase("channel_shuffle-dynamic", F.channel_shuffle, (BLOCKS, 2), dynamic={0: {0: (1, 3), 3: (2, 6)}}),
]

CASES = [*INTERPOLATIONS, *SHUFFLES]
