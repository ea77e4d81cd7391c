"""Optimization profiles and examples on the other roads: ONNX models, comparing, reducing, modules in pieces."""

from __future__ import annotations

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

import torch2trt
from tests.taken_profiles import Taken, taken
from tests.test_pieces import Forked
from tests.test_profiles import BATCH, PARTS, PARTS_PROFILES, QUICK, TWO, Linear, Parts
from torch2trt import api
from torch2trt.errors import (
    DataDependentError,
    DynamicShapeError,
    ExampleInputError,
    InputDtypeError,
    InputShapeError,
    InputStructureError,
)
from torch2trt.pieces import PiecewiseModule
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.sizes import DimRange
from torch2trt.tools import cli
from torch2trt.tools.script import Recording

__all__ = ["taken"]  # a fixture, which tests name

ONE, MANY = DimRange(1, 1, 1), DimRange(2, 16, 32)


# ONNX models ----------------------------------------------------------------------------------------------------------


def scaled(batch: str | None = "batch size") -> onnx.ModelProto:
    """y = x · scale + x, with x [batch size, 3] and scale [batch size, 1]."""
    nodes = [helper.make_node("Mul", ["x", "scale"], ["m"]), helper.make_node("Add", ["m", "x"], ["y"])]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width])
        for name, width in (("x", 3), ("scale", 1))
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])]
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


# Comparing ------------------------------------------------------------------------------------------------------------


def test_comparing_says_which_profile_ran() -> None:
    common: Any = {"dynamic_shapes": BATCH, "profiles": TWO, "runs": "reference", "precision": "fp32"}
    found = torch2trt.compare(Linear(), (torch.randn(1, 8),), **common)
    assert found.passed
    assert found.profile == found.to_json()["profile"] == "batch 1"
    assert "fp32, batch 1)" in found.summary
    assert torch2trt.compare(Linear(), (torch.randn(20, 8),), **common).profile == "batch 2…16…32"
    assert torch2trt.compare(Linear(), (torch.randn(20, 8),), **{**common, "profiles": None}).profile == ""
    with pytest.raises(InputShapeError, match="holds batch 33: it has batch 1; batch 2…16…32"):
        torch2trt.compare(Linear(), (torch.randn(33, 8),), **common)


def test_comparing_the_first_of_several_examples() -> None:
    examples = [torch.randn(size, 8) for size in (8, 2, 2)]
    found = torch2trt.compare(Linear(), examples=examples, runs="reference", precision="fp32")
    assert found.profile == "x_0 8"
    assert found.passed
    with pytest.raises(ExampleInputError, match="in place of args"):
        torch2trt.compare(Linear(), (examples[0],), examples=examples)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 16])
def test_the_engine_is_compared_in_its_profile(size: int, taken: Taken) -> None:
    keywords: Any = {"dynamic_shapes": BATCH, "profiles": TWO, **QUICK}
    found = torch2trt.compare(Linear(), (torch.randn(size, 8),), **keywords)
    assert found.ran == "engine"
    assert found.passed
    assert found.profile == ("batch 1" if size == 1 else "batch 2…16…32")
    assert taken == [{"batch": ONE}, {"batch": MANY}]


# Reducing -------------------------------------------------------------------------------------------------------------

# An operator whose converter is wrong where its size is dynamic, in a module that children import too.
DEFECT = """
import torch
import torch2trt


@torch.library.custom_op("t2t_sized::third", mutates_args=())
def third(x: torch.Tensor) -> torch.Tensor:
    return x / 3


third.register_fake(torch.empty_like)


@torch2trt.converter(torch.ops.t2t_sized.third.default)
def convert(net, x):
    dynamic = any(not isinstance(size, int) for size in x.shape)
    return net.activation("RELU", x) if dynamic else net.binary("DIV", x, 3.0)
"""


