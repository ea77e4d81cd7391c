"""Builds with real TensorRT: what they yield, how they fail, how they are stopped."""

from __future__ import annotations

import contextlib
import io
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.hand_made import FLAVOUR, QUIET, TRT, convolutions, signature
from torch2trt.engine import plan as plans
from torch2trt.engine import progress
from torch2trt.engine.builder import build
from torch2trt.engine.memory import give_back
from torch2trt.engine.progress import build_monitor
from torch2trt.errors import ArtifactWriteError, BuildError
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, symbol

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
