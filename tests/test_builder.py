"""Builds with real TensorRT: what they yield, how they fail, how they are watched and stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import psutil
import pytest
import torch
from torch.utils import _pytree as pytree

from torch2trt.engine import plan as plans
from torch2trt.engine import progress, timing_cache
from torch2trt.engine.builder import build
from torch2trt.engine.memory import give_back
from torch2trt.engine.progress import build_monitor
from torch2trt.errors import ArtifactWriteError, BuildError, MissingPackageError
from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol
from torch2trt.trt import flavour
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.logger import make_logger

FLAVOUR = flavour.load()
TRT = FLAVOUR.trt
QUIET = Settings(progress="none")


@dataclasses.dataclass
class HandMade:
    """A network of convolutions, without the network builder of this package."""

    flavour: Flavour
    logger: Any
    builder: Any
    definition: Any
    constants: dict[str, torch.Tensor]


def convolutions(batch: int = 4, depth: int = 3, dtype: Any = TRT.float32) -> HandMade:
    logger = make_logger(FLAVOUR)
    builder = TRT.Builder(logger)
    definition = builder.create_network(1 << int(TRT.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    weights = {}
    tensor = definition.add_input("x", dtype, (batch, 8, 16, 16))
    for index in range(depth):
        weight = torch.randn(8, 8, 3, 3)
        weights[str(index)] = weight
        kernel = TRT.Weights(TRT.float32, weight.data_ptr(), weight.numel())
        layer = definition.add_convolution_nd(tensor, 8, (3, 3), kernel)
        layer.padding_nd = (1, 1)
        tensor = definition.add_activation(layer.get_output(0), TRT.ActivationType.RELU).get_output(0)
    tensor.name = "y"
    definition.mark_output(tensor)
    return HandMade(FLAVOUR, logger, builder, definition, weights)


def signature(batch: Any = 4, **dims: DimRange) -> Signature:
    spec = TensorSpec((batch, 8, 16, 16), torch.float32)
    in_spec = pytree.tree_flatten(((0,), {}))[1]
    out_spec = pytree.tree_flatten(0)[1]
    return Signature((TensorLeaf("x", spec),), (TensorLeaf("y", spec),), in_spec, out_spec, dims)


# Plans ------------------------------------------------------------------------------------------------------


def test_static() -> None:
    plan = build(convolutions(), signature(), QUIET, name="net")
    assert type(plan) is bytes
    # The weights are in it.
    assert len(plan) > 3 * 8 * 8 * 9 * 4


STREAMS = pytest.mark.skipif(not FLAVOUR.has("stream_writer"), reason="this TensorRT writes no streams")


@STREAMS
def test_a_large_plan_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    network = convolutions()
    whole = build(network, signature(), QUIET, name="net")
    sizes: list[int] = []
    make = tempfile.TemporaryFile

    @contextlib.contextmanager
    def watched(**options: Any) -> Iterator[Any]:
        with make(**options) as file:
            yield file
            sizes.append(file.tell())

    monkeypatch.setattr(plans.tempfile, "TemporaryFile", watched)
    assert len(build(network, signature(), QUIET, name="net")) == len(whole)
    assert not sizes
    monkeypatch.setattr(plans, "_LARGE", 3 * 8 * 8 * 9 * 4)
    assert len(build(network, signature(), QUIET, name="net")) == len(whole)
    assert sizes == [len(whole)]


@STREAMS
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_no_room_for_a_large_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_LARGE", 0)
    monkeypatch.setattr(plans.tempfile, "TemporaryFile", lambda prefix: io.FileIO("/dev/full", "w"))
    with pytest.raises(ArtifactWriteError, match="No space left") as raised:
        build(convolutions(), signature(), QUIET, name="net")
    assert "TMPDIR" in raised.value.hint


@STREAMS
def test_a_large_network_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_LARGE", 0)
    with pytest.raises(BuildError, match="TensorRT built no engine"):
        build(convolutions(dtype=TRT.float16), signature(), QUIET, name="net")


def test_freed_memory_is_given_back_while_building(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def slow() -> None:
        calls.append(time.monotonic())
        time.sleep(0.002)

    monkeypatch.setattr(progress, "give_back", slow)
    start = time.monotonic()
    build(convolutions(depth=8), signature(), QUIET, name="net")
    # At least once, and for a twentieth of the time at most.
    assert 1 <= len(calls) <= 1 + 0.05 * (time.monotonic() - start) / 0.002


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not asked")
def test_freed_memory_between_used() -> None:
    blocks = [bytearray(100_000) for _ in range(1000)]
    del blocks[::2]
    before = psutil.Process().memory_info().rss
    give_back()
    assert before - psutil.Process().memory_info().rss > 30e6
    assert len(blocks) == 500


@pytest.mark.parametrize("size", ["n", "2*n", "9 - n"])
def test_dynamic_batch(size: str) -> None:
    n = symbol("n")
    batch = {"n": n, "2*n": 2 * n, "9 - n": 9 - n}[size]
    assert build(convolutions(-1), signature(batch, n=DimRange(1, 2, 8)), QUIET, name="net")


def test_every_setting_reaches_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    network = convolutions()
    configs = []

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(builder, name)

        def create_builder_config(self) -> Any:
            configs.append(builder.create_builder_config())
            return configs[-1]

    builder, network.builder = network.builder, Spy()
    build(network, signature(), QUIET, name="net")
    settings = Settings(
        precision="fp32",
        workspace=1 << 28,
        optimization_level=1,
        max_aux_streams=2,
        profiling_verbosity="detailed",
        progress="none",
    )
    build(network, signature(), settings, name="net")
    seen = [
        (
            config.get_flag(TRT.BuilderFlag.TF32),
            config.get_memory_pool_limit(TRT.MemoryPoolType.WORKSPACE) == 1 << 28,
            config.builder_optimization_level,
            config.max_aux_streams == 2,
            config.profiling_verbosity,
        )
        for config in configs
    ]
    assert seen == [
        (True, False, 3, False, TRT.ProfilingVerbosity.LAYER_NAMES_ONLY),
        (False, True, 1, True, TRT.ProfilingVerbosity.DETAILED),
    ]


# Refusals ---------------------------------------------------------------------------------------------------


def test_refused_network_says_why() -> None:
    with pytest.raises(BuildError) as caught:
        build(convolutions(dtype=TRT.float16), signature(), QUIET, name="half a net")
    assert caught.value.subject == "half a net"
    assert "float" in caught.value.reason.lower()
    assert "driver" not in caught.value.reason


def test_missing_profile_says_why() -> None:
    with pytest.raises(BuildError, match="no optimization profile"):
        build(convolutions(-1), signature(), QUIET, name="net")


def test_refused_profile_says_why() -> None:
    with pytest.raises(BuildError, match=r"profile n 4…2…8: .*MIN<=OPT<=MAX"):
        build(convolutions(-1), signature(symbol("n"), n=DimRange(4, 2, 8)), QUIET, name="net")


def test_profile_of_another_network_says_why() -> None:
    with pytest.raises(BuildError, match="static dimensions"):
        build(convolutions(4), signature(symbol("n"), n=DimRange(1, 2, 8)), QUIET, name="net")


def test_limits_are_hinted_at() -> None:
    with pytest.raises(BuildError) as caught:
        build(convolutions(-1), signature(), Settings(progress="none", workspace=1 << 20), name="net")
    assert "workspace" in caught.value.hint


# Stopping ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_first_step(monkeypatch: pytest.MonkeyPatch, action: Any) -> Iterator[list[int]]:
    """Do something at TensorRT's first step, and count the steps."""
    steps: list[int] = []
    original = progress._monitor_class(FLAVOUR)

    class Watched(original):  # type: ignore[misc, valid-type]
        def step_complete(self, phase: str, step: int) -> bool:
            steps.append(step)
            if len(steps) == 1:
                action()
            return super().step_complete(phase, step)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "_monitor_class", lambda flavour: Watched)
        yield steps


