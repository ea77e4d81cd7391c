"""Attention among few tokens that a kernel in Triton computes, as plugins, where TensorRT has plugins."""

from __future__ import annotations

import copy
import importlib.util
import math
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torchvision.models import SwinTransformer

import torch2trt
from tests.attending import WIDTH, Attention, Windows
from tests.harness import check_module, compare, truth
from tests.passing import targets
from tests.plugging import Added, added, enterprise, optimized
from tests.rewriting import drawn
from torch2trt.converters.lower import lower
from torch2trt.graph.flops import flops
from torch2trt.graph.plugged_ops import SHORT_ATTENTION
from torch2trt.passes import plug_short_attention
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

__all__ = ["added"]  # fixtures, which tests name

aten = torch.ops.aten
PLUGGED: dict[str, Any] = {"precision": "fp16"}
PLAIN: dict[str, Any] = PLUGGED | {"skip_passes": ["plug_short_attention"]}
TOLERANCE = 300.0  # of results in float32 that were computed in halves
TOKENS, BATCH = 36, 4
MOVES = {aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.matmul.default, aten.softmax.int}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

X = drawn(BATCH, TOKENS, 64, seed=1)
BIAS = drawn(4, TOKENS, TOKENS, seed=2)
FUTURE = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu()
SHIFTED = torch.where(drawn(2, TOKENS, TOKENS, seed=3) > 0, 0.0, -100.0)
HIDING = torch.where(FUTURE, 0.0, -math.inf).index_fill(0, torch.tensor([3]), -math.inf)

TAKEN: dict[str, nn.Module] = {
    "three projections": Attention(),
    "one projection": Attention(joint=True),
    "without biases": Attention(bias=False),
    "scaled": Attention(scaled=True),
    "a mask that is added": Attention(BIAS[0], joint=True),
    "a mask for each head": Attention(BIAS[None], joint=True),
    "a mask for each entry": Attention(drawn(BATCH, 1, TOKENS, TOKENS)),
    "a mask of keys": Attention(torch.arange(TOKENS)[None] < 30),
    "a boolean mask": Attention(FUTURE, joint=True),
    "written out": Windows(None),
    "biases": Windows(BIAS[None]),
    "scaled late": Windows(BIAS, late=True),
    "windows": Windows(BIAS[None], SHIFTED),
    "windows without biases": Windows(None, SHIFTED),
    "one head": Windows(BIAS[:1], SHIFTED, heads=1),
}


class Sorted(Windows):
    """The scores of each query are put in order."""

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, WIDTH)).permute(2, 0, 3, 1, 4)
        scores = (query @ key.mT).sort(-1)[0]
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


LEFT: dict[str, nn.Module] = {
    "scores that are sorted": Sorted(None),
    "causal": Attention("causal"),
    "grouped": Attention(heads=4, groups=2),
    "turned": Attention(turned=True),
    "a mask that hides all keys of a query": Attention(HIDING),
    "scores that are used": Windows(BIAS, used=True),
    "scaled at last": Windows(BIAS, after=0.5),
    "softmax over queries": Windows(BIAS, dim=-2),
}


@pytest.fixture(autouse=True)
def _plain_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plug_short_attention, "_ALSO_PLAIN", True)


@needs_triton
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_one_operator(name: str) -> None:
    module = TAKEN[name].eval()
    program = optimized(module, X, **PLUGGED)
    assert targets(program).count(SHORT_ATTENTION) == 1
    assert targets(program).count(aten.linear.default) == 2
    assert not MOVES & {*targets(program)}
    compare(program(X), truth(module, (X,)), TOLERANCE)


@needs_triton
def test_the_only_window_of_an_image() -> None:
    x = X.reshape(BATCH, 6, 6, 64)
    module = TAKEN["biases"].eval()
    program = optimized(module, x, **PLUGGED)
    assert targets(program).count(SHORT_ATTENTION) == 1
    assert not MOVES & {*targets(program)}
    compare(program(x), truth(module, (x,)), TOLERANCE)


@needs_triton
def test_swin() -> None:
    torch.manual_seed(0)
    module = SwinTransformer([4, 4], 64, [2, 2], [2, 4], [7, 7], stochastic_depth_prob=0.0, num_classes=5).eval()
    x = drawn(2, 3, 56, 56)
    plain, program = (optimized(module, x, **each) for each in (PLAIN, PLUGGED))
    assert targets(program).count(SHORT_ATTENTION) == 4
    assert not {aten.matmul.default, aten.softmax.int} & {*targets(program)}
    moves = (aten.permute.default, aten.slice.Tensor, aten.mul.Tensor, aten._to_copy.default)
    fewer = [targets(plain).count(each) - targets(program).count(each) for each in moves]
    assert fewer == [16, 12, 4, 8]
    compare(program(x), truth(module, (x,)), TOLERANCE)


