"""Tuning on a real GPU: what is found is measured, right, saved, and compiles again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torch2trt
from tests.models.counter import Counter
from torch2trt.settings import Settings
from torch2trt.tools import cli

pytestmark = pytest.mark.gpu

# Builds in children are what tests/test_tune.py does; here they would take most of the time.
QUICK: dict[str, Any] = {"build_in_subprocess": False, "progress": "none"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 14 * 14, 10)).eval().cuda()


def test_batch_and_level(tmp_path: Path) -> None:
    module, x = net(), torch.randn(2, 3, 16, 16, device="cuda")
    options: dict[str, Any] = {
        "objective": "throughput",
        "batches": (2, 16),
        "precisions": ("fp16",),
        "levels": (0, 1),
        "streams": (0,),
        "rounds": 5,
        "cache_dir": tmp_path,
        **QUICK,
    }
    before = torch.cuda.memory_allocated()
    found = torch2trt.tune(module, (x,), **options)
    assert [trial.step for trial in found.trials] == ["precision", "batch", "level", "streams", "CUDA graphs"]
    for trial in found.trials:
        assert trial.error == ""
        assert trial.compared
        assert trial.max_rel_error is not None
        assert 1e-7 < trial.max_rel_error <= trial.allowed == 2e-2
        assert 0 < trial.ms_p50 <= trial.ms_p99  # type: ignore[operator]
        assert 0 < trial.host_us < 1e5  # type: ignore[operator]
    # Sixteen images take such a small net hardly longer than two.
    assert found.batch == 16
    # The last one differs in how it is run alone.
    assert [trial.cache for trial in found.trials] == ["miss"] * 4 + ["hit"]
    # From there on chance may lead elsewhere.
    assert [trial.cache for trial in torch2trt.tune(module, (x,), **options).trials[:3]] == ["hit"] * 3
    assert torch.cuda.memory_allocated() - before < 64 << 20

    found.save(tmp_path / "tuned.json")
    assert Settings.make(settings=tmp_path / "tuned.json").to_json() == found.settings.to_json()
    batch = torch.randn(found.batch, 3, 16, 16, device="cuda")
    compiled = torch2trt.compile(module, (batch,), settings=tmp_path / "tuned.json", fallback=False, **QUICK)
    assert compiled.artifact.settings.precision == found.settings.precision
    assert compiled.verify(batch).passed
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch), module(batch), rtol=2e-2, atol=2e-2)


def test_a_dynamic_batch_within_a_bound(tmp_path: Path) -> None:
    module, x = net(), torch.randn(2, 3, 16, 16, device="cuda")
    options: dict[str, Any] = {
        "dynamic_shapes": {"input": {0: Dim("batch", min=1, max=8)}},
        "objective": "throughput",
        "batches": (2, 8),
        "optimization_level": 0,
        "streams": (),
        "rounds": 3,
        "cache_dir": tmp_path,
        **QUICK,
    }
    found = torch2trt.tune(module, (x,), max_latency=1000.0, **options)
    assert found.batch in (2, 8)
    assert {trial.error for trial in found.trials} == {""}
    nothing = torch2trt.tune(module, (x,), max_latency=1e-6, **options)
    assert nothing.chosen is None


def test_a_model_that_changes_its_buffers(tmp_path: Path) -> None:
    module, x = Counter().eval().cuda(), torch.ones(3, 4, device="cuda")
    found = torch2trt.tune(module, (x,), levels=(0,), streams=(), rounds=3, cache_dir=tmp_path, **QUICK)
    assert [trial.error for trial in found.trials] == [""] * 2
    assert module.get_buffer("seen").abs().sum() == 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(64, 64)\n")
    argv = [
        "tune",
        "small.py:net",
        "--input",
        "4x64",
        "--precisions",
        "tf32,fp16",
        "--levels",
        "0,1",
        "--streams",
        "0",
        "--cache-dir",
        "cache",
    ]
    assert cli.main([*argv, "--no-build-in-subprocess", "-o", "tuned.json", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["chosen"] is not None
    assert {each["precision"]: each["allowed"] for each in data["candidates"][:2]} == {"tf32": 5e-3, "fp16": 2e-2}
    assert json.loads((tmp_path / "tuned.json").read_text()) == data["settings"]
    argv = ["bench", "small.py:net", "--input", "4x64", "--settings", "tuned.json", "--backend", "torch2trt"]
    assert cli.main([*argv, "--repeats", "3", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["error"] == ""
