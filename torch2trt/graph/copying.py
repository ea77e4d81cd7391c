"""Copies of modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy of a module, which may hold tensors that were computed with gradients.

    ``torch.nn.utils.weight_norm`` makes such attributes, and modules that keep what they computed last; the copy has
    their values.
    """
    memo: dict[int, Any] = {}
    for child in module.modules():
        for value in pytree.tree_leaves(vars(child)):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)