@needs_triton
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_a_plugin(name: str, added: Added) -> None:
    lower(optimized(TAKEN[name].eval(), X, **PLUGGED), enterprise())
    ((inputs, plugin),) = added
    assert plugin.call.target is SHORT_ATTENTION
    assert [tuple(each.shape) for each in inputs] == [tuple(spec.shape) for spec in plugin.call.inputs]


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_tensorrt(name: str, added: Added) -> None:
    program = optimized(LEFT[name].eval(), X, **PLUGGED)
    assert SHORT_ATTENTION not in targets(program)
    lower(program, enterprise())
    assert not added
    compare(program(X), truth(LEFT[name], (X,)), TOLERANCE)


class Given(nn.Module):
    """Attention with a mask that is an input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = x.unflatten(-1, (4, WIDTH)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads, mask).transpose(1, 2).flatten(2)


def test_masks_that_are_given() -> None:
    assert SHORT_ATTENTION not in targets(optimized(Given().eval(), X, BIAS, **PLUGGED))


@needs_triton
def test_what_it_does_not_pay_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def plugged(name: str = "windows", **settings: Any) -> bool:
        return SHORT_ATTENTION in targets(optimized(TAKEN[name].eval(), X, **PLUGGED | settings))

    assert plugged()
    assert not plugged(**PLAIN)
    assert not plugged(precision="fp32")
    assert not plugged(run_in_torch=["aten.matmul"])
    assert not plugged("one projection", run_in_torch=["aten.scaled_dot_product_attention"])
    assert plugged("one projection")
    with monkeypatch.context() as patched:
        patched.setattr(plug_short_attention, "_ALSO_PLAIN", False)
        assert not plugged("one projection")
        assert plugged()
    for limit, value in {
        "_LEAST_KEYS": TOKENS + 1,
        "_MOST_KEYS": TOKENS - 1,
        "_WIDEST_HEAD": WIDTH - 1,
        "_LARGEST": 2 * 4 * TOKENS * TOKENS - 1,
    }.items():
        with monkeypatch.context() as patched:
            patched.setattr(plug_short_attention, limit, value)
            assert not plugged()


def test_limits_are_those_of_the_kernel() -> None:
    kernel = pytest.importorskip("torch2trt.graph.short_attention_kernel")
    assert plug_short_attention._MOST_KEYS == kernel.MOST_TOKENS == max(kernel.TILINGS)


@needs_triton
@pytest.mark.parametrize("name", ["one projection", "a mask for each head", "biases", "windows"])
def test_batches_of_any_size(name: str, added: Added) -> None:
    module, sizes = TAKEN[name].eval(), ({0: 2 * Dim("images", min=1, max=8)},)
    program = optimized(module, X, shapes=sizes, **PLUGGED)
    assert targets(program).count(SHORT_ATTENTION) == 1
    for x in (X[:2], X.repeat(2, 1, 1)):
        compare(program(x), truth(module, (x,)), TOLERANCE)
    lower(program, enterprise())
    ((_, plugin),) = added
    packed, *rest = (tuple(spec.shape) for spec in plugin.call.inputs)
    computed = {"SUB": operator.sub, "FLOOR_DIV": operator.floordiv, "SUM": operator.add, "PROD": operator.mul}
    shapes = plugin.call.output_shapes([(6, *packed[1:]), *rest], int, lambda name, *two: computed[name](*two))
    assert shapes == [[6, TOKENS, 4, WIDTH]]


@needs_triton
def test_its_operations_are_counted() -> None:
    module = TAKEN["windows"].eval()
    plain, plugged = (sum(flops(optimized(module, X, **each), {}).values()) for each in (PLAIN, PLUGGED))
    assert plain == plugged


@pytest.mark.parametrize("name", ["one projection", "windows"])
def test_where_there_are_no_plugins_it_changes_nothing(name: str) -> None:
    settings = Settings.make(optimization_level=0, progress="none", **PLUGGED)
    check_module(TAKEN[name].eval(), (X,), settings, tolerance=TOLERANCE)


@pytest.mark.parametrize("shape", [None, (1, 1), (1, 4), (3, 1), (3, 4), (7, 4)])
def test_the_operator_is_attention(shape: tuple[int, int] | None) -> None:
    query, key, value = (drawn(7, 9, 4, width, seed=width) for width in (16, 17, 24))
    key = key[..., :16]
    scores = torch.einsum("nqhe,nkhe->nhqk", query, key) * 0.3
    bias = None
    if shape is not None:
        bias = drawn(*shape, 9, 11)
        bias[..., 2, 4:] = -math.inf
        scores += bias.repeat(7, 1, 1, 1)[:7, ..., :9]
        bias[..., 9:] = math.nan
    wanted = torch.einsum("nhqk,nkhv->nqhv", scores.softmax(-1), value)
    packed = torch.cat([each.flatten(2) for each in (value, query, key)], -1)
    found = SHORT_ATTENTION(packed, [96, 160, 0], 4, 16, 24, bias, 0.3)
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.is_contiguous()
    blind = torch.full((1, 1, 9, 9), -math.inf)
    assert not SHORT_ATTENTION(packed, [96, 160, 0], 4, 16, 24, blind, 0.3).any()


_INTERPRETED = """
import math, torch
from torch2trt.graph import short_attention_kernel as kernel
from torch2trt.graph.plugged_ops import SHORT_ATTENTION
kernel._PROGRAMS = 1
for count, length, heads, width, value_width, bias, tiling in (
    (5, 49, 3, 32, 32, (2, 3), None), (9, 49, 2, 16, 24, (1, 1), None), (3, 49, 1, 32, 32, None, None),
    (3, 100, 2, 20, 40, (2, 1), None), (2, 197, 2, 64, 64, None, None), (2, 197, 1, 64, 64, (1, 1), (128, 64, 2, 4, 1)),
    (4, 7, 2, 16, 16, (3, 2), None), (1, 256, 1, 128, 128, None, None),
):
    packed = torch.randn(count, length, heads * (2 * width + value_width) + 3).half()
    starts = [heads * (width + value_width) + 3, heads * value_width + 3, 3]
    if bias is not None:
        bias = torch.randn(*bias, length, length + 7).half()
        bias[..., 0, :], bias[..., 1, 3:], bias[..., length:] = -math.inf, -math.inf, math.nan
    wide = None if bias is None else bias.double()
    wanted = SHORT_ATTENTION(packed.double(), starts, heads, width, value_width, wide, 0.3)
    result = torch.full(wanted.shape, math.nan).half()
    tiling = tiling and kernel.Tiling(*tiling)
    found = kernel.short_attention(packed, starts, heads, width, value_width, bias, 0.3, result, tiling)
    assert (found - wanted).abs().max() < 2e-3, (length, (found - wanted).abs().max())
