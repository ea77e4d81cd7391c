"""SHA-256 of what is large: in pieces, by several threads, without a copy where the memory can be read as it is.

SHA-256, because processors since about 2019 have instructions for it and then nothing in Python's library is faster
but SHA-1. Python lets other threads run while it computes one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_PIECE = 8 << 20  # bytes
_THREADS = min(os.cpu_count() or 1, 16)  # of one memory, more are no faster


def of_text(lines: Iterable[str]) -> str:
    """The digest of lines of text, which may themselves have several."""
    found = hashlib.sha256()
    for line in lines:
        data = line.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()


def of_bytes(data: bytes) -> str:
    """The digest of bytes; another than ``sha256sum`` prints, because it is made of those of the pieces."""
    if len(data) <= _PIECE:
        return _combine(map(_sha256, _pieces(memoryview(data))))
    with ThreadPoolExecutor(_THREADS) as pool:
        return _combine(pool.map(_sha256, _pieces(memoryview(data))))


def of_file(path: Path) -> str:
    """The digest of what :func:`of_bytes` would find in a file, which is read piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return _combine(hashlib.sha256(piece).digest() for piece in iter(lambda: file.read(_PIECE), b""))


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The digests of dense tensors' dtypes, shapes and elements; strides and devices make no difference.

    Tensors that are the same memory in the same form are read once.
    """
    jobs: dict[Any, tuple[str, list[Future[bytes]]]] = {}
    names: dict[str, Any] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, tensor in tensors.items():
            names[name] = key = (
                *(tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()),
                *(tensor.is_conj(), tensor.is_neg()),
            )
            if key not in jobs:
                read = _without_repetition(tensor)
                form = f"{tensor.dtype} {list(tensor.shape)} {list(read.shape)}"
                jobs[key] = form, [pool.submit(_sha256_of_part, read, start) for start in _starts(read)]
        found = {
            key: of_text((form, _combine(piece.result() for piece in pieces))) for key, (form, pieces) in jobs.items()
        }
    return {name: found[key] for name, key in names.items()}


def _without_repetition(tensor: torch.Tensor) -> torch.Tensor:
    """One of each, where a dimension repeats the same memory."""
    tensor = tensor.detach()
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor.resolve_conj().resolve_neg()


def _starts(tensor: torch.Tensor) -> range:
    """The first element of each piece."""
    return range(0, tensor.numel(), max(1, _PIECE // tensor.element_size()))


def _sha256_of_part(tensor: torch.Tensor, start: int) -> bytes:
    count = max(1, _PIECE // tensor.element_size())
    part = tensor.reshape(-1)[start : start + count] if tensor.is_contiguous() else _gathered(tensor, start, count)
    # One element may have any stride, and yet is seen as bytes only where that is 1.
    plain = part.cpu().as_strided((part.numel(),), (1,))
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).digest()


def _gathered(tensor: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Elements, in their logical order, of a tensor whose memory has another."""
    row = max(1, tensor[0].numel())
    first, last = start // row, min((start + count - 1) // row + 1, tensor.shape[0])
    return tensor[first:last].reshape(-1)[start - first * row : start - first * row + count]


def _pieces(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + _PIECE] for start in range(0, len(data), _PIECE))


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _combine(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
