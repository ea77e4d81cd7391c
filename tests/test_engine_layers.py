"""``torch2trt inspect`` of what has several optimization profiles: models, and the layers of artifacts."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.export import Dim

import torch2trt
from tests import inspector_samples as samples
from tests.profiled import BATCH, QUICK, TWO, Linear
from torch2trt.errors import DynamicShapeError, NoGPUError
from torch2trt.runtime.artifact import Artifact
from torch2trt.tools import cli, engine_layers
from torch2trt.tools.engine_layers import chosen, inspect_layers, look

Capture = pytest.CaptureFixture[str]
X = torch.randn(4, 8)


def artifact(**options: Any) -> Artifact:
    return torch2trt.compile(Linear().eval(), (X,), dynamic_shapes=BATCH, fallback=False, **QUICK, **options).artifact


def usual(ranges: Mapping[str, Any]) -> int:
    found: int = ranges["batch"].opt
    return found


def test_profiles_are_chosen_by_sizes() -> None:
    signature = artifact(profiles=[{"batch": 1}, {"batch": (2, 16, 64)}, {"batch": 16}]).signature
    assert list(map(usual, chosen(signature, []))) == [1, 16, 16]
    assert list(map(usual, chosen(signature, [{"batch": 1}]))) == [1]
    assert [ranges["batch"].min for ranges in chosen(signature, [{"batch": 16}])] == [2, 16]
    assert [ranges["batch"].min for ranges in chosen(signature, [{"batch": (2, 16, 64)}])] == [2]
    assert list(map(usual, chosen(signature, [{"batch": (2, 16, 64)}, {"batch": 1}]))) == [1, 16]
    assert chosen(signature, [{"batch": 2}]) == chosen(signature, [{"other": 1}]) == []


def test_each_profile_is_asked_at_its_usual_sizes() -> None:
    asked: list[Mapping[str, int]] = []

    def informed(part: Artifact, sizes: Mapping[str, int]) -> str:
        asked.append(sizes)
        return samples.CONVOLUTIONS if sizes["batch"] == 1 else samples.COMPILED

    rows = look([artifact(profiles=TWO)], [], informed)
    assert asked == [{"batch": 1}, {"batch": 16}]
    assert [row.profile for row in rows] == ["batch 1", "batch 2…16…32"]
    assert [len(row.layers) for row in rows] == [5, 3]
    first = json.loads(json.dumps(rows[0].to_json()))["layers"][1]
    assert first["calls"] == ["conv_block_default"]
    assert first["kind"] == "CaskConvolution"
    assert first["inputs"][0].startswith("fp16 ")
    with pytest.raises(DynamicShapeError, match="there is none of batch 7") as caught:
        look([artifact(profiles=TWO)], [{"batch": 7}], informed)
    assert caught.value.hint == "the profiles are: batch 1; batch 2…16…32"


def shown(rows: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for each in engine_layers._shown(rows):
        console.print(each)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_equal_kernels_are_shown_once() -> None:
    found = artifact(profiles=TWO)
    text = shown(look([found], [], lambda part, sizes: samples.CONVOLUTIONS))
    assert text.count("conv_block_default_1") == 1
    assert "profile batch 2…16…32: the same 5 kernels as in profile batch 1" in text
    text = shown(look([found], [], lambda part, sizes: [samples.CONVOLUTIONS, samples.COMPILED][sizes["batch"] > 1]))
    assert "the same" not in text
    assert "layer_norm" in text
    assert "the inspector tells nothing" in shown(look([found], [{"batch": 1}], lambda part, sizes: ""))


def test_engines_of_a_hybrid_have_the_sizes_of_the_whole() -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.airy_ai(x.exp().sin()).cos().tanh()

    whole = torch2trt.compile(
        Mixed().eval(),
        (X,),
        dynamic_shapes={"x": {0: Dim("batch", min=1, max=64)}},
        profiles=TWO,
        min_segment=1,
        **QUICK,
    ).artifact
    asked: list[tuple[str, int]] = []

    def informed(part: Artifact, sizes: Mapping[str, int]) -> str:
        asked.append((part.name, sizes["batch"]))
        return samples.COMPILED

    rows = look([whole], [{"batch": 1}], informed)
    names = [part.name for part in whole.parts if isinstance(part, Artifact)]
    assert asked == [(name, 1) for name in names]
    assert [row.engine for row in rows] == names


def test_on_the_command_line(capsys: Capture, tmp_path: Path) -> None:
    model = f"{tmp_path / 'net.py'}:Linear"
    (tmp_path / "net.py").write_text("from tests.profiled import Linear\n")
    given = ["--input", "batch=1..4..64x8", "--profile", "batch=1", "--profile", "batch=2..16..64"]
    assert cli.main(["inspect", model, *given, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [each["profile"] for each in data["profiles"]] == ["batch 1", "batch 2…16…64"]
    one, many = (each["flops"] for each in data["profiles"])
    assert many == 16 * one
    assert data["flops"] == 4 * one
    assert cli.main(["inspect", model, *given]) == 0
    assert "profile batch 2…16…64" in capsys.readouterr().out
    assert cli.main(["inspect", model, *given[:2], "--profile", "batch=65", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "T2T105"
    assert cli.main(["inspect", model, *given[:2], "--layers", "--json"]) == 2
    assert "is no artifact" in str(json.loads(capsys.readouterr().out)["error"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_layers_need_a_gpu(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "net.t2t"
    torch2trt.compile(Linear().eval(), (X,), dynamic_shapes=BATCH, profiles=TWO, **QUICK).save(path)
    with pytest.raises(NoGPUError):
        inspect_layers(str(path), [])
    for given in (["--layers"], ["--profile", "batch=1"]):
        assert cli.main(["inspect", str(path), *given, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == NoGPUError.code
    assert cli.main(["inspect", str(path), "--json"]) == 0


@pytest.mark.gpu
def test_layers_of_real_engines(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "net.t2t"
    options = {**QUICK, "profiling_verbosity": "detailed"}
    module = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)).eval().cuda()
    shapes = {"input": {0: Dim("batch", min=1, max=64)}}
    torch2trt.compile(module, (X.cuda(),), dynamic_shapes=shapes, profiles=TWO, **options).save(path)
    assert cli.main(["inspect", str(path), "--layers", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    assert [row["profile"] for row in rows] == ["batch 1", "batch 2…16…32"]
    alone, several = (
        [tensor for layer in row["layers"] for tensor in (*layer["inputs"], *layer["outputs"])] for row in rows
    )
    assert any(" 1×" in tensor for tensor in alone), alone
    # In a profile of several sizes TensorRT 10.6 tells none of its generated kernels' own.
    assert any(" 16×" in tensor or tensor.endswith("?") for tensor in several), several
    assert any("64×8" in tensor for tensor in several), several
    assert cli.main(["inspect", str(path), "--profile", "batch=16", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 1
    assert cli.main(["inspect", str(path), "--layers"]) == 0
    assert "batch 1" in capsys.readouterr().out
