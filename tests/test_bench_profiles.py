"""Measuring an engine with several optimization profiles, in the sizes that each is tuned for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import run as suite_runner
from benchmarks import summary
from tests.benching import CPU, QUIET, FakeMachine, case_of, models, named, row
from torch2trt.errors import DynamicShapeError, ExampleInputError
from torch2trt.runtime.module import EngineModule
from torch2trt.tools.bench import command, main_from_cli, rows, session, table
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import Case, Subject
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.prepare import Prepared
from torch2trt.tools.bench.session import Options, Request, Session

__all__ = ["models"]  # a fixture, which tests name

DYNAMIC = ("batch=1..8..64x3x8x8",)
PROFILES = ("batch=1", "batch=2..16..64")


def dynamic(models: Path, **changes: Any) -> Case:
    return case_of(models, batch=None, inputs=DYNAMIC, profiles=PROFILES, **changes)


# Which sizes ----------------------------------------------------------------------------------------------------------


def test_each_profile_is_measured_in_the_size_that_it_is_tuned_for(models: Path) -> None:
    found = dynamic(models).measured()
    assert [case.sizes for case in found] == [(("batch", 1),), (("batch", 16),)]
    assert [str(case) for case in found] == ["net batch 1 fp32", "net batch 16 fp32"]
    assert {case.built for case in found} == {dynamic(models)}
    assert all(Case.from_json(case.to_json()) == case for case in found)


def test_a_batch_is_measured_in_the_profiles_that_hold_it(models: Path) -> None:
    case = dataclasses.replace(
        dynamic(models),
        inputs=("batch=1..8..64xlength=1..4..32",),
        profiles=("batch=1..2..4", "batch=2..16..64,length=32", "length=8"),
    )
    assert [each.at for each in case.measured(3)] == ["batch 3, length 4", "batch 3, length 32", "batch 3, length 8"]
    assert [each.at for each in case.measured(40)] == ["batch 40, length 32", "batch 40, length 8"]
    whole = dataclasses.replace(case, profiles=())
    assert [each.at for each in (*whole.measured(), *whole.measured(3))] == ["batch 8, length 4", "batch 3, length 4"]


def test_a_first_dimension_that_is_static_has_the_batch_beside_the_sizes(models: Path) -> None:
    case = case_of(models, batch=None, inputs=("4xlength=1..4..32",), profiles=("length=2", "length=16"))
    assert [(each.batch, each.at) for each in case.measured(7)] == [(7, "length 2"), (7, "length 16")]


def test_what_is_static_is_itself(models: Path) -> None:
    case = case_of(models, batch=None)
    assert case.measured() == [case]
    assert case.measured(5) == [case_of(models, batch=5)]
    assert case.built is not None
    assert case_of(models).built == case_of(models)


@pytest.mark.parametrize(
    ("inputs", "profiles", "batch", "error", "message"),
    [
        (DYNAMIC, ("bach=1",), None, DynamicShapeError, "did you mean 'batch'"),
        (DYNAMIC, ("batch=65",), None, DynamicShapeError, "not in order within 1 to 64"),
        (DYNAMIC, PROFILES, 65, DynamicShapeError, "batch: no profile holds 65: they are batch 1; batch 2…16…64"),
        (DYNAMIC, ("batch=1..8",), None, ExampleInputError, "is no profile"),
        (("1x3x8x8",), PROFILES, None, DynamicShapeError, "the dynamic dimensions are: none"),
        ((), PROFILES, None, DynamicShapeError, "the dynamic dimensions are: none"),
        (("1..8..64x3x8x8",), (), None, ExampleInputError, "name it, as in batch=1..8..64"),
        (("a=1..8..64", "a=1..4..64"), (), None, ExampleInputError, "dimension 'a': has two ranges"),
    ],
)
def test_what_does_not_fit(
    models: Path, inputs: Any, profiles: Any, batch: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        case_of(models, batch=None, inputs=inputs, profiles=profiles).measured(batch)


def test_a_subject_is_static_where_it_is_measured_and_dynamic_where_it_is_built(models: Path) -> None:
    _, large = dynamic(models).measured()
    measured, built = Subject(large, sets=1), Subject(large.built, sets=1)
    assert measured.dynamic_shapes is None
    assert measured.arguments(0)[0][0].shape == (16, 3, 8, 8)
    assert measured.batch == 16
    assert built.dynamic_shapes is not None
    assert built.arguments(0)[0][0].shape == (8, 3, 8, 8)
    for one, other in zip(measured.exact.parameters(), built.exact.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_of_other_sizes_are_others(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    found = [
        row("torch2trt"),
        row("torch2trt", sizes="batch 4, length 8", profiles="length=8; length=32"),
        row("torch2trt", sizes="batch 4, length 32", profiles="length=8; length=32", gpu_ms_p50=9.0),
        row("torch2trt", sizes="batch 4, length 32"),
    ]
    rows.replace(path, found)
    assert sorted(rows.read(path), key=str) == sorted(found, key=str)
    # The README's table is of static shapes.
    assert summary.markdown(rows.read(path)) == summary.markdown(found[:1])


def test_files_from_before_there_were_sizes(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    rows.replace(path, [row()])
    head, *lines = path.read_text().splitlines()
    columns = head.split(",")
    kept = [index for index, name in enumerate(columns) if name not in ("sizes", "profiles")]
    path.write_text("".join(",".join(line.split(",")[index] for index in kept) + "\n" for line in (head, *lines)))
    assert rows.read(path) == [row()]


def test_the_runner_tells_sizes_apart(models: Path) -> None:
    (small, large) = (Request(case, ("torch2trt",)) for case in dynamic(models).measured())
    known = row("torch2trt", batch=None, precision="fp32", sizes="batch 1", profiles="; ".join(PROFILES))
    assert suite_runner.pending([small, large], [known], "abc") == [large]


# Runs -----------------------------------------------------------------------------------------------------------------


def test_one_engine_is_built_and_measured_in_every_size(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def open_call(
        candidate: Candidate, subject: Subject, sets: Any, prepared: Prepared | None, *_: Any
    ) -> Callable[[int], Any]:
        args, kwargs = sets[0]
        if prepared is None:
            return named(str(candidate), subject.module(CPU)(*args, **kwargs))
        folders.append(prepared.folder)
        module = EngineModule.load(prepared.folder / "plan")
        assert module.report["profiles"] == ["batch 1", "batch 2…16…64"]
        # The checks of a call's sizes stay the module's own.
        module._session = Exactly(subject)  # type: ignore[assignment]
        return named(str(candidate), module(*args, **kwargs))

    class Exactly:
        """Stands for the engine."""

        device, host_inputs = CPU, frozenset[str]()

        def __init__(self, subject: Subject) -> None:
            self.subject = subject

        def open(self) -> Exactly:
            return self

        def run(self, inputs: Any, shapes: Any) -> list[Any]:
            with torch.no_grad():
                return [self.subject.module(CPU)(*inputs)]

    monkeypatch.setattr(session, "open_call", open_call)
    monkeypatch.setattr(command, "CudaMachine", FakeMachine)
    data, shown = main_from_cli(
        [f"{models}:net"],
        inputs=DYNAMIC,
        profiles=PROFILES,
        settings={**QUIET, "optimization_level": 0},
        backends=["eager,torch2trt"],
        batches=None,
        repeats=1,
        results=tmp_path,
        seed=0,
    )
    found = {(each["sizes"], each["batch"], each["backend"]): each for each in data["rows"]}
    assert list(found) == [(f"batch {size}", size, backend) for size in (1, 16) for backend in ("eager", "torch2trt")]
    assert {each["error"] for each in data["rows"]} == {""}
    assert {each["profiles"] for each in data["rows"]} == {"batch=1; batch=2..16..64"}
    assert len(folders) == 2
    assert len(set(folders)) == 1
    assert len(rows.read(next(tmp_path.glob("*.csv")))) == 4
    assert len(shown.renderables) >= 2  # type: ignore[attr-defined]


def test_a_table_says_what_the_engine_is_tuned_for() -> None:
    found = table.show([row(sizes="batch 16", profiles="batch=1; batch=2..16..64"), row(sizes="batch 16")])
    titles = [each.title for each in found.renderables]  # type: ignore[attr-defined]
    assert titles == ["net, batch 16 of batch=1; batch=2..16..64, fp16", "net, batch 16 of one profile, fp16"]


@pytest.mark.gpu
def test_profiles_are_measured_on_the_gpu(models: Path, tmp_path: Path) -> None:
    backends = ("eager", "onnx-tensorrt", "torch2trt", "torch2trt-static")
    requests = [Request(case, backends) for case in dynamic(models, precision="fp16").measured()]
    found = Session(Options(tmp_path, rounds=3, jobs=4), CudaMachine()).run(requests)
    assert [(item.sizes, item.batch, item.backend) for item in found] == [
        (f"batch {size}", size, backend) for size in (1, 16) for backend in backends
    ]
    for item in found:
        assert item.error == ""
        assert item.max_rel_error is not None
        assert item.max_rel_error < 1e-2
        assert item.gpu_ms_p50
