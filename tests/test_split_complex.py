"""Complex numbers in the graph become pairs of real ones, and the Program stays executable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torch2trt
from tests.cases.complex_numbers import ROWS, TURNS, W, Z, rotary, spectral
from tests.cases.fourier import FRAMES, WINDOW, sound
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.graph.contract import check
from torch2trt.graph.program import Program
from torch2trt.passes.split_complex import split_complex
from torch2trt.settings import Settings
from torch2trt.trt import flavour

EXACT = Settings(precision="fp32")


class Module(nn.Module):
    """A function of inputs and one weight."""

    def __init__(self, function: Callable[..., Any], weight: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("weight", weight)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs, self.weight)


def captured(function: Callable[..., Any], x: torch.Tensor, weight: torch.Tensor = W) -> Program:
    return api.capture(Module(function, weight).eval(), (x,))


def targets(program: Program) -> list[str]:
    return [str(node.target) for node in program.calls]


def complex_calls(program: Program) -> list[str]:
    return [
        node.name
        for node in program.calls
        if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].is_complex()
    ]


@pytest.mark.parametrize(
    ("function", "x", "weight"),
    [
        *((function, Z, W) for function in ROWS.values()),
        (rotary, torch.randn(2, 5, 3, 8), TURNS),
        (spectral, torch.randn(2, 3, 8, 8), torch.randn(3, 4, 3, 3, dtype=torch.complex64)),
        (sound, FRAMES, WINDOW),
    ],
    ids=[*ROWS, "rotary", "spectral", "istft"],
)
def test_no_complex_number_is_left_and_the_program_computes_the_same(
    function: Callable[..., Any], x: torch.Tensor, weight: torch.Tensor
) -> None:
    program = captured(function, x, weight)
    before = program.run(x)
    assert complex_calls(program)
    split_complex(program, EXACT)
    check(program, "split_complex")
    assert not complex_calls(program)
    for found, expected in zip(program.run(x), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_llamas_rotary_embedding_takes_four_products_and_two_halves_of_its_table() -> None:
    program = api.optimize(captured(rotary, torch.randn(2, 5, 3, 8), TURNS), EXACT)
    found = targets(program)
    assert (found.count("aten.mul.Tensor"), found.count("aten.select.int"), found.count("aten.stack.default")) == (
        4,
        2,
        1,
    )
    # The weights graph splits the table: the engine knows two real weights.
    values = program.weights.evaluate()
    assert [value.dtype for value in values.values()] == [torch.float32] * 2
    torch.testing.assert_close(torch.complex(*values.values()).flatten(), TURNS[:5].flatten())


def test_a_part_that_is_read_needs_no_pair() -> None:
    program = captured(lambda x, w: torch.view_as_complex(x).imag * 2, Z)
    split_complex(program, EXACT)
    assert targets(program) == ["aten.select.int", "aten.mul.Tensor"]


def test_a_lazily_conjugated_weight() -> None:
    program = captured(lambda x, w: torch.view_as_real(torch.view_as_complex(x) * w), Z, W[0].conj())
    expected = torch.view_as_real(torch.view_as_complex(Z) * W[0].conj())
    torch.testing.assert_close(api.optimize(program, EXACT).run(Z)[0], expected)


def test_an_operator_without_a_rule_gets_complex_numbers_and_is_refused_by_name() -> None:
    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        z = torch.view_as_complex(x) * 2
        return (z.tanh() * 2).abs()

    program = captured(function, Z)
    expected = program.run(Z)
    split_complex(program, EXACT)
    check(program, "split_complex")
    torch.testing.assert_close(program.run(Z), expected)
    with pytest.raises(torch2trt.UnsupportedOpsError, match=r"aten\.tanh\.default: TensorRT has no complex numbers"):
        lower(api.optimize(program, EXACT), flavour.load())


def test_fourier_transforms_stay_in_float32_whatever_the_precision() -> None:
    program = captured(lambda x, w: torch.fft.irfft(torch.fft.rfft(x) * 2), torch.randn(2, 8))
    program = api.optimize(program, Settings(precision="fp16"))
    transforms = [node for node in program.calls if "dft" in str(node.target)]
    assert len(transforms) == 2
    assert all(argument.meta["val"].dtype == torch.float32 for node in transforms for argument in node.args[:1])


def test_a_compiled_module_with_a_complex_weight_saves_and_verifies(tmp_path: Any) -> None:
    module = Module(spectral, torch.randn(3, 4, 3, 3, dtype=torch.complex64)).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch2trt.compile(module, (x,))
    assert compiled.verify(x).passed
    compiled.save(tmp_path / "spectral.t2t", program=True)
    assert torch2trt.load(tmp_path / "spectral.t2t").verify(x).passed
