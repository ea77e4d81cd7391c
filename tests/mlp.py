"""A small net as an engine on the GPU, with and without CUDA graphs, and what its sessions hold."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from torch2trt.runtime.module import EngineModule


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 128)
        self.second = nn.Linear(128, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


# Each file that imports a fixture has one of its own, whatever its scope: built once for all of them.
@functools.cache
def make_eager() -> MLP:
    torch.manual_seed(0)
    return MLP().eval().cuda()


@functools.cache
def make_built() -> EngineModule:
    return torch2trt.compile(
        make_eager(),
        (torch.randn(8, 64, device="cuda"),),
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}},
        precision="fp32",
        progress="none",
    )


@pytest.fixture(scope="module")
def eager() -> MLP:
    return make_eager()


@pytest.fixture(scope="module")
def built() -> EngineModule:
    """Batch 1 to 64."""
    return make_built()


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
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 * float(expected.abs().max()) + 1e-7)


def graph_count(module: EngineModule) -> int:
    return sum(len(contexts.graphs) for contexts in module._session.contexts)  # type: ignore[union-attr]


def in_place_count(module: EngineModule) -> int:
    """Places of inputs that are read there, wherever the outputs are written."""
    (contexts,) = module._session.contexts  # type: ignore[union-attr]
    return sum(
        len({places[: len(graph.inputs)] for places in (*graph._in_place._values, *graph._all_in_place._values)})
        for graph in contexts.graphs
    )
