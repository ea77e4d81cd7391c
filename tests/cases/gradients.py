"""Rows of torch2trt/converters/gradients.py."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from tests.cases import normal
from tests.harness import OpCase

aten = torch.ops.aten

X, HALF = normal(2, 6, 4, 5), normal(2, 6, 4, 5).half()
IMAGE = normal(2, 6, 7, 8)
BATCH = {0: Dim("batch", min=1, max=4)}


def of_maxima(name: str, x: torch.Tensor, *windows: Any, **kwargs: Any) -> OpCase:
    spatial = len(windows[0])
    pool = getattr(aten, f"max_pool{spatial}d_with_indices")
    values, indices = pool.default(x, *windows)
    grad = normal(*values.shape, seed=7, dtype=x.dtype)
    backward = getattr(aten, f"max_pool{spatial}d_with_indices_backward").default
    return OpCase(f"max_pool_backward-{name}", backward, (grad, x, *windows, indices), **kwargs)


def of_averages(name: str, x: torch.Tensor, *windows: Any) -> OpCase:
    grad = normal(*aten.avg_pool2d.default(x, *windows).shape, seed=7, dtype=x.dtype)
    return OpCase(f"avg_pool_backward-{name}", aten.avg_pool2d_backward.default, (grad, x, *windows))


def _gradients(*args: Any) -> list[torch.Tensor]:
    return [grad for grad in aten.convolution_backward.default(*args) if grad is not None]


def of_convolution(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    *windows: Any,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    **kwargs: Any,
) -> OpCase:
    """With the stride, padding and dilation, whether it is transposed, padding of the output, groups."""
    result = aten.convolution.default(x, weight, None, *windows)
    grad = normal(*result.shape, seed=5, dtype=x.dtype)
    arguments = (grad, x, weight, [result.shape[1]], *windows, wanted)
    return OpCase(f"convolution_backward-{name}", _gradients, arguments, **kwargs)


MAXIMA = [
    of_maxima("overlapping", X, [2, 2], [1, 1], [1, 1], [1, 1], False),
    of_maxima("ceil", X, [2, 3], [2, 2], [1, 1], [1, 1], True),
    of_maxima("dilated", normal(2, 3, 9, 10), [2, 3], [2, 1], [1, 0], [2, 3], False),
    of_maxima("apart", X[0], [2, 2], [], [0], [1], False),
    of_maxima("half", HALF, [3, 3], [1, 1], [1, 1], [1, 1], False),
    of_maxima("volume", normal(2, 3, 4, 5, 6), [2, 2, 3], [1, 1, 2], [1, 1, 1], [1, 1, 1], False),
    of_maxima("batch", X, [2, 2], [1, 1], [1, 1], [1, 1], False, dynamic={0: BATCH, 1: BATCH, 7: BATCH}),
    of_maxima(
        "dynamic-size",
        X,
        *([1, 1], [1, 1], [0, 0], [1, 1], False),
        dynamic={place: {3: Dim("width", min=3, max=7)} for place in (0, 1, 7)},
        unsupported="the gradient of windows over a dynamic size",
    ),
]

AVERAGES = [
    of_averages("padded", X, [2, 3], [2, 2], [0, 1], False, True, None),
    of_averages("without-padding", X, [2, 3], [2, 2], [1, 1], True, False, None),
    of_averages("ceil", X, [3, 3], [2, 2], [1, 1], True, True, None),
    of_averages("divisor", X, [3, 3], [], [1, 1], False, True, 5),
    of_averages("half", HALF[0], [3], [1], [1], False, True, None),
    *(
        OpCase(f"adaptive_avg_pool_backward-{name}", aten._adaptive_avg_pool2d_backward.default, (grad, x))
        for name, grad, x in (("fewer", normal(2, 6, 3, 2), X), ("more", normal(6, 3, 7), X[0]))
    ),
    OpCase(
        "adaptive_avg_pool_backward-batch",
        aten._adaptive_avg_pool2d_backward.default,
        (normal(2, 6, 1, 1), X),
        dynamic={0: BATCH, 1: BATCH},
    ),
]

CONVOLUTIONS = [
    of_convolution("plain", IMAGE, normal(4, 6, 3, 3), [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    of_convolution("groups", IMAGE, normal(4, 3, 3, 2), [2, 3], [1, 1], [1, 1], False, [0, 0], 2),
    of_convolution("both", IMAGE, normal(4, 6, 3, 2), [2, 3], [1, 0], [2, 3], False, [0, 0], 1),
    of_convolution("depthwise", IMAGE, normal(6, 1, 3, 3), [1], [1], [1], False, [0], 6, weights=(2,)),
    of_convolution("transposed", IMAGE, normal(6, 4, 3, 3), [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    of_convolution("transposed-groups", IMAGE, normal(6, 2, 3, 3), [2, 3], [1, 1], [2, 1], True, [1, 0], 2),
    of_convolution("line", normal(2, 4, 9), normal(6, 4, 3), [2], [1], [1], False, [0], 1),
    of_convolution("volume", normal(2, 4, 5, 4, 5), normal(2, 4, 2, 2, 2), [1, 2, 1], [1, 0, 1], [1], False, [0], 1),
    of_convolution(
        "of-weight", IMAGE, normal(4, 6, 3, 3), [2, 2], [1, 1], [1, 1], False, [0, 0], 1, wanted=(False, True, False)
    ),
    of_convolution("half", IMAGE.half(), normal(4, 6, 3, 3).half(), [2, 2], [1, 1], [1, 1], False, [0, 0], 1),
    of_convolution(
        "batch", IMAGE, normal(4, 6, 3, 3), [2, 2], [1, 1], [1, 1], False, [0, 0], 1, dynamic={0: BATCH, 1: BATCH}
    ),
]

CASES = [*MAXIMA, *AVERAGES, *CONVOLUTIONS]
