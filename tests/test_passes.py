"""Each pass on small graphs: what it changes, what it leaves alone, and that the Program computes the same."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from torch2trt.errors import ContractError
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.ops import CONV_BLOCK, LINEAR_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.graph.schema import bind
from torch2trt.passes import pipeline
from torch2trt.passes.fold_batch_norm import fold_batch_norm
from torch2trt.passes.fuse_conv_blocks import fuse_conv_blocks
from torch2trt.passes.fuse_linear_blocks import fuse_linear_blocks
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.merge_common_subexpressions import merge_common_subexpressions
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.set_precision import set_precision
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.passes.unify_views import unify_views
from torch2trt.settings import Settings
from torch2trt.tools.weights import randomize

aten = torch.ops.aten
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


class Function(nn.Module):
    """A function of tensors as a module in evaluation mode; what else it is given becomes its submodules."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)
        self.eval()

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs) if self._modules or self._parameters else self.function(*inputs)


def transformed(
    module: nn.Module,
    *inputs: Any,
    passes: tuple[pipeline.Pass, ...],
    tolerance: float = 0.0,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Program:
    """Capture, run passes, check the contract after each, and compare with the module."""
    program = capture(module, inputs, dynamic_shapes=dynamic_shapes)
    with torch.no_grad():
        wanted = module(*inputs)
    for each in passes:
        each(program, Settings(**settings))
        program.graph.recompile()
        check(program, each.__name__)
    if settings.get("keep_io_dtypes", True):
        close(program(*inputs), wanted, tolerance)
    return program


def close(found: Any, wanted: Any, tolerance: float) -> None:
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def count(program: Program, target: Any) -> int:
    return sum(node.target is target for node in program.calls)


def targets(program: Program) -> list[Any]:
    return [node.target for node in program.calls]


def only(program: Program, target: Any) -> fx.Node:
    (node,) = [node for node in program.calls if node.target is target]
    return node


def randomized(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    module.eval()
    randomize(module, inputs, seed=1)
    return module


# unify_views, unify_convolutions --------------------------------------------------------------------------------------


def test_every_view_is_a_reshape() -> None:
    program = transformed(
        Function(lambda x: (x.view(6), x.reshape(3, 2), x.t().reshape(2, 3))), torch.randn(2, 3), passes=(unify_views,)
    )
    assert count(program, aten.view.default) + count(program, aten._unsafe_view.default) == 0
    assert count(program, aten.reshape.default) >= 3


X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 7, 6), torch.randn(1, 4, 5, 4, 3)


def _named(value: object) -> str:
    """What a parameter is called: random tensors have no name of their own that all test processes agree on."""
    return "x" if isinstance(value, torch.Tensor) else str(value)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), X1),
        (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2), X2),
        (nn.Conv3d(4, 6, 2, padding=(1, 0, 1)), X3),
        (nn.Conv1d(4, 6, 4, padding="same"), X1),
        (nn.Conv2d(4, 6, (2, 3), padding="same", dilation=(1, 2)), X2),
        (nn.Conv2d(4, 6, 3, padding="valid", bias=False), X2),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), X1),
        (nn.ConvTranspose2d(4, 6, (2, 3), stride=2, padding=1, groups=2), X2),
        (nn.ConvTranspose3d(4, 6, 2, stride=2, dilation=2), X3),
        (nn.Conv2d(4, 6, 3, padding_mode="reflect", padding=1), X2),
    ],
    ids=_named,
)
def test_every_convolution_is_the_general_one(layer: nn.Module, x: torch.Tensor) -> None:
    program = transformed(layer.eval(), x, passes=(unify_convolutions,), tolerance=1e-6)
    assert count(program, aten.convolution.default) == 1
    assert {aten.convolution.default, aten.constant_pad_nd.default, aten.pad.default} >= set(targets(program))


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
    ids=_named,
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


# hoist_weights, remove_dead_code --------------------------------------------------------------------------------------


