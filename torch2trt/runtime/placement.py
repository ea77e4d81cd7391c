"""Where an engine is: on the GPU where it first ran, in the dtypes that it was built for, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from torch2trt.errors import FrozenModuleError
from torch2trt.graph.signature import dtype_to_json
from torch2trt.runtime.artifact import Artifact

_ARITHMETIC = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def after(
    fn: Callable[[torch.Tensor], torch.Tensor], artifact: Artifact, device: torch.device | None
) -> torch.device | None:
    """The device of an engine after ``.to()`` or one of its kin.

    Args:
        fn: what would be done to the parameters, if there were any.
        device: where the engine runs; None: it has not run, and may choose its GPU.

    Raises:
        FrozenModuleError: it would change a dtype, or move the engine.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    chosen, here = device, device or torch.device("cuda", _current_device())
    for dtype in _dtypes(artifact):
        # Fake tensors show where it would go without a GPU and without moving anything.
        with FakeTensorMode():
            moved = fn(torch.empty(0, dtype=dtype, device=here))
        if moved.dtype != dtype:
            raise FrozenModuleError(
                f"cannot become {dtype_to_json(moved.dtype)}: an engine's dtypes are fixed when it is built",
                subject=artifact.name,
                hint="compile again with another precision=, or with the module and inputs in that dtype",
            )
        if moved.device == here:
            continue
        if moved.device.type == "cuda" and chosen is None:
            chosen = here = moved.device
            continue
        raise FrozenModuleError(
            f"cannot move from {here} to {moved.device}: an engine stays on its GPU",
            subject=artifact.name,
            hint="load or compile it again on that device" if moved.device.type == "cuda" else "",
        )
    return chosen


def with_index(device: torch.device | str | None) -> torch.device | None:
    """A device with its number: without one it is the current device."""
    if device is None:
        return None
    device = torch.device(device)
    return device if device.index is not None else torch.device(device.type, _current_device())


def _dtypes(artifact: Artifact) -> list[torch.dtype]:
    """The floating point dtypes that an engine takes, returns and computes in."""
    signature = artifact.signature
    found = [leaf.spec.dtype for leaf in (*signature.tensor_inputs, *signature.tensor_outputs)]
    if artifact.settings.precision is not None:
        found.append(_ARITHMETIC[artifact.settings.precision])
    return list(dict.fromkeys(dtype for dtype in found if dtype.is_floating_point)) or [torch.float32]


def _current_device() -> int:
    return torch.cuda.current_device() if torch.cuda.is_available() else 0
