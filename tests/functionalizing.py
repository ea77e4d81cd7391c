"""Programs captured with and without the graph being traced once more, and what is left of them to compare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from torch2trt import api
from torch2trt.frontend import decompositions
from torch2trt.frontend.functional import functionalize
from torch2trt.graph.program import Program
from torch2trt.settings import Settings


def captured(
    module: nn.Module,
    quick: bool,
    monkeypatch: pytest.MonkeyPatch,
    *args: torch.Tensor,
    dynamic_shapes: Any = None,
) -> tuple[Program, bool]:
    """The Program, and whether it was rewritten."""
    done: list[bool] = []

    def noted(exported: ExportedProgram, keep: Any) -> bool:
        before = sizes_assumed(exported)
        done.append(quick and functionalize(exported, keep))
        assert sizes_assumed(exported) == before
        return done[-1]

    monkeypatch.setattr(decompositions, "functionalize", noted)
    own = pytree.tree_map_only(torch.Tensor, torch.clone, args)
    program = api.capture(module.eval(), own, dynamic_shapes=dynamic_shapes)
    monkeypatch.undo()
    return program, all(done)


def sizes_assumed(exported: ExportedProgram) -> Any:
    """What is known of the sizes of a trace, and how often something was asked that is not."""
    nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
    shapes = next(node.meta["val"].fake_mode.shape_env for node in nodes if isinstance(node.meta["val"], FakeTensor))
    if shapes is None:
        return None
    ranges = dict(shapes.var_to_range)
    return len(shapes.guards), {**shapes.replacements}, ranges, str(shapes.deferred_runtime_asserts), {**shapes.counter}


def plain(program: Program) -> list[Any]:
    """What is left once the passes have run, by the calls and what they yield; how sizes are computed is left out."""
    optimized = api.optimize(program, Settings.make())
    calls = [node for node in optimized.calls if not optimized.is_size(node)]
    return [
        (
            node.target,
            [optimized.is_size(each) for each in node.all_input_nodes].count(False),
            str(optimized.result(node)),
        )
        for node in calls
    ]
