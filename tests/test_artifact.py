"""Artifacts: what is written is what is read, what is damaged is refused, and no file runs code."""

from __future__ import annotations

import collections
import dataclasses
import errno
import hashlib
import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv

from torch2trt.errors import ArtifactError, ArtifactWriteError, ProgramMissingError
from torch2trt.frontend.export import capture
from torch2trt.graph.signature import ConstantLeaf, InputLeaf, Signature, SizeLeaf, TensorLeaf
from torch2trt.runtime import files
from torch2trt.runtime.artifact import Artifact, load, save, to_bytes
from torch2trt.runtime.bare_plan import export_plan
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol

BATCH = symbol("batch")


def make_artifact(result: Any = None, **changes: Any) -> Artifact:
    result = {"y": 0, "rest": [1, (2, 3)]} if result is None else result
    signature = Signature(
        inputs=(TensorLeaf("x", TensorSpec((BATCH, 3), torch.float32)), ConstantLeaf(True)),
        outputs=(
            TensorLeaf("y", TensorSpec((2 * BATCH, 3), torch.float16)),
            ConstantLeaf(None),
            InputLeaf(0),
            SizeLeaf(FloorDiv(BATCH, 2) + 1),
        ),
        in_spec=pytree.tree_structure(((0,), {"flag": 0})),
        out_spec=pytree.tree_structure(result),
        dims={"batch": DimRange(1, 4, 16)},
        parameters=("x", "flag"),
    )
    values: dict[str, Any] = {
        "name": "net",
        "plan": random.Random(0).randbytes(5000),
        "signature": signature,
        "settings": Settings(precision="fp16", workspace=1 << 20, cuda_graphs=False),
        "flavour": "tensorrt",
        "flavour_version": "10.6.0",
        "gpu": "NVIDIA H200 (9.0)",
        "report": {"nodes": 7, "layers": 5, "build_s": 1.5},
    }
    return Artifact(**(values | changes))


