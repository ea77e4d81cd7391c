"""What calls yield is computed once for each form of their arguments, and is then what torch would have computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from torch2trt.graph import rewrite
from torch2trt.graph.ops import LINEAR_BLOCK
from torch2trt.graph.rewrite import call

aten = torch.ops.aten


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operators that torch was asked for."""
    asked: list[Any] = []
    own = rewrite._computed

    def noted(node: fx.Node, *rest: Any) -> Any:
        asked.append(node.target)
        return own(node, *rest)

    monkeypatch.setattr(rewrite, "_computed", noted)
    return asked


class Graph:
    """A graph with placeholders for tensors, in which calls are inserted."""

    def __init__(self, *tensors: torch.Tensor, mode: FakeTensorMode | None = None) -> None:
        self.mode = mode or FakeTensorMode()
        self.graph = fx.Graph()
        self.inputs = [self.graph.placeholder(f"x{number}") for number in range(len(tensors))]
        for node, tensor in zip(self.inputs, tensors, strict=True):
            node.meta["val"] = self.mode.from_tensor(tensor)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        return call(self.graph, target, *args, like=self.inputs[0], **kwargs).meta["val"]


def form(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return type(value), [form(item) for item in value]
    places = (tuple(value.shape), value.stride(), value.storage_offset(), value.untyped_storage().nbytes())
    return type(value), places, value.dtype, value.device, value.requires_grad


def base(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


IMAGES = {
    "plain": torch.randn(2, 4, 5, 6),
    "channels last": torch.randn(2, 5, 6, 4).permute(0, 3, 1, 2),
    "a parameter": torch.nn.Parameter(torch.randn(2, 4, 5, 6).half()),
}
CALLS = [
    lambda graph, x, y: graph.call(aten.mul.Tensor, x, y),
    lambda graph, x, y: graph.call(aten.add.Scalar, x, 1.5),
    lambda graph, x, y: graph.call(aten._to_copy.default, x, dtype=torch.float16),
    lambda graph, x, y: graph.call(aten.reshape.default, x, [2, 20, -1]),
    lambda graph, x, y: graph.call(aten.permute.default, x, [0, 2, 3, 1]),
    lambda graph, x, y: graph.call(aten.slice.Tensor, x, 2, 1, 3),
    lambda graph, x, y: graph.call(aten.split.Tensor, x, 2, 1),
    lambda graph, x, y: graph.call(aten.unbind.int, x),
    lambda graph, x, y: graph.call(aten.var_mean.correction, x, [2, 3]),
    lambda graph, x, y: graph.call(aten.cat.default, [x, y], 1),
    lambda graph, x, y: graph.call(aten.where.self, graph.inputs[2], x, y),
    lambda graph, x, y: graph.call(LINEAR_BLOCK, x, graph.inputs[3], None, "relu", 0.0, 0.0),
]


@pytest.mark.parametrize("made", CALLS)
@pytest.mark.parametrize("kind", IMAGES)
def test_a_known_result_is_what_torch_computes(made: Any, kind: str, computed: list[Any]) -> None:
    images = IMAGES[kind]
    other = images.detach().clone(memory_format=torch.preserve_format)
    weight = torch.randn(8, 6, dtype=images.dtype)
    graph = Graph(images, torch.nn.Parameter(other) if images.requires_grad else other, images > 0, weight)
    x, y = graph.inputs[:2]
    # A view is of what this call is given.
    first, second = made(graph, x, y), made(graph, y, x)
    assert len(computed) == 1
    assert form(second) == form(first)
    for own, torchs in zip(pytree.tree_leaves(second), pytree.tree_leaves(first), strict=True):
        assert own.fake_mode is graph.mode
        assert (base(own) == base(y.meta["val"])) == (base(torchs) == base(x.meta["val"]))
        assert base(own) != base(torchs)


@pytest.mark.parametrize("number", [2, 2.0, True])
def test_numbers_that_are_equal_are_told_apart(number: Any, computed: list[Any]) -> None:
    graph = Graph(torch.arange(4))
    for each in (2.0, 1, 2, True):
        graph.call(aten.mul.Scalar, graph.inputs[0], each)
    count = len(computed)
    found = graph.call(aten.mul.Scalar, graph.inputs[0], number)
    assert len(computed) == count
    assert found.dtype == (torch.arange(4) * number).dtype


def test_one_form_is_of_one_graphs_mode(computed: list[Any]) -> None:
    for _ in range(2):
        graph = Graph(torch.randn(3))
        assert graph.call(aten.relu.default, graph.inputs[0]).fake_mode is graph.mode
    assert len(computed) == 2


def test_an_argument_that_is_handed_back_is_that_argument() -> None:
    graph = Graph(torch.randn(3), torch.randn(3))
    for node in graph.inputs:
        assert graph.call(aten.lift_fresh.default, node) is not None
        assert base(graph.call(aten.contiguous.default, node)) == base(node.meta["val"])


def test_dynamic_sizes_are_computed_each_time(computed: list[Any]) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    graph = Graph(torch.randn(3), mode=mode)
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(torch.nn.ReLU(), (torch.randn(3, 4),), dynamic_shapes=({0: dynamic},))
    graph.inputs[0].meta["val"] = next(iter(exported.graph.nodes)).meta["val"]
    for _ in range(2):
        graph.call(aten.relu.default, graph.inputs[0])
    assert len(computed) == 2


def test_what_other_operators_look_at_is_not_known(computed: list[Any]) -> None:
    sizes = iter((1, 2))
    with torch.library._scoped_library("torch2trt_tests_fake_values", "FRAGMENT") as library:
        library.define("counted(Tensor x) -> Tensor")
        library.impl("counted", lambda x: x.new_empty(next(sizes)), "Meta")
        graph = Graph(torch.randn(3))
        target = torch.ops.torch2trt_tests_fake_values.counted.default
        assert [len(graph.call(target, graph.inputs[0])) for _ in range(2)] == [1, 2]
