"""Random programs that write into tensors, views of them and copies, as graphs without writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from torch2trt import api
from torch2trt.errors import Torch2TRTError
from torch2trt.settings import Settings

EXAMPLES, SWEPT = 200, 5000
DYNAMIC, SWEPT_DYNAMIC = 60, 2000
"""How many programs there are without and with ``--sweep``."""

VIEWS = (
    *("{}[0]", "{}[1:]", "{}[-1]", "{}[..., 1]", "{}[..., ::2]", "{}.transpose(0, -1)", "{}.unsqueeze(0)"),
    *("{}.reshape(-1)", "{}.flatten()", "{}.view(-1)", "{}.squeeze()", "{}.detach()", "{}.diagonal()"),
    *("{}.narrow(0, 0, 1)", "{}.split(1)[-1]", "{}.unbind()[0]"),
)
PERHAPS_COPIES = (
    *("{}.half()", "{}.float()", "{}.double()", "{}.contiguous()", "{}.clone()", "torch.relu({})", "{} + 1"),
    *("{}.expand(2, *{}.shape).sum(0)", "torch.nn.functional.dropout({}, 0.5, False)"),
)
WRITES = (
    *("{}.add_(1.0)", "{}.mul_(-0.5)", "{}.relu_()", "{}.fill_(0.5)", "{}.zero_()", "{}.clamp_(max=0.25)"),
    *("{}[0] = 0.25", "{}[..., 0] = 1.5", "{}[1:] += 1.0", "{}[..., 0].mul_(2)", "{}[{} > 0.3] = 0.125"),
    "{}.copy_({} * 2 + 1)",
)
RESIZED = (
    *("{}.flatten(1)", "{}.flatten(0, 1)", "{}.reshape({}.shape[0], -1)", "{}.reshape(-1, {}.shape[-1])"),
    *("{}.reshape({}.shape[0] * {}.shape[1], -1)", "{}.unflatten(-1, (2, -1))", "{}.unflatten(0, (-1, 1))"),
    *("{}.view_as({})", "{}.reshape_as({})", "{}.view({}.shape[0], -1)", "{}.chunk(2, -1)[0]", "{}[:-1]"),
    *("{}.transpose(0, -1).reshape(-1)", "{}.transpose(0, -1).contiguous()", "{}.select(1, 0)", "{}[..., :2]"),
    *("{}.swapaxes(0, -1).reshape_as({})", "{}.transpose(0, 1).flatten()", "{}[..., 1:]"),
)
"""Views, or copies, whose sizes are computed from those of what they are of."""
# torch.export takes a size such as n - 2 for one that is never 1, and so does not squeeze it.
OF_ANY_SIZE = (*(view for view in VIEWS if view != "{}.squeeze()"), *RESIZED)

N = Dim("n", min=2, max=8)
SHAPES: tuple[tuple[Any, Any], ...] = (
    (({0: N}, {0: N}), lambda n: ((n, 4), (n, 4, 2))),
    (({1: N}, {1: N}), lambda n: ((3, n), (3, n, 2))),
    (({0: N, 1: N + 2}, {0: N, 1: N + 2}), lambda n: ((n, n + 2), (n, n + 2, 2))),
    (({0: 2 * N}, {0: N}), lambda n: ((2 * n, 4), (n, 4, 2))),
    (({0: N}, {1: N + 1}), lambda n: ((n, 4), (3, n + 1, 2))),
)
"""What is dynamic about the two arguments, and their shapes by the size."""
SIZES = (3, 2, 5, 7)
"""The example's first."""


class Written(nn.Module):
    """A program as a module that returns all of its tensors."""

    def __init__(self, seed: int, views: Sequence[str] = VIEWS) -> None:
        super().__init__()
        drawn = random.Random(seed)
        lines, count = ["v0 = x * 1.5", "v1 = y + 0.25"], 2
        for _ in range(drawn.randint(3, 8)):
            step = drawn.choice(drawn.choice((views, PERHAPS_COPIES, PERHAPS_COPIES, WRITES, WRITES, WRITES)))
            # More often than not the last one, so that steps follow each other.
            line = step.replace("{}", f"v{drawn.choice((count - 1, count - 1, count - 2, drawn.randrange(count)))}")
            if step in WRITES:
                lines.append(line)
            else:
                lines.append(f"v{count} = {line}")
                count += 1
        results = ", ".join(f"v{number} * 1" for number in range(count))
        self.source = "\n    ".join(["def forward(x, y):", *lines, f"return {results}"])
        made: dict[str, object] = {"torch": torch}
        exec(self.source, made)
        self.written = made["forward"]

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.written(x, y)  # type: ignore[no-any-return, operator]


def is_right(seed: int) -> bool | None:
    """Whether the optimised graph of a program is as eager; None where eager cannot do it, or no graph can be made."""
    module = Written(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(3, 4, generator=generator), torch.randn(3, 4, 2, generator=generator)
    try:
        with torch.no_grad():
            wanted = module(x, y)
        program = api.optimize(api.capture(module, (x, y)), Settings())
    except (IndexError, RuntimeError, Torch2TRTError):
        return None
    return all_close(program(x, y), wanted)


def is_right_in_each_size(seed: int) -> bool | None:
    """The same of a program with a dynamic size, in several sizes of it."""
    module = Written(seed, OF_ANY_SIZE).eval()
    dynamic, shapes = SHAPES[seed % len(SHAPES)]
    generator = torch.Generator().manual_seed(seed)
    calls = [tuple(torch.randn(shape, generator=generator) for shape in shapes(size)) for size in SIZES]
    try:
        with torch.no_grad():
            wanted = [module(*args) for args in calls]
        program = api.optimize(api.capture(module, calls[0], dynamic_shapes=dynamic), Settings())
    except (IndexError, RuntimeError, Torch2TRTError):
        return None
    return all(all_close(program(*args), exact) for args, exact in zip(calls, wanted, strict=True))


def all_close(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    # What is rounded to halves, in which order, is the graph's own affair.
    return all(
        (each.shape, each.dtype) == (exact.shape, exact.dtype)
        and torch.allclose(each.double(), exact.double(), rtol=2e-3, atol=2e-3)
        for each, exact in zip(found, wanted, strict=True)
    )


def test_no_write_is_lost(request: pytest.FixtureRequest) -> None:
    seeds = range(SWEPT if request.config.getoption("sweep") else EXAMPLES)
    found = {seed: is_right(seed) for seed in seeds}
    wrong = [seed for seed, right in found.items() if right is False]
    assert not wrong, f"seeds {wrong}, the first is\n{Written(wrong[0]).source}"
    assert sum(right is None for right in found.values()) < len(seeds) / 10


def test_no_write_is_lost_in_any_size(request: pytest.FixtureRequest) -> None:
    seeds = range(SWEPT_DYNAMIC if request.config.getoption("sweep") else DYNAMIC)
    found = {seed: is_right_in_each_size(seed) for seed in seeds}
    wrong = [seed for seed, right in found.items() if right is False]
    assert not wrong, f"seeds {wrong}, the first is\n{Written(wrong[0], OF_ANY_SIZE).source}"
    # Eager cannot do it in each size, or torch.export takes a size for the one that it sees.
    assert sum(right is None for right in found.values()) < len(seeds) / 3
