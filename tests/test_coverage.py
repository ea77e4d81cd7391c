"""The counts and the pages of what converts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from torch2trt.converters import registry
from torch2trt.sizes import TensorSpec
from torch2trt.tools import cli, coverage
from torch2trt.tools.coverage_pages import PAGES, capabilities, refusals


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_current(name: str) -> None:
    written = (coverage.FOLDER / name).read_text(encoding="utf-8")
    assert written == PAGES[name](coverage.read()), "run: torch2trt coverage"


def test_the_committed_results_are_what_writing_them_gives(tmp_path: Path) -> None:
    coverage.write(coverage.read(), tmp_path)
    for name in ("models.json", "samples.json"):
        committed = (coverage.FOLDER / "coverage" / name).read_bytes()
        assert (tmp_path / "coverage" / name).read_bytes() == committed


def sample(op: str, number: int, status: str, *operators: str, dtype: str = "float32") -> dict[str, Any]:
    return {"op": op, "dtype": dtype, "sample": number, "status": status, "detail": "", "operators": operators}


def model(name: str, status: str, **more: Any) -> dict[str, Any]:
    found = {
        "flavour": "tensorrt_rtx",
        "family": "",
        "nodes": 5,
        "layers": 7,
        "engines": 1,
        "error": 1e-7,
        "seconds": 3.0,
        "in_torch": [],
    }
    return {"name": name, "status": status, "detail": "", **found, **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    coverage.write(coverage.Coverage((), {}, ()), tmp_path)
    return tmp_path


def lines(path: Path, *items: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def test_results_are_taken_in_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = lines(
        folder / "models.jsonl",
        model("timm:b", "failed", detail="hang"),
        model("timm:b", "hybrid", engines=2, in_torch=[["aten.nonzero.default", 3, "no converter"]]),
        model("own:a", "whole"),
        model("own:c", "failed", detail="crash: a | b"),
    )
    on_gpu = lines(folder / "gpu.jsonl", model("own:a", "hybrid", flavour="tensorrt", error=3e-6))
    opinfo = lines(
        folder / "opinfo.jsonl",
        sample("add", 0, "wrong", "aten.add.Tensor"),
        sample("add", 0, "right", "aten.add.Tensor"),
        sample("add", 1, "refused", "aten.add.Tensor", "aten.mul.Tensor"),
        sample("add", 2, "skipped", "aten.mul.Tensor"),
        sample("sub", 0, "crash", "aten.sub.Tensor"),
        sample("mul", 0, "refused", "aten.mul.Tensor"),
    )
    rows = lines(folder / "rows.jsonl", sample("abs-row", 0, "right", "aten.abs.default", dtype="row"))
    arguments = ["coverage", "--folder", str(folder), "--json"]
    assert cli.main([*arguments, "--models", models, "--models", on_gpu, "--samples", opinfo, "--samples", rows]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["models"] == {"total": 3, "whole": 0, "hybrid": 2, "failed": 1}
    assert counts["samples"] == {"total": 4, "right": 1, "refused": 2, "wrong": 1}
    samples = {"right": 1, "refused": 2, "wrong": 1}
    assert counts["core_aten"] == {"total": len(coverage.core_operators()), "converted": 2, "samples": samples}
    assert "4 samples that PyTorch has of them 1 are right (25.00 %)" in (folder / "operators.md").read_text()
    found = coverage.read(folder)
    assert found.is_converted("aten.add.Tensor")
    assert found.is_converted("aten.abs.default"), "by the row of a table"
    assert not found.is_converted("aten.sub.Tensor"), "wrong"
    assert not found.is_converted("aten.mul.Tensor"), "never right"
    page = (folder / "models.md").read_text()
    assert "| `b` | hybrid | 5 | 7 | 2 | 1e-07 |  |  | `aten.nonzero.default` (3): no converter |" in page
    assert "| `a` | whole | 5 | 7 | 1 | 1e-07 | hybrid | 3e-06 |  |" in page
    assert r"crash: a \| b" in page
    # What comes later takes the place of what was there, and nothing else.
    again = lines(folder / "again.jsonl", model("own:c", "whole"))
    assert cli.main([*arguments, "--models", again]) == 0
    assert json.loads(capsys.readouterr().out) == {
        **counts,
        "models": {"total": 3, "whole": 1, "hybrid": 2, "failed": 0},
    }


def test_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coverage", "--folder", str(tmp_path), "--json"]) == 2
    assert "models.json" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert cli.main(["coverage", "--models", str(tmp_path / "none.jsonl"), "--json"]) == 2


def test_reasons_are_read_from_the_code() -> None:
    found = registry.find(torch.ops.aten.adaptive_avg_pool2d.default)
    assert found is not None
    texts = refusals(found)
    assert "TensorRT computes it in floating point only (got …)" in texts, "of a function that it hands on to"
    spec = TensorSpec((2, 3, 4, 4), torch.int64)
    assert found.unsupported is not None
    reason = found.unsupported(input=spec, output_size=[2, 2], used=set())
    assert reason is not None
    assert any(reason.startswith(text.partition("…")[0]) for text in texts)


def test_converters_of_others_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(net: object, input: object) -> object:
        return input

    target = torch.ops.aten.sinc.default
    monkeypatch.setitem(registry._TABLE, target, registry.Converter(target, theirs, None))
    assert "aten.sinc.default" not in PAGES["operators.md"](coverage.read())


def test_most_reasons_are_found() -> None:
    silent = [each.target for each in registry.all_converters() if each.unsupported is not None and not refusals(each)]
    assert not silent


def test_what_is_asked_of_the_flavour_is_named() -> None:
    found = registry.find(torch.ops.aten.cumsum.default)
    assert found is not None
    assert capabilities(found) == ["cumulative (tensorrt from 10.8, tensorrt_rtx from 1.2)"]
