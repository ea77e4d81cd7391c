"""Moved to :mod:`torch2trt.sizes`."""

from torch2trt.sizes import *  # noqa: F403
from torch2trt.sizes import DimRange, Shape, Size, TensorSpec, evaluate, size_from_json, size_to_json  # noqa: F401
