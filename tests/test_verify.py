"""Running the network without a GPU, and how far results are from the truth."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pretending import (
    BATCH,
    leaf,
    make_module,
    make_signature,
    no_gpu,
    running,
)
from torch2trt.errors import (
    InputShapeError,
    InputStructureError,
    ProgramMissingError,
)
from torch2trt.frontend.export import capture
from torch2trt.graph.program import Program
from torch2trt.graph.signature import ConstantLeaf, SizeLeaf
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.verification import compare
from torch2trt.settings import Settings
from torch2trt.tolerance import effective_precision, tolerance


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        y = self.linear(x) * scale
        return {"y": y, "best": y.argmax(-1)}


def interpret(program: Program, flavour: str, settings: Settings) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Stands for the reference interpreter: the Program itself, executed by torch."""
    assert flavour == "tensorrt_rtx"
    names = [leaf.name for leaf in program.signature.tensor_inputs]
    return lambda named: dict(zip(program.output_names, program.run(*(named[name] for name in names)), strict=True))


@pytest.fixture(scope="module")
def scaled() -> tuple[Scaled, Program]:
    module = Scaled().eval()
    return module, capture(module, (torch.randn(4, 3),), {"scale": 2.0})


def test_reference_has_the_modules_signature(scaled: tuple[Scaled, Program], tmp_path: Path) -> None:
    original, program = scaled
    module = make_module(program.signature, program=program, interpret=interpret)
    x = torch.randn(4, 3, requires_grad=True)
    expected = original(x, scale=2.0)
    for each in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        result = each.reference(x, scale=2.0)
        torch.testing.assert_close(result, {key: value.detach() for key, value in expected.items()})
        assert not result["y"].requires_grad
    module.save(tmp_path / "net.t2t", program=True)
    loaded = EngineModule.load(tmp_path / "net.t2t", interpret=interpret)
    torch.testing.assert_close(loaded.reference(x, scale=2.0)["y"], expected["y"].detach())
    with pytest.raises(InputStructureError):
        module.reference(x, scale=3.0)
    with pytest.raises(InputShapeError):
        module.reference(x[:2], scale=2.0)


def test_reference_without_a_program() -> None:
    with pytest.raises(ProgramMissingError, match=r"\[T2T604\] net: the artifact does not carry its Program"):
        make_module(interpret=interpret).reference(torch.zeros(1, 3))
    with pytest.raises(ProgramMissingError, match="without the reference interpreter"):
        make_module().reference(torch.zeros(1, 3))


@no_gpu
def test_verify_against_float64(scaled: tuple[Scaled, Program]) -> None:
    original, program = scaled
    exact = copy.deepcopy(original).double()
    module = make_module(
        program.signature, program=program, interpret=interpret, truth=lambda x, scale: exact(x.double(), scale=scale)
    )
    found = module.verify(torch.randn(4, 3), scale=2.0)
    assert found.passed
    assert found.ran == "reference"
    assert [row.name for row in found.rows] == [leaf.name for leaf in program.signature.tensor_outputs]
    assert 0 < found.rows[0].max_rel_error <= 1e-6
    assert found.rows[1].max_rel_error == 0
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["passed"] is True
    text = str(found)
    assert "net: passed (reference interpreter, fp32)" in text
    assert all(row.name in text for row in found.rows)


@no_gpu
def test_verify_finds_a_wrong_network(scaled: tuple[Scaled, Program]) -> None:
    original, program = scaled
    module = make_module(
        program.signature,
        program=program,
        interpret=interpret,
        truth=lambda x, scale: original(x, scale=scale * 1.01),
    )
    found = module.verify(torch.randn(4, 3), scale=2.0)
    assert not found.passed
    assert found.rows[0].max_rel_error == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert "failed" in str(found)


def test_verify_on_tensors_moves_them_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = running(make_module(truth=lambda x: 2 * x.double()), lambda x: 2 * x)
    found = module.verify(torch.randn(4, 3))
    assert (found.ran, found.passed) == ("engine", True)


def test_verify_compares_sizes_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    signature = make_signature([leaf("x", BATCH)], [SizeLeaf(BATCH), ConstantLeaf(3)], result=(0, 1), batch=(1, 2, 8))
    right = running(make_module(signature, truth=lambda x: (len(x), 3)), lambda x: ())
    assert right.verify(torch.zeros(5)).passed
    wrong = running(make_module(signature, truth=lambda x: (len(x) + 1, 3)), lambda x: ())
    assert not wrong.verify(torch.zeros(5)).passed


def test_errors_are_relative_to_the_scale_of_the_truth() -> None:
    row = compare("y", torch.tensor([100.0, 0.5]), torch.tensor([100.0, 0.0], dtype=torch.float64), 1e-2)
    assert (row.max_abs_error, row.max_rel_error, row.passed) == (0.5, 0.005, True)
    zeros = compare("y", torch.tensor([1e-6]), torch.zeros(1), 1e-4)
    assert zeros.max_rel_error == pytest.approx(1e-6)
    assert compare("y", torch.zeros(0, 3), torch.zeros(0, 3), 0.0).passed


def test_numbers_that_are_not_finite() -> None:
    inf, nan = math.inf, math.nan
    same = compare("y", torch.tensor([nan, inf, -inf, 1.0]), torch.tensor([nan, inf, -inf, 1.0]), 0.0)
    assert same.passed
    for result, truth in ((nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, inf), (inf, -inf)):
        row = compare("y", torch.tensor([result, 1.0]), torch.tensor([truth, 1.0]), 1e9)
        assert row.max_rel_error == inf
        assert not row.passed


def test_integers_and_booleans_count_the_elements_that_differ() -> None:
    row = compare("i", torch.tensor([1, 2, 3, 9]), torch.tensor([1, 2, 3, 4]), 1e-1)
    assert (row.max_abs_error, row.max_rel_error, row.passed) == (5.0, 0.25, False)
    assert compare("b", torch.tensor([True, False]), torch.tensor([True, False]), 0.0).passed
    assert not compare("s", torch.zeros(2), torch.zeros(3), 1e9).passed


def test_tolerances() -> None:
    assert tolerance("tf32") == 5e-3
    assert tolerance("tf32", reference=True) == tolerance("fp32") == 1e-4
    assert tolerance("fp16", reference=True) == 2e-2
    assert effective_precision(None, [torch.float32, torch.int64]) == "tf32"
    assert effective_precision(None, [torch.float32, torch.float16]) == "fp16"
    assert effective_precision(None, [torch.float16, torch.bfloat16]) == "bf16"
    assert effective_precision("fp32", [torch.float16]) == "fp32"
