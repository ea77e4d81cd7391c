"""Rows of torch2trt/frontend/own_decompositions.py."""

from __future__ import annotations

import torch

from tests.cases import normal, together
from tests.harness import OpCase

aten = torch.ops.aten
X, Z = normal(4, 6), normal(3, 4, 2)
COPIES = {
    "view": lambda x: torch.view_copy(x, [-1]),
    "permute": lambda x: torch.permute_copy(x, (1, 0)),
    "narrow": lambda x: torch.narrow_copy(x, 1, 2, 3),
    "unbind": lambda x: torch.unbind_copy(x, 1),
    "expand": lambda x: torch.expand_copy(x, (2, *x.shape)),
    "slice": lambda x: torch.slice_copy(x, 1, 1, 5, 2),
    "select": lambda x: torch.select_copy(x, 1, -1),
    "split": lambda x: torch.split_copy(x, 4, 1),
    "split_with_sizes": lambda x: torch.split_with_sizes_copy(x, [2, 4], 1),
    "squeeze": lambda x: (torch.squeeze_copy(x[:, :1]), torch.squeeze_copy(x[:, :1], 1)),
    "squeeze-dims": lambda x: aten.squeeze_copy.dims(x[:, :1], [1]),
    "unsqueeze": lambda x: torch.unsqueeze_copy(x, 1),
    "t": torch.t_copy,
    "transpose": lambda x: torch.transpose_copy(x, 0, 1),
    "diagonal": lambda x: torch.diagonal_copy(x, 1),
    "unfold": lambda x: torch.unfold_copy(x, 1, 2, 2),
    "alias": torch.alias_copy,
    "detach": torch.detach_copy,
    "neg_view": torch._neg_view_copy,
    "reshape": lambda x: aten._reshape_copy(x.t(), [-1]),
    "reshape_alias": lambda x: aten._reshape_alias_copy(x, [6, 4], [4, 1]),
}


def _of_complex(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    z = torch.view_as_complex_copy(x)
    return torch.view_as_real_copy(z * z), torch.view_as_real_copy(torch._conj_copy(z))


def _as_complex(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    z = x.view(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
    return torch.view_as_real(z * z), (z * 2j).view(x.dtype)


BYTES = torch.tensor([[0, 1, 127], [128, 200, 255]], dtype=torch.uint8)

CASES = [
    *(OpCase(f"{name}_copy", function, (X,)) for name, function in COPIES.items()),
    *(OpCase(f"{name}_copy-int64", function, (torch.arange(24).reshape(4, 6),)) for name, function in COPIES.items()),
    *(
        OpCase(f"{name}_copy-dynamic", function, (X,), dynamic={0: {0: (2, 7)}})
        for name, function in COPIES.items()
        if name not in ("diagonal", "reshape_alias")
    ),
    OpCase("copies-half", together(*(COPIES[name] for name in ("view", "permute", "narrow", "slice"))), (X.half(),)),
    OpCase("copies-bool", together(*(COPIES[name] for name in ("view", "permute", "narrow", "slice"))), (X > 0,)),
    OpCase("as_strided_copy", lambda x: torch.as_strided_copy(x, (2, 3), (6, 2)), (X,)),
    OpCase("copies-of-complex", _of_complex, (Z,)),
    OpCase("conj_physical-real", torch.conj_physical, (X,)),
    OpCase("conj_physical-complex", lambda x: torch.view_as_real(torch.conj_physical(torch.view_as_complex(x))), (Z,)),
    OpCase("view-same-dtype", lambda x: x.view(x.dtype) + 1, (X,)),
    OpCase("view-complex", _as_complex, (X,)),
    OpCase("view-bytes-of-bool", lambda x: (x > 0).view(torch.uint8).sum(1), (X,)),
    OpCase("view-bytes-signed", lambda x: x.view(torch.int8).int(), (BYTES,), tensorrt="no torch.int8"),
    OpCase("view-bits", lambda x: x.view(torch.int32), (X,), unsupported="reads no bits"),
    OpCase("view-wider", lambda x: x.view(torch.int64), (torch.arange(4, dtype=torch.int32),), unsupported="no bits"),
    OpCase(
        "conv_tbc",
        lambda x, w, b: torch.conv_tbc(x, w, b, 1),
        (normal(5, 2, 3), normal(3, 3, 4), normal(4)),
        weights=(1, 2),
    ),
    OpCase(
        "conv_tbc-half",
        lambda x, w, b: torch.conv_tbc(x, w, b, 0),
        (normal(5, 2, 3).half(), normal(3, 3, 4).half(), normal(4).half()),
        weights=(1, 2),
    ),
]
