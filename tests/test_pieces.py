"""Modules that torch.export cannot capture whole, compiled in pieces."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from torch2trt.errors import CaptureError, DataDependentError, NoGPUError, TooSmallError, UnsupportedOpsError
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


def test_pieces_share_activations(forked: tuple[Forked, PiecewiseModule]) -> None:
    compiled = forked[1]
    with torch.no_grad():
        compiled.reference(10 * X.abs(), scale=3.0)
    assert len(compiled.engines) >= 3
    assert len({id(engine._session.pool) for engine in compiled.engines}) == 1


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


def test_compiling_says_so_and_fallback_refuses_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="torch2trt"):
        torch2trt.compile(Forked().eval(), (X,), **QUICK)
    assert "pieces" in caplog.text
    with pytest.raises(CaptureError):
        torch2trt.compile(Forked().eval(), (X,), fallback=False, **QUICK)
    with pytest.raises(CaptureError):
        torch2trt.explain(Forked().eval(), (X,), fallback=False)


class Cache:
    """A result of a class that torch.export does not know."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_what_torch_export_fails_at_for_other_reasons_is_compiled_in_pieces() -> None:
    class Keeps(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Cache((x.sin() * 2).cos() + 1), x.exp() * 3 - 1

    compiled = torch2trt.compile(Keeps().eval(), (X,), **QUICK)
    assert len(compiled.engines) == 1
    cache, found = compiled.reference(X)
    torch.testing.assert_close(cache.value, (X.sin() * 2).cos() + 1)
    torch.testing.assert_close(found, X.exp() * 3 - 1)
    assert "Cache" in str(torch2trt.explain(Keeps().eval(), (X,), **QUICK).to_json())
    with pytest.raises(CaptureError, match="Cache"):
        torch2trt.compile(Keeps().eval(), (X,), fallback=False, **QUICK)


def test_arguments_that_cannot_be_copied_are_refused_and_stay_as_they_are() -> None:
    class Appends(nn.Module):
        def forward(self, x: Tensor, cache: Cache) -> Tensor:
            cache.value = torch.cat([cache.value, (x.sin() * 2).cos() + 1])
            return cache.value.exp() * 3 - 1

    cache = Cache(X)
    with pytest.raises(CaptureError, match="a Cache among the arguments"):
        torch2trt.compile(Appends().eval(), (X, cache), **QUICK)
    assert cache.value is X


def test_what_has_nothing_for_an_engine_is_refused() -> None:
    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(int(x[0, 0]))

    with pytest.raises(CaptureError, match=r"in pieces: engines would get 0 calls \(min_segment is 1\)"):
        torch2trt.compile(Counts().eval(), (X.abs(),), **QUICK)


def test_why_pieces_failed_is_said() -> None:
    class Fails(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:
            found = super().forward(x)
            if len(found["rows"]) < 99:
                raise OverflowError("too few rows")
            return found

    with pytest.raises(DataDependentError, match="in pieces: OverflowError: too few rows") as caught:
        torch2trt.compile(Fails().eval(), (X,), **QUICK)
    assert isinstance(caught.value.__cause__, OverflowError)

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.airy_ai(x if x.sum() > 3 else -x)

    with pytest.raises(DataDependentError, match=r"in pieces: engines would get \d calls.*airy") as caught:
        torch2trt.compile(Odd().eval(), (X,), **(QUICK | {"min_segment": 9}))
    assert isinstance(caught.value.__cause__, UnsupportedOpsError)


def test_explain_names_each_break(capsys: pytest.CaptureFixture[str]) -> None:
    found = torch2trt.explain(Forked().eval(), (X,))
    assert found.graphs >= 2
    assert found.whole
    assert any("test_pieces.py" in each.source and each.reason for each in found.breaks)
    assert "cannot be captured whole" in str(found)
    data = json.loads(json.dumps(found.to_json()))
    assert data["breaks"][0]["source"]
    assert "why it breaks" in found.to_html()


def test_explain_says_where_each_piece_runs() -> None:
    class Odd(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return super().forward(torch.special.airy_ai(self.first(x)))

    found = torch2trt.explain(Odd().eval(), (X,), min_segment=1)
    assert len(found.pieces) == found.graphs
    assert [(where, count) for each in found.pieces for where, count in each.segments] == found.segments
    assert "aten.special_airy_ai.default" in [each.op for each in found.in_torch]
    assert all("test_pieces.py" in each.begin for each in found.pieces)
    data = json.loads(json.dumps(found.to_json()))
    for first in data["pieces"]:
        assert first["placements"]
        assert first["name"] in str(found)
        assert first["name"] in found.to_html()
    assert "engine (" in found.to_html()
    refused = torch2trt.explain(Odd().eval(), (X,), min_segment=99)
    assert all("not worth an engine" in each.refusal for each in refused.pieces if each.in_torch)


def test_explain_leaves_what_is_compiled_alone(forked: tuple[Forked, PiecewiseModule]) -> None:
    module, compiled = forked
    before = len(compiled.engines)
    torch2trt.explain(module, (X,))
    compiled.reference(X, scale=3.0)
    assert len(compiled.engines) == before


def test_a_class_has_as_many_compiled_modules_as_one_likes() -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        kept = [torch2trt.compile(Forked().eval(), (X,), **QUICK) for _ in range(3)]
    assert {len(each.engines) for each in kept if isinstance(each, PiecewiseModule)} == {2}


def test_other_sizes_are_right_and_engines_limited(caplog: pytest.LogCaptureFixture) -> None:
    module = Forked().eval()
    with torch._dynamo.config.patch(recompile_limit=3):
        compiled = torch2trt.compile(module, (X,), **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    rows = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    counts = []
    for count in (4, *range(1, 10), 2):
        with torch.no_grad():
            torch.testing.assert_close(compiled.reference(rows[:count]), module(rows[:count]))
        counts.append(len(compiled.engines))
    assert counts[0] < counts[1] < counts[2]
    assert counts[-1] == counts[-3]
    assert caplog.text.count("what is new runs in eager") == 1
    assert compiled.verify(rows).passed


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


class Detector(nn.Module):
    """As torchvision's: its anchors are tensors that do not move with it, and the number of boxes depends on data."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores = nn.Conv2d(3, 1, 3, padding=1)
        self.shifts = nn.Conv2d(3, 4, 3, padding=1)
        self.anchors = [torch.tensor([-8.0, -4.0, 8.0, 4.0])]

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.detect(image) for image in images]

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        self.anchors = [anchor.to(image.device) for anchor in self.anchors]
        scores = self.scores(image[None]).sigmoid().flatten()
        shifts = self.shifts(image[None]).permute(0, 2, 3, 1).reshape(-1, 4).tanh()
        boxes = shifts + self.anchors[0] * torch.tensor([1.0, 2.0, 1.0, 2.0]).to(image.device)
        if image[0, 0, 0] > 0:
            scores = scores * 0.9
        keep = image[0].flatten() > 0
        return {"scores": scores[keep] * 2, "boxes": boxes[keep] + 1}


def check_detector(device: str) -> PiecewiseModule:
    module, draw = Detector().eval().to(device), torch.Generator().manual_seed(0)

    def images(*sizes: int) -> list[Tensor]:
        return [torch.randn(3, size, 8, generator=draw).to(device) for size in sizes]

    compiled = torch2trt.compile(module, (images(8),), **QUICK)
    assert isinstance(compiled, PiecewiseModule)
    for each in (images(8, 12), images(12, 16)):
        with torch.no_grad():
            found, wanted = compiled.reference(each), module(each)
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
    assert compiled.verify(images(8)).passed
    return compiled


def test_anchors_and_boxes() -> None:
    assert not check_detector("cpu").refusals


@pytest.mark.gpu
def test_anchors_and_boxes_on_the_gpu() -> None:
    compiled = check_detector("cuda")
    assert not compiled.refusals, "\n".join(map(str, compiled.refusals))
    assert len(compiled.engines) >= 2


@pytest.mark.gpu
def test_pieces_run_on_the_gpu() -> None:
    module = Forked().eval().cuda()
    compiled = torch2trt.compile(module, (X.cuda(),), **QUICK)
    for x in (X.cuda(), 10 * X.abs().cuda()):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)
    assert compiled.verify(X.cuda()).passed
    # All on one stream, and so in one set of contexts.
    (pool,) = {id(engine._session.pool): engine._session.pool for engine in compiled.engines}.values()
    (own,) = pool._sets
    assert len(own._of) >= len(compiled.engines) >= 3


def test_what_is_not_worth_an_engine_is_left_to_eager() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.exp().sin().cos().tanh().sigmoid().relu() * 2
            return x + 1 if x.sum() > 3 else x

    settings = {**QUICK, "min_segment": 6}
    compiled = torch2trt.compile(Odd().eval(), (X,), **settings)
    assert [engine.report["calls"] for engine in compiled.engines] == [9]
    assert {type(error) for error in compiled.refusals} == {TooSmallError}
    assert compiled.verify(X).passed
    explained = torch2trt.explain(Odd().eval(), (X,), min_segment=6)
    assert "does not pay (min_segment is 6)" in str(explained)
