"""Modules with an operator that nothing converts, compiled in part and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import torch2trt
from tests.harness import compare, truth
from torch2trt import api
from torch2trt.graph.program import Program
from torch2trt.partition.partitioner import Partition, partition
from torch2trt.runtime.artifact import Artifact, to_bytes
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none", "min_segment": 1}


@torch.library.custom_op("t2t_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator that nothing converts."""
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Call(nn.Module):
    """A function of its inputs and two linear layers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def check(module: nn.Module, *inputs: Tensor, others: tuple[Tensor, ...] = (), **keywords: Any) -> EngineModule:
    """Compile, compare with float64 eager here and after saving and loading, and on the GPU where there is one."""
    compiled = torch2trt.compile(module, inputs, **{**QUICK, **keywords})
    loaded = torch2trt.load(to_bytes(compiled.artifact, program=compiled.program()))
    for each in (compiled, loaded):
        for arguments in (inputs, *((other,) for other in others)):
            expected = truth(module, arguments)
            compare(each.reference(*arguments), expected, 1.0)
            if torch.cuda.is_available():
                found = each(*(value.cuda() for value in arguments))
                compare(torch.utils._pytree.tree_map_only(Tensor, Tensor.cpu, found), expected, 2.0)
    return compiled


def kinds(compiled: EngineModule) -> list[str]:
    return ["engine" if isinstance(part, Artifact) else "torch" for part in compiled.artifact.parts]


def optimized(module: nn.Module, *inputs: Tensor, **settings: Any) -> tuple[Program, Partition]:
    chosen = Settings.make(**{**QUICK, **settings})
    program = api.optimize(api.capture(module, inputs), chosen)
    return program, partition(program, flavours.load(), chosen)


TORCH = ["aten.tanh"]


class Rows(nn.Module):
    """Sizes that only a sum of inputs tells."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        twice = torch.cat([self.line(x), x]).tanh()
        return self.line(twice).reshape(2, x.shape[0], 8).sum(0) + torch.full((x.shape[0], 1), 2.0, device=x.device)
