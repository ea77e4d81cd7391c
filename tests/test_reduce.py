"""Reducing: what fails is cut to the calls that make it fail, and the script that is written shows it."""

from __future__ import annotations

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
from torch2trt.errors import NoFailureError
from torch2trt.tools.reduce import Failure, smallest
from torch2trt.tools.script import Recording

# Operators whose converters have defects, in a module that children import too.
DEFECTS = """
import os
import torch
import torch2trt


def defect(name, convert):
    operator = torch.library.custom_op(f"t2t_defects::{name}", lambda x: x * 1.5, mutates_args=(),
                                       schema="(Tensor x) -> Tensor")
    operator.register_fake(torch.empty_like)
    convert.__name__ = name
    torch2trt.converter(getattr(torch.ops.t2t_defects, name).default)(convert)


defect("wrong", lambda net, x: net.activation("RELU", x))
defect("broken", lambda net, x: net.no_such_layer(x))
defect("crash", lambda net, x: os.abort())
"""

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0}
X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def defects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with importable(tmp_path_factory.mktemp("defects"), "t2t_defects", DEFECTS):
        yield


class Net(nn.Module):
    """An operator amid others: branches, a result in parts, a weight with a name that modules have already."""

    def __init__(self, operator: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.operator = operator
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.norm(self.linear(x)).chunk(2, -1)
        a = torch.cat([a.sin(), b.cos()], -1).view(x.shape[0], 2, 4)
        if self.operator:
            a = getattr(torch.ops.t2t_defects, self.operator)(a)
        return (a * torch.arange(4)).flatten(1).softmax(-1)


def test_a_wrong_call_is_found_and_shown(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "small.py"
    found = torch2trt.reduce(
        Net("wrong"), (X,), path=path, imports=["t2t_defects"], report=told.append,
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=8)}}, **QUICK,
    )  # fmt: skip
    assert found.failure.kind == "wrong"
    assert found.calls == 1
    assert found.calls_before > 8
    assert "torch.ops.t2t_defects.wrong.default(view)" in path.read_text()
    assert "test_reduce.py" in path.read_text()
    assert told[0].startswith(f"Net: {found.calls_before} calls fail, wrong: relative error")
    assert told[-1] == f"1 of {found.calls_before} calls still fail"
    assert found.to_json()["attempts"] == found.attempts < 12
    assert f"python {path} shows it" in str(found)
    shown = run_script(path)
    assert shown.returncode == 1
    assert "Reduced: failed" in shown.stdout


def test_a_crash_is_found_in_children() -> None:
    module = nn.Sequential(nn.Sigmoid(), Only("crash")).eval()
    found = torch2trt.reduce(module, (X,), imports=["t2t_defects"], **QUICK)
    assert (found.failure.kind, found.failure.what) == ("crash", "SIGABRT")
    assert found.calls == 1
    assert found.path is None


class Only(nn.Module):
    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = getattr(torch.ops.t2t_defects, operator)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x)


def test_an_exception_is_found_by_its_class() -> None:
    found = torch2trt.reduce(Net("broken"), (X,), imports=["t2t_defects"], **QUICK)
    assert (found.failure.kind, found.failure.what) == ("error", "ContractError")
    assert "no_such_layer" in found.failure.detail
    assert found.calls == 1
    assert list(found.script.inputs) == ["view"]


def test_the_caller_may_say_what_fails() -> None:
    def has(*names: str) -> Any:
        def fails(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
            calls = [node.name for node in api.capture(module, inputs).calls]
            return all(any(name in call for call in calls) for name in names)

        return fails

    found = torch2trt.reduce(Net(), (X,), fails=has("batch_norm", "softmax"))
    assert found.failure.kind == "asked for"
    assert found.calls == 2
    assert list(found.script.inputs) == ["linear", "flatten"]
    assert set(found.script.weights) >= {"p_norm_weight", "b_norm_running_mean"}
    assert [value.shape for value in found.script.inputs.values()] == [(4, 8), (4, 8)]
    results = found.script.module()(*found.script.inputs.values())
    torch.testing.assert_close(results[-1], Net()(X), rtol=0, atol=0)


def test_what_does_not_fail_is_an_error() -> None:
    with pytest.raises(NoFailureError, match="Net: does not fail"):
        torch2trt.reduce(Net(), (X,), fails=lambda module, inputs: False)
    with pytest.raises(NoFailureError, match="within the tolerance"):
        torch2trt.reduce(nn.ReLU().eval(), (X,), **QUICK)


@pytest.mark.parametrize("static", [True, False])
def test_all_calls_as_a_script_are_the_module(static: bool) -> None:
    double = Dim("half", min=1, max=8)

    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(6.0))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x.reshape(-1, y.shape[0], 3).masked_fill(x.reshape(2, -1, 3) > 1, -float("inf"))
            return torch.cat([x, torch.zeros(2, y.shape[0], 3, dtype=torch.float32)], 1) + self.table[1:4]

    x, y = torch.randn(6, 3), torch.randn(3)
    shapes = {"x": {0: 2 * double}, "y": {0: double}}
    program = api.capture(Shapes().eval(), (x, y), dynamic_shapes=shapes)
    recording = Recording(program, [x, y])
    made = recording.script(recording.calls, title="all", settings={}, tolerance=None, static=static)
    assert made is not None
    torch.testing.assert_close(made.module()(*made.inputs.values())[-1], Shapes()(x, y), rtol=0, atol=0)
    names = made.load()
    if static:
        assert list(made.inputs) == ["x"]
        assert names["DYNAMIC_SHAPES"] is None
    else:
        longer = torch.randn(10, 3), torch.randn(5)
        torch.testing.assert_close(made.module()(*longer)[-1], Shapes()(*longer), rtol=0, atol=0)
        again = api.capture(made.module(), (x, y), dynamic_shapes=names["DYNAMIC_SHAPES"])
        assert [str(size) for size in again.signature.tensor_inputs[0].spec.shape] == ["2*half", "3"]


@pytest.mark.parametrize("needed", [{0}, {9}, {3, 4}, {0, 9}, {1, 5, 8}, set(range(10))])
def test_nothing_is_left_that_can_go(needed: set[int]) -> None:
    tried = 0

    def fails(items: list[Any]) -> bool:
        nonlocal tried
        tried += 1
        return needed <= set(items)

    numbers: list[Any] = list(range(10))
    assert smallest(numbers, fails) == sorted(needed)
    assert tried < 60


def test_failures_of_another_kind_are_others() -> None:
    assert Failure("error", "NetworkError", "one").is_like(Failure("error", "NetworkError", "two"))
    assert not Failure("error", "NetworkError").is_like(Failure("error", "CaptureError"))
    assert not Failure("wrong").is_like(None)