@pytest.fixture(scope="module")
def defect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("sized")
    (folder / "t2t_sized.py").write_text(DEFECT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        importlib.import_module("t2t_sized")
        yield


class Third(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.ops.t2t_sized.third(self.first(x).relu().mean(1) - 1)).relu()


@pytest.mark.usefixtures("defect")
def test_a_reduced_script_carries_the_profiles(tmp_path: Path, taken: Taken) -> None:
    path = tmp_path / "small.py"
    common: Any = {"imports": ["t2t_sized"], "dynamic_shapes": PARTS, "profiles": PARTS_PROFILES, **QUICK}
    common.pop("progress")
    found = torch2trt.reduce(Third(), (torch.randn(4, 8, 8),), path=path, **common)
    assert (found.failure.kind, found.calls) == ("wrong", 1)
    # Only the batch reaches what is left, so that two of the three profiles are one.
    wanted = [(1, 1, 1), (2, 4, 16)]
    assert found.script.load()["PROFILES"] == [{"batch": each} for each in wanted]
    assert f"PROFILES = {[{'batch': each} for each in wanted]}" in path.read_text()
    taken.clear()
    _, passed = found.script.load()["check"](tuple(found.script.inputs.values()), found.script.weights)
    assert not passed
    assert taken == [{"batch": DimRange(*each)} for each in wanted]
    code = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_path({str(path)!r}, run_name='__main__')"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "Reduced: failed" in shown.stdout


def test_what_is_static_in_a_script_has_no_profiles() -> None:
    program = api.capture(Parts(), (torch.randn(4, 8, 8),), dynamic_shapes=PARTS, profiles=PARTS_PROFILES)
    recording = Recording(program, [torch.randn(4, 8, 8)])
    made = recording.script(recording.calls, title="all", settings={}, tolerance=None, static=True)
    assert made is not None
    assert made.load()["PROFILES"] is None


def test_a_script_is_tuned_for_what_the_examples_are() -> None:
    examples = [torch.randn(size, 8) for size in (8, 2, 2)]
    args, kwargs, calls = api.first_call(Linear(), (), None, examples)
    program = api.capture(Linear(), args, kwargs, calls=calls)
    recording = Recording(program, [examples[0]])
    made = recording.script(recording.calls, title="all", settings={}, tolerance=None, static=False)
    assert made is not None
    names = made.load()
    assert names["PROFILES"] == [{"x_0": (2, 2, 2)}, {"x_0": (8, 8, 8)}, {"x_0": (2, 2, 8)}]
    again = api.capture(
        made.module(), (examples[0],), dynamic_shapes=names["DYNAMIC_SHAPES"], profiles=names["PROFILES"]
    )
    assert again.signature.ranges == program.signature.ranges


def test_reducing_what_no_profile_holds_is_an_error() -> None:
    with pytest.raises(InputShapeError, match="holds batch 64"):
        torch2trt.reduce(Linear(), (torch.randn(64, 8),), dynamic_shapes=BATCH, profiles=TWO, **QUICK)


# Modules in pieces ----------------------------------------------------------------------------------------------------

PIECES: dict[str, Any] = {**QUICK, "min_segment": 1}


def test_pieces_have_no_profiles() -> None:
    with pytest.raises(DynamicShapeError, match=r"T2T105.*profiles: Forked compiles in pieces.*no profiles") as caught:
        torch2trt.compile(Forked().eval(), (torch.randn(4, 8),), profiles=TWO, **PIECES)
    assert "test_pieces.py" in caught.value.source
    assert "examples=" in caught.value.hint
    with pytest.raises(DataDependentError):
        torch2trt.compile(Forked().eval(), (torch.randn(4, 8),), profiles=TWO, fallback=False, **PIECES)


def test_pieces_have_engines_for_the_examples(caplog: pytest.LogCaptureFixture) -> None:
    module = Forked().eval()
    examples = [torch.randn(size, 8) for size in (4, 6, 6, 2)]
    compiled = torch2trt.compile(module, examples=examples, **PIECES)
    assert isinstance(compiled, PiecewiseModule)
    sizes = {engine.artifact.signature.tensor_inputs[0].spec.shape[0] for engine in compiled.engines}
    assert sizes == {2, 4, 6}
    for x in examples:
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(x), module(x))
    assert "no engines are built" not in caplog.text


class Picky(Forked):
    def forward(self, x: Tensor) -> dict[str, Any]:
        found = super().forward(x)
        if len(x) > 4 and x[0].equal(x[-1]):
            raise ValueError("twice the same row")
        return found


def test_values_that_pieces_refuse_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    examples = [torch.randn(size, 8) for size in (4, 5)]
    compiled = torch2trt.compile(Picky().eval(), examples=examples, **PIECES)
    assert "no engines are built before the call for some sizes: twice the same row" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(compiled.reference(examples[1]), Picky().eval()(examples[1]))


def test_dynamic_shapes_of_pieces_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        torch2trt.compile(Forked().eval(), (torch.randn(4, 8),), dynamic_shapes=BATCH, **PIECES)
    assert "dynamic_shapes change nothing" in caplog.text


# The command line -----------------------------------------------------------------------------------------------------


def test_profiles_of_comparing_and_reducing_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text("from tests.test_profiles import Linear\n")
    model = f"{tmp_path / 'net.py'}:Linear"
    shared = ["--input", "batch=1..1..64x8", "--profile", "batch=1", "--profile", "batch=2..16..64", "--json"]
    assert cli.main(["compare", model, "--runs", "reference", *shared]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "batch 1"
    shared[-2:] = ["batch=65", "--json"]
    assert cli.main(["reduce", model, "-o", str(tmp_path / "small.py"), *shared]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "T2T105"
