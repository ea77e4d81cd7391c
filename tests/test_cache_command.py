"""The engine cache on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from torch2trt.engine.cache import EngineCache
from torch2trt.settings import Settings
from torch2trt.tools import cli

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.scale = scale

    def forward(self, x):
        return self.layers(x) * self.scale
"""

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What names a model and a cache of its own on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cached_net.py").write_text(NET)
    flavour = ["--flavour", "tensorrt_rtx", "--cache-dir", str(tmp_path)]
    return ["cached_net.py:Net", "--input", "x:n=1..2..4x3x8x8", *flavour]


def run(capsys: Capture, *argv: str, code: int = 0) -> dict[str, Any]:
    assert cli.main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_list_why_and_prune(model: list[str], capsys: Capture, tmp_path: Path) -> None:
    where = ["--cache-dir", str(tmp_path)]
    assert run(capsys, "cache", "list", *where)["entries"] == []
    why = ["cache", "why", *model, "--engine-cache"]
    assert run(capsys, *why)["engines"][0]["nearest"] is None

    compiling = ["compile", *model, "-o", "net.t2t", "--engine-cache"]
    assert run(capsys, *compiling)["cache"] == "miss"
    assert run(capsys, *compiling)["cache"] == "hit"
    (entry,) = run(capsys, "cache", "list", *where)["entries"]
    assert [entry["name"], entry["hits"], entry["inputs"]] == ["Net", 1, "x: float32[n, 3, 8, 8]"]
    assert entry["saved_s"] == entry["build_s"] > 0
    assert entry["bytes"] > 1000

    (found,) = run(capsys, *why)["engines"]
    assert [found["state"], found["differences"], found["key"]] == ["hit", [], entry["key"]]
    assert run(capsys, "cache", "list", *where)["entries"][0]["hits"] == 1, "asking is no use"

    other = run(capsys, *why, "--optimization-level", "1", "--profile", "n=4", "--model-arg", "scale=3.0")
    (found,) = other["engines"]
    assert found["state"] == "miss"
    lines = {each["section"]: each["lines"] for each in found["differences"]}
    assert set(lines) == {"graph", "profiles", "settings"}
    assert lines["settings"] == ["optimization_level: null → 1"]
    assert lines["profiles"] == ["+ n 4"]
    assert any("3.0" in line for line in lines["graph"])

    run(capsys, *compiling, "--optimization-level", "1")
    assert run(capsys, "cache", "prune", *where, "--older-than", "1")["removed"] == 0
    cache = EngineCache.of(Settings(cache_dir=tmp_path))
    os.utime(cache.folder / entry["key"] / "uses", (1e9, 1e9))
    assert run(capsys, "cache", "prune", *where, "--older-than", "1")["removed"] == 1
    assert [stored.entry.key != entry["key"] for stored in cache.entries()] == [True]
    assert run(capsys, "cache", "prune", *where, "--max-bytes", str(cache.size))["removed"] == 0
    assert run(capsys, "cache", "prune", *where, "--all")["bytes"] == 0


def test_tables(model: list[str], capsys: Capture, tmp_path: Path) -> None:
    assert cli.main(["compile", *model, "-o", "net.t2t", "--engine-cache"]) == 0
    assert cli.main(["cache", "list", "--cache-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 engine(s)" in out
    assert cli.main(["cache", "why", *model]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "its engines are not cached: tensorrt_rtx builds quickly" in out
    assert "Net: is in the cache" in out
    assert cli.main(["cache", "why", *model, "--precision", "fp16"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Net: is not in the cache; nearest is 'Net'" in out
    assert 'precision: null → "fp16"' in out
    assert cli.main(["cache", "prune", "--all", "--cache-dir", str(tmp_path)]) == 0
    assert "1 engine(s) removed" in capsys.readouterr().out


def test_segments_are_asked_about_one_by_one(model: list[str], capsys: Capture) -> None:
    how = [*model, "--engine-cache", "--run-in-torch", "aten.relu", "--min-segment", "1"]
    run(capsys, "compile", *how, "-o", "net.t2t")
    found = run(capsys, "cache", "why", *how, "--model-arg", "scale=2.0")["engines"]
    assert [each["state"] for each in found] == ["hit", "miss"]
    assert [each["name"] for each in found] == ["Net[0]", "Net[2]"]


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["cache"], "COMMAND"),
        (["cache", "prune"], "--max-bytes --older-than --all"),
        (["cache", "prune", "--all", "--max-bytes", "1"], "not allowed with"),
        (["cache", "why"], "MODEL"),
    ],
)
def test_mistakes(capsys: Capture, argv: list[str], text: str) -> None:
    assert text in run(capsys, *argv, code=2)["error"]["message"]


def test_pieces_are_asked_about_one_by_one(model: list[str], capsys: Capture, tmp_path: Path) -> None:
    text = "from tests.test_pieces_dynamic import Steady\n"
    (tmp_path / "in_pieces.py").write_text(text)
    asked = ["in_pieces.py:Steady", "--input", "x:batch=2..4..64x8", *model[3:], "--engine-cache", "--min-segment", "1"]
    compiled = run(capsys, "compile", *asked, "-o", "pieces.t2t")
    assert compiled["cache"] == "miss"
    assert compiled["engines"] == 2
    found = run(capsys, "cache", "why", *asked)["engines"]
    assert [each["state"] for each in found] == ["hit", "hit"]
    found = run(capsys, "cache", "why", *asked, "--profile", "batch=2", "--profile", "batch=4..16..64")["engines"]
    assert [each["state"] for each in found] == ["miss", "miss"]
    assert all("profiles" in str(each["differences"]) or "64" in str(each["differences"]) for each in found)
    refused = run(capsys, "cache", "why", *asked, "--no-fallback", code=2)
    assert refused["error"]["code"] == "T2T110"
    refused = run(capsys, "cache", "why", *asked[:-1], "99", code=2)
    assert "min_segment is 99" in str(refused["error"])
