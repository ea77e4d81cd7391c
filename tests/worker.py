"""A process that does tasks; where TensorRT takes it down or never returns, that costs one task."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

Work = Callable[..., Iterator[Any]]


class LostError(Exception):
    """The process ended, or was ended because nothing came from it for too long; another has taken its place."""

    def __init__(self, how: Literal["crash", "hang"], detail: str) -> None:
        self.how = how
        self.detail = detail
        super().__init__(how, detail)


class Worker:
    """A fresh process, on one thread.

    Args:
        work: from a task's arguments to its results, one by one; importable by name.
        patience: after so many seconds without a result, a task hangs.
    """

    def __init__(self, work: Work, patience: float = 120.0) -> None:
        self._work = work
        self._patience = patience
        self._start()

    def _start(self) -> None:
        # A fresh process, not a fork: threads and CUDA do not survive one.
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._work), daemon=True)
        self._process.start()
        other.close()
        self._connection.recv()  # it is ready

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def results(self, *task: Any) -> Iterator[Any]:
        """The results of a task as they come.

        Raises:
            LostError: it crashed or hung; a new process is ready for the next task.
        """
        self._connection.send(task)
        how: Literal["crash", "hang"] = "hang"
        try:
            while self._connection.poll(self._patience):
                result = self._connection.recv()
                if result is None:
                    return
                yield result
            self._process.kill()
        except EOFError:
            how = "crash"
        self.close()
        lost = LostError(how, f"exit code {self._process.exitcode}")
        self._start()
        raise lost


def _serve(connection: Connection, work: Work) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gc.freeze()  # as in conftest.py
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            gc.unfreeze()
            return
        for result in work(*task):
            connection.send(result)
        connection.send(None)
