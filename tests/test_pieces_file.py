"""Files of modules in pieces: what is damaged or of another kind is refused, and what the command line says of them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

import torch2trt
from tests.artifacts import make_artifact, with_manifest, with_members
from tests.piecewise import saved
from tests.test_pieces import QUICK, Forked
from torch2trt.errors import (
    ArtifactError,
    ExampleInputError,
    TrainingModeError,
)
from torch2trt.runtime import artifact, pieces_file
from torch2trt.runtime.module import EngineModule
from torch2trt.tools import cli

__all__ = ["saved"]  # a fixture, which tests name

REGION = {"region": ["a" * 32] * 2, "flavour": "tensorrt 11.0"}


# Files --------------------------------------------------------------------------------------------------------------


def test_what_to_pass_is_said(saved: Path, tmp_path: Path) -> None:
    module = Forked().eval()
    for load in (torch2trt.load, EngineModule.load, artifact.load):
        with pytest.raises(ArtifactError, match=r"forked.t2t: holds the engines of a module in pieces") as caught:
            load(saved)
        assert "load(path, module=model)" in caught.value.hint
    artifact.save(make_artifact(), tmp_path / "whole.t2t")
    with pytest.raises(ArtifactError, match=r"whole.t2t: is the artifact of a whole module") as caught:
        torch2trt.load(tmp_path / "whole.t2t", module=module)
    assert "without module=" in caught.value.hint
    with pytest.raises(ExampleInputError, match="device: is where the module is"):
        torch2trt.load(saved, module=module, device="cuda:0")  # type: ignore[call-overload]
    with pytest.raises(ExampleInputError, match="module: is type"):
        torch2trt.load(saved, module=Forked)  # type: ignore[call-overload]
    with pytest.raises(TrainingModeError):
        torch2trt.load(saved, module=Forked().train())
    with pytest.raises(FileNotFoundError):
        torch2trt.load(tmp_path / "none.t2t", module=module)


def test_truncated_or_damaged(saved: Path) -> None:
    data, module, draw = saved.read_bytes(), Forked().eval(), random.Random(0)
    for end in (0, 1, 30, *(draw.randrange(len(data)) for _ in range(20)), len(data) - 1):
        with pytest.raises(ArtifactError):
            torch2trt.load(data[:end], module=module)
    refused = 0
    places = [*range(0, 2000, 17), *(draw.randrange(len(data)) for _ in range(60))]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        try:
            torch2trt.load(bytes(changed), module=module)
        except ArtifactError:
            refused += 1
    assert refused > 0.8 * len(places)


def test_members_that_are_exchanged(saved: Path) -> None:
    data, module = saved.read_bytes(), Forked().eval()
    first, second, _ = [f"{key.graph}-{key.weights}.t2t" for key in pieces_file.load(data).engines]
    for changes in ({first: None}, {first: b"another"}, {"more.t2t": b"more"}, {first: None, "../more": b"more"}):
        with pytest.raises(ArtifactError, match=r"its manifest names|is corrupt"):
            torch2trt.load(with_members(data, **changes), module=module)
    with pytest.raises(ArtifactError, match="other members than its engines"):
        torch2trt.load(with_manifest(data, engines=[[*second.removesuffix(".t2t").split("-")]]), module=module)


@pytest.mark.parametrize(
    "changes",
    [
        *({"name": 3}, {"torch_version": None}, {"settings": {"unknown": 1}}, {"settings": []}, {"members": None}),
        *({"engines": None}, {"engines": [3]}, {"engines": [["a", "b"]]}, {"engines": [["a" * 32] * 3]}),
        *({"refusals": 3}, {"refusals": [{}]}, {"refusals": [{**REGION, "code": "T2T999"}]}),
        {"refusals": [{**REGION, "code": "T2T104", "reason": 3}]},
        {"refusals": [{**REGION, "code": "T2T104", "subject": "x"}]},
        {"refusals": [{**REGION, "code": "T2T201", "nodes": [{"node": 1, "op": "", "reason": ""}]}]},
        {
            "refusals": [
                {**REGION, "flavour": 3, "code": "T2T104", "reason": "", "subject": "", "source": "", "hint": ""}
            ]
        },
        {"version": 99},
    ],
    ids=str,
)
def test_a_malformed_manifest(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        torch2trt.load(with_manifest(saved.read_bytes(), **changes), module=Forked().eval())


def test_a_file_does_not_say_where_builds_write(saved: Path, tmp_path: Path) -> None:
    data = with_manifest(saved.read_bytes(), settings={**QUICK, "cache_dir": str(tmp_path / "elsewhere")})
    assert torch2trt.load(data, module=Forked().eval()).settings.cache_dir is None


def test_an_engine_that_is_no_artifact_is_named(saved: Path) -> None:
    found = pieces_file.load(saved)
    first = next(iter(found.engines))
    with pytest.raises(ArtifactError, match="is no artifact of torch2trt: " + first.graph):
        pieces_file.load(_with_engine(saved.read_bytes(), f"{first.graph}-{first.weights}.t2t", b"nothing"))


def _with_engine(data: bytes, name: str, content: bytes) -> bytes:
    """The file with another member that its manifest agrees to."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        digests = json.loads(file.read("manifest.json"))["members"]
    digests[name] = hashlib.sha256(content).hexdigest()
    return with_manifest(with_members(data, **{name: content}), members=digests)


# The command line ---------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "odd_model.py"
    source.write_text(
        "import torch\nfrom tests.test_pieces import Forked\n\n\nclass Odd(Forked):\n    def forward(self, x):\n"
        "        return super().forward(torch.special.airy_ai(x))\n"
    )
    path = tmp_path / "odd.t2t"
    options = ["--input", "4x8", "--min-segment", "1", "--progress", "none", "-o", str(path), "--json"]
    assert cli.main(["compile", f"{source}:Odd", *options]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["output"], written["pieces"]) == (str(path), 2)

    assert cli.main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "Odd"
    assert found["settings"] == {"min_segment": 1, "progress": "none"}
    assert [each["program"] for each in found["engines"]] == [False, False]
    assert found["engines"][0]["report"]["layers"] > 0
    assert "airy_ai" in found["left_to_eager"][0]
    assert found["engine_bytes"] < found["file_bytes"] == path.stat().st_size
    assert cli.main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "Odd, in pieces" in shown
    assert "left to eager: [T2T201]" in shown
    assert "module=model" in shown

    monkeypatch.setattr("torch2trt.tools.profile.command.check_gpu", lambda: None)
    assert cli.main(["profile", str(path)]) == 2
    assert "load(path, module=model)" in capsys.readouterr().err