class Parameters(nn.Module):
    """Parameters a [2, 3] and b [2, 3], handed to a function with the input."""

    def __init__(self, function: Callable[..., Any], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in (shapes or {"a": (2, 3), "b": (2, 3)}).items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator)))
        self.function = function
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.parameters())


HOIST = (unify_views, remove_noops, hoist_weights, remove_dead_code)
X = torch.randn(2, 3)


def test_arithmetic_on_weights_moves_to_the_weights_graph() -> None:
    program = transformed(Parameters(lambda x, a, b: x + (a * b).exp().t().reshape(2, 3)), X, passes=HOIST)
    assert targets(program) == [aten.add.Tensor]
    assert len(program.weight_placeholders) == 1
    assert sum(node.op == "call_function" for node in program.weights.graph.graph.nodes) == 4


def test_the_weights_graph_evaluates_with_new_parameters() -> None:
    module = Parameters(lambda x, a, b: (x + a * b, x * a))
    program = transformed(module, X, passes=HOIST)
    before = program.weights.evaluate()
    new = {name: torch.randn(2, 3) for name in program.weights.sources}
    after = program.weights.evaluate(new)
    product, own = after.values() if next(iter(after)).startswith("w_") else reversed(after.values())
    assert torch.equal(product, new["a"] * new["b"])
    assert torch.equal(own, new["a"])
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in after)
    part = program.weights.evaluate({"b": new["b"]})
    assert torch.equal(part[next(name for name in part if name.startswith("w_"))], module.a * new["b"])


def test_what_inputs_reach_stays() -> None:
    program = transformed(Parameters(lambda x, a, b: (x * a).exp() * b), X, passes=HOIST)
    assert targets(program) == [aten.mul.Tensor, aten.exp.default, aten.mul.Tensor]
    assert len(program.weight_placeholders) == 2


def test_constants_without_weights_are_hoisted() -> None:
    program = transformed(Function(lambda x: x + torch.arange(3).float() * 2), X, passes=HOIST)
    assert targets(program) == [aten.add.Tensor]


def test_what_grows_stays_in_the_engine() -> None:
    module = Parameters(lambda x, a: x + a.expand(1200, 1200) * 2, a=(1200, 1))
    program = transformed(module, torch.randn(1200, 1200), passes=HOIST)
    (weight,) = program.weights.evaluate().values()
    assert weight.numel() == 1200
    # What is small or does not grow is hoisted.
    module = Parameters(lambda x, a, b: x + a.expand(70, 70) * 2 + (b * b), a=(70, 1), b=(70, 70))
    assert targets(transformed(module, torch.randn(70, 70), passes=HOIST)) == [aten.add.Tensor] * 2


def test_large_constants_from_nothing_stay_in_the_engine() -> None:
    program = transformed(Function(lambda x: x + torch.full((1200, 1200), 2.0)), torch.randn(1200, 1200), passes=HOIST)
    assert targets(program) == [aten.full.default, aten.add.Tensor]
    assert program.weight_placeholders == []


def test_shapes_of_inputs_are_not_hoisted() -> None:
    def added(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x + a.expand(x.shape[0], 3)

    shapes = ({0: Dim("batch", max=8)},)
    program = transformed(Parameters(added, a=(1, 3)), X, passes=HOIST, dynamic_shapes=shapes)
    assert aten.expand.default in targets(program)
    assert program(torch.ones(5, 3)).shape == (5, 3)


def test_tied_and_aliased_weights_are_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, bias=False)
            self.other = nn.Linear(3, 3, bias=False)
            self.other.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + x @ self.other.weight.t() * self.one.weight[0]

    program = transformed(Tied().eval(), X, passes=HOIST, tolerance=1e-6)
    assert program.weights.source_bytes == 36
    storages = {value.untyped_storage().data_ptr() for value in program.weights.evaluate().values()}
    assert len(storages) == 1, "transposing and selecting are views"


