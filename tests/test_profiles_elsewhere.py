"""Optimization profiles and examples elsewhere: explaining, comparing, reducing, modules in pieces."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import torch2trt
from tests.profiled import BATCH, MANY, ONE, PARTS, PARTS_PROFILES, QUICK, TWO, Linear, Parts, Taken, taken
from tests.scripts import importable, run_script
from tests.test_pieces import Forked
from torch2trt import api
from torch2trt.errors import (
    DataDependentError,
    DynamicShapeError,
    ExampleInputError,
    InputShapeError,
)
from torch2trt.graph.signature import TensorLeaf
from torch2trt.pieces import PiecewiseModule
from torch2trt.sizes import DimRange
from torch2trt.tools import cli
from torch2trt.tools.script import Recording

__all__ = ["taken"]  # a fixture, which tests name


# Explaining -----------------------------------------------------------------------------------------------------------


def test_explaining_names_the_profiles() -> None:
    x, examples = torch.randn(4, 8), [torch.randn(size, 8) for size in (8, 2, 2)]
    found = torch2trt.explain(Linear(), (x,), dynamic_shapes=BATCH, profiles=TWO)
    assert found.profiles == ("batch 1", "batch 2…16…32")
    assert found.to_json()["profiles"] == ["batch 1", "batch 2…16…32"]
    assert "profiles: batch 1; batch 2…16…32" in str(found)
    assert torch2trt.explain(Linear(), examples=examples).profiles == ("x_0 2", "x_0 8", "x_0 2…2…8")
    assert torch2trt.explain(Linear(), (x,), dynamic_shapes=BATCH).profiles == ("batch 1…4…64",)
    assert torch2trt.explain(Linear(), (x,)).profiles == ()
    with pytest.raises(DynamicShapeError, match="'bach' is no dynamic dimension"):
        torch2trt.explain(Linear(), (x,), dynamic_shapes=BATCH, profiles=[{"bach": 1}])


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
    with importable(tmp_path_factory.mktemp("sized"), "t2t_sized", DEFECT):
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
    shown = run_script(path)
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


Takes = Callable[..., Any]
BOTH = pytest.mark.parametrize("takes", [torch2trt.compile, torch2trt.explain])


@BOTH
def test_pieces_have_profiles_of_dimensions_that_there_are(takes: Takes) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(DynamicShapeError, match=r"T2T105.*profiles\[0\].*'batch' is no dynamic dimension"):
        takes(Forked().eval(), (x,), profiles=TWO, **PIECES)
    found = takes(Forked().eval(), (x,), dynamic_shapes=BATCH, profiles=TWO, **PIECES)
    pieces = found.engines if isinstance(found, PiecewiseModule) else found.pieces
    assert len(pieces) >= 2
    with pytest.raises(DataDependentError):
        takes(Forked().eval(), (x,), dynamic_shapes=BATCH, profiles=TWO, fallback=False, **PIECES)


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
    found = torch2trt.explain(module, examples=examples, **PIECES)
    shapes = ["x".join(map(str, leaf.spec.shape)) for leaf in _first_inputs(compiled)]
    assert sorted(each.inputs.partition(",")[0] for each in found.pieces) == sorted(shapes)
    assert "6x8" in str(found)
    assert "6x8" in found.to_html()
    assert len(found.placements) == sum(len(each.placements) for each in found.pieces)
    assert torch2trt.explain(module, (examples[0],), **PIECES).graphs < found.graphs


def _first_inputs(compiled: PiecewiseModule) -> list[TensorLeaf]:
    return [engine.artifact.signature.tensor_inputs[0] for engine in compiled.engines]


@BOTH
def test_what_pieces_raise_is_said(takes: Takes) -> None:
    rows = torch.ones(5, 8)
    with pytest.raises(DataDependentError, match="in pieces: ValueError: twice the same row"):
        takes(Picky().eval(), (rows,), **PIECES)


def test_explaining_pieces_too_small_for_engines() -> None:
    found = torch2trt.explain(Forked().eval(), (torch.randn(4, 8),), **{**PIECES, "min_segment": 99})
    assert "nothing is compiled: engines would get" in found.refusal
    assert found.refusal in str(found)
    assert not torch2trt.explain(Forked().eval(), (torch.randn(4, 8),), **PIECES).refusal


class Picky(Forked):
    def forward(self, x: Tensor) -> dict[str, Any]:
        found = super().forward(x)
        if len(x) > 4 and x[0].equal(x[-1]):
            raise ValueError("twice the same row")
        return found


@BOTH
def test_values_that_pieces_refuse_are_a_warning(takes: Takes, caplog: pytest.LogCaptureFixture) -> None:
    examples = [torch.randn(size, 8) for size in (4, 5)]
    compiled = takes(Picky().eval(), examples=examples, **PIECES)
    assert "no engines are built before the call for some sizes: twice the same row" in caplog.text
    if takes is torch2trt.explain:
        return
    with torch.no_grad():
        torch.testing.assert_close(compiled.reference(examples[1]), Picky().eval()(examples[1]))


@BOTH
def test_dynamic_shapes_of_pieces_without_a_range_are_a_warning(takes: Takes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        takes(Forked().eval(), (torch.randn(4, 8),), dynamic_shapes={"x": {0: Dim.AUTO}}, **PIECES)
    assert "dynamic_shapes name no range of sizes" in caplog.text


# The command line -----------------------------------------------------------------------------------------------------


def test_profiles_of_the_tools_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text("from tests.profiled import Linear\n")
    model = f"{tmp_path / 'net.py'}:Linear"
    shared = ["--input", "batch=1..1..64x8", "--profile", "batch=1", "--profile", "batch=2..16..64", "--json"]
    assert cli.main(["compare", model, "--runs", "reference", *shared]) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "batch 1"
    assert cli.main(["explain", model, *shared]) == 0
    assert json.loads(capsys.readouterr().out)["profiles"] == ["batch 1", "batch 2…16…64"]
    shared[-2:] = ["batch=65", "--json"]
    assert cli.main(["reduce", model, "-o", str(tmp_path / "small.py"), *shared]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "T2T105"
