"""Which calls take the precision, which stay in float32, and what is cast on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.passing import (
    BRAIN,
    CAST,
    HALF,
    SINGLE,
    X2,
    Function,
    X,
    aten,
    count,
    dtypes,
    only,
    randomized,
    targets,
    transformed,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.schema import bind
from torch2trt.passes.fold_batch_norm import fold_batch_norm
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.merge_common_subexpressions import merge_common_subexpressions
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.set_precision import set_precision
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.settings import Settings


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", HALF), ("bf16", BRAIN)])
def test_matrix_products_take_the_precision(precision: str, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    program = transformed(module, X, passes=(set_precision,), tolerance=0.02, precision=precision)
    assert dtypes(program, aten.linear.default) == [dtype] * 2
    assert dtypes(program, aten.relu.default) == [dtype]
    assert program.signature.tensor_inputs[0].spec.dtype == SINGLE
    assert program.signature.tensor_outputs[0].spec.dtype == SINGLE
    assert count(program, CAST) == 2 + 4, "one for the input, one for the output, one a weight"


@pytest.mark.parametrize("precision", [None, "fp32", "tf32"])
def test_nothing_is_cast_in_float32(precision: str | None) -> None:
    program = transformed(nn.Linear(3, 4).eval(), X, passes=(set_precision,), precision=precision)
    assert targets(program) == [aten.linear.default]


def test_float32_for_a_module_of_16_bits() -> None:
    module = nn.Linear(3, 4).eval().half()
    program = transformed(module, X.half(), passes=(set_precision,), tolerance=2e-3, precision="fp32")
    assert dtypes(program, aten.linear.default) == [SINGLE]
    assert program.signature.tensor_outputs[0].spec.dtype == HALF


def test_quantiles_which_torch_has_in_float32_alone_keep_it() -> None:
    function = Function(lambda x: x - x.quantile(0.3, 0) + x.nanquantile(0.5))
    program = transformed(function, X, passes=(set_precision,), tolerance=1e-2, precision="fp16")
    found = [node.meta["val"].dtype for node in program.calls if "quantile" in str(node.target)]
    assert found == [torch.float32] * 2


def test_inputs_and_outputs_take_the_precision_when_asked() -> None:
    module = nn.Linear(3, 4).eval()
    program = transformed(module, X, passes=(set_precision,), precision="fp16", keep_io_dtypes=False)
    assert program.signature.tensor_inputs[0].spec.dtype == HALF
    assert program.signature.tensor_outputs[0].spec.dtype == HALF
    found = program(X.half())
    assert found.dtype == HALF
    torch.testing.assert_close(found.float(), module(X).detach(), rtol=0, atol=5e-3)
    assert count(program, CAST) == 2, "the weights"


def test_integers_and_booleans_keep_their_types() -> None:
    def mixed(x: torch.Tensor, ids: torch.Tensor) -> Any:
        return x[ids], ids + 1, x > 0, (x * 2).argmax(1)

    program = transformed(
        Function(mixed), X, torch.tensor([1, 0]), passes=(set_precision,), tolerance=1e-3, precision="fp16",
        keep_io_dtypes=False,
    )  # fmt: skip
    assert [leaf.spec.dtype for leaf in program.signature.tensor_outputs] == [
        HALF,
        torch.int64,
        torch.bool,
        torch.int64,
    ]
    assert [leaf.spec.dtype for leaf in program.signature.tensor_inputs] == [HALF, torch.int64]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(-1),
        lambda x: x.exp(),
        lambda x: x.sum(1),
        lambda x: x.mean(1),
        lambda x: x.pow(2),
        lambda x: x.square().rsqrt(),
        lambda x: x.cumsum(1),
        lambda x: torch.linalg.vector_norm(x, dim=1),
        lambda x: x.var(1),
    ],
    ids=["softmax", "exp", "sum", "mean", "pow", "rsqrt", "cumsum", "norm", "var"],
)
def test_what_amplifies_rounding_stays_in_float32(function: Callable[..., Any]) -> None:
    def between(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.linear(function(self.linear(x).relu() + 1).reshape(-1)[:2])

    module = Function(between, linear=nn.Linear(2, 2))
    program = transformed(module, torch.randn(2, 2), passes=(set_precision,), tolerance=0.03, precision="fp16")
    sensitive = [
        node for node in program.calls
        if node.target not in (aten.linear.default, aten.relu.default, aten.add.Tensor, CAST)
    ]  # fmt: skip
    assert sensitive
    assert all(node.meta["val"].dtype == SINGLE for node in sensitive if node.target is not aten.slice.Tensor)
    assert set(dtypes(program, aten.linear.default)) == {HALF}


def test_sums_do_not_overflow() -> None:
    def normalised(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    x = torch.randn(2, 64) * 300
    program = transformed(Function(normalised), x, passes=(set_precision,), tolerance=2e-3, precision="fp16")
    assert program(x).isfinite().all()
    assert dtypes(program, aten.pow.Tensor_Scalar) == dtypes(program, aten.rsqrt.default) == [SINGLE]


def test_islands_of_float32_are_not_cast_back_and_forth() -> None:
    def island(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.linear(((x.exp() + 1) * 2).log())

    program = transformed(
        Function(island, linear=nn.Linear(3, 3)), X, passes=(set_precision,), tolerance=0.01, precision="fp16"
    )
    assert dtypes(program, aten.add.Tensor) == dtypes(program, aten.mul.Tensor) == [SINGLE]
    assert count(program, CAST) == 1 + 2 + 1, "before the product, its weights, and after it"


def masked(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    bias = torch.where(mask, 0.0, torch.finfo(SINGLE).min)
    return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)


def added(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(-1, -2) + (1.0 - mask.float()) * torch.finfo(SINGLE).min).softmax(-1) @ x


def filled(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(-1, -2)).masked_fill(~mask, torch.finfo(SINGLE).min).softmax(-1) @ x


def minus(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (x @ x.transpose(-1, -2) - (~mask).float() * 1e9).softmax(-1) @ x


def triangle(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    bias = torch.full((3, 3), torch.finfo(SINGLE).min).triu(1)
    return F.scaled_dot_product_attention(x, x, x, attn_mask=bias[None] + x[:, :1, :, :1] * 0)


def integer(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return ((x @ x.transpose(-1, -2)).masked_fill(~mask, -1000000000)).softmax(-1) @ x


@pytest.mark.parametrize("function", [masked, added, filled, minus, triangle, integer])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_masks_beyond_the_range_give_no_nan(function: Callable[..., Any], precision: str) -> None:
    x, mask = torch.randn(1, 2, 3, 4), torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    tolerance = 5e-3 if precision == "fp16" else 3e-2
    program = transformed(
        Function(function), x, mask, passes=(set_precision,), tolerance=tolerance, precision=precision
    )
    # A row without anything to attend to is arbitrary, but a number.
    assert program(x, mask & torch.tensor([[True], [True], [False]])).isfinite().all()
    products = {node.meta["val"].dtype for node in program.calls if node.target is aten.matmul.default}
    assert products <= {HALF if precision == "fp16" else BRAIN}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-12),
        lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12),
        lambda x: x / torch.maximum(x.abs().amax(-1, keepdim=True), torch.tensor(1e-9)),
        lambda x: x / x.abs().mean(-1, keepdim=True).clamp(min=1e-10).expand(2, 3),
    ],
    ids=["normalize", "add", "rsqrt", "maximum", "clamp"],
)
def test_what_keeps_denominators_from_zero_is_not_rounded_to_it(function: Callable[..., Any]) -> None:
    module = Function(lambda self, x: self.linear(function(x)), linear=nn.Linear(3, 3))
    x = torch.stack([torch.zeros(3), torch.randn(3)])
    passes = (remove_noops, set_precision)
    program = transformed(module, x, passes=passes, tolerance=5e-3, precision="fp16")
    assert dtypes(program, aten.linear.default) == [HALF]


def test_a_mask_among_the_weights() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([[0.0, -3.4e38], [-3.4e38, -3.4e38]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)

    module, x = Masked().eval(), torch.randn(1, 2, 2, 4)
    program = capture(module, (x,))
    set_precision(program, Settings(precision="fp16"))
    check(program, "set_precision")
    found = program(x)
    torch.testing.assert_close(found[:, :, 0], module(x)[:, :, 0], rtol=0, atol=5e-3)
    assert found.isfinite().all()


def test_the_models_own_casts_are_kept() -> None:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return (x.double().float() * 2).to(HALF).float()

    program = transformed(
        Function(lambda x: x.to(BRAIN) * 2), X, passes=(set_precision,), tolerance=1e-2, precision="fp16"
    )
    assert program.signature.tensor_outputs[0].spec.dtype == BRAIN
    transformed(Function(cast), X, passes=(set_precision,), tolerance=1e-2, precision="fp16")


def test_weights_are_folded_before_they_are_cast() -> None:
    module = randomized(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), X2)
    passes = (unify_convolutions, fold_batch_norm, set_precision, merge_common_subexpressions, hoist_weights)
    program = transformed(module, X2, passes=passes, tolerance=5e-3, precision="fp16")
    exact = module.double()
    scale = exact[1].weight / (exact[1].running_var + exact[1].eps).sqrt()
    kernel = exact[0].weight * scale.reshape(-1, 1, 1, 1)
    folded = program.weights.evaluate()[str(bind(only(program, aten.convolution.default))["weight"].target)]
    assert folded.dtype == HALF
    assert ((folded.double() - kernel).abs() / kernel.abs()).max() <= torch.finfo(HALF).eps / 2 * 1.01


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_value_is_cast_once(precision: str) -> None:
    module = Function(lambda self, x: (self.one(x), self.other(x), x.exp()), one=nn.Linear(3, 3), other=nn.Linear(3, 3))
    program = transformed(module, X, passes=(set_precision,), tolerance=0.03, precision=precision)
    assert sum(node.target is CAST and node.args[0].target == "inputs_0" for node in program.calls) == 1
