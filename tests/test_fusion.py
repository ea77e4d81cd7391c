"""Batch norms folded into what comes before, and what follows a convolution or a linear layer fused with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.passing import (
    BATCH_NORM,
    BRAIN,
    HALF,
    SINGLE,
    X1,
    X2,
    X3,
    Function,
    aten,
    count,
    named,
    only,
    randomized,
    targets,
    transformed,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.ops import CONV_BLOCK, LINEAR_BLOCK
from torch2trt.graph.schema import bind
from torch2trt.passes.fold_batch_norm import fold_batch_norm
from torch2trt.passes.fuse_conv_blocks import fuse_conv_blocks
from torch2trt.passes.fuse_linear_blocks import fuse_linear_blocks
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.settings import Settings

# fold_batch_norm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), X1),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), X2),
        (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), X3),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), X2),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.1), X2),
        (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), X1),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), X2),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), torch.randn(5, 4)),
    ],
    ids=named,
)
def test_batch_norm_disappears_in_what_comes_before(layer: nn.Module, norm: nn.Module, x: torch.Tensor) -> None:
    module = randomized(nn.Sequential(layer, norm), x)
    passes = (unify_convolutions, fold_batch_norm, hoist_weights, remove_dead_code)
    program = transformed(module, x, passes=passes, tolerance=2e-6)
    assert targets(program) in ([aten.convolution.default], [aten.linear.default])
    assert len(program.weight_placeholders) == 2, "a kernel and a bias"


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
        # The channels that a norm scales are not those of one kernel.
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
    ],
    ids=["alone", "no-affine", "after-relu", "grouped-transposed"],
)
def test_batch_norm_that_follows_nothing_is_affine(module: nn.Module) -> None:
    module = randomized(module, X2)
    program = transformed(module, X2, passes=(unify_convolutions, fold_batch_norm, hoist_weights), tolerance=2e-6)
    assert count(program, aten.mul.Tensor) == count(program, aten.add.Tensor) == 1
    assert count(program, BATCH_NORM) == 0


def test_batch_norm_of_a_sequence_of_linear_rows() -> None:
    # [N, L, C] through a linear layer: dimension 1, the norm's channels, is not the layer's last.
    module = randomized(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(9)), torch.randn(2, 9, 6))
    program = transformed(module, torch.randn(2, 9, 6), passes=(fold_batch_norm, hoist_weights), tolerance=2e-6)
    assert targets(program) == [aten.linear.default, aten.mul.Tensor, aten.add.Tensor]


def test_a_convolution_that_others_read_keeps_its_weights() -> None:
    def both(self: Any, x: torch.Tensor) -> Any:
        y = self.conv(x)
        return y, self.norm(y)

    module = randomized(Function(both, conv=nn.Conv2d(4, 6, 3), norm=nn.BatchNorm2d(6)), X2)
    program = transformed(module, X2, passes=(unify_convolutions, fold_batch_norm, hoist_weights), tolerance=2e-6)
    assert count(program, aten.mul.Tensor) == 1


def test_one_convolution_used_twice_is_folded_twice() -> None:
    def twice(self: Any, x: torch.Tensor) -> Any:
        return self.one(self.conv(x)), self.other(self.conv(x + 1))

    norms = {"one": nn.BatchNorm2d(6), "other": nn.BatchNorm2d(6)}
    module = randomized(Function(twice, conv=nn.Conv2d(4, 6, 3), **norms), X2)
    program = transformed(module, X2, passes=(unify_convolutions, fold_batch_norm, hoist_weights), tolerance=2e-6)
    assert targets(program).count(aten.convolution.default) == 2
    assert count(program, aten.mul.Tensor) == 0


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("statistics", [SINGLE, None], ids=["float32-statistics", "all-16-bit"])
def test_weights_of_16_bits_are_folded_in_float32(dtype: torch.dtype, statistics: torch.dtype | None) -> None:
    module = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), X2).to(dtype)
    if statistics is not None:
        module[1].to(statistics)
    x = X2.to(dtype)
    program = capture(module, (x,))
    for each in (unify_convolutions, fold_batch_norm, hoist_weights):
        each(program, Settings())
    check(program, "fold_batch_norm")
    exact = module.double()
    wanted = exact(x.double())
    found = program(x)
    assert found.dtype == dtype
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert error < 3 * torch.finfo(dtype).eps
    scale = exact[1].weight / (exact[1].running_var + exact[1].eps).sqrt()
    kernel = exact[0].weight * scale.reshape(-1, 1, 1, 1)
    folded = program.weights.evaluate()[str(bind(only(program, aten.convolution.default))["weight"].target)]
    rounding = (folded.double() - kernel).abs() / kernel.abs()
    assert rounding.max() <= torch.finfo(dtype).eps / 2 * 1.01, "rounded once"


# fuse_conv_blocks, fuse_linear_blocks ---------------------------------------------------------------------------------

FUSE = (unify_convolutions, fuse_conv_blocks)

ACTIVATIONS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[Any, ...]]] = {
    "relu": (F.relu, ("relu", 0.0, 0.0)),
    "relu6": (F.relu6, ("clip", 0.0, 6.0)),
    "hardtanh": (lambda x: F.hardtanh(x, -0.25, 0.75), ("clip", -0.25, 0.75)),
    "clamp": (lambda x: x.clamp(-1, 2), ("clip", -1.0, 2.0)),
    "clamp-relu": (lambda x: x.clamp(min=0), ("relu", 0.0, 0.0)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), ("leaky_relu", 0.2, 0.0)),
    "sigmoid": (torch.sigmoid, ("sigmoid", 0.0, 0.0)),
    "hardsigmoid": (F.hardsigmoid, ("hardsigmoid", 0.0, 0.0)),
    "hardswish": (F.hardswish, ("hardswish", 0.0, 0.0)),
    "silu": (F.silu, ("silu", 0.0, 0.0)),
    "gelu": (F.gelu, ("gelu", 0.0, 0.0)),
    "gelu-tanh": (lambda x: F.gelu(x, approximate="tanh"), ("gelu_tanh", 0.0, 0.0)),
    "tanh": (torch.tanh, ("tanh", 0.0, 0.0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_ends_a_block(name: str) -> None:
    function, wanted = ACTIVATIONS[name]
    module = Function(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(4, 6, 3))
    program = transformed(module, X2, passes=FUSE, tolerance=1e-6)
    assert targets(program) == [CONV_BLOCK]
    bound = bind(only(program, CONV_BLOCK))
    assert (bound["activation"], bound["alpha"], bound["beta"]) == wanted

    module = Function(lambda self, x: function(self.linear(x)), linear=nn.Linear(9, 5))
    program = transformed(module, X1, passes=(fuse_linear_blocks,), tolerance=1e-6)
    assert targets(program) == [LINEAR_BLOCK]
    assert (bind(only(program, LINEAR_BLOCK))["activation"]) == wanted[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(max=3),
        lambda x: F.elu(x),
        lambda x: F.leaky_relu(x, math.inf),
        lambda x: x.clamp(torch.tensor(0.0), torch.tensor(1.0)),
    ],
    ids=["upper-clamp", "elu", "infinite", "tensor-clamp"],
)
def test_other_functions_stay_outside(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module = Function(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(4, 6, 3))
    program = transformed(module, X2, passes=FUSE, tolerance=1e-6)
    assert bind(only(program, CONV_BLOCK))["activation"] == "none"
    assert len(program.calls) > 1


@pytest.mark.parametrize("order", [lambda x, y: x + y, lambda x, y: y + x], ids=["before", "after"])
@pytest.mark.parametrize("activation", [F.relu, None], ids=["relu", "none"])
def test_a_residual_in_either_order(order: Callable[..., Any], activation: Callable[..., Any] | None) -> None:
    def block(self: Any, x: torch.Tensor) -> torch.Tensor:
        total = order(self.conv(x), x)
        return activation(total) if activation else total

    program = transformed(Function(block, conv=nn.Conv2d(4, 4, 3, padding=1)), X2, passes=FUSE, tolerance=1e-6)
    assert targets(program) == [CONV_BLOCK]
    assert bind(only(program, CONV_BLOCK))["residual"].target == "inputs_0"


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda y, x: y + x[:1], SINGLE),
        (lambda y, x: y + x[:, :, :1], SINGLE),
        (lambda y, x: torch.add(x, y, alpha=2), SINGLE),
        (lambda y, x: torch.add(y, x, alpha=0.5), SINGLE),
        (lambda y, x: y + 1, SINGLE),
        (lambda y, x: y + y, SINGLE),
        (lambda y, x: y - x, SINGLE),
        (lambda y, x: y + x.float(), HALF),
        (lambda y, x: (y + x) * y, SINGLE),
    ],
    ids=["batch", "height", "alpha", "other-alpha", "number", "itself", "difference", "dtype", "second-user"],
)
def test_what_is_no_residual(function: Callable[..., Any], dtype: torch.dtype) -> None:
    module = Function(lambda self, x: function(self.conv(x), x), conv=nn.Conv2d(4, 4, 3, padding=1)).to(dtype)
    program = transformed(module, X2.to(dtype), passes=FUSE, tolerance=1e-6)
    assert bind(only(program, CONV_BLOCK))["residual"] is None
    assert len(program.calls) > 1


def test_an_activation_that_is_not_alone_stays_outside() -> None:
    def both(self: Any, x: torch.Tensor) -> Any:
        y = self.conv(x)
        return F.relu(y), y

    program = transformed(Function(both, conv=nn.Conv2d(4, 6, 3)), X2, passes=FUSE, tolerance=1e-6)
    assert targets(program) == [CONV_BLOCK, aten.relu.default]


def test_the_sum_of_two_convolutions() -> None:
    def block(self: Any, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.one(x) + self.other(x))

    module = Function(block, one=nn.Conv2d(4, 6, 3), other=nn.Conv2d(4, 6, 3))
    program = transformed(module, X2, passes=FUSE, tolerance=1e-6)
    assert targets(program) == [CONV_BLOCK, CONV_BLOCK]
    first, second = program.calls
    assert bind(second)["residual"] is first
    assert bind(second)["activation"] == "relu"


def test_transposed_convolutions_are_no_blocks() -> None:
    program = transformed(nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.ReLU()).eval(), X2, passes=FUSE, tolerance=1e-6)
    assert CONV_BLOCK not in targets(program)


def test_convolutions_without_a_batch_get_one() -> None:
    program = transformed(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()).eval(), X2[0], passes=FUSE, tolerance=1e-6)
    assert targets(program) == [aten.unsqueeze.default, CONV_BLOCK, aten.squeeze.dim, aten.relu.default]
    program = transformed(nn.ConvTranspose1d(4, 6, 3).eval(), X1[0], passes=FUSE, tolerance=1e-6)
    assert targets(program) == [aten.unsqueeze.default, aten.convolution.default, aten.squeeze.dim]


def test_blocks_inherit_their_source() -> None:
    module = Function(lambda self, x: F.relu(self.conv(x)), conv=nn.Conv2d(4, 6, 3))
    block = only(transformed(module, X2, passes=FUSE, tolerance=1e-6), CONV_BLOCK)
    assert "conv" in str(block.meta["nn_module_stack"])
