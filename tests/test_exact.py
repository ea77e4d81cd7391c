"""The truth: modules and Programs in float64, whatever they cast to."""

from __future__ import annotations

import torch
from torch import nn

import torch2trt
from torch2trt.graph.exact import Exact


class Casting(nn.Module):
    """Casts down and up again, and makes a tensor of the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.half().float()) * torch.full((3,), 1 / 3)


def test_the_truth_of_a_module_that_casts() -> None:
    module, x = Casting().eval(), torch.randn(2, 4)
    compiled = torch2trt.compile(module, (x,))
    verification = compiled.verify(x)
    # The module's own rounding to half counts as error.
    assert 1e-5 < verification.rows[0].max_rel_error < 1e-3


def test_a_loaded_module_has_the_same_truth(tmp_path) -> None:
    module, x = Casting().eval(), torch.randn(2, 4)
    compiled = torch2trt.compile(module, (x,), precision="fp16")
    compiled.save(tmp_path / "casting.t2t", program=True)
    loaded = torch2trt.load(tmp_path / "casting.t2t")
    assert loaded.verify(x).rows[0].max_abs_error == compiled.verify(x).rows[0].max_abs_error


def test_operators_without_float64_kernels() -> None:
    # torch multiplies groups in 16 and 32 bits alone.
    rows, matrices = torch.randn(7, 8), torch.randn(3, 8, 4)
    offsets = torch.tensor([2, 2, 6], dtype=torch.int32)
    with Exact():
        found = torch.ops.aten._grouped_mm.default(rows.double(), matrices.double(), offsets)
    group = (torch.arange(7)[:, None] >= offsets).sum(1)
    expected = torch.stack([rows[i].double() @ matrices[group[i]].double() for i in range(6)])
    assert torch.allclose(found[:6], expected, rtol=1e-12)
    with Exact():
        found = torch.ops.aten._grouped_mm.default(matrices.double().mT, matrices.double())
    assert torch.allclose(found, matrices.double().mT @ matrices.double())


def test_the_lowest_number_of_a_dtype() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.max(x, torch.full((), torch.finfo(x.dtype).min)).softmax(-1)

    module, x = Masked().eval(), torch.randn(2, 4)
    assert torch2trt.compile(module, (x,), precision="fp32").verify(x).passed


def test_modules_that_hold_what_they_computed() -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.seen = [torch.zeros(())]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.first(x)
            self.seen = [found]
            return found.tanh()

    module, x = Kept(), torch.randn(2, 4)
    module(x)
    assert not module.seen[0].is_leaf
    assert torch2trt.compile(module.eval(), (x,), precision="fp32").verify(x).passed


def test_halves_within_a_module_of_float32_are_its_precision(tmp_path) -> None:
    class Within(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16).bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).bfloat16()).float()

    module, x = Within().eval(), torch.randn(4, 16)
    for precision, name in ((None, "bf16"), ("fp32", "bf16")):
        compiled = torch2trt.compile(module, (x,), precision=precision)
        verification = compiled.verify(x)
        assert (verification.precision, verification.passed) == (name, True)
        assert verification.max_rel_error > 1e-4
    compiled.save(tmp_path / "within.t2t")
    assert torch2trt.load(tmp_path / "within.t2t").artifact.precision == "bf16"
    assert torch2trt.compile(nn.Linear(4, 4).eval(), (x[:, :4],), precision="fp32").artifact.precision == "fp32"
