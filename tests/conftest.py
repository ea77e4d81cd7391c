"""What holds for every test: where there is no GPU, what runs only on request, one seed, an own cache folder."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torch2trt.trt import flavour


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sweep", action="store_true", help="run the tests marked `sweep` too")
    parser.addoption(
        "--opinfo-results",
        type=Path,
        default=Path("build/opinfo.jsonl"),
        help="where the sweep of PyTorch's operator samples keeps its results; what is there is not run again",
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="of the first random graph; the next has the next")
    parser.addoption("--fuzz-examples", type=int, help="how many random graphs; unset: 2,000, and 10,000 in the sweep")
    parser.addoption(
        "--model-results",
        type=Path,
        default=Path("build/models.jsonl"),
        help="where the sweep of the model suite keeps its results; what is there and compiled is not run again",
    )


def pytest_configure(config: pytest.Config) -> None:
    # pytest listens to each logger that passes nothing on, and torch describes every trace to whoever listens to this.
    logging.getLogger("torch.__trace").propagate = True
    # Each worker would otherwise start as many threads as the machine has cores, and all would use the first GPU.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if workers > 1 and len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(gpus)]
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
    if not config.getoption("sweep") and "sweep" not in config.getoption("markexpr"):
        sweep = [item for item in items if item.get_closest_marker("sweep")]
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]
        config.hook.pytest_deselected(items=sweep)


def pytest_collection_finish() -> None:
    # What is there by now stays; each search for garbage would go over all of it.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    # Libraries look, at the end, for what is still there.
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH2TRT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _builds_are_real() -> Iterator[None]:
    # Where nothing else is set, no engine comes from another test.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(flavour._CAPABILITIES, "quick_builds", dict.fromkeys(flavour.NAMES, ((0,), None)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    # A shell lets what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
