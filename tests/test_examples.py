"""The scripts in examples/ run."""

from __future__ import annotations

import json
import logging
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torch2trt

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name: str) -> Callable[[list[str]], Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_all_are_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'main_of("{path.stem}")' in text for path in EXAMPLES.glob("*.py"))


def test_classify_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    main = main_of("classify_images")
    main(["--model", "squeezenet1_1", "--random"])
    first = capsys.readouterr().out
    assert "passed" in first
    assert torch2trt.load("squeezenet1_1.t2t").artifact.name == "squeezenet1_1"
    main(["--model", "squeezenet1_1"])  # from the artifact: no weights are fetched
    second = capsys.readouterr().out
    assert second.splitlines() == first.splitlines()[-2:]
    assert [line.split("  ")[0] for line in second.splitlines()] == ["china.jpg", "flower.jpg"]


def test_export_for_triton(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_of("export_for_triton")([str(tmp_path), "--model", "squeezenet1_1", "--size", "64", "--batch", "2"])
    folder = tmp_path / "squeezenet1_1"
    plan = folder / "1" / "model.plan"
    description = json.loads(Path(f"{plan}.json").read_text())
    assert plan.stat().st_size > 1e6
    assert description["inputs"][0]["profile"]["max"] == [8, 3, 64, 64]
    assert (folder / "config.pbtxt").read_text() == (
        'name: "squeezenet1_1"\n'
        'backend: "tensorrt"\n'
        "max_batch_size: 0\n"
        'input [ { name: "x" data_type: TYPE_FP32 dims: [-1, 3, 64, 64] } ]\n'
        'output [ { name: "output0" data_type: TYPE_FP32 dims: [-1, 1000] } ]\n'
    )
    assert "--shapes=x:2x3x64x64" in capsys.readouterr().out


def test_train_and_evaluate(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torch2trt.backend")
    torch._dynamo.reset()
    assert main_of("train_and_evaluate")(["--epochs", "2"]) > 0.9
    torch._dynamo.reset()
    assert len(capsys.readouterr().out.splitlines()) == 2
    # One for the weights of each epoch.
    assert sum("building an engine" in message for message in caplog.messages) == 2
