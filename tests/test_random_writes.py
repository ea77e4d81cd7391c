"""Random programs that write into tensors, views of them and copies, as graphs without writes."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from torch2trt import api
from torch2trt.errors import Torch2TRTError
from torch2trt.settings import Settings

EXAMPLES, SWEPT = 200, 5000
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


class Written(nn.Module):
    """A program as a module that returns all of its tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = random.Random(seed)
        lines, count = ["v0 = x * 1.5", "v1 = y + 0.25"], 2
        for _ in range(drawn.randint(3, 8)):
            step = drawn.choice(drawn.choice((VIEWS, PERHAPS_COPIES, PERHAPS_COPIES, WRITES, WRITES, WRITES)))
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
    # What is rounded to halves, in which order, is the graph's own affair.
    return all(
        (each.shape, each.dtype) == (exact.shape, exact.dtype)
        and torch.allclose(each.double(), exact.double(), rtol=2e-3, atol=2e-3)
        for each, exact in zip(program(x, y), wanted, strict=True)
    )


def test_no_write_is_lost(request: pytest.FixtureRequest) -> None:
    seeds = range(SWEPT if request.config.getoption("sweep") else EXAMPLES)
    found = {seed: is_right(seed) for seed in seeds}
    wrong = [seed for seed, right in found.items() if right is False]
    assert not wrong, f"seeds {wrong}, the first is\n{Written(wrong[0]).source}"
    assert sum(right is None for right in found.values()) < len(seeds) / 10
