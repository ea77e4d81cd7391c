"""Calls from host memory to host memory: what is copied when, and what is told of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.benching import FakeMachine, named
from torch2trt.tools.bench import rows, table
from torch2trt.tools.bench.case import Case
from torch2trt.tools.bench.machine import CudaMachine
from torch2trt.tools.bench.rows import Row
from torch2trt.tools.bench.session import Options, Request, Session
from torch2trt.tools.bench.whole import Stages, WholeCall, measure_whole

PERCENTILES = {"latency_ms_p50": 12.0, "latency_ms_p90": 12.8, "latency_ms_p99": 12.98}
MEDIANS = {"h2d_ms_p50": 1.0, "compute_ms_p50": 8.0, "d2h_ms_p50": 0.5}


def row(**values: Any) -> Row:
    return Row(commit="abc", date="now", model="net", batch=2, precision="fp32", backend="torch2trt", **values)


def test_calls_take_turns_and_the_first_is_not_counted() -> None:
    machine = FakeMachine()
    wholes = {name: WholeCall(named(name, torch.ones(2)), [((torch.ones(3),), {})]) for name in "ab"}
    found = measure_whole(wholes, machine, rounds=3)
    assert [(call.name, number) for _, call, number in machine.asked] == [
        (name, number) for number in range(4) for name in "ab"
    ]
    assert [call.latency for call in found["a"].calls] == [11.0, 12.0, 13.0]
    assert found["b"].at(50) == Stages(12.0, 1.0, 8.0, 0.5)
    assert found["b"].at(100).latency == 13.0


def test_what_is_copied() -> None:
    sets = [((torch.full((3,), float(number)),), {"scale": torch.tensor(number)}) for number in range(2)]
    whole = WholeCall(named("a"), sets)
    for args, _ in sets:
        args[0].zero_()
    whole.copy_in(1)
    assert sets[1][0][0].tolist() == [1.0] * 3
    assert sets[0][0][0].tolist() == [0.0] * 3
    whole.copy_in(2)
    whole.copy_in(0)
    assert sets[0][1]["scale"].item() == 0
    for result in ({"y": torch.ones(2), "of": 3}, {"y": torch.full((2,), 2.0), "of": 3}, {"y": torch.ones(5), "of": 3}):
        whole.copy_out(result)
        assert [value.tolist() for value in whole._results] == [result["y"].tolist()]  # type: ignore[union-attr]


def test_rows_have_it_and_tables_show_it(tmp_path: Path) -> None:
    measured = row(gpu_ms_p50=1.0, **PERCENTILES, **MEDIANS)
    rows.replace(tmp_path / "results.csv", [measured])
    assert rows.read(tmp_path / "results.csv") == [measured]
    console = Console(width=120, record=True)
    console.print(table.show([measured, dataclasses.replace(measured, backend="eager", error="died")]))
    text = console.export_text()
    assert "from host memory to host memory" in text
    assert "12.980" in text
    console.print(table.show([row(gpu_ms_p50=1.0)]))
    assert "host memory" not in console.export_text()


def test_a_run_measures_it(tmp_path: Path) -> None:
    path = tmp_path / "models.py"
    path.write_text("from torch import nn\n\ndef net():\n    return nn.Linear(8, 8)\n")
    case = Case("net", f"{path}:net", 2, "fp32", ("1x8",))
    (found,) = Session(Options(tmp_path, rounds=3), FakeMachine()).run([Request(case, ("eager",))])
    assert {name: pytest.approx(getattr(found, name)) for name in PERCENTILES} == PERCENTILES
    assert {name: getattr(found, name) for name in MEDIANS} == MEDIANS


@pytest.mark.gpu
def test_stages_add_up_to_the_latency() -> None:
    values = torch.ones(1 << 24, device="cuda")
    whole = WholeCall(lambda number: values + 1, [((values,), {})])
    machine = CudaMachine()
    for number in range(3):
        stages = machine.stages_ms(whole, number)
    assert 0 < stages.compute < stages.latency
    assert stages.h2d + stages.compute + stages.d2h <= stages.latency
    # 64 MiB each way.
    assert min(stages.h2d, stages.d2h) > 0.2
