"""Attention that torch's kernels compute, as plugins, where TensorRT has plugins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import check_module, compare, truth
from tests.passing import targets
from tests.plugging import Added, added, enterprise, optimized
from torch2trt.converters import attention as converters
from torch2trt.converters.lower import lower
from torch2trt.graph.ops import FLASH_ATTENTION, PLUGGABLE_ATTENTION
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

__all__ = ["added"]  # fixtures, which tests name

PLUGGED: dict[str, Any] = {"extra_passes": ["plug_attention"], "precision": "fp16"}
TOKENS = 16


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys are enough."""
    monkeypatch.setattr(converters, "_LEAST_KEYS", 8)


class Attention(nn.Module):
    """Self-attention from three projections.

    Args:
        mask: None; ``causal``, as an argument; or a tensor.
    """

    def __init__(self, mask: Tensor | str | None = None, *, heads: int = 4, groups: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(64, 16 * count) for count in (heads, groups, groups))
        self.out = nn.Linear(16 * heads, 64)
        self.causal, self.grouped = mask == "causal", heads != groups
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None)

    def forward(self, x: Tensor) -> Tensor:
        split = (each(x).unflatten(-1, (-1, 16)).transpose(1, 2) for each in (self.query, self.key, self.value))
        made = F.scaled_dot_product_attention(
            *split, attn_mask=self.mask, is_causal=self.causal, enable_gqa=self.grouped
        )
        return self.out(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


X = torch.randn(2, TOKENS, 64, generator=torch.Generator().manual_seed(1))
CAUSAL = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
SEES_ALL, OTHER = torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool), torch.randn(TOKENS, TOKENS) > -1

MODULES: dict[str, tuple[nn.Module, bool]] = {
    "plain": (Attention(), False),
    "causal": (Attention("causal"), True),
    "causal by a mask": (Attention(CAUSAL), True),
    "causal by a mask for each": (Attention(CAUSAL.expand(2, 1, TOKENS, TOKENS)), True),
    "a mask that hides nothing": (Attention(SEES_ALL), False),
    "grouped": (Attention("causal", heads=8, groups=2), True),
}

KEPT: dict[str, nn.Module] = {
    "another mask": Attention(OTHER | torch.eye(TOKENS, dtype=torch.bool)),
    "a mask that is added": Attention(torch.randn(TOKENS, TOKENS)),
    "upper triangle": Attention(CAUSAL.T.contiguous()),
}


@pytest.mark.parametrize("name", MODULES)
def test_it_is_a_plugin(name: str, added: Added) -> None:
    module, causal = MODULES[name]
    program = optimized(module.eval(), X, **PLUGGED)
    assert targets(program).count(PLUGGABLE_ATTENTION) == 1
    lower(program, enterprise())
    ((inputs, plugin),) = added
    assert plugin.call.target is FLASH_ATTENTION
    assert [tuple(each.shape) for each in inputs] == [tuple(spec.shape) for spec in plugin.call.inputs]
    query, key, _ = (torch.randn(tuple(spec.shape), dtype=torch.float64) for spec in plugin.call.inputs)
    # Queries see what they should: values that name their places come back as the means of those that are seen.
    places = torch.arange(TOKENS, dtype=torch.float64).reshape(1, -1, 1, 1).expand(key.shape).contiguous()
    (made,) = plugin.call.run([torch.zeros_like(query), key, places])
    seen = torch.arange(TOKENS) / 2 if causal else torch.full((TOKENS,), (TOKENS - 1) / 2)
    assert torch.allclose(made, seen.double().reshape(1, -1, 1, 1).expand(made.shape))


@pytest.mark.parametrize("name", [*MODULES, *KEPT])
def test_without_plugins_it_is_tensorrts(name: str) -> None:
    module = {**KEPT, **{key: module for key, (module, _) in MODULES.items()}}[name]
    settings = Settings.make(optimization_level=0, progress="none", **PLUGGED)
    check_module(module.eval(), (X,), settings, tolerance=300.0)  # of float32's, for results in float32


@pytest.mark.parametrize("name", KEPT)
def test_other_masks_are_tensorrts(name: str, added: Added) -> None:
    lower(optimized(KEPT[name].eval(), X, **PLUGGED), enterprise())
    assert not added


def test_what_it_does_not_pay_for(added: Added, monkeypatch: pytest.MonkeyPatch) -> None:
    lower(optimized(Attention().eval(), X, extra_passes=["plug_attention"], precision="fp32"), enterprise())
    monkeypatch.setattr(converters, "_LEAST_KEYS", TOKENS + 1)
    lower(optimized(Attention().eval(), X, **PLUGGED), enterprise())
    assert not added


def test_dynamic_lengths_count_as_they_usually_are(added: Added, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ({1: Dim("length", min=2, max=64)},)
    monkeypatch.setattr(converters, "_LEAST_KEYS", TOKENS)
    lower(optimized(Attention("causal").eval(), X, shapes=shapes, **PLUGGED), enterprise())
    ((_, plugin),) = added
    assert plugin.call.output_shapes([(2, 5, 4, 16)] * 3, int, lambda *_: pytest.fail("no arithmetic")) == [
        [2, 5, 4, 16]
    ]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_operator_is_attention(grouped: bool) -> None:
    query, key, value = (torch.randn(2, 9, heads, 16) for heads in (4, 2 if grouped else 4, 2 if grouped else 4))
    for causal in (False, True):
        found = FLASH_ATTENTION(query, key, value, causal, 0.3)
        repeated = (each.repeat_interleave(4 // each.shape[2], 2).transpose(1, 2) for each in (query, key, value))
        wanted = F.scaled_dot_product_attention(*repeated, is_causal=causal, scale=0.3).transpose(1, 2)
        assert torch.allclose(found, wanted, atol=1e-6)
        assert found.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODULES)
def test_engines_with_it_are_right(name: str) -> None:
    module, x = MODULES[name][0].eval().cuda(), X.cuda()
    compiled = torch2trt.compile(module, (x,), optimization_level=0, progress="none", **PLUGGED)
    assert len(compiled.artifact.calls) == (compiled.artifact.flavour == flavours.TENSORRT)
    for _ in range(3):
        compare(compiled(x), truth(module, (x,)), 3e-3)
