"""Files that are no artifacts, or no longer: what is damaged is refused, and no file runs code."""

from __future__ import annotations

import collections
import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.artifacts import make_artifact, with_manifest, with_members
from torch2trt.errors import ArtifactError
from torch2trt.graph.signature import Signature
from torch2trt.runtime.artifact import load, to_bytes

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
