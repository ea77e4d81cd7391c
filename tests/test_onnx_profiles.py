"""Optimization profiles of ONNX models: asked for by the names of dimensions, and found in examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

import torch2trt
from tests.profiled import MANY, ONE, QUICK, Taken, taken
from torch2trt.errors import (
    DynamicShapeError,
    ExampleInputError,
    InputDtypeError,
    InputShapeError,
    InputStructureError,
)
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.sizes import DimRange

__all__ = ["taken"]  # a fixture, which tests name


def scaled() -> onnx.ModelProto:
    """y = x · scale + x, with x [batch size, 3] and scale [batch size, 1]."""
    nodes = [helper.make_node("Mul", ["x", "scale"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch size", width])
        for name, width in (("x", 3), ("scale", 1))
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch size", 3])]
    graph = helper.make_graph(nodes, "scaled", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pair(size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3), torch.randn(size, 1)


RANGE = {"x": ((1, 3), (8, 3), (64, 3))}
NAMED: list[dict[str, Any]] = [{"batch_size": 1}, {"batch_size": (2, 16, 32)}]


def test_profiles_of_an_onnx_model(taken: Taken, tmp_path: Path) -> None:
    compiled = torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=[*NAMED, {}], **QUICK)
    assert taken == [{"batch_size": each} for each in (ONE, MANY, DimRange(1, 8, 64))]
    assert compiled.report["profiles"] == ["batch_size 1", "batch_size 2…16…32", "batch_size 1…8…64"]
    for size in (1, 2, 64):
        x, scale = pair(size)
        torch.testing.assert_close(compiled.reference(x, scale), x * scale + x)
    narrow = torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=NAMED, **QUICK)
    with pytest.raises(InputShapeError, match="no profile of the engine holds batch_size 33"):
        narrow.reference(*pair(33))
    assert narrow.verify(*pair(3)).passed
    narrow.save(tmp_path / "scaled.t2t")
    assert torch2trt.load(tmp_path / "scaled.t2t").artifact.signature == narrow.artifact.signature
    export_plan(narrow.artifact, tmp_path / "scaled.engine")
    described = json.loads((tmp_path / "scaled.engine.json").read_text())["profiles"]
    assert [each["inputs"]["scale"]["opt"] for each in described] == [[1, 1], [16, 1]]


def test_a_child_builds_the_profiles_of_an_onnx_model() -> None:
    here = torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=NAMED, **QUICK)
    there = torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=NAMED, build_in_subprocess=True, **QUICK)
    one = torch2trt.onnx.compile(scaled(), shapes=RANGE, **QUICK)
    assert there.artifact.signature == here.artifact.signature
    assert abs(len(there.artifact.plan) - len(here.artifact.plan)) < 0.05 * len(here.artifact.plan)
    assert len(one.artifact.plan) < len(here.artifact.plan)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([{"batch size": 1}], "is no dynamic dimension.*\n.*'batch_size'"),
        ([{"batch_size": 65}], "not in order within 1 to 64.*\n.*let 'batch_size' range"),
        ({"batch_size": 1}, "takes a list of dicts"),
    ],
)
def test_profiles_that_an_onnx_model_has_not(profiles: Any, message: str) -> None:
    with pytest.raises(DynamicShapeError, match=message):
        torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=profiles, **QUICK)


@pytest.mark.parametrize("named", [False, True])
def test_examples_of_an_onnx_model(named: bool, taken: Taken) -> None:
    calls: list[Any] = [pair(size) for size in (4, 2, 2)]
    if named:
        calls = [{"scale": scale, "x": x} for x, scale in calls]
    compiled = torch2trt.onnx.compile(scaled(), examples=calls, **QUICK)
    ranges = [{"batch_size": span} for span in (DimRange(2, 2, 2), DimRange(4, 4, 4), DimRange(2, 2, 4))]
    assert taken == compiled.artifact.signature.ranges == ranges
    x, scale = pair(3)
    torch.testing.assert_close(compiled.reference(x, scale), x * scale + x)
    with pytest.raises(InputShapeError, match="no profile of the engine holds batch_size 5"):
        compiled.reference(*pair(5))


def test_what_is_given_wins_over_the_examples_of_an_onnx_model() -> None:
    calls = [pair(size) for size in (4, 2)]
    compiled = torch2trt.onnx.compile(scaled(), shapes=RANGE, examples=calls, **QUICK)
    assert compiled.artifact.signature.dims == {"batch_size": DimRange(1, 4, 64)}
    compiled = torch2trt.onnx.compile(scaled(), examples=calls, profiles=[{"batch_size": 3}], **QUICK)
    assert compiled.artifact.signature.ranges == [{"batch_size": DimRange(3, 3, 3)}]
    static = torch2trt.onnx.compile(scaled(), examples=calls[:1], **QUICK)
    assert static.artifact.signature.dims == {}
    assert static.artifact.signature.profiles == ()


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([], ExampleInputError, "no calls"),
        ([(torch.randn(2, 3), 1.0)], ExampleInputError, "argument 1 is float, an ONNX model takes tensors"),
        ([([torch.randn(2, 3)],)], ExampleInputError, "argument 0 is list"),
        ([torch.randn(2, 3)], InputStructureError, "called with"),
        ([{"z": torch.randn(2, 3)}], DynamicShapeError, "no such input; it has x, scale"),
        ([(*pair(2), torch.randn(2))], DynamicShapeError, "2: the model has no such input"),
        ([(torch.randn(2, 3), torch.randn(3, 1))], DynamicShapeError, "another range"),
        ([pair(2), (torch.randn(4, 3), torch.randn(4, 2))], DynamicShapeError, "axis 1 is 1 in the model"),
        ([tuple(each.half() for each in pair(2))], InputDtypeError, "float16"),
    ],
)
def test_examples_that_an_onnx_model_does_not_take(examples: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        torch2trt.onnx.compile(scaled(), examples=examples, **QUICK)


@pytest.mark.gpu
def test_the_engine_of_an_onnx_model_picks_its_profile() -> None:
    compiled = torch2trt.onnx.compile(scaled(), shapes=RANGE, profiles=NAMED, **QUICK)
    engine = compiled._session.open()
    assert engine.handle.num_optimization_profiles == 2
    assert [engine.profile_of(((size, 3), (size, 1))) for size in (1, 2, 32)] == [0, 1, 1]
    for size in (1, 16, 2, 1, 32):
        x, scale = pair(size)
        torch.testing.assert_close(compiled(x.cuda(), scale.cuda()).cpu(), x * scale + x)
    with pytest.raises(InputShapeError, match="no profile"):
        compiled(*(each.cuda() for each in pair(33)))
