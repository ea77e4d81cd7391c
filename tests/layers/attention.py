"""Attention, rotary embedding, key and value caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bare_network import FLAVOUR, BareNetwork, first, trt
from tests.layers.row import Row, normal

QUERY, KEY, VALUE = normal(2, 4, 5, 16), normal(2, 2, 7, 16), normal(2, 2, 7, 16, seed=1)
GENERATOR = torch.Generator().manual_seed(0)
ALLOWED = torch.rand(2, 1, 5, 7, generator=GENERATOR) < 0.7
ALLOWED[..., 0] = True  # no query without a key
TRIANGLE = torch.ones(5, 7, dtype=torch.bool)


def attention(causal: str = "NONE", norm: str = "SOFTMAX") -> Callable[..., Any]:
    def build(net: BareNetwork, q: Any, k: Any, v: Any, *mask: Any) -> Any:
        operation = getattr(trt.AttentionNormalizationOp, norm)
        if FLAVOUR.has("attention_v2"):
            kind = getattr(trt.CausalMaskKind, causal)
            layer = net.definition.add_attention_v2(q, k, v, operation, kind)
        else:
            layer = net.definition.add_attention(q, k, v, operation, causal == "UPPER_LEFT")
        layer.decomposable = True
        if mask:
            (layer.mask,) = mask
        return first(layer)

    return build


def truth(mask: Tensor | None = None) -> Callable[..., Tensor]:
    def compute(q: Tensor, k: Tensor, v: Tensor, given: Tensor | None = None) -> Tensor:
        chosen = mask if given is None else given
        return F.scaled_dot_product_attention(q, k, v, chosen, scale=1.0, enable_gqa=True)

    return compute


ATTENTION = [
    Row("attention", attention(), (QUERY, KEY, VALUE), truth(), needs="attention"),
    Row("attention-mask", attention(), (QUERY, KEY, VALUE, ALLOWED), truth(), needs="attention"),
    Row("attention-added-mask", attention(), (QUERY, KEY, VALUE, normal(1, 4, 5, 7)), truth(), needs="attention"),
    Row("attention-causal", attention("UPPER_LEFT"), (QUERY, KEY, VALUE), truth(TRIANGLE.tril()), needs="attention"),
    Row(
        "attention-causal-decoding",
        attention("LOWER_RIGHT"),
        (QUERY, KEY, VALUE),
        truth(TRIANGLE.tril(2)),
        needs="attention_v2",
    ),
    Row(
        "attention-linear",
        attention(norm="NONE"),
        (QUERY, KEY, VALUE),
        lambda q, k, v: (q @ k.mT.repeat_interleave(2, 1)) @ v.repeat_interleave(2, 1),
        needs="attention",
    ),
]


def rotate(interleaved: bool, dims: int) -> Callable[..., Any]:
    def build(net: BareNetwork, x: Any, cos: Any, sin: Any, *positions: Any) -> Any:
        layer = net.definition.add_rotary_embedding(x, cos, sin, interleaved, dims)
        if positions:
            layer.set_input(3, positions[0])
        return first(layer)

    return build


def rotation(pairs: Callable[[int], tuple[int, int]], count: int) -> Callable[..., Tensor]:
    """Feature by feature: the pair is a complex number, turned by the angle of the token."""

    def compute(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            cos, sin = cos[positions.long()], sin[positions.long()]
        y = x.clone()
        for i in range(count):
            a, b = pairs(i)
            turned = torch.complex(x[..., a], x[..., b]) * torch.complex(cos, sin)[:, None, :, i]
            y[..., a], y[..., b] = turned.real, turned.imag
        return y

    return compute


TOKENS = normal(2, 3, 5, 8)
COS, SIN = normal(2, 5, 4), normal(2, 5, 4, seed=1)
ROTATIONS = [
    Row("rotary", rotate(False, 0), (TOKENS, COS, SIN), rotation(lambda i: (i, i + 4), 4), needs="attention"),
    Row(
        "rotary-interleaved",
        rotate(True, 0),
        (TOKENS, COS, SIN),
        rotation(lambda i: (2 * i, 2 * i + 1), 4),
        needs="attention",
    ),
    Row(
        "rotary-partial",
        rotate(False, 4),
        (TOKENS, COS[..., :2], SIN[..., :2]),
        rotation(lambda i: (i, i + 2), 2),
        needs="attention",
    ),
    Row(
        "rotary-positions",
        rotate(False, 0),
        (TOKENS, normal(9, 4), normal(9, 4, seed=1), torch.tensor([[0, 1, 2, 3, 8], [4, 4, 5, 6, 7]])),
        rotation(lambda i: (i, i + 4), 4),
        needs="attention",
    ),
]


def cache_update(net: BareNetwork, cache: Any, update: Any, places: Any) -> Any:
    return first(net.definition.add_kv_cache_update(cache, update, places, trt.KVCacheMode.LINEAR))


def cached(cache: Tensor, update: Tensor, places: Tensor) -> Tensor:
    y = cache.clone()
    for i, s in ((i, s) for i in range(2) for s in range(2)):
        if places[i] + s < 6:
            y[i, :, places[i] + s] = update[i, :, s]
    return y


CACHES = [
    Row(
        "kv_cache_update",
        cache_update,
        (normal(2, 3, 6, 4), normal(2, 3, 2, 4), torch.tensor([1, 5], dtype=torch.int32)),
        cached,
        needs="attention",
        engine="its output must lie where its input does",
    ),
]

ROWS = [*ATTENTION, *ROTATIONS, *CACHES]
