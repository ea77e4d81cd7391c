"""Modules in pieces, saved and loaded: what the file's engines stand for, and what they are never mistaken for."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch2trt
from tests.artifacts import make_artifact, with_manifest
from tests.piecewise import BIG, Counts, Own, check, counting, own, pieces, regions, saved
from tests.scripts import run_script
from tests.test_pieces import Detector, Forked, X
from torch2trt.errors import (
    ArtifactMismatchError,
    ArtifactWriteError,
    ProgramMissingError,
    UnsupportedOpsError,
)
from torch2trt.frontend.dynamo import Region
from torch2trt.pieces import PiecewiseModule
from torch2trt.runtime import pieces_file
from torch2trt.runtime.module import EngineModule

__all__ = ["saved"]  # a fixture, which tests name


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return counting(monkeypatch)


# What is in the file --------------------------------------------------------------------------------------------------

_SCRIPT = """
import json, torch, torch2trt
from tests.test_pieces import Forked, X
from torch2trt import api, backend

def never(*args, **kwargs):
    raise AssertionError("what is in the file is captured or built")

backend.capture = api.capture = api.optimize = api.build = never
module = Forked().eval()
loaded = torch2trt.load({path!r}, module=module)
listed = len(loaded.engines)
results = [loaded.reference(x) for x in (X, 10 * X.abs())]
torch.save(results, {results!r})
print(json.dumps([listed, loaded.report["engines"], loaded.verify(X).passed, loaded.settings.precision]))
"""


def test_a_fresh_process_builds_and_captures_nothing(saved: Path, tmp_path: Path) -> None:
    path, results = tmp_path / "load.py", tmp_path / "results.pt"
    path.write_text(_SCRIPT.format(path=str(saved), results=str(results)))
    done = run_script(path)
    assert done.returncode == 0, done.stderr
    assert "is built" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [3, 3, True, "fp32"]
    module = Forked().eval()
    for x, found in zip((X, BIG), torch.load(results), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, module(x), rtol=1e-4, atol=1e-5)


def test_without_programs_the_reference_captures_and_builds_nothing(tmp_path: Path, counts: Counts) -> None:
    module = Forked().eval()
    pieces(module).save(tmp_path / "forked.t2t")
    before = counts.built
    loaded = torch2trt.load(tmp_path / "forked.t2t", module=module)
    assert [engine.has_program for engine in loaded.engines] == [False, False]
    with pytest.raises(ProgramMissingError, match="loaded without"):
        loaded.save(tmp_path / "again.t2t", program=True)
    if not torch.cuda.is_available():
        check(loaded, module, X, X)
        assert (counts.built, counts.captured) == (before, before + 2)
        assert len(loaded.engines) == 2


def test_equal_modules_are_equal_files(saved: Path, tmp_path: Path) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(saved.read_bytes(), module=module)
    assert loaded.name == "Forked"
    loaded.save(tmp_path / "before.t2t", program=True)
    check(loaded, module, BIG, X)
    loaded.save(tmp_path / "after.t2t", program=True)
    assert saved.read_bytes() == (tmp_path / "before.t2t").read_bytes() == (tmp_path / "after.t2t").read_bytes()


def test_what_is_left_to_eager_is_not_tried_again(
    tmp_path: Path, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return super().forward(torch.special.airy_ai(x))

    module = Odd().eval()
    compiled = pieces(module)
    assert len(compiled.refusals) == 1
    compiled.save(tmp_path / "odd.t2t", program=True)
    before = dataclasses.replace(counts)
    loaded = torch2trt.load(tmp_path / "odd.t2t", module=module)
    (refusal,) = loaded.refusals
    assert isinstance(refusal, UnsupportedOpsError)
    assert str(refusal) == str(compiled.refusals[0])
    check(loaded, module, X)
    assert counts == before
    assert len(loaded.refusals) == 1
    assert "is left to eager" in caplog.text
    assert "is built" not in caplog.text


def test_another_tensorrt_tries_what_one_refuses(tmp_path: Path, counts: Counts) -> None:
    class Odd(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return super().forward(torch.special.airy_ai(x))

    module = Odd().eval()
    pieces(module).save(tmp_path / "odd.t2t", program=True)
    file = pieces_file.load(tmp_path / "odd.t2t")
    older = {key: refusal._replace(flavour="tensorrt_rtx 1.0") for key, refusal in file.refusals.items()}
    engines = {key: (loaded.artifact, loaded.program()) for key, loaded in file.engines.items()}
    pieces_file.save(tmp_path / "older.t2t", file.name, file.settings, engines, older)
    before = dataclasses.replace(counts)
    loaded = torch2trt.load(tmp_path / "older.t2t", module=module)
    check(loaded, module, X)
    assert (counts.built, counts.captured) == (before.built + 1, before.captured + 1)
    assert len(loaded.refusals) == 1
    loaded.save(tmp_path / "again.t2t", program=True)
    assert (tmp_path / "again.t2t").read_bytes() == (tmp_path / "odd.t2t").read_bytes()


def test_copies_share_engines(saved: Path, tmp_path: Path, counts: Counts) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(saved, module=module)
    copied = copy.deepcopy(nn.Sequential(loaded))[0]
    assert isinstance(copied, PiecewiseModule)
    check(copied, module, X, BIG)
    assert counts.captured == 0
    copied.save(tmp_path / "copied.t2t", program=True)
    assert (tmp_path / "copied.t2t").read_bytes() == saved.read_bytes()


def test_a_piece_that_is_a_hybrid(tmp_path: Path, counts: Counts) -> None:
    class Mixed(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return super().forward(torch.special.airy_ai(self.first(x)))

    module = Mixed().eval()
    compiled = pieces(module)
    assert compiled.report["calls_in_torch"] == 1
    compiled.save(tmp_path / "mixed.t2t", program=True)
    before = dataclasses.replace(counts)
    loaded = torch2trt.load(tmp_path / "mixed.t2t", module=module)
    check(loaded, module, X)
    assert counts == before
    assert loaded.report == compiled.report


def test_lists_of_images(tmp_path: Path, counts: Counts) -> None:
    module, draw = Detector().eval(), torch.Generator().manual_seed(0)
    images = [torch.randn(3, size, 8, generator=draw) for size in (8, 12, 8)]
    compiled = pieces(module, images)
    compiled.save(tmp_path / "detector.t2t", program=True)
    before = dataclasses.replace(counts)
    torch._dynamo.reset()
    again = Detector().eval()
    loaded = torch2trt.load(tmp_path / "detector.t2t", module=again)
    check(loaded, again, images)
    assert counts == before


@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_a_detector_of_torchvision(tmp_path: Path, counts: Counts) -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    module = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    images = [torch.rand(3, 320, 320)]
    compiled = pieces(module, images)
    compiled.save(tmp_path / "detector.t2t", program=True)
    before = dataclasses.replace(counts)
    torch._dynamo.reset()
    loaded = torch2trt.load(tmp_path / "detector.t2t", module=module)
    (found,), (wanted,) = loaded.reference(images), compiled.reference(images)
    assert counts == before
    torch.testing.assert_close(found, wanted)


# What is not --------------------------------------------------------------------------------------------------------


def test_other_weights_are_built_and_right(saved: Path, counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    module = Forked().eval()
    with torch.no_grad():
        module.up.weight.mul_(2)
        module.down.bias.sub_(1)
    loaded = torch2trt.load(saved, module=module)
    check(loaded, module, X, BIG, X)
    assert counts.built == 2  # both ways; what comes before is the same
    assert len(loaded.engines) == 5
    assert caplog.text.count("what is not in the file is built now") == 1
    assert "inputs of [4, 8]: its weights are others" in caplog.text
    assert loaded.verify(X).passed


def test_weights_that_change_later(saved: Path, tmp_path: Path, counts: Counts) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(saved, module=module)
    check(loaded, module, X)
    assert counts.built == 0
    with torch.no_grad():
        module.first.weight.mul_(-1)
    check(loaded, module, X)
    assert counts.built == 1
    loaded.save(tmp_path / "both.t2t")
    with torch.no_grad():
        module.first.weight.mul_(-1)
    check(loaded, module, X)
    assert counts.built == 1  # known from before
    for sign in (1, -1):
        other = Forked().eval()
        with torch.no_grad():
            other.first.weight.mul_(sign)
        check(torch2trt.load(tmp_path / "both.t2t", module=other), other, X)
    assert counts.built == 1


def test_other_numbers_calls_and_order(saved: Path, counts: Counts) -> None:
    class Scaled(Forked):
        def forward(self, x: Tensor, *, scale: float = 2.5) -> dict[str, Any]:
            return super().forward(x, scale=scale)

    class Otherwise(Forked):
        def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
            x = self.first(x).relu()
            y = self.up(x).sigmoid() * 2.0 if x.sum() > 10 else 2.0 - self.down(x).sigmoid()
            return {"y": y, "rows": y[y.sum(1) > 0]}

    for kind in (Scaled, Otherwise):
        module = kind().eval()
        before = counts.built
        check(torch2trt.load(saved, module=module), module, X, BIG)
        assert counts.built == before + 2


def test_a_second_size(saved: Path, tmp_path: Path, counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    module, more = Forked().eval(), torch.randn(7, 8, generator=torch.Generator().manual_seed(1))
    loaded = torch2trt.load(saved, module=module)
    check(loaded, module, X, more)
    assert counts.built == 2
    assert "inputs of [7, 8]: there is none of these calls and sizes" in caplog.text
    loaded.save(tmp_path / "two.t2t", program=True)
    again = torch2trt.load(tmp_path / "two.t2t", module=module)
    check(again, module, more, X)
    assert counts.built == 2
    assert len(again.engines) == 5


def test_another_torch_is_named(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(with_manifest(saved.read_bytes(), torch_version="2.9.0"), module=module)
    check(loaded, module, X)
    assert "is built" not in caplog.text  # it traces the same
    check(loaded, module, X[:3])
    assert f"(saved with torch 2.9.0, this is {torch.__version__})" in caplog.text


def test_autocast_is_another_computation(saved: Path, counts: Counts) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(saved, module=module)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, wanted = loaded.reference(X)["y"], module(X)["y"]
    assert counts.captured > 0
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_one_engine_for_pieces_that_compute_the_same(counts: Counts) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Forked(), Forked()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.one(x)["y"], self.two(x)["y"]]

    module = Twice().eval()
    compiled = pieces(module)
    check(compiled, module, X)
    assert len(compiled.engines) == counts.built <= 3


@pytest.mark.parametrize("from_file", [True, False])
def test_an_engine_that_does_not_run_here_is_built_again(
    saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, from_file: bool
) -> None:
    module = Forked().eval()
    loaded = torch2trt.load(saved, module=module) if from_file else pieces(module)
    (region, args), *_ = regions(module, X)
    engine, other = loaded.engines[0], EngineModule(make_artifact())

    def refuse(engine: EngineModule) -> None:
        raise ArtifactMismatchError("built for a GPU of another kind", subject=engine.artifact.name)

    monkeypatch.setattr(EngineModule, "open", refuse)
    monkeypatch.setattr(Region, "device", lambda region, args: torch.device("cuda", 0))
    count = len(loaded.engines)
    assert loaded._store.find(region, args, lambda: other) is other
    assert loaded.engines[0] is other is not engine
    assert len(loaded.engines) == count
    assert ("built for a GPU of another kind" in caplog.text) is from_file


def test_ranges_that_are_impossible_are_sizes_in_the_file(
    tmp_path: Path, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Dynamo guards on what is seen here: fewer than 100 rows, and an even number of them.
            if x.shape[0] < 100:
                x = torch.relu(x)
            y = x.view(x.shape[0] // 2, 16) * 2
            return y + 1 if y.sum() > 1e9 else y.tanh() - 1

    def dynamic(count: int) -> Tensor:
        x = torch.randn(count, 8)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return x

    module = Halves().eval()
    compiled = pieces(module, dynamic(8))
    check(compiled, module, dynamic(6), dynamic(4))
    assert "a range is impossible" in caplog.text
    compiled.save(tmp_path / "halves.t2t", program=True)
    before = dataclasses.replace(counts)
    torch._dynamo.reset()
    loaded = torch2trt.load(tmp_path / "halves.t2t", module=module)
    check(loaded, module, dynamic(4), dynamic(6))
    assert counts == before


def test_what_has_no_spelling_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Own().eval()
    compiled = pieces(module)
    assert len(compiled.engines) == 2
    compiled.save(tmp_path / "own.t2t", program=True)
    assert "1 of 2 engines are not written, and will be built" in caplog.text
    loaded = torch2trt.load(tmp_path / "own.t2t", module=module)
    assert len(loaded.engines) == 1
    check(loaded, module, X)
    assert len(loaded.engines) == 2
    assert "which is no function of torch" in caplog.text


def test_nothing_to_write_is_an_error(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = own(x) + 1
            return torch.ones(int(y.sum().item()) % 3 + 1)

    compiled = pieces(Whole().eval())
    with pytest.raises(ArtifactWriteError, match=r"no engine that can be found again.*own"):
        compiled.save(tmp_path / "nothing.t2t")
    assert not list(tmp_path.iterdir())


# On a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_saved_pieces_run_on_the_gpu(tmp_path: Path, counts: Counts, caplog: pytest.LogCaptureFixture) -> None:
    module = Forked().eval().cuda()
    compiled = pieces(module, X.cuda())
    compiled.save(tmp_path / "forked.t2t")
    torch._dynamo.reset()
    before = dataclasses.replace(counts)
    loaded = torch2trt.load(tmp_path / "forked.t2t", module=module)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X.cuda()), module(X.cuda()), rtol=1e-4, atol=1e-4)
    assert counts == before
    assert loaded.verify(X.cuda()).passed
    for engine in compiled.engines:
        engine.artifact = dataclasses.replace(engine.artifact, gpu="a GPU of another kind (1.0)")
    compiled.save(tmp_path / "other.t2t")
    torch._dynamo.reset()
    elsewhere = torch2trt.load(tmp_path / "other.t2t", module=module)
    with torch.no_grad():
        torch.testing.assert_close(elsewhere(X.cuda()), module(X.cuda()), rtol=1e-4, atol=1e-4)
    assert counts.built == before.built + len(compiled.engines)
    assert "built for a GPU of another kind" in caplog.text
