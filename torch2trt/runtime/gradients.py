"""What engines say to those who want gradients."""

from __future__ import annotations

from typing import Any

import torch

from torch2trt.errors import FrozenModuleError
from torch2trt.runtime.hybrid import HybridSession
from torch2trt.runtime.profiles import Shapes
from torch2trt.runtime.session import Session


class Inference(torch.autograd.Function):
    """A run whose inputs want gradients: the outputs say so too, and going backward says why there are none."""

    @staticmethod
    def forward(
        ctx: Any, session: Session | HybridSession, shapes: Shapes, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Run the engine."""
        ctx.name = session.artifact.name
        outputs = session.run(inputs, shapes)
        ctx.mark_non_differentiable(*(value for value in outputs if not value.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse.

        Raises:
            FrozenModuleError: always.
        """
        raise FrozenModuleError(
            "an engine computes no gradients",
            subject=ctx.name,
            hint="train the original module, or call this one under torch.no_grad()",
        )
