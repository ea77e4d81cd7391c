"""Attention with rotary embeddings, as plugins that read what is turned and what is not out of two tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.passing import count, only, targets
from tests.plugging import Added, added, enterprise, optimized
from tests.rewriting import calls
from torch2trt.converters.lower import lower
from torch2trt.graph.flops import flops
from torch2trt.graph.ops import ROTARY
from torch2trt.graph.plugged_ops import PACKED_ATTENTION
from torch2trt.passes import plug_attention
from torch2trt.trt import flavour as flavours

__all__ = ["added"]  # fixtures, which tests name

aten = torch.ops.aten
HALVES: dict[str, Any] = {"precision": "fp16"}
TOKENS, WIDTH, CHANNELS = 16, 16, 64
TOLERANCE = 300.0  # of results in float32 that were computed in halves
MOVES = (aten.permute.default, aten.transpose.int, aten.cat.default, aten.neg.default)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few keys are enough."""
    monkeypatch.setattr(plug_attention, "_LEAST_KEYS", 8)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, rest), -1) if rest.shape[-1] else turned


class Rotary(nn.Module):
    """Causal self-attention whose queries and keys are turned by their places.

    Args:
        joint: one projection for queries, keys and values, in this order.
        behind: they are turned before heads are put in front of tokens.
        part: the channels of a head that are turned.
        keys: what else is done with keys before they are turned.
        own: keys are turned by other angles than queries.
        per_head: the angles of each head are its own.
    """

    def __init__(
        self,
        heads: int = 4,
        groups: int = 4,
        *,
        joint: str = "",
        behind: bool = False,
        part: int = WIDTH,
        keys: Callable[[Tensor], Tensor] = lambda x: x,
        own: bool = False,
        per_head: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.counts = {"q": heads, "k": groups, "v": groups}
        self.joint, self.behind, self.part, self.keys, self.own = joint, behind, part, keys, own
        for name, number in self.counts.items() if not joint else ():
            self.add_module(name, nn.Linear(CHANNELS, number * WIDTH))
        if joint:
            self.qkv = nn.Linear(CHANNELS, sum(self.counts.values()) * WIDTH)
        self.out = nn.Linear(heads * WIDTH, CHANNELS)
        self.register_buffer("speeds", torch.rand(*(heads, 1) * per_head, part // 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.joint:
            sizes = [self.counts[name] * WIDTH for name in self.joint]
            parts = dict(zip(self.joint, self.qkv(x).split(sizes, -1), strict=True))
        else:
            parts = {name: getattr(self, name)(x) for name in self.counts}
        query, key, value = (parts[name].unflatten(-1, (-1, WIDTH)) for name in "qkv")
        key = self.keys(key)
        angle = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None] * self.speeds
        cos, sin = (torch.cat((each, each), -1) for each in (angle.cos(), angle.sin()))
        if self.behind:
            query, key = (rotated(each, cos[:, None], sin[:, None]) for each in (query, key))
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        if not self.behind:
            query, key = rotated(query, cos, sin), rotated(key, *((sin, cos) if self.own else (cos, sin)))
        made = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=self.counts["q"] != self.counts["k"]
        )
        return self.out(made.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


X = torch.randn(2, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))

PACKED: dict[str, nn.Module] = {
    "three projections": Rotary(),
    "one projection": Rotary(joint="qkv"),
    "one projection, values first": Rotary(joint="vqk"),
    "one projection, keys first": Rotary(4, 2, joint="kqv"),
    "grouped": Rotary(8, 2),
    "one key": Rotary(4, 1),
    "turned before": Rotary(4, 2, behind=True),
    "in part": Rotary(4, 2, part=8),
}
APART: dict[str, nn.Module] = {
    "keys are changed": Rotary(4, 2, keys=lambda x: x.sigmoid()),
    "values between": Rotary(joint="qvk"),
    "other angles": Rotary(own=True),
}


@pytest.mark.parametrize("name", PACKED)
def test_one_product_and_one_embedding(name: str, added: Added) -> None:
    module = PACKED[name].eval()
    program = optimized(module, X, **HALVES)
    assert count(program, aten.linear.default) == 2
    assert not {*MOVES} & {*targets(program)}
    projected, turned = calls(program, aten.linear.default)[0], only(program, ROTARY)
    assert program.spec(turned).shape == (2, TOKENS, module.counts["q"] + module.counts["k"], WIDTH)
    assert only(program, PACKED_ATTENTION).args[:2] == ([turned, projected], [0, 0, 1])
    compare(program(X), truth(module, (X,)), TOLERANCE)
    lower(program, enterprise())
    ((inputs, plugin),) = added
    assert [tuple(each.shape) for each in inputs] == [tuple(spec.shape) for spec in plugin.call.inputs]


@pytest.mark.parametrize("name", APART)
def test_what_is_turned_apart_is_not_moved(name: str, added: Added) -> None:
    module = APART[name].eval()
    program = optimized(module, X, **HALVES)
    assert count(program, ROTARY) == count(program, aten.linear.default) == 2
    assert not {*MOVES} & {*targets(program)}
    sources, places = only(program, PACKED_ATTENTION).args[:2]
    assert sources == [*calls(program, ROTARY), calls(program, aten.linear.default)[0]]
    assert places == [0, 1, 2]
    compare(program(X), truth(module, (X,)), TOLERANCE)
    lower(program, enterprise())
    assert len(added) == 1


def test_heads_with_angles_of_their_own() -> None:
    module = Rotary(per_head=True).eval()
    program = optimized(module, X, **HALVES)
    assert count(program, ROTARY) == count(program, aten.permute.default) == 2
    assert count(program, PACKED_ATTENTION) == 1
    compare(program(X), truth(module, (X,)), TOLERANCE)


def test_without_the_operator_it_is_attention_of_what_was_made() -> None:
    module = PACKED["grouped"].eval()
    program = optimized(module, X, skip_passes=["unify_rotary"], **HALVES)
    assert count(program, aten.permute.default) == 2
    assert count(program, aten.neg.default) == 2
    compare(program(X), truth(module, (X,)), TOLERANCE)


@pytest.mark.parametrize("name", ["three projections", "grouped", "one projection", "keys are changed"])
def test_sizes_may_be_dynamic(name: str, added: Added) -> None:
    module = (PACKED | APART)[name].eval()
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("length", min=2, max=64)},)
    program = optimized(module, X, shapes=shapes, **HALVES)
    assert count(program, ROTARY) == (1 if name in PACKED else 2)
    for x in (X, X[:1, :5]):
        compare(program(x), truth(module, (x,)), TOLERANCE)
    lower(program, enterprise())
    ((_, plugin),) = added
    given = [(3, 5, *spec.shape[2:]) for spec in plugin.call.inputs]
    wanted = [[3, 5, module.counts["q"], WIDTH]]
    assert plugin.call.output_shapes(given, int, lambda *_: pytest.fail("no arithmetic")) == wanted


