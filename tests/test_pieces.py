"""Modules that torch.export cannot capture whole, compiled in pieces."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from torch2trt.errors import ArtifactWriteError, CaptureError, NoGPUError
from torch2trt.pieces import PiecewiseModule

QUICK: dict[str, Any] = {"precision": "fp32", "optimization_level": 0, "progress": "none", "min_segment": 1}


class Forked(nn.Module):
    """Takes one way or another by the values of its input, which no trace can."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: float = 2.0) -> dict[str, Any]:
        x = self.first(x).relu()
        y = self.up(x).tanh() * scale if x.sum() > 10 else self.down(x).sigmoid() - scale
        return {"y": y, "rows": y[y.sum(1) > 0]}


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def forked() -> tuple[Forked, PiecewiseModule]:
    module = Forked().eval()
    compiled = torch2trt.compile(module, (X,), {"scale": 3.0}, **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    return module, compiled


def test_every_way_is_right(forked: tuple[Forked, PiecewiseModule]) -> None:
    module, compiled = forked
    assert len(compiled.engines) >= 2
    for x in (X, 10 * X.abs(), -X.abs(), torch.zeros(4, 8)):
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(x, scale=3.0), module(x, scale=3.0))
    before = len(compiled.engines)
    with torch.no_grad():
        compiled.reference(X, scale=3.0)
    assert len(compiled.engines) == before  # known ways build nothing


def test_verify_report_and_looks(forked: tuple[Forked, PiecewiseModule]) -> None:
    compiled = forked[1]
    found = compiled.verify(X, scale=3.0)
    assert found.passed
    assert [row.name for row in found.rows] == ["output0", "output1"]
    assert compiled.report["engines"] == len(compiled.engines)
    assert compiled.report["layers"] > 2
    assert "engines" in repr(compiled)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_call_needs_a_gpu(forked: tuple[Forked, PiecewiseModule]) -> None:
    with pytest.raises(NoGPUError, match="reference"):
        forked[1](X, scale=3.0)


def test_it_cannot_be_saved(forked: tuple[Forked, PiecewiseModule], tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match="Python code joins"):
        forked[1].save(tmp_path / "forked.t2t")


def test_compiling_says_so_and_fallback_refuses_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        torch2trt.compile(Forked().eval(), (X,), **QUICK)
    assert "pieces" in caplog.text
    with pytest.raises(CaptureError):
        torch2trt.compile(Forked().eval(), (X,), fallback=False, **QUICK)
    with pytest.raises(CaptureError):
        torch2trt.explain(Forked().eval(), (X,), fallback=False)


def test_what_has_nothing_for_an_engine_is_refused() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(int(x[0, 0]))

    with pytest.raises(CaptureError):
        torch2trt.compile(Counts().eval(), (X.abs(),), **QUICK)


def test_explain_names_each_break(capsys: pytest.CaptureFixture[str]) -> None:
    found = torch2trt.explain(Forked().eval(), (X,))
    assert found.graphs >= 2
    assert found.whole
    assert any("test_pieces.py" in each.source and each.reason for each in found.breaks)
    assert "cannot be captured whole" in str(found)
    data = json.loads(json.dumps(found.to_json()))
    assert data["breaks"][0]["source"]
    assert "why it breaks" in found.to_html()


@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_a_detector_of_torchvision() -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    module = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    images = [torch.rand(3, 320, 320)]
    compiled = torch2trt.compile(module, (images,), **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    assert len(compiled.engines) >= 3
    with torch.no_grad():
        (expected,) = module(images)
    (found,) = compiled.reference(images)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_pieces_run_on_the_gpu() -> None:
    module = Forked().eval().cuda()
    compiled = torch2trt.compile(module, (X.cuda(),), **QUICK)
    for x in (X.cuda(), 10 * X.abs().cuda()):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)
    assert compiled.verify(X.cuda()).passed
