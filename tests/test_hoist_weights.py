"""What depends on weights alone leaves the graph, and what nothing reads disappears."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from tests.passing import (
    Function,
    X,
    aten,
    targets,
    transformed,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.contract import check
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.remove_noops import remove_noops
from torch2trt.passes.unify_views import unify_views
from torch2trt.settings import Settings


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
