"""The backends by name, and the variants of each that compete for its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch2trt.errors import SettingError

BACKENDS = {
    "eager": "the module itself, the faster of NCHW and NHWC",
    "inductor-reduce-overhead": "torch.compile with CUDA graphs",
    "inductor-max-autotune": "the same with every kernel tuned, which takes minutes",
    "onnx-tensorrt": "ONNX through TensorRT's parser, the faster exporter, a CUDA graph over static buffers",
    "torch2trt": "torch2trt.compile, called as the module is",
    "torch2trt-static": "the same engine in a CUDA graph over static buffers",
}
DEFAULT = ("eager", "inductor-reduce-overhead", "onnx-tensorrt", "torch2trt")
EXPORTERS = ("dynamo", "torchscript")

_VARIANTS = {"eager": ("nchw", "nhwc"), "onnx-tensorrt": EXPORTERS}


@dataclass(frozen=True)
class Candidate:
    """A backend in one variant."""

    backend: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.backend} ({self.variant})" if self.variant else self.backend

    @property
    def source(self) -> Candidate | None:
        """What a child process has to prepare for it; None: nothing."""
        if self.backend == "eager":
            return None
        return Candidate("torch2trt") if self.backend == "torch2trt-static" else self


def candidates(backends: Sequence[str]) -> list[Candidate]:
    """All variants of the backends, in the table's order.

    Raises:
        SettingError: an unknown backend.
    """
    for backend in backends:
        if backend not in BACKENDS:
            raise SettingError("is no backend", subject=backend, hint=f"the backends are: {', '.join(BACKENDS)}")
    chosen = [backend for backend in BACKENDS if backend in backends]
    return [Candidate(backend, variant) for backend in chosen for variant in _VARIANTS.get(backend, ("",))]