def test_items_of_a_split_weight() -> None:
    program = transformed(Parameters(lambda x, a, b: x @ a.split(1, 0)[1].t() + b.unbind(0)[0]), X, passes=HOIST)
    assert program.calls[0].op == "call_function"
    assert all(isinstance(program.result(node), object) for node in program.calls)
    assert {str(node.target) for node in program.weight_placeholders} == set(program.weights.outputs)


def test_results_made_of_weights_alone() -> None:
    program = transformed(Parameters(lambda x, a, b: (a * b, x + a)), X, passes=HOIST)
    assert len(program.output_names) == 2


def test_weights_that_nothing_reads_are_dropped() -> None:
    def first(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        unused = (a * b).sum()
        assert unused is not None
        return x + a

    program = transformed(Parameters(first), X, passes=HOIST)
    assert list(program.weights.sources) == ["a"]


def test_dead_calls_and_their_weights_are_dropped() -> None:
    program = capture(Parameters(lambda x, a, b: (x + a, x * b)), (X,))
    output = program.output_node
    output.args = ((output.args[0][0],),)  # type: ignore[index]
    program.signature = dataclasses.replace(
        program.signature, outputs=program.signature.outputs[:1], out_spec=pytree.tree_structure([0])
    )
    remove_dead_code(program, Settings())
    check(program, "remove_dead_code")
    assert targets(program) == [aten.add.Tensor]
    assert list(program.weights.sources) == ["a"]


# remove_noops, merge_common_subexpressions ----------------------------------------------------------------------------


def test_copies_casts_and_views_that_change_nothing() -> None:
    def nothing(x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(x.clone().contiguous().detach().to(SINGLE).view(2, 3).expand(2, 3), 0.5, training=False)
        return F.pad(y.reshape(-1, 3)[:, 0:5].squeeze(1).repeat(1, 1), [0, 0, 0, 0]) + 1

    program = transformed(Function(nothing), X, passes=(unify_views, remove_noops))
    assert targets(program) == [aten.add.Tensor]


def test_what_changes_something_stays() -> None:
    def something(x: torch.Tensor) -> Any:
        return x.to(HALF), x.view(3, 2), x[None].expand(2, 2, 3)

    program = transformed(Function(something), X, passes=(unify_views, remove_noops))
    assert count(program, aten._to_copy.default) == count(program, aten.reshape.default) == 1
    assert count(program, aten.expand.default) == 1

    def moved(x: torch.Tensor) -> Any:
        return F.pad(x, [1, -1]), x[:, 1:], x[:1, ::2], x.repeat(1, 2), x[:1].squeeze(0)

    program = transformed(Function(moved), X, passes=(remove_noops,))
    assert len(program.calls) >= 6


def test_copies_that_are_results() -> None:
    program = transformed(Function(lambda x: (x.clone(), (x + 1).clone())), X, passes=(remove_noops,))
    assert targets(program) == [aten.add.Tensor]


def test_the_same_is_computed_once() -> None:
    def twice(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).relu() * (x + y).relu() - torch.cat([x, y])[:2] + torch.cat([x, y])[2:]

    program = transformed(Function(twice), X, torch.randn(2, 3), passes=(merge_common_subexpressions,))
    assert count(program, aten.add.Tensor) == 2
    assert count(program, aten.relu.default) == count(program, aten.cat.default) == 1


def test_numbers_of_other_types_are_not_the_same() -> None:
    def numbers(x: torch.Tensor) -> Any:
        # int64, float32 and int64 again: equal numbers, other results.
        return x + 1, x + 1.0, x + True, x * 0.0, x * -0.0, x + 1

    x = torch.arange(3)
    program = transformed(Function(numbers), x, passes=(merge_common_subexpressions,))
    assert count(program, aten.add.Tensor) == 3
    assert count(program, aten.mul.Tensor) == 2


def test_numbers_in_lists_are_told_apart() -> None:
    def padded(x: torch.Tensor) -> Any:
        return F.pad(x, [0, 1]), F.pad(x, [1, 0]), F.pad(x, [0, 1], value=1.0), F.pad(x, [0, 1])

    program = transformed(Function(padded), X, passes=(merge_common_subexpressions,))
    assert len(program.calls) == 3


# set_precision --------------------------------------------------------------------------------------------------------

CAST = aten._to_copy.default


def dtypes(program: Program, target: Any) -> list[torch.dtype]:
    """Of the first tensor argument of each call."""
    return [node.all_input_nodes[0].meta["val"].dtype for node in program.calls if node.target is target]


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


# The pipeline and its contract ----------------------------------------------------------------------------------------


def test_the_whole_pipeline() -> None:
    def network(self: Any, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.conv(x)) + x)
        return self.head(y.mean((2, 3)))

    members = {"conv": nn.Conv2d(4, 4, 3, padding=1, bias=False), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 5)}
    module = randomized(Function(network, **members), X2)
    shapes = (({0: Dim("batch", min=1, max=8)},),)
    program = capture(module, (X2,), dynamic_shapes=shapes)
    assert pipeline.run_passes(program, Settings()) is program
    assert targets(program) == [CONV_BLOCK, aten.mean.dim, aten.linear.default]
    for batch in (1, 2, 8):
        x = torch.randn(batch, 4, 7, 6)
        close(program(x), module(x).detach(), 1e-6)


