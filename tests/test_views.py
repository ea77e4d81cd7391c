"""Views as one reshape, one permutation and one reshape, against torch."""

from __future__ import annotations

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from torch2trt import api
from torch2trt.graph.rewrite import IN_TORCH
from torch2trt.passes.views import PERMUTING, View, axes_of
from torch2trt.settings import Settings
from torch2trt.sizes import symbol

aten = torch.ops.aten
CHAINS = {
    "permutations": lambda x: x.permute(2, 0, 1, 3).transpose(0, 3),
    "there-and-back": lambda x: x.transpose(1, 2).transpose(1, 2),
    "reshapes": lambda x: x.reshape(24, 5).reshape(2, 3, 20),
    "split-and-swap": lambda x: x.reshape(2, 3, 2, 2, 5).transpose(1, 3).reshape(4, 30),
    "windows": lambda x: x.reshape(1, 2, 3, 2, 2, 5).permute(0, 1, 3, 2, 4, 5).reshape(4, 6, 5),
    "ones": lambda x: x.unsqueeze(0).transpose(0, 3).squeeze(3).unsqueeze(-1),
    "merge-then-cut-elsewhere": lambda x: x.transpose(0, 1).reshape(6, 4, 5).reshape(3, 8, 5),
}

STEPS = {
    "permutations": 1,
    "there-and-back": 0,
    "reshapes": 1,
    "split-and-swap": 3,
    "windows": 3,
    "ones": 2,
    "merge-then-cut-elsewhere": 2,
}


def _walk(view: View, shape: tuple[int, ...]) -> torch.Tensor:
    """The steps of a view, executed."""
    value = torch.arange(torch.Size(shape).numel()).reshape(shape)
    split, axes, final = view.steps()
    if split is not None:
        value = value.reshape(split)
    if axes is not None:
        value = value.permute(axes)
    return value if final is None else value.reshape(final)


def test_random_chains_of_views() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        shape = tuple(int(size) for size in torch.randint(1, 5, (4,), generator=generator))
        expected = torch.arange(torch.Size(shape).numel()).reshape(shape)
        view = View.of(shape)
        for _ in range(4):
            if torch.rand((), generator=generator) < 0.5:
                axes = torch.randperm(expected.dim(), generator=generator).tolist()
                expected, view = expected.permute(axes), view.permute(axes)
            else:
                sizes = [2] * 2 if expected.numel() % 4 == 0 else []
                target = (*sizes, expected.numel() // 4 if sizes else expected.numel())
                one = int(torch.randint(0, 3, (), generator=generator))
                target = (*target[:one], 1, *target[one:])
                reshaped = view.reshape(target)
                if reshaped is None:
                    break
                expected, view = expected.reshape(target), reshaped
        assert torch.equal(_walk(view, shape), expected)


def test_what_does_not_fit_is_no_view() -> None:
    assert View.of((4, 6)).permute([1, 0]).reshape((8, 3)) is None
    assert View.of((4, 6)).reshape((5, 5)) is None


def test_symbolic_sizes() -> None:
    batch = symbol("batch")
    view = View.of((197, 12 * batch, 64)).permute([1, 0, 2]).reshape((batch, 12, 197, 64))
    assert view is not None
    assert view.shape == (batch, 12, 197, 64)
    assert view.steps() == (None, (1, 0, 2), (batch, 12, 197, 64))
    assert View.of((sympy.Symbol("n") + 1, 4)).reshape((2, 2 * sympy.Symbol("n") + 2)) is None


def test_dimensions_of_size_one_are_inserted_with_the_first_reshape() -> None:
    one = View.of((1, 512, 512)).reshape((1, 512, 8, 64))
    assert one is not None
    assert one.permute([0, 2, 1, 3]).steps() == ((1, 512, 8, 64), (0, 2, 1, 3), None)
    inside = View.of((6, 4)).reshape((2, 3, 4))
    inside = inside and inside.permute([1, 0, 2]).reshape((3, 2, 1, 4))
    assert inside is not None
    assert inside.steps() == ((2, 3, 1, 4), (1, 0, 2, 3), None)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_merged(name: str) -> None:
    class Chain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return CHAINS[name](x.relu()).sigmoid()

    x = torch.randn(2, 3, 4, 5)
    program = api.optimize(api.capture(Chain().eval(), (x,)), Settings())
    torch.testing.assert_close(program(x), Chain()(x))
    assert len(program.calls) - 2 == STEPS[name]


def test_the_transposes_around_attention_cancel() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    module, x = Attention().eval(), torch.randn(2, 7, 32)
    shapes = {"x": {0: Dim("batch", min=1, max=4)}}
    program = api.optimize(api.capture(module, (x,), dynamic_shapes=shapes), Settings())
    for size in (1, 2, 4):
        x = torch.randn(size, 7, 32)
        torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-6)
    permutes = [node for node in program.calls if node.target is aten.permute.default]
    assert [list(node.args[1]) for node in permutes] == [[0, 2, 1, 3]] * 4
    assert sum(node.target is aten.slice.Tensor for node in program.calls) == 3


