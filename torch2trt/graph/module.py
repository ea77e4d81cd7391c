"""Graphs as modules whose Python code is written when somebody calls them, or asks for it."""

from __future__ import annotations

import contextlib

from torch import fx
from torch.fx import _lazy_graph_module


def graph_module(graph: fx.Graph) -> fx.GraphModule:
    """A graph of calls as a module.

    ``fx.GraphModule`` writes Python for a graph, and compiles it, whenever it gets one, which takes longer than most
    passes do. An ``fx.Interpreter`` has no use for it.
    """
    with without_code():
        return _lazy_graph_module._make_graph_module({}, graph)


def without_code() -> contextlib.AbstractContextManager[None]:
    """Within, torch too makes modules of this kind of the graphs that it traces."""
    return _lazy_graph_module._use_lazy_graph_module(True)
