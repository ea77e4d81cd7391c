"""What the benchmark of compiling times, and what it tells."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import compiling
from tests.benching import case_of, models

__all__ = ["models"]  # a fixture, which tests name


def test_a_cached_engine_is_not_built_again(models: Path, tmp_path: Path) -> None:
    settings = {"cache_dir": str(tmp_path / "cache"), "engine_cache": True, "progress": "none"}
    first = compiling.compilations(case_of(models), settings, 2)
    assert 0 < first["TensorRT's build in the first"] < first["first"]
    assert 0 < first["found again, least"] <= first["found again, most"]
    known = compiling.compilations(case_of(models), settings, 1)
    assert known.keys() == {"first", "found again, least", "found again, most"}


def test_two_processes_are_told(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.csv"
    options = ["--model", f"{models}:net", "--precision", "fp32", "--times", "1", "--csv", str(path), "--commit", "abc"]
    assert compiling.main([*options, "--input", case_of(models).inputs[0]]) == 0
    with path.open() as file:
        lines = {line["what"]: float(line["seconds"]) for line in csv.DictReader(file)}
    assert "another process: first" in lines
    assert "another process: TensorRT's build in the first" not in lines
    assert "found again" in capsys.readouterr().out
