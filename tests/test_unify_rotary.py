"""Rotary position embeddings, written out, as one operator; and the halves swapped in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from tests.harness import check_module
from tests.passing import count, targets
from tests.plugging import optimized
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt.graph.ops import LINEAR_BLOCK, ROTARY
from torch2trt.passes.flip_rotary import flip_rotary
from torch2trt.passes.unify_rotary import unify_rotary
from torch2trt.settings import Settings

aten = torch.ops.aten
HEADS, TOKENS, WIDTH = 3, 5, 8
X = drawn(2, HEADS, TOKENS, WIDTH)
COS, SIN = drawn(TOKENS, WIDTH, seed=1), drawn(TOKENS, WIDTH, seed=2)

Form = Callable[[Tensor, Tensor, Tensor], Any]


def swapped(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def chunked(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return cos * x + sin * torch.cat((-second, first), -1)


def partly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned, rest = x[..., :4], x[..., 4:]
    return torch.cat((turned * cos[:, :4] + swapped(turned) * sin[:, :4], rest), -1)


FORMS: dict[str, Form] = {
    "usual": lambda x, cos, sin: x * cos + swapped(x) * sin,
    "turned round": lambda x, cos, sin: sin * swapped(x) + cos * x,
    "chunked": chunked,
    "with more dimensions": lambda x, cos, sin: x * cos[None, None] + swapped(x) * sin[None],
    "partly": partly,
}
OTHERS: dict[str, Form] = {
    "not negated": lambda x, cos, sin: x * cos + torch.cat((x[..., 4:], x[..., :4]), -1) * sin,
    "the other half negated": lambda x, cos, sin: x * cos + torch.cat((x[..., 4:], -x[..., :4]), -1) * sin,
    "not swapped": lambda x, cos, sin: x * cos + torch.cat((-x[..., :4], x[..., 4:]), -1) * sin,
    "other halves": lambda x, cos, sin: x * cos + torch.cat((-x[..., 3:], x[..., :3]), -1) * sin,
    "halves of another": lambda x, cos, sin: x * cos + swapped(x + 1) * sin,
    "another dimension": lambda x, cos, sin: (
        x[..., :4, :] * cos[:4] + torch.cat((-x[..., 2:4, :], x[..., :2, :]), -2) * sin[:4]
    ),
    "doubled": lambda x, cos, sin: torch.add(x * cos, swapped(x) * sin, alpha=2),
    "grown": lambda x, cos, sin: x[:, :1] * cos.expand(2, 3, 5, 8) + swapped(x[:, :1]) * sin,
    "one angle": lambda x, cos, sin: x * cos + swapped(x) * sin[:, :1],
    "widened": lambda x, cos, sin: x * cos.double() + swapped(x) * sin.double(),
    "seen": lambda x, cos, sin: (x * cos + swapped(x) * sin, swapped(x)),
}


def net(form: Form) -> Net:
    return Net(lambda self, x: form(x, self.cos, self.sin), cos=COS, sin=SIN)


@pytest.mark.parametrize("name", FORMS)
def test_it_is_one_operator(name: str) -> None:
    program = rewritten(net(FORMS[name]), X, skip_passes=["fuse_linear_blocks"])
    assert targets(program) == [ROTARY]
    check_module(net(FORMS[name]), (X,), Settings(precision="fp32", optimization_level=0))


@pytest.mark.parametrize("name", OTHERS)
def test_other_sums_stay(name: str) -> None:
    program = rewritten(net(OTHERS[name]), X)
    assert ROTARY not in targets(program)


def test_not_a_bit_differs_in_halves() -> None:
    module, x = net(FORMS["usual"]).half(), X.half()
    program = optimized(module, x)
    assert targets(program) == [ROTARY]
    assert torch.equal(program(x), module(x))


def test_all_layers_share_the_sines() -> None:
    def layers(self: Any, x: Tensor, sin: Tensor) -> Tensor:
        for _ in range(3):
            x = (x * self.cos + swapped(x) * sin).tanh()
        return x

    program = rewritten(Net(layers, cos=COS), X, SIN)
    assert count(program, ROTARY) == 3
    assert count(program, aten.neg.default) == 1
    assert len({node.args[2] for node in calls(program, ROTARY)}) == 1


def test_what_is_to_run_in_torch_stays() -> None:
    program = optimized(net(FORMS["usual"]), X, run_in_torch=["aten.cat"])
    assert ROTARY not in targets(program)


def test_a_turned_tensor_that_is_seen_is_not_joined() -> None:
    def both(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned = x[..., :4] * cos[:, :4] + swapped(x[..., :4]) * sin[:, :4]
        return torch.cat((turned, x[..., 4:]), -1), turned

    program = rewritten(net(both), X)
    assert count(program, ROTARY) == count(program, aten.cat.default) == 1


@pytest.mark.parametrize("rest", [slice(3, 7), slice(5, 8)])
def test_channels_that_do_not_follow_are_joined_as_they_are(rest: slice) -> None:
    def joined(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = x[..., :4] * cos[:, :4] + swapped(x[..., :4]) * sin[:, :4]
        return torch.cat((turned, x[..., rest]), -1)

    assert count(rewritten(net(joined), X), aten.cat.default) == 1


SOME = Dim("tokens", min=2, max=9)
DYNAMIC = (({0: Dim("batch", min=1, max=4), 2: SOME}, {0: SOME}, {0: SOME}),)


def test_sizes_may_be_dynamic() -> None:
    module = Net(lambda x, cos, sin: x * cos + swapped(x) * sin)
    given = (X, COS, SIN)
    for extra in ([], ["flip_rotary"]):
        program = rewritten(
            module, *given, dynamic_shapes=DYNAMIC, extra_passes=extra, others=[(X[:1, :, :2], COS[:2], SIN[:2])]
        )
        assert (ROTARY in targets(program)) != bool(extra)
        chosen = Settings(precision="fp32", optimization_level=0, extra_passes=tuple(extra))
        check_module(module, given, chosen, dynamic_shapes=DYNAMIC)


# The other way to swap them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["usual", "chunked"])
def test_halves_are_flipped(name: str) -> None:
    program = rewritten(net(FORMS[name]), X, extra_passes=["flip_rotary"])
    assert not {ROTARY, aten.cat.default, aten.slice.Tensor} & {*targets(program)}
    assert count(program, aten.flip.default) == 1
    check_module(net(FORMS[name]), (X,), Settings(optimization_level=0, extra_passes=("flip_rotary",)))


def test_what_is_turned_in_part_is_not_flipped() -> None:
    assert targets(rewritten(net(FORMS["partly"]), X, extra_passes=["flip_rotary"])) == [ROTARY]


def test_no_tensor_gets_more_dimensions_than_tensorrt_has() -> None:
    deep = X.reshape(2, 1, 3, 1, 1, 1, 5, 8)
    program = rewritten(net(FORMS["usual"]), deep, passes=(unify_rotary, flip_rotary))
    assert ROTARY in targets(program)


@pytest.mark.parametrize("extra", [(), ("flip_rotary", "merge_sibling_linears")])
def test_a_model_with_grouped_queries(extra: tuple[Any, ...]) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    module = transformers.LlamaModel(transformers.LlamaConfig(**sizes, **heads, use_cache=False)).eval()
    ids = torch.arange(10)[None]
    settings = Settings(precision="fp16", optimization_level=0, extra_passes=extra)
    program = optimized(module, ids, precision="fp16", extra_passes=extra)
    assert count(program, ROTARY) == (0 if extra else 4)
    # Queries, keys and values; what comes out; gate and up; down.
    assert sum(count(program, target) for target in (aten.linear.default, LINEAR_BLOCK)) == 2 * (4 if extra else 7)
    check_module(module, (ids,), settings, tolerance=300)