def test_ctrl_c_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_first_step(monkeypatch, lambda: None) as steps:
        build(convolutions(), signature(), QUIET, name="net")
    whole = len(steps)
    interrupted = threading.Event()
    handler = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        # TensorRT goes on when the main thread has seen the signal, as it would have in a longer build.
        assert interrupted.wait(30)

    original = progress._monitor_class(FLAVOUR).cancel

    def cancel(self: Any) -> None:
        original(self)
        interrupted.set()

    monkeypatch.setattr(progress._monitor_class(FLAVOUR), "cancel", cancel)
    with on_first_step(monkeypatch, interrupt) as steps, pytest.raises(KeyboardInterrupt):
        build(convolutions(), signature(), QUIET, name="net")
    assert len(steps) < whole
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("torch2trt-build")]
    assert signal.getsignal(signal.SIGINT) is handler
    # Nothing is left behind that would spoil the next build.
    assert build(convolutions(), signature(), QUIET, name="net")


def test_cancel_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    with build_monitor(FLAVOUR, "none", "net") as monitor:
        monkeypatch.setattr("torch2trt.engine.builder.build_monitor", lambda *_: contextlib.nullcontext(monitor))
        monitor.cancel()
        with pytest.raises(BuildError, match=r"(?i)cancel"):
            build(convolutions(), signature(), QUIET, name="net")


def test_builds_in_threads() -> None:
    plans: list[bytes] = []

    def work() -> None:
        plans.append(build(convolutions(), signature(), QUIET, name="net"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 2


# Progress ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr  # type: ignore[return-value]


def test_terminal_shows_nested_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with build_monitor(FLAVOUR, "auto", "resnet50") as monitor:
        monitor.phase_start("Building engine", None, 2)
        monitor.phase_start("Timing", "Building engine", 3)
        monitor.step_complete("Timing", 0)
        monitor._display.refresh()
        shown = terminal.getvalue()
        monitor.phase_finish("Timing")
        assert len(monitor._display.tasks) == 1
        monitor.phase_finish("Building engine")
        assert not monitor._display.tasks
    assert "resnet50: Building engine" in shown
    assert "  Timing" in shown
    assert "1/3" in shown


def test_terminal_build(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    assert build(convolutions(), signature(), Settings(progress="terminal"), name="resnet50")
    assert "resnet50" in terminal.getvalue()


def test_none_writes_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    terminal = make_terminal(monkeypatch)
    assert build(convolutions(), signature(), QUIET, name="net")
    assert terminal.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    widgets = True
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if widgets else None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.resolve("auto") == "none"
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    assert progress.resolve("auto") == "notebook"
    assert progress.resolve("none") == "none"
    widgets = False
    assert progress.resolve("auto") == "none"
    with pytest.raises(MissingPackageError, match="ipywidgets"):
        progress.resolve("notebook")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert progress.resolve("auto") == "terminal"
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.resolve("auto") == "none"


def test_notebook_is_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not progress._in_notebook()

    class Shell:
        kernel = object()

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert progress._in_notebook()


# Timing cache: the file, with timings that are plain bytes --------------------------------------------------


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
