"""Tuning: the table, the files, the picture and the command line; and builds that are real."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import torch2trt
from tests.pretending import no_gpu, running
from tests.tuning import Net, World, X, pretend, times, tuned, world
from torch2trt import api
from torch2trt.errors import MissingPackageError, NoGPUError, SettingError
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Settings
from torch2trt.tools import cli

__all__ = ["world"]  # a fixture, which tests name

# The result -----------------------------------------------------------------------------------------------------------


def test_the_result_is_a_table_json_and_a_file(world: World, tmp_path: Path) -> None:
    world.ms = times
    found = tuned(precisions=("fp16",), cache_dir=tmp_path)
    text = str(found)
    assert "Net on Fake 9000" in text
    assert f"{found.best.ms_p50:.3f} ms" in text
    (line,) = (line for line in text.splitlines() if "→" in line)
    assert "streams" in line
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["chosen"] == found.trials.index(found.best)
    assert len(data["candidates"]) == len(found.trials)
    assert data["settings"] == {"precision": "fp16", "optimization_level": 3, "max_aux_streams": 4}
    found.save(tmp_path / "tuned.json")
    assert json.loads((tmp_path / "tuned.json").read_text()) == data["settings"]
    assert Settings.make(settings=tmp_path / "tuned.json", progress="none") == dataclasses.replace(
        found.settings, cache_dir=None
    )


@pytest.mark.filterwarnings("ignore")  # matplotlib's own
@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("SVG", b"<?xml")])
def test_the_picture(world: World, tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    world.ms = times
    found = tuned(objective="throughput", batches=(1, 4, 8), max_latency=2.0)
    path = tmp_path / f"tuned.{suffix}"
    found.plot(path)
    assert path.read_bytes().startswith(start)
    nothing = dataclasses.replace(found, chosen=None, trials=())
    nothing.plot(path)
    assert path.read_bytes().startswith(start)


def test_pictures_that_cannot_be_drawn(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuned(levels=(3,), streams=())
    with pytest.raises(SettingError, match="names no picture"):
        found.plot(tmp_path / "tuned.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"torch2trt\[plot\]"):
        found.plot(tmp_path / "tuned.png")
    assert list(tmp_path.iterdir()) == []


# The command line -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tuned_net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(6, 5)\n")
    yield "tuned_net.py:net"
    sys.modules.pop("tuned_net.py", None)


def test_the_command(world: World, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.ms = times
    argv = ["tune", model, "--input", "input:batch=1..2..8x6", "--objective", "throughput"]
    argv += [
        "--max-latency",
        "50",
        "--batches",
        "2,8",
        "--precisions",
        "fp32,fp16",
        "--levels",
        "1,3",
        "--streams",
        "0",
    ]
    assert cli.main([*argv, "--max-error", "0.01", "--budget", "1000", "-o", "tuned.json", "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["settings"] == {"precision": "fp16", "optimization_level": 3}
    assert data["output"] == "tuned.json"
    assert {each["batch"] for each in data["candidates"]} == {2, 8}
    assert {each["allowed"] for each in data["candidates"]} == {1e-2, 1e-4}
    assert "precision: the best is batch 2, fp16, level 1" in err
    assert cli._settings(cli._parser().parse_args(["compile", "m", "-o", "m.t2t", "--settings", "tuned.json"])) == {
        "precision": "fp16",
        "optimization_level": 3,
    }
    world.interrupts = len(world.runs) + 2
    assert cli.main(argv) == 130
    assert "Not all was tried: interrupted" in capsys.readouterr().out
    world.interrupts, world.fails = None, lambda batch, settings: RuntimeError("no kernel")
    assert cli.main([*argv, "-o", "none.json"]) == 1
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--batches", "1,x"], "T2T101", "takes numbers with commas between"),
        (["--objective", "speed"], "T2T101", "speed"),
        (["-o", "no/such/tuned.json"], "T2T603", "no/such"),
        (["--plot", "tuned.pdf"], "T2T101", "names no picture"),
    ],
)
def test_commands_that_cannot_be(
    world: World, model: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: str, text: str
) -> None:
    assert cli.main(["tune", model, "--input", "1x6", *argv, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert text in json.dumps(error)
    assert world.built == []


@no_gpu
def test_without_a_gpu(model: str) -> None:
    with pytest.raises(NoGPUError, match="tune: engines are measured on NVIDIA GPUs"):
        tuned()
    assert cli.main(["tune", "torch.nn:Absent", "--input", "1"]) == 2


# Real builds ----------------------------------------------------------------------------------------------------------


@no_gpu
def test_engines_come_from_the_cache_the_second_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything but the running is real: builds in children, the engine cache, errors by the interpreter."""
    told, made, build = World(), dict[Settings, EngineModule](), api.build

    def kept(*args: Any) -> EngineModule:
        compiled = build(*args)
        made[compiled.artifact.settings] = compiled
        return compiled

    def opened(artifact: Artifact, truth: Callable[..., Any]) -> EngineModule:
        program = made[artifact.settings].program()
        return running(EngineModule(artifact, program=program, interpret=api.interpret, truth=truth), program.run)

    pretend(monkeypatch, told, kept, opened)
    told.ms = lambda batch, settings: 1.0 if settings.precision == "fp16" else 2.0
    module = Net().eval()
    options: dict[str, Any] = {"precisions": ("tf32", "fp16"), "levels": (0,), "streams": (), "cache_dir": tmp_path}
    found = torch2trt.tune(module, (X,), **options)
    assert [trial.error for trial in found.trials] == [""] * 3
    # CUDA graphs are no part of an engine.
    assert [trial.cache for trial in found.trials] == ["miss", "miss", "hit"]
    assert found.settings.precision == "fp16"
    assert 0 < (found.best.max_rel_error or 0) < 2e-2
    again = torch2trt.tune(module, (X,), **options)
    assert {trial.cache for trial in again.trials} == {"hit"}
    assert again.to_json()["settings"] == found.to_json()["settings"] == {"precision": "fp16", "optimization_level": 0}
    monkeypatch.undo()
    found.save(tmp_path / "tuned.json")
    compiled = torch2trt.compile(module, (X,), settings=tmp_path / "tuned.json", fallback=False, progress="none")
    assert compiled.artifact.settings.precision == "fp16"
    assert compiled.verify(X).passed
