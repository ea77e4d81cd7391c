"""A tensor of a network under construction, as converters see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torch2trt.sizes import Shape, Size

if TYPE_CHECKING:
    from torch2trt.trt.core import NetworkCore


class Tensor:
    """Shape (sizes may be symbolic), dtype, and the TensorRT tensor behind them.

    A constant knows its value, and enters the network only when a layer needs it as an input: a convolution's kernel
    never does. UINT8 and INT8 exist at the borders of an engine only: inside, bytes are the floats they were made from.
    """

    __slots__ = ("_itensor", "dtype", "floats", "label", "net", "shape", "unexpanded", "value")

    def __init__(
        self,
        net: NetworkCore,
        itensor: Any,
        shape: Shape,
        dtype: torch.dtype,
        value: torch.Tensor | None = None,
        label: str = "",
        floats: Tensor | None = None,
    ) -> None:
        self.net = net
        self._itensor = itensor
        self.shape = shape
        self.dtype = dtype
        self.value = value
        self.label = label
        """The weight's name, for a constant that is one."""
        self.floats = floats
        """The same numbers as float32 or float16, for bytes that no layer has made yet."""
        self.unexpanded: Tensor | None = None
        """What it was expanded from, of the same rank."""

    @property
    def itensor(self) -> Any:
        """The ``ITensor``; a constant, and bytes made from floats, become a layer here, once."""
        if self._itensor is None and self.floats is not None:
            self._itensor = self.net.add_cast_layer(self.floats.itensor, self.dtype)
        if self._itensor is None:
            assert self.value is not None
            self._itensor = self.net.add_constant_layer(self.value, self.label)
        return self._itensor

    @property
    def is_constant(self) -> bool:
        """Whether the value is known at build time."""
        return self.value is not None

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def size(self, axis: int) -> Size:
        """The size of one dimension; negative axes count from the end."""
        return self.shape[axis]

    def __repr__(self) -> str:
        return f"Tensor({list(self.shape)}, {self.dtype}{', constant' if self.is_constant else ''})"
