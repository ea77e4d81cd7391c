"""What this torch can do; torch 2.11, the oldest that is supported, can do none of it."""

from __future__ import annotations

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_VERSION = torch.torch_version.TorchVersion(torch.__version__)


@functools.cache
def trace_counts() -> bool:
    """Whether counts are traced as integers; else they have the dtype of what is counted."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        return torch.bincount(torch.zeros(2, dtype=torch.int32), minlength=3).dtype == torch.int64


@functools.cache
def multiply_groups() -> bool:
    """Whether products of groups of float32 can be traced; else of bfloat16 alone."""
    try:
        with FakeTensorMode():
            torch._grouped_mm(torch.ones(2, 16), torch.ones(1, 16, 8), offs=torch.ones(1, dtype=torch.int32))
    except RuntimeError:
        return False
    return True


@functools.cache
def trace_last_segments() -> bool:
    """Whether segments along the last dimension, counted from the right, are traced in their own shape."""
    with FakeTensorMode():
        lengths = torch.ones(2, 3, dtype=torch.int64)
        return torch.segment_reduce(torch.ones(2, 3), "sum", lengths=lengths, axis=-1).shape == (2, 3)


@functools.cache
def add_to_wide_products() -> bool:
    """Whether ``addmm`` of halves with a result in float32 can be traced."""
    try:
        with FakeTensorMode():
            torch.addmm(*(torch.ones(2, 2).half() for _ in range(3)), out_dtype=torch.float32, beta=0.5)
    except TypeError:
        return False
    return True


def compute_ends_of_slices() -> bool:
    """Whether ``torch.export`` follows the size of a slice that ends at a computed size."""
    return bool(_VERSION >= (2, 12))


def nest_dynamic_shapes() -> bool:
    """Whether ``torch.export`` takes dynamic shapes for a registered dataclass."""
    return bool(_VERSION >= (2, 12))


def have_lanczos() -> bool:
    """Whether ``interpolate`` has Lanczos's windows."""
    return hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
