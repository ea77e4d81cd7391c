"""Heads share keys and values that the module repeats for them."""

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
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.graph.ops import ATTENTION
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

# Rows run on the GPU too, where there is one.
pytestmark = [pytest.mark.gpu] if torch.cuda.is_available() else []

aten = torch.ops.aten
SDPA = aten.scaled_dot_product_attention.default
B, H, G, L, S, D = 2, 6, 2, 5, 7, 4
EXACT = Settings(precision="fp32", optimization_level=0)
Q, K, V = drawn(B, H, L, D), drawn(B, G, S, D, seed=1), drawn(B, G, S, D, seed=2)
MASK = drawn(B, 1, L, S, seed=3) > -0.5

Repeat = Callable[[Tensor], Tensor]


def attending(repeat: Repeat, value: Repeat | None = None, **options: Any) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, repeat(k), (value or repeat)(v), mask, **options)

    return run


def expanded(x: Tensor) -> Tensor:
    """As the models of transformers do."""
    batch, groups, tokens, size = x.shape
    wide = x[:, :, None].expand(batch, groups, H // groups, tokens, size)
    return wide.reshape(batch, H, tokens, size)


def before_the_transpose(x: Tensor) -> Tensor:
    """As the first Llama did."""
    x = x.transpose(1, 2)
    batch, tokens, groups, size = x.shape
    return x[:, :, :, None].expand(batch, tokens, groups, H // G, size).reshape(batch, tokens, H, size).transpose(1, 2)


SHARED: dict[str, tuple[Repeat, int]] = {
    "expanded": (expanded, G),
    "before-the-transpose": (before_the_transpose, G),
    "repeated": (lambda x: x.unsqueeze(2).repeat(1, 1, H // G, 1, 1).flatten(1, 2), G),
    "interleaved": (lambda x: x.repeat_interleave(H // G, 1), G),
    "interleaved-early": (lambda x: x.transpose(1, 2).repeat_interleave(H // G, -2).permute(0, 2, 1, 3), G),
    "with-what-others-use": (lambda x: expanded(x.sin() + x), G),
    "one-for-all": (lambda x: x[:, :1].expand(-1, H, -1, -1), 1),
    "one-for-all-repeated": (lambda x: x[:, 1:].repeat(1, H, 1, 1), 1),
}


def grouping(program: Program) -> list[tuple[bool, Any, Any]]:
    """Of each attention: whether it is of grouped queries, and the heads of its keys and values."""
    found = [bind(node) for node in program.calls if node.target in (SDPA, ATTENTION)]
    return [(each["enable_gqa"], *(program.spec(each[name]).shape[-3] for name in ("key", "value"))) for each in found]


@pytest.mark.parametrize("name", SHARED)
def test_what_is_repeated_is_shared(name: str) -> None:
    repeat, groups = SHARED[name]
    module = Net(attending(repeat))
    program = rewritten(module, Q, K, V)
    assert grouping(program) == [(True, groups, groups)]
    assert not {aten.expand.default, aten.repeat.default, aten.repeat_interleave.self_int} & {*targets(program)}
    check_module(module, (Q, K, V), EXACT)


@pytest.mark.parametrize("mask", [MASK, MASK[0, 0], drawn(H, 1, S, seed=4), drawn(B, 1, 1, S, seed=5) > 0])
def test_masks(mask: Tensor) -> None:
    module = Net(attending(expanded))
    assert grouping(rewritten(module, Q, K, V, mask)) == [(True, G, G)]
    check_module(module, (Q, K, V, mask), EXACT)


@pytest.mark.parametrize("options", [{"is_causal": True}, {"scale": 0.3}])
def test_options(options: dict[str, Any]) -> None:
    module = Net(attending(expanded, **options))
    (node,) = calls(rewritten(module, Q, K, V), SDPA)
    assert bind(node).items() >= {**options, "enable_gqa": True}.items()
    check_module(module, (Q, K, V), EXACT)


def test_other_ranks() -> None:
    def three(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, *(each.repeat_interleave(H // G, 0) for each in (k, v)))

    def five(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q[None], *(expanded(each)[None] for each in (k, v)))

    for function, inputs in ((three, (Q[0], K[0], V[0])), (five, (Q, K, V))):
        assert grouping(rewritten(Net(function), *inputs)) == [(True, G, G)]
        check_module(Net(function), inputs, EXACT)


def test_dynamic_sizes() -> None:
    batch, queries, keys = Dim("batch", min=1, max=4), Dim("queries", min=1, max=8), Dim("keys", min=2, max=9)
    shapes = ({0: batch, 2: queries}, *({0: batch, 2: keys},) * 2, {0: batch, 2: queries, 3: keys})
    others = [
        (drawn(n, H, q, D), drawn(n, G, s, D, seed=1), drawn(n, G, s, D, seed=2), drawn(n, 1, q, s, seed=3) > -0.5)
        for n, q, s in ((1, 1, 2), (4, 8, 9))
    ]
    for mask in (True, False):
        module = Net(attending(expanded, is_causal=not mask))
        inputs, more = ((each if mask else each[:3]) for each in ((Q, K, V, MASK), shapes))
        cut = [each if mask else each[:3] for each in others]
        program = api.optimize(api.capture(module, inputs, dynamic_shapes=(more,)), EXACT)
        assert grouping(program) == [(True, G, G)]
        check_module(module, inputs, EXACT, dynamic_shapes=(more,), others=cut)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: torch.dtype) -> None:
    inputs = tuple(each.to(dtype) for each in (Q, K, V))
    module, settings = Net(attending(expanded)), Settings(optimization_level=0)
    assert grouping(api.optimize(api.capture(module, inputs), settings)) == [(True, G, G)]
    check_module(module, inputs, settings)


def test_nothing_is_repeated_in_the_network() -> None:
    def kinds(**settings: Any) -> list[str]:
        program = api.optimize(api.capture(Net(attending(expanded)), (Q, K, V)), Settings.make(**settings))
        definition = lower(program, flavours.load()).definition
        return [definition.get_layer(number).type.name for number in range(definition.num_layers)]

    assert "SLICE" not in kinds()
    assert kinds(skip_passes=["group_attention"]).count("SLICE") == 2


LEFT: dict[str, Callable[..., Tensor]] = {
    # Heads in turn: those that come together have different keys.
    "in-turn": attending(lambda x: x.repeat(1, H // G, 1, 1)),
    "in-turn-expanded": attending(lambda x: x[:, None].expand(B, H // G, G, S, D).reshape(B, H, S, D)),
    "keys-alone": attending(expanded, lambda x: torch.cat([x, x, x.sin()], 1)),
    "keys-in-other-groups": attending(expanded, lambda x: x[:, :1].expand(-1, H, -1, -1)),
    "another-dimension": attending(lambda x: torch.cat([x, x, x], 1)[:, :, :1].expand(-1, -1, S, -1)),
    "computed-after": attending(lambda x: expanded(x).softmax(1)),
    "grouped-already": lambda q, k, v: F.scaled_dot_product_attention(
        q, *(x[:, :1].expand(-1, G, -1, -1) for x in (k, v)), enable_gqa=True
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone(name: str) -> None:
    module = Net(LEFT[name])
    program = rewritten(module, Q, K, V)
    ((grouped, *heads),) = grouping(program)
    assert (grouped, *heads) == ((True, G, G) if name == "grouped-already" else (False, H, H))
    check_module(module, (Q, K, V), EXACT)


def test_heads_of_a_dynamic_number() -> None:
    heads = Dim("heads", min=2, max=8)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        repeated = (x[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for x in (k, v))
        return F.scaled_dot_product_attention(q, *repeated)

    shapes = (({1: 3 * heads}, {1: heads}, {1: heads}),)
    program = api.optimize(api.capture(Net(run), (Q, K, V), dynamic_shapes=shapes), EXACT)
    assert not grouping(program)[0][0]
    check_module(Net(run), (Q, K, V), EXACT, dynamic_shapes=shapes)


@pytest.mark.parametrize("name", ["aten.expand", "aten.scaled_dot_product_attention", "aten.reshape"])
def test_what_is_to_run_in_torch_is_left_alone(name: str) -> None:
    program = api.capture(Net(attending(lambda x: expanded(x.reshape(B, G, S, D)))), (Q, K, V))
    marked = {"aten.reshape": ("aten.view", "aten._unsafe_view", "aten.reshape", "aten.clone")}.get(name, (name,))
    assert grouping(api.optimize(program, Settings(run_in_torch=marked))) == [(False, H, H)]


def test_layers_share_a_folded_mask() -> None:
    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        attend = attending(expanded)
        return attend(attend(q, k, v, mask), v, k, mask)

    module = Net(run)
    program = rewritten(module, Q, K, V, MASK)
    definition = lower(program, flavours.load()).definition
    kinds = [definition.get_layer(number).type.name for number in range(definition.num_layers)]
    assert kinds.count("SLICE") == 1
    check_module(module, (Q, K, V, MASK), EXACT)
