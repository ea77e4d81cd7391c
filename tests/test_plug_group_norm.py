"""Group norms that kernels in Triton compute, as plugins, where TensorRT has plugins."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.harness import compare, truth
from tests.passing import Function, only, targets
from tests.plugging import Added, added, enterprise, layouts, optimized
from torch2trt.converters.lower import lower
from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.plugged_ops import GROUP_NORM
from torch2trt.graph.program import Program
from torch2trt.graph.schema import bind
from torch2trt.passes import plug_group_norm
from torch2trt.runtime.artifact import to_bytes
from torch2trt.trt import flavour as flavours
from torch2trt.trt import plugins

__all__ = ["added", "layouts"]  # fixtures, which tests name

aten = torch.ops.aten
PLUGGED: dict[str, Any] = {"precision": "fp16"}
TOLERANCE = 300.0  # of results in float32 that were computed in halves


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images are enough."""
    monkeypatch.setattr(plug_group_norm, "_LEAST_VALUES", 1)


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

Norm = Callable[[nn.GroupNorm, Tensor, Tensor], Tensor]


def block(norm: Norm, *, channels: int = 24, groups: int = 3, affine: bool = True) -> nn.Module:
    """A norm between two convolutions; it is given their images [N, C, H, W] and numbers [N, C] as well."""
    torch.manual_seed(0)

    def run(self: Function, x: Tensor, numbers: Tensor) -> Tensor:
        return self.last(norm(self.norm, self.first(x), self.mix(numbers)))  # type: ignore[no-any-return, operator]

    first, last = (nn.Conv2d(*widths, 3, padding=1) for widths in ((3, channels), (channels, 5)))
    layers = {"first": first, "last": last, "mix": nn.Linear(4, channels)}
    module = Function(run, **layers, norm=nn.GroupNorm(groups, channels, affine=affine))
    for parameter in module.norm.parameters():  # type: ignore[union-attr, operator]
        nn.init.normal_(parameter)
    return module.eval()


def shifted(x: Tensor, numbers: Tensor) -> Tensor:
    return x + numbers[:, :, None, None]


def seen_twice(norm: nn.GroupNorm, x: Tensor, numbers: Tensor) -> Tensor:
    total = shifted(x, numbers)
    return norm(total) + total  # type: ignore[no-any-return]


X = torch.randn(2, 3, 9, 13, generator=torch.Generator().manual_seed(1))
NUMBERS = torch.randn(2, 4, generator=torch.Generator().manual_seed(2))
# What becomes one operator, beside the norm.
SILU: dict[str, nn.Module] = {
    "silu": block(lambda norm, x, numbers: F.silu(norm(x))),
    "silu as a formula": block(lambda norm, x, numbers: (y := norm(x)) * torch.sigmoid(y)),
    "not affine": block(lambda norm, x, numbers: F.silu(norm(x)), affine=False),
    "one group": block(lambda norm, x, numbers: F.silu(norm(x)), groups=1),
    "groups of one": block(lambda norm, x, numbers: F.silu(norm(x)), groups=24),
}
SHIFTED = {
    "shifted": block(lambda norm, x, numbers: F.silu(norm(shifted(x, numbers)))),
    "shifted, the other way round": block(lambda norm, x, numbers: F.silu(norm(numbers[:, :, None, None] + x))),
    "shifted by what has its shape": block(
        lambda norm, x, numbers: F.silu(norm(x + numbers.tanh()[:, :, None, None].sin()))
    ),
}
ALONE = {
    "alone": block(lambda norm, x, numbers: norm(x)),
    "another activation": block(lambda norm, x, numbers: F.relu(norm(x))),
    "seen twice": block(seen_twice),
    "shifted by twice as much": block(lambda norm, x, numbers: norm(torch.add(x, numbers[:, :, None, None], alpha=2))),
    "shifted alike": block(lambda norm, x, numbers: norm(x + numbers[:1, :, None, None])),
    "shifted by images": block(lambda norm, x, numbers: norm(x + x.sin())),
}
TAKEN = SILU | SHIFTED | ALONE
LEFT = {
    "channels that fill no vectors": block(lambda norm, x, numbers: F.silu(norm(x)), channels=12),
    "tokens": block(lambda norm, x, numbers: F.silu(norm(x.flatten(2))).unflatten(2, x.shape[2:])),
}
BATCH = Dim("batch", min=1, max=4)
SIDES = {2: Dim("h", min=4, max=32), 3: Dim("w", min=4, max=32)}
DYNAMIC: Any = (({0: BATCH, **SIDES}, {0: BATCH}),)


def norm_of(program: Program) -> dict[str, Any]:
    return bind(only(program, GROUP_NORM))


