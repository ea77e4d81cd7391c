"""Layers that sample between elements: resize and grid sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import along, declared, layer, sizes

# Nearest element to a coordinate, by the names of ResizeRoundMode.
_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "HALF_UP": lambda x: (x + 0.5).floor(),
    "HALF_DOWN": lambda x: (x - 0.5).ceil(),
    "FLOOR": torch.floor,
    "CEIL": torch.ceil,
}
_GRID_MODES = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}
_GRID_PADDING = {"FILL": "zeros", "CLAMP": "border", "REFLECT": "reflection"}


@layer("RESIZE", wide=True)
def resize(node: Node, x: Tensor, shape: Tensor | None = None) -> Tensor:
    """Other sizes, by the nearest element or by linear or cubic interpolation, dimension by dimension."""
    api = node.api
    if shape is None and declared(api, "shape") is None:
        wanted = [int(size * scale) for size, scale in zip(x.shape, api.scales, strict=True)]
    else:
        wanted = sizes(api, "shape", shape)
    for dim, size in enumerate(wanted):
        if size != x.shape[dim]:
            x = _resize_along(api, x, dim, size)
    return x


def _resize_along(api: Any, x: Tensor, dim: int, size: int) -> Tensor:
    """Each new element along one dimension is a weighted sum of a few old ones, its taps."""
    length = x.shape[dim]
    at = _coordinates(api, length, size, x.device)
    mode = api.resize_mode.name
    if mode == "NEAREST":
        return x.index_select(dim, _ROUND[api.nearest_rounding.name](at).long().clamp(0, length - 1))
    base = at.floor()
    offsets = (0, 1) if mode == "LINEAR" else (-1, 0, 1, 2)
    places = torch.stack([base + offset for offset in offsets])
    distance = (at - places).abs()
    weights = 1 - distance if mode == "LINEAR" else _cubic(distance, api.cubic_coeff)
    if mode == "CUBIC" and api.exclude_outside:
        weights = weights * ((places >= 0) & (places < length))
        weights = weights / weights.sum(0)
    taps = zip(places.long().clamp(0, length - 1), weights.to(x.dtype), strict=True)
    parts = [x.index_select(dim, place) * along(weight, dim, x.dim()) for place, weight in taps]
    return torch.stack(parts).sum(0)


def _coordinates(api: Any, length: int, size: int, device: torch.device) -> Tensor:
    """Where each new element lies among the old ones."""
    new = torch.arange(size, dtype=torch.float64, device=device)
    if size == 1 and api.selector_for_single_pixel.name == "UPPER":
        return new
    match api.coordinate_transformation.name:
        case "ALIGN_CORNERS":
            return new * (length - 1) / max(size - 1, 1)
        case "HALF_PIXEL":
            return (new + 0.5) * length / size - 0.5
        case _:
            return new * length / size


def _cubic(distance: Tensor, a: float) -> Tensor:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


@layer("GRID_SAMPLE", wide=True)
def grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """Samples of x where the grid says, in coordinates from -1 to 1."""
    api = node.api
    mode, padding = _GRID_MODES[api.interpolation_mode.name], _GRID_PADDING[api.sample_mode.name]
    return F.grid_sample(x, grid, mode, padding, api.align_corners)
