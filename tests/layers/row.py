"""One layer of the interpreter as a row of a table: how it is added, what goes in, what must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.bare_network import FLAVOUR, BareNetwork, first
from torch2trt.trt.flavour import TENSORRT

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Weights inside a layer (not constants) are tried in bfloat16 in test_interpreter.py.
READABLE_FLOATS = FLOATS[:3]


@dataclass(frozen=True)
class Row:
    """One layer: how it is added to a network, what goes in, and what must come out."""

    name: str
    build: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    truth: Callable[..., Any]
    needs: str = ""
    """A capability without which the flavour has no such layer."""
    engine: str = ""
    """Why no engine of it is compared with the interpreter, where that is so."""
    refused: str = ""
    """Why this flavour's TensorRT builds no engine from it, where that is so."""
    refused_in: tuple[torch.dtype, ...] = FLOATS
    """The types in which it does not."""
    floats: tuple[torch.dtype, ...] = FLOATS
    """The types to try it in; float64 is FLOAT computed in float64, to tell a wrong result from rounding."""


def in_tensorrt_10(reason: str) -> str:
    """The reason, where it is TensorRT 10 that these tests run with."""
    return reason if FLAVOUR.name == TENSORRT and FLAVOUR.version < (11,) else ""


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    # bfloat16 holds these exactly, so that all types start from the same numbers
    return (torch.randn(shape, generator=generator) * scale).bfloat16().float()


def integers(*shape: int, low: int = -9, high: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)


def add(method: str, *arguments: Any, **attributes: Any) -> Callable[..., Any]:
    """A build function: `add_<method>(*inputs, *arguments)`, attributes set, first output.

    Arguments that depend on the network are functions of it.
    """

    def build(net: BareNetwork, *inputs: Any) -> Any:
        given = [argument(net) if callable(argument) else argument for argument in arguments]
        layer = getattr(net.definition, f"add_{method}")(*inputs, *given)
        for name, value in attributes.items():
            setattr(layer, name, value)
        return first(layer)

    return build


def const(value: Any, dtype: torch.dtype | None = None) -> Callable[[BareNetwork], Any]:
    return lambda net: net.constant(value, dtype)