def broken(change: Callable[[Program], None]) -> str:
    program = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (X,))
    change(program)
    with pytest.raises(ContractError, match="after breaking") as info:
        check(program, "breaking")
    assert info.value.code == "T2T203"
    return info.value.reason


def test_the_contract_names_the_pass_that_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget_values(program: Program, settings: Settings) -> None:
        program.calls[0].meta.pop("val")

    monkeypatch.setattr(pipeline, "PASSES", (remove_noops, forget_values))
    program = capture(nn.Linear(3, 4).eval(), (X,))
    with pytest.raises(ContractError, match="after forget_values"):
        pipeline.run_passes(program, Settings())


def test_what_the_contract_refuses() -> None:
    def in_place(program: Program) -> None:
        program.calls[1].target = aten.relu_.default

    def other_result(program: Program) -> None:
        program.output_node.args = ((program.calls[0].args[0],),)

    def missing_weight(program: Program) -> None:
        program.weights.keep_outputs({"p_0_weight"})

    def no_tuple(program: Program) -> None:
        program.output_node.args = (program.calls[1],)

    def another_dtype(program: Program) -> None:
        last = program.calls[1]
        with program.graph.graph.inserting_after(last):
            cast = call(program.graph.graph, CAST, last, dtype=HALF, like=last)
        program.output_node.args = ((cast,),)

    def method(program: Program) -> None:
        with program.graph.graph.inserting_before(program.output_node):
            node = program.graph.graph.call_method("relu", (program.calls[1],))
        node.meta["val"] = program.calls[1].meta["val"]

    def more_outputs(program: Program) -> None:
        program.output_node.args = ((program.calls[1], program.calls[0]),)

    assert "relu_" in broken(in_place)
    assert "output0" in broken(other_result)
    assert "weights graph" in broken(missing_weight)
    assert "tuple" in broken(no_tuple)
    assert "float16" in broken(another_dtype)
    assert "call_method" in broken(method)
    assert "length" in broken(more_outputs)


def test_pieces_of_a_split_have_the_precision_of_the_whole() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, second = self.linear(x).split(4, dim=-1)
            return first.reshape(-1) + second.reshape(-1)

    program = capture(Halves().eval(), (torch.randn(2, 8),))
    pipeline.run_passes(program, Settings(precision="fp16"))
    pieces = [node for node in program.calls if node.target is operator.getitem]
    assert [node.meta["val"].dtype for node in pieces] == [torch.float16] * 2
