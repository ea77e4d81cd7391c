"""One model of the suite."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch2trt.tools.weights import randomize

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Model:
    """How to make a model, and an example call of it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    family: str = ""
    """What it is one of, where the name does not say it."""

    def build(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The module with seeded weights that keep activations at unit scale, and the arguments of the call."""
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a library says of its own making
            module = self.make().eval()
        args, kwargs = self.inputs()
        randomize(module, args, kwargs)
        return module, args, kwargs


def tensors(*shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """Positional arguments of normally distributed numbers."""

    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(1)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes), {}

    return inputs


def ids(*shape: int, below: int = 100) -> torch.Tensor:
    """Word numbers."""
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(2))