@needs_triton
@pytest.mark.parametrize("name", TAKEN)
def test_it_is_one_operator(name: str) -> None:
    program = optimized(TAKEN[name], X, NUMBERS, **PLUGGED)
    assert aten.group_norm.default not in targets(program)
    assert norm_of(program)["silu"] == (name not in ALONE)
    assert (norm_of(program)["shift"] is not None) == (name in SHIFTED)
    assert (aten.silu.default in targets(program)) is False
    if name in SILU or name in SHIFTED:
        # Numbers for each channel come as the linear layer yields them.
        assert not {aten.add.Tensor, aten.unsqueeze.default, aten.mul.Tensor} & {*targets(program)}
    compare(program(X, NUMBERS), truth(TAKEN[name], (X, NUMBERS)), TOLERANCE)


@needs_triton
@pytest.mark.parametrize("name", ["silu", "shifted", "shifted by what has its shape"])
def test_sizes_may_be_dynamic(name: str, added: Added) -> None:
    program = optimized(TAKEN[name], X, NUMBERS, shapes=DYNAMIC, **PLUGGED)
    assert targets(program).count(GROUP_NORM) == 1
    for x, numbers in ((X, NUMBERS), (X[:1, :, :5, :7], NUMBERS[:1])):
        compare(program(x, numbers), truth(TAKEN[name], (x, numbers)), TOLERANCE)
    lower(program, enterprise())
    ((_, plugin),) = added
    assert plugin.call.outputs == plugin.call.inputs[:1]
    shapes = plugin.call.output_shapes([[4, 24, 7, 5]] + [[4, 24]] * (name != "silu") + [[24], [24]], int, max)
    assert shapes == [[4, 24, 7, 5]]


@needs_triton
def test_it_is_a_plugin_that_wants_channels_last(added: Added) -> None:
    lower(optimized(TAKEN["shifted"], X, NUMBERS, **PLUGGED), enterprise())
    ((inputs, plugin),) = added
    assert plugin.call.target is GROUP_NORM
    assert plugin.call.channels_last
    assert [tuple(tensor.shape) for tensor in inputs] == [(2, 24, 9, 13), (2, 24), (24,), (24,)]


