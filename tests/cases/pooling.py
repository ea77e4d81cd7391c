"""Rows of torch2trt/converters/pooling.py."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from tests.cases import normal, together
from tests.harness import OpCase

SEQUENCE, IMAGE, VOLUME = normal(2, 3, 11), normal(2, 3, 9, 8), normal(1, 2, 5, 6, 7)
# Without a window at the border that is one of zeros alone, a maximum of padding would not show.
NEGATIVE = -IMAGE.abs()
DYNAMIC = {0: {0: (1, 4), 2: (5, 12), 3: (4, 9)}}

# kernel_size, stride, padding, ceil_mode; the windows of ceil mode hang over by different amounts.
WINDOWS = (
    (3, None, 0, False),
    ((3, 2), (2, 1), (1, 0), False),
    (3, 2, 0, True),
    (3, 2, 1, True),
    (2, 2, 1, True),
    ((2, 4), (3, 3), (1, 2), True),
)


def max_pools(function, windows=WINDOWS):
    return together(
        *(
            partial(function, kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil)
            for kernel, stride, padding, ceil in windows
        )
    )


def avg_pools(function, windows=WINDOWS):
    return together(
        *(
            partial(
                function, kernel_size=kernel, stride=stride, padding=padding, ceil_mode=ceil, count_include_pad=count
            )
            for kernel, stride, padding, ceil in windows
            for count in (False, True)
        )
    )


def with_indices(function):
    return together(
        *(
            partial(function, kernel_size=3, stride=2, padding=1, return_indices=True, ceil_mode=ceil)
            for ceil in (False, True)
        ),
        partial(function, kernel_size=2, dilation=2, return_indices=True),
    )


def dilated(function):
    return together(
        partial(function, kernel_size=2, stride=1, dilation=3),
        partial(function, kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True),
    )


# Of few values, so that windows have several largest ones.
TIES = torch.arange(2 * 3 * 9 * 8).reshape(2, 3, 9, 8) * 7 % 5 - 9

LINES = ((3, None, 0, False), (4, 3, 2, False), (3, 2, 1, True), (2, 3, 1, True))

MAXIMA = [
    OpCase("max_pool1d", max_pools(F.max_pool1d, LINES), (SEQUENCE,)),
    OpCase("max_pool2d", max_pools(F.max_pool2d), (NEGATIVE,)),
    OpCase("max_pool3d", max_pools(F.max_pool3d, [*WINDOWS[:1], *WINDOWS[2:5]]), (VOLUME,)),
    OpCase("max_pool1d-unbatched", F.max_pool1d, (SEQUENCE[0], 3, 2, 1)),
    OpCase("max_pool2d-unbatched", F.max_pool2d, (IMAGE[0], 3, 2, 1)),
    OpCase("max_pool3d-unbatched", F.max_pool3d, (VOLUME[0], 3, 2, 1)),
    *(
        OpCase(f"max_pool2d-{str(dtype)[6:]}", F.max_pool2d, (IMAGE.to(dtype), 3, 2, 1))
        for dtype in (torch.float16, torch.bfloat16)
    ),
    OpCase("max_pool1d-dynamic", F.max_pool1d, (SEQUENCE, 3, 2, 1), dynamic={0: {0: (1, 4)}}),
    OpCase("max_pool2d-dynamic", max_pools(F.max_pool2d, WINDOWS[:3]), (IMAGE,), dynamic=DYNAMIC),
    OpCase("max_pool3d-dynamic", F.max_pool3d, (VOLUME, 2, 2), dynamic={0: {2: (2, 6)}}),
    # Refused by the converter, or before it where torch.export finds that the size would follow another formula.
    OpCase("max_pool2d-dynamic-overhang", F.max_pool2d, (IMAGE, 2, 2, 1, 1, True), dynamic=DYNAMIC, raises="T2T"),
    *(
        OpCase(f"max_pool{spatial}d-dilated", dilated(function), (x,))
        for spatial, function, x in (
            (1, F.max_pool1d, SEQUENCE),
            (2, F.max_pool2d, NEGATIVE),
            (3, F.max_pool3d, VOLUME),
        )
    ),
    OpCase("max_pool2d-dilated-dynamic", F.max_pool2d, (NEGATIVE, 2, 2, 1, 3), dynamic=DYNAMIC),
    OpCase("max_pool2d-int32", F.max_pool2d, (TIES.int(), 3, 2, 1)),
    OpCase("max_pool2d-bool", F.max_pool2d, (IMAGE > 0, 2), unsupported="bool"),
    *(
        OpCase(f"max_pool{spatial}d-indices", with_indices(function), (x,))
        for spatial, function, x in (
            (1, F.max_pool1d, SEQUENCE),
            (2, F.max_pool2d, TIES.float()),
            (3, F.max_pool3d, VOLUME),
        )
    ),
    OpCase("max_pool2d-indices-unbatched", with_indices(F.max_pool2d), (-VOLUME[0, 0],)),
    OpCase("max_pool2d-indices-float16", with_indices(F.max_pool2d), (TIES.half(),)),
    OpCase("max_pool2d-indices-int64", with_indices(F.max_pool2d), (TIES,)),
    OpCase("max_pool2d-indices-infinite", with_indices(F.max_pool2d), (torch.full((1, 1, 6, 6), -torch.inf),)),
    OpCase("max_pool2d-indices-dynamic", F.max_pool2d, (IMAGE, 3, 2, 1), {"return_indices": True}, dynamic=DYNAMIC),
    OpCase("max_pool2d-indices-alone", lambda x: F.max_pool2d(x, 3, 2, return_indices=True)[1], (IMAGE,)),
    OpCase("max_pool2d-unused-indices", lambda x: F.max_pool2d(x, 3, 2, return_indices=True)[0], (IMAGE,)),
    OpCase("max_pool3d-unused-indices", lambda x: F.max_pool3d(x, 2, return_indices=True)[0], (VOLUME,)),
]

AVERAGES = [
    OpCase("avg_pool1d", avg_pools(F.avg_pool1d, LINES), (SEQUENCE,)),
    OpCase("avg_pool2d", avg_pools(F.avg_pool2d), (IMAGE,)),
    OpCase("avg_pool3d", avg_pools(F.avg_pool3d, [*WINDOWS[:1], *WINDOWS[2:5]]), (VOLUME,)),
    OpCase(
        "avg_pool2d-divisor",
        together(
            partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, divisor_override=5),
            partial(F.avg_pool2d, kernel_size=3, stride=2, padding=1, ceil_mode=True, divisor_override=5),
            partial(F.avg_pool2d, kernel_size=2, count_include_pad=False, divisor_override=-3),
        ),
        (IMAGE,),
    ),
    OpCase("avg_pool1d-unbatched", F.avg_pool1d, (SEQUENCE[0], 3, 2, 1)),
    OpCase("avg_pool1d-no-batch", F.avg_pool1d, (SEQUENCE[:0], 3, 2, 1)),
    OpCase("avg_pool2d-unbatched", F.avg_pool2d, (IMAGE[0], 3, 2, 1)),
    *(
        OpCase(f"avg_pool2d-{str(dtype)[6:]}", F.avg_pool2d, (IMAGE.to(dtype), 3, 2, 1, True))
        for dtype in (torch.float16, torch.bfloat16)
    ),
    OpCase("avg_pool2d-dynamic", avg_pools(F.avg_pool2d, WINDOWS[:2]), (IMAGE,), dynamic=DYNAMIC),
    OpCase("avg_pool1d-dynamic", F.avg_pool1d, (SEQUENCE, 3, 2, 1), dynamic={0: {0: (1, 4), 2: (3, 12)}}),
    OpCase("avg_pool2d-dynamic-ceil", F.avg_pool2d, (IMAGE, 3, 2, 0, True), dynamic=DYNAMIC, unsupported="ceil_mode"),
    OpCase("lp_pool2d", F.lp_pool2d, (IMAGE, 2.0, 3, 2)),
]


def adaptive(function, *sizes):
    return together(*(partial(function, output_size=size) for size in sizes))


def adaptive_max(function, *sizes):
    return lambda x: tuple(function(x, size) for size in sizes)


ADAPTIVE = [
    OpCase("adaptive_avg_pool1d", adaptive(F.adaptive_avg_pool1d, 1, 11, 4), (SEQUENCE,)),
    OpCase(
        "adaptive_avg_pool2d", adaptive(F.adaptive_avg_pool2d, 1, (3, 4), (4, 3), (None, 5), (1, 3), (12, 11)), (IMAGE,)
    ),
    OpCase("adaptive_avg_pool3d", adaptive(F.adaptive_avg_pool3d, 1, (5, 3, 1), (2, 4, 3)), (VOLUME,)),
    OpCase("adaptive_avg_pool2d-unbatched", adaptive(F.adaptive_avg_pool2d, 1, 3), (IMAGE[0],)),
    OpCase("adaptive_avg_pool2d-float16", adaptive(F.adaptive_avg_pool2d, 1, 4), (IMAGE.half(),)),
    OpCase("adaptive_avg_pool2d-dynamic", adaptive(F.adaptive_avg_pool2d, 1, (None, 1)), (IMAGE,), dynamic=DYNAMIC),
    OpCase("adaptive_avg_pool2d-dynamic-height", F.adaptive_avg_pool2d, (IMAGE, (1, 3)), dynamic={0: {2: (5, 12)}}),
    OpCase("adaptive_avg_pool2d-dynamic-to-3", F.adaptive_avg_pool2d, (IMAGE, 3), dynamic=DYNAMIC),
    OpCase("adaptive_avg_pool1d-dynamic-to-more", F.adaptive_avg_pool1d, (SEQUENCE, 7), dynamic={0: {2: (2, 12)}}),
    OpCase("adaptive_max_pool2d-dynamic-to-3", F.adaptive_max_pool2d, (IMAGE, (3, 4)), dynamic=DYNAMIC),
    OpCase("adaptive_max_pool1d", adaptive_max(F.adaptive_max_pool1d, 1, 11, 4), (SEQUENCE,)),
    OpCase(
        "adaptive_max_pool2d", adaptive_max(F.adaptive_max_pool2d, 1, (3, 4), (4, 3), (None, 5), (12, 11)), (IMAGE,)
    ),
    OpCase("adaptive_max_pool3d", adaptive_max(F.adaptive_max_pool3d, 1, (5, 3, 1), (2, 4, 3)), (VOLUME,)),
    OpCase("adaptive_max_pool2d-unbatched", F.adaptive_max_pool2d, (IMAGE[0], 4)),
    OpCase("adaptive_max_pool2d-dynamic", F.adaptive_max_pool2d, (IMAGE, 1), dynamic=DYNAMIC),
    *(
        OpCase(f"adaptive_max_pool{spatial}d-indices", function, (x, 3), {"return_indices": True})
        for spatial, function, x in (
            (1, F.adaptive_max_pool1d, SEQUENCE),
            (2, F.adaptive_max_pool2d, TIES.float()),
            (3, F.adaptive_max_pool3d, VOLUME),
        )
    ),
    OpCase(
        "adaptive_max_pool2d-indices-dynamic",
        F.adaptive_max_pool2d,
        (IMAGE, (4, 3)),
        {"return_indices": True},
        dynamic=DYNAMIC,
    ),
]


def there_and_back(pool, unpool):
    def both(x):
        values, places = pool(x, 2, return_indices=True)
        return unpool(values, places, x.shape)

    return both


def unpool1d(values, places, shape):
    return F.max_unpool1d(values, places, 2, output_size=shape)


def unpool2d(values, places, shape):
    return torch.ops.aten.max_unpool2d(values, places, shape[-2:])


def unpool3d(values, places, shape):
    return F.max_unpool3d(values, places, 2, output_size=shape)


BACK = [
    OpCase("max_unpool1d", there_and_back(F.max_pool1d, unpool1d), (SEQUENCE,)),
    OpCase("max_unpool2d", there_and_back(F.max_pool2d, unpool2d), (IMAGE,)),
    OpCase("max_unpool3d", there_and_back(F.max_pool3d, unpool3d), (VOLUME,)),
    OpCase("max_unpool2d-unbatched", there_and_back(F.max_pool2d, unpool2d), (IMAGE[0],)),
    OpCase("max_unpool2d-dynamic", there_and_back(F.max_pool2d, unpool2d), (IMAGE,), dynamic=DYNAMIC),
    OpCase("lp_pool1d", F.lp_pool1d, (SEQUENCE.abs(), 3.0, 3, 2)),
    OpCase("lp_pool3d", F.lp_pool3d, (VOLUME, 2.0, 2)),
]

CASES = [*MAXIMA, *AVERAGES, *ADAPTIVE, *BACK]
