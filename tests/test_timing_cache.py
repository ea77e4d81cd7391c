"""The timing cache: what its file keeps, with timings that are plain bytes, and where it lies."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import filelock
import pytest

from tests.hand_made import FLAVOUR, convolutions, signature
from torch2trt.engine import timing_cache
from torch2trt.engine.builder import build
from torch2trt.errors import BuildError
from torch2trt.settings import Settings
from torch2trt.trt.flavour import Flavour


class FakeCache:
    """An ``ITimingCache`` whose timings are letters; capital X is from another GPU."""

    def __init__(self, timings: bytes) -> None:
        self.timings = set(timings)

    def combine(self, other: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if ord("X") in other.timings:
            return False
        self.timings |= other.timings
        return True

    def serialize(self) -> bytearray:
        return bytearray(sorted(self.timings))


class FakeConfig:
    def __init__(self) -> None:
        self.cache: FakeCache | None = None

    def create_timing_cache(self, data: bytes) -> FakeCache | None:
        return None if data == b"refused" else FakeCache(data)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if ord("X") in cache.timings:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache:
        assert self.cache is not None
        return self.cache


CACHING = Flavour("tensorrt", (10, 6, 0), None)


def time_kernels(folder: Path, new: bytes) -> set[int]:
    """Build with the cache, timing some new kernels; returns the timings that were there before."""
    config = FakeConfig()
    with timing_cache.timing_cache(config, CACHING, Settings(cache_dir=folder)):
        known = set(config.get_timing_cache().timings)
        config.get_timing_cache().timings |= set(new)
    return known


def cache_file(folder: Path) -> Path:
    return timing_cache.cache_path(CACHING, Settings(cache_dir=folder))


def test_timings_are_kept(tmp_path: Path) -> None:
    assert time_kernels(tmp_path, b"ab") == set()
    assert time_kernels(tmp_path, b"c") == set(b"ab")
    assert time_kernels(tmp_path, b"") == set(b"abc")
    assert {path.suffix for path in cache_file(tmp_path).parent.iterdir()} <= {".cache", ".lock"}


def test_timings_of_another_process_are_merged(tmp_path: Path) -> None:
    config = FakeConfig()
    with timing_cache.timing_cache(config, CACHING, Settings(cache_dir=tmp_path)):
        time_kernels(tmp_path, b"a")
        config.get_timing_cache().timings |= set(b"b")
    assert time_kernels(tmp_path, b"") == set(b"ab")


def test_a_failed_build_keeps_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError),
        timing_cache.timing_cache(FakeConfig(), CACHING, Settings(cache_dir=tmp_path)),
    ):
        raise BuildError("no engine")
    assert not cache_file(tmp_path).exists()


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"?" + data[1:], lambda data: b""])
def test_corrupt_cache_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    time_kernels(tmp_path, b"ab")
    path = cache_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert time_kernels(tmp_path, b"c") == set()
    assert "corrupt" in caplog.text
    assert time_kernels(tmp_path, b"") == set(b"c")


@pytest.mark.parametrize("timings", [b"refused", b"X"])
def test_cache_that_tensorrt_refuses_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, timings: bytes
) -> None:
    path = cache_file(tmp_path)
    path.parent.mkdir(parents=True)
    timing_cache._write(path, timings)
    assert time_kernels(tmp_path, b"c") == set()
    assert "does not fit" in caplog.text
    assert time_kernels(tmp_path, b"") == set(b"c")


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time_kernels(tmp_path, b"a")
    before = cache_file(tmp_path).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        time_kernels(tmp_path, b"b")
    assert "No space left" in caplog.text
    assert cache_file(tmp_path).read_bytes() == before
    assert {path.suffix for path in cache_file(tmp_path).parent.iterdir()} <= {".cache", ".lock"}


def test_cache_folder_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    time_kernels(tmp_path / "file", b"a")
    assert "could not be kept" in caplog.text


def test_cache_that_stays_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache_file(tmp_path)
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(timing_cache, "_LOCK_SECONDS", 0.1)
    with filelock.FileLock(path.with_suffix(".lock")):
        time_kernels(tmp_path, b"a")
    assert not path.exists()
    assert "could not be kept" in caplog.text


def test_cache_folder_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH2TRT_CACHE_DIR", str(tmp_path / "environment"))
    assert timing_cache.cache_folder(Settings(cache_dir=tmp_path)) == tmp_path
    assert timing_cache.cache_folder(Settings()) == tmp_path / "environment"
    monkeypatch.delenv("TORCH2TRT_CACHE_DIR")
    assert "torch2trt" in timing_cache.cache_folder(Settings()).name


def test_one_file_for_each_flavour_version_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_cache, "gpu", lambda: ("NVIDIA H200 / 141 GB", (9, 0)))
    assert timing_cache.cache_path(CACHING, Settings()).name == "tensorrt-10.6.0-NVIDIA_H200_141_GB-sm90.cache"


def test_no_timing_cache(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path, timing_cache=False, progress="none")
    build(convolutions(), signature(), settings, name="net")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_real_timing_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not FLAVOUR.has("timing_cache"):
        pytest.skip(f"{FLAVOUR.name} keeps no timings")
    settings = Settings(cache_dir=tmp_path, progress="none")
    path = timing_cache.cache_path(FLAVOUR, settings)
    build(convolutions(), signature(), settings, name="net")
    first = path.read_bytes()
    build(convolutions(depth=5), signature(), settings, name="net")
    assert len(path.read_bytes()) >= len(first) > 100
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    # What TensorRT itself makes of bytes that are no timing cache.
    timing_cache._write(path, first[100:])
    assert build(convolutions(), signature(), settings, name="net")
    path.write_bytes(first[:-10])
    assert build(convolutions(), signature(), settings, name="net")
    assert "corrupt" in caplog.text