"""


@needs_triton
def test_the_kernel_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("length", [64, 128, 256])
def test_it_fits_gpus_with_less_shared_memory(length: int, width: int) -> None:
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from torch2trt.graph import short_attention_kernel as kernel

    tiling = kernel.tiling_of(length, width)
    known = {"HEADS": 4, "BIASES": 4, "L": length, "S": length, "D": width, "V": width, "period": 1}
    known |= {"BLOCK_Q": tiling.queries, "BLOCK_K": tiling.keys, "BLOCK_D": width, "BLOCK_V": width}
    types = {"packed": "*fp16", "bias": "*fp16", "y": "*fp16", "scale": "fp32"} | dict.fromkeys(known, "constexpr")
    names = kernel._attend.arg_names
    aligned = {"packed", "bias", "y", "channels", "first_query", "first_key", "first_value"}
    source = ASTSource(
        fn=kernel._attend,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in known.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
    assert compile(source, target=GPUTarget("cuda", 86, 32), options=options).metadata.shared <= 99 << 10


def _compiled(module: nn.Module, x: Tensor, **options: Any) -> torch2trt.EngineModule:
    compiled = torch2trt.compile(module, (x,), optimization_level=0, progress="none", **PLUGGED, **options)
    assert len(compiled.artifact.calls) == (compiled.artifact.flavour == flavours.TENSORRT)
    return compiled


@pytest.mark.gpu
@pytest.mark.parametrize("name", TAKEN)
def test_engines_with_it_are_right(name: str) -> None:
    module, x = copy.deepcopy(TAKEN[name]).eval().cuda(), X.cuda()
    compiled = _compiled(module, x)
    for _ in range(3):
        compare(compiled(x), truth(module, (x,)), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["one projection", "windows"])
def test_engines_for_any_batch_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    module, x = copy.deepcopy(TAKEN[name]).eval().cuda(), X.cuda()
    compiled = _compiled(module, x, dynamic_shapes=({0: 2 * Dim("images", min=1, max=64)},))
    compiled.save(tmp_path / "short.t2t")
    for each in (compiled, torch2trt.load(tmp_path / "short.t2t")):
        for given in (x, x[:2], x.repeat(32, 1, 1)):
            for _ in range(3):
                compare(each(given), truth(module, (given,)), TOLERANCE)


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "length", "heads", "width"), [(130, 49, 3, 32), (3, 197, 12, 64), (2, 128, 2, 128)])
@pytest.mark.parametrize("bias", [None, (1, 1), (2, None)])
def test_the_kernel(
    count: int, length: int, heads: int, width: int, bias: tuple[int, int | None] | None, dtype: torch.dtype
) -> None:
    packed = drawn(count, length, 3 * heads * width).to("cuda", dtype)
    starts = [0, heads * width, 2 * heads * width]
    added = None
    if bias is not None:
        added = drawn(bias[0], bias[1] or heads, length, length + -length % 8).to("cuda", dtype)
    wide = None if added is None else added.double()
    wanted = SHORT_ATTENTION(packed.double(), starts, heads, width, width, wide, 0.2)
    found = SHORT_ATTENTION(packed, starts, heads, width, width, added, 0.2)
    assert (found - wanted).abs().max() < 8 * torch.finfo(dtype).eps * wanted.abs().max()
