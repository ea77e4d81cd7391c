"""Sizes that depend on data: which calls share an engine with the call that makes them, and outputs of such sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torchvision import ops

import torch2trt
from tests.cases.suppression import boxes, head, predictions, scores
from tests.harness import OpCase, OpModule, as_enterprise, compare, truth
from tests.threads import in_threads
from torch2trt import api
from torch2trt.converters.lower import lower, sizes_from_data, unsupported_nodes
from torch2trt.errors import CaptureError, DynamicShapeError, EngineError
from torch2trt.graph.program import Program
from torch2trt.partition.partitioner import Partition, is_engine, partition
from torch2trt.reference.interpreter import Interpreter
from torch2trt.runtime.artifact import to_bytes
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.output_allocator import SizedByData
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, size_from_json
from torch2trt.trt import flavour as flavours

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none", "min_segment": 1}
X = torch.tensor([[1.0, -2, 3], [-4, 5, -6], [7, -8, 9], [-1, 2, -3]])


def module_of(function: Callable[..., Any], *inputs: Tensor) -> nn.Module:
    return OpModule(OpCase("row", function, inputs)).eval()


def optimized(function: Callable[..., Any], *inputs: Tensor, dynamic_shapes: Any = None, **settings: Any) -> Program:
    program = api.capture(module_of(function, *inputs), inputs, dynamic_shapes=dynamic_shapes)
    return api.optimize(program, Settings.make(**{**QUICK, **settings}))


def interpreted(program: Program, flavour: flavours.Flavour, *inputs: Tensor) -> dict[str, Tensor]:
    net = lower(program, flavour)
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    return Interpreter(flavour, net.definition, net.constants).run(dict(zip(names, inputs, strict=True)))


@pytest.fixture
def enterprise() -> flavours.Flavour:
    """A flavour that says it has layers of such sizes; its networks can be made and interpreted."""
    found = flavours.load()
    return found if found.has("non_zero") else as_enterprise(found)


# What runs where ------------------------------------------------------------------------------------------------------


def parted(flavour: flavours.Flavour, function: Callable[..., Any], *inputs: Tensor, **settings: Any) -> Partition:
    """Where each call runs, after the interpreter and torch have found the parts of it right together."""
    program = optimized(function, *inputs)
    chosen = Settings.make(**{**QUICK, **settings})
    expected = truth(module_of(function, *inputs), inputs)
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flavours, "load", lambda name=None: flavour)
        run = api.interpret(program, flavour.name, chosen)
    found = run(dict(zip(names, inputs, strict=True)))
    compare(program.signature.unflatten(found, list(inputs), {}), expected, 1.0)
    return partition(program, flavour, chosen)


def kinds(found: Partition) -> list[str]:
    return ["engine" if is_engine(phase) else "torch" for phase in sorted(set(found.phases.values()))]


def test_a_detector_is_one_engine(enterprise: flavours.Flavour) -> None:
    assert parted(enterprise, lambda p: head(p, 0.51), predictions(60)).is_whole


def test_without_the_layers_all_that_has_such_a_size_runs_in_torch() -> None:
    flavour = flavours.load()
    if flavour.has("non_zero"):
        pytest.skip("this TensorRT has them")
    found = parted(flavour, lambda p: head(p, 0.51), predictions(60))
    assert kinds(found) == ["engine", "torch"]
    reasons = set(found.reasons.values())
    assert any("has a runner" in reason for reason in reasons)
    assert "a size that depends on data" in reasons


def test_an_engine_takes_no_sizes_of_another(enterprise: flavours.Flavour) -> None:
    def picked(x: Tensor) -> Tensor:
        rows = x[x[:, 0] > 0] * 2
        numbers = torch.arange(rows.shape[0], device=x.device)
        return rows.sin() * 3 + numbers[:, None], (x * 5).sum()

    found = parted(enterprise, picked, X, run_in_torch=["aten.sin"])
    assert kinds(found) == ["engine", "torch"]
    by_name = {node.name: reason for node, reason in found.reasons.items()}
    assert by_name.keys() >= {"sin", "mul_1", "add"}
    assert by_name["mul_1"] == "a size that depends on data, of which another segment knows"
    assert not by_name.keys() & {"index", "mul", "gt", "sum_1"}


def test_sizes_that_torch_finds_out_stay_in_torch(enterprise: flavours.Flavour) -> None:
    def picked(x: Tensor) -> tuple[Tensor, ...]:
        rows = x[x[:, 0] > 0]
        return torch.arange(2 * rows.shape[0], device=x.device) * 2, rows.exp(), (x * 2).cumsum(0)

    found = parted(enterprise, picked, X, run_in_torch=["aten.index"])
    reasons = {node.name: reason for node, reason in found.reasons.items()}
    assert reasons["exp"] == "a size that depends on data"
    assert reasons["arange"] == "a size that depends on data"
    assert "cumsum" not in reasons


def test_items_go_where_their_list_goes(enterprise: flavours.Flavour) -> None:
    def picked(x: Tensor) -> Tensor:
        rows = x[x[:, 0] > 0].sin()
        highest, places = rows.max(0)
        return highest * 2 + places

    found = parted(enterprise, picked, X, run_in_torch=["aten.sin"])
    assert kinds(found)[:2] == ["engine", "torch"]


# How much there may be ------------------------------------------------------------------------------------------------


def test_such_sizes_have_a_range(enterprise: flavours.Flavour) -> None:
    def both(x: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        likely = scores > 0.5
        return ops.nms(x[likely], scores[likely], 0.5), torch.nonzero(x), x[:, likely[:4]]

    inputs = boxes(30), scores(30, 8)
    rows = Dim("rows", min=4, max=50)
    program = optimized(both, *inputs, dynamic_shapes=(({0: rows}, {0: rows}),))
    ranges = dict(program.signature.dims)
    assert not unsupported_nodes(program, enterprise)[2:]
    for node in program.calls:
        ranges |= sizes_from_data(program, node, ranges)
    found = [span for name, span in ranges.items() if name != "rows"]
    assert found[:2] == [DimRange(0, 50, 50)] * 2  # the likely ones, and of these the kept ones
    assert DimRange(0, 200, 200) in found


@pytest.mark.parametrize(
    ("count", "threshold", "reason"),
    [
        (10_001, 0.5, "compares each of up to 10001 boxes with all others, 10000 at most"),
        (3, -0.5, "boxes suppress each other that do not touch"),
        (0, 0.5, "selects from no elements"),
    ],
)
def test_what_nms_refuses(count: int, threshold: float, reason: str, enterprise: flavours.Flavour) -> None:
    inputs = torch.zeros(count, 4), torch.zeros(count)
    program = optimized(lambda b, s: ops.nms(b, s, threshold), *inputs)
    assert reason in next(node.reason for node in unsupported_nodes(program, enterprise) if "nms" in node.op)


@pytest.mark.parametrize(
    ("function", "shape", "reason"),
    [
        (lambda x: torch.unique(x, dim=0), (3, 17), "rows of 17 elements, by each of which they would be sorted"),
        (lambda x: torch.unique(x), (2**18 + 1,), "sorts 262145 elements, which takes too much memory"),
        (lambda x: torch.unique(x), (0, 3), "selects from no elements"),
        (lambda x: torch.ops.aten._unique2(x)[2], (3,), "a result that was not asked for, which is empty"),
        (lambda x: torch.unique_consecutive(x, dim=-1), (3, 4), "pass dim counted from the front"),
    ],
)
def test_what_unique_refuses(
    function: Callable[..., Any], shape: tuple[int, ...], reason: str, enterprise: flavours.Flavour
) -> None:
    program = optimized(function, torch.zeros(shape))
    assert reason in next(node.reason for node in unsupported_nodes(program, enterprise) if "unique" in node.op)


def test_rows_of_a_dynamic_width_have_no_order(enterprise: flavours.Flavour) -> None:
    shapes = (({1: Dim("width", min=1, max=4)},),)
    program = optimized(lambda x: torch.unique(x, dim=0), torch.zeros(3, 2), dynamic_shapes=shapes)
    assert unsupported_nodes(program, enterprise)[0].reason == "rows of a dynamic number of elements"


def test_the_number_of_layers_hardly_depends_on_the_number_of_boxes(enterprise: flavours.Flavour) -> None:
    counts = [
        lower(optimized(lambda p: head(p, 0.51), predictions(size)), enterprise).definition.num_layers
        for size in (50, 1000)
    ]
    assert counts[1] - counts[0] < 20  # running sums take a layer more where there are twice as many


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_boxes_and_what_is_not_zero_keep_their_precision(precision: str, enterprise: flavours.Flavour) -> None:
    x = torch.tensor([[1e-9, 0.0], [2.0, 1e-9]])  # in FP16, 1e-9 is nothing

    def both(p: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return *head(p, 0.51), torch.nonzero(x)

    inputs = predictions(60), x
    program = optimized(both, *inputs, precision=precision)
    picking = [node for node in program.calls if "nms" in str(node.target) or "nonzero" in str(node.target)]
    assert len(picking) == 2
    assert {program.spec(each).dtype for node in picking for each in node.all_input_nodes} == {torch.float32}
    assert torch.equal(interpreted(program, enterprise, *inputs)[program.output_names[-1]], torch.nonzero(x))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_differs_is_not_rounded_to_be_the_same(precision: str, enterprise: flavours.Flavour) -> None:
    def distinct(x: Tensor) -> tuple[Tensor, ...]:
        return torch.unique(x), torch.unique_consecutive(x), torch.unique(x[:, None], dim=0)

    x = torch.tensor([1.0, 1.0001, 1.0002, 1.0002])
    program = optimized(distinct, x, precision=precision)
    found = interpreted(program, enterprise, x)
    assert [each.shape[0] for each in found.values()] == [3, 3, 3]


def test_a_mask_is_searched_once(enterprise: flavours.Flavour) -> None:
    def picked(x: Tensor) -> tuple[Tensor, ...]:
        mask = x > 0
        return x[mask], (2 * x)[mask], torch.masked_select(3 * x, mask)

    net = lower(optimized(picked, X), enterprise)
    layers = [net.definition.get_layer(index).type.name for index in range(net.definition.num_layers)]
    assert layers.count("NON_ZERO") == 1


# Around them ----------------------------------------------------------------------------------------------------------


def test_a_size_that_the_module_fixes_is_static() -> None:
    def counted(x: Tensor) -> Tensor:
        counts = torch.bincount(x, minlength=4)
        torch._check(counts.shape[0] == 4)
        return counts * torch.arange(4)

    x = torch.tensor([0, 2, 2])
    program = optimized(counted, x)
    assert [leaf.spec.shape for leaf in program.signature.tensor_outputs] == [(4,)]
    net = lower(program, flavours.load())
    layers = [net.definition.get_layer(index).type.name for index in range(net.definition.num_layers)]
    assert "NON_ZERO" not in layers


def test_such_a_number_is_no_result() -> None:
    with pytest.raises(CaptureError, match="number taken from a tensor"):
        optimized(lambda x: torch.nonzero(x).shape[0], X)


def test_no_dim_may_have_the_name_of_such_a_size() -> None:
    with pytest.raises(DynamicShapeError, match="'u0', as torch"):
        optimized(torch.nonzero, X, dynamic_shapes=(({0: Dim("u0", min=1, max=9)},),))


def test_such_sizes_may_be_zero_after_a_file() -> None:
    assert str(size_from_json("Max(1, u0)")) == "Max(1, u0)"
    assert str(size_from_json("Max(1, batch)")) == "batch"


def test_programs_with_such_sizes_travel(enterprise: flavours.Flavour) -> None:
    compiled = torch2trt.compile(module_of(lambda p: head(p, 0.51), predictions(60)), (predictions(60),), **QUICK)
    loaded = torch2trt.load(to_bytes(compiled.artifact, program=compiled.program()))
    expected = truth(module_of(lambda p: head(p, 0.51), predictions(60)), (predictions(60),))
    compare(loaded.reference(predictions(60)), expected, 1.0)
    assert not unsupported_nodes(loaded.program(), enterprise)
    assert compiled.verify(predictions(60)).passed


# The allocator --------------------------------------------------------------------------------------------------------


class TensorRT:
    """What stands for the package."""

    class IOutputAllocator:
        """What stands for its class."""


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> SizedByData:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    made = SizedByData(TensorRT, torch.device("cpu"))
    made.begin(7)
    return made


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float16, torch.bool])
@pytest.mark.parametrize("shape", [(3, 2), (0, 4), (5,), ()])
def test_sizes_are_bytes(allocator: SizedByData, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    wanted = torch.arange(6)[: torch.Size(shape).numel()].reshape(shape).to(dtype)
    address = allocator.handle.reallocate_output_async("y", None, max(wanted.nbytes, 1), 256, 7)
    allocator.handle.notify_shape("y", shape)
    found = allocator.take("y", dtype)
    assert found is not None
    assert (found.dtype, found.shape) == (dtype, shape)
    assert found.data_ptr() in (address, 0)
    assert found.untyped_storage().nbytes() == max(wanted.nbytes, 1)
    assert torch.equal(found.copy_(wanted) + 0, wanted)
    assert allocator.take("y", dtype) is None


def test_what_is_handed_out_is_not_used_again(allocator: SizedByData) -> None:
    found = []
    for _ in range(2):
        allocator.begin(7)
        allocator.handle.reallocate_output_async("y", None, 64, 256, 7)
        allocator.handle.notify_shape("y", (8,))
        found.append(allocator.take("y", torch.int64))
    assert found[0].data_ptr() != found[1].data_ptr()


def test_asked_again_it_is_the_same_memory_or_more(allocator: SizedByData) -> None:
    ask = allocator.handle.reallocate_output_async
    first = ask("y", None, 64, 256, 7)
    assert ask("y", first, 64, 256, 7) == ask("y", first, 8, 256, 7) == first
    more = ask("y", first, 128, 256, 7)
    # The first may still be written to.
    assert len({first, more, ask("z", None, 64, 256, 7)}) == 3
    allocator.handle.notify_shape("y", (16,))
    found = allocator.take("y", torch.int64)
    assert found is not None
    assert found.data_ptr() == more
    allocator.end()
    assert not allocator._outgrown


def test_no_exception_passes_through_tensorrt(allocator: SizedByData, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(torch, "empty", refuse)
    assert allocator.handle.reallocate_output_async("y", None, 64, 256, 7) == 0
    assert isinstance(allocator.error, torch.OutOfMemoryError)
    allocator.begin(7)
    assert allocator.error is None


# On the GPU -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _layers() -> Iterator[None]:
    if not flavours.load().has("non_zero"):
        pytest.skip("this TensorRT has no layers with such sizes")
    with torch.no_grad():
        yield


on_gpu = pytest.mark.usefixtures("_layers")


def selected(x: Tensor) -> tuple[Tensor, ...]:
    """Two sizes that depend on data and one that does not, in several dtypes."""
    rows = x[:, 0] > 0
    return torch.nonzero(x), x[rows].half(), (x > 1)[rows], x.sum(0), x[x > 0]


def compiled_for_gpu(function: Callable[..., Any], *inputs: Tensor, **options: Any) -> EngineModule:
    found = torch2trt.compile(module_of(function, *inputs).cuda(), inputs, fallback=False, **{**QUICK, **options})
    assert not found.artifact.parts
    return found


def same(found: Any, expected: Any) -> None:
    found, expected = (torch.utils._pytree.tree_leaves(each) for each in (found, expected))
    assert [(each.dtype, each.shape) for each in found] == [(each.dtype, each.shape) for each in expected]
    for have, want in zip(found, expected, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_engines_run_at_any_size(cuda_graphs: bool) -> None:
    x = torch.randn(8, 5, device="cuda")
    shapes = (({0: Dim("rows", min=1, max=64)},),)
    compiled = compiled_for_gpu(selected, x, dynamic_shapes=shapes, cuda_graphs=cuda_graphs)
    loaded = torch2trt.load(to_bytes(compiled.artifact))
    kept = []
    for rows in (8, 64, 1, 8, 8, 33):
        for each in (torch.randn(rows, 5, device="cuda"), -torch.ones(rows, 5, device="cuda"), torch.zeros_like(x)):
            kept += [(compiled(each), selected(each)), (loaded(each), selected(each))]
    # No later run has written into an earlier one's results.
    for found, expected in kept:
        same(found, expected)
    (contexts,) = compiled._session.contexts
    assert len(contexts.graphs) == 0


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("side_stream", [True, False])
def test_memory_is_as_large_as_the_results(side_stream: bool) -> None:
    x = torch.ones(1000, 64, device="cuda")
    x[10:] = 0
    compiled = compiled_for_gpu(lambda x: torch.nonzero(x), x)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream() if side_stream else torch.cuda.default_stream()):
        found = compiled(x)
        assert found.shape == (640, 2)
        held = found.untyped_storage().nbytes()
        assert found.nbytes <= held, f"{held} bytes for {found.nbytes}"
        same(found.add_(1), torch.nonzero(x) + 1)
    with torch.enable_grad():
        # What comes out may be written.
        same(compiled(x.clone().requires_grad_()).add_(1), torch.nonzero(x) + 1)


@pytest.mark.gpu
@on_gpu
def test_threads_and_streams_share_the_engine() -> None:
    x = torch.randn(16, 5, device="cuda")
    compiled = compiled_for_gpu(selected, x)

    def work(seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream() if seed % 2 else torch.cuda.default_stream()):
            for _ in range(25):
                each = torch.randn(16, 5, device="cuda", generator=generator)
                same(compiled(each), selected(each))

    in_threads(work, 4)


@pytest.mark.gpu
@on_gpu
def test_no_part_of_a_cuda_graph() -> None:
    x = torch.randn(16, 5, device="cuda")
    compiled = compiled_for_gpu(selected, x)
    compiled(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()

    def captured() -> None:
        with torch.cuda.graph(graph):
            x.mul_(1)
            compiled(x)

    with pytest.raises(EngineError, match="sizes depend on data"):
        captured()
    same(compiled(x), selected(x))


@pytest.mark.gpu
@on_gpu
def test_torch_goes_on_with_such_outputs() -> None:
    def picked(x: Tensor) -> tuple[Tensor, ...]:
        rows = (x * 2)[x[:, 0] > 0]
        return rows.sin() + 1, x.sum(0)

    x = torch.randn(16, 5, device="cuda")
    compiled = torch2trt.compile(module_of(picked, x).cuda(), (x,), run_in_torch=["aten.sin"], **QUICK)
    assert len(compiled.artifact.parts) == 2
    for each in (x, -x.abs(), torch.randn(16, 5, device="cuda")):
        same(compiled(each), picked(each))
    assert compiled.verify(x).passed


@pytest.mark.gpu
@on_gpu
def test_a_detector_on_the_gpu() -> None:
    prediction = predictions(2000).cuda()
    shapes = (({0: Dim("anchors", min=2, max=4000)},),)
    compiled = compiled_for_gpu(lambda p: head(p, 0.51), prediction, dynamic_shapes=shapes)
    for each in (prediction, predictions(4000).cuda(), predictions(2).cuda(), torch.zeros_like(prediction)):
        same(compiled(each), head(each, 0.51))
    assert compiled.verify(prediction).passed


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("count", [1, 300, 8400])
@pytest.mark.parametrize("threshold", [0.0, 0.45, 1.0])
def test_suppression_is_torchvision_s(count: int, threshold: float) -> None:
    inputs = boxes(count, 8).cuda(), scores(count, 997).cuda()
    compiled = compiled_for_gpu(lambda b, s: ops.nms(b, s, threshold), *inputs)
    same(compiled(*inputs), ops.nms(*inputs, threshold))
