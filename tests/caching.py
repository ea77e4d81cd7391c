"""A small net, and caches of a test's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2trt
from torch2trt.engine.cache import EngineCache, Plan
from torch2trt.engine.key import Key, Section
from torch2trt.settings import Settings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
X = torch.randn(2, 3, 8, 8, device=DEVICE)


def net(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation or nn.ReLU(), nn.Conv2d(4, 5, 1)
    return nn.Sequential(*layers).eval().to(DEVICE)


Compile = Callable[..., Any]


@pytest.fixture
def compiling(tmp_path: Path) -> Compile:
    """Compile with a cache of one's own."""
    return lambda module, *args, **how: torch2trt.compile(
        module, args or (X,), **{"engine_cache": True, "cache_dir": tmp_path, "progress": "none", **how}
    )


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache.of(Settings(cache_dir=tmp_path))


def key(name: str) -> Key:
    return Key({"graph": Section((name,)), "inputs": Section(("x: float32[1]",))})


def put(cache: EngineCache, name: str, size: int = 1000) -> str:
    """Put something into a cache."""
    how = {"name": name, "flavour": "tensorrt", "version": "10.6.0", "gpu": "GPU", "seconds": 9.0}
    cache.keep(key(name), Plan(name.encode() * size), **how)  # type: ignore[arg-type]
    return key(name).digest


def put_later(cache: EngineCache, name: str, size: int = 1000) -> str:
    """Put something into a cache, and make all that was there older."""
    for stored in cache.entries():
        os.utime(stored.folder / "uses", (stored.used - 10, stored.used - 10))
    return put(cache, name, size)
