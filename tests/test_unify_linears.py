"""Products with matrices of weights, written in any way, as linear layers."""

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
from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.graph.schema import bind
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.pipeline import PASSES
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.unify_linears import unify_linears
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES_HERE = (unify_linears, hoist_weights, remove_dead_code)
X, ROWS = drawn(2, 5, 6), drawn(5, 6)
W, B = drawn(6, 4, seed=1), drawn(4, seed=2)

LAYERS: dict[str, tuple[Callable[..., Any], Tensor, bool]] = {
    "addmm": (lambda self, x: torch.addmm(self.b, x, self.w), ROWS, True),
    "addmm-without": (lambda self, x: torch.addmm(self.b, x, self.w, beta=0), ROWS, False),
    "mm": (lambda self, x: torch.mm(x, self.w), ROWS, False),
    "matmul": (lambda self, x: x @ self.w, X, False),
    "matmul-of-a-vector": (lambda self, x: x @ self.w, ROWS[0], False),
    "matmul-and-sum": (lambda self, x: x @ self.w + self.b, X, True),
    "sum-and-matmul": (lambda self, x: self.b + x @ self.w, X, True),
    "linear-and-sum": (lambda self, x: F.linear(x, self.w.t()) + self.b, X, True),
    "a-vector-made-of-weights": (lambda self, x: x @ self.w + (self.b * 2).exp(), X, True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_product_with_weights_is_a_linear_layer(name: str) -> None:
    function, x, biased = LAYERS[name]
    program = rewritten(Net(function, w=W, b=B), x, passes=PASSES_HERE)
    assert targets(program) == [aten.linear.default]
    assert (bind(program.calls[0])["bias"] is not None) == biased
    check_module(Net(function, w=W, b=B), (x,), Settings(precision="fp32", optimization_level=0))


OTHERS: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "scaled": (lambda self, x: torch.addmm(self.b, x, self.w, alpha=2), [aten.addmm.default]),
    "scaled-vector": (lambda self, x: torch.addmm(self.b, x, self.w, beta=2), [aten.addmm.default]),
    "no-weights": (lambda self, x: torch.mm(x, x.t()), [aten.t.default, aten.mm.default]),
    "weights-first": (lambda self, x: torch.mm(self.w.t(), x.t()), [aten.t.default, aten.mm.default]),
    "a-stack-of-matrices": (lambda self, x: x @ self.w[None], [aten.matmul.default]),
    "a-sum-with-a-tensor": (
        lambda self, x: torch.addmm(x[:, :4], x, self.w),
        [aten.slice.Tensor, aten.linear.default, aten.add.Tensor],
    ),
    "scaled-sum": (lambda self, x: torch.add(x @ self.w, self.b, alpha=3), [aten.linear.default, aten.add.Tensor]),
    "a-wider-sum": (lambda self, x: x @ self.w[:, :1] + self.b, [aten.linear.default, aten.add.Tensor]),
    "a-vector": (lambda self, x: F.linear(x, self.w[:, 0]) + self.r[:, 0], [aten.linear.default, aten.add.Tensor]),
    "a-sum-by-rows": (lambda self, x: x @ self.w + self.r, [aten.linear.default, aten.add.Tensor]),
    "another-dtype": (lambda self, x: x @ self.w + self.b.half(), [aten.linear.default, aten.add.Tensor]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_bias_or_no_layer(name: str) -> None:
    function, left = OTHERS[name]
    program = rewritten(Net(function, w=W, b=B, r=drawn(5, 1)), ROWS, passes=PASSES_HERE)
    assert [target for target in targets(program) if target is not aten._to_copy.default] == left


def test_a_product_that_others_read_keeps_its_sum_apart() -> None:
    def both(self: Any, x: Tensor) -> Any:
        y = x @ self.w
        return y, y + self.b

    program = rewritten(Net(both, w=W, b=B), X, passes=PASSES_HERE)
    assert targets(program) == [aten.linear.default, aten.add.Tensor]


def test_integers_are_left_alone() -> None:
    program = rewritten(
        Net(lambda self, x: x @ self.w, w=torch.arange(24).reshape(6, 4)),
        torch.arange(30).reshape(5, 6),
        passes=PASSES_HERE,
    )
    assert targets(program) == [aten.matmul.default]


def test_what_is_to_run_in_torch_is_left_alone() -> None:
    from torch2trt import api

    program = api.capture(Net(LAYERS["addmm"][0], w=W, b=B), (ROWS,))
    program = api.optimize(program, Settings(run_in_torch=("aten.addmm",)))
    assert targets(program) == [aten.addmm.default]


def test_the_layers_of_gpt_2_are_linear_blocks_at_any_size() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=16, use_cache=False)
    model = transformers.GPT2Model(config).eval()

    def run(self: Any, ids: Tensor) -> Any:
        return self.model(input_ids=ids).last_hidden_state

    ids = torch.arange(14).reshape(2, 7)
    program = rewritten(
        Net(run, model=model),
        ids,
        passes=PASSES,
        dynamic_shapes=(({0: Dim("batch", min=1, max=4), 1: Dim("tokens", min=2, max=16)},),),
        others=[(torch.arange(3)[None],), (torch.arange(32).reshape(4, 8),)],
        tolerance=1e-6,
    )
    assert aten.addmm.default not in targets(program)
    # Query, key and value; what they become; the second half of the feed-forward layer. No rows are made of tokens.
    assert len(calls(program, aten.linear.default)) == 3
    (block,) = calls(program, LINEAR_BLOCK)
    assert bind(block)["activation"] == "gelu_tanh"
    assert all(program.spec(node).rank == 3 for node in (block, *calls(program, aten.linear.default)))
