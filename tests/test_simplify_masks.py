"""Masks of attention whose values are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.passes import simplify_masks as passes
from torch2trt.passes.constants import constants, value_of
from torch2trt.passes.simplify_masks import simplify_masks
from torch2trt.settings import Settings

aten = torch.ops.aten

N, H, L, S, E = 2, 3, 4, 6, 8
QUERY, KEY, VALUE = drawn(N, H, L, E), drawn(N, H, S, E, seed=1), drawn(N, H, S, E, seed=2)
LOWEST = torch.finfo(torch.float32).min

EXACT = Settings(precision="fp32", optimization_level=0)


def attending(mask: Callable[[], Tensor], **keywords: Any) -> Net:
    return Net(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask(), **keywords))


def causal() -> Tensor:
    return torch.ones(L, S, dtype=torch.bool).tril()


def positions() -> Tensor:
    """As language models make it, for each batch."""
    query, key = torch.arange(L).expand(N, L), torch.arange(S).expand(N, S)
    return (key[:, None, None] <= query[:, None, :, None]) & torch.ones((), dtype=torch.bool)


def added(mask: Tensor, lowest: float) -> Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


CAUSAL: dict[str, Callable[[], Tensor]] = {
    "boolean": causal,
    "for each batch": positions,
    "added infinities": lambda: added(causal(), -float("inf")),
    "added lowest numbers": lambda: added(positions(), LOWEST),
}
NONE: dict[str, Callable[[], Tensor]] = {
    "boolean": lambda: torch.ones(N, 1, L, S, dtype=torch.bool),
    "for one query": lambda: torch.ones(1, S, dtype=torch.bool),
    "added": lambda: torch.zeros(L, S),
}
OTHERS: dict[str, Callable[[], Tensor]] = {
    "lower right": lambda: torch.ones(L, S, dtype=torch.bool).tril(S - L),
    "a window": lambda: causal() & torch.ones(L, S, dtype=torch.bool).triu(-1),
    "a key that none sees": lambda: (torch.arange(S) != 2).expand(L, S),
    "a query that sees nothing": lambda: (torch.arange(L) != 1)[:, None].expand(L, S),
    "a bias": lambda: added(causal(), -10000.0),
    "other numbers": lambda: added(causal(), LOWEST) + torch.eye(L, S),
}


def arguments(program: Program) -> dict[str, Any]:
    (node,) = (node for node in program.calls if node.target is aten.scaled_dot_product_attention.default)
    return bind(node)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_ones(name: str) -> None:
    found = arguments(rewritten(attending(CAUSAL[name]), QUERY, KEY, VALUE, passes=(simplify_masks,)))
    assert (found["attn_mask"], found["is_causal"]) == (None, True)
    check_module(attending(CAUSAL[name]), (QUERY, KEY, VALUE), EXACT)


@pytest.mark.parametrize("name", NONE)
def test_those_that_hide_nothing(name: str) -> None:
    module = attending(NONE[name], scale=0.5)
    found = arguments(rewritten(module, QUERY, KEY, VALUE, passes=(simplify_masks,)))
    assert (found["attn_mask"], found["is_causal"], found["scale"]) == (None, False, 0.5)
    check_module(module, (QUERY, KEY, VALUE), EXACT)


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_masks(name: str) -> None:
    found = arguments(rewritten(attending(OTHERS[name]), QUERY, KEY, VALUE, passes=(simplify_masks,)))
    assert found["attn_mask"] is not None
    assert not found["is_causal"]
    check_module(attending(OTHERS[name]), (QUERY, KEY, VALUE), EXACT)


@pytest.mark.parametrize(("axes", "shape"), [((0,), (1, H, L, S)), ((1,), (N, 1, L, S)), ((0, 1), (1, 1, L, S))])
def test_one_of_equal_ones_is_kept(axes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    size = [1 if axis in axes else count for axis, count in enumerate((N, H, L, S))]
    held = (drawn(*size, seed=3) > -1) | torch.eye(L, S, dtype=torch.bool)
    module = Net(
        lambda self, q, k, v: F.scaled_dot_product_attention(q, k, v, self.mask & self.mask),
        mask=held.expand(N, H, L, S).clone(),
    )
    program = rewritten(module, QUERY, KEY, VALUE, passes=(simplify_masks,))
    assert program.spec(arguments(program)["attn_mask"]).shape == shape
    whole = rewritten(module, QUERY, KEY, VALUE)
    assert aten.slice.Tensor not in targets(whole)
    check_module(module, (QUERY, KEY, VALUE), EXACT)


def test_masks_of_inputs_and_of_dynamic_sizes_stay() -> None:
    module = Net(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask))
    found = arguments(rewritten(module, QUERY, KEY, VALUE, causal(), passes=(simplify_masks,)))
    assert found["attn_mask"].op == "placeholder"
    size = Dim("size", min=2, max=16)
    same = drawn(N, H, L, E)
    module = Net(lambda q: F.scaled_dot_product_attention(q, q, q, torch.ones(q.shape[2], q.shape[2]).tril() > 0))
    found = arguments(rewritten(module, same, passes=(simplify_masks,), dynamic_shapes=(({2: size},),)))
    assert found["attn_mask"] is not None


def test_large_masks_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_LARGEST", L * S - 1)
    found = arguments(rewritten(attending(causal), QUERY, KEY, VALUE, passes=(simplify_masks,)))
    assert found["attn_mask"] is not None


def test_gpt2_has_no_mask() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, use_cache=False, bos_token_id=0, eos_token_id=1
    )
    tokens = torch.arange(30).reshape(3, 10)
    module = transformers.GPT2Model(config).eval()
    program = rewritten(module, tokens, tolerance=1e-6)
    heads = [bind(node) for node in program.calls if node.target is aten.scaled_dot_product_attention.default]
    assert [(each["attn_mask"], each["is_causal"]) for each in heads] == [(None, True)] * 2
    assert not {aten.where.self, aten.le.Tensor} & {*targets(program)}


def test_values_of_constants() -> None:
    module = Net(lambda self, x: x + (self.weight.exp() + torch.arange(3)) * 2, weight=drawn(3))
    program = rewritten(module, drawn(3), passes=())
    constant = [node for node in program.calls if node in constants(program)]
    expected = (module.weight.exp() + torch.arange(3)) * 2
    assert torch.equal(value_of(program, constant[-1]), expected)
    hoisted = rewritten(module, drawn(3))
    (weight,) = hoisted.weight_placeholders
    assert torch.equal(value_of(hoisted, weight), expected)
