"""What a refusal must be: its error class and number, the words that name what is wrong, and a hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch2trt
from torch2trt.runtime.module import EngineModule

X = torch.randn(2, 3)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def refused(kind: type[torch2trt.Torch2TRTError], call: Callable[[], Any], *words: str) -> torch2trt.Torch2TRTError:
    """What a call raises: of this class, with its number and a hint, and saying these words."""
    with pytest.raises(kind) as info:
        call()
    error = info.value
    assert type(error) is kind
    text = str(error)
    assert text.startswith(f"[{kind.code}] ")
    for word in words:
        assert word in text, text
    assert error.hint, text
    return error


def compiling(module: nn.Module, *args: Any, **options: Any) -> Callable[[], EngineModule]:
    return lambda: torch2trt.compile(module.eval(), args, progress="none", **options)
