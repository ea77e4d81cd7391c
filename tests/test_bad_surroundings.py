"""Machines, files and disks that are not as they should be: each gets its error with its number, and leaves nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2trt
from tests.refusals import X, compiling, no_gpu, refused
from torch2trt import errors
from torch2trt.runtime import artifact as artifacts
from torch2trt.trt import flavour as flavours

# The machine ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to have TensorRT packages of certain versions, and a GPU or none."""
    load = flavours.load

    def pretend(gpu: tuple[str, tuple[int, int]] | None = None, **versions: tuple[int, ...]) -> None:
        monkeypatch.setattr(flavours, "gpu", lambda: gpu)
        monkeypatch.setattr(flavours, "_installed_version", versions.get)
        load.cache_clear()

    yield pretend
    load.cache_clear()


H200 = ("NVIDIA H200", (9, 0))
L4 = ("NVIDIA L4", (8, 9))


def test_no_tensorrt(machine: Any) -> None:
    machine(None)
    refused(errors.FlavourNotFoundError, compiling(nn.Linear(3, 4), X), "tensorrt_rtx", "pip install")
    refused(errors.FlavourNotFoundError, compiling(nn.Linear(3, 4), X, flavour="tensorrt"), "tensorrt", "pip install")
    machine(L4)
    refused(errors.FlavourNotFoundError, compiling(nn.Linear(3, 4), X), "pip install")


def test_a_tensorrt_that_is_too_old(machine: Any) -> None:
    machine(None, tensorrt_rtx=(0, 9, 0))
    refused(errors.FlavourTooOldError, compiling(nn.Linear(3, 4), X), "tensorrt_rtx", "oldest supported")
    machine(H200, tensorrt=(8, 6, 1))
    refused(errors.FlavourTooOldError, compiling(nn.Linear(3, 4), X, flavour="tensorrt"), "10.6", "pip install")


def test_a_gpu_that_the_flavour_does_not_serve(machine: Any) -> None:
    machine(H200, tensorrt_rtx=(1, 7, 1))
    refused(errors.UnsupportedGPUError, compiling(nn.Linear(3, 4), X), "NVIDIA H200", "9.0", "pip install")


def test_enterprise_tensorrt_without_a_gpu(machine: Any) -> None:
    machine(None, tensorrt=(10, 6, 0))
    refused(errors.NoGPUError, compiling(nn.Linear(3, 4), X, flavour="tensorrt"), "tensorrt", "tensorrt_rtx")


# Artifacts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "linear.t2t"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = nn.Linear(3, 4).eval().to(device)
    torch2trt.compile(module, (X.to(device),), progress="none").save(path, program=True)
    return path


