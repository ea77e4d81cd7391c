"""The throughput of threads that share a module: who calls, in which order, and what is told."""

from __future__ import annotations

import csv
import threading
import time
from pathlib import Path

import pytest

from benchmarks import threads
from benchmarks.threads import Variant
from tests.pretending import no_gpu
from torch2trt.settings import Settings


def test_variants_take_turns_with_as_many_calls_each(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    lock = threading.Lock()

    def request_of(name: str) -> threads.Request:
        def request(number: int) -> None:
            with lock:
                calls.append((name, number))

        return request

    variants = [Variant(1, 4, request_of("alone")), Variant(3, 1, request_of("together"))]
    threads.measure(variants, rounds=2, calls=5)
    names = [name for name, _ in calls]
    assert names == 2 * (["alone"] * 5 + ["together"] * 6)
    assert sorted(number for name, number in calls if name == "together") == sorted([0, 1, 2] * 4)
    assert [len(each.per_s) for each in variants] == [2, 2]

    variants[1].per_s, variants[1].held_bytes = [100.0, 300.0], 1 << 20
    threads.write(tmp_path / "threads.csv", "abc1234", "net batch 1", "Fake 9000", variants)
    with (tmp_path / "threads.csv").open() as file:
        _, together = csv.DictReader(file)
    assert (together["threads"], together["max_concurrent_runs"]) == ("3", "1")
    assert (together["calls_per_s_p50"], together["held_bytes"]) == ("200.0", "1048576")
    assert threads.show("net", variants).row_count == 2


def test_threads_that_wait_do_so_together() -> None:
    rate = threads.calls_per_s(Variant(4, 4, lambda number: time.sleep(0.05)), 3)
    assert 20 < rate <= 80


def test_what_goes_wrong_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        threads.calls_per_s(Variant(2, 1, lambda number: print(1 // number)), 1)


@no_gpu
def test_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert threads.main([]) == 2
    assert "T2T304" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cuda_graphs", ["--cuda-graphs", "--no-cuda-graphs"])
def test_threads_of_a_module(tmp_path: Path, cuda_graphs: str) -> None:
    path = tmp_path / "models.py"
    path.write_text("from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(8, 8), nn.ReLU())\n")
    options = ["--model", f"{path}:net", "--input", "1x8", "--rounds", "3", "--calls", "40", "--threads", "3"]
    assert threads.main([*options, cuda_graphs, "--csv", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    most = str(Settings().max_concurrent_runs)
    assert [(row["threads"], row["max_concurrent_runs"]) for row in rows] == [("1", most), ("3", "1"), ("3", most)]
    assert all(float(row["calls_per_s_p50"]) > 0 for row in rows)