def test_its_operations_are_counted() -> None:
    module = PACKED["grouped"].eval()
    plain, packed = (
        sum(flops(optimized(module, X, **each), {}).values())
        for each in ({"skip_passes": ["plug_attention", "unify_rotary"], **HALVES}, HALVES)
    )
    assert plain == packed


MODELS = {"Llama": 1, "Mistral": 1, "Qwen2": 1, "Gemma": 1, "Phi3": 1, "Phi": 1, "Qwen3": 2}
"""By name, the rotary embeddings in a layer: queries and keys of Qwen3 have norms of their own."""


@pytest.mark.parametrize("name", MODELS)
def test_models_have_one_product_for_queries_keys_and_values(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4 if name == "Phi" else 2,
        head_dim=16,
        vocab_size=50,
        max_position_embeddings=64,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}Model")(config).eval()
    ids = torch.arange(TOKENS)[None]
    program = optimized(module, ids, **HALVES)
    assert count(program, ROTARY) == 2 * MODELS[name]
    assert not {*MOVES} & {*targets(program)}
    projected = {node.args[0][-1] for node in calls(program, PACKED_ATTENTION)}
    assert [node.target for node in projected] == [aten.linear.default] * 2
    compare(program(ids), truth(module, (ids,)), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*PACKED, *APART])
def test_engines_with_it_are_right(name: str) -> None:
    # A copy: the tests share the modules.
    module, x = copy.deepcopy((PACKED | APART)[name]).eval().cuda(), X.cuda()
    compiled = torch2trt.compile(module, (x,), optimization_level=0, progress="none", **HALVES)
    assert len(compiled.artifact.calls) == (compiled.artifact.flavour == flavours.TENSORRT)
    for _ in range(3):
        compare(compiled(x), truth(module, (x,)), TOLERANCE)
