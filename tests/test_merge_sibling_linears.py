"""Linear layers of one tensor as one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt import api
from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.passes.fuse_linear_blocks import fuse_linear_blocks
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.merge_sibling_linears import merge_sibling_linears
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.simplify_slices import simplify_slices
from torch2trt.passes.unify_views import unify_views
from torch2trt.settings import Settings

aten = torch.ops.aten
PASSES = (
    *(unify_views, remove_noops, hoist_weights, merge_sibling_linears, simplify_slices, hoist_weights),
    *(fuse_linear_blocks, remove_dead_code),
)
MERGING: dict[str, Any] = {"extra_passes": ("merge_sibling_linears",)}
EXACT = Settings(precision="fp32", optimization_level=0, **MERGING)
X = drawn(2, 5, 16)


def linear(width: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(16, width, bias=bias)


def widths(program: Program) -> list[int]:
    """Of all linear layers, in order."""
    layers = (aten.linear.default, LINEAR_BLOCK)
    return [program.spec(node).shape[-1] for node in program.calls if node.target in layers]  # type: ignore[misc]


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(self: Any, x: Tensor) -> Tensor:
    q, k, v = heads(self.q(x), 4), heads(self.k(x), 2), heads(self.v(x), 2)
    return F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))


@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)], ids=str)
def test_query_key_and_value(biases: tuple[bool, ...]) -> None:
    members = {name: linear(width, bias) for name, width, bias in zip("qkv", (32, 16, 16), biases, strict=True)}
    module = Net(attention, **members)
    program = rewritten(module, X, passes=PASSES)
    assert widths(program) == [64]
    (layer,) = calls(program, aten.linear.default)
    assert (bind(layer)["bias"] is not None) == any(biases)
    pieces = [node.args[1:] for node in calls(program, aten.slice.Tensor)]
    assert pieces == [(2, 0, 32), (2, 32, 48), (2, 48, 64)]
    # Everything is a weight of the engine: one matrix, at most one vector.
    assert len(program.weight_placeholders) == 1 + any(biases)
    check_module(module, (X,), EXACT)


def test_refitted_weights_are_joined_again() -> None:
    module = Net(attention, q=linear(32), k=linear(16, False), v=linear(16))
    program = rewritten(module, X, passes=PASSES)
    new = {name: drawn(*value.shape, seed=8) for name, value in program.weights.sources.items()}
    (layer,) = calls(program, aten.linear.default)
    found = program.weights.evaluate(new)
    assert torch.equal(found[str(bind(layer)["weight"].target)], torch.cat([new[f"{n}.weight"] for n in "qkv"]))
    assert torch.equal(
        found[str(bind(layer)["bias"].target)], torch.cat([new["q.bias"], torch.zeros(16), new["v.bias"]])
    )


GATES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str | None]] = {
    "silu": (lambda self, x: self.down(F.silu(self.gate(x)) * self.up(x)), None),
    "gelu": (lambda self, x: self.down(self.up(x) * F.gelu(self.gate(x))), None),
    "both": (lambda self, x: self.down(self.up(x).tanh() * self.gate(x).sigmoid()), None),
    "relu-on-both": (lambda self, x: self.down(self.up(x).relu() @ self.gate(x).relu().mT), "relu"),
    "silu-on-both": (lambda self, x: self.down(F.silu(self.up(x)) @ F.silu(self.gate(x)).mT), "silu"),
    "leaky-on-both": (
        lambda self, x: self.down(F.leaky_relu(self.up(x), 0.2) @ F.leaky_relu(self.gate(x), 0.2).mT),
        "leaky_relu",
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_gates(name: str) -> None:
    function, activation = GATES[name]
    module = Net(function, gate=linear(24), up=linear(24), down=nn.Linear(5 if activation else 24, 8))
    program = rewritten(module, X, passes=PASSES)
    assert widths(program) == [48, 8]
    # Once, before the slices.
    assert [bind(node)["activation"] for node in calls(program, LINEAR_BLOCK)] == ([activation] if activation else [])
    check_module(module, (X,), EXACT)


def test_dynamic_sizes_and_half_precision() -> None:
    module = Net(attention, q=linear(32), k=linear(16), v=linear(16))
    shapes = (({0: Dim("batch", min=1, max=4), 1: Dim("tokens", min=1, max=9)},),)
    others = [(drawn(1, 1, 16),), (drawn(4, 9, 16),)]
    program = rewritten(module, X, passes=PASSES, dynamic_shapes=shapes, others=others)
    assert widths(program) == [64]
    check_module(module, (X,), EXACT, dynamic_shapes=shapes, others=others)
    half = Settings(precision="fp16", optimization_level=0, **MERGING)
    program = api.optimize(api.capture(module, (X,)), half)
    assert widths(program) == [64]
    found = torch2trt.compile(module, (X,), precision="fp16", progress="none", **MERGING).verify(X)
    assert found.passed, str(found)


def test_layers_that_are_used_twice_are_joined_once() -> None:
    def shared(self: Any, x: Tensor) -> Tensor:
        y = attention(self, x).transpose(1, 2).flatten(2)
        return attention(self, y[..., :16].exp())

    program = rewritten(Net(shared, q=linear(32), k=linear(16), v=linear(16)), X, passes=PASSES)
    assert widths(program) == [64, 64]
    assert len(program.weight_placeholders) == 2


def test_the_layers_of_all_blocks_that_read_one_tensor() -> None:
    def modulated(self: Any, x: Tensor, c: Tensor) -> Tensor:
        c = F.silu(c)
        for layer in (self.a, self.b, self.d):
            shift, scale = layer(c).chunk(2, dim=-1)
            x = F.layer_norm(x, (16,)) * (1 + scale[:, None]) + shift[:, None]
        return x

    module = Net(modulated, a=linear(32), b=linear(32), d=linear(32))
    program = rewritten(module, X, drawn(2, 16), passes=PASSES)
    assert widths(program) == [96]
    # A piece of a piece is a slice of the one result.
    assert {node.args[0].target for node in calls(program, aten.slice.Tensor)} == {aten.linear.default}


def tied(self: Any, x: Tensor) -> Any:
    return self.q(x).exp().sum() + self.k(x).exp().sum() + (x.sum((0, 1)) + self.k.weight)


KEPT: dict[str, tuple[Callable[[Any, Tensor], Any], tuple[int, int], str]] = {
    "other-inputs": (lambda self, x: self.q(x).exp() + self.k(x * 2).exp(), (16, 16), ""),
    "odd-channels": (lambda self, x: self.q(x).exp().sum() + self.k(x).exp().sum(), (12, 16), "no multiple of 8"),
    "the-activation-of-one": (lambda self, x: F.relu(self.q(x)).sum(1) + self.k(x).exp().sum(1), (16, 16), ""),
    "other-slopes": (
        lambda self, x: F.leaky_relu(self.q(x), 0.1).sum(1) + F.leaky_relu(self.k(x), 0.2).sum(1),
        (16, 16),
        "",
    ),
    "results": (lambda self, x: (self.q(x), self.k(x)), (16, 16), "does not pay"),
    "layers-after": (lambda self, x: self.k(self.q(x)).exp() + F.linear(x, self.r).exp(), (16, 16), "does not pay"),
    "a-weight-that-serves-elsewhere": (tied, (16, 16), "serves elsewhere"),
    "weights-that-are-made": (
        lambda self, x: F.linear(x, x[0, :, :].sum(0, keepdim=True).expand(16, 16)).exp() + self.k(x).exp(),
        (16, 16),
        "not constant",
    ),
    "vectors": (lambda self, x: F.linear(x, self.r[0]).exp().sum() + self.k(x).exp().sum(), (16, 16), "is a vector"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_apart(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, (first, second), reason = KEPT[name]
    module = Net(function, q=linear(first), k=linear(second), r=drawn(16, 16))
    with caplog.at_level(logging.DEBUG, logger="torch2trt.passes"):
        program = rewritten(module, X, passes=PASSES)
    assert aten.slice.Tensor not in targets(program)
    assert reason in caplog.text


def test_what_is_to_run_in_torch_stays_apart() -> None:
    module = Net(attention, q=linear(32), k=linear(16), v=linear(16))
    program = api.optimize(api.capture(module, (X,)), Settings(run_in_torch=("q", "k"), **MERGING))
    assert widths(program) == [32, 16, 16]


def test_what_pays_depends_on_the_sizes() -> None:
    # Two layers read the slices of the other two: copies of 8 channels cost less than reading 2048 once more.
    def experts(self: Any, x: Tensor) -> Tensor:
        return self.c(self.a(x)) + self.d(self.b(x))

    def made(rows: int, inner: int) -> Program:
        layers = {"a": nn.Linear(2048, inner), "b": nn.Linear(2048, inner)}
        layers |= {"c": nn.Linear(inner, 8), "d": nn.Linear(inner, 8)}
        return rewritten(Net(experts, **layers), drawn(rows, 2048), passes=PASSES)

    assert len(widths(made(4, 8))) == 4
    assert len(widths(made(4096, 8))) == 3
    assert len(widths(made(4096, 2048))) == 4


def test_a_layer_whose_slice_costs_too_much_stays_alone() -> None:
    def four(self: Any, x: Tensor) -> Any:
        return attention(self, x), self.w(x)

    module = Net(four, q=linear(32), k=linear(16), v=linear(16), w=linear(64))
    assert sorted(widths(rewritten(module, X, passes=PASSES))) == [64, 64]


def test_only_where_it_is_asked_for() -> None:
    program = api.capture(Net(attention, q=linear(32), k=linear(16), v=linear(16)), (X,))
    assert widths(api.optimize(program, Settings())) == [32, 16, 16]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["attention", "silu", "gelu"])
def test_engines(name: str) -> None:
    torch.manual_seed(0)
    if name == "attention":
        module: nn.Module = Net(attention, q=nn.Linear(256, 256), k=nn.Linear(256, 128), v=nn.Linear(256, 128))
    else:
        layers = {"gate": nn.Linear(256, 512), "up": nn.Linear(256, 512), "down": nn.Linear(512, 256)}
        module = Net(GATES[name][0], **layers)
    x = drawn(4, 64, 256).cuda()
    options: dict[str, Any] = {"precision": "fp16", "progress": "none", "optimization_level": 1}
    compiled = torch2trt.compile(module.cuda(), (x,), **options, **MERGING)
    assert widths(compiled.program()) == ([512] if name == "attention" else [1024, 256])
    found = compiled.verify(x)
    assert found.ran == "engine"
    assert found.passed, str(found)
