"""Modules on one device that make constants on another: a Program has one device, and any can run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import torch2trt
from torch2trt import api
from torch2trt.frontend import export
from torch2trt.graph.exact import run_exact
from torch2trt.passes.pipeline import run_passes
from torch2trt.runtime.hybrid import in_torch
from torch2trt.settings import Settings

GPU = torch.device("cuda:0")
CPU = torch.device("cpu")


class Call(nn.Module):
    """A function of its input and a linear layer."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.function = function
        self.line = nn.Linear(4, 4, device=device)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _moved_ramp(m: Any, x: Tensor) -> Tensor:
    return m.line(x) * torch.linspace(0, 1, 4).expand(2, 4).to(x.device)


def _moved_number(m: Any, x: Tensor) -> Tensor:
    return m.line(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x)


def _made_of_weights(m: Any, x: Tensor) -> Tensor:
    return x @ (m.line.weight * torch.arange(4).to(x.device)) + torch.arange(4, device=x.device)


def _scalar_on_the_cpu(m: Any, x: Tensor) -> Tensor:
    return m.line(x) * torch.tensor(2.0) + torch.full((), 3.0)


def _picked_from_the_cpu(m: Any, x: Tensor) -> Tensor:
    return m.line(x)[torch.tensor([1, 0])]


def _decomposed(m: Any, x: Tensor) -> Tensor:
    grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(4), indexing="ij")).to(x.device, x.dtype)
    return torch.logaddexp2(m.line(x), grid[1]) + torch.where(grid[0] > 0, grid[1], -1.0)


def _there_and_back(m: Any, x: Tensor) -> Tensor:
    return m.line((x.cpu() + torch.arange(4)).to(x.device))


def _pinned(m: Any, x: Tensor) -> Tensor:
    return m.line(x) + torch.zeros(4, pin_memory=True).to(x.device, non_blocking=True)


FUNCTIONS = [
    _moved_ramp,
    _moved_number,
    _made_of_weights,
    _scalar_on_the_cpu,
    _picked_from_the_cpu,
    _decomposed,
    _there_and_back,
]


def devices(graph: fx.Graph) -> set[torch.device]:
    """Of the values in a graph, and in its calls' arguments."""
    values = [
        item for node in graph.nodes for item in pytree.tree_leaves((node.meta.get("val"), node.args, node.kwargs))
    ]
    return {item.device for item in values if isinstance(item, Tensor)} | {
        item for item in values if isinstance(item, torch.device)
    }


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_program_has_one_device_and_runs_on_any(
    function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fake tensors, since there may be no GPU. Checking the module reads its weights' values.
    monkeypatch.setattr(export, "check_module", lambda module: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, here = torch.empty(2, 4, device=GPU), torch.empty(2, 4)
        program = export.capture(Call(function, GPU), (x,))
        assert devices(program.graph.graph) == {GPU}
        assert {source.device for source in program.weights.sources.values()} == {GPU}
        run_passes(program, Settings())
        assert devices(program.graph.graph) | devices(program.weights.graph.graph) == {GPU}
        (y,) = program.run(x)
        assert (y.device, y.shape) == (GPU, x.shape)
        weights = program.weights.evaluate(device=CPU)
        assert {weight.device for weight in weights.values()} == {CPU}
        (y,) = in_torch(program, CPU)([here])
        exact, _ = run_exact(program, (here,), {})
        assert y.device == exact.device == CPU
        # What it is elsewhere has not changed.
        assert devices(program.graph.graph) == {GPU}


def test_memory_is_pinned_nowhere() -> None:
    module, x = Call(_pinned, CPU), torch.randn(2, 4)
    # Eager cannot run it without a GPU.
    torch.testing.assert_close(export.capture(module, (x,))(x), module.line(x).detach(), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("function", [*FUNCTIONS, _pinned], ids=lambda function: function.__name__)
@pytest.mark.parametrize("run_in_torch", [[], ["aten.linear"]], ids=["whole", "hybrid"])
def test_on_a_gpu(function: Callable[..., Tensor], run_in_torch: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, device=GPU)
    module = Call(function, GPU)
    settings: dict[str, Any] = {"optimization_level": 0, "progress": "none", "min_segment": 1}
    compiled = torch2trt.compile(module, (x,), precision="fp32", run_in_torch=run_in_torch, **settings)
    with torch.no_grad():
        wanted = module(x)
    for found in (compiled(x), compiled.reference(x), api.capture(module, (x,))(x)):
        torch.testing.assert_close(found.cpu(), wanted.cpu(), rtol=1e-4, atol=1e-4)
    assert compiled.verify(x).passed
