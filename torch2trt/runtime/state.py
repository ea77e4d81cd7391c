"""The buffers that a module changes when it runs, as a compiled module holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn


def hold(state: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module that has copies of the tensors as buffers, under the same paths."""
    root = nn.Module()
    for path, tensor in state.items():
        *parents, name = path.split(".")
        owner = root
        for parent in parents:
            if parent not in owner._modules:
                owner.add_module(parent, nn.Module())
            child = owner.get_submodule(parent)
            owner = child
        owner.register_buffer(name, tensor.detach().clone())
    return root


def tensors(held: nn.Module, paths: Sequence[str], device: torch.device | None) -> list[torch.Tensor]:
    """The buffers, moved to a device where one is given."""
    found = [held.get_buffer(path) for path in paths]
    if device is not None and any(tensor.device != device for tensor in found):
        held.to(device)
        found = [held.get_buffer(path) for path in paths]
    return found
