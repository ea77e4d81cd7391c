"""Each pass on small graphs: what it changes, what it leaves alone, and that the Program computes the same."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim

from tests.passing import (
    CAST,
    HALF,
    SINGLE,
    X1,
    X2,
    X3,
    Function,
    X,
    aten,
    close,
    count,
    named,
    randomized,
    targets,
    transformed,
)
from torch2trt.errors import ContractError
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.graph.ops import CONV_BLOCK
from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import call
from torch2trt.passes import pipeline
from torch2trt.passes.merge_common_subexpressions import merge_common_subexpressions
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.passes.unify_views import unify_views
from torch2trt.settings import Settings

# unify_views, unify_convolutions --------------------------------------------------------------------------------------


def test_every_view_is_a_reshape() -> None:
    program = transformed(
        Function(lambda x: (x.view(6), x.reshape(3, 2), x.t().reshape(2, 3))), torch.randn(2, 3), passes=(unify_views,)
    )
    assert count(program, aten.view.default) + count(program, aten._unsafe_view.default) == 0
    assert count(program, aten.reshape.default) >= 3


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
    ids=named,
)
def test_every_convolution_is_the_general_one(layer: nn.Module, x: torch.Tensor) -> None:
    program = transformed(layer.eval(), x, passes=(unify_convolutions,), tolerance=1e-6)
    assert count(program, aten.convolution.default) == 1
    assert {aten.convolution.default, aten.constant_pad_nd.default, aten.pad.default} >= set(targets(program))


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


def test_the_contract_refuses_graphs_out_of_order() -> None:
    def used_before_it_is_computed(program: Program) -> None:
        program.calls[0].prepend(program.calls[1])

    def of_another_graph(program: Program) -> None:
        program.calls[1].args = (fx.Graph().placeholder("x"),)

    for change, text in ((used_before_it_is_computed, "before it has been defined"), (of_another_graph, "belong to")):
        program = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (X,))
        change(program)
        with pytest.raises(RuntimeError, match=text):
            check(program, "breaking")


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
