"""Settings from a file, a mapping or an object: ``settings=`` and ``--settings``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch2trt
from tests.artifacts import with_manifest
from tests.pretending import make_module
from torch2trt.engine import child
from torch2trt.errors import ArtifactError, SettingError, UnsupportedOpsError
from torch2trt.runtime import artifact
from torch2trt.settings import Settings, merged
from torch2trt.tools import cli

QUIET: dict[str, Any] = {"optimization_level": 0, "progress": "none"}


class Eigenvalues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(x @ x.T)


def file_of(folder: Path, **fields: Any) -> Path:
    path = folder / "chosen.json"
    path.write_text(json.dumps(fields))
    return path


def test_a_file_a_mapping_and_settings_are_the_same(tmp_path: Path) -> None:
    fields = {"precision": "fp16", "run_in_torch": ["aten.relu"], "max_aux_streams": 2, "cuda_graphs": False}
    path = file_of(tmp_path, **fields)
    wanted = Settings(precision="fp16", run_in_torch=("aten.relu",), max_aux_streams=2, cuda_graphs=False)
    for given in (path, str(path), fields, wanted):
        assert Settings.make(settings=given) == wanted
    assert Settings.make(settings=None) == Settings()
    assert Settings.make(**wanted.to_json()) == wanted
    assert wanted.to_json() == fields


def test_other_keywords_win(tmp_path: Path) -> None:
    path = file_of(tmp_path, precision="fp16", optimization_level=2)
    assert Settings.make(settings=path, precision="bf16") == Settings(precision="bf16", optimization_level=2)
    assert merged({"settings": Settings(workspace=9), "min_segment": 2}) == {"workspace": 9, "min_segment": 2}


def test_what_only_says_how_a_build_goes_is_no_part_of_the_json() -> None:
    assert Settings(progress="none", cache_dir=Path("x"), build_timeout=3.0, timing_cache=False).to_json() == {}
    assert Settings(fallback=False, optimization_level=0).to_json() == {"optimization_level": 0, "fallback": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"precison": "fp16"}', ("precison", "did you mean 'precision'?")),
        ('{"precision": "fp17"}', ("chosen.json: precision", "'fp16'")),
        ('{"settings": "other.json"}', ("chosen.json: settings", "unknown setting")),
        ("[1]", ("chosen.json", "holds no object")),
        ("{", ("chosen.json", "cannot be read")),
        (None, ("chosen.json", "cannot be read")),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, text: str | None, words: tuple[str, ...]) -> None:
    path = tmp_path / "chosen.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError) as caught:
        Settings.make(settings=path)
    assert all(word in str(caught.value) for word in words)


def test_what_is_no_settings() -> None:
    with pytest.raises(SettingError, match="takes a file, a mapping or Settings"):
        Settings.make(settings=3)
    with pytest.raises(SettingError, match="unknown setting"):
        Settings.make(settings={"precison": "fp16"})


def test_artifacts_and_children_name_no_file(tmp_path: Path) -> None:
    """What comes from elsewhere is fields alone: reading it opens no other file."""
    given = {"settings": str(file_of(tmp_path, precision="fp16"))}
    with pytest.raises(ArtifactError, match="unknown setting"):
        artifact.load(with_manifest(artifact.to_bytes(make_module().artifact), settings=given))
    job = {"name": "net", "flavour": "tensorrt_rtx", "settings": given, "device": None, "log_level": 0, "own": {}}
    (tmp_path / child.JOB_FILE).write_text(json.dumps(job))
    with pytest.raises(SettingError, match="unknown setting"):
        child.Job.read(tmp_path)


def test_compile_takes_a_file(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    path = file_of(tmp_path, precision="fp16", max_aux_streams=0, fallback=False)
    compiled = torch2trt.compile(nn.Linear(3, 2).eval(), (x,), settings=path, **QUIET)
    assert compiled.artifact.settings == Settings(
        precision="fp16", max_aux_streams=0, fallback=False, optimization_level=0, progress="none"
    )
    # A keyword of its own, whose default does not win over the file.
    square = torch.eye(3)
    with pytest.raises(UnsupportedOpsError):
        torch2trt.compile(Eigenvalues().eval(), (square,), settings=path, **QUIET)
    with pytest.raises(UnsupportedOpsError):
        torch2trt.compile(Eigenvalues().eval(), (square,), settings={"fallback": True}, fallback=False, **QUIET)


def test_the_backend_takes_a_file(tmp_path: Path) -> None:
    # torch 2.11 leaves torch's own modules alone.
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu()

    path = file_of(tmp_path, precision="fp17")
    module = Net().eval()
    module.compile(backend="torch2trt", options={"settings": path})
    with pytest.raises(SettingError, match=r"chosen\.json: precision"), torch.no_grad():
        module(torch.randn(1, 3))


def test_the_command_line_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path, precision="fp16", min_segment=2)
    options = cli._parser().parse_args(["verify", "m", "--settings", str(path), "--min-segment", "3"])
    assert cli._settings(options) == {"precision": "fp16", "min_segment": 3}
    for command in (
        "compile",
        "export",
        "verify",
        "explain",
        "compare",
        "profile",
        "reduce",
        "inspect",
        "bench",
        "tune",
    ):
        more = ["-o", "x"] if command in ("compile", "export", "reduce") else []
        assert cli._parser().parse_args([command, "m", "--settings", str(path), *more]).settings == path
    path.write_text('{"precison": "fp16"}')
    assert cli.main(["explain", "torch.nn:Identity", "--input", "2", "--settings", str(path)]) == 2
    assert "did you mean 'precision'?" in capsys.readouterr().err


def test_a_reduced_script_has_what_the_file_says(tmp_path: Path) -> None:
    path = file_of(tmp_path, precision="fp16", run_in_torch=["aten.relu"])
    script = tmp_path / "small.py"
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    torch2trt.reduce(module, (torch.randn(1, 3),), path=script, fails=lambda *_: True, settings=path)
    text = script.read_text()
    assert "'precision': 'fp16'" in text
    assert "chosen.json" not in text
