"""Peak host memory of a compilation, above the process with the module loaded, in multiples of its weights."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import torch2trt
from torch2trt.trt import flavour as flavours

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux' /proc"),
    pytest.mark.skipif(
        flavours.find(flavours.TENSORRT_RTX).version is None, reason="TensorRT-RTX, which is measured, is not installed"
    ),
]

SCRIPT = """
    import gc, json, sys
    import torch, torch2trt
    from torch import nn
    from torch2trt.engine.memory import give_back

    torch.set_num_threads(1)
    kind, precision = sys.argv[1:]

    def make(width, depth):
        if kind == "transformer":
            layers = [nn.TransformerEncoderLayer(width, 8, 4 * width, batch_first=True) for _ in range(depth)]
            ids = torch.randint(30_000, (1, 128))
            return nn.Sequential(nn.Embedding(30_000, width), *layers).eval().half(), (ids,)
        layers = []
        for _ in range(depth):
            if kind == "linear":
                layers += [nn.Linear(width, width), nn.ReLU()]
            elif kind == "conv":
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
            else:
                layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        x = torch.randn(1, width) if kind == "linear" else torch.randn(1, width, 4, 4)
        return nn.Sequential(*layers).eval(), (x,)

    def memory(what):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(what + ":"))

    def compiled(module, args):
        return torch2trt.compile(
            module, args, precision=precision, flavour="tensorrt_rtx", progress="none", build_in_subprocess=False
        )

    # Libraries are loaded, and their own memory taken, by the first compilation.
    compiled(*make(8, 1))
    module, args = make(2560, 8) if kind == "linear" else make(1024, 6)
    # Room that making it has left would be filled first, and hide as much of the peak.
    gc.collect()
    give_back()
    weights = sum(value.numel() * value.element_size() for value in module.parameters())
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is the present, from now on
    except OSError as error:
        print(json.dumps({"skip": str(error)}))
        sys.exit()
    before = memory("VmRSS")
    result = compiled(module, args)
    peak = (memory("VmHWM") - before) / weights
    kept = (memory("VmRSS") - before) / weights
    plan = len(result.artifact.plan) / weights
    print(json.dumps({"weights": weights, "peak": peak, "kept": kept, "plan": plan}))
"""


@pytest.mark.parametrize(
    ("kind", "precision", "limit"),
    [
        # These go through a file: one copy, and a few parts of another.
        ("linear", "fp32", 2.2),
        ("transformer", "fp16", 2.3),
        ("linear", "fp16", 2.5),
        ("conv", "fp32", 2.5),
        # Folded weights are new ones, and TensorRT keeps more than two copies of what it is given.
        ("conv-norm", "fp32", 3.5),
        ("conv-norm", "fp16", 2.5),
    ],
)
def test_peak_of_a_compilation(
    kind: str, precision: str, limit: float, record_property: Callable[[str, object], None]
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), kind, precision]
    folder = Path(torch2trt.__file__).parents[1]
    output = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True, timeout=250).stdout
    found = json.loads(output.splitlines()[-1])
    if "skip" in found:
        pytest.skip(f"the peak cannot be reset: {found['skip']}")
    for name, value in found.items():
        record_property(name, value)
    print(kind, precision, found)
    assert found["weights"] > 200e6
    assert 0.4 < found["peak"] < limit
    # The plan stays, and nothing else of any size.
    assert found["kept"] < found["plan"] + 0.3
