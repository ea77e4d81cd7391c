"""Each backend as a function that runs one of a case's input sets on the GPU."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt.engine.child import PLAN_FILE
from torch2trt.runtime.module import EngineModule
from torch2trt.settings import Precision
from torch2trt.tools.bench.candidate import Candidate
from torch2trt.tools.bench.case import Arguments, Subject, tensors
from torch2trt.tools.bench.onnx_peer import StaticEngine
from torch2trt.tools.bench.prepare import Prepared
from torch2trt.trt.flavour import Flavour

Call = Callable[[int], Any]
"""Enqueues a run, on the input set whose turn it is at this number, and returns its result."""


@contextlib.contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Let torch use TF32 or not, and search for the fastest convolutions, for a while."""
    tf32 = precision != "fp32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    _set_arithmetic("high" if tf32 else "highest", tf32, True)
    try:
        yield
    finally:
        _set_arithmetic(*before)


def _set_arithmetic(matmul: str, convolution: bool, search: bool) -> None:
    with warnings.catch_warnings():
        # torch 2.9 announces other settings, which its own Inductor does not read.
        warnings.simplefilter("ignore", UserWarning)
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution
    torch.backends.cudnn.benchmark = search


def inductor(module: nn.Module, backend: str) -> Callable[..., Any]:
    """The module behind ``torch.compile``, in the mode that the backend is named after."""
    return torch.compile(module, mode=backend.removeprefix("inductor-"), dynamic=False)


def inputs_for(candidate: Candidate, sets: Sequence[Arguments]) -> Sequence[Arguments]:
    """The input sets in the candidate's layout."""
    return pytree.tree_map_only(torch.Tensor, _channels_last, sets) if candidate.variant == "nhwc" else sets


def open_call(
    candidate: Candidate,
    subject: Subject,
    sets: Sequence[Arguments],
    prepared: Prepared | None,
    flavour: Flavour,
    device: torch.device,
) -> Call:
    """Make a candidate ready to run.

    Args:
        sets: from :func:`inputs_for`.
        prepared: what a child process made for :attr:`Candidate.source`.
        device: where the sets are; for all but eager the current CUDA device.

    Raises:
        Exception: whatever the backend says.
    """
    if candidate.backend == "eager":
        layout = torch.channels_last if candidate.variant == "nhwc" else torch.contiguous_format
        return in_turns(subject.module(device).to(memory_format=layout), sets)
    if candidate.backend.startswith("inductor"):
        # The child has filled Inductor's cache.
        return _stepping(in_turns(inductor(subject.module(device), candidate.backend), sets))
    assert prepared is not None
    plan = prepared.folder / PLAN_FILE
    if candidate.backend == "onnx-tensorrt":
        engine = StaticEngine(plan.read_bytes(), flavour, name=str(subject.case))
        return _replayed([engine.bind(tensors(arguments)) for arguments in sets])
    run = in_turns(EngineModule.load(plan), sets)
    if candidate.backend == "torch2trt":
        return run
    return _replayed([functools.partial(run, number) for number in range(len(sets))])


def in_turns(module: Callable[..., Any], sets: Sequence[Arguments]) -> Call:
    """A module, called with each of the input sets in turn."""

    def call(number: int) -> Any:
        args, kwargs = sets[number % len(sets)]
        return module(*args, **kwargs)

    return call


def _stepping(call: Call) -> Call:
    def step(number: int) -> Any:
        # Tells torch's CUDA graphs that the last result is no longer needed.
        torch.compiler.cudagraph_mark_step_begin()
        return call(number)

    return step


def _replayed(runs: Sequence[Callable[[], Any]]) -> Call:
    """One CUDA graph for each run, over whatever memory the run reads and writes."""
    # The first run of each does what cannot be captured.
    for run in runs:
        run()
    torch.cuda.synchronize()
    graphs = [(torch.cuda.CUDAGraph(), run) for run in runs]
    results = []
    for graph, run in graphs:
        with torch.cuda.graph(graph):
            results.append(run())

    def call(number: int) -> Any:
        # The runs are kept beside their graphs, since they own what the graphs work on.
        index = number % len(graphs)
        graphs[index][0].replay()
        return results[index]

    return call


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
