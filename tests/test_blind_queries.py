"""Queries that may attend to nothing: their zero is put in after the projection, where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import check_module
from torch2trt import api
from torch2trt.graph.ops import ATTENTION
from torch2trt.graph.program import Program
from torch2trt.settings import Settings

# Rows run on the GPU too, where there is one.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

aten = torch.ops.aten
B, H, L, S, D = 2, 3, 5, 5, 4
EXACT = Settings(precision="fp32", optimization_level=0)


class Attention(nn.Module):
    """Self-attention with a mask, and what follows it."""

    def __init__(self, after: Callable[[Any, Tensor], Any], *, bias: bool = True) -> None:
        super().__init__()
        self.after = after
        self.projection = nn.Linear(H * D, 6, bias=bias)
        self.register_buffer("own", torch.ones(L, S, dtype=torch.bool))
        self.eval()

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        heads = x.view(x.shape[0], x.shape[1], H, D).transpose(1, 2)
        return self.after(self, F.scaled_dot_product_attention(heads, heads.flip(-1), heads * 2, mask))


def joined(module: Any, result: Tensor) -> Tensor:
    return module.projection(result.transpose(1, 2).reshape(result.shape[0], -1, H * D))  # type: ignore[no-any-return]


def permuted(module: Any, result: Tensor) -> Tensor:
    return module.projection(result.permute(0, 2, 1, 3).flatten(2)).relu()  # type: ignore[no-any-return]


def blind(*shape: int) -> Tensor:
    """A mask with queries of every kind: some see nothing."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[..., 0, :] = False
    mask[..., -1, :] = True
    return mask


def added(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, -math.inf)


X = torch.randn(B, L, H * D, generator=torch.Generator().manual_seed(1))


def optimized(module: nn.Module, *inputs: Tensor) -> Program:
    return api.optimize(api.capture(module, inputs), EXACT)


def deferred(program: Program) -> bool:
    targets = [node.target for node in program.calls]
    assert (ATTENTION in targets) != (aten.scaled_dot_product_attention.default in targets)
    return ATTENTION in targets


MASKS = {
    "whole": blind(B, 1, L, S),
    "of-the-batch": blind(B, 1, 1, S) & torch.tensor([True, False])[:, None, None, None],
    "of-all": blind(L, S),
    "added": added(blind(B, 1, L, S)),
    "added-of-all": added(blind(1, L, S)),
}


@pytest.mark.parametrize("after", [joined, permuted])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_zero_comes_after_the_projection(after: Callable[..., Any], bias: bool, mask: Tensor) -> None:
    module = Attention(after, bias=bias)
    assert deferred(optimized(module, X, mask))
    check_module(module, (X, mask), EXACT)
    unseen = Attention(joined)
    assert torch.equal(unseen(X, torch.zeros(L, S, dtype=torch.bool))[0, 0], unseen.projection.bias)


def test_dynamic_sizes() -> None:
    batch, tokens = Dim("batch", min=1, max=4), Dim("tokens", min=2, max=8)
    module = Attention(joined)
    shapes = {"x": {0: batch, 1: tokens}, "mask": {0: batch, 2: tokens, 3: tokens}}
    others = [(torch.randn(n, t, H * D), blind(n, 1, t, t)) for n, t in ((1, 2), (4, 8))]
    program = api.optimize(api.capture(module, (X, MASKS["whole"]), dynamic_shapes=shapes), EXACT)
    assert deferred(program)
    check_module(module, (X, MASKS["whole"]), EXACT, dynamic_shapes=shapes, others=others)


def test_layers_share_what_is_seen() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attention(joined), Attention(joined)
            self.first.projection = nn.Linear(H * D, H * D)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.second(self.first(x, mask), mask)  # type: ignore[no-any-return]

    program = optimized(Layers().eval(), X, MASKS["whole"])
    targets = [node.target for node in program.calls]
    assert targets.count(ATTENTION) == 2
    assert targets.count(aten.any.dim) == 1
    check_module(Layers().eval(), (X, MASKS["whole"]), EXACT)


LEFT_ALONE: dict[str, tuple[Callable[..., Any], Tensor]] = {
    "no-projection": (lambda module, result: result.transpose(1, 2), MASKS["whole"]),
    "used-twice": (lambda module, result: (result, joined(module, result)), MASKS["whole"]),
    "between": (lambda module, result: joined(module, result + 1), MASKS["whole"]),
    "heads-differ": (joined, blind(B, H, L, S)),
    "heads-as-rows": (lambda module, result: F.linear(result, module.projection.weight[:, :D]), MASKS["whole"]),
}


@pytest.mark.parametrize(("after", "mask"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_left_alone(after: Callable[..., Any], mask: Tensor) -> None:
    module = Attention(after)
    assert not deferred(optimized(module, X, mask))
    check_module(module, (X, mask), EXACT)


def test_masks_among_the_weights_speak_for_themselves() -> None:
    class Own(Attention):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x, self.own)

    assert not deferred(optimized(Own(joined), X))
    for mask in (torch.ones(L, S, dtype=torch.bool).tril(), blind(L, S)):
        module = Own(joined)
        module.own = mask
        check_module(module, (X,), EXACT)


def test_an_empty_sequence() -> None:
    class Padded(Attention):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            mask = torch.arange(L, device=x.device)[None, :] < lengths[:, None]
            return super().forward(x, mask[:, None, None, :].expand(-1, 1, L, -1))

    lengths = torch.tensor([3, 0])
    compiled = torch2trt.compile(Padded(joined), (X, lengths), precision="fp16", progress="none", optimization_level=0)
    assert compiled.verify(X, lengths).passed
