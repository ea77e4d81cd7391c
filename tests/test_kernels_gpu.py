"""Which kernels a fused pattern ends in: a fusion that is lost is one kernel more.

What is expected is what TensorRT 10.6 built on an H200; fewer kernels are as good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch2trt
from tests.passing import Function
from torch2trt.tools.profile.report import Kernel
from torch2trt.trt import flavour as flavours

pytestmark = pytest.mark.gpu

PRODUCT, POINTWISE, ATTENTION = "product", "pointwise", "attention"
# Parts of a generated kernel's name that say that it only moves or converts values.
MOVES = {"Cas", "Mov", "Rep", "Res", "Sli", "Tra"}

IMAGES, TOKENS = torch.randn(8, 64, 56, 56), torch.randn(8, 128, 768)

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
}


def work_of(kernel: Kernel) -> str:
    """What a kernel does; empty where it computes nothing."""
    if kernel.kind in ("gemm", "fusion") or kernel.kind.startswith("Cask"):
        return PRODUCT
    if "mha" in kernel.tactic:
        return ATTENTION
    named = re.fullmatch(r"__myl_((?:[A-Z][a-z]{2})+)_0x\w+", kernel.tactic)
    return POINTWISE if named and not set(re.findall("...", named[1])) <= MOVES else ""


def check(module: nn.Module, x: Tensor, expected: dict[str, int]) -> None:
    """Build the module in FP16 and count."""
    if flavours.load().name != flavours.TENSORRT:
        pytest.skip("the kernels of another flavour have other names")
    found = torch2trt.profile(module.eval().cuda(), (x.cuda(),), precision="fp16", progress="none")
    work = Counter(filter(None, map(work_of, found.kernels)))
    kernels = [(kernel.kind, kernel.tactic[:60]) for kernel in found.kernels]
    assert work[PRODUCT], kernels
    assert work[ATTENTION] == expected.get(ATTENTION, 0), kernels
    assert work <= Counter(expected), kernels


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_convolution_batch_norm_activation(name: str) -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        return self.other(ACTIVATIONS[name](self.norm(self.conv(x))))  # type: ignore[no-any-return, operator]

    conv, other = (nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2))
    module = Function(run, conv=conv, norm=nn.BatchNorm2d(64), other=other)
    check(module, IMAGES, {PRODUCT: 2, POINTWISE: int(name == "mish")})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_linear_activation(name: str) -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        return self.other(ACTIVATIONS[name](self.first(x)))  # type: ignore[no-any-return, operator]

    module = Function(run, first=nn.Linear(768, 3072), other=nn.Linear(3072, 768))
    check(module, TOKENS, {PRODUCT: 2, POINTWISE: int(name in ("silu", "sigmoid"))})


@pytest.mark.parametrize(
    ("activation", "after", "pointwise"), [("relu", True, 0), ("silu", False, 1)], ids=["relu-after", "silu-before"]
)
def test_convolution_residual(activation: str, after: bool, pointwise: int) -> None:
    act = ACTIVATIONS[activation]

    def run(self: Function, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))  # type: ignore[operator]
        return self.other(act(y + x) if after else act(y) + x)  # type: ignore[no-any-return, operator]

    conv, other = (nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(2))
    check(Function(run, conv=conv, norm=nn.BatchNorm2d(64), other=other), IMAGES, {PRODUCT: 2, POINTWISE: pointwise})


def test_depthwise_convolution() -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        return self.other(F.hardswish(self.norm(self.conv(x))))  # type: ignore[no-any-return, operator]

    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    module = Function(run, conv=conv, norm=nn.BatchNorm2d(64), other=nn.Conv2d(64, 64, 1))
    check(module, IMAGES, {PRODUCT: 2, POINTWISE: 1})


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_are_one_kernel(norm: type[nn.Module], residual: bool) -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        y = self.first(x)  # type: ignore[operator]
        return self.other(self.norm(y + x if residual else y))  # type: ignore[no-any-return, operator]

    module = Function(run, first=nn.Linear(768, 768), norm=norm(768), other=nn.Linear(768, 768))
    check(module, TOKENS, {PRODUCT: 2, POINTWISE: 1})


class Attention(nn.Module):
    """Self-attention from four linear layers.

    Args:
        heads: of queries, with so many features in all as there are.
        groups: heads of keys and values.
        mask: "causal" as an argument, "boolean" or "added" as a tensor; empty: none.
        by_hand: written with products and softmax.
    """

    boolean: Tensor | None
    added: Tensor | None

    def __init__(self, heads: int = 12, groups: int | None = None, mask: str = "", by_hand: bool = False) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups or heads, 768 // heads
        self.causal, self.by_hand = mask == "causal", by_hand
        seen = torch.ones(128, 128).tril().bool()
        self.register_buffer("boolean", seen if mask == "boolean" else None)
        self.register_buffer("added", torch.zeros(128, 128).masked_fill(~seen, -1e4) if mask == "added" else None)
        self.q, self.out = nn.Linear(768, 768), nn.Linear(768, 768)
        self.k, self.v = (nn.Linear(768, self.groups * self.size) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        counts = (self.heads, self.groups, self.groups)
        q, k, v = (
            layer(x).unflatten(-1, (count, self.size)).transpose(1, 2)
            for layer, count in zip((self.q, self.k, self.v), counts, strict=True)
        )
        if self.by_hand:
            y = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1) @ v
        else:
            mask = self.added if self.boolean is None else self.boolean
            grouped = self.groups != self.heads
            y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=self.causal, enable_gqa=grouped)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "module",
    [
        Attention(),
        Attention(by_hand=True),
        Attention(mask="causal"),
        Attention(mask="boolean"),
        Attention(mask="added"),
        Attention(heads=6),
        Attention(heads=24),
        Attention(groups=4),
    ],
    ids=["plain", "by-hand", "causal", "boolean-mask", "added-mask", "128-wide", "32-wide", "grouped"],
)
def test_attention_is_one_kernel_between_two_products(module: Attention) -> None:
    # Queries, keys and values come out of one product.
    check(module, TOKENS, {PRODUCT: 2, ATTENTION: 1})


def test_gated_linear_unit() -> None:
    def run(self: Function, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return, operator]

    gate, up, down = nn.Linear(768, 2048, False), nn.Linear(768, 2048, False), nn.Linear(2048, 768, False)
    check(Function(run, gate=gate, up=up, down=down), TOKENS, {PRODUCT: 3, POINTWISE: 1})