def with_members(data: bytes, **changes: bytes | None) -> bytes:
    """The zip with members replaced, added, or, where None, left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (members | changes).items():
            if content is not None:
                archive.writestr(name, content)
    return buffer.getvalue()


def with_manifest(data: bytes, **changes: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return with_members(data, **{"manifest.json": json.dumps(manifest | changes).encode()})


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


# Damage -------------------------------------------------------------------------------------------------------------


def test_truncated_anywhere() -> None:
    data = to_bytes(make_artifact())
    ends = {*range(64), *range(0, len(data), 97), *range(len(data) - 64, len(data))}
    for end in ends:
        with pytest.raises(ArtifactError) as caught:
            load(data[:end])
        assert caught.value.code == "T2T601"


def test_a_flipped_bit_is_refused_or_harmless() -> None:
    artifact = make_artifact()
    data = to_bytes(artifact)
    chosen = random.Random(1)
    plan_starts = data.index(artifact.plan)
    refused = 0
    # All of the zip's own fields and the manifest lie outside the plan; inside it some places will do.
    places = [*range(0, plan_starts, 3), *range(plan_starts + len(artifact.plan), len(data))]
    places += chosen.sample(range(plan_starts, plan_starts + len(artifact.plan)), 200)
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << chosen.randrange(8)
        try:
            assert load(bytes(damaged)).artifact == artifact, f"byte {place}"
        except ArtifactError:
            refused += 1
    assert refused > 0.8 * len(places)


def test_a_flipped_bit_in_the_plan_is_named(tmp_path: Path) -> None:
    artifact = make_artifact()
    data = bytearray(to_bytes(artifact))
    data[data.index(artifact.plan) + 2500] ^= 1
    path = tmp_path / "net.t2t"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"\[T2T601\] .*net.t2t: is truncated or corrupt"):
        load(path)


def test_a_member_exchanged_with_a_sound_zip_checksum() -> None:
    data = to_bytes(make_artifact())
    with pytest.raises(ArtifactError, match="plan is corrupt: its checksum differs"):
        load(with_members(data, plan=b"another plan"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"ptrt" + bytes(100), "is no artifact"),
        (b"\x80\x04\x95 a pickle", "is no artifact"),
        (b"PK", "truncated or corrupt"),
        (b"PK\x03\x04" + bytes(500), "truncated or corrupt"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=reason):
        load(path)


def test_a_bare_plan_says_what_it_is_for() -> None:
    with pytest.raises(ArtifactError) as caught:
        load(b"ptrt" + bytes(100))
    assert "trtexec" in caught.value.hint


def test_zips_of_others(tmp_path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, tmp_path / "weights.pt")
    with pytest.raises(ArtifactError, match="is a zip, but no artifact"):
        load(tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("manifest.json", '{"app": "other"}')
        archive.writestr("plan", "b")
    with pytest.raises(ArtifactError, match="is a zip, but no artifact"):
        load(tmp_path / "other.zip")


def test_members_that_no_artifact_has() -> None:
    data = to_bytes(make_artifact())
    for name in ("../../evil.py", "__init__.py", "program.json"):
        with pytest.raises(ArtifactError, match="other members"):
            load(with_members(data, **{name: b"x"}))
    with pytest.raises(ArtifactError, match="other members"):
        load(with_members(data, plan=None))


def test_two_members_of_one_name() -> None:
    buffer = io.BytesIO(to_bytes(make_artifact()))
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(buffer, "a") as archive,
    ):
        archive.writestr("plan", b"second")
    with pytest.raises(ArtifactError, match="other members"):
        load(buffer.getvalue())


def test_a_compressed_member_is_not_inflated() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("plan", bytes(10_000_000))
    with pytest.raises(ArtifactError, match="compressed"):
        load(buffer.getvalue())


def test_a_missing_file_is_just_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.t2t")


def test_a_class_that_is_not_registered_here() -> None:
    signature = make_artifact().signature.to_json()
    unknown = [1, {"type": "package.outputs.Output", "context": "null", "children_spec": []}]
    with pytest.raises(ArtifactError, match=r"here: package\.outputs\.Output") as raised:
        Signature.from_json(signature | {"out_spec": json.dumps(unknown)})
    assert "import package.outputs before" in str(raised.value)


def test_a_newer_format_version() -> None:
    with pytest.raises(ArtifactError, match="format version 99, this is version 1"):
        load(with_manifest(to_bytes(make_artifact()), version=99))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"gpu": ["a"]},
        {"flavour": "os"},
        {"report": []},
        {"settings": {"unknown": 1}},
        {"settings": {"precision": "fp3"}},
        {"settings": []},
        {"signature": {}},
        {"signature": None},
        {"signature": "text"},
        {"members": None},
        {"members": {}},
        {"members": {"plan": None}},
        {"members": {"plan": 5, "more": 6}},
    ],
    ids=str,
)
def test_a_malformed_manifest(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        load(with_manifest(to_bytes(make_artifact()), **changes))


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"1" * 5000])
def test_a_manifest_that_is_no_json(text: bytes) -> None:
    with pytest.raises(ArtifactError):
        load(with_members(to_bytes(make_artifact()), **{"manifest.json": text}))


def test_every_part_of_the_signature_exchanged() -> None:
    data = to_bytes(make_artifact())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        signature = json.loads(archive.read("manifest.json"))["signature"]

    def variants(value: Any) -> Any:
        """The value with each part of it replaced, one at a time."""
        yield from (None, -1, "junk", [], {}, "(" * 500)
        if isinstance(value, list):
            for index, item in enumerate(value):
                for changed in variants(item):
                    yield [*value[:index], changed, *value[index + 1 :]]
        elif isinstance(value, dict):
            for key, item in value.items():
                for changed in variants(item):
                    yield value | {key: changed}

    refused = 0
    for changed in variants(signature):
        try:
            load(with_manifest(data, signature=changed))
        except ArtifactError:
            refused += 1
    assert refused > 50


# No code ------------------------------------------------------------------------------------------------------------


def planted(tmp_path: Path) -> str:
    """A module that leaves a trace when it is imported."""
    (tmp_path / "planted_module.py").write_text("raise SystemExit('code ran')")
    return "planted_module"


def test_a_saved_default_factory_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = planted(tmp_path)
    data = to_bytes(make_artifact(collections.defaultdict(list, a=0, b=1, c=2, d=3)))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        signature = json.loads(archive.read("manifest.json"))["signature"]
    for factory_module, factory_name in ((module, "run"), ("os", "abort"), ("builtins", "breakpoint")):
        changed = (
            signature["out_spec"].replace('"builtins"', f'"{factory_module}"').replace('"list"', f'"{factory_name}"')
        )
        assert changed != signature["out_spec"]
        with pytest.raises(ArtifactError, match="name code to call"):
            load(with_manifest(data, signature=signature | {"out_spec": changed}))
    assert module not in sys.modules


def test_a_saved_enum_key_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = planted(tmp_path)
    data = to_bytes(make_artifact({"a": 0, "b": 1, "c": 2, "d": 3}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        signature = json.loads(archive.read("manifest.json"))["signature"]
    protocol, spec = json.loads(signature["out_spec"])
    spec["context"] = json.dumps([{"__enum__": True, "fqn": f"{module}:Key", "name": "FIRST"}, "b", "c", "d"])
    with pytest.raises(ArtifactError, match="name an enum"):
        load(with_manifest(data, signature=signature | {"out_spec": json.dumps([protocol, spec])}))
    assert module not in sys.modules


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
