"""``make demo``: two networks compiled and checked; with a GPU also run and timed.

A small CNN learns scikit-learn's handwritten digits, and torchvision's ResNet-50 looks at scikit-learn's photograph.
The exit code is 0 when both networks compute what eager computes.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.export import Dim

from torch2trt import api
from torch2trt.errors import MissingPackageError
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.verification import Row, compare
from torch2trt.tolerance import tolerance
from torch2trt.tools import digits
from torch2trt.tools.outcome import Outcome, report
from torch2trt.tools.pretrained import Pretrained
from torch2trt.tools.weights import randomize

_PHOTOGRAPH = "china.jpg"
_SEED = 0
_ENOUGH = 0.96  # of the held-out digits; below it the training has failed
_WARM_UP, _REPEATS = 5, 50


@dataclass(frozen=True)
class Checked:
    """One compiled network beside the module that it came from, on one batch."""

    compiled: EngineModule
    outputs: dict[str, torch.Tensor]
    """On the CPU, of ``eager``, of the ``network`` in the reference interpreter and, on a GPU, of the ``engine``."""
    rows: dict[str, Row]
    """Network and engine against eager in float64."""
    times_ms: dict[str, float]
    """Medians of engine and eager on the GPU."""

    @property
    def passed(self) -> bool:
        """Whether every error is within its tolerance."""
        return all(row.passed for row in self.rows.values())

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        errors = {
            name: {"max_abs_error": row.max_abs_error, "max_rel_error": row.max_rel_error, "tolerance": row.tolerance}
            for name, row in self.rows.items()
        }
        return {**self.compiled.report, "errors": errors, "times_ms": self.times_ms, "passed": self.passed}


def check(module: nn.Module, example: torch.Tensor, batch: torch.Tensor, *, name: str, dynamic: Any = None) -> Checked:
    """Compile a module of one input and one output, and run it on a batch in every way that this machine has."""
    compiled = api.compile(module, (example,), dynamic_shapes=dynamic, name=name, fallback=False)
    precision = compiled.artifact.precision
    truth = api.truth_of(module)(batch)
    with torch.no_grad():
        outputs = {"eager": module(batch), "network": compiled.reference(batch)}
    rows = {"network": compare(name, outputs["network"], truth, tolerance(precision, reference=True))}
    times = {}
    if torch.cuda.is_available():
        on_gpu = batch.cuda()
        outputs["engine"] = compiled(on_gpu).cpu()
        rows["engine"] = compare(name, outputs["engine"], truth, tolerance(precision))
        times = {"engine": _time(compiled, on_gpu), "eager": _time(copy.deepcopy(module).cuda(), on_gpu)}
    return Checked(compiled, outputs, rows, times)


def read_digits() -> tuple[Checked, dict[str, float]]:
    """Train, compile and check the CNN.

    Returns:
        The accuracies on the held-out images beside it, by the names of its outputs.
    """
    data = digits.load()
    model = digits.train(data, seed=_SEED)
    batch = Dim("batch", min=1, max=len(data.test_labels))
    checked = check(model, data.test_images[:64], data.test_images, name="digits CNN", dynamic={"images": {0: batch}})
    return checked, {name: digits.accuracy(output, data.test_labels) for name, output in checked.outputs.items()}


def see_photograph(pretrained: Pretrained) -> tuple[Checked, str, list[dict[str, Any]]]:
    """Compile and check ResNet-50 on the photograph.

    Returns:
        Beside it, which weights it has, and its five best classes with their probabilities.
    """
    import torchvision
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(load_sample_image(_PHOTOGRAPH).copy()).permute(2, 0, 1)
    image = pretrained.weights.transforms()(pixels).unsqueeze(0)
    torch.manual_seed(_SEED)
    model = torchvision.models.resnet50(weights=None).eval()
    if state := pretrained.state_dict():
        model.load_state_dict(state)
        weights = f"pretrained ({pretrained.weights})"
    else:
        randomize(model, (image,), seed=_SEED)
        weights = f"random (seed {_SEED}), since the pretrained ones could not be loaded: {pretrained.problem}"
    checked = check(model, image, image, name="ResNet-50")
    chances = {name: output[0].softmax(0) for name, output in checked.outputs.items()}
    names = pretrained.weights.meta["categories"]
    best = [
        {"class": names[i], **{name: float(chance[i]) for name, chance in chances.items()}}
        for i in chances["network"].topk(5).indices.tolist()
    ]
    return checked, weights, best


def run() -> Outcome:
    """The whole demo."""
    for package in ("torchvision", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError("is not installed", subject=package, hint="pip install 'torch2trt[demo]'")
    from torchvision.models import ResNet50_Weights

    start = time.perf_counter()
    pretrained = Pretrained(ResNet50_Weights.DEFAULT)
    print("training a CNN on handwritten digits, compiling it and ResNet-50 …", file=sys.stderr)
    cnn, accuracies = read_digits()
    resnet, weights, best = see_photograph(pretrained)
    same = len(set(accuracies.values())) == 1
    passed = cnn.passed and resnet.passed and same and accuracies["eager"] >= _ENOUGH
    artifact = cnn.compiled.artifact
    seconds = time.perf_counter() - start
    data = {
        "flavour": artifact.flavour,
        "flavour_version": artifact.flavour_version,
        "gpu": artifact.gpu,
        "digits": {**cnn.to_json(), "accuracy": accuracies},
        "resnet50": {**resnet.to_json(), "weights": weights, "photograph": _PHOTOGRAPH, "top5": best},
        "passed": passed,
        "seconds": seconds,
    }
    shown = Group(
        _results_table([cnn, resnet], accuracies),
        _classes_table(best),
        Text(f"ResNet-50's weights are {weights}."),
        Text("passed" if passed else "FAILED: the networks differ from eager, or the training failed"),
    )
    return Outcome(data, shown, code=0 if passed else 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m torch2trt.tools.demo", description="Compile two models and check them."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    return report(run, as_json=options.json)


def _time(module: nn.Module, batch: torch.Tensor) -> float:
    """Median milliseconds of a call on the GPU."""
    times: list[float] = []
    with torch.no_grad():
        for _ in range(_WARM_UP + _REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            module(batch)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times[_WARM_UP:])


def _results_table(checked: list[Checked], accuracies: dict[str, float]) -> Table:
    artifact = checked[0].compiled.artifact
    where = f", {artifact.gpu}" if artifact.gpu else ", no GPU"
    table = Table(
        "",
        title=f"{artifact.flavour} {artifact.flavour_version}{where}",
        caption="network: what the engine was built from, run by the reference interpreter",
    )
    for one in checked:
        table.add_column(one.compiled.artifact.name, justify="right")

    def row(title: str, texts: list[str]) -> None:
        table.add_row(title, *texts)

    reports = [one.compiled.report for one in checked]
    row("nodes → layers", [f"{item['nodes']} → {item['layers']}" for item in reports])
    row("fused blocks", [str(item["fused_blocks"]) for item in reports])
    row("capture", [f"{item['capture_s']:.2f} s" for item in reports])
    row("build", [f"{item['build_s']:.2f} s" for item in reports])
    row("engine size", [f"{item['engine_bytes'] / 1e6:.1f} MB" for item in reports])
    for name in checked[0].rows:
        errors = [one.rows[name] for one in checked]
        row(f"error of the {name} (allowed)", [f"{e.max_rel_error:.1e} ({e.tolerance:.0e})" for e in errors])
    for name, value in accuracies.items():
        row(f"held-out accuracy, {name}", [f"{value:.2%}", ""])
    for name in checked[0].times_ms:
        row(f"time on the GPU, {name}", [f"{one.times_ms[name]:.3f} ms" for one in checked])
    return table


def _classes_table(best: list[dict[str, Any]]) -> Table:
    table = Table(title=f"ResNet-50 on scikit-learn's {_PHOTOGRAPH}")
    for name in best[0]:
        table.add_column(name, justify="left" if name == "class" else "right")
    for item in best:
        table.add_row(*(value if isinstance(value, str) else f"{value:.2%}" for value in item.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
