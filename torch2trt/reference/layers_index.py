"""Layers that pick or place elements by index: gather, scatter, top-k, one-hot, non-zero, NMS."""

from __future__ import annotations

import torch
from torch import Tensor

from torch2trt.reference.readback import Node
from torch2trt.reference.registry import along, bits, layer


@layer("GATHER")
def gather(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    """Elements of data by index: along an axis, element by element, or by tuples of indices."""
    api = node.api
    axis, elementwise = api.axis, api.num_elementwise_dims
    if api.mode.name == "ND":
        return _gather_nd(data, indices.long(), elementwise)
    if api.mode.name == "ELEMENT":
        places, inside = _wrapped(indices.long(), data.shape[axis])
        return data.gather(axis, places) * inside
    if elementwise == 0:
        return _pick(data, indices.long(), axis)
    batch = max(data.shape[0], indices.shape[0])
    data, indices = (t.expand(batch, *t.shape[1:]) for t in (data, indices.long()))
    return torch.stack([_pick(d, i, axis - 1) for d, i in zip(data, indices, strict=True)])


def _pick(data: Tensor, indices: Tensor, axis: int) -> Tensor:
    places, inside = _wrapped(indices, data.shape[axis])
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    picked = data.index_select(axis, places.reshape(-1)).reshape(shape)
    return picked if inside.all() else picked * inside.reshape(*indices.shape, *[1] * (data.dim() - axis - 1))


def _gather_nd(data: Tensor, indices: Tensor, elementwise: int) -> Tensor:
    # The elementwise dimensions are indexed by their own positions.
    rank = indices.dim() - 1
    places = [along(torch.arange(data.shape[d], device=data.device), d, rank) for d in range(elementwise)]
    inside = torch.ones(indices.shape[:-1], dtype=torch.bool, device=data.device)
    for axis, positions in enumerate(indices.unbind(-1), start=elementwise):
        place, valid = _wrapped(positions, data.shape[axis])
        places.append(place)
        inside = inside & valid
    picked = data[tuple(places)]
    return picked * inside.reshape(*inside.shape, *[1] * (picked.dim() - inside.dim()))


def _wrapped(indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices counted from the front, and which lie inside: TensorRT reads zero from outside."""
    indices = torch.where(indices < 0, indices + size, indices)
    return indices.clamp(0, size - 1), (indices >= 0) & (indices < size)


@layer("SCATTER")
def scatter(node: Node, data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The data, with updates written by index: element by element along an axis, or by tuples of indices."""
    indices = indices.long()
    if node.api.mode.name == "ELEMENT":
        axis = node.api.axis
        return data.scatter(axis, torch.where(indices < 0, indices + data.shape[axis], indices), updates)
    return data.index_put(tuple(indices.unbind(-1)), updates)


@layer("TOPK")
def topk(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest or smallest along an axis, sorted, and where they were; of equals the first."""
    (axis,) = bits(node.api.axes)
    count = node.api.k if k is None else int(k)
    # A stable sort puts the first of equal values first.
    values, places = x.sort(dim=axis, descending=node.api.op.name == "MAX", stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count).to(node.dtype(1))


@layer("ONE_HOT")
def one_hot(node: Node, indices: Tensor, values: Tensor, depth: Tensor) -> Tensor:
    """The value at 1 where a new axis has the index, the value at 0 elsewhere."""
    classes = torch.arange(int(depth), device=indices.device)
    indices = torch.where(indices < 0, indices + int(depth), indices)
    axis = node.api.axis % (indices.dim() + 1)
    hot = (indices.unsqueeze(-1) == classes).movedim(-1, axis)
    return torch.where(hot, values[1], values[0])


@layer("NON_ZERO")
def non_zero(node: Node, x: Tensor) -> Tensor:
    """Indices of the elements that are not zero, [rank, count]."""
    return x.nonzero().T.to(node.dtype())


@layer("REVERSE_SEQUENCE")
def reverse_sequence(node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    """The first lengths[b] elements of each sequence in reverse, the others as they are."""
    batch, sequence = node.api.batch_axis, node.api.sequence_axis
    places = torch.arange(x.shape[sequence], device=x.device)
    lengths = lengths.long().unsqueeze(-1)
    places = torch.where(places < lengths, lengths - 1 - places, places)  # [batch, sequence]
    if batch > sequence:
        places = places.T
    shape = [size if axis in (batch, sequence) else 1 for axis, size in enumerate(x.shape)]
    return x.gather(sequence, places.reshape(shape).expand_as(x))


@layer("NMS", wide=True)
def nms(
    node: Node,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedy suppression per batch item and class; rows of the result are (batch, class, box)."""
    overlap = 0.0 if iou_threshold is None else float(iou_threshold)
    lowest = 0.0 if score_threshold is None else float(score_threshold)
    corners = _corners(boxes, node.api.bounding_box_format.name)
    if corners.dim() == 3:
        corners = corners.unsqueeze(2).expand(-1, -1, scores.shape[2], -1)
    rows = []
    for batch in range(len(scores)):
        candidates = (scores[batch] > lowest).nonzero()
        order = scores[batch][tuple(candidates.T)].argsort(descending=True, stable=True)
        kept: dict[int, list[int]] = {}
        for box, label in candidates[order][: node.api.topk_box_limit].tolist():
            of_class = kept.setdefault(label, [])
            taken = corners[batch, of_class, label]
            if len(of_class) < int(most) and not (_iou(corners[batch, box, label], taken) > overlap).any():
                of_class.append(box)
                rows.append((batch, label, box))
    device, dtype = scores.device, node.dtype()
    selected = torch.tensor(rows, dtype=dtype, device=device).reshape(-1, 3)
    return selected, torch.tensor(len(rows), dtype=node.dtype(1), device=device)


def _corners(boxes: Tensor, form: str) -> Tensor:
    """Boxes as (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2."""
    first, second = boxes.split(2, -1)
    if form == "CENTER_SIZES":
        first, second = first - second / 2, first + second / 2
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _iou(box: Tensor, others: Tensor) -> Tensor:
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - shared)
