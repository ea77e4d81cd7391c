"""How the tensors of a trace lie in memory: as those of eager do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import fake_impls, fake_tensor

from torch2trt.frontend.decompositions import replaced

aten = torch.ops.aten

_PACKETS = (
    *(aten.convolution, aten._convolution, aten.conv1d, aten.conv2d, aten.conv3d),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)
_ONE_AT_A_TIME = threading.RLock()
_CONVOLUTIONS = frozenset(getattr(packet, name) for packet in _PACKETS for name in packet.overloads())


@contextlib.contextmanager
def layouts_of_cudnn() -> Iterator[None]:
    """Inside, convolutions of fake tensors on CUDA have results that lie in memory as those of cuDNN do.

    torch traces without cuDNN, so that no operator becomes one of cuDNN's own. It then takes convolutions for those
    that torch has beside it, whose results are contiguous whatever their arguments are.
    """
    kernels, target = getattr(fake_impls, "op_implementations_dict", {}), aten.convolution.default
    validate = getattr(fake_tensor.FakeTensorMode, "_validate_cache_key", None)
    bypass = getattr(fake_tensor, "_BypassDispatchCache", None)
    if target not in kernels or validate is None or bypass is None:
        # A torch that does it in another way: layouts are what it says.
        yield
        return
    with _ONE_AT_A_TIME:
        own, enabled = kernels[target], torch.backends.cudnn.enabled

        def convolution(mode: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
            if enabled:
                # A layout is worth no refusal: what is wrong with the call is so without cuDNN too.
                with contextlib.suppress(Exception), _cudnn():
                    return own(mode, func, *args, **kwargs)
            return own(mode, func, *args, **kwargs)

        def uncached(self: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            # The cache that all traces of a process share does not ask whether there is cuDNN.
            if func in _CONVOLUTIONS:
                raise bypass("depends on cuDNN")
            validate(self, func, args, kwargs)

        with replaced(fake_tensor.FakeTensorMode, "_validate_cache_key", uncached):
            kernels[target] = convolution
            try:
                yield
            finally:
                kernels[target] = own


@contextlib.contextmanager
def _cudnn() -> Iterator[None]:
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(True)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before)
