"""Operators of torch inside an engine: which become plugins, what their layers get, and what files hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import torch2trt
from tests.artifacts import make_artifact, with_manifest
from tests.harness import compare, truth
from tests.plugging import ENTERPRISE, Added, N, added, enterprise, optimized, spec, spreading
from tests.plugin_operators import (
    BATCH,
    OPERATORS,
    QUICK,
    Block,
    Function,
    X,
    gate,
    good_mood,
    kept,
    plugged,
    recast,
    spread,
)
from torch2trt.converters import registry
from torch2trt.converters.lower import lower, unsupported_nodes
from torch2trt.errors import ArtifactError, ArtifactWriteError
from torch2trt.partition.explain import explain
from torch2trt.runtime.artifact import Artifact, load, to_bytes
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.settings import Settings
from torch2trt.sizes import symbol
from torch2trt.trt import flavour as flavours

__all__ = ["added", "good_mood", "plugged"]  # fixtures, which tests name


def reasons(function: Any, *inputs: Tensor) -> list[str]:
    """Why enterprise TensorRT refuses the operators of this namespace."""
    program = optimized(Function(function), *inputs)
    return [each.reason for each in unsupported_nodes(program, ENTERPRISE) if each.op.startswith("t2t_plugins")]


# The converter --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plugged")
def test_all_of_a_module_is_one_engine_where_there_are_plugins() -> None:
    program = optimized(Block(), X, shapes=BATCH, min_segment=1)
    explained = explain(program, ENTERPRISE, Settings())
    assert not explained.in_torch
    assert [where for where, _ in explained.segments] == ["engine"]


@pytest.mark.usefixtures("plugged")
def test_where_there_are_none_it_runs_in_torch() -> None:
    if flavours.load().has("plugins"):
        pytest.skip("this flavour has plugins")
    explained = torch2trt.explain(Block(), (X,), min_segment=1)
    assert {each.op: each.reason for each in explained.in_torch if each.op != "operator.getitem"} == {
        "t2t_plugins.gate.default": "tensorrt_rtx has no plugins",
        "t2t_plugins.add_norm.default": "tensorrt_rtx has no plugins",
    }
    compiled = torch2trt.compile(Block(), (X,), dynamic_shapes=BATCH, min_segment=1, precision="fp32", **QUICK)
    assert compiled.artifact.parts
    assert not compiled.artifact.calls
    compare(compiled.reference(X), truth(Block(), (X,)), 1.0)
    # Had one of its engines calls, its file would name them.
    first, *others = compiled.artifact.parts
    mixed = dataclasses.replace(compiled.artifact, parts=(dataclasses.replace(first, calls=(spreading(),)), *others))
    again = load(to_bytes(mixed), namespaces=["t2t_plugins"]).artifact.parts[0]
    assert isinstance(again, Artifact)
    assert again.calls == (spreading(),)


def test_an_operator_that_is_none_is_as_before() -> None:
    assert reasons(gate, X) == ["no converter"]


@pytest.mark.usefixtures("plugged")
def test_what_is_refused_says_why() -> None:
    assert reasons(gate, X) == []
    assert reasons(gate, X.to(torch.int8)) == [
        "TensorRT has no torch.int8 but for quantized numbers, pass torch.int32 or torch.uint8"
    ]
    assert reasons(lambda x: recast(x, torch.float64).float(), X) == ["TensorRT has no torch.float64"]
    assert reasons(lambda x: kept(x) + 1, X) == ["u0: a size that the shapes of its inputs do not tell"]


def test_what_is_no_plugin_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    with pytest.raises(TypeError, match=r"t2t_plugins.bump.default writes into its arguments"):
        torch2trt.plugin(OPERATORS.bump)
    with pytest.raises(TypeError, match="is no operator of torch"):
        torch2trt.plugin(torch.sigmoid)
    torch2trt.plugin(OPERATORS.gate)
    with pytest.raises(TypeError, match="already has the converter"):
        torch2trt.plugin(OPERATORS.gate.default)
    with pytest.raises(TypeError, match="already has the converter"):
        torch2trt.plugin(torch.ops.aten.sigmoid)


@pytest.mark.parametrize("half", [False, True])
def test_precision_leaves_it_in_float32_unless_told(half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))
    torch2trt.plugin(gate, half=half)
    program = optimized(Block(), X, precision="fp16")
    (node,) = [node for node in program.calls if node.target is OPERATORS.gate.default]
    wanted = torch.float16 if half else torch.float32
    assert [program.spec(each).dtype for each in (node, *node.all_input_nodes)] == [wanted] * 2
    own = optimized(Block().half(), X.half())
    (node,) = [node for node in own.calls if node.target is OPERATORS.gate.default]
    assert own.spec(node).dtype == torch.float16


@pytest.mark.usefixtures("plugged")
def test_the_layer_gets_the_tensors_and_the_call(added: Added) -> None:
    net = lower(optimized(Block(), X, shapes=BATCH), enterprise())
    assert net.plugins == [plugin for _, plugin in added]
    first, second = (plugin.call for plugin in net.plugins)
    batch = symbol("batch")
    assert first.inputs == first.outputs == (spec(batch, 32),)
    assert json.loads(first.arguments) == [{"node": 0}, 2.0]
    assert second.inputs == (spec(batch, 32), spec(batch, 32), spec(32))
    assert second.outputs == (spec(batch, 32),) * 2
    assert json.loads(second.arguments) == [{"node": 0}, {"node": 1}, {"node": 2}, 1e-5]
    assert [tuple(tensor.shape) for tensor in added[1][0]] == [(-1, 32), (-1, 32), (32,)]
    assert net.definition.num_outputs == 2


@pytest.mark.usefixtures("plugged")
def test_booleans_and_bytes_are_cast_around_the_layer(added: Added) -> None:
    lower(optimized(Function(lambda x: recast(x > 0, torch.uint8)), X), enterprise())
    ((inputs, plugin),) = added
    assert [tensor.dtype.name for tensor in inputs] == ["INT32"]
    assert plugin.call.inputs == (spec(4, 16, dtype=torch.bool),)
    assert plugin.call.outputs == (spec(4, 16, dtype=torch.uint8),)


@pytest.mark.usefixtures("plugged")
def test_lists_of_tensors_and_sizes(added: Added) -> None:
    def listed(x: Tensor) -> Tensor:
        return spread([x, x + 1], x.shape[0] - 1)[0]

    lower(optimized(Function(listed), X, shapes=(({0: torch.export.Dim("n", min=2, max=9)},),)), enterprise())
    ((_, plugin),) = added
    call = plugin.call
    assert call.outputs == (spec(3 * N - 1, 16),)
    assert json.loads(call.arguments) == [[{"node": 0}, {"node": 1}], {"node": "n - 1"}, "zeros"]


# Files ----------------------------------------------------------------------------------------------------------------


def test_files_name_the_operators_that_their_plans_call() -> None:
    artifact = make_artifact(calls=(spreading(),))
    data = to_bytes(artifact)
    assert load(data, namespaces=["t2t_plugins"]).artifact == artifact
    with pytest.raises(ArtifactError, match=r"not allowed in a file: t2t_plugins.spread.default") as caught:
        load(data)
    assert "namespaces=" in caught.value.hint
    with pytest.raises(ArtifactError, match="not a call"):
        load(with_manifest(data, calls=[spreading().to_json() | {"arguments": "[]"}]), namespaces=["t2t_plugins"])
    with pytest.raises(ArtifactError, match="malformed"):
        load(with_manifest(data, calls=[{}]))
    named = spreading().to_json() | {"operator": "t2t_absent.thing.default"}
    with pytest.raises(ArtifactError, match=r"no such operator: t2t_absent.thing.default") as caught:
        load(with_manifest(data, calls=[named]), namespaces=["t2t_absent"])
    assert "import the package" in caught.value.hint


def test_a_bare_plan_cannot_call_torch(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match=r"t2t_plugins.spread.default"):
        export_plan(make_artifact(calls=(spreading(),)), tmp_path / "net.engine")
    assert list(tmp_path.iterdir()) == []
