"""TensorRT's log, routed to Python's ``logging`` and kept as the reasons of our errors."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch2trt.trt.flavour import Flavour

log = logging.getLogger("torch2trt.tensorrt")
# Without a handler of the application's, Python would print TensorRT's warnings to stderr; our own are for the user.
logging.getLogger("torch2trt.tensorrt").addHandler(logging.NullHandler())

# By TensorRT's severity: internal error, error, warning, info, verbose.
_LEVELS = (logging.ERROR, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

_NOISE = (
    "differs from one already registered",
    "CUDA lazy loading is not enabled",
    "Using default stream in enqueueV3",
)
# What the flavours that build without a GPU report while doing so.
_NOISE_WITHOUT_GPU = ("CUDA driver version is insufficient",)


@functools.cache
def make_logger(flavour: Flavour) -> Any:
    """The ``ILogger`` of a flavour, which writes to the logger ``torch2trt.tensorrt``.

    There is one for the whole process, because TensorRT itself has only one, whichever its builders, runtimes
    and refitters are made with. It has a method ``capture()``, a context manager that yields the list of the
    errors which TensorRT reports inside it.
    """
    noise = _NOISE + (_NOISE_WITHOUT_GPU if flavour.has("build_without_gpu") else ())

    class Logger(flavour.trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            flavour.trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._captures: tuple[tuple[int, list[str]], ...] = ()

        def log(self, severity: Any, message: str) -> None:
            level = _LEVELS[int(severity)]
            if level > logging.DEBUG and any(text in message for text in noise):
                level = logging.DEBUG
            if level == logging.ERROR:
                self._keep(message)
            log.log(level, "%s", message)

        def _keep(self, message: str) -> None:
            # An error belongs to the thread that reports it; what TensorRT's own threads report may belong to
            # anyone.
            here = threading.get_ident()
            captures = self._captures
            own = [errors for thread, errors in captures if thread == here]
            for errors in own or [errors for _, errors in captures]:
                errors.append(message)

        @contextmanager
        def capture(self) -> Iterator[list[str]]:
            errors: list[str] = []
            entry = threading.get_ident(), errors
            with self._lock:
                self._captures += (entry,)
            try:
                yield errors
            finally:
                with self._lock:
                    self._captures = tuple(item for item in self._captures if item is not entry)

    return Logger()
