"""torch.compile with our backend: against eager, through the reference interpreter here and engines on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import torch2trt
from torch2trt import backend as backends
from torch2trt.frontend.dynamo import Region

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Engines compute float32 with TF32 on a GPU.
CLOSE = {"rtol": 1e-2, "atol": 1e-2} if DEVICE == "cuda" else {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    backends._say_once.cache_clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def builds(caplog: pytest.LogCaptureFixture) -> Any:
    """How many engines were built so far."""
    caplog.set_level(logging.INFO, "torch2trt.backend")
    return lambda: sum("building an engine" in record.message for record in caplog.records)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Any:
    """The backend's warnings so far that contain a text."""
    return lambda text: [
        record.message
        for record in caplog.records
        if record.name == "torch2trt.backend" and record.levelno == logging.WARNING and text in record.message
    ]


class Net(nn.Module):
    """A convolution with batch norm, and results of every kind that a module may return."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.register_buffer("scale", torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor, factor: float = 1.0) -> dict[str, Any]:
        y = F.relu(self.norm(self.conv(x))) * self.scale * factor
        return {"y": y, "pair": (y.flatten(1), None), "x": x, "view": x.flatten(1), "size": x.shape[0] + 1}


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(F.relu(self.first(x)))


def linear() -> Perceptron:
    return Perceptron().eval().to(DEVICE)


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, device=DEVICE)


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 6, device=DEVICE)


def same(found: Any, wanted: Any) -> None:
    have, structure = pytree.tree_flatten(found)
    want, expected = pytree.tree_flatten(wanted)
    assert structure == expected
    for one, other in zip(have, want, strict=True):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(one, other, **CLOSE)
        else:
            assert one == other


@torch.no_grad()
def test_results_of_every_kind(builds: Any) -> None:
    net = Net().eval().to(DEVICE)
    compiled = torch.compile(net, backend="torch2trt")
    x = image()
    found = compiled(x)
    same(found, net(x))
    assert found["x"] is x
    assert found["view"].data_ptr() == x.data_ptr(), "a view of an argument is one"
    same(compiled(x), net(x))
    assert builds() == 1


@torch.no_grad()
def test_numbers_that_change_are_built_in(builds: Any) -> None:
    net = Net().eval().to(DEVICE)
    compiled = torch.compile(net, backend="torch2trt")
    x = image()
    for factor in (1.0, 2.0, 3.0, 2.0):
        same(compiled(x, factor), net(x, factor))
    assert builds() == 3


def test_module_compile_with_options_in_inference_mode(warnings: Any) -> None:
    module = linear()
    x = rows(4)
    with torch.inference_mode():
        wanted = module(x)
        module.compile(backend="torch2trt", options={"precision": "fp16", "optimization_level": 1})
        found = module(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found, wanted), "computed in float16"
    if DEVICE == "cpu":
        assert len(warnings("reference interpreter")) == 1


@torch.no_grad()
def test_declared_range_is_one_engine(builds: Any) -> None:
    module = linear()
    compiled = torch.compile(module, backend="torch2trt")
    x = rows(4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    for inputs in (x, rows(2), rows(64)):
        same(compiled(inputs), module(inputs))
    assert builds() == 1


@torch.no_grad()
def test_a_size_that_is_the_double_of_one_with_a_range(builds: Any) -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x.exp()]) + y * 2

    compiled = torch.compile(function, backend="torch2trt", dynamic=True)
    x = rows(4)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    for one, two in ((x, rows(8)), (rows(2), rows(4)), (rows(64), rows(128))):
        same(compiled(one, two), function(one, two))
    assert builds() == 1


@torch.no_grad()
def test_sizes_without_a_range_have_an_engine_each(builds: Any) -> None:
    module = linear()
    compiled = torch.compile(module, backend="torch2trt", dynamic=True)
    for count in (4, 7, 4):
        inputs = rows(count)
        same(compiled(inputs), module(inputs))
    assert builds() == 2


@torch.no_grad()
def test_a_range_that_cannot_be_exported_becomes_sizes(builds: Any, warnings: Any) -> None:
    def halves(x: torch.Tensor) -> torch.Tensor:
        # Dynamo guards on what is seen here: fewer than 100 rows, and an even number of them.
        if x.shape[0] < 100:
            x = torch.relu(x)
        return x.view(x.shape[0] // 2, 12) * 2

    compiled = torch.compile(halves, backend="torch2trt", dynamic=True)
    for count in (4, 6, 4):
        x = rows(count)
        same(compiled(x), halves(x))
    assert builds() == 2
    assert len(warnings("a range is impossible")) == 1


@torch.no_grad()
def test_more_sizes_than_the_limit_run_in_eager(builds: Any, warnings: Any) -> None:
    module = linear()
    compiled = torch.compile(module, backend="torch2trt", dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for count in (4, 7, 9, 11, 4):
            inputs = rows(count)
            same(compiled(inputs), module(inputs))
    assert builds() == 2
    assert len(warnings("recompile_limit")) == 1


@torch.no_grad()
def test_changed_weights(builds: Any) -> None:
    module = linear()
    compiled = torch.compile(module, backend="torch2trt")
    x = rows(4)
    same(compiled(x), module(x))
    module.first.weight.mul_(2)
    same(compiled(x), module(x))
    module.load_state_dict(linear().state_dict())
    same(compiled(x), module(x))
    module.load_state_dict(linear().state_dict(), assign=True)
    same(compiled(x), module(x))
    module.first.bias.data = torch.ones(5, device=DEVICE)
    same(compiled(x), module(x))
    same(compiled(x), module(x))
    assert builds() == 5


@torch.no_grad()
def test_modules_that_share_code_keep_their_own_weights() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.linear(x)) + x

    blocks = nn.Sequential(*(Block() for _ in range(3))).eval().to(DEVICE)
    x = rows(4)
    wanted = blocks(x)
    for block in blocks:
        block.compile(backend="torch2trt")
    same(blocks(x), wanted)
    same(blocks(x), wanted)


@torch.no_grad()
def test_graph_breaks_leave_the_rest_in_torch(builds: Any) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        view = torch.relu(x).flatten(), x.view(-1)
        torch._dynamo.graph_break()
        view[1].add_(1)
        torch._dynamo.graph_break()
        return torch.tanh(x) + view[0].view_as(x)

    x, y = rows(4), rows(4)
    y.copy_(x)
    same(torch.compile(broken, backend="torch2trt")(x), broken(y))
    assert torch.equal(x, y)


def test_with_gradients_it_is_left_to_eager(builds: Any, warnings: Any) -> None:
    module = linear()
    compiled = torch.compile(module, backend="torch2trt")
    for count in (4, 1):
        compiled(rows(count)).sum().backward()
    assert module.first.weight.grad is not None
    assert len(warnings("gradients are enabled")) == 1
    with torch.no_grad():
        x = rows(4)
        same(compiled(x), module(x))
    assert builds() == 1


@torch.no_grad()
def test_errors_are_ours() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.igamma(torch.special.airy_ai(x).exp(), x.exp())

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.odd(x) + 1

    compiled = torch.compile(Model().to(DEVICE), backend="torch2trt", options={"fallback": False})
    for _ in range(2):
        with pytest.raises(torch2trt.UnsupportedOpsError) as caught:
            compiled(rows(6))
        assert {node.op for node in caught.value.nodes} == {
            "aten.special_airy_ai.default",
            "aten.igamma.default",
        }
        assert all("test_backend.py" in node.source and node.module == "odd" for node in caught.value.nodes)
    torch._dynamo.reset()
    compiled, x = torch.compile(Model().to(DEVICE), backend="torch2trt"), rows(6)
    torch.testing.assert_close(compiled(x), Model().to(DEVICE)(x))  # what is not worth an engine is left to eager
    for options in ({"options": {"precison": "fp16"}}, {"mode": "max-autotune"}):
        with pytest.raises(torch2trt.SettingError, match="unknown setting"):
            torch.compile(linear(), backend="torch2trt", **options)(rows(2))


@torch.no_grad()
def test_a_graph_that_changes_its_inputs() -> None:
    def grow(x: torch.Tensor) -> torch.Tensor:
        return x.add_(1).relu()

    compiled = torch.compile(grow, backend="torch2trt")
    x = rows(2)
    for _ in range(3):
        expected = x + 1
        torch.testing.assert_close(compiled(x), expected.relu())
        torch.testing.assert_close(x, expected)


def hands_back_what_it_writes(x: torch.Tensor) -> Any:
    y = x.add_(1)
    return y.view(-1), y.relu()


def writes_between_views(x: torch.Tensor) -> Any:
    whole = x * 2
    first, second = whole.split(2)
    row = second[0]
    torch._dynamo.graph_break()
    row.add_(1)
    whole[0].mul_(3)
    return whole + 1, first, second.sum()


def writes_a_view_of_an_argument(x: torch.Tensor) -> Any:
    rest = x[1:]
    torch._dynamo.graph_break()
    rest.mul_(3)
    return x.relu() + 1, rest * 2


def writes_an_argument_that_has_a_view(x: torch.Tensor) -> Any:
    flat = x.view(-1)
    torch._dynamo.graph_break()
    x.add_(1)
    return flat * 2 + 1


@pytest.mark.parametrize(
    "function",
    [
        hands_back_what_it_writes,
        writes_between_views,
        writes_a_view_of_an_argument,
        writes_an_argument_that_has_a_view,
    ],
)
@torch.no_grad()
def test_memory_is_shared_as_in_eager(function: Any) -> None:
    compiled = torch.compile(function, backend="torch2trt", options={"min_segment": 1})
    for _ in range(2):
        x = rows(4)
        own = x.clone()
        same(compiled(x), function(own))
        torch.testing.assert_close(x, own)


@torch.no_grad()
def test_views_of_one_result_share_memory(builds: Any) -> None:
    def halves(x: torch.Tensor) -> Any:
        first, second = torch.relu(x * 2).chunk(2)
        return first, second[1:], second

    first, row, second = torch.compile(halves, backend="torch2trt")(x := rows(4))
    same((first, row, second), halves(x))
    assert builds() == 1
    assert row.untyped_storage().data_ptr() == second.untyped_storage().data_ptr() == first.data_ptr()


@torch.no_grad()
def test_what_an_engine_cannot_take_is_left_to_eager(builds: Any, warnings: Any) -> None:
    compiled, x = torch.compile(linear().double(), backend="torch2trt"), rows(4).double()
    assert compiled(x).dtype == torch.float64
    assert builds() == 0
    assert len(warnings("left to eager")) == 1


class Anchors(nn.Module):
    """Keeps a tensor that is no buffer, and so stays on the CPU when the module moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.anchors = [torch.arange(6.0)]
        self.steps = [torch.tensor([2.0, 3.0])]

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> Any:
        y = self.linear(x) + self.anchors[0].to(x.device) + shift.to(x.device)
        ramp = torch.arange(6, device=torch.device("cpu")) * self.anchors[0]
        # Where it names no device, it is made on the CPU.
        ramp = torch.cat([torch.arange(0, 4) + 0.5, self.steps[0]]) + torch.full((6,), 2.0) * ramp
        return y, ramp + shift, (y * 2).to("cpu")


