"""Rows of torch2trt/converters/attention.py."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.export import Dim

from tests.cases import normal
from tests.harness import OpCase

B, H, L, S, D = 2, 4, 5, 7, 8


def qkv(dtype: torch.dtype = torch.float32, size: int = D, heads: int = H) -> tuple[torch.Tensor, ...]:
    shapes = ((B, H, L, size), (B, heads, S, size), (B, heads, S, size))
    return tuple(normal(*shape, seed=seed, dtype=dtype) * 2 for seed, shape in enumerate(shapes))


def attention(name: str, *tensors: torch.Tensor, **options: Any) -> OpCase:
    """A row whose fourth tensor is the mask."""
    row = {name: options.pop(name) for name in ("dynamic", "weights", "unsupported", "raises") if name in options}
    return OpCase(f"attention-{name}", F.scaled_dot_product_attention, tensors, options, **row)


BATCH, QUERIES, KEYS = Dim("batch", min=1, max=3), Dim("queries", min=2, max=9), Dim("keys", min=2, max=9)
SIZE = Dim("size", min=2, max=9)
DYNAMIC = {0: {0: BATCH, 2: QUERIES}, 1: {0: BATCH, 2: KEYS}, 2: {0: BATCH, 2: KEYS}}
QKV = qkv()
SELF = tuple(normal(B, H, L, D, seed=seed) for seed in range(3))
# Every query sees a key here, and one sees none there.
VISIBLE = normal(L, S) > -0.5
BLIND = VISIBLE.clone()
BLIND[2] = False


def additive(mask: torch.Tensor, value: float = -math.inf) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, value)


def some(*shape: int) -> torch.Tensor:
    return normal(*shape, seed=5) > 0.2


MASKS = (
    VISIBLE,
    BLIND,
    some(B, 1, 1, S),
    some(B, H, L, S),
    some(H, 1, S),
    torch.tensor([True, False, True, True, False])[:, None],
    normal(L, S),
    additive(VISIBLE),
    additive(BLIND),
    additive(BLIND, torch.finfo(torch.float32).min),
    normal(1, H, L, S),
    additive(some(B, 1, L, S)),
)


def masked(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> Any:
    return tuple(F.scaled_dot_product_attention(query, key, value, mask) for mask in masks)


def grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> Any:
    """Every form of attention whose queries share keys."""
    attend = functools.partial(F.scaled_dot_product_attention, query, key, value, enable_gqa=True)
    return attend(), attend(is_causal=True), *(attend(mask) for mask in masks)


def every_form(*tensors: torch.Tensor) -> Any:
    query, key, value, *masks = tensors
    causal = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(query, key, value), causal, masked(query, key, value, *masks)


def flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *masks: torch.Tensor) -> Any:
    """Attention as the Core ATen opset has it."""
    attend = functools.partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, query, key, value)
    return attend()[0], attend(is_causal=True)[0], attend(scale=0.3)[0], *(attend(attn_mask=mask)[0] for mask in masks)


CASES = [
    OpCase("attention-flash-cpu", flash, (*QKV, normal(L, S), additive(VISIBLE))),
    OpCase("attention-flash-cpu-dynamic", flash, QKV, dynamic=DYNAMIC),
    OpCase(
        "attention-flash-cpu-sums",
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        QKV,
        unsupported="logarithms of the sums",
    ),
    attention("plain", *QKV),
    attention("scale", *QKV, scale=0.3),
    attention("odd-head-size", *qkv(size=5)),
    attention("value-of-another-size", *QKV[:2], normal(B, H, S, 3)),
    attention("causal", *SELF, is_causal=True),
    attention("causal-more-keys", *QKV, is_causal=True),
    attention("causal-more-queries", QKV[1], QKV[0], QKV[0], is_causal=True),
    OpCase("attention-masks", masked, (*QKV, *MASKS)),
    OpCase("attention-constant-masks", masked, (*QKV, *MASKS), weights=range(3, 3 + len(MASKS))),
    attention("rank-3", *(tensor[0] for tensor in QKV), VISIBLE),
    attention("rank-3-causal", *(tensor[0] for tensor in QKV), is_causal=True),
    attention("rank-2", *(tensor[0, 0] for tensor in QKV)),
    attention("rank-5", *(tensor[None] for tensor in QKV), some(B, 1, 1, S)[None]),
    attention("broadcast-keys", QKV[0], QKV[1][:1], QKV[2][:1]),
    attention("grouped-queries", *qkv(heads=2), enable_gqa=True),
    attention("grouped-queries-one-head", *qkv(heads=1), VISIBLE, enable_gqa=True),
    attention("grouped-queries-equal", *QKV, enable_gqa=True),
    attention("grouped-queries-dynamic", *qkv(heads=2), enable_gqa=True, is_causal=True, dynamic=DYNAMIC),
    attention("grouped-queries-rank-3", *(tensor[0] for tensor in qkv(heads=2)), some(H, L, S), enable_gqa=True),
    attention(
        "grouped-queries-rank-5", *(tensor[None] for tensor in qkv(heads=2)), some(B, H, L, S)[None], enable_gqa=True
    ),
    attention("grouped-queries-value-of-another-size", *qkv(heads=2)[:2], normal(B, 2, S, 3), enable_gqa=True),
    attention("grouped-queries-broadcast", QKV[0], *(each[:1] for each in qkv(heads=2)[1:]), VISIBLE, enable_gqa=True),
    attention(
        "grouped-queries-dynamic-head-size",
        *qkv(heads=2),
        enable_gqa=True,
        scale=0.5,
        dynamic={position: {0: BATCH, 2: QUERIES if position == 0 else KEYS, 3: SIZE} for position in range(3)},
    ),
    *(
        OpCase(f"attention-grouped-queries-{heads}-of-{H}", grouped, (*qkv(heads=heads), *MASKS, some(B, H, 1, S)))
        for heads in (1, 2)
    ),
    OpCase(
        "attention-grouped-queries-constant-masks",
        grouped,
        (*qkv(heads=2), *MASKS, some(1, H, 1, S)),
        weights=range(3, 4 + len(MASKS)),
    ),
    OpCase(
        "attention-grouped-queries-dynamic-masks",
        grouped,
        (*qkv(heads=2), BLIND, additive(some(B, 1, L, S)), some(B, 1, 1, S), some(B, H, 1, S), some(B, H, L, S)),
        dynamic=DYNAMIC
        | {3: {0: QUERIES, 1: KEYS}}
        | {position: {0: BATCH, 2: QUERIES, 3: KEYS} for position in (4, 7)}
        | {position: {0: BATCH, 3: KEYS} for position in (5, 6)},
    ),
    attention("dynamic", *QKV, dynamic=DYNAMIC),
    attention("dynamic-causal", *QKV, is_causal=True, dynamic=DYNAMIC),
    attention("dynamic-mask", *QKV, BLIND, dynamic={**DYNAMIC, 3: {0: QUERIES, 1: KEYS}}),
    attention(
        "dynamic-additive", *QKV, additive(some(B, 1, L, S)), dynamic={**DYNAMIC, 3: {0: BATCH, 2: QUERIES, 3: KEYS}}
    ),
    attention("dynamic-keys", *QKV, some(B, 1, 1, S), dynamic={**DYNAMIC, 3: {0: BATCH, 3: KEYS}}),
    attention(
        "dynamic-head-size", *QKV, dynamic={position: {3: SIZE} for position in range(3)}, unsupported="default scale"
    ),
    attention("dynamic-head-size-and-scale", *QKV, scale=0.5, dynamic={position: {3: SIZE} for position in range(3)}),
    attention("dropout", *QKV, dropout_p=0.1, raises="T2T106"),
    *(
        OpCase(f"attention-{str(dtype)[6:]}-{size}", every_form, (*qkv(dtype, size), BLIND, additive(BLIND).to(dtype)))
        for dtype in (torch.float16, torch.bfloat16)
        for size in (8, 80)
    ),
    *(
        OpCase(
            f"attention-grouped-queries-{str(dtype)[6:]}",
            grouped,
            (*qkv(dtype, heads=2), BLIND, additive(BLIND).to(dtype), some(B, H, 1, S)),
        )
        for dtype in (torch.float16, torch.bfloat16)
    ),
]
