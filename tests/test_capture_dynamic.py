"""Capture: what becomes of a module's dynamic dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.backends import opt_einsum
from torch.export import Dim, ShapesCollection

from tests import torch_can
from tests.capturing import BATCH, Function, Pair, X, Y, captured, same
from tests.passing import only
from torch2trt.errors import CaptureError, DynamicShapeError
from torch2trt.frontend.assumptions import check_shapes_at_one
from torch2trt.frontend.export import capture
from torch2trt.graph.signature import TensorLeaf
from torch2trt.sizes import DimRange, symbol


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize(
    "form", [{"input": {0: BATCH}}, ({0: BATCH},), {"input": (BATCH, None)}, [[BATCH, Dim.STATIC]]]
)
def test_a_dynamic_batch_in_each_form(size: int, form: Any) -> None:
    module = nn.Linear(3, 4).eval()
    program = captured(module, torch.randn(size, 3), dynamic_shapes=form)
    assert program.signature.dims == {"batch": DimRange(1, size, 8)}
    for other in (1, 2, 5, 8):
        same(program, module, torch.randn(other, 3))


def test_the_example_keeps_its_size_of_one() -> None:
    seen: list[int] = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        seen.append(int(x.shape[0]) if isinstance(x.shape[0], int) else 0)
        return x.flatten(1).sum(1)

    program = capture(Function(watched), (torch.randn(1, 3, 2),), dynamic_shapes={"x": {0: BATCH}})
    assert program.signature.dims["batch"].opt == 1
    assert 1 not in seen, "tracing must not see the size 1"
    same(program, Function(lambda x: x.flatten(1).sum(1)), torch.randn(1, 3, 2))


@pytest.mark.skipif(
    not torch_can.nest_dynamic_shapes(),
    reason="torch.export up to 2.11 takes no dynamic shapes for a registered dataclass",
)
def test_dynamic_dimensions_of_nested_keyword_and_variable_arguments() -> None:
    def deep(pair: Pair, *more: torch.Tensor, table: dict[str, list[torch.Tensor]], **rest: Any) -> torch.Tensor:
        return pair.first + more[0] + table["a"][0] + rest["last"]

    axis = {0: BATCH}
    shapes = {"pair": [axis], "more": (axis,), "table": {"a": [axis]}, "rest": {"last": axis}}
    module = Function(deep)
    program = captured(module, Pair(X), X, table={"a": [Y]}, last=Y, dynamic_shapes=shapes)
    assert program.signature.dims == {"batch": DimRange(1, 2, 8)}
    z = torch.randn(1, 3)
    same(program, module, Pair(z), z, table={"a": [z]}, last=z)


def test_shapes_collection() -> None:
    shapes = ShapesCollection()
    shapes[X] = {0: BATCH}
    assert captured(Function(lambda x: x + 1), X, dynamic_shapes=shapes).signature.dims == {"batch": DimRange(1, 2, 8)}


def test_hints_without_a_name() -> None:
    program = captured(Function(lambda x: x + 1), X, dynamic_shapes={"x": {0: Dim.DYNAMIC(min=1, max=4)}})
    assert list(program.signature.dims.values()) == [DimRange(1, 2, 4)]


def test_two_dimensions() -> None:
    def tokens(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).reshape(x.shape[0] * x.shape[1], -1)

    module = Function(tokens)
    shapes = {"x": {0: BATCH, 1: Dim("length", min=2, max=16)}}
    program = captured(module, torch.randn(2, 5, 4), dynamic_shapes=shapes)
    assert program.signature.dims == {"batch": DimRange(1, 2, 8), "length": DimRange(2, 5, 16)}
    assert str(program.signature.tensor_outputs[0].spec.shape[0]) == "batch*length"
    same(program, module, torch.randn(1, 16, 4))


def test_multiples() -> None:
    def halves(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] // 2, 2, x.shape[1])

    module = Function(halves)
    half = Dim("half", min=1, max=4)
    for size in (2, 4, 8):
        program = captured(module, torch.randn(size, 3), dynamic_shapes={"x": {0: 2 * half}})
        assert program.signature.dims == {"half": DimRange(1, size // 2, 4)}
        assert str(program.signature.tensor_inputs[0].spec.shape[0]) == "2*half"
        for other in (2, 6, 8):
            same(program, module, torch.randn(other, 3))


def test_a_dimension_and_its_multiple() -> None:
    module = Function(lambda x, y: x[::2] + y)
    half = Dim("half", min=1, max=4)
    program = captured(
        module, torch.randn(2, 3), torch.randn(1, 3), dynamic_shapes={"x": {0: 2 * half}, "y": {0: half}}
    )
    assert program.signature.dims == {"half": DimRange(1, 1, 4)}
    same(program, module, torch.randn(8, 3), torch.randn(4, 3))


def test_sizes_start_at_one() -> None:
    program = captured(Function(lambda x: x + 1), X, dynamic_shapes={"x": {0: Dim("batch", max=8)}})
    assert program.signature.dims == {"batch": DimRange(1, 2, 8)}


def refused(module: nn.Module, dim: Any, example: torch.Tensor = X, axis: int = 0) -> DynamicShapeError:
    with pytest.raises(DynamicShapeError) as info:
        capture(module, (example,), dynamic_shapes=({axis: dim},))
    assert info.value.code == "T2T105"
    return info.value


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] == 1 else x * 3


@pytest.mark.parametrize(
    "function", [branch, torch.squeeze, lambda x: x.squeeze(0) + 1], ids=["branch", "squeeze", "dim"]
)
def test_modules_that_compute_something_else_at_one(function: Callable[..., Any]) -> None:
    module = Function(lambda x: function(x))
    error = refused(module, BATCH)
    assert "is 1" in error.reason
    assert "min=2" in error.hint
    captured(module, X, dynamic_shapes=({0: Dim("batch", min=2, max=8)},))
    captured(module, X[:1])


WITHIN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], int]] = {
    "slice": (lambda x: x[2:].squeeze() + 1, 3),
    "half": (lambda x: x[::3].squeeze(0) * 2, 2),
    "joined": (lambda x: torch.cat([x, x])[3:].squeeze(), 2),
}


@pytest.mark.parametrize("name", WITHIN)
def test_modules_that_compute_something_else_where_a_size_within_is_one(name: str) -> None:
    function, size = WITHIN[name]
    module, x = Function(lambda x: function(x)), torch.randn(6, 3)
    error = refused(module, Dim("batch", min=2, max=8), x)
    assert f"batch {size}, where a size within it is 1" in error.reason
    program = captured(module, x, dynamic_shapes=({0: Dim("batch", min=size + 2, max=8)},))
    same(program, module, torch.randn(size + 2, 3))


def test_sizes_within_may_be_one_where_nothing_depends_on_it() -> None:
    module = Function(lambda x: (x[2:] + x[:-2]).sum(1, keepdim=True) * torch.cat([x, x])[4::2])
    program = captured(module, torch.randn(6, 3), dynamic_shapes=({0: Dim("batch", min=3, max=8)},))
    for size in (3, 4, 8):
        same(program, module, torch.randn(size, 3))


def test_modules_that_fail_at_one() -> None:
    def needs_two(x: torch.Tensor) -> torch.Tensor:
        torch._check(x.shape[0] >= 2)
        return x + 1

    assert "is 1" in refused(Function(needs_two), BATCH).reason


def test_sizes_that_must_be_multiples() -> None:
    error = refused(Function(lambda x: x.reshape(x.shape[0] // 2, 2, 3)), BATCH)
    assert "batch = 3" in error.reason


def test_conditions_on_two_dimensions() -> None:
    def small(x: torch.Tensor) -> torch.Tensor:
        torch._check(x.shape[0] * x.shape[1] <= 12)
        return x + 1

    with pytest.raises(DynamicShapeError, match=r"rows = \d+ and|and rows = \d+"):
        capture(Function(small), (X,), dynamic_shapes=({0: Dim("rows", max=8), 1: Dim("columns", max=3)},))
    shapes = ({0: Dim("rows", max=4), 1: Dim("columns", max=3)},)
    assert len(captured(Function(small), X, dynamic_shapes=shapes).signature.dims) == 2


def test_sizes_that_python_turns_into_numbers() -> None:
    error = refused(Function(lambda x: x / math.log(x.shape[0])), BATCH)
    assert "batch" in error.reason


def test_dimensions_without_a_maximum() -> None:
    assert "upper bound" in refused(Function(lambda x: x + 1), Dim("batch")).reason
    assert "upper bound" in refused(Function(lambda x: x + 1), Dim.AUTO).reason


def test_examples_outside_their_range() -> None:
    module = Function(lambda x: x + 1)
    assert "3 to 6" in refused(module, Dim("batch", min=3, max=6)).reason
    assert "is 1" in refused(module, Dim("batch", min=2, max=6), X[:1]).reason
    assert "2*half" in refused(module, 2 * Dim("half", max=4), torch.randn(5, 3)).reason


def test_axes_that_are_not_there() -> None:
    assert "axis 2" in refused(Function(lambda x: x + 1), BATCH, axis=2).reason


def test_other_structures_than_the_arguments() -> None:
    with pytest.raises(DynamicShapeError, match="2 entries"):
        capture(Function(lambda x: x[0] + 1), ([X],), dynamic_shapes=([{0: BATCH}, {0: BATCH}],))
    with pytest.raises(CaptureError, match="dynamic_shapes"):
        capture(Function(lambda x: x + 1), (X,), dynamic_shapes={"y": {0: BATCH}})


def test_the_order_of_products_fixes_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_order(equation: str, *operands: torch.Tensor, **options: Any) -> Any:
        assert all(isinstance(int(size), int) for operand in operands for size in operand.shape)
        return [(0, 1), (0, 1)], None

    # A stand-in for the package, which need not be there.
    monkeypatch.setattr(opt_einsum, "_opt_einsum", SimpleNamespace(contract_path=in_order))
    monkeypatch.setattr(opt_einsum, "enabled", True)
    monkeypatch.setattr(opt_einsum, "strategy", "auto")

    def chained(x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bi,bj,bk->ijk", x, x, x)

    program = captured(Function(chained), X, dynamic_shapes={"x": {0: BATCH}})
    same(program, Function(chained), torch.randn(5, 3))
    assert opt_einsum.enabled


@pytest.mark.parametrize("offset", [-2, -1, 1, 2])
def test_a_name_is_that_of_the_root_wherever_export_begins(offset: int) -> None:
    """Where the sizes are n - 1 and n, torch.export may take the smaller one for the symbol."""
    size = Dim("n", min=4, max=16)
    module = Function(lambda x, y: (x * 2, y + 1))
    args, dynamic = (torch.ones(5 + offset, 2), torch.ones(5, 2)), ({0: size + offset}, {0: size})
    program = capture(module.eval(), args, dynamic_shapes=dynamic)
    assert program.signature.dims == {"n": DimRange(4, 5, 16)}
    rows = [leaf.spec.shape[0] for leaf in program.signature.inputs if isinstance(leaf, TensorLeaf)]
    assert rows == [symbol("n") + offset, symbol("n")]
    assert [tuple(each.shape) for each in program(torch.ones(9 + offset, 2), torch.ones(9, 2))] == [
        (9 + offset, 2),
        (9, 2),
    ]


def test_what_nobody_reads_may_have_any_size() -> None:
    # On a GPU, torch's own kernels do not agree on the sizes of a batch norm's statistics.
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    program = capture(module, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim("batch", min=1, max=4)},))
    norm = only(program, torch.ops.aten._native_batch_norm_legit_no_training.default)
    result, *statistics = norm.meta["val"]
    norm.meta["val"] = (result, *(each.new_empty(each.numel() + 3) for each in statistics))
    check_shapes_at_one(program)
    norm.meta["val"] = (result.flatten(1), *statistics)
    with pytest.raises(DynamicShapeError):
        check_shapes_at_one(program)