@needs_triton
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_both_halves(precision: str) -> None:
    program = optimized(TAKEN["silu"], X, NUMBERS, **PLUGGED | {"precision": precision})
    assert program.spec(only(program, GROUP_NORM)).dtype in (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_tensorrt(name: str) -> None:
    program = optimized(LEFT[name], X, NUMBERS, **PLUGGED)
    assert targets(program).count(aten.group_norm.default) == 1
    assert GROUP_NORM not in targets(program)


@needs_triton
def test_it_is_for_many_values_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    values = 2 * 24 * 9 * 13
    for least, settings, plugged in (
        (values, PLUGGED, True),
        (values + 1, PLUGGED, False),
        (values, {"precision": "fp32"}, False),
        (values, PLUGGED | {"skip_passes": ["plug_group_norm"]}, False),
    ):
        monkeypatch.setattr(plug_group_norm, "_LEAST_VALUES", least)
        assert (GROUP_NORM in targets(optimized(TAKEN["silu"], X, NUMBERS, **settings))) is plugged
    monkeypatch.undo()
    assert GROUP_NORM not in targets(optimized(TAKEN["silu"], X, NUMBERS, **PLUGGED))


@needs_triton
def test_what_runs_in_torch_does() -> None:
    program = optimized(TAKEN["shifted"], X, NUMBERS, run_in_torch=["aten.group_norm"], **PLUGGED)
    assert GROUP_NORM not in targets(program)


@needs_triton
def test_convolutions_keep_what_follows_them() -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        y = self.first(x)  # type: ignore[operator]
        return self.last(F.silu(self.norm(y))) + y  # type: ignore[no-any-return, operator]

    convolutions = {"first": nn.Conv2d(8, 8, 3, padding=1), "last": nn.Conv2d(8, 8, 3, padding=1)}
    module = Function(run, **convolutions, norm=nn.GroupNorm(2, 8)).eval()
    program = optimized(module, torch.randn(2, 8, 5, 5), **PLUGGED)
    assert [each for each in targets(program) if each in (CONV_BLOCK, GROUP_NORM)] == [
        CONV_BLOCK,
        GROUP_NORM,
        CONV_BLOCK,
    ]
    assert aten.add.Tensor not in targets(program)


class Looks(nn.Module):
    """Pixels as tokens, after the norm and what may come between."""

    def __init__(self, between: nn.Module, *, silu: bool = False, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.between = nn.Conv2d(3, 24, 1), nn.GroupNorm(3, 24), between
        self.silu, self.twice = silu, twice
        self.last = nn.LayerNorm(16 if isinstance(between, nn.Conv2d) else 24)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.first(x))
        y = self.between(F.silu(y) if self.silu else y)
        tokens = self.last(y.flatten(2).transpose(1, 2))
        return (tokens, y.sin()) if self.twice else tokens


@needs_triton
@pytest.mark.parametrize("shapes", [None, {"x": {0: BATCH, **SIDES}}], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    "module",
    [
        Looks(nn.Identity()),
        Looks(nn.Conv2d(24, 16, 1)),
        Looks(nn.Conv2d(24, 16, 1, bias=False), silu=True),
    ],
    ids=["straight away", "after a convolution", "after SiLU and a convolution"],
)
def test_pixels_become_tokens(module: Looks, shapes: Any, added: Added) -> None:
    program = optimized(module, X, shapes=shapes, **PLUGGED)
    assert norm_of(program)["tokens"]
    assert not {aten.transpose.int, aten.permute.default, aten.reshape.default} & {*targets(program)}
    assert targets(program).count(CONV_BLOCK) == 1
    compare(program(X), truth(module, (X,)), TOLERANCE)
    lower(program, enterprise())
    ((_, plugin),) = added
    assert plugin.call.output_shapes([[2, 24, 9, 13], [24], [24]], int, lambda name, one, other: one * other) == [
        [2, 117, 24]
    ]


@needs_triton
@pytest.mark.parametrize(
    "module",
    [
        Looks(nn.Identity(), twice=True),
        Looks(nn.Conv2d(24, 16, 1), twice=True),
        Looks(nn.Conv2d(24, 16, 3)),
        Looks(nn.Conv2d(24, 16, 1, stride=2)),
        Looks(nn.Conv2d(24, 16, 1, padding=1)),
        Looks(nn.Conv2d(24, 16, 1, groups=2)),
    ],
    ids=["seen otherwise", "seen otherwise after a convolution", "window", "stride", "padding", "groups"],
)
def test_pixels_stay_images(module: Looks) -> None:
    program = optimized(module, X, **PLUGGED)
    assert not norm_of(program)["tokens"]
    compare(program(X), truth(module, (X,)), TOLERANCE)


@pytest.mark.gpu
@pytest.mark.parametrize("between", [nn.Identity(), nn.Conv2d(24, 16, 1)], ids=["straight away", "after a convolution"])
def test_engines_with_tokens_are_right(between: nn.Module) -> None:
    module, x = Looks(between).cuda(), X.cuda()
    engine = compiled(module, x, dynamic_shapes={"x": {0: BATCH, **SIDES}})
    for each in (x, x[:1, :, :5, :4].contiguous(), x):
        compare(engine(each), truth(module, (each,)), TOLERANCE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_operator_keeps_the_layout_and_agrees_with_its_fake_kernel(layout: torch.memory_format) -> None:
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=layout)
    arguments = (x, torch.randn(2, 8), 2, torch.randn(8), None, 1e-5, True)
    images, tokens = (GROUP_NORM(*arguments, each) for each in (False, True))
    assert images.is_contiguous(memory_format=layout)
    assert tokens.equal(images.flatten(2).mT)
    assert tokens.is_contiguous()
    for each in (False, True):
        torch.library.opcheck(GROUP_NORM, (*arguments, each), test_utils=("test_schema", "test_faketensor"))


_INTERPRETED = """
import torch
from torch2trt.graph.group_norm_kernel import Tiling, group_norm
from torch2trt.graph.plugged_ops import GROUP_NORM
torch.manual_seed(0)
for shape, groups, tiling in (
    ((2, 320, 6, 7), 32, Tiling()),  # ten channels a group
    ((2, 320, 9, 7), 32, Tiling(elements=1024)),  # several tiles, of which the last is not full
    ((1, 128, 12, 12), 32, Tiling(elements=512, programs=12)),  # a program of several blocks
    ((1, 24, 5, 13), 1, Tiling(elements=64)),
    ((2, 16, 4, 4), 16, Tiling()),
    ((3, 960, 2, 3), 32, Tiling()),  # groups that no vector ends with
    ((1, 7, 3, 3), 7, Tiling()),
    ((1, 8, 1, 1), 2, Tiling()),
    ((0, 8, 2, 2), 2, Tiling()),
):
    for affine, shift, silu in ((True, True, True), (False, False, False)):
        # A mean that is far from zero, as squares minus the square of a mean would not bear.
        x = (torch.randn(shape) + 30).contiguous(memory_format=torch.channels_last)
        weight, bias = (torch.randn(shape[1]) for _ in range(2)) if affine else (None, None)
        numbers = torch.randn(shape[:2]) if shift else None
        wide = [None if each is None else each.double() for each in (x, numbers, weight, bias)]
        wanted = GROUP_NORM(wide[0], wide[1], groups, wide[2], wide[3], 1e-5, silu, False)
        out = torch.full_like(x, float("nan"))
        found = group_norm(x, numbers, groups, weight, bias, 1e-5, silu=silu, tiling=tiling)
        given = group_norm(x, numbers, groups, weight, bias, 1e-5, silu=silu, out=out, tiling=tiling)
        assert given is out and out.equal(found)
        assert found.shape == wanted.shape and found.is_contiguous(memory_format=torch.channels_last)
        assert found.numel() == 0 or (found - wanted).abs().max() < 2e-5, (shape, (found - wanted).abs().max())
x = torch.zeros(1, 16, 2, 2).contiguous(memory_format=torch.channels_last)
x[0, 3, 1, 1] = float("inf")  # is seen in its own group alone
found = group_norm(x, None, 2, None, None, 1e-5, silu=False)
assert found[:, :8].isnan().all() and found[:, 8:].eq(0).all()
"""


@needs_triton
def test_the_kernels_in_tritons_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# On a GPU -------------------------------------------------------------------------------------------------------------


def compiled(module: nn.Module, *inputs: Tensor, **settings: Any) -> Any:
    """An engine, without what is left to torch."""
    keywords = {"optimization_level": 0, "progress": "none", "fallback": False} | PLUGGED | settings
    return torch2trt.compile(module.eval(), inputs, **keywords)


def on_gpu(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    return copy.deepcopy(TAKEN[name]).cuda(), X.cuda(), NUMBERS.cuda()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "format", "precision"),
    [
        *((name, "HWC8", "fp16") for name in TAKEN),
        *(("shifted", *each) for each in (("HWC8", "bf16"), ("LINEAR", "fp16"), ("LINEAR", "bf16"))),
    ],
)
def test_engines_with_it_are_right(
    name: str, format: str, precision: str, layouts: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "IMAGE_FORMATS", (format,))
    module, *inputs = on_gpu(name)
    engine = compiled(module, *inputs, precision=precision, engine_cache=False)
    plugged = engine.artifact.flavour == flavours.TENSORRT
    assert len(engine.artifact.calls) == plugged
    for _ in range(3):
        compare(engine(*inputs), truth(module, tuple(inputs)), TOLERANCE * (8 if precision == "bf16" else 1))
    assert {*layouts} == ({format == "HWC8"} if plugged else set())


