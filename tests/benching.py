"""Models, cases and rows to measure, and a machine that tells the times that it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch2trt.tools.bench.case import Case
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.whole import Stages, WholeCall

CPU = torch.device("cpu")
QUIET = {"progress": "none", "timing_cache": False}

MODELS = """
import os, time
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.line = nn.Linear(4, 4)

    def forward(self, ids, *, scale=None, shift=0.0):
        line = self.line(self.table(ids))
        return {"sum": line.sum(-1), "all": (line, None if scale is None else line * scale + shift)}

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 40_000))

def crash():
    os._exit(7)

def sleep():
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(MODELS)
    return path


def case_of(models: Path, name: str = "net", **changes: Any) -> Case:
    return dataclasses.replace(Case(name, f"{models}:{name}", 2, "fp32", ("1x3x8x8",)), **changes)


class FakeMachine:
    """Tells the times that it is given, in milliseconds by function, and keeps what was asked for."""

    def __init__(self, times: dict[str, float] | None = None) -> None:
        self.device = CPU
        self.name = "Fake 9000"
        self.gpus = ["0", "1"]
        self.times = times or {}
        self.asked: list[tuple[str, Any, int]] = []
        self.free = 1 << 30

    def gpu_ms(self, call: Callable[[int], Any], calls: int, *, lead_in: int) -> float:
        self.asked.append(("gpu", call, calls))
        return self.times.get(getattr(call, "name", ""), 1.0)

    def host_us(self, call: Callable[[int], Any], calls: int) -> float:
        self.asked.append(("host", call, calls))
        return 7.0

    def stages_ms(self, whole: WholeCall, number: int) -> Stages:
        whole.copy_in(number)
        whole.copy_out(whole.call(number))
        self.asked.append(("whole", whole.call, number))
        return Stages(latency=float(10 + number), h2d=1.0, compute=8.0, d2h=0.5)

    def synchronize(self) -> None: ...

    def release(self) -> None: ...

    def free_bytes(self) -> int:
        self.free -= 100
        return self.free


def named(name: str, result: Any = None) -> Callable[[int], Any]:
    def call(number: int) -> Any:
        return result

    call.name = name  # type: ignore[attr-defined]
    return call


BASE = Row("abc", "now", "net", 4, "fp16", "eager", gpu_ms_p50=2.0, gpu_ms_p99=2.5, host_us=100.0)


def row(backend: str = "eager", **changes: Any) -> Row:
    return dataclasses.replace(BASE, backend=backend, **changes)
