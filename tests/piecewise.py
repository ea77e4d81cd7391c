"""Modules in pieces, counted and compared; regions of Dynamo's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from tests.test_pieces import QUICK, Forked, X
from torch2trt import api, backend
from torch2trt.frontend.dynamo import Region
from torch2trt.pieces import PiecewiseModule

BIG = 10 * X.abs()  # takes the other way


@dataclasses.dataclass
class Counts:
    """How often something was captured and built."""

    captured: int = 0
    built: int = 0


def counting(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Count from now on."""
    found = Counts()
    capture, build = backend.capture, api.build

    def captured(*args: Any) -> Any:
        found.captured += 1
        return capture(*args)

    def built(*args: Any, **kwargs: Any) -> Any:
        found.built += 1
        return build(*args, **kwargs)

    monkeypatch.setattr(backend, "capture", captured)
    monkeypatch.setattr(api, "build", built)
    return found


def pieces(module: nn.Module, *args: Any, **settings: Any) -> PiecewiseModule:
    compiled = torch2trt.compile(module, args or (X,), **(QUICK | settings))
    assert isinstance(compiled, PiecewiseModule)
    return compiled


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``Forked`` with the engines of both ways, and their Programs."""
    path = tmp_path_factory.mktemp("saved") / "forked.t2t"
    compiled = pieces(Forked().eval())
    compiled.reference(BIG)
    compiled.save(path, program=True)
    return path


def check(compiled: PiecewiseModule, module: nn.Module, *inputs: Any) -> None:
    for each in inputs:
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(each), module(each), rtol=1e-4, atol=1e-5)


def regions(module: nn.Module | Callable[..., Any], *args: Any) -> list[tuple[Region, tuple[Any, ...]]]:
    """What Dynamo makes of a call, and each one's arguments."""
    found: list[tuple[Region, tuple[Any, ...]]] = []

    def look(graph: Any, inputs: Any) -> Any:
        region = Region(graph)

        def run(*values: Any) -> Any:
            found.append((region, values))
            return graph(*values)

        return run

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(module, backend=look, dynamic=False)(*args)
    return found


@torch._dynamo.allow_in_graph
def own(x: Tensor) -> Tensor:
    return x.relu() * 3


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = own(x) + 1
        return y * 2 if y.sum() > 1e9 else y.sin() + y.cos()
