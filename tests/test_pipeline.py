"""Many calls with several in flight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.pretending import make_module, no_gpu
from torch2trt.errors import FrozenModuleError, InputShapeError, NoGPUError, SettingError
from torch2trt.runtime.module import EngineModule

QUICK: dict[str, Any] = {"precision": "fp32", "progress": "none", "optimization_level": 0}
LONG_SLEEP = 100_000_000  # cycles: about a twentieth of a second


class Net(nn.Module):
    """What it is given comes back, beside what is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 32)
        self.eval()

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"found": [self.layer(x).relu() * scale], "x": x, "of": 32}


def batches(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + number % 4, 64, generator=generator) for number in range(count)]


SCALE = torch.tensor(2.0)


def compile_net(**keywords: Any) -> EngineModule:
    return torch2trt.compile(  # type: ignore[no-any-return]
        Net().cuda(),
        (torch.randn(2, 64, device="cuda"), SCALE.cuda()),
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=4)}, "scale": None},
        **{**QUICK, **keywords},
    )


@pytest.fixture(scope="module")
def net() -> EngineModule:
    return compile_net()


def check(found: dict[str, Any], x: Tensor) -> None:
    torch.testing.assert_close(found, Net().to(x.device)(x, SCALE.to(x.device)), atol=1e-4, rtol=1e-4)


# Without a GPU --------------------------------------------------------------------------------------------------------


def test_in_flight_is_positive() -> None:
    with pytest.raises(SettingError, match="in_flight"):
        make_module().map([], in_flight=0)
    with pytest.raises(SettingError, match="devices"):
        make_module().map([], devices=[])


@no_gpu
def test_it_says_at_once_that_there_is_no_gpu() -> None:
    with pytest.raises(NoGPUError):
        make_module().map([torch.ones(4, 3)])


def test_modules_that_write_into_their_arguments() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    module = torch2trt.compile(Writing().eval(), (torch.ones(3),), **QUICK)
    with pytest.raises(FrozenModuleError, match="writes into its arguments"):
        module.map([torch.ones(3)])


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("in_flight", [1, 2, 5])
@pytest.mark.parametrize("pinned", [True, False])
def test_results_come_in_order(net: EngineModule, in_flight: int, pinned: bool) -> None:
    values = [value.pin_memory() if pinned else value for value in batches(50)]
    found = list(net.map(((value, SCALE) for value in values), in_flight=in_flight))
    assert len(found) == len(values)
    for result, value in zip(found, values, strict=True):
        assert result["found"][0].is_pinned()
        assert result["of"] == 32
        check(result, value)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("to_host", [True, False])
def test_devices_take_turns(net: EngineModule, to_host: bool) -> None:
    values = batches(21)
    devices = ["cuda:0", "cuda:1"]
    found = list(net.map(((value, SCALE) for value in values), devices=devices, to_host=to_host))
    for number, (result, value) in enumerate(zip(found, values, strict=True)):
        assert result["found"][0].device == torch.device("cpu" if to_host else devices[number % 2])
        check(result, value.to(result["x"].device))
    assert net.on("cuda:1") is net.on("cuda:1") is not net


@pytest.mark.gpu
def test_forms_of_a_call(net: EngineModule) -> None:
    x = batches(1)[0]
    for result in net.map([(x, SCALE), [x, SCALE], {"x": x, "scale": SCALE}, {"scale": SCALE, "x": x}]):
        check(result, x)


@pytest.mark.gpu
def test_strides(net: EngineModule) -> None:
    x = batches(4)[3]
    values = [x, x.t().contiguous().t(), torch.cat([x, x], 1)[:, 1:65], x[:1].expand(4, 64)]
    for result, value in zip(net.map((value, SCALE) for value in values), values, strict=True):
        check(result, value)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["pinned", "cuda"])
def test_memory_that_is_written_again_for_each_call(net: EngineModule, device: str) -> None:
    values = torch.stack([value[:1] for value in batches(20)])
    one = torch.empty(1, 64).pin_memory() if device == "pinned" else torch.empty(1, 64, device="cuda")

    def calls() -> Iterator[tuple[Tensor, Tensor]]:
        for value in values:
            # What follows is enqueued while the GPU is far behind.
            torch.cuda._sleep(LONG_SLEEP // 10)
            yield one.copy_(value), SCALE

    for result, value in zip(net.map(calls(), in_flight=3), values, strict=True):
        check(result, value)


@pytest.mark.gpu
def test_results_on_the_device(net: EngineModule) -> None:
    values = batches(20)
    found = []
    for result in net.map(((value, SCALE) for value in values), in_flight=3, to_host=False):
        assert result["found"][0].is_cuda
        torch.cuda._sleep(LONG_SLEEP // 10)
        found.append({**result, "found": [result["found"][0] + 0], "x": result["x"] + 0})
    for result, value in zip(found, values, strict=True):
        check(result, value.cuda())


@pytest.mark.gpu
def test_ended_early_and_begun_again(net: EngineModule) -> None:
    values = batches(8)
    for _ in range(3):
        running = net.map((value, SCALE) for value in values)
        check(next(running), values[0])
        running.close()
    check(net(values[2].cuda(), SCALE.cuda()), values[2].cuda())


@pytest.mark.gpu
def test_a_call_that_does_not_fit(net: EngineModule) -> None:
    values = [*batches(3), torch.ones(5, 64)]
    found = []
    with pytest.raises(InputShapeError):
        found.extend(net.map(((value, SCALE) for value in values), in_flight=1))
    assert len(found) == 3


@pytest.mark.gpu
def test_hybrids() -> None:
    net = compile_net(run_in_torch=["aten.relu"], min_segment=1)
    values = batches(12)
    for result, value in zip(net.map((value, SCALE) for value in values), values, strict=True):
        check(result, value)


@pytest.mark.gpu
def test_state_changes_call_by_call() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(x.sum(0))
            return self.seen * 1

    counting = torch2trt.compile(Counting().eval().cuda(), (torch.zeros(2, 64, device="cuda"),), **QUICK)
    values = torch.stack([torch.full((2, 64), float(number)) for number in range(10)])
    found = torch.stack(list(counting.map(values, in_flight=3)))
    torch.testing.assert_close(found, values.sum(1).cumsum(0))
    with pytest.raises(FrozenModuleError, match="each device"):
        counting.map(values, devices=["cuda:0", "cuda:0"])
