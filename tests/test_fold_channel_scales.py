"""Constants for each channel as part of the layer before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.harness import check_module, truth
from tests.passing import targets
from tests.rewriting import Net, drawn, rewritten
from torch2trt import api
from torch2trt.passes.fold_channel_scales import fold_channel_scales
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.settings import Settings

aten = torch.ops.aten

X = drawn(2, 4, 6, 8)
PASSES = (unify_convolutions, fold_channel_scales, hoist_weights, remove_dead_code)
NCHW = (0, 3, 1, 2)
HALVES = 300.0  # of results in float32 that were computed in halves

FOLDED: dict[str, Callable[[Any, Tensor], Any]] = {
    "linear": lambda s, x: s.linear(x) * s.scale,
    "linear without a bias": lambda s, x: s.plain(x) * s.scale,
    "factor first": lambda s, x: s.scale * s.linear(x),
    "behind a permutation": lambda s, x: s.linear(x).permute(NCHW) * s.scale[:, None, None],
    "behind two": lambda s, x: s.linear(x).permute(NCHW).transpose(1, 2) * s.scale[:, None],
    "of known values": lambda s, x: s.linear(x) * s.scale.exp(),
    "two": lambda s, x: s.linear(x) * s.scale * s.scale.exp(),
    "convolution": lambda s, x: s.conv(x) * s.scale[:, None, None],
    "transposed convolution": lambda s, x: s.transposed(x) * s.scale[None, :, None, None],
    "convolution, channels last": lambda s, x: s.conv(x).permute(0, 2, 3, 1) * s.scale,
}
KEPT: dict[str, Callable[[Any, Tensor], Any]] = {
    "along other dimensions": lambda s, x: s.linear(x).transpose(2, 3) * s.square,
    "of positions": lambda s, x: s.linear(x) * s.square[:, None],
    "of channels and positions": lambda s, x: s.linear(x) * s.square[:, None] * s.matrix,
    "one number": lambda s, x: s.linear(x) * s.scale[:1],
    "that makes it larger": lambda s, x: s.linear(x) * s.scale[None, None, None, None],
    "no constant": lambda s, x: s.linear(x) * x.mean(),
    "by itself": lambda s, x: (lambda y: y * y)(s.linear(x)),
    "no constant weights": lambda s, x: torch.nn.functional.linear(x, x[0, 0]) * s.square,
    "read twice": lambda s, x: (lambda y: (y, y * s.scale))(s.linear(x)),
    "read twice behind a permutation": lambda s, x: (lambda y: (y, y * s.scale[:, None, None]))(
        s.linear(x).permute(NCHW)
    ),
    "read twice before a permutation": lambda s, x: (lambda y: (y, y.permute(NCHW) * s.scale[:, None, None]))(
        s.linear(x)
    ),
    "behind an activation": lambda s, x: s.linear(x).relu() * s.scale,
    "groups of a transposed convolution": lambda s, x: s.grouped(x) * s.square[:, None, None],
    "a wider dtype": lambda s, x: s.linear(x).half() * s.scale,
}


def net(function: Callable[..., Any]) -> Net:
    layers: dict[str, Any] = {"linear": nn.Linear(8, 5), "plain": nn.Linear(8, 5, bias=False)}
    layers |= {"conv": nn.Conv2d(4, 5, 3), "transposed": nn.ConvTranspose2d(4, 5, 3)}
    layers |= {"grouped": nn.ConvTranspose2d(4, 6, 3, groups=2)}
    return Net(function, **layers, scale=drawn(5, seed=1), square=drawn(6, seed=2), matrix=drawn(6, 5, seed=3))


def products(program: Any) -> int:
    return targets(program).count(aten.mul.Tensor)


@pytest.mark.parametrize("name", FOLDED)
def test_it_is_part_of_the_layer(name: str) -> None:
    program = rewritten(net(FOLDED[name]), X, passes=PASSES, tolerance=2e-7)
    assert products(program) == 0
    check_module(net(FOLDED[name]), (X,), Settings(precision="fp32", optimization_level=0))


@pytest.mark.parametrize("name", KEPT)
def test_all_else_stays(name: str) -> None:
    plain = rewritten(net(KEPT[name]), X, passes=(unify_convolutions, hoist_weights, remove_dead_code))
    program = rewritten(net(KEPT[name]), X, passes=PASSES)
    assert targets(program) == targets(plain)
    assert products(program) > 0


def test_of_any_batch() -> None:
    shapes: Any = ({0: Dim("batch", min=1, max=8)},)
    program = rewritten(net(FOLDED["behind a permutation"]), X, passes=PASSES, dynamic_shapes=(shapes,), tolerance=2e-7)
    assert products(program) == 0
    settings = Settings(precision="fp16", optimization_level=0)
    check_module(
        net(FOLDED["linear"]), (X,), settings, dynamic_shapes=(shapes,), others=[(drawn(5, 4, 6, 8),)], tolerance=HALVES
    )


def error(module: nn.Module, **settings: Any) -> float:
    """How far the Program is from float64, of the largest number there."""
    program = api.optimize(api.capture(module, (X,)), Settings.make(**settings))
    wanted, _ = truth(module, (X,))
    return float((program(X).double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_halves_hold_the_weights_or_it_stays(size: float) -> None:
    module = net(lambda s, x: s.linear(x) * s.scale / size)
    module.scale *= size  # type: ignore[operator]
    program = api.optimize(api.capture(module, (X,)), Settings(precision="fp16"))
    kept = [node for node in program.calls if node.target is aten.mul.Tensor and len(node.all_input_nodes) == 2]
    assert len(kept) == (size != 1.0)
    folded, apart = (
        error(module, precision="fp16"),
        error(module, precision="fp16", skip_passes=["fold_channel_scales"]),
    )
    assert folded <= max(apart, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_multiplied_in_float32(dtype: torch.dtype) -> None:
    module = net(FOLDED["linear"]).to(dtype)
    program = api.optimize(api.capture(module, (X.to(dtype),)), Settings())
    wanted, _ = truth(module, (X.to(dtype),))
    found = program(X.to(dtype))
    assert products(program) == 0
    assert found.dtype == dtype
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < 2 * torch.finfo(dtype).eps
