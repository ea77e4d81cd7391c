"""Digests of what is large, without a copy where the memory can be read as it is.

BLAKE3, because it takes a third of the time of SHA-256 on one core, by processors' own instructions for that, and
shares what is large out among threads by itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

_PIECE = 64 << 20  # bytes
_THREADS = min(os.cpu_count() or 1, 16)  # of one memory, more are no faster
# Below that, threads take longer to wake than to read.
_SMALL = 1 << 20  # bytes


def of_text(lines: Iterable[str]) -> str:
    """The digest of lines of text, which may themselves have several: SHA-256, which is as quick for little."""
    found = hashlib.sha256()
    for line in lines:
        data = line.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()


def of_bytes(data: bytes) -> str:
    """The digest of bytes."""
    found = blake3(max_threads=_threads(len(data)))
    found.update(data)
    return found.hexdigest()


def of_file(path: Path) -> str:
    """The digest of what :func:`of_bytes` would find in a file, which is read piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    found = blake3(max_threads=_THREADS)
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The digests of dense tensors' dtypes, shapes and elements; strides and devices make no difference.

    Tensors that are the same memory in the same form are read once.
    """
    found: dict[Any, str] = {}
    names: dict[str, Any] = {}
    for name, tensor in tensors.items():
        names[name] = key = (
            *(tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()),
            *(tensor.is_conj(), tensor.is_neg()),
        )
        if key not in found:
            found[key] = _of_tensor(tensor)
    return {name: found[key] for name, key in names.items()}


def _of_tensor(tensor: torch.Tensor) -> str:
    read = _without_repetition(tensor)
    elements = blake3(max_threads=_threads(read.numel() * read.element_size()))
    for part in _parts(read):
        elements.update(part)
    return of_text((f"{tensor.dtype} {list(tensor.shape)} {list(read.shape)}", elements.hexdigest()))


def _without_repetition(tensor: torch.Tensor) -> torch.Tensor:
    """One of each, where a dimension repeats the same memory."""
    tensor = tensor.detach()
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor.resolve_conj().resolve_neg()


def _parts(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of the elements in their logical order, piece by piece."""
    count = max(1, _PIECE // tensor.element_size())
    for start in range(0, tensor.numel(), count):
        whole = tensor.is_contiguous()
        part = tensor.reshape(-1)[start : start + count] if whole else _gathered(tensor, start, count)
        # One element may have any stride, and yet is seen as bytes only where that is 1.
        plain = part.cpu().as_strided((part.numel(),), (1,))
        yield plain.view(torch.uint8).numpy().data


def _gathered(tensor: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Elements, in their logical order, of a tensor whose memory has another."""
    row = max(1, tensor[0].numel())
    first, last = start // row, min((start + count - 1) // row + 1, tensor.shape[0])
    return tensor[first:last].reshape(-1)[start - first * row : start - first * row + count]


def _threads(size: int) -> int:
    return 1 if size < _SMALL else _THREADS
