"""Kernel timings kept between builds, in one file for each flavour, TensorRT version and GPU."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from torch2trt.settings import Settings
from torch2trt.trt.flavour import Flavour, gpu

log = logging.getLogger(__name__)

_LOCK_SECONDS = 10.0
# TensorRT checks little of what it is given, so the file starts with the SHA-256 of the rest.
_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder(settings: Settings) -> Path:
    """The cache folder: ``settings.cache_dir``, else ``$TORCH2TRT_CACHE_DIR``, else the user's own."""
    if settings.cache_dir is not None:
        return settings.cache_dir
    if folder := os.environ.get("TORCH2TRT_CACHE_DIR"):
        return Path(folder)
    return Path(platformdirs.user_cache_dir("torch2trt"))


def cache_path(flavour: Flavour, settings: Settings) -> Path:
    """The timing cache of this flavour, its version and the current GPU."""
    device = gpu()
    where = "nogpu" if device is None else f"{device[0]}-sm{device[1][0]}{device[1][1]}"
    name = re.sub(r"[^\w.-]+", "_", f"{flavour.name}-{flavour.version_text}-{where}")
    return cache_folder(settings) / "timing" / f"{name}.cache"


@contextmanager
def timing_cache(config: Any, flavour: Flavour, settings: Settings) -> Iterator[None]:
    """Give an ``IBuilderConfig`` the timings known so far, and keep those that the build inside adds.

    A cache that cannot be read or written costs time and never the build: the log says why. Flavours that
    keep no timings, and ``settings.timing_cache`` off, make this do nothing.
    """
    if not settings.timing_cache or not flavour.has("timing_cache"):
        yield
        return
    path = cache_path(flavour, settings)
    cache = _open(config, path)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("%s does not fit this TensorRT or GPU: starting an empty timing cache", path)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    yield
    try:
        _merge(config, path)
    except OSError as error:
        log.warning("the timing cache %s could not be kept: %s", path, error)


def _merge(config: Any, path: Path) -> None:
    """Write the configuration's timings, with what other processes wrote meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS):
        cache = config.get_timing_cache()
        written = _open(config, path)
        if written is None or not cache.combine(written, ignore_mismatch=False):
            log.warning("%s does not fit this TensorRT or GPU: it is replaced", path)
        _write(path, bytes(cache.serialize()))


def _open(config: Any, path: Path) -> Any:
    """The file's ``ITimingCache``, empty where there is no sound file, None where TensorRT refuses it."""
    return config.create_timing_cache(_read(path))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        log.warning("the timing cache %s cannot be read: %s", path, error)
        return b""
    digest, timings = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(timings).digest() != digest:
        log.warning("the timing cache %s is corrupt: ignored", path)
        return b""
    return timings


def _write(path: Path, timings: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(timings).digest())
            file.write(timings)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
