"""All builds of a run: several at a time, each with its limit, none beyond the deadline."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from torch2trt.engine.timing_cache import cache_path
from torch2trt.errors import BuildTimeoutError
from torch2trt.runtime.files import atomic_file
from torch2trt.settings import Settings
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import Case
from torch2trt.tools.bench.prepare import Prepared, prepare
from torch2trt.trt.flavour import Flavour

Task = tuple[Case, Candidate]
Outcome = Prepared | Exception


class Skipped(Exception):
    """There was no time left to build it."""


class Timings:
    """The file in which TensorRT's kernel timings travel from run to run.

    Args:
        file: where they are kept; None: nowhere.
        folder: the cache folder of this run's builds.
    """

    def __init__(self, file: Path | None, folder: Path, flavour: Flavour) -> None:
        self._file = file
        self._cache = cache_path(flavour, Settings(cache_dir=folder))
        self._lock = threading.Lock()
        self.settings: dict[str, Any] = {} if file is None else {"timing_cache": True, "cache_dir": str(folder)}
        """What makes a build use them."""
        if file is not None and file.exists():
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self._cache)

    def keep(self) -> None:
        """Copy what the builds have added into the file."""
        with self._lock:
            if self._file is not None and self._cache.exists():
                with atomic_file(self._file) as file:
                    file.write(self._cache.read_bytes())


def build_all(
    tasks: Sequence[Task],
    folder: Path,
    *,
    settings: dict[str, Any],
    timings: Timings,
    jobs: int,
    gpus: Sequence[str] = (),
    limit: float,
    deadline: float,
    say: Callable[[str], None],
) -> dict[Task, Outcome]:
    """What became of each task: what was built, why it was not, or :class:`Skipped`.

    Args:
        folder: each task gets a folder of its own below it.
        settings: for :class:`torch2trt.Settings`, JSON values.
        jobs: child processes at a time. On one GPU TensorRT builds for one of them at a time.
        gpus: what ``CUDA_VISIBLE_DEVICES`` names the GPUs that they are spread over; empty: all use the first one.
        limit: seconds that one may take.
        deadline: in the clock of ``time.monotonic``.
        say: takes lines of progress.
    """
    children: list[psutil.Process] = []
    places: queue.SimpleQueue[str] = queue.SimpleQueue()
    folder.mkdir(parents=True, exist_ok=True)
    for gpu in itertools.islice(itertools.cycle(gpus or [""]), jobs):
        places.put(gpu)

    def build(task: Task) -> Outcome:
        case, candidate = task
        left = deadline - time.monotonic()
        if left <= 0:
            return Skipped()
        # Cases that are spelled alike may have other inputs, or a model of another file.
        digest = hashlib.sha256(json.dumps([case.to_json(), settings], sort_keys=True).encode()).hexdigest()[:8]
        name = "-".join(filter(None, (candidate.backend, candidate.variant)))
        own = folder / "-".join((*str(case).split(), digest)) / name
        start, gpu = time.monotonic(), places.get()
        try:
            prepared = prepare(
                candidate,
                case,
                own.resolve(),
                settings=settings,
                timeout=min(limit, left),
                lock=(folder / f"{gpu or 'gpu'}.lock").resolve(),
                environment={"CUDA_VISIBLE_DEVICES": gpu} if gpu else {},
                started=children.append,
            )
        except Exception as error:
            if isinstance(error, BuildTimeoutError) and left < limit:
                say(f"{case}: {candidate} was not ready when the time was over")
                return Skipped()
            say(f"{case}: {candidate} failed after {time.monotonic() - start:.0f} s: {error}")
            return error
        finally:
            places.put(gpu)
        timings.keep()
        say(f"{case}: {candidate} built in {prepared.build_s:.1f} s")
        return prepared

    pool = ThreadPoolExecutor(jobs, thread_name_prefix="torch2trt-bench")
    try:
        futures = {task: pool.submit(build, task) for task in dict.fromkeys(tasks)}
        return {task: future.result() for task, future in futures.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        raise
    finally:
        pool.shutdown()
