"""The demo: what it computes, what it reports, and what it does without a network connection."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torchvision.models import ResNet50_Weights

from torch2trt.tools import demo
from torch2trt.tools.pretrained import Pretrained


def offline(*args: Any, **kwargs: Any) -> None:
    raise urllib.error.URLError("no network")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Both halves of the demo, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setattr(urllib.request, "urlopen", offline)
        return demo.read_digits(), demo.see_photograph(Pretrained(ResNet50_Weights.DEFAULT))


@pytest.fixture
def replayed(parts: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(demo, "read_digits", lambda: parts[0])
    monkeypatch.setattr(demo, "see_photograph", lambda pretrained: parts[1])


def test_digits_are_read_alike(parts: Any) -> None:
    checked, accuracies = parts[0]
    assert checked.passed
    assert accuracies["network"] == accuracies["eager"] >= 0.96
    assert len(checked.outputs["network"]) == 450
    assert checked.compiled.report["fused_blocks"] == 4
    batch = checked.compiled.artifact.signature.dims["batch"]
    assert [batch.min, batch.opt, batch.max] == [1, 64, 450]


def test_photograph_is_seen_alike(parts: Any) -> None:
    checked, weights, best = parts[1]
    assert checked.passed
    assert 0 < checked.rows["network"].max_rel_error <= checked.rows["network"].tolerance
    assert weights == "random (seed 0), since the pretrained ones could not be loaded: no network"
    assert len({item["class"] for item in best}) == 5
    for item in best:
        assert item["network"] == pytest.approx(item["eager"], rel=1e-3, abs=1e-9)


def test_report(replayed: None, parts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["resnet50"]["fused_blocks"] == 53
    assert found["resnet50"]["top5"] == parts[1][2]
    assert found["digits"]["accuracy"]["network"] >= 0.96
    assert demo.main([]) == 0
    out = capsys.readouterr().out
    assert "digits CNN" in out
    assert "175 → 125" in out


def test_differences_fail_the_demo(
    replayed: None, parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cnn, accuracies), (resnet, weights, best) = parts
    monkeypatch.setattr(demo, "read_digits", lambda: (cnn, {**accuracies, "network": 0.97}))
    assert demo.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    monkeypatch.setattr(demo, "read_digits", lambda: (cnn, dict.fromkeys(accuracies, 0.95)))
    assert demo.main([]) == 1
    monkeypatch.setattr(demo, "read_digits", lambda: (cnn, accuracies))
    row = dataclasses.replace(resnet.rows["network"], max_rel_error=1.0)
    wrong = dataclasses.replace(resnet, rows={"network": row})
    monkeypatch.setattr(demo, "see_photograph", lambda pretrained: (wrong, weights, best))
    assert demo.main([]) == 1
    assert "FAILED" in capsys.readouterr().out


class Weights(SimpleNamespace):
    """Like a member of torchvision's enums, served from a file."""

    def get_state_dict(self, progress: bool) -> Any:
        return torch.hub.load_state_dict_from_url("http://never.asked/" + Path(self.url).name, progress=progress)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    path = tmp_path / f"tiny-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    path.write_bytes(data)
    return Weights(url=path.as_uri(), file=path)


def test_pretrained_weights_are_fetched_once(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Pretrained(weights).state_dict()
    assert state is not None
    assert torch.equal(state["weight"], torch.ones(2))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    assert Pretrained(weights).state_dict() is not None


@pytest.mark.parametrize(("fault", "problem"), [("checksum", "checksum"), ("slow", "too slow"), ("missing", "No such")])
def test_weights_that_do_not_come_leave_nothing(weights: Weights, fault: str, problem: str, tmp_path: Path) -> None:
    if fault == "checksum":
        weights.file.write_bytes(b"truncated")
    elif fault == "missing":
        weights.file.unlink()
    pretrained = Pretrained(weights, seconds=-1.0 if fault == "slow" else 20.0)
    assert pretrained.state_dict() is None
    assert problem in pretrained.problem
    assert [path for path in (tmp_path / "hub").rglob("*") if path.is_file()] == []
