"""Comparing and reducing at other sizes of dynamic dimensions than the example's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from tests.scripts import importable, run_script
from torch2trt import api
from torch2trt.errors import DynamicShapeError, ExampleInputError, InputShapeError, NoFailureError
from torch2trt.graph.signature import Signature
from torch2trt.tools import cli
from torch2trt.tools import compare as comparing
from torch2trt.tools.inputs import parse_sizes
from torch2trt.tools.sizes import inputs_at

# An operator that copies, with a converter that reads rows beyond the example's size from the beginning, in a module
# that children import too; and a model with it.
DEFECT = """
import torch
import torch2trt


@torch.library.custom_op("t2t_beyond::copied", mutates_args=())
def copied(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


copied.register_fake(torch.empty_like)


@torch2trt.converter(torch.ops.t2t_beyond.copied.default)
def convert(net, x):
    rows = x.shape[0]
    usual = rows if isinstance(rows, int) else net.ranges[rows.name].opt
    places = net.iota(0, 1, rows, torch.int64)
    rounds = net.elementwise("FLOOR_DIV", places, net.tensor(usual))
    return net.gather(x, net.elementwise("SUB", places, net.elementwise("PROD", rounds, net.tensor(usual))), 0)


class Beyond(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)
        self.eval()

    def forward(self, x):
        return self.second(torch.ops.t2t_beyond.copied(self.first(x).sin()))
"""
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
BATCH = {"x": {0: Dim("batch", min=1, max=16)}}
QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0}
COMPARED: dict[str, Any] = {"dynamic_shapes": BATCH, "precision": "fp32", "runs": "reference"}


@pytest.fixture(scope="module")
def beyond(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with importable(tmp_path_factory.mktemp("beyond"), "t2t_beyond", DEFECT) as module:
        yield module.Beyond()


# Inputs ---------------------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x.reshape(ids.shape[0], 2, -1).sum(1) + ids[:, None]


def signature(profiles: Any = None) -> tuple[Signature, list[Tensor]]:
    """Of x [2*half, 3·wide] and ids [half]."""
    half, wide = Dim("half", min=1, max=8), Dim("wide", min=1, max=4)
    inputs = torch.randn(4, 3), torch.tensor([5, 7])
    shapes = {"x": {0: 2 * half, 1: wide}, "ids": {0: half}}
    program = api.capture(Pair().eval(), inputs, dynamic_shapes=shapes, profiles=profiles)
    return program.signature, list(inputs)


def test_inputs_at_other_sizes() -> None:
    own, inputs = signature()
    ((sizes, (x, ids)),) = inputs_at(own, inputs, {"half": 5})
    assert sizes == {"half": 5, "wide": 3}
    assert ids.tolist() == [5, 7, 5, 7, 5]
    assert x.shape == (10, 3)
    torch.testing.assert_close(x[:4], inputs[0], rtol=0, atol=0)
    parts = (x[4:8] / x[:4])[:, 0], (x[8:] / x[:2])[:, 0]
    assert [float(part.max() - part.min()) < 1e-6 and 0.5 < float(part[0]) < 1 for part in parts] == [True, True]
    assert abs(float(parts[0][0] - parts[1][0])) > 0.01
    ((_, (x, ids)),) = inputs_at(own, inputs, [{"half": 1, "wide": 2}])
    torch.testing.assert_close(x, inputs[0][:2, :2], rtol=0, atol=0)
    assert ids.tolist() == [5]
    ((sizes, values),) = inputs_at(own, inputs, None)
    assert sizes == {"half": 2, "wide": 3}
    assert values == inputs


def test_all_sizes_are_those_of_every_profile() -> None:
    own, inputs = signature([{"half": (1, 2, 8)}, {"half": 8, "wide": (1, 4, 4)}, {"half": 8}])
    found = [(sizes["half"], sizes["wide"]) for sizes, _ in inputs_at(own, inputs, "all")]
    assert found == [(1, 1), (2, 3), (8, 4), (8, 1), (8, 3)]
    static = api.capture(nn.ReLU().eval(), (X,)).signature
    assert [sizes for sizes, _ in inputs_at(static, [X], "all")] == [{}]


@pytest.mark.parametrize(
    ("at", "error", "message"),
    [
        ({"halve": 1}, DynamicShapeError, "'halve' is no dynamic dimension.*\n.*did you mean 'half'"),
        ({"half": (1, 2, 3)}, DynamicShapeError, r"'half' is \(1, 2, 3\)"),
        ({"half": True}, DynamicShapeError, "'half' is True"),
        ("al", DynamicShapeError, "takes sizes by the names of dimensions, got 'al'"),
        ([], DynamicShapeError, r"got \[\]"),
        ([3], DynamicShapeError, r"got \[3\]"),
        ({"half": 9}, InputShapeError, "'half' is 9, the engine takes 1 to 8"),
        ({"half": 0}, InputShapeError, "'half' is 0"),
    ],
)
def test_what_are_no_sizes(at: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inputs_at(*signature(), at)


def test_sizes_are_read() -> None:
    assert parse_sizes("batch=8,length=128") == {"batch": 8, "length": 128}
    for text in ("8", "batch=1..2..3", "batch=", "all", "batch=8,"):
        with pytest.raises(ExampleInputError, match="gives no sizes"):
            parse_sizes(text)


# Comparing ------------------------------------------------------------------------------------------------------------


def test_a_defect_at_another_size_is_found(beyond: nn.Module) -> None:
    assert torch2trt.compare(beyond, (X,), **COMPARED).passed
    found = torch2trt.compare(beyond, (X,), at="all", **COMPARED)
    assert not found.passed
    assert found.first is not None
    assert (found.first.call.node, found.first.sizes) == ("copied", "batch 16")
    assert [(each.sizes, each.above, each.first) for each in found.sizes] == [
        ("batch 1", 0, ""),
        ("batch 4", 0, ""),
        ("batch 16", 2, "copied"),
    ]
    assert len(found.calls) == 12
    assert "4 calls at 3 sizes, 2 above" in found.summary
    assert "the first is copied (t2t_beyond.copied.default) at batch 16" in found.summary
    assert {each.module: (each.calls, each.above) for each in found.modules} == {
        "": (4, 2),
        "first": (1, 0),
        "second": (1, 1),
    }
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [each["sizes"] for each in data["sizes"]] == ["batch 1", "batch 4", "batch 16"]
    assert {each["sizes"] for each in data["calls"] if not each["passed"]} == {"batch 16"}
    for text in (str(found), found.to_html()):
        assert "batch 16" in text
        assert "the first" in text


def test_one_size_is_named_and_has_no_column(beyond: nn.Module) -> None:
    found = torch2trt.compare(beyond, (X,), at={"batch": 9}, **COMPARED)
    assert "4 calls at batch 9, 2 above" in found.summary
    assert "sizes" not in str(found)
    assert "sizes" not in found.to_html()
    assert "at batch 4" in torch2trt.compare(beyond, (X,), **COMPARED).summary


def test_parts_find_what_the_whole_does_at_every_size(beyond: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch2trt.compare(beyond, (X,), at="all", **COMPARED)
    parts = []
    split = comparing._parts
    monkeypatch.setattr(comparing, "_AT_ONCE", 4096)
    monkeypatch.setattr(comparing, "_parts", lambda *given: parts.extend(split(*given)) or parts)
    assert torch2trt.compare(beyond, (X,), at="all", **COMPARED) == whole
    assert len(parts) > 1


def test_each_size_runs_in_its_profile(beyond: nn.Module) -> None:
    given: Any = {**COMPARED, "profiles": [{"batch": 1}, {"batch": (2, 3, 4)}]}
    found = torch2trt.compare(beyond, (torch.randn(6, 8),), at=[{"batch": 1}, {"batch": 4}], **given)
    assert [(each.sizes, each.profile) for each in found.sizes] == [("batch 1", "batch 1"), ("batch 4", "batch 2…3…4")]
    assert found.profile == ""
    assert "batch 2…3…4" in str(found)
    with pytest.raises(InputShapeError, match="no profile of the engine holds batch 6"):
        torch2trt.compare(beyond, (torch.randn(6, 8),), **given)
    with pytest.raises(InputShapeError, match="no profile of the engine holds batch 5"):
        torch2trt.compare(beyond, (X,), at={"batch": 5}, **given)


def test_the_sizes_of_examples(beyond: nn.Module) -> None:
    examples = [torch.randn(size, 8) for size in (2, 2, 5)]
    found = torch2trt.compare(beyond, examples=examples, at="all", precision="fp32", runs="reference")
    assert [(each.sizes, each.above) for each in found.sizes] == [("x_0 2", 0), ("x_0 5", 2)]


def test_what_a_module_changes_is_as_before_at_each_size() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(8))
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.sum(0)
            return x + self.seen

    found = torch2trt.compare(Counts(), (X,), at="all", **COMPARED)
    assert found.passed
    assert len(found.sizes) == 3


@pytest.mark.gpu
def test_the_engine_is_compared_at_every_size(beyond: nn.Module) -> None:
    found = torch2trt.compare(beyond, (X,), at="all", dynamic_shapes=BATCH, **QUICK)
    assert found.ran == "engine"
    assert [each.above for each in found.sizes] == [0, 0, 2]


# Reducing -------------------------------------------------------------------------------------------------------------


def test_a_failure_at_another_size_is_reduced(beyond: nn.Module, tmp_path: Path) -> None:
    path, told = tmp_path / "small.py", list[str]()
    given: Any = {"dynamic_shapes": BATCH, "imports": ["t2t_beyond"], **QUICK}
    with pytest.raises(NoFailureError):
        torch2trt.reduce(beyond, (X,), **given)
    found = torch2trt.reduce(beyond, (X,), at={"batch": 10}, path=path, report=told.append, **given)
    assert (found.failure.kind, found.calls, found.sizes) == ("wrong", 1, "batch 10")
    assert "calls fail at batch 10, wrong" in told[0]
    assert "still fail at batch 10" in str(found)
    assert found.to_json()["sizes"] == "batch 10"
    assert [value.shape for value in found.script.inputs.values()] == [(10, 8)]
    assert [value.shape for value in found.script.example.values()] == [(4, 8)]
    assert path.read_text().startswith('"""1 of 4 calls of Beyond at batch 10: wrong')
    shown = run_script(path)
    assert shown.returncode == 1
    assert "Reduced: failed" in shown.stdout


def test_what_fails_whatever_the_size_is_static(beyond: nn.Module) -> None:
    seen = []

    def fails(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
        seen.append([len(value) for value in inputs])
        return "copied" in [node.name for node in api.capture(module, inputs).calls]

    found = torch2trt.reduce(beyond, (X,), at={"batch": 7}, fails=fails, dynamic_shapes=BATCH)
    assert found.script.load()["DYNAMIC_SHAPES"] is None
    assert found.script.example == {}
    assert seen
    assert all(sizes == [7] for sizes in seen)


def test_reducing_takes_one_combination_of_sizes(beyond: nn.Module) -> None:
    for at in ("all", [{"batch": 7}]):
        with pytest.raises(DynamicShapeError, match="takes one combination of sizes"):
            torch2trt.reduce(beyond, (X,), at=at, dynamic_shapes=BATCH)  # type: ignore[arg-type]


# The command line -----------------------------------------------------------------------------------------------------


def test_sizes_on_the_command_line(beyond: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str, code: int) -> Any:
        assert cli.main([*argv, "--input", "batch=1..4..16x8", "--precision", "fp32", "--json"]) == code
        return json.loads(capsys.readouterr().out)

    compare = ["compare", "t2t_beyond:Beyond", "--runs", "reference"]
    assert run(*compare, code=0)["sizes"][0]["sizes"] == "batch 4"
    found = run(*compare, "--at", "batch=2", "--at", "batch=8", code=1)["sizes"]
    assert [(each["sizes"], each["above"]) for each in found] == [("batch 2", 0), ("batch 8", 2)]
    assert [each["sizes"] for each in run(*compare, "--at", "all", code=1)["sizes"]] == [
        *("batch 1", "batch 4", "batch 16")
    ]
    assert run(*compare, "--at", "batch=1..2..3", code=2)["error"]["code"] == "T2T107"
    assert run(*compare, "--at", "n=3", code=2)["error"]["code"] == "T2T105"
    reduce = ["reduce", "t2t_beyond:Beyond", "-o", str(tmp_path / "small.py"), "--import", "t2t_beyond"]
    found = run(*reduce, "--at", "batch=8", "--optimization-level", "0", code=0)
    assert (found["sizes"], found["calls"], found["failure"]["kind"]) == ("batch 8", 1, "wrong")
