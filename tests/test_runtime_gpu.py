"""Engines that run: streams, memory, CUDA graphs, threads, devices."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import torch2trt
from tests.threads import in_threads
from torch2trt.errors import (
    ArtifactMismatchError,
    EngineError,
    FrozenModuleError,
    InputDeviceError,
    InputShapeError,
)
from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.runtime.artifact import Artifact, gpu_here
from torch2trt.runtime.context import Context
from torch2trt.runtime.cuda_graphs import _DISPLACES, CAPACITY
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.session import Session
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol
from torch2trt.trt import flavour as flavours
from torch2trt.trt.logger import make_logger

pytestmark = pytest.mark.gpu

BATCH = symbol("batch")
LONG_SLEEP = 400_000_000  # cycles: about a fifth of a second


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.fixture(scope="module")
def eager() -> MLP:
    torch.manual_seed(0)
    return MLP().eval().cuda()


@pytest.fixture(scope="module")
def built(eager: MLP) -> EngineModule:
    """Batch 1 to 64."""
    return torch2trt.compile(
        eager,
        (torch.randn(8, 64, device="cuda"),),
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}},
        precision="fp32",
        progress="none",
    )


def fresh(module: EngineModule, **settings: Any) -> EngineModule:
    """The same engine with a session of its own."""
    artifact = module.artifact
    return EngineModule(dataclasses.replace(artifact, settings=dataclasses.replace(artifact.settings, **settings)))


@pytest.fixture(params=[True, False], ids=["graphs", "plain"])
def module(built: EngineModule, request: pytest.FixtureRequest) -> EngineModule:
    return fresh(built, cuda_graphs=request.param)


@pytest.fixture
def graphs(built: EngineModule) -> EngineModule:
    return fresh(built, cuda_graphs=True)


@pytest.fixture
def plain(built: EngineModule) -> EngineModule:
    return fresh(built, cuda_graphs=False)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 * float(expected.abs().max()) + 1e-7)


def graph_count(module: EngineModule) -> int:
    contexts = module._session._contexts
    return 0 if contexts is None else len(contexts.graphs)


# By hand: networks without our builder -------------------------------------------------------------------------------


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


# Results ------------------------------------------------------------------------------------------------------------


def test_agrees_with_eager_at_every_shape(module: EngineModule, eager: MLP) -> None:
    for count in (8, 1, 64, 8, 3, 1):
        x = torch.randn(count, 64, device="cuda")
        close(module(x), eager(x))


def test_results_are_fresh(module: EngineModule, eager: MLP) -> None:
    xs = [torch.randn(8, 64, device="cuda") for _ in range(4)]
    results = [module(x) for x in xs]
    assert len({result.data_ptr() for result in results}) == 4
    for x, result in zip(xs, results, strict=True):
        close(result, eager(x))


def test_inputs_of_any_strides(module: EngineModule, eager: MLP) -> None:
    base = torch.randn(64, 16, device="cuda")
    flat = torch.randn(8 * 64 + 1, device="cuda")
    complex_ = torch.randn(8, 64, device="cuda", dtype=torch.complex64)
    for x in (
        base.t(),
        base.t()[::2],
        torch.randn(1, 64, device="cuda").expand(8, 64),
        flat[1:].view(8, 64),  # contiguous, but where no kernel of TensorRT may read
        complex_.conj().imag,  # negated lazily
    ):
        close(module(x), eager(x.contiguous()))


def test_inputs_stay_as_they_are(module: EngineModule) -> None:
    x = torch.randn(8, 64, device="cuda")
    before = x.clone()
    module(x)
    assert torch.equal(x, before)


def test_inference_mode_and_after(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    with torch.inference_mode():
        close(module(x), eager(x))
        from_inside = torch.randn(8, 64, device="cuda")
    close(module(x), eager(x))
    close(module(from_inside), eager(from_inside))


def test_gradients_are_refused(module: EngineModule, eager: MLP) -> None:
    with torch.enable_grad():
        x = torch.randn(8, 64, device="cuda", requires_grad=True)
        result = module(x)
        close(result.detach(), eager(x).detach())
        with pytest.raises(FrozenModuleError, match="computes no gradients"):
            result.sum().backward()


def test_verify_runs_the_engine(built: EngineModule) -> None:
    found = built.verify(torch.randn(8, 64))
    assert found.ran == "engine"
    assert found.passed, str(found)
    assert found.max_rel_error <= 1e-4


# What does not fit --------------------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit(module: EngineModule) -> None:
    with pytest.raises(InputShapeError, match="'batch' is 65, the engine takes 1 to 64"):
        module(torch.randn(65, 64, device="cuda"))
    with pytest.raises(InputDeviceError, match="input 'x': is on cpu, the engine is on cuda:0"):
        module(torch.randn(8, 64))


def test_a_damaged_plan(built: EngineModule) -> None:
    plan = bytearray(built.artifact.plan)
    plan[: len(plan) // 2] = bytes(len(plan) // 2)
    module = EngineModule(dataclasses.replace(built.artifact, plan=bytes(plan)))
    with pytest.raises(EngineError, match=r"T2T506.*cannot deserialise the plan: .+"):
        module(torch.randn(8, 64, device="cuda"))


def test_an_engine_of_another_version(built: EngineModule) -> None:
    module = EngineModule(dataclasses.replace(built.artifact, flavour_version="9.9.9"))
    with pytest.raises(ArtifactMismatchError, match=r"9\.9\.9, this machine has"):
        module(torch.randn(8, 64, device="cuda"))


def test_an_engine_of_another_gpu(built: EngineModule) -> None:
    module = EngineModule(dataclasses.replace(built.artifact, gpu="NVIDIA Other (8.9)"))
    with pytest.raises(ArtifactMismatchError, match=r"built for NVIDIA Other \(8\.9\), this machine has NVIDIA"):
        module(torch.randn(8, 64, device="cuda"))


def test_a_signature_that_is_not_the_plans(adder: Artifact) -> None:
    signature = adder.signature
    renamed = dataclasses.replace(signature, inputs=(leaf("z", BATCH, 3, 4), signature.inputs[1]))
    with pytest.raises(EngineError, match="has the tensors"):
        Session(dataclasses.replace(adder, signature=renamed)).open()
    retyped = dataclasses.replace(signature, inputs=(leaf("x", BATCH, 3, 4, dtype=torch.float16), signature.inputs[1]))
    with pytest.raises(EngineError, match=r"'x' is torch\.float32 in the engine, torch\.float16 in its signature"):
        Session(dataclasses.replace(adder, signature=retyped)).open()


# Streams and memory -------------------------------------------------------------------------------------------------


def test_ordered_on_the_callers_stream(module: EngineModule, eager: MLP) -> None:
    """The engine reads what the stream writes before, and is read by what the stream does after."""
    values = torch.randn(8, 64, device="cuda")
    expected = eager(values)
    module(values)
    side = torch.cuda.Stream()
    for stream in (torch.cuda.default_stream(), side, torch.cuda.default_stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            x = torch.zeros(8, 64, device="cuda")
            torch.cuda._sleep(LONG_SLEEP // 4)
            x.copy_(values)
            result = module(x).clone()
            x.zero_()
        stream.synchronize()
        close(result, expected)


def test_does_not_wait_for_the_gpu(module: EngineModule) -> None:
    x = torch.randn(8, 64, device="cuda")
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            module(x)
            torch.cuda.synchronize()
            torch.cuda._sleep(LONG_SLEEP)
            start = time.perf_counter()
            module(x)
            enqueued = time.perf_counter() - start
            torch.cuda.synchronize()
            ran = time.perf_counter() - start
        assert enqueued < ran / 4


def test_streams_in_turns_share_no_scratch_at_once(module: EngineModule, eager: MLP) -> None:
    """A run that has not ended on one stream is not overwritten by one on another."""
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    xs = [torch.randn(64, 64, device="cuda") for _ in range(16)]
    expected = [eager(x) for x in xs]
    module(xs[0])
    torch.cuda.synchronize()
    results = []
    for index, x in enumerate(xs):
        with torch.cuda.stream((first, second)[index % 2]):
            if index % 4 == 0:
                torch.cuda._sleep(LONG_SLEEP // 40)
            results.append(module(x))
    torch.cuda.synchronize()
    for result, want in zip(results, expected, strict=True):
        close(result, want)


def test_memory_that_is_given_back_at_once(module: EngineModule, eager: MLP) -> None:
    """Inputs are dropped and their memory overwritten as soon as the call returns."""
    stream = torch.cuda.Stream()
    values = torch.randn(32, 8, 64, device="cuda")
    expected = torch.stack([eager(value) for value in values])
    torch.cuda.synchronize()
    for where in (torch.cuda.default_stream(), stream):
        with torch.cuda.stream(where):
            results = []
            for value in values:
                x = value.clone()
                results.append(module(x))
                del x
                torch.full((8, 64), torch.nan, device="cuda")
            torch.cuda.synchronize()
        close(torch.stack(results), expected)


def test_dropped_while_it_runs(built: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    for cuda_graphs in (True, False):
        module = fresh(built, cuda_graphs=cuda_graphs)
        module(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG_SLEEP // 4)
            result = module(x)
        del module
        gc.collect()
        # What was theirs is handed out again, and overwritten.
        sizes = (8 * 32, 8 * 64, 64 * 1024, 1 << 20)
        waste = [torch.full((size,), torch.nan, device="cuda") for size in sizes for _ in range(32)]
        torch.cuda.synchronize()
        del waste
        close(result, eager(x))


def test_shapes_share_one_scratch_memory(graphs: EngineModule) -> None:
    """A further shape costs its input and output buffers, and no activations."""
    xs = {count: torch.randn(count, 64, device="cuda") for count in (1, 8, 64)}
    graphs(xs[1])
    before = torch.cuda.memory_allocated()
    graphs(xs[8])
    graphs(xs[64])
    assert graph_count(graphs) == 3
    assert torch.cuda.memory_allocated() - before == (8 + 64) * (64 + 32) * 4


# CUDA graphs --------------------------------------------------------------------------------------------------------


def test_one_graph_per_shape(graphs: EngineModule, eager: MLP) -> None:
    for count in (8, 4, 8, 4, 8):
        x = torch.randn(count, 64, device="cuda")
        close(graphs(x), eager(x))
    assert graph_count(graphs) == 2


def test_graphs_can_be_switched_off(plain: EngineModule) -> None:
    for _ in range(3):
        plain(torch.randn(8, 64, device="cuda"))
    assert graph_count(plain) == 0


def test_more_shapes_than_graphs(graphs: EngineModule, eager: MLP) -> None:
    counts = [*range(1, CAPACITY + 6)] * 20
    for count in counts:
        x = torch.randn(count, 64, device="cuda")
        close(graphs(x), eager(x))
    assert graph_count(graphs) == CAPACITY


def in_place_count(module: EngineModule) -> int:
    return sum(len(graph._in_place) for graph in module._session._contexts.graphs)  # type: ignore[union-attr]


def test_inputs_that_stay_where_they_are_are_read_there(graphs: EngineModule, eager: MLP) -> None:
    x, y = (torch.randn(8, 64, device="cuda") for _ in range(2))
    results, expected = [], []
    for number in range(12):
        x.normal_()
        results.append(graphs(x))
        expected.append(eager(x))
        if number % 2:
            close(graphs(y), eager(y))
    assert in_place_count(graphs) == 2
    # Every result is its own, though all inputs were in one place.
    close(torch.stack(results), torch.stack(expected))


def test_other_tensors_in_the_same_place() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + torch.arange(64, device=x.device)

    x = torch.randn(64, 64, device="cuda")
    square = torch2trt.compile(Square().eval(), (x,), precision="fp32", progress="none", optimization_level=0)
    for _ in range(6):
        square(x)
    assert in_place_count(square) == 1
    for value in (x.t(), torch._neg_view(x), x.t().contiguous().t(), x[:, :1].expand(64, 64)):
        close(square(value), Square()(value))
    # Memory that was given back and handed out again.
    place = x.data_ptr()
    del x, value
    others = [torch.randn(64, 64, device="cuda") for _ in range(512)]
    (again,) = (other for other in others if other.data_ptr() == place)
    close(square(again), Square()(again))
    off = torch.randn(64 * 64 + 1, device="cuda")[1:].view(64, 64)
    for _ in range(6):
        close(square(off), Square()(off))
    assert in_place_count(square) == 1


def test_inputs_that_always_move_are_not_captured_for(graphs: EngineModule, eager: MLP) -> None:
    values = torch.randn(3 * CAPACITY, 8, 64, device="cuda")
    for _ in range(_DISPLACES - 2):
        for value in values:
            close(graphs(value), eager(value))
    assert in_place_count(graphs) == CAPACITY


def test_what_cannot_be_captured_runs_without(
    graphs: EngineModule, eager: MLP, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    enqueue = Context.enqueue

    def refuse(self: Context, inputs: Any, outputs: Any, stream: int) -> list[torch.Tensor]:
        made = enqueue(self, inputs, outputs, stream)
        if torch.cuda.is_current_stream_capturing():
            raise EngineError("not while capturing")
        return made

    monkeypatch.setattr(Context, "enqueue", refuse)
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        for count in (8, 4, 8, 4):
            x = torch.randn(count, 64, device="cuda")
            close(graphs(x), eager(x))
    assert graph_count(graphs) == 0
    said = [record.message for record in caplog.records if "without CUDA graphs" in record.message]
    assert len(said) == 1
    # Memory and streams are in order after the broken capture.
    x = torch.randn(8, 64, device="cuda")
    close(eager(x), eager(x.clone()))


def test_part_of_the_callers_graph(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        module(x)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        doubled = 2 * module(x)
        again = module(x + 1)
    for _ in range(3):
        x.copy_(torch.randn(8, 64, device="cuda"))
        graph.replay()
        close(doubled, 2 * eager(x))
        close(again, eager(x + 1))
        # Calls outside, at the same and other shapes, leave the caller's graph alone.
        for count in (8, 5):
            other = torch.randn(count, 64, device="cuda")
            close(module(other), eager(other))
    torch.cuda.synchronize()


def test_the_callers_graph_and_other_streams_at_once(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(64, 64, device="cuda")
    module(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        inside = module(x)
    other = torch.randn(64, 64, device="cuda")
    expected = eager(x), eager(other)
    module(other)
    torch.cuda.synchronize()
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(50):
        with torch.cuda.stream(first):
            graph.replay()
        with torch.cuda.stream(second):
            outside = module(other)
        torch.cuda.synchronize()
        close(inside, expected[0])
        close(outside, expected[1])


def test_a_first_call_inside_a_capture(module: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    module(torch.randn(4, 64, device="cuda"))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    def captured() -> None:
        with torch.cuda.graph(graph):
            x.mul_(1)
            module(x)

    with pytest.raises(EngineError, match="for the first time inside a CUDA graph capture"):
        captured()
    close(module(x), eager(x))


def test_a_replay_allocates_its_outputs_alone_and_waits_for_nothing(graphs: EngineModule) -> None:
    def allocations() -> int:
        return int(torch.cuda.memory_stats()["allocation.all.allocated"])

    places = [torch.randn(8, 64, device="cuda") for _ in range(20)]
    for x in [places[0]] * 5 + places:
        graphs(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        # Where it was, and where it never was: read in place, and copied.
        for x in [places[0]] * 5 + places:
            before = allocations()
            result = graphs(x)
            assert allocations() - before == 1
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.shape == (8, 32)


# Threads ------------------------------------------------------------------------------------------------------------


def test_threads_with_streams_of_their_own(module: EngineModule, eager: MLP) -> None:
    def work(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for turn in range(30):
                x = torch.randn(1 + (seed + turn) % 6, 64, device="cuda", generator=generator)
                close(module(x), eager(x))

    in_threads(work, 6)


def test_threads_that_open_it_together(built: EngineModule) -> None:
    module = fresh(built)
    barrier = threading.Barrier(4)
    engines = []

    def work() -> None:
        barrier.wait()
        engines.append(module._session.open())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(engines) == 4
    assert len(set(map(id, engines))) == 1


# A module among others ----------------------------------------------------------------------------------------------


def test_saved_and_loaded(built: EngineModule, eager: MLP, tmp_path: Path) -> None:
    built.save(tmp_path / "net.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "net.t2t")
    x = torch.randn(8, 64, device="cuda")
    assert not loaded._session.is_open
    close(loaded(x), eager(x))
    close(loaded.reference(x), eager(x).cpu())


def test_copied_pickled_and_nested(built: EngineModule, eager: MLP) -> None:
    x = torch.randn(8, 64, device="cuda")
    expected = eager(x)
    copied = copy.deepcopy(built)
    assert copied._session is built._session
    close(copied(x), expected)
    close(pickle.loads(pickle.dumps(built))(x), expected)
    target = nn.Sequential(fresh(built))
    target.load_state_dict(nn.Sequential(built).state_dict())
    close(target(x), expected)


def test_moves(built: EngineModule, eager: MLP) -> None:
    module = fresh(built)
    parent = nn.Sequential(module, nn.Linear(32, 4)).cuda().to("cuda:0").float().eval()
    x = torch.randn(8, 64, device="cuda")
    close(parent(x), parent[1](eager(x)))
    for change in (nn.Module.cpu, nn.Module.half, nn.Module.double):
        with pytest.raises(FrozenModuleError):
            change(module)
    close(module.cuda()(x), eager(x))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_gpu_than_the_current_one(built: EngineModule, eager: MLP) -> None:
    module = fresh(built).to("cuda:1")
    x = torch.randn(8, 64, device="cuda:1")
    for _ in range(3):
        result = module(x)
        assert result.device == torch.device("cuda:1")
        close(result.cpu(), eager(x.to("cuda:0")).cpu())
    with pytest.raises(InputDeviceError, match="is on cuda:0, the engine is on cuda:1"):
        module(x.to("cuda:0"))
    with pytest.raises(FrozenModuleError, match="cannot move from cuda:1 to cuda:0"):
        module.to("cuda:0")
