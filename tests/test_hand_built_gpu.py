"""Engines that run, of networks without our builder: inputs and outputs of every kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.mlp import graph_count, no_grad
from torch2trt.errors import EngineError, InputDeviceError
from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.runtime.artifact import Artifact, gpu_here
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.session import Session
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol
from torch2trt.trt import flavour as flavours
from torch2trt.trt.logger import make_logger

__all__ = ["no_grad"]  # a fixture of every test here

pytestmark = pytest.mark.gpu

BATCH = symbol("batch")


def hand_built(
    define: Callable[[Any, Any], Sequence[Any]],
    inputs: Sequence[TensorLeaf],
    outputs: Sequence[TensorLeaf],
    *,
    profile: Callable[[Any], None] | None = None,
    dims: dict[str, DimRange] | None = None,
    settings: Settings | None = None,
) -> Artifact:
    """An artifact from TensorRT's own calls.

    Args:
        define: takes the package and the network, adds inputs and layers, returns the outputs.
        profile: sets the shapes of an optimization profile.
    """
    flavour = flavours.load()
    trt = flavour.trt
    builder = trt.Builder(make_logger(flavour))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    for leaf, tensor in zip(outputs, define(trt, network), strict=True):
        tensor.name = leaf.name
        network.mark_output(tensor)
    config = builder.create_builder_config()
    config.builder_optimization_level = 0
    if profile is not None:
        shapes = builder.create_optimization_profile()
        profile(shapes)
        assert config.add_optimization_profile(shapes) == 0
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    result = 0 if len(outputs) == 1 else tuple(range(len(outputs)))
    signature = Signature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        in_spec=pytree.tree_structure((tuple(range(len(inputs))), {})),
        out_spec=pytree.tree_structure(result),
        dims=dims or {},
    )
    return Artifact(
        name="by_hand",
        plan=bytes(plan),
        signature=signature,
        settings=settings or Settings(precision="fp32"),
        flavour=flavour.name,
        flavour_version=flavour.version_text,
        gpu=gpu_here(),
    )


def leaf(name: str, *shape: Any, dtype: torch.dtype = torch.float32) -> TensorLeaf:
    return TensorLeaf(name, TensorSpec(shape, dtype))


def make_adder() -> Artifact:
    """x [batch, 3, 4] + y [3, 4] as one output, x - y as another."""

    def define(trt: Any, network: Any) -> list[Any]:
        x = network.add_input("x", trt.float32, (-1, 3, 4))
        y = network.add_input("y", trt.float32, (3, 4))
        wide = network.add_shuffle(y)
        wide.reshape_dims = (1, 3, 4)
        operations = trt.ElementWiseOperation.SUM, trt.ElementWiseOperation.SUB
        return [network.add_elementwise(x, wide.get_output(0), operation).get_output(0) for operation in operations]

    return hand_built(
        define,
        [leaf("x", BATCH, 3, 4), leaf("y", 3, 4)],
        [leaf("sum", BATCH, 3, 4), leaf("difference", BATCH, 3, 4)],
        profile=lambda shapes: shapes.set_shape("x", (0, 3, 4), (4, 3, 4), (32, 3, 4)),
        dims={"batch": DimRange(0, 4, 32)},
    )


@pytest.fixture(scope="module")
def adder() -> Artifact:
    return make_adder()


def test_several_inputs_and_outputs(adder: Artifact) -> None:
    module = EngineModule(adder)
    for count in (4, 1, 32, 4):
        x, y = torch.randn(count, 3, 4, device="cuda"), torch.randn(3, 4, device="cuda")
        total, difference = module(x, y)
        assert torch.equal(total, x + y)
        assert torch.equal(difference, x - y)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_nothing_in_nothing_out(adder: Artifact, cuda_graphs: bool) -> None:
    module = EngineModule(dataclasses.replace(adder, settings=Settings(precision="fp32", cuda_graphs=cuda_graphs)))
    y = torch.randn(3, 4, device="cuda")
    total, difference = module(torch.empty(0, 3, 4, device="cuda"), y)
    assert total.shape == difference.shape == (0, 3, 4)
    x = torch.randn(2, 3, 4, device="cuda")
    assert torch.equal(module(x, y)[0], x + y)


def test_scalars() -> None:
    def define(trt: Any, network: Any) -> list[Any]:
        x, y = (network.add_input(name, trt.float32, ()) for name in "xy")
        return [network.add_elementwise(x, y, trt.ElementWiseOperation.PROD).get_output(0)]

    module = EngineModule(hand_built(define, [leaf("x"), leaf("y")], [leaf("z")]))
    for _ in range(3):
        x, y = torch.randn((), device="cuda"), torch.randn((), device="cuda")
        assert torch.equal(module(x, y), x * y)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool],
    ids=str,
)
def test_dtypes_go_through_as_they_are(dtype: torch.dtype) -> None:
    names = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16", torch.int64: "INT64"}
    names |= {torch.int32: "INT32", torch.bool: "BOOL"}

    def define(trt: Any, network: Any) -> list[Any]:
        x = network.add_input("x", getattr(trt.DataType, names[dtype]), (5, 7))
        return [network.add_identity(x).get_output(0)]

    module = EngineModule(hand_built(define, [leaf("x", 5, 7, dtype=dtype)], [leaf("y", 5, 7, dtype=dtype)]))
    x = torch.randint(-3, 3, (5, 7), device="cuda").to(dtype)
    for _ in range(2):
        assert torch.equal(module(x), x)


def make_slicer() -> Artifact:
    """The first n of 24 numbers: n is a shape input, read from host memory."""

    def define(trt: Any, network: Any) -> list[Any]:
        x = network.add_input("x", trt.float32, (24,))
        n = network.add_input("n", trt.int64, (1,))
        layer = network.add_slice(x, (0,), (1,), (1,))
        layer.set_input(2, n)
        return [layer.get_output(0)]

    return hand_built(
        define,
        [leaf("x", 24), leaf("n", 1, dtype=torch.int64)],
        [leaf("y", symbol("n"))],
        profile=lambda shapes: shapes.set_shape_input("n", (1,), (8,), (24,)),
    )


def test_values_that_decide_shapes() -> None:
    module = EngineModule(make_slicer())
    assert module._session.open().host_inputs == {"n"}
    x = torch.randn(24, device="cuda")
    for count in (8, 3, 24, 3):
        for device in ("cpu", "cuda"):
            assert torch.equal(module(x, torch.tensor([count], device=device)), x[:count])
    assert graph_count(module) == 0
    with pytest.raises(InputDeviceError, match="input 'x'"):
        module(x.cpu(), torch.tensor([3]))


def test_a_signature_that_is_not_the_plans(adder: Artifact) -> None:
    signature = adder.signature
    renamed = dataclasses.replace(signature, inputs=(leaf("z", BATCH, 3, 4), signature.inputs[1]))
    with pytest.raises(EngineError, match="has the tensors"):
        Session(dataclasses.replace(adder, signature=renamed)).open()
    retyped = dataclasses.replace(signature, inputs=(leaf("x", BATCH, 3, 4, dtype=torch.float16), signature.inputs[1]))
    with pytest.raises(EngineError, match=r"'x' is torch\.float32 in the engine, torch\.float16 in its signature"):
        Session(dataclasses.replace(adder, signature=retyped)).open()
