"""Work in several threads at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def in_threads(work: Callable[[int], object], count: int) -> None:
    """Call ``work(0)`` to ``work(count - 1)``, each in a thread; what one raises is raised when all are done."""
    barrier = Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, number) for number in range(count)]
    for future in futures:
        future.result()
