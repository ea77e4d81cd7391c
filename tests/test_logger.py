"""TensorRT's log: where it goes, and which errors a capture keeps."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from torch2trt.trt import flavour
from torch2trt.trt.logger import make_logger

FLAVOUR = flavour.load()
TRT = FLAVOUR.trt
SEVERITY = TRT.ILogger.Severity


@pytest.fixture
def logger() -> Any:
    return make_logger(FLAVOUR)


def refuse_a_layer(logger: Any) -> None:
    """Make TensorRT report that a sum has two types."""
    builder = TRT.Builder(logger)
    network = builder.create_network(1 << int(TRT.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    inputs = [network.add_input(name, dtype, (2, 3)) for name, dtype in (("x", TRT.float32), ("y", TRT.float16))]
    layer = network.add_elementwise(*inputs, TRT.ElementWiseOperation.SUM)
    with pytest.raises(RuntimeError):
        _ = layer.get_output(0).shape


def test_one_logger_for_all(logger: Any) -> None:
    assert make_logger(FLAVOUR) is logger


@pytest.mark.parametrize(
    ("severity", "level"),
    [
        ("INTERNAL_ERROR", logging.ERROR),
        ("ERROR", logging.ERROR),
        ("WARNING", logging.WARNING),
        ("INFO", logging.INFO),
        ("VERBOSE", logging.DEBUG),
    ],
)
def test_severities(logger: Any, caplog: pytest.LogCaptureFixture, severity: str, level: int) -> None:
    caplog.set_level(logging.DEBUG, "torch2trt.tensorrt")
    logger.log(getattr(SEVERITY, severity), "100 % %s")
    assert caplog.record_tuples == [("torch2trt.tensorrt", level, "100 % %s")]


def test_reasons_of_tensorrt_are_captured(logger: Any) -> None:
    with logger.capture() as errors:
        refuse_a_layer(logger)
    refuse_a_layer(logger)
    # Without a GPU, TensorRT also reports that there is no driver: not a reason.
    assert len(errors) == 1
    assert "must have same input types" in errors[0]


def test_only_errors_are_captured(logger: Any) -> None:
    with logger.capture() as errors:
        for severity in (SEVERITY.VERBOSE, SEVERITY.INFO, SEVERITY.WARNING):
            logger.log(severity, "no reason")
        logger.log(SEVERITY.ERROR, "first")
        with logger.capture() as inner:
            logger.log(SEVERITY.INTERNAL_ERROR, "second")
        logger.log(SEVERITY.ERROR, "third")
    assert errors == ["first", "second", "third"]
    assert inner == ["second"]


def test_noise_is_no_error(logger: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "torch2trt.tensorrt")
    with logger.capture() as errors:
        logger.log(SEVERITY.ERROR, "The logger passed into createInferBuilder differs from one already registered")
    assert errors == []
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_captures_of_threads_do_not_mix(logger: Any) -> None:
    found: dict[str, list[str]] = {}
    barrier = threading.Barrier(2)

    def work(name: str) -> None:
        with logger.capture() as errors:
            barrier.wait(10)
            for _ in range(100):
                logger.log(SEVERITY.ERROR, name)
            barrier.wait(10)
        found[name] = errors

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"a": ["a"] * 100, "b": ["b"] * 100}


def test_what_threads_of_tensorrt_report_reaches_every_capture(logger: Any) -> None:
    with logger.capture() as errors:
        thread = threading.Thread(target=logger.log, args=(SEVERITY.ERROR, "from a worker"))
        thread.start()
        thread.join()
    assert errors == ["from a worker"]


def test_nothing_goes_to_stderr_unasked() -> None:
    code = (
        "from torch2trt.trt import flavour; from torch2trt.trt.logger import make_logger;"
        "f = flavour.load(); make_logger(f).log(f.trt.ILogger.Severity.ERROR, 'silent')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "silent" not in done.stdout + done.stderr