def damaged(saved: Path, folder: Path, change: Callable[[bytes], bytes]) -> Path:
    path = folder / "damaged.t2t"
    path.write_bytes(change(saved.read_bytes()))
    return path


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: flip(data, len(data) // 2),
        lambda data: b"PK\x03\x04" + os.urandom(100),
    ],
    ids=["half", "last-byte", "flipped", "noise"],
)
def test_damaged_artifacts(saved: Path, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = damaged(saved, tmp_path, change)
    refused(errors.ArtifactError, lambda: torch2trt.load(path), "damaged.t2t", "again")
    assert [item.name for item in tmp_path.iterdir()] == ["damaged.t2t"]


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": X}, path)
    with pytest.raises(errors.ArtifactError, match=r"T2T601.*model.pt"):
        torch2trt.load(path)
    path.write_bytes(b"\x7fELF and so on")
    refused(errors.ArtifactError, lambda: torch2trt.load(path), "model.pt")
    path.write_bytes(b"")
    refused(errors.ArtifactError, lambda: torch2trt.load(path), "empty")
    plan = tmp_path / "linear.engine"
    torch2trt.export(nn.Linear(3, 4).eval(), (X,), plan, progress="none")
    with pytest.raises(errors.ArtifactError, match=r"T2T601.*linear.engine"):
        torch2trt.load(plan)


@pytest.fixture
def an_l4(machine: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend that an RTX GPU and a version of TensorRT-RTX are here, as far as it takes to refuse an engine."""

    def pretend(version: str) -> None:
        parts = tuple(int(part) for part in version.split("."))
        machine(L4, tensorrt_rtx=parts)
        monkeypatch.setattr(flavours, "load", lambda name=None: flavours.Flavour(name, parts, None))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    return pretend


@no_gpu
def test_an_artifact_of_another_tensorrt(saved: Path, an_l4: Callable[[str], None]) -> None:
    module = torch2trt.load(saved)
    an_l4("1.3.0")
    refused(errors.ArtifactMismatchError, lambda: module(X), "1.3.0", module.artifact.flavour_version, "compile")


@no_gpu
def test_an_artifact_of_another_gpu(saved: Path, tmp_path: Path, an_l4: Callable[[str], None]) -> None:
    original = torch2trt.load(saved).artifact
    artifacts.save(dataclasses.replace(original, gpu="NVIDIA RTX 5090 (12.0)"), tmp_path / "other.t2t")
    module = torch2trt.load(tmp_path / "other.t2t")
    an_l4(original.flavour_version)
    refused(errors.ArtifactMismatchError, lambda: module(X), "RTX 5090", "NVIDIA L4 (8.9)", "compile")


def test_an_artifact_without_its_program(tmp_path: Path) -> None:
    path = tmp_path / "linear.t2t"
    torch2trt.compile(nn.Linear(3, 4).eval(), (X,), progress="none").save(path)
    loaded = torch2trt.load(path)
    refused(errors.ProgramMissingError, lambda: loaded.reference(X), "program=True")
    refused(errors.ProgramMissingError, lambda: loaded.verify(X), "Linear")


# Disks and processes --------------------------------------------------------------------------------------------------


def run(script: str, *arguments: Any) -> subprocess.Popen[str]:
    root = str(Path(torch2trt.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("room", [0, 64 << 10, 362 << 10], ids=["nothing", "a-bit", "all-but-a-bit"])
def test_a_disk_without_room(tmp_path: Path, room: int) -> None:
    # No file may grow beyond that: to the code that writes, it is a disk without room. The weights alone are 353 kB.
    script = """
        import resource, sys, tempfile
        from pathlib import Path
        import torch, torch2trt
        from torch2trt.errors import ArtifactWriteError
        folder = Path(sys.argv[1])
        tempfile.tempdir = str(folder / "tmp")
        module = torch.nn.Linear(300, 300).eval()
        args = (torch.randn(1, 300),)
        compiled = torch2trt.compile(module, args, progress="none")
        compiled.save(folder / "old.t2t", program=True)
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        calls = {
            "save": lambda: compiled.save(folder / "new.t2t", program=True),
            "replace": lambda: compiled.save(folder / "old.t2t", program=True),
            "export": lambda: torch2trt.export(module, args, folder / "new.engine", progress="none"),
            "child": lambda: torch2trt.compile(module, args, progress="none", build_in_subprocess=True),
        }
        for name, call in calls.items():
            try:
                call()
                print(name, "raised nothing")
            except ArtifactWriteError as error:
                assert error.code == "T2T603" and error.hint and error.subject, error
        print(torch2trt.load(folder / "old.t2t").reference(*args).shape)
    """
    (tmp_path / "tmp").mkdir()
    process = run(script, tmp_path, room)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert output.strip().splitlines()[-1] == "torch.Size([1, 300])", output
    assert "raised nothing" not in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.t2t", "tmp"]
    assert not list((tmp_path / "tmp").iterdir())


def test_two_processes_that_build_into_one_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = """
        import sys
        import torch, torch2trt
        device = "cuda" if torch.cuda.is_available() else "cpu"
        width = int(sys.argv[2])
        module = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU()).eval().to(device)
        for size in (16, 24):
            compiled = torch2trt.compile(
                module, (torch.randn(1, 3, size, size, device=device),), cache_dir=sys.argv[1], progress="none"
            )
        print("built", len(compiled.artifact.plan) > 0)
    """
    processes = [run(script, tmp_path, width) for width in (8, 16)]
    for process in processes:
        output, _ = process.communicate(timeout=250)
        assert output.strip().splitlines() == ["built True"], output
    with caplog.at_level(logging.WARNING, "torch2trt"):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module = nn.Conv2d(3, 8, 3).eval().to(device)
        compiling(module, torch.randn(1, 3, 16, 16, device=device), cache_dir=tmp_path)()
    assert not caplog.records, "what both wrote is read without complaint"
    assert {path.suffix for path in (tmp_path / "timing").rglob("*")} <= {".cache", ".lock"}
