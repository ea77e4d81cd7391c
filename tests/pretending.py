"""Compiled modules whose engine is a function of torch, for tests of everything around the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torch2trt.graph.signature import ConstantLeaf, Leaf, Signature, TensorLeaf
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol

BATCH, HEIGHT = symbol("batch"), symbol("h")

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="what happens on a machine without a GPU")


def leaf(name: str, *shape: Any, dtype: torch.dtype = torch.float32) -> TensorLeaf:
    return TensorLeaf(name, TensorSpec(shape, dtype))


def make_signature(
    inputs: Sequence[TensorLeaf | ConstantLeaf],
    outputs: Sequence[Leaf],
    call: Any = None,
    result: Any = None,
    **dims: tuple[int, int, int],
) -> Signature:
    """A signature; by default called by position, and returning one tensor or a tuple."""
    call = (tuple(range(len(inputs))), {}) if call is None else call
    result = (0 if len(outputs) == 1 else tuple(outputs)) if result is None else result
    return Signature(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        in_spec=pytree.tree_structure(call),
        out_spec=pytree.tree_structure(result, is_leaf=lambda node: isinstance(node, Leaf)),
        dims={name: DimRange(*span) for name, span in dims.items()},
        parameters=tuple(item.name for item in inputs if isinstance(item, TensorLeaf)),
    )


DOUBLE = make_signature([leaf("x", BATCH, 3)], [leaf("y", BATCH, 3)], batch=(1, 4, 16))


def make_module(signature: Signature = DOUBLE, plan: bytes = b"plan", **options: Any) -> EngineModule:
    settings = {"settings": options.pop("settings", Settings(precision="fp32"))}
    values = {"flavour": "tensorrt_rtx", "flavour_version": "1.7.1", "gpu": None, "report": {}} | settings
    for key in values:
        values[key] = options.pop(key, values[key])
    return EngineModule(Artifact(name="net", plan=plan, signature=signature, **values), **options)


class CPUSession:
    """Stands for an engine: runs a function of torch where the engine would run."""

    def __init__(self, function: Callable[..., Any], artifact: Artifact | None = None) -> None:
        self.function = function
        self.artifact = artifact
        self.device = torch.device("cpu")
        self.host_inputs: frozenset[str] = frozenset()
        self.shapes: list[Any] = []

    def open(self) -> CPUSession:
        return self

    def run(self, inputs: Sequence[Tensor], shapes: Any) -> list[Tensor]:
        self.shapes.append(shapes)
        with torch.no_grad():
            result = self.function(*inputs)
        return list(result) if isinstance(result, tuple) else [result]


def running(module: EngineModule, function: Callable[..., Any]) -> EngineModule:
    module._session = CPUSession(function, module.artifact)  # type: ignore[assignment]
    return module
