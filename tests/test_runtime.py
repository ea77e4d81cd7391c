"""Calls of compiled modules apart from their engines: checked, refused without a fitting GPU, and their results."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.pretending import (
    BATCH,
    HEIGHT,
    leaf,
    make_module,
    make_signature,
    no_gpu,
    running,
)
from torch2trt.errors import (
    ArtifactMismatchError,
    FrozenModuleError,
    InputDeviceError,
    InputDtypeError,
    InputShapeError,
    InputStructureError,
    NoGPUError,
    UnsupportedGPUError,
)
from torch2trt.graph.signature import ConstantLeaf, InputLeaf, SizeLeaf
from torch2trt.runtime import context, inputs
from torch2trt.runtime.outputs import Results

# Calls --------------------------------------------------------------------------------------------------------------


def test_a_call_by_position_by_name_and_again() -> None:
    module = running(make_module(), lambda x: 2 * x)
    x = torch.randn(4, 3)
    assert torch.equal(module(x), 2 * x)
    assert torch.equal(module(x=x), 2 * x)
    assert torch.equal(module(x[:2]), 2 * x[:2])
    assert torch.equal(module(x), 2 * x)
    assert module._session.shapes == [((4, 3),), ((4, 3),), ((2, 3),), ((4, 3),)]  # type: ignore[attr-defined]
    assert len(module._calls) == 2


def test_arguments_that_are_no_tensors() -> None:
    signature = make_signature(
        [leaf("x", 2), ConstantLeaf(3), leaf("z", 2), ConstantLeaf(None)],
        [leaf("y", 2)],
        call=((0, 1), {"z": [2, 3]}),
    )
    module = running(make_module(signature), lambda x, z: x + z)
    x, z = torch.randn(2), torch.randn(2)
    assert torch.equal(module(x, 3, z=[z, None]), x + z)
    with pytest.raises(InputStructureError, match="compiled for the value 3, called with 4"):
        module(x, 4, z=[z, None])
    with pytest.raises(InputStructureError):
        module(x, 3, z=[z])


def test_every_way_to_name_the_same_arguments() -> None:
    signature = make_signature([leaf("x", 2), leaf("y", 2)], [leaf("z", 2)], call=((0,), {"y": 1}))
    module = running(make_module(signature), lambda x, y: x - y)
    x, y = torch.randn(2), torch.randn(2)
    for _ in range(3):
        for result in (module(x, y=y), module(x, y), module(x=x, y=y), module(y=y, x=x)):
            assert torch.equal(result, x - y)
        assert torch.equal(module(x, x), torch.zeros(2))
    for wrong in (lambda: module([x], y), lambda: module(x, y=3), lambda: module(x, z=y), lambda: module(x, y, y=y)):
        with pytest.raises(InputStructureError):
            wrong()


def test_results_of_every_kind() -> None:
    signature = make_signature(
        [leaf("x", BATCH, 3)],
        [leaf("b", BATCH), leaf("a", BATCH), ConstantLeaf("s"), InputLeaf(0), SizeLeaf(2 * BATCH), leaf("b", BATCH)],
        result={"first": 0, "rest": [1, (2, 3), 4], "again": 5},
        batch=(1, 4, 16),
    )
    module = running(make_module(signature), lambda x: (x[:, 0], x[:, 1]))
    for count in (4, 2, 4):
        x = torch.randn(count, 3)
        result = module(x)
        assert torch.equal(result["first"], x[:, 0])
        assert torch.equal(result["rest"][0], x[:, 1])
        assert result["rest"][1][0] == "s"
        assert result["rest"][1][1] is x
        assert result["rest"][2] == 2 * count
        assert result["again"] is result["first"]


def test_plain_structures_of_results() -> None:
    tensors = [torch.zeros(1), torch.ones(1)]
    outputs = [leaf("a", 1), leaf("b", 1)]
    for structure in ((0, 1), [0, 1], {"k": 0, "l": 1}):
        assemble = Results(make_signature([], outputs, result=structure)).at({})
        expected = pytree.tree_unflatten(tensors, pytree.tree_structure(structure))
        assert type(assemble(tensors, [])) is type(expected)
        assert pytree.tree_leaves(assemble(tensors, [])) == tensors
    assert Results(make_signature([], outputs[:1], result=(0,))).at({})(tensors[:1], []) == (tensors[0],)
    assert Results(make_signature([], outputs[:1], result=0)).at({})(tensors[:1], []) is tensors[0]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m, x: m(), r"T2T501.*called with \(\), compiled for \(·\)"),
        (lambda m, x: m(x, x), "T2T501.*called with"),
        (lambda m, x: m([x]), "T2T501.*called with"),
        (lambda m, x: m(z=x), "T2T501.*called with"),
        (lambda m, x: m(3), "T2T501.*takes a tensor, got int"),
        (lambda m, x: m(x.numpy()), "T2T501.*takes a tensor, got ndarray"),
    ],
)
def test_calls_of_another_structure(call: Callable[..., Any], reason: str) -> None:
    module = running(make_module(), lambda x: x)
    module(torch.zeros(1, 3))
    with pytest.raises(InputStructureError, match=reason):
        call(module, torch.zeros(1, 3))


def test_an_input_of_another_dtype() -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputDtypeError, match=r"\[T2T502\] input 'x': is float16, the engine takes float32") as caught:
        module(torch.zeros(1, 3, dtype=torch.float16))
    assert "x.to(torch.float32)" in caught.value.hint
    assert isinstance(caught.value, TypeError)


def test_an_input_on_another_device() -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputDeviceError, match=r"\[T2T504\] input 'x': is on meta, the engine is on cpu"):
        module(torch.zeros(1, 3, device="meta"))


def test_shape_inputs_may_come_from_the_host() -> None:
    signature = make_signature([leaf("x", 2), leaf("size", dtype=torch.int64)], [leaf("y", 2)])
    values = [torch.zeros(2, device="meta"), torch.tensor(3)]
    with pytest.raises(InputDeviceError):
        inputs.check_devices(signature, values, torch.device("meta"), frozenset())
    inputs.check_devices(signature, values, torch.device("meta"), frozenset({"size"}))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((17, 3), r"\[T2T503\] input 'x' axis 0: 'batch' is 17, the engine takes 1 to 16"),
        ((0, 3), "'batch' is 0, the engine takes 1 to 16"),
        ((4, 2), r"input 'x': axis 1 is 2, the engine takes 3: \[batch, 3\]"),
        ((4,), r"has 1 dimension\(s\) \[4\], the engine takes \[batch, 3\]"),
        ((4, 3, 1), r"has 3 dimension\(s\)"),
    ],
)
def test_shapes_outside_the_profile(shape: tuple[int, ...], reason: str) -> None:
    module = running(make_module(), lambda x: x)
    with pytest.raises(InputShapeError, match=reason):
        module(torch.zeros(shape))
    assert not module._session.shapes  # type: ignore[attr-defined]


def test_the_ends_of_the_profile() -> None:
    module = running(make_module(), lambda x: x)
    assert module(torch.zeros(1, 3)).shape == (1, 3)
    assert module(torch.zeros(16, 3)).shape == (16, 3)


def test_one_dimension_in_two_inputs() -> None:
    signature = make_signature([leaf("x", BATCH, 3), leaf("y", 2, BATCH)], [leaf("z", BATCH)], batch=(1, 4, 16))
    assert inputs.check(signature, [torch.zeros(5, 3), torch.zeros(2, 5)]) == {"batch": 5}
    with pytest.raises(InputShapeError, match=r"input 'y': axis 1 \(batch\) is 6, but it is 5 in input 'x' axis 0"):
        inputs.check(signature, [torch.zeros(5, 3), torch.zeros(2, 6)])


def test_sizes_that_are_expressions() -> None:
    signature = make_signature([leaf("x", 2 * HEIGHT), leaf("y", HEIGHT + 1)], [leaf("z", HEIGHT)], h=(2, 4, 8))
    assert inputs.check(signature, [torch.zeros(8), torch.zeros(5)]) == {"h": 4}
    with pytest.raises(InputShapeError, match=r"axis 0 is 7, which is not 2\*h for any h"):
        inputs.check(signature, [torch.zeros(7), torch.zeros(5)])
    with pytest.raises(InputShapeError, match=r"input 'y': axis 0 is 6, the engine takes h \+ 1 = 5"):
        inputs.check(signature, [torch.zeros(8), torch.zeros(6)])
    with pytest.raises(InputShapeError, match="'h' is 9, the engine takes 2 to 8"):
        inputs.check(signature, [torch.zeros(18), torch.zeros(10)])


def test_zero_dimensional_and_empty_tensors() -> None:
    signature = make_signature([leaf("x"), leaf("e", 0, 3)], [leaf("y")])
    module = running(make_module(signature), lambda x, e: x + e.sum())
    assert module(torch.tensor(2.0), torch.zeros(0, 3)) == 2


def test_remembered_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch2trt.runtime.module._CALLS_KEPT", 3)
    module = running(make_module(), lambda x: x)
    for count in (1, 2, 3, 4, 5, 1):
        assert module(torch.zeros(count, 3)).shape == (count, 3)
        assert len(module._calls) <= 3


def test_gradients_are_refused_where_they_are_asked_for() -> None:
    module = running(make_module(), lambda x: x * 2)
    x = torch.ones(1, 3, requires_grad=True)
    with torch.no_grad():
        assert not module(x).requires_grad
    assert not module(x.detach()).requires_grad
    result = module(x)
    assert torch.equal(result, 2 * x)
    with pytest.raises(FrozenModuleError, match="computes no gradients"):
        result.sum().backward()


def test_integers_beside_results_that_would_want_gradients() -> None:
    signature = make_signature([leaf("x", 3)], [leaf("y", 3), leaf("i", 3, dtype=torch.int64)])
    module = running(make_module(signature), lambda x: (x * 2, x.long()))
    y, i = module(torch.ones(3, requires_grad=True))
    assert y.requires_grad
    assert not i.requires_grad


def test_dynamo_leaves_the_engine_alone() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.engine = running(make_module(), lambda x: 2 * x.sin())

        def forward(self, x: Tensor) -> Tensor:
            return self.engine(x + 1) + 1

    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(graph.code)
        return graph

    parent, x = Parent(), torch.randn(2, 3)
    compiled = torch.compile(parent, backend=backend)
    with torch.no_grad():
        assert torch.equal(compiled(x), 2 * (x + 1).sin() + 1)
    assert graphs
    assert not any("sin" in code for code in graphs), graphs


# Machines without a GPU, or with another one -------------------------------------------------------------------------


@no_gpu
def test_a_call_without_a_gpu() -> None:
    module = make_module()
    with pytest.raises(NoGPUError, match=r"\[T2T304\] net: .*none on this machine") as caught:
        module(torch.zeros(2, 3))
    assert ".reference(" in caught.value.hint
    # What is wrong with the call itself is said there too.
    with pytest.raises(InputShapeError):
        module(torch.zeros(99, 3))


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the machine has a GPU, a TensorRT package and its version."""

    def pretend(name: str, capability: tuple[int, int], version: str) -> None:
        parts = tuple(int(part) for part in version.split("."))
        monkeypatch.setattr(context.flavours, "gpu", lambda: (name, capability))
        monkeypatch.setattr(context.flavours, "_installed_version", lambda _: parts)
        monkeypatch.setattr(
            context.flavours, "load", lambda flavour: context.Flavour(flavour, parts, types.SimpleNamespace())
        )

    return pretend