@pytest.mark.gpu
def test_between_convolutions_nothing_is_moved(layouts: list[bool]) -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(self.first(x))))  # type: ignore[no-any-return, operator]

    convolutions = {name: nn.Conv2d(320, 320, 3, padding=1) for name in ("first", "last")}
    module = Function(run, **convolutions, norm=nn.GroupNorm(32, 320)).cuda()
    x = torch.randn(2, 320, 64, 64, device="cuda")
    engine = compiled(module, x, optimization_level=3)
    # TensorRT's convolutions may add up their 2,880 products in halves.
    compare(engine(x), truth(module, (x,)), 4 * TOLERANCE)
    if engine.artifact.flavour == flavours.TENSORRT:
        assert layouts
        assert all(layouts)


@pytest.mark.gpu
def test_means_far_from_zero() -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x.half(), 32, eps=0.0).float()

    x = (torch.randn(2, 320, 64, 64, device="cuda") + 10).half().float()
    found = compiled(Norm(), x)(x)
    torch.testing.assert_close(found, F.group_norm(x.double(), 32, eps=0.0).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [24, 12])
def test_channels_that_fill_no_vectors_are_right_too(channels: int, layouts: list[bool]) -> None:
    # The pass leaves these alone; who calls the operator gets them contiguous.
    class Direct(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return GROUP_NORM(x.sin(), None, 4, None, None, 1e-5, True, False) + 1  # type: ignore[no-any-return]

    x = torch.randn(2, channels, 7, 5, device="cuda", dtype=torch.float16)
    engine = compiled(Direct(), x, precision=None)
    torch.testing.assert_close(engine(x), Direct()(x), rtol=5e-3, atol=5e-3)
    if channels % 8:
        assert not any(layouts)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_engines_have_dynamic_sizes_and_are_saved(cuda_graphs: bool) -> None:
    module, *inputs = on_gpu("shifted")
    engine = compiled(module, *inputs, dynamic_shapes=DYNAMIC, cuda_graphs=cuda_graphs)
    for each in (engine, torch2trt.load(to_bytes(engine.artifact))):
        for count, height, width in ((2, 9, 13), (1, 4, 4), (4, 32, 31), (2, 9, 13)):
            x, numbers = torch.randn(count, 3, height, width, device="cuda"), torch.randn(count, 4, device="cuda")
            compare(each(x, numbers), truth(module, (x, numbers)), TOLERANCE)
