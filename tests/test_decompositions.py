"""Decomposition: what stays whole, what does not, and that torch is afterwards as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._export import utils as export_utils
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, exported_program

import torch2trt
from tests import torch_can
from tests.passing import Function
from torch2trt import api
from torch2trt.errors import CaptureError
from torch2trt.frontend.decompositions import Keep, decompose
from torch2trt.frontend.export import capture
from torch2trt.frontend.splicing import splice
from torch2trt.graph.contract import check
from torch2trt.graph.schema import name_of

aten = torch.ops.aten


class Mixed(nn.Module):
    """Writes in place, and calls operators of both kinds: composite ones and those with kernels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = x + 1
        moved[0, 0] = 5
        return torch.linalg.inv(moved) + F.hardswish(F.linear(x, x))


def operators(keep: Keep) -> set[str]:
    program = capture(Mixed().eval(), (torch.rand(3, 3),), keep=keep)
    check(program, "capture")
    found = {name_of(node.target) for node in program.calls}
    assert "aten._linalg_check_errors.default" not in found
    return found


def test_only_what_is_refused_is_taken_apart() -> None:
    assert {"aten.linalg_inv.default", "aten.linear.default", "aten.hardswish.default"} <= operators(
        lambda target: True
    )
    parted = operators(lambda target: target not in (aten.linear.default, aten.hardswish.default))
    assert "aten.linalg_inv.default" in parted
    assert not {"aten.linear.default", "aten.hardswish.default"} & parted


def test_nothing_checks_its_operands() -> None:
    # As torch 2.15 decomposes it, the inverse would; it stays whole. That of 2.11 goes without.
    operators(lambda target: target is not aten.linalg_inv.default)
    both = operators(lambda target: target not in (aten.linalg_inv.default, aten.linear.default))
    assert "aten.linear.default" not in both


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda x: (x * 2).flatten(1) + 1, "aten.sym_size.int"),
        # One is of the operators in torch's table, the other one of those that it never keeps.
        (lambda x: F.hardshrink(x.mT).exp(), "aten.where.ScalarSelf"),
    ],
    ids=["sizes", "what is taken apart"],
)
def test_this_is_no_reason_to_trace_twice(
    function: Callable[..., Any], operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[int] = []
    own = ExportedProgram.run_decompositions

    def counted(self: ExportedProgram, *args: Any) -> ExportedProgram:
        traced.append(1)
        return own(self, *args)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    program = api.capture(Function(function), (torch.rand(3, 2, 2),), dynamic_shapes=(({0: Dim("batch", max=8)},),))
    assert not traced
    assert operator in {name_of(node.target) for node in program.calls}


def _checked(x: torch.Tensor) -> torch.Tensor:
    aten._assert_async.msg(x.sum() > 0, "positive")
    return aten.clamp_min.default(x, 0)


@pytest.mark.parametrize(
    ("function", "operator", "decomposition"),
    [
        (torch.relu, aten.relu.default, _checked),
        (lambda x: x.nonzero(as_tuple=True), aten.nonzero_numpy.default, aten.nonzero_numpy.default.decompose),
    ],
    ids=["checks", "sizes from data"],
)
def test_what_is_more_than_its_operators_is_not_spliced(
    function: Callable[..., Any], operator: Any, decomposition: Callable[..., Any]
) -> None:
    graph = torch.export.export(Function(function), (torch.rand(3, 3),), strict=False).graph
    before = str(graph)
    assert not splice(graph, {operator: decomposition})
    assert str(graph) == before


def test_torch_is_afterwards_as_it_was() -> None:
    def state() -> list[object]:
        names = "_BACKEND_KEYS_TO_OVERRIDE", "_AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE"
        kernels = dict(aten.linear.default.py_kernels)
        return [getattr(export_utils, "_materialize_cpp_cia_ops", None), kernels] + [
            list(getattr(exported_program, name, ())) for name in names
        ]

    def fails(target: object) -> bool:
        raise ValueError("of the user's")

    before = state()
    capture(Mixed().eval(), (torch.rand(3, 3),))
    assert state() == before
    with pytest.raises(CaptureError, match="of the user's"):
        capture(Mixed().eval(), (torch.rand(3, 3),), keep=fails)
    assert state() == before


def test_an_operator_registered_after_a_capture_stays_whole_in_the_next() -> None:
    operators(lambda target: True)
    with torch.library._scoped_library("t2t_late", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")

        class Late(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                twice: torch.Tensor = torch.ops.t2t_late.twice(x)
                return twice

        program = capture(Late().eval(), (torch.rand(3),))
        assert [name_of(node.target) for node in program.calls] == ["t2t_late.twice.default"]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_products_of_halves_with_a_result_in_float32(half: torch.dtype) -> None:
    # Torch computes them on GPUs alone, but traces them anywhere.
    class Products(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
            wide = torch.float32
            return (
                torch.mm(x[0], y[0], out_dtype=wide),
                torch.bmm(x, y, out_dtype=wide),
                *([torch.addmm(z[0], x[0], y[0], out_dtype=wide, beta=0.5, alpha=2.0)] if adds else []),
            )

    adds = torch_can.add_to_wide_products()
    x, y, z = (torch.randn(2, *shape).to(half) for shape in ((3, 4), (4, 5), (3, 5)))
    results = torch2trt.compile(Products().eval(), (x, y, z)).reference(x, y, z)
    product, added = x.double() @ y.double(), z[0].double()
    truth = product[0], product, 0.5 * added + 2 * product[0]
    for result, exact in zip(results, truth[: 2 + adds], strict=True):
        assert result.dtype == torch.float32
        assert torch.allclose(result.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_recurrent_cells_are_the_same_on_every_device(cell: type[nn.Module]) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        module = cell(6, 5).eval()
        exported = torch.export.export(module, (torch.empty(4, 6),), strict=False)
        present = {node.target for node in decompose(exported, api._keep).graph.nodes if node.op == "call_function"}
    assert aten.linear.default in present
    assert not [target for target in present if "fused" in str(target)]
