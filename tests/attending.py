"""Modules that attend, for the tests of what becomes of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 16
"""Channels of a head."""


class Attention(nn.Module):
    """Self-attention from three projections, or from one.

    Args:
        mask: None; ``causal``, as an argument; or a tensor.
        joint: one projection, as GPT-2 has it.
        turned: queries and keys are changed before they meet, as by rotary embeddings.
        scaled: queries are multiplied by a number before their heads are taken apart, as Whisper has it.
    """

    def __init__(
        self,
        mask: Tensor | str | None = None,
        *,
        heads: int = 4,
        groups: int = 4,
        joint: bool = False,
        turned: bool = False,
        scaled: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sizes = [WIDTH * count for count in (heads, groups, groups)]
        count = [sum(self.sizes)] if joint else self.sizes
        self.projections = nn.ModuleList(nn.Linear(64, size, bias) for size in count)
        self.out = nn.Linear(WIDTH * heads, 64)
        self.causal, self.grouped, self.turned = mask == "causal", heads != groups, turned
        self.scale = 3.0 if scaled else None
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None)

    def forward(self, x: Tensor) -> Tensor:
        made = [each(x) for each in self.projections]
        parts = made if len(made) == 3 else made[0].split(self.sizes, -1)
        if self.scale is not None:
            parts = parts[0] * self.scale, *parts[1:]
        query, key, value = (part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in parts)
        if self.turned:
            query, key = query.sin(), key.cos()
        made = F.scaled_dot_product_attention(
            query, key, value, self.mask, is_causal=self.causal, enable_gqa=self.grouped, scale=self.scale and 0.1
        )
        return self.out(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Self-attention that is written out, as Swin has it: biases of heads, and masks of windows of an image.

    Args:
        bias: broadcasts to [batch, heads, tokens, tokens].
        mask: [windows, tokens, tokens].
        late: whether the product is scaled, by a division, in place of the queries.
        used: whether the weights are results too.
        after: a number that multiplies scores when all is added.
        dim: of the softmax.
    """

    def __init__(
        self,
        bias: Tensor | None,
        mask: Tensor | None = None,
        *,
        late: bool = False,
        used: bool = False,
        after: float | None = None,
        dim: int = -1,
        heads: int = 4,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out = nn.Linear(64, 3 * WIDTH * heads), nn.Linear(WIDTH * heads, 64)
        self.register_buffer("mask", mask)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.late, self.used, self.after, self.dim, self.heads = late, used, after, dim, heads

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = x.flatten(1, -2).shape[1]
        query, key, value = self.qkv(x).reshape(-1, tokens, 3, self.heads, WIDTH).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / WIDTH**0.5 if self.late else query * WIDTH**-0.5 @ key.mT
        if self.bias is not None:
            scores = scores + self.bias
        if self.mask is not None:
            windows = scores.unflatten(0, (-1, len(self.mask))) + self.mask[:, None]
            scores = windows.reshape(scores.shape)
        if self.after is not None:
            scores = scores * self.after
        weights = scores.softmax(self.dim)
        result = self.out((weights @ value).transpose(1, 2).flatten(2))
        return (result, weights) if self.used else result
