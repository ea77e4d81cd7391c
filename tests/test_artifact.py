"""Artifacts: what is written is what is read, whole or not at all."""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from tests.artifacts import make_artifact, with_manifest, with_members
from torch2trt.errors import ArtifactError, ArtifactWriteError, ProgramMissingError
from torch2trt.frontend.export import capture
from torch2trt.runtime import files
from torch2trt.runtime.artifact import load, save, to_bytes
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.settings import Settings

# Round trips --------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    artifact = make_artifact()
    save(artifact, tmp_path / "net.t2t")
    loaded = load(tmp_path / "net.t2t")
    assert loaded.artifact == artifact
    assert not loaded.has_program
    assert [path.name for path in tmp_path.iterdir()] == ["net.t2t"]


def test_bytes_are_the_file(tmp_path: Path) -> None:
    artifact = make_artifact()
    save(artifact, tmp_path / "net.t2t")
    assert (tmp_path / "net.t2t").read_bytes() == to_bytes(artifact)
    assert load(to_bytes(artifact)).artifact == artifact


def test_an_artifact_without_gpu_and_report() -> None:
    artifact = make_artifact(gpu=None, report={}, plan=b"")
    assert load(to_bytes(artifact)).artifact == artifact


def test_the_builders_cache_folder_stays_behind(tmp_path: Path) -> None:
    artifact = make_artifact(settings=Settings(cache_dir=tmp_path))
    assert str(tmp_path).encode() not in to_bytes(artifact)
    assert load(to_bytes(artifact)).artifact.settings == Settings()


def test_saving_replaces_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "net.t2t"
    save(make_artifact(name="old"), path)
    save(make_artifact(name="new"), path)
    assert load(path).artifact.name == "new"


Point = collections.namedtuple("Point", "a b")


@pytest.mark.parametrize(
    "result",
    [
        [0, 1, 2, 3],
        (0, [1], {"k": (2, 3)}),
        collections.OrderedDict(a=0, b=1, c=2, d=3),
        collections.defaultdict(list, a=0, b=[1, 2, 3]),
        collections.deque([0, 1, 2, 3]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_result_structures(result: Any) -> None:
    artifact = make_artifact(result)
    loaded = load(to_bytes(artifact)).artifact
    assert pytree.tree_unflatten([0, 1, 2, 3], loaded.signature.out_spec) == result


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight  # tied

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_the_program_travels_when_asked_for(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    module = Small().eval()
    program = capture(module, (x,))
    artifact = make_artifact(signature=program.signature)
    save(artifact, tmp_path / "net.t2t", program=program)
    loaded = load(tmp_path / "net.t2t")
    assert loaded.artifact == artifact
    assert loaded.has_program
    with torch.no_grad():
        assert torch.equal(loaded.program()(x), module(x))


def test_a_program_that_did_not_travel() -> None:
    loaded = load(to_bytes(make_artifact()))
    with pytest.raises(ProgramMissingError, match=r"T2T604.*net: was saved without its Program") as caught:
        loaded.program()
    assert "program=True" in caught.value.hint


def test_a_program_damaged_by_hand() -> None:
    program = capture(Small().eval(), (torch.randn(2, 4),))
    data = to_bytes(make_artifact(signature=program.signature), program=program)
    for member, content in (("program.json", b"[]"), ("program.json", b"{"), ("program.safetensors", b"weights")):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            digests = json.loads(archive.read("manifest.json"))["members"]
        digests[member] = hashlib.sha256(content).hexdigest()
        loaded = load(with_members(with_manifest(data, members=digests), **{member: content}))
        with pytest.raises(ArtifactError, match="malformed"):
            loaded.program()


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="name code to call"):
        save(make_artifact(collections.defaultdict(Small, a=0, b=1, c=2, d=3)), tmp_path / "net.t2t")
    assert not list(tmp_path.iterdir())


# Full disks ---------------------------------------------------------------------------------------------------------


class FullDisk(io.BytesIO):
    """A file on which no more than some bytes fit."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def fileno(self) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 100, 4000, 10**9])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    path = tmp_path / "net.t2t"
    save(make_artifact(name="old"), path)

    def full(name: Any, mode: str) -> FullDisk:
        Path(name).touch()
        file = FullDisk()
        file.room = room
        return file

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", full, raising=False)
        with pytest.raises(
            ArtifactWriteError, match=r"\[T2T603\] .*net.t2t: could not be written: No space left"
        ) as caught:
            save(make_artifact(name="new"), path)
        with pytest.raises(ArtifactWriteError):
            export_plan(make_artifact(), tmp_path / "net.engine")
    assert isinstance(caught.value, OSError)
    assert "free space" in caught.value.hint
    assert [item.name for item in tmp_path.iterdir()] == ["net.t2t"]
    assert load(path).artifact.name == "old"


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with files.atomic_file(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match="No such file or directory"):
        save(make_artifact(), tmp_path / "none" / "net.t2t")


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "net.t2t").mkdir()
    with pytest.raises(ArtifactWriteError):
        save(make_artifact(), tmp_path / "net.t2t")
    with pytest.raises(ArtifactWriteError):
        save(make_artifact(), tmp_path / "net.t2t" / "file" / "deeper")
    assert [item.name for item in tmp_path.iterdir()] == ["net.t2t"]


# Bare plans ---------------------------------------------------------------------------------------------------------


def test_a_bare_plan_and_what_it_takes(tmp_path: Path) -> None:
    artifact = make_artifact()
    export_plan(artifact, tmp_path / "net.engine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.engine", "net.engine.json"]
    assert (tmp_path / "net.engine").read_bytes() == artifact.plan
    described = json.loads((tmp_path / "net.engine.json").read_text())
    assert described["inputs"] == [
        {
            "name": "x",
            "shape": ["batch", 3],
            "dtype": "float32",
            "profile": {"min": [1, 3], "opt": [4, 3], "max": [16, 3]},
        }
    ]
    assert described["outputs"][0]["profile"]["max"] == [32, 3]
    assert described["dims"] == {"batch": {"min": 1, "opt": 4, "max": 16}}
    assert (described["flavour"], described["flavour_version"]) == ("tensorrt", "10.6.0")
    assert described["precision"] == "fp16"


def test_precision_is_the_coarsest_of_the_dtypes_unless_asked_for() -> None:
    unset = make_artifact(settings=Settings())
    assert unset.precision == "fp16"
    assert dataclasses.replace(unset, settings=Settings(precision="fp32")).precision == "fp32"
