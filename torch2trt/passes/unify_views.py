"""Every view as ``aten.reshape``: engines have no strides, so no view is impossible and no copy is needed for one."""

from __future__ import annotations

import torch

from torch2trt.graph.program import Program
from torch2trt.settings import Settings

aten = torch.ops.aten

VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})
"""The operators that this pass leaves none of."""


def unify_views(program: Program, settings: Settings) -> None:
    """Replace the operators that need certain strides by the one that does not."""
    for node in program.calls:
        if node.target in VIEWS:
            node.target = aten.reshape.default
