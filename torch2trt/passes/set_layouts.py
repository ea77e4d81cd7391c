"""How inputs and results lie in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch2trt.graph.program import Program
from torch2trt.graph.signature import TensorLeaf
from torch2trt.settings import Settings


def set_layouts(program: Program, settings: Settings) -> None:
    """Leave them as they were when the module was captured, unless ``keep_io_layouts`` is off."""
    if settings.keep_io_layouts:
        return
    signature = program.signature
    program.signature = dataclasses.replace(
        signature, inputs=tuple(map(_plain, signature.inputs)), outputs=tuple(map(_plain, signature.outputs))
    )


def _plain(leaf: Any) -> Any:
    return dataclasses.replace(leaf, order=()) if isinstance(leaf, TensorLeaf) else leaf
