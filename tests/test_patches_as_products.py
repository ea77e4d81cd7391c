"""Convolutions of patches as products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tests.harness import check_module
from tests.passing import targets
from tests.rewriting import Net, calls, drawn, rewritten
from torch2trt.passes.hoist_weights import hoist_weights
from torch2trt.passes.merge_views import merge_views
from torch2trt.passes.patches_as_products import patches_as_products, small_patches_as_products
from torch2trt.passes.remove_dead_code import remove_dead_code
from torch2trt.passes.unify_convolutions import unify_convolutions
from torch2trt.passes.unify_views import unify_views
from torch2trt.passes.views import PERMUTING
from torch2trt.settings import Settings

aten = torch.ops.aten
LAST = (0, 2, 3, 1)
HALVES = 300.0  # of results in float32 that were computed in halves


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def of(
    conv: nn.Module, after: Callable[[Tensor], Any] = tokens, before: Callable[[Tensor], Tensor] = torch.clone
) -> Net:
    return Net(lambda self, x: after(self.conv(before(x))), conv=conv)


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


IMAGE, LONG, FILM, ROWS = drawn(2, 3, 20, 32), drawn(2, 4, 192), drawn(2, 3, 4, 8, 24), drawn(2, 8, 6, 12)

LARGE: dict[str, tuple[Net, Tensor]] = {
    "tokens": (of(nn.Conv2d(3, 8, (10, 16), (10, 16))), IMAGE),
    "channels last": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: x.permute(LAST)), IMAGE),
    "without a bias": (of(nn.Conv2d(3, 8, (20, 8), (20, 8), bias=False)), IMAGE),
    "read twice": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: (tokens(x), x.permute(LAST).relu())), IMAGE),
    "sequences": (of(nn.Conv1d(4, 8, 64, 64), lambda x: x.transpose(1, 2)), LONG),
    "films": (of(nn.Conv3d(3, 8, (2, 8, 8), (2, 8, 8))), FILM),
    "between channels-last tensors": (
        of(nn.Conv2d(12, 20, 2, 2), lambda x: x.permute(LAST), lambda x: first(x.sin())),
        ROWS,
    ),
    "of different sides, between channels-last tensors": (
        of(nn.Conv2d(12, 20, (4, 3), (4, 3)), lambda x: x.permute(LAST), lambda x: first(x.sin())),
        ROWS,
    ),
}
SMALL: dict[str, tuple[Net, Tensor]] = {
    "few numbers": (of(nn.Conv2d(3, 8, 4, 4)), IMAGE),
    "a number with few factors": (of(nn.Conv2d(3, 8, (20, 5), (20, 5))), drawn(2, 3, 20, 30)),
}
LEFT: dict[str, tuple[Net, Tensor]] = {
    "overlapping windows": (of(nn.Conv2d(3, 8, (20, 8), (20, 4))), IMAGE),
    "gaps": (of(nn.Conv2d(3, 8, (10, 16), (10, 32))), IMAGE),
    "a margin": (of(nn.Conv2d(3, 8, (20, 8), (20, 8), padding=(10, 4))), IMAGE),
    "holes": (of(nn.Conv2d(3, 8, (10, 16), (10, 16), dilation=(2, 1))), IMAGE),
    "what is cut off": (of(nn.Conv2d(3, 8, (18, 8), (18, 8))), IMAGE),
    "groups": (of(nn.Conv2d(4, 8, (10, 16), (10, 16), groups=2)), drawn(2, 4, 20, 32)),
    "transposed": (of(nn.ConvTranspose2d(3, 8, (10, 16), (10, 16))), IMAGE),
    "many channels": (of(nn.Conv2d(5, 8, (10, 16), (10, 16))), drawn(2, 5, 20, 32)),
    "channels first": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), torch.relu), IMAGE),
    "channels first too": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: (tokens(x), x.relu())), IMAGE),
    "another order": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: x.permute(0, 3, 2, 1)), IMAGE),
    "what is taken apart": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: torch.cat(x.split(4, 1), 0)), IMAGE),
    "another shape": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: x.flatten(1)), IMAGE),
    "positions read otherwise": (of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: x.flatten(2).relu()), IMAGE),
    "single numbers": (of(nn.Conv2d(12, 8, 1), lambda x: x.permute(LAST), lambda x: first(x.sin())), ROWS),
    "of channels last alone": (of(nn.Conv2d(12, 8, 2, 2), torch.relu, lambda x: first(x.sin())), ROWS),
}


def after(module: Net, x: Tensor, one: Any, **options: Any) -> Any:
    passes = (unify_views, unify_convolutions, one, merge_views, hoist_weights, remove_dead_code)
    return rewritten(module, x, passes=passes, **options)


@pytest.mark.parametrize("name", LARGE)
def test_it_is_a_product_of_tokens(name: str) -> None:
    module, x = LARGE[name]
    program = after(module, x, patches_as_products)
    (product,) = calls(program, aten.linear.default)
    assert aten.convolution.default not in targets(program)
    # One permutation cuts the patches out, and none comes behind the product.
    assert len([target for target in targets(program) if target in PERMUTING]) == 1
    assert all(node.target not in PERMUTING for node in product.users)
    assert targets(after(module, x[:1], patches_as_products)).count(aten.linear.default) == 1
    check_module(module, (x,), Settings(precision="fp32", optimization_level=0))
    if not name.startswith(("between", "of different")):
        assert aten.linear.default not in targets(after(module, x, small_patches_as_products))


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_have_to_be_asked_for(name: str) -> None:
    module, x = SMALL[name]
    assert aten.linear.default not in targets(after(module, x, patches_as_products))
    assert targets(after(module, x, small_patches_as_products)).count(aten.linear.default) == 1
    settings = Settings(precision="fp32", optimization_level=0, extra_passes=("small_patches_as_products",))
    check_module(module, (x,), settings)


@pytest.mark.parametrize("one", [patches_as_products, small_patches_as_products])
@pytest.mark.parametrize("name", LEFT)
def test_all_else_stays(name: str, one: Any) -> None:
    module, x = LEFT[name]
    program = after(module, x, one)
    assert aten.convolution.default in targets(program)
    assert aten.linear.default not in targets(program)


@pytest.mark.parametrize("name", ["tokens", "sequences", "films", "between channels-last tensors"])
def test_of_any_batch_and_in_halves(name: str) -> None:
    module, x = LARGE[name]
    shapes: Any = (({0: Dim("batch", min=1, max=8)},),)
    others = [(drawn(size, *x.shape[1:], seed=size),) for size in (1, 5)]
    program = after(module, x, patches_as_products, dynamic_shapes=shapes, others=others)
    assert targets(program).count(aten.linear.default) == 1
    settings = Settings(precision="fp16", optimization_level=0)
    check_module(module, (x,), settings, dynamic_shapes=shapes, others=others, tolerance=HALVES)


def test_sizes_of_images_have_to_be_known() -> None:
    shapes: Any = (({3: 8 * Dim("columns", min=2, max=8)},),)
    program = after(of(nn.Conv2d(3, 8, (20, 8), (20, 8))), IMAGE, patches_as_products, dynamic_shapes=shapes)
    assert aten.convolution.default in targets(program)


def test_an_activation_joins_the_product() -> None:
    module = of(nn.Conv2d(3, 8, (20, 8), (20, 8)), lambda x: F.gelu(tokens(x)))
    program = rewritten(module, IMAGE, tolerance=1e-7)
    assert targets(program)[-1] == torch.ops.torch2trt.linear_block.default
