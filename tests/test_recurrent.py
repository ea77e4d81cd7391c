"""Recurrent layers in capture: what they become, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import torch2trt
from tests.cases import normal
from tests.cases.recurrent import BOTH, KINDS, MANY, gru, lstm
from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.graph.recurrence import RECURRENCE
from torch2trt.settings import Settings
from torch2trt.trt import flavour


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_programs_run_in_torch(kind: Callable[..., nn.Module]) -> None:
    module = kind(**BOTH).eval()
    program = api.capture(module, (MANY,))
    assert [node.target for node in program.calls].count(RECURRENCE) == 2
    torch.testing.assert_close(program(MANY), module(MANY))


def test_torchs_own_kernels_come_back() -> None:
    operator = torch.ops.aten.lstm.input
    before = dict(operator.py_kernels)
    api.capture(lstm().eval(), (MANY,))
    assert operator.py_kernels == before


def test_layers_do_not_grow_with_the_steps() -> None:
    def layers(steps: int) -> int:
        program = api.optimize(api.capture(lstm().eval(), (normal(steps, 2, 4),)), Settings(precision=None))
        return int(lower(program, flavour.load()).definition.num_layers)

    assert layers(20) == layers(200) < 40


class Packed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(hidden)[0]


@pytest.mark.parametrize("layer", [lstm(), gru()], ids=["lstm", "gru"])
def test_packed_sequences_are_refused(layer: nn.Module) -> None:
    with pytest.raises(torch2trt.CaptureError, match="depends on the values of the lengths") as caught:
        api.capture(Packed(layer).eval(), (MANY, torch.tensor([3, 11])))
    assert "in forward" in caught.value.source
    assert "padded sequences" in caught.value.hint
