"""Operators that no converter knows, and modules that call them, for the tests of plugins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from torch2trt.converters import registry

QUICK: dict[str, Any] = {"optimization_level": 0, "progress": "none"}
OPERATORS = torch.ops.t2t_plugins
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
BATCH = {"x": {0: Dim("batch", min=1, max=64)}}


@torch.library.custom_op("t2t_plugins::gate", mutates_args=())
def gate(x: Tensor, slope: float = 1.0) -> Tensor:
    return x * torch.sigmoid(slope * x)


@gate.register_fake
def _(x: Tensor, slope: float = 1.0) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("t2t_plugins::add_norm", mutates_args=())
def add_norm(x: Tensor, rest: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The sum, and the sum divided by its root mean square."""
    total = x + rest
    wide = total if total.dtype == torch.float64 else total.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(total.dtype)
    return total, normed if weight is None else normed * weight


@add_norm.register_fake
def _(x: Tensor, rest: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("t2t_plugins::spread", mutates_args=())
def spread(xs: list[Tensor], rows: int, *, mode: str = "zeros") -> Tensor:
    """All tensors, one below the other, and rows of zeros or ones."""
    return torch.cat([*xs, getattr(torch, mode)(rows, xs[0].shape[1], dtype=xs[0].dtype, device=xs[0].device)])


@spread.register_fake
def _(xs: list[Tensor], rows: int, *, mode: str = "zeros") -> Tensor:
    return xs[0].new_empty(sum(x.shape[0] for x in xs) + rows, xs[0].shape[1])


@torch.library.custom_op("t2t_plugins::recast", mutates_args=())
def recast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, copy=True)


@recast.register_fake
def _(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("t2t_plugins::pick", mutates_args=())
def pick(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rows by index, and the largest element of them all."""
    return x[index], x[index].amax()


@pick.register_fake
def _(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(index.shape[0], *x.shape[1:]), x.new_empty(())


@torch.library.custom_op("t2t_plugins::halves", mutates_args=())
def halves(x: Tensor) -> list[Tensor]:
    return [half.clone() for half in x.chunk(2, -1)]


@halves.register_fake
def _(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(half) for half in x.chunk(2, -1)]


@torch.library.custom_op("t2t_plugins::bump", mutates_args=("x",))
def bump(x: Tensor) -> None:
    x.add_(1)


@torch.library.custom_op("t2t_plugins::kept", mutates_args=())
def kept(x: Tensor) -> Tensor:
    """What is positive: its size depends on values."""
    return x[x > 0]


@kept.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(torch.library.get_ctx().new_dynamic_size())


SEEN: list[torch.dtype] = []
MOOD = {"raises": False, "looks": False, "draws": False, "lies": False}


@torch.library.custom_op("t2t_plugins::moody", mutates_args=())
def moody(x: Tensor) -> Tensor:
    SEEN.append(x.dtype)
    if MOOD["raises"]:
        raise ValueError("not today")
    if MOOD["looks"]:
        return x * float(x.abs().sum().item() > 0)
    if MOOD["draws"]:
        return x + torch.rand_like(x)
    return x.double() if MOOD["lies"] else x + 1


@moody.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Block(nn.Module):
    """Linear layers, and between them operators that no converter knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 32)
        self.weight = nn.Parameter(torch.rand(32) + 0.5)
        self.second = nn.Linear(32, 16)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = gate(self.first(x), 2.0)
        total, normed = add_norm(hidden, hidden.flip(-1), self.weight, 1e-5)
        return self.second(normed), total


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.fixture(autouse=True)
def good_mood() -> Iterator[None]:
    yield
    SEEN.clear()
    MOOD.update(dict.fromkeys(MOOD, False))


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """These operators as plugins, for one test."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    for operator in (gate, add_norm, spread, recast, pick, halves, kept, moody):
        assert torch2trt.plugin(operator) is operator
