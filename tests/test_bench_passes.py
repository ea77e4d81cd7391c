"""What each pass is worth: which engines are compared, what is counted, and what becomes of failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import passes
from benchmarks.passes import Bench, Row, variants
from tests.benching import FakeMachine, named
from torch2trt.errors import SettingError
from torch2trt.tools.bench import rows
from torch2trt.tools.bench.case import Case, Subject
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.prepare import Prepared
from torch2trt.trt import flavour as flavours

MODEL = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        return (self.first(x).relu() + self.second(x).relu()).relu()
"""
NAMES = ["merge_views", "fuse_linear_blocks", "merge_sibling_linears", "merge_sibling_convolutions"]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The one row of the suite ``passes``."""
    (tmp_path / "model.py").write_text(MODEL)
    case = Case("two", f"{tmp_path / 'model.py'}:Two", 4, "fp32", ("1x16",))
    monkeypatch.setitem(passes.SUITES, "passes", [case])
    return case


# Variants -------------------------------------------------------------------------------------------------------------


def test_every_pass_is_left_out_or_added_once() -> None:
    found = {variant.name: dict(variant.settings) for variant in variants((*passes.SKIPPABLE, *passes.EXTRA))}
    assert len(found) == 2 + len(passes.SKIPPABLE) + len(passes.EXTRA)
    assert found["default"] == {}
    assert found["without merge_views"] == {"skip_passes": ["merge_views"]}
    assert found["with merge_sibling_linears"] == {"extra_passes": ["merge_sibling_linears"]}
    assert found["without any"] == {"skip_passes": list(passes.SKIPPABLE)}


def test_some_of_them() -> None:
    names = [variant.name for variant in variants(["merge_sibling_linears", "sink_permutes", "merge_views"])]
    assert names == ["default", "without sink_permutes", "without merge_views", "with merge_sibling_linears"]
    with pytest.raises(SettingError, match="hoist_weights"):
        variants(["hoist_weights"])


# Counting -------------------------------------------------------------------------------------------------------------


def test_calls_and_layers_are_counted_without_a_gpu(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert passes.main(["--count", "--passes", ",".join(NAMES), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "3 different graphs of 5" in text
    # Blocks of a linear layer and its activation, their sum and its activation; the merged layer and two slices.
    lines = {name: line for line in text.splitlines() for name in ("default", *NAMES) if f" {name} " in line}
    calls = {name: int(line.split("│")[3]) for name, line in lines.items()}
    assert calls == {"default": 4, "fuse_linear_blocks": 6, "merge_sibling_linears": 5}
    layers = {name: int(line.split("│")[4]) for name, line in lines.items()}
    assert layers["merge_sibling_linears"] != layers["default"]
    assert not out.exists()


def test_each_choice_starts_from_the_same_graph(case: Case) -> None:
    chosen = variants(NAMES)
    subject, flavour = Subject(case), flavours.load()
    forwards = passes.graphs_of(subject, flavour, chosen)
    backwards = passes.graphs_of(subject, flavour, chosen[::-1])
    assert forwards == backwards
    assert len(set(forwards.values())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "--passes", "merge_view"], ("merge_view", "merge_views")),
        (["--count", "--rows", "three"], ("three", "two:4")),
    ],
    ids=["pass", "row"],
)
def test_unknown_names(
    case: Case, arguments: Sequence[str], words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert passes.main(arguments) == 2
    error = capsys.readouterr().err
    assert "T2T101" in error
    assert all(word in error for word in words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_times_need_a_gpu(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert passes.main([]) == 2
    assert "T2T304" in capsys.readouterr().err


# Measuring ------------------------------------------------------------------------------------------------------------


def run(case: Case, machine: FakeMachine | CudaMachine, work: Path, *, limit: float = 600.0) -> dict[str, Row]:
    bench = Bench(machine, flavours.load(), work, None, lambda line: None)
    return {row.variant: row for row in bench.run(case, variants(NAMES), rounds=2, limit=limit, commit="abc")}


def test_what_is_the_same_is_built_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[dict[str, Any]] = []

    def prepare(candidate: Any, case: Case, folder: Path, *, settings: dict[str, Any], timeout: float) -> Prepared:
        built.append({name: value for name, value in settings.items() if name.endswith("passes")})
        return Prepared(folder, capture_s=0.1, build_s=float(len(built)), peak_host_bytes=1)

    def open_call(candidate: Any, subject: Subject, *_: Any) -> Callable[[int], Any]:
        return named(str(built[-1]), subject.truth(torch.device("cpu")))

    monkeypatch.setattr(passes, "prepare", prepare)
    monkeypatch.setattr(passes, "open_call", open_call)
    fused, merged = {"skip_passes": ["fuse_linear_blocks"]}, {"extra_passes": ["merge_sibling_linears"]}
    found = run(case, FakeMachine({"{}": 2.0, str(fused): 3.0, str(merged): 1.0}), tmp_path)
    assert built == [{}, fused, merged]
    assert {name: row.gpu_ms_p50 for name, row in found.items()} == {
        "default": 2.0,
        "without merge_views": 2.0,
        "without fuse_linear_blocks": 3.0,
        "with merge_sibling_linears": 1.0,
        "with merge_sibling_convolutions": 2.0,
    }
    assert [row.ratio for row in found.values()] == [1.0, 1.0, 1.5, 0.5, 1.0]
    assert [row.same_as for row in found.values()] == ["", "default", "", "", "default"]
    assert [row.build_s for row in found.values()] == [1.0, 1.0, 2.0, 3.0, 1.0]
    assert all(row.max_rel_error == 0.0 and row.gpu == "Fake 9000" for row in found.values())


def test_a_build_that_fails_says_why(case: Case, tmp_path: Path) -> None:
    for row in run(case, FakeMachine(), tmp_path, limit=0.05).values():
        assert "T2T4" in row.error
        assert row.gpu_ms_p50 is row.ratio is None


def test_rows_in_a_file(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "passes.csv"
    first = Row("abc", "now", "two", 4, "fp32", "with merge_sibling_linears", 5, 9, gpu_ms_p50=0.5, ratio=1.25)
    plain = dataclasses.replace(first, variant="default", ratio=1.0)
    rows.replace(path, [first, plain], Row)
    assert rows.read(path, Row) == [plain, first]
    again = dataclasses.replace(first, commit="def", gpu_ms_p50=None, ratio=None, error="said no,\nand died")
    rows.replace(path, [again], Row)
    assert rows.read(path, Row) == [plain, again]


def test_a_variant_that_there_no_longer_is_comes_last() -> None:
    def row(variant: str) -> passes.Row:
        return passes.Row("abc", "", "net", 1, "fp32", variant, 1, 1)

    found = sorted([row("with merge_views"), row("with flip_rotary"), row("default")], key=lambda each: each.order)
    assert [each.variant for each in found] == ["default", "with flip_rotary", "with merge_views"]


@pytest.mark.gpu
def test_on_a_gpu(case: Case, tmp_path: Path) -> None:
    assert passes.main(["--passes", ",".join(NAMES), "--rounds", "2", "--out", str(tmp_path), "--commit", "abc"]) == 0
    (path,) = tmp_path.glob("passes-*.csv")
    found = {row.variant: row for row in rows.read(path, Row)}
    assert set(found) == {variant.name for variant in variants(NAMES)}
    for row in found.values():
        assert row.error == ""
        assert row.gpu_ms_p50
        assert row.max_rel_error is not None
        assert row.max_rel_error < 1e-5
    assert found["default"].ratio == 1.0
