"""The benchmark: what is timed in which order, what is measured with which weights, and what is kept."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import run as suite_runner
from benchmarks import summary
from benchmarks.suites import SUITES
from tests.benching import CPU, FakeMachine, case_of, models, named, row
from torch2trt.errors import ArtifactWriteError, ModelNameError, NoGPUError, SettingError
from torch2trt.runtime import files
from torch2trt.tools import weights
from torch2trt.tools.bench import main_from_cli, measure, rows, table
from torch2trt.tools.bench.backends import inputs_for
from torch2trt.tools.bench.candidate import Candidate, candidates
from torch2trt.tools.bench.case import Case, Subject, error_of
from torch2trt.tools.inputs import InputSpec

__all__ = ["models"]  # a fixture, which tests name


# Timing ---------------------------------------------------------------------------------------------------------------


def test_functions_take_turns() -> None:
    machine = FakeMachine({"a": 0.01, "b": 1.0, "c": 100.0})
    calls = {name: named(name) for name in "abc"}
    samples = measure.measure(calls, machine, rounds=3)
    order = [(kind, call.name) for kind, call, _ in machine.asked]
    # One look at each, to know how many calls fill a slice; then the rounds.
    assert order == [("gpu", name) for name in "abc" * 4] + [("host", name) for name in "abc" * 3]
    slices = {call.name: calls for kind, call, calls in machine.asked[3:] if kind == "gpu"}
    assert slices == {"a": 200, "b": 10, "c": 4}
    assert samples["b"].gpu_ms == [1.0] * 3
    assert samples["b"].host_us_p50 == 7.0


def test_percentiles_lie_between_values() -> None:
    samples = measure.Samples(gpu_ms=[float(value) for value in range(1, 102)])
    assert samples.gpu_ms_p50 == 51.0
    assert samples.gpu_ms_p99 == 100.0
    assert measure.percentile([1.0, 2.0], 75) == 1.75


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_are_replaced_singly_and_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results" / "gpu.csv"
    first = [row("torch2trt", peak_host_bytes=1 << 40), row("eager", variant="nhwc"), row("eager", batch=1)]
    rows.replace(path, first)
    assert rows.read(path) == [first[2], first[1], first[0]]  # by batch, then in the order of the backends
    rows.replace(path, [row("eager", gpu_ms_p50=None, error='said "no",\nthen died')])
    kept = rows.read(path)
    assert [item.key for item in kept] == [item.key for item in (first[2], first[1], first[0])]
    assert kept[1].error == 'said "no",\nthen died'
    assert kept[1].gpu_ms_p50 is None
    assert kept[2] == first[0]
    columns = path.read_text().splitlines()[0].split(",")
    assert {"commit", "date", "model", "batch", "precision", "backend", "gpu_ms_p50", "gpu_ms_p99", "host_us"} < {
        *columns
    }
    assert {"build_s", "capture_s", "max_rel_error", "peak_host_bytes", "peak_gpu_bytes"} < {*columns}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpu.csv"
    rows.replace(path, [row()])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ArtifactWriteError, match="No space left"):
        rows.replace(path, [row(gpu_ms_p50=9.0)])
    monkeypatch.undo()
    assert rows.read(path) == [row()]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_named_after_what_the_numbers_depend_on() -> None:
    name = rows.csv_name("NVIDIA H200", "tensorrt", "10.6.0", "2.11.0+cu130")
    assert name == "NVIDIA-H200-tensorrt10.6.0-torch2.11.0.csv"


def test_speedups_are_of_the_same_run() -> None:
    eager, onnx, ours = rows.with_speedups(
        [
            row("eager", gpu_ms_p50=4.0),
            row("onnx-tensorrt", gpu_ms_p50=None, error="x"),
            row("torch2trt", gpu_ms_p50=1.0),
        ]
    )
    assert (eager.speedup_over_eager, onnx.speedup_over_eager, ours.speedup_over_eager) == (1.0, None, 4.0)
    assert ours.speedup_over_onnx is None


def test_the_slower_of_host_and_gpu_is_the_throughput() -> None:
    assert row(gpu_ms_p50=2.0, host_us=100.0).per_second == pytest.approx(2000)
    bound = row(gpu_ms_p50=2.0, host_us=4000.0)
    assert bound.per_second == pytest.approx(1000)
    assert bound.host_bound
    assert not row().host_bound
    assert row(max_rel_error=math.inf).to_json()["max_rel_error"] is None


def test_the_table_warns_and_says_what_failed() -> None:
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    failed = row("onnx-tensorrt", gpu_ms_p50=None, gpu_ms_p99=None, host_us=None, error="no parser")
    console.print(table.show([row(host_us=3000.0, variant="nhwc"), failed]))
    console.file.close()
    text = console.export_text()
    assert "net, batch 4, fp16" in text
    assert "eager (nhwc)" in text
    assert "Bound by the host, the GPU waits: eager" in text
    assert "onnx-tensorrt failed: no parser" in text


# Cases ----------------------------------------------------------------------------------------------------------------


def test_a_subject_is_the_same_in_every_process(models: Path) -> None:
    case = Case.from_json(case_of(models).to_json())
    assert case == case_of(models)
    one, two = Subject(case), Subject(case)
    args, kwargs = one.inputs(CPU)[0]
    assert args[0].shape == (2, 3, 8, 8)
    assert kwargs == {}
    torch.testing.assert_close(one.module(CPU)(*args), two.module(CPU)(*two.inputs(CPU)[0][0]), rtol=0, atol=0)
    assert not torch.equal(one.inputs(CPU)[0][0][0], one.inputs(CPU)[1][0][0])


def test_a_subject_has_its_precision_and_its_truth_has_not(models: Path) -> None:
    subject = Subject(case_of(models, precision="bf16"))
    args, _ = subject.inputs(CPU)[0]
    assert args[0].dtype == torch.bfloat16
    result = subject.module(CPU)(*args)
    assert result.dtype == torch.bfloat16
    (truth,) = subject.truth(CPU)
    torch.testing.assert_close(truth, subject.exact(args[0].float()).double(), rtol=1e-5, atol=1e-6)
    assert 1e-4 < error_of(result, [truth]) < 5e-2
    assert error_of(truth, [truth]) == 0.0


def test_the_batch_is_that_of_the_inputs_unless_given(models: Path) -> None:
    assert Subject(case_of(models, batch=None)).batch == 1
    assert Subject(case_of(models)).batch == 2


def test_layouts(models: Path) -> None:
    subject = Subject(case_of(models), sets=2)
    assert subject.has_layouts
    sets = subject.inputs(CPU)
    (changed,), _ = inputs_for(Candidate("eager", "nhwc"), sets)[1]
    assert changed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(changed, sets[1][0][0])
    assert inputs_for(Candidate("eager", "nchw"), sets) is sets


def test_backends_and_their_variants() -> None:
    assert candidates(["torch2trt", "eager"]) == [
        Candidate("eager", "nchw"),
        Candidate("eager", "nhwc"),
        Candidate("torch2trt"),
    ]
    assert Candidate("torch2trt-static").source == Candidate("torch2trt")
    with pytest.raises(SettingError, match="tensorflow"):
        candidates(["tensorflow"])


# Weights --------------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Twenty blocks whose activations vanish with initial weights, and a head that starts as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(20))
        )
        self.pooled = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        means = self.blocks(x).mean((2, 3), keepdim=True)
        return self.head((self.pooled(means) * scale).flatten(1))


def test_random_weights_are_numerically_meaningful() -> None:
    torch.manual_seed(0)
    module = Deep().eval()
    x = torch.randn(6, 8, 10, 10)
    with torch.no_grad():
        assert module.blocks(x).std() < 1e-3
        weights.randomize(module, (x,), {"scale": torch.tensor([[[[2.0]]]])}, seed=3)
        value = module.blocks(x)
        assert 0.1 < value.std() < 10
        assert module(x, torch.tensor(2.0)).std() > 1e-2
    constant = [name for name, value in module.named_parameters() if bool((value == value.flatten()[0]).all())]
    assert constant == []


def test_random_weights_depend_on_the_seed_alone() -> None:
    x, scale = torch.randn(2, 8, 6, 6), torch.ones(())

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        module = Deep().eval()
        torch.randn(seed + 1)  # torch's own generator is elsewhere
        weights.randomize(module, (x, scale), seed=seed)
        return torch.cat([value.flatten() for value in module.state_dict().values()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


# The suites and the command line --------------------------------------------------------------------------------------


def test_suites_name_models_that_exist() -> None:
    import torchvision

    for cases in SUITES.values():
        assert len({(case.name, case.batch, case.precision) for case in cases}) == len(cases)
        for case in cases:
            library, _, name = case.model.partition(":")
            assert name in (
                torchvision.models.list_models() if library == "torchvision" else dir(importlib.import_module(library))
            )
            assert case.precision
            assert [InputSpec.parse(text) for text in case.inputs]
    wanted = "resnet50:1 resnet50:32 resnet50:256 efficientnet_b0:1 efficientnet_b0:32 mobilenet_v3_large:1 "
    wanted += "convnext_tiny:32 vit_b_16:1 vit_b_16:32 swin_t:32 bert-base:1 bert-base:32"
    assert [f"{case.name}:{case.batch}" for case in SUITES["road"]] == wanted.split()


def test_the_runner_measures_what_is_missing() -> None:
    options = suite_runner._parser().parse_args(
        ["--rows", "resnet50:32,swin_t", "--max-autotune", "swin_t", "--backends", "eager,torch2trt", "--commit", "abc"]
    )
    requests = suite_runner.requests_of(options)
    assert [(request.case.name, request.case.batch) for request in requests] == [("resnet50", 32), ("swin_t", 32)]
    assert [request.backends[2:] for request in requests] == [(), ("inductor-max-autotune",)]
    known = [row(name, model="resnet50", batch=32) for name in ("eager", "torch2trt")]
    assert suite_runner.pending(requests, known, "abc") == requests[1:]
    assert suite_runner.pending(requests, known, "def") == requests
    failed = [known[0], dataclasses.replace(known[1], error="died")]
    assert suite_runner.pending(requests, failed, "abc") == requests
    dirty = [dataclasses.replace(item, commit="abc-dirty") for item in known]
    assert suite_runner.pending(requests, dirty, "abc-dirty") == requests
    with pytest.raises(SettingError, match="resnet51"):
        suite_runner.select(SUITES["road"], ["resnet51"])


def test_the_readme_has_what_was_measured() -> None:
    found = rows.read(summary.RESULTS)
    table = summary.markdown(found)
    assert table in summary.README.read_text(encoding="utf-8"), "run python -m benchmarks.summary"
    road, speed = ({case.name for case in SUITES[name]} for name in ("road", "speed"))
    assert road <= {row.model for row in found} <= road | speed
    fast = [
        row("eager", gpu_ms_p50=3.0),
        row("torch2trt", gpu_ms_p50=2.0),
        row("onnx-tensorrt", gpu_ms_p50=3.0, commit="x"),
    ]
    assert "| net, 4, fp16 | 2.000 | 1.50 | – | – | abc |" in summary.markdown(fast)
    assert "mean" not in summary.markdown(fast)
    other = [dataclasses.replace(each, batch=8, gpu_ms_p50=1.0) for each in fast[:2]]
    assert "| geometric mean |  | 1.22 | – | – |  |" in summary.markdown([*fast, *other])
    assert summary.written(f"a\n\n{summary.markdown([])}| old |\n\nb", table) == f"a\n\n{table}\nb"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    common: dict[str, Any] = {
        "inputs": [],
        "profiles": [],
        "settings": {},
        "batches": None,
        "repeats": None,
        "results": None,
        "seed": 0,
    }
    with pytest.raises(NoGPUError):
        main_from_cli(["torchvision:resnet18"], backends=None, **common)
    with pytest.raises(NoGPUError):
        main_from_cli(["torchvision:resnet18"], backends=["eager,torch2trt"], **common)
    with pytest.raises(ModelNameError):
        main_from_cli([], backends=None, **common)
    with pytest.raises(SettingError):
        main_from_cli(["torchvision:resnet18"], backends=["eager,tensorflow"], **common)
    assert suite_runner.main(["--rows", "resnet50:1"]) == 2
    assert "T2T304" in capsys.readouterr().err
