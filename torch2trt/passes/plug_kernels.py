"""What passes share that let kernels in Triton compute, as plugins."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from torch import fx

from torch2trt.graph.program import Program
from torch2trt.graph.rewrite import erase_unused


def plug_kernels(
    program: Program, fits: Callable[[Program, fx.Node], bool], rewrite: Callable[[Program, fx.Node], None]
) -> None:
    """Rewrite the calls that fit, where Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        return
    for node in program.calls:
        if fits(program, node):
            rewrite(program, node)
    erase_unused(program.graph.graph)