def test_an_engine_of_another_version(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA H200", (9, 0), "10.15.1")
    artifact = make_module(flavour="tensorrt", flavour_version="10.6.0", gpu="NVIDIA H200 (9.0)").artifact
    with pytest.raises(ArtifactMismatchError, match=r"T2T602.*built by tensorrt 10.6.0, this machine has 10.15.1"):
        context._flavour(artifact)


def test_an_engine_of_another_gpu(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA L4", (8, 9), "10.6.0")
    artifact = make_module(flavour="tensorrt", flavour_version="10.6.0", gpu="NVIDIA H200 (9.0)").artifact
    with pytest.raises(
        ArtifactMismatchError, match=r"built for NVIDIA H200 \(9.0\), this machine has NVIDIA L4 \(8.9\)"
    ):
        context._flavour(artifact)


def test_an_rtx_engine_on_a_gpu_that_it_does_not_serve(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA H200", (9, 0), "1.7.1")
    with pytest.raises(UnsupportedGPUError, match=r"T2T303.*does not serve NVIDIA H200 \(compute capability 9.0\)"):
        context._flavour(make_module().artifact)


def test_an_engine_that_fits(a_gpu: Callable[..., None]) -> None:
    a_gpu("NVIDIA L4", (8, 9), "1.7.1")
    assert context._flavour(make_module().artifact).version_text == "1.7.1"
    assert context._flavour(make_module(gpu="NVIDIA L4 (8.9)").artifact).version_text == "1.7.1"
