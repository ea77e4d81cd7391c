"""FLOPs of a graph's calls beside those that torch counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.inspector_samples import Net, X, program_of
from torch2trt.graph.flops import flops


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


NETS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "convolutions": (Net(), (X,)),
    "groups": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.SiLU()), (torch.randn(2, 4, 9, 9),)),
    "1d": (nn.Conv1d(3, 5, 3), (torch.randn(2, 3, 9),)),
    "transposed": (nn.ConvTranspose2d(3, 5, 3, stride=2), (torch.randn(2, 3, 9, 9),)),
    "mlp": (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (torch.randn(2, 3, 8),)),
    "transformer": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (torch.randn(2, 5, 16),)),
    "attention": (Function(F.scaled_dot_product_attention), tuple(torch.randn(2, 4, n, 8) for n in (7, 9, 9))),
    "einsum": (Function(lambda x, y: torch.einsum("bij,bkj->bik", x, y)), (torch.randn(2, 3, 4), torch.randn(2, 5, 4))),
    "products": (Function(lambda x, y: torch.baddbmm(x @ y, x, y)), (torch.randn(2, 3, 3), torch.randn(2, 3, 3))),
    "none": (Function(lambda x: x.exp().sum(-1)), (torch.randn(2, 3),)),
}


@pytest.mark.parametrize("name", NETS)
def test_flops_are_those_that_torch_counts(name: str) -> None:
    module, inputs = NETS[name]
    # With gradients, without which torch has one kernel for a whole transformer layer, and counts none for it.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    assert sum(flops(program_of(module, *inputs), {}).values()) == counter.get_total_flops()
    assert (counter.get_total_flops() > 0) == (name != "none")


def test_flops_of_dynamic_sizes_are_those_of_the_call() -> None:
    program = program_of(Net(), X, shapes={"x": {0: Dim("batch", min=1, max=8)}})
    assert flops(program, {"batch": 6}) == {name: 3 * count for name, count in flops(program, {"batch": 2}).items()}


def test_flops_of_grouped_attention_count_every_head_of_the_query() -> None:
    query, keys = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    module = Function(lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    assert sum(flops(program_of(module, query, keys), {}).values()) == 2 * 2 * (2 * 4 * 7 * 8 * 9)


def test_flops_of_a_recurrent_layer_are_those_of_all_its_steps() -> None:
    module = nn.LSTM(6, 8, batch_first=True)
    inputs, hidden = 2 * (2 * 5) * 6 * 32, 2 * (2 * 5) * 8 * 32
    assert sum(flops(program_of(module, torch.randn(2, 5, 6)), {}).values()) == inputs + hidden


def test_flops_of_sizes_that_depend_on_data_are_unknown() -> None:
    program = program_of(Function(lambda x: x.nonzero() * 2), torch.randn(3, 4).relu())
    assert not any(program.is_size(node) for node in program.calls if node.name in flops(program, {}))
    assert {node.name for node in program.calls if "mul" in node.name}.isdisjoint(flops(program, {}))
