"""Comparing call by call: where an error begins, what overflows, and that the whole is the module's own error."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import torch2trt
from torch2trt import api
from torch2trt.converters import registry
from torch2trt.errors import UnsupportedOpsError
from torch2trt.graph.marking import marked
from torch2trt.settings import Settings
from torch2trt.sizes import TensorSpec
from torch2trt.tools import compare as comparing
from torch2trt.trt import flavour as flavours
from torch2trt.trt.network import Network

aten = torch.ops.aten


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sin()


class Net(nn.Module):
    """Two blocks, a result in parts, an index, and a table made of a size alone."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.scale = Block(), Block(), scale
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.second(self.first(x) * self.scale).chunk(2, -1)
        return a + b + torch.arange(x.shape[0]).unsqueeze(-1), b.argmax(-1)


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
BATCH = Dim("batch", min=1, max=8)


@pytest.fixture
def wrong_sin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter with a defect."""

    def wrong(net: Network, input: Any) -> Any:
        return net.activation("SIGMOID", input)

    own = registry.find(aten.sin.default)
    assert own is not None
    found = dataclasses.replace(own, function=wrong)
    monkeypatch.setattr(
        registry, "find", lambda target, find=registry.find: found if target is own_op else find(target)
    )


own_op = aten.sin.default


def test_every_call_is_compared_in_order() -> None:
    found = torch2trt.compare(Net(), (X,), precision="fp32", runs="reference")
    assert found.passed
    assert found.first is None
    assert found.overflows == []
    ops = [each.call.op for each in found.calls]
    assert [ops.count(op) for op in ("aten.linear.default", "aten.sin.default", "operator.getitem")] == [2, 2, 2]
    assert all(0 <= each.max_rel_error < 1e-6 for each in found.calls)
    assert {each.call.where for each in found.calls} == {"engine"}
    modules = {each.module: each.calls for each in found.modules}
    assert list(modules)[:3] == ["", "first", "first.linear"]
    assert modules[""] == len(found.calls)
    assert modules["first"] == modules["second"] == 2
    indices = next(each for each in found.calls if each.dtype == "int64")
    assert indices.limit is None
    assert indices.largest <= 3


def test_the_first_call_that_is_wrong_is_named(wrong_sin: None) -> None:
    found = torch2trt.compare(Net(), (X,), precision="fp32", runs="reference")
    assert not found.passed
    assert found.first is not None
    assert found.first.call.op == "aten.sin.default"
    assert found.first.call.module == "first"
    assert "test_compare.py" in found.first.call.source
    assert "the first is sin (aten.sin.default) in first" in found.summary
    assert found.first.call.source in str(found)
    assert {each.module: each.above > 0 for each in found.modules}["first.linear"] is False
    assert found.to_json()["first"] == "sin"


def test_overflow_is_pointed_out() -> None:
    x = X.clone()
    x[2] = 3e4
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    found = torch2trt.compare(module, (x,), precision="fp16", runs="reference")
    first = found.overflows[0]
    assert first.limit == 65504
    assert first.largest > 65504
    assert first.not_finite > 0
    assert first.max_rel_error == math.inf
    assert "float16 ends at 6.55e+04" in first.note
    assert "overflow" in found.summary
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["overflows"][0] == first.call.node
    assert torch2trt.compare(module, (x,), precision="bf16", runs="reference").overflows == []


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("settings", [{}, {"run_in_torch": ["second"], "min_segment": 1}], ids=["whole", "hybrid"])
def test_parts_find_what_the_whole_does(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], dynamic: bool
) -> None:
    shapes = {"x": {0: BATCH}} if dynamic else None
    runs: Any = {"dynamic_shapes": shapes, "precision": "fp16", "runs": "reference", **settings}
    whole = torch2trt.compare(Net(), (X,), **runs)
    assert whole.passed
    wheres = {each.call.module: each.call.where for each in whole.calls}
    assert wheres["second.linear"] == ("torch" if settings else "engine")
    assert wheres["first.linear"] == "engine"
    monkeypatch.setattr(comparing, "_AT_ONCE", 1024)
    assert torch2trt.compare(Net(), (X,), **runs) == whole


def test_the_last_errors_are_those_of_verify() -> None:
    settings: Any = {"precision": "fp16", "optimization_level": 0, "progress": "none"}
    compiled = torch2trt.compile(Net(), (X,), **settings)
    error = compiled.verify(X).rows[0].max_abs_error if not torch.cuda.is_available() else None
    found = torch2trt.compare(Net(), (X,), runs="reference", **settings)
    if error is not None:
        assert any(abs(each.max_abs_error - error) <= 1e-12 for each in found.calls)
    assert found.precision == "fp16"


def test_a_tolerance_of_ones_own() -> None:
    found = torch2trt.compare(Net(), (X,), precision="fp16", runs="reference", tolerance=1e-5)
    assert found.tolerance == 1e-5
    assert not found.passed


def test_what_compiles_in_no_part_is_an_error() -> None:
    class Det(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x)

    with pytest.raises(UnsupportedOpsError):
        torch2trt.compare(Det().eval(), (torch.eye(3),), runs="reference")


def test_texts_are_escaped() -> None:
    found = torch2trt.compare(Net(), (X,), name="<b>", precision="fp32", runs="reference")
    assert "<b>" not in found.to_html()
    assert "&lt;b&gt;" in found._repr_html_()


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"run_in_torch": ["second"], "min_segment": 1}], ids=["whole", "hybrid"])
def test_the_engine_itself_is_compared(settings: dict[str, Any]) -> None:
    shapes = {"x": {0: BATCH}}
    found = torch2trt.compare(Net(), (X,), dynamic_shapes=shapes, precision="fp16", optimization_level=0, **settings)
    assert found.ran == "engine"
    assert found.passed
    assert max(each.max_rel_error for each in found.calls) > 0


@pytest.mark.parametrize("settings", [{}, {"run_in_torch": ("second",), "min_segment": 1}], ids=["whole", "hybrid"])
def test_what_is_marked_builds(settings: dict[str, Any]) -> None:
    chosen = Settings(precision="fp16", optimization_level=0, progress="none", **settings)
    program = api.optimize(api.capture(Net(), (X,), dynamic_shapes={"x": {0: BATCH}}), chosen)
    calls = [
        node for node in program.calls if not program.is_size(node) and isinstance(program.result(node), TensorSpec)
    ]
    part = marked(program, calls)
    compiled = api.build(part, flavours.load(), chosen)
    assert compiled.report["engines"] == (2 if settings else 1)
    found = compiled.reference(X)
    assert [tuple(value.shape) for value in found] == [program.spec(node).at({"batch": 4}) for node in calls]
    assert compiled.verify(X).passed