@pytest.mark.gpu
@torch.no_grad()
def test_a_graph_on_several_devices(builds: Any, warnings: Any) -> None:
    module = Anchors().eval().cuda()
    compiled = torch.compile(module, backend="torch2trt", options={"min_segment": 1})
    for _ in range(2):
        x, shift = torch.randn(4, 6, device="cuda"), torch.ones(6)
        found, wanted = compiled(x, shift), module(x, shift)
        assert [value.device for value in found] == [value.device for value in wanted]
        same(found, wanted)
    assert builds() == 1, warnings("")


@pytest.mark.gpu
@torch.no_grad()
def test_a_model_on_the_cpu_stays_there(builds: Any, warnings: Any) -> None:
    module, x = Perceptron().eval(), torch.randn(4, 6)
    torch.testing.assert_close(torch.compile(module, backend="torch2trt")(x), module(x))
    assert builds() == 0
    assert len(warnings("on the CPU")) == 1


@torch.no_grad()
def test_a_graph_on_several_devices_is_captured_on_one() -> None:
    module = Anchors().eval()
    regions: list[tuple[Region, Any]] = []

    def look(graph: Any, inputs: Any) -> Any:
        regions.append((Region(graph), inputs))
        return graph.forward

    x, shift = torch.randn(4, 6), torch.ones(6)
    torch.compile(module, backend=look)(x, shift)
    ((region, args),) = regions
    # The other device is one that every build of torch has; it holds no values.
    args = [value.to("meta") if isinstance(value, torch.Tensor) and value.dim() == 2 else value for value in args]
    assert region.device(args) == torch.device("meta")
    captured, inputs, _ = region.module(args)
    assert {value.device.type for value in (*inputs, *captured.buffers(), *captured(*inputs))} == {"meta"}


def test_registered_by_entry_point() -> None:
    assert "torch2trt" in torch._dynamo.list_backends()
