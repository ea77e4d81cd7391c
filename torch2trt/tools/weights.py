"""Random weights that behave like trained ones: no branch switched off, activations of unit scale throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def randomize(
    module: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, seed: int = 0
) -> None:
    """Make a module's initial weights numerically meaningful, the same for the same seed.

    Initial weights are no test: constants hide errors, and where batch norms do not know their input, activations
    vanish (torchvision's random MobileNet returns 1e-10) or overflow FP16. See :func:`vary_constants` and
    :func:`fit_batch_norms`.

    Args:
        module: in evaluation mode, with a library's initial weights; changed in place.
        args, kwargs: an example call, of few images: it runs on one thread.
    """
    vary_constants(module, torch.Generator(_device(module)).manual_seed(seed))
    fit_batch_norms(module, args, kwargs)


def vary_constants(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Redraw the parameters and batch-norm statistics that start as a constant.

    Initial zeros switch whole branches off, and ones make a forgotten scale invisible: errors there would not show.

    Args:
        generator: on the module's device; unset: torch's own.
    """
    norms = (child for child in module.modules() if isinstance(child, nn.modules.batchnorm._NormBase))
    with torch.no_grad():
        for tensor in (*module.parameters(), *(buffer for norm in norms for buffer in norm.buffers())):
            if not tensor.is_floating_point() or tensor.numel() == 0 or bool((tensor != tensor.flatten()[0]).any()):
                continue
            value = float(tensor.flatten()[0])
            vector = sum(size > 1 for size in tensor.shape) <= 1
            if abs(value) < 1e-2:
                # A matrix sums over its rows, so its entries stay small.
                tensor.normal_(0.0, 0.1 if vector else 0.02, generator=generator)
            elif vector:
                tensor.uniform_(0.8, 1.2, generator=generator).mul_(value)


def fit_batch_norms(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
    """Bring the statistics of each batch norm, of scale 1, to the scale of what it gets in one call."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm) and child.running_mean is not None]
    if not norms:
        return
    hooks = [norm.register_forward_pre_hook(_fit) for norm in norms]
    threads = torch.get_num_threads()
    # Sums on the CPU depend on the number of threads; in another process the weights are to be the same.
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            module(*args, **(kwargs or {}))
    finally:
        torch.set_num_threads(threads)
        for hook in hooks:
            hook.remove()


def _fit(norm: _BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
    # One scale for all channels: normalising each, as training does, makes deep random networks chaotic. Every ReLU
    # then amplifies rounding errors by a fifth, and ResNet-101's FP16 error is 5e-2 instead of 1e-3.
    square = inputs[0].float().square().mean()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.mul_(square.sqrt())
    norm.running_var.mul_(square)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