class Windows(nn.Module):
    """Attention in windows of 4x4 as Swin has it, with query, key and value from one linear layer or from three."""

    def __init__(self, *, stacked: bool) -> None:
        super().__init__()
        self.stacked = stacked
        self.qkv, self.q, self.k, self.v = nn.Linear(16, 48), *(nn.Linear(16, 16) for _ in range(3))
        self.project = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, size = x.shape[0], x.shape[1]
        windows = x.view(batch, size // 4, 4, size // 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16)
        if self.stacked:
            q, k, v = self.qkv(windows).reshape(-1, 16, 3, 2, 8).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (each(windows).view(-1, 16, 2, 8).transpose(1, 2) for each in (self.q, self.k, self.v))
        weights = (q * 8**-0.5 @ k.transpose(-2, -1)).softmax(-1)
        joined = self.project((weights @ v).transpose(1, 2).reshape(-1, 16, 16))
        return joined.view(batch, size // 4, size // 4, 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(x.shape) + x


@pytest.mark.parametrize(
    ("stacked", "merged"), [(True, False), (False, True), (False, False)], ids=["stacked", "merged", "apart"]
)
def test_windows_are_cut_out_before_the_projections(stacked: bool, merged: bool) -> None:
    module, x = Windows(stacked=stacked).eval(), torch.randn(2, 8, 8, 16)
    shapes = {"x": {0: Dim("batch", min=1, max=4)}}
    settings = Settings(extra_passes=("merge_sibling_linears",) if merged else ())
    program = api.optimize(api.capture(module, (x,), dynamic_shapes=shapes), settings)
    for size in (1, 2, 4):
        x = torch.randn(size, 8, 8, 16)
        torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-6)
    # Around attention the heads change places with the tokens, as in any other; only windows take more dimensions.
    orders = [axes_of(node, program.spec(node).rank) for node in program.calls if node.target in PERMUTING]
    heads = [(0, 2, 1, 3), (0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)]
    assert sorted(orders) == sorted([(0, 1, 3, 2, 4, 5), *heads, (0, 2, 1, 3)])
    widths = [program.spec(node).shape[-1] for node in program.calls if node.target is aten.linear.default]
    assert widths == ([48, 16] if stacked or merged else [16] * 4)
    sliced = {program.spec(node.args[0]).shape[1:] for node in program.calls if node.target is aten.slice.Tensor}
    assert sliced == ({(16, 48)} if stacked or merged else set())


def test_an_order_that_saves_nothing_does_not_wait() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.linear(x.transpose(0, 1)).reshape(-1, 5))

    module, x = Halves().eval(), torch.randn(4, 3, 6)
    program = api.optimize(api.capture(module, (x,)), Settings())
    torch.testing.assert_close(program(x), module(x))
    assert program.calls[0].target in (aten.transpose.int, aten.permute.default)


def test_an_order_that_cannot_wait_stays_before_the_linear_layer() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # The channels come from another dimension: this transpose is the linear layer's own.
            return F.relu(self.linear(x.transpose(1, 2)).transpose(1, 2))

    module, x = Mixed().eval(), torch.randn(2, 6, 3)
    program = api.optimize(api.capture(module, (x,)), Settings())
    torch.testing.assert_close(program(x), module(x))


def test_two_unknown_sizes() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, _ = x.shape
            stack = self.linear(x.transpose(0, 1)).reshape(length, batch, 3, 8).permute(2, 1, 0, 3)
            return stack[0] * stack[1] + stack[2]

    module = Heads().eval()
    dims = {"x": {0: Dim("batch", min=1, max=8), 1: Dim("length", min=1, max=16)}}
    program = api.optimize(api.capture(module, (torch.randn(2, 5, 8),), dynamic_shapes=dims), Settings())
    for shape in ((2, 5, 8), (1, 1, 8), (3, 7, 8)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    """Swaps blocks of an image in ways that take more dimensions than TensorRT's tensors have."""

    def __init__(self, axes: list[int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.reshape(*x.shape[:1], *(2,) * (len(self.axes) - 2), 3)
        return wide.permute(self.axes).reshape(x.shape[0] * 2, -1, 3) + 1


@pytest.mark.parametrize(
    "axes",
    [
        [0, 3, 7, 2, 6, 1, 5, 4, 8],
        [0, 8, 2, 7, 4, 1, 6, 3, 5, 9],
        [0, 9, 7, 5, 3, 1, 8, 6, 4, 2, 10],
        [0, 1, 3, 2, 4, 5, 7, 6, 8, 9],
    ],
    ids=lambda axes: str(len(axes)),
)
def test_more_dimensions_than_tensorrt_has(axes: list[int]) -> None:
    x = torch.randn(2, 2 ** (len(axes) - 2), 3)
    module = Wide(axes).eval()
    program = api.capture(module, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=4)},))
    program = api.optimize(program, Settings())
    assert max(program.spec(node).rank for node in program.calls if not program.is_size(node)) <= 8
    assert torch.equal(program(x), module(x))
    assert torch.equal(program(x[:1]), module(x[:1]))


@pytest.mark.parametrize("operator", ["aten.permute", "aten.unbind"])
def test_views_that_are_to_run_in_torch_stay(operator: str) -> None:
    class Stacked(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            first, second = x.permute(2, 0, 1).permute(0, 2, 1).unbind(0)
            return first.exp(), second.sin()

    module, x = Stacked().eval(), torch.randn(3, 4, 2)
    program = api.optimize(api.capture(module, (x,)), Settings(run_in_torch=(operator,)))
    for found, wanted in zip(program(x), module(x), strict=True):
        assert torch.equal(found, wanted)
    marked = [node.target for node in program.calls if IN_TORCH in node.meta]
    assert marked == {"aten.permute": [aten.permute.default] * 2, "aten.unbind": [aten.unbind.int]}[operator]
