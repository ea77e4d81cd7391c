"""Profiles of real engines."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

import torch2trt
from tests.inspector_samples import Net, X
from tests.models.counter import Counter
from torch2trt.tools import cli
from torch2trt.tools.profile.report import Profile

pytestmark = pytest.mark.gpu


def check_real(found: Profile) -> None:
    """What holds for every profile."""
    assert 0.5 * found.run_ms < found.kernels_ms < 20 * found.run_ms
    assert found.own_ms <= 0.2 * found.kernels_ms
    assert found.limits.gb_per_s > 50
    assert found.limits.tflops > 1
    assert found.memory.plan > 0
    assert found.memory.io > 0
    assert all(kernel.ms >= 0 for kernel in found.kernels)
    json.dumps(found.to_json(), allow_nan=False)
    ET.fromstring(found.to_html())
    assert found.name in str(found)


def within_modules(found: Profile) -> float:
    """The part of the time that is in some module below the outermost."""
    return sum(part.ms for part in found.modules if part.name and "." not in part.name) / found.kernels_ms


def test_resnet18() -> None:
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.resnet18(weights=None).eval().cuda()
    x = torch.randn(8, 3, 224, 224, device="cuda")
    found = torch2trt.profile(module, (x,), precision="fp16", progress="none")
    check_real(found)
    assert found.in_cuda_graph
    assert within_modules(found) >= 0.8
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    slowest = max(found.kernels, key=lambda kernel: kernel.ms)
    assert slowest.tactic
    assert slowest.inputs
    assert slowest.inputs[0].dtype in ("fp16", "fp32")
    assert slowest.bytes
    # Winograd's way, and caches, do better than what is counted; not by much.
    assert all((found.of_limit(kernel) or 0) < 3 for kernel in found.kernels if kernel.ms > 0.01)
    assert any("layer1" in part.name for part in found.modules)
    assert any("resnet.py" in part.name for part in found.lines)


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(num_hidden_layers=2)
    module = transformers.BertModel(config).eval().cuda()
    ids = torch.randint(0, 1000, (8, 128), device="cuda")
    found = torch2trt.profile(module, (ids, torch.ones_like(ids)), precision="fp16", progress="none")
    check_real(found)
    assert within_modules(found) >= 0.8
    assert {"encoder.layer.0", "encoder.layer.1"} <= {part.name for part in found.modules}
    times = {part.name: part.ms for part in found.modules}
    assert times["encoder"] >= 0.5 * found.kernels_ms
    assert times["encoder.layer.0"] == pytest.approx(times["encoder.layer.1"], rel=0.5)
    assert found.flops > 2 * 2 * 8 * 128 * 768 * 768 * 12


def test_dynamic_hybrid() -> None:
    module, x = Net().cuda(), torch.randn(6, 3, 64, 64, device="cuda")
    shapes = {"x": {0: Dim("batch", min=1, max=8)}}
    keywords = {"dynamic_shapes": shapes, "run_in_torch": ["blocks"], "min_segment": 1, "progress": "none"}
    found = torch2trt.profile(module, (x,), **keywords)
    assert {kernel.segment for kernel in found.kernels} == {0, 1, 2}
    assert [kernel.module for kernel in found.kernels if kernel.kind == "torch"] == ["blocks.0"]
    assert not found.in_cuda_graph
    assert found.shapes == {"x": (6, 3, 64, 64)}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(x)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert found.kernels_ms > 0
    ET.fromstring(found.to_html())


def test_saved_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"x": {0: Dim("batch", min=1, max=8)}}
    compiled = torch2trt.compile(Net().cuda(), (X.cuda(),), dynamic_shapes=shapes, fallback=False, progress="none")
    compiled.save(tmp_path / "net.t2t")
    assert cli.main(["profile", str(tmp_path / "net.t2t"), "--input", "4x3x10x10", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["inputs"] == {"x": [4, 3, 10, 10]}
    assert data["kernels_ms"] > 0
    assert data["calls"]
    assert data["lines"] == []


def test_state_stays_as_it_is() -> None:
    x = torch.ones(3, 4, device="cuda")
    compiled = torch2trt.compile(Counter().eval().cuda(), (x,), progress="none", fallback=False)
    found = torch2trt.profile(compiled, (x,))
    assert found.kernels_ms > 0
    assert compiled.state.get_buffer("seen").abs().sum() == 0
