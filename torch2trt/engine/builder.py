"""From a network to a plan: TensorRT's builder, configured, watched and stoppable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from torch2trt.engine.memory import give_back
from torch2trt.engine.plan import serialize
from torch2trt.engine.progress import build_monitor
from torch2trt.engine.timing_cache import timing_cache
from torch2trt.errors import BuildError
from torch2trt.graph.signature import Signature, TensorLeaf
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, spell
from torch2trt.trt.flavour import Flavour

_VERBOSITY = {"none": "NONE", "layer_names": "LAYER_NAMES_ONLY", "detailed": "DETAILED"}


class Buildable(Protocol):
    """What a build needs of a network."""

    flavour: Flavour
    logger: Any
    """From :func:`torch2trt.trt.logger.make_logger`."""
    builder: Any
    """The ``IBuilder`` that made the definition."""
    definition: Any
    """A strongly typed ``INetworkDefinition``."""
    constants: dict[str, torch.Tensor]
    """The weights by name, as far as they are known."""


def build(network: Buildable, signature: Signature, settings: Settings, *, name: str) -> bytes:
    """Build a plan, on the current CUDA device where the flavour needs one.

    An exception that reaches the caller's thread meanwhile, such as the ``KeyboardInterrupt`` of Ctrl-C,
    stops the build at TensorRT's next step and is then raised.

    Args:
        network: what to build; it is not changed.
        signature: names the inputs, and says which sizes their dynamic dimensions may take.
        settings: limits, effort, caches and progress.
        name: the model's, for errors and progress.

    Raises:
        BuildError: TensorRT returned no plan; the reason is what it logged.
        ArtifactWriteError: a large plan did not fit into the folder for temporary files.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    with build_monitor(network.flavour, settings.progress, name) as monitor:

        def work() -> bytes:
            # The current device is a thread's own.
            with torch.cuda.device(device) if device is not None else nullcontext():
                return _build(network, signature, settings, monitor, name)

        return _interruptible(work, monitor.cancel)


def _build(network: Buildable, signature: Signature, settings: Settings, monitor: Any, name: str) -> bytes:
    with network.logger.capture() as errors:
        config = _configure(network, settings)
        config.progress_monitor = monitor
        dynamic = [leaf for leaf in signature.tensor_inputs if not leaf.spec.is_static]
        for ranges in signature.ranges if dynamic else ():
            if not _add_profile(network, config, dynamic, ranges):
                raise _error(f"TensorRT refused the optimization profile {spell(ranges)}", errors, name)
        with timing_cache(config, network.flavour, settings):
            # What came before has left more free than TensorRT could use: weights were folded and cast there.
            give_back()
            weight_bytes = sum(value.nbytes for value in network.constants.values())
            plan = serialize(network.builder, network.definition, config, network.flavour, weight_bytes=weight_bytes)
            # Inside, so that the timings of a build that failed are not kept.
            if plan is None:
                hint = "raise the workspace limit, or leave it unset" if settings.workspace is not None else ""
                raise _error("TensorRT built no engine", errors, name, hint)
        return plan


def _configure(network: Buildable, settings: Settings) -> Any:
    trt = network.flavour.trt
    config = network.builder.create_builder_config()
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if settings.max_aux_streams is not None:
        config.max_aux_streams = settings.max_aux_streams
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, _VERBOSITY[settings.profiling_verbosity])
    if settings.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
    else:
        config.set_flag(trt.BuilderFlag.TF32)
    return config


def _add_profile(network: Buildable, config: Any, inputs: list[TensorLeaf], ranges: Mapping[str, DimRange]) -> bool:
    """Give TensorRT the smallest, usual and largest shape of each input; says whether it took them."""
    profile = network.builder.create_optimization_profile()
    for leaf in inputs:
        profile.set_shape(leaf.name, *leaf.stored.span(ranges))
    return bool(profile) and config.add_optimization_profile(profile) >= 0


def _error(what: str, errors: list[str], name: str, hint: str = "") -> BuildError:
    reasons = "; ".join(dict.fromkeys(errors)) or "it gave no reason"
    return BuildError(f"{what}: {reasons}", subject=name, hint=hint)


def _interruptible(work: Callable[[], bytes], cancel: Callable[[], None]) -> bytes:
    """Do the work in a thread, because Python delivers no signal to one that is inside TensorRT."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="torch2trt-build")
    watched = threading.Event()

    def begin() -> bytes:
        # An exception that reached this thread's start would make the pool forget it.
        watched.wait()
        return work()

    try:
        future = pool.submit(begin)
        watched.set()
        # In slices, because on Windows Ctrl-C does not end a wait.
        while wait([future], timeout=0.2).not_done:
            pass
    except BaseException:
        cancel()
        raise
    finally:
        watched.set()
        pool.shutdown()
    return future.result()
