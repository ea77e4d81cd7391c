"""The parts of the host's time: what is timed, in which order, and what is told."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmarks import host
from tests.benching import FakeMachine
from tests.pretending import no_gpu


class Counting(FakeMachine):
    def host_us(self, call: Any, calls: int) -> float:
        self.asked.append(("host", call(0), calls))
        return float(10 * len(self.asked))


def test_calls_take_turns_in_every_burst(tmp_path: Path) -> None:
    machine = Counting()
    found = host.measure({"a": lambda: "a", "b": lambda: "b"}, machine, rounds=3)
    assert machine.asked == [("host", name, burst) for _ in range(3) for name in "ab" for burst in host.BURSTS]
    assert found["b"][0] == 10 * (6 + 3 + 1)
    host.write(tmp_path / "host.csv", "abc1234", "net batch 1", "Fake 9000", found)
    with (tmp_path / "host.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["what"] for line in lines] == ["a", "b"]
    assert lines[1]["us_in_1"] == "100.00"
    table = host.show("net", found)
    assert table.row_count == 2


@no_gpu
def test_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert host.main([]) == 2
    assert "T2T304" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_parts_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "models.py"
    path.write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 8), nn.ReLU())\n")
    options = ["--model", f"{path}:net", "--input", "1x8", "--rounds", "5", "--alone", "--csv", str(tmp_path / "a.csv")]
    assert host.main(options) == 0
    with (tmp_path / "a.csv").open() as file:
        times = {line["what"]: float(line["us_in_1"]) for line in csv.DictReader(file)}
    parts = ["launch of the graph", "launch, and fresh outputs", "run of the session", "call of the module"]
    assert [name for name in times if name != "nothing"] == parts
    assert 0 <= times["nothing"] < times["call of the module"]
