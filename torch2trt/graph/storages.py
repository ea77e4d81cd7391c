"""Tensors that may share memory, written as the memory they share and views of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch


def dump_tensors(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Views as JSON values by name, and the memory they look at, as flat tensors that share none.

    Tied, aliased and expanded tensors are written once; of a storage, only the part between the first and the last
    element in use.
    """
    groups: defaultdict[tuple[torch.device, int, torch.dtype], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[tensor.device, tensor.untyped_storage().data_ptr(), tensor.dtype].append(name)
    views: dict[str, dict[str, Any]] = {}
    flats: dict[str, torch.Tensor] = {}
    seen: set[tuple[torch.device, int]] = set()
    for (device, address, _), names in groups.items():
        spans = [_span(tensors[name]) for name in names]
        start, stop = min(span[0] for span in spans), max(span[1] for span in spans)
        flat = torch.as_strided(tensors[names[0]].detach(), (stop - start,), (1,), start)
        # Memory looked at as two dtypes is written as two.
        flats[names[0]] = flat.clone() if (device, address) in seen else flat
        seen.add((device, address))
        for name, (offset, _) in zip(names, spans, strict=True):
            tensor = tensors[name]
            views[name] = {
                "storage": names[0],
                "shape": list(tensor.shape),
                "stride": list(tensor.stride()),
                "offset": offset - start,
                "device": str(device),
            }
    return {name: views[name] for name in tensors}, flats


def restore_tensors(
    views: Mapping[str, Mapping[str, Any]],
    flats: Mapping[str, torch.Tensor],
    place: Callable[[str], torch.device],
) -> dict[str, torch.Tensor]:
    """The tensors that :func:`dump_tensors` took apart, sharing memory as they did.

    Args:
        place: the device for a device's name.

    Raises:
        KeyError, RuntimeError: a view of memory that is not there.
    """
    moved: dict[tuple[str, torch.device], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, view in views.items():
        key = view["storage"], place(view["device"])
        if key not in moved:
            moved[key] = flats[key[0]].to(key[1])
        tensors[name] = torch.as_strided(moved[key], view["shape"], view["stride"], view["offset"])
    return tensors


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first element in the storage and the one after the last."""
    start = int(tensor.storage_offset())
    if tensor.numel() == 0:
        return start, start
    reach = int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
    return start, start + reach + 1
