"""Modules that cannot be captured whole: Dynamo cuts them up, and the pieces are compiled one by one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from torch2trt import backend as backends
from torch2trt.errors import ArtifactWriteError, DataDependentError, NoGPUError
from torch2trt.partition.explain import Explanation, GraphBreak
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.verification import Row, Verification, compare
from torch2trt.settings import Settings
from torch2trt.tolerance import effective_precision, tolerance
from torch2trt.trt.flavour import Flavour

log = logging.getLogger(__name__)


class PiecewiseModule(nn.Module):
    """A module in engines, with its own Python between them; called, run in the reference and verified as any other.

    Further engines are built where a call takes another way through the module, or other sizes. It cannot be saved:
    what joins the pieces is the module's own code.

    Args:
        module: in evaluation mode.
        settings: of every engine.
        truth: takes a call's arguments and returns its true result, float64 where it is floating point.
    """

    def __init__(self, module: nn.Module, settings: Settings, truth: Callable[..., Any], name: str) -> None:
        super().__init__()
        self.training = False
        self.name = name
        self.settings = settings
        self.engines: list[EngineModule] = []
        """The engines so far, in the order in which they were built."""
        # Held in a tuple: the module as an attribute would put its parameters in the state.
        self._held = (module, truth)
        options = {item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)}

        def build(graph: Any, inputs: Any) -> Callable[..., Any]:
            return backends.backend(graph, inputs, options=options, built=self.engines.append)

        self._run = torch.compile(module, backend=build)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces on the current CUDA stream.

        Raises:
            NoGPUError: there is none.
        """
        if not torch.cuda.is_available():
            raise NoGPUError("there is no GPU to run it", subject=self.name, hint=".reference() runs it on the CPU")
        with torch.no_grad():
            return self._run(*args, **kwargs)

    def reference(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pieces on the CPU, those that are engines in the reference interpreter, where there is no GPU."""
        with torch.no_grad():
            return self._run(*args, **kwargs)

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Compare with the truth, float64 eager with the original weights.

        Results whose number depends on data may differ in number where a score is close to a threshold.
        """
        module, truth = self._held
        here = torch.cuda.is_available()
        device = next((value.device for value in module.state_dict().values()), torch.device("cpu"))
        moved = pytree.tree_map_only(torch.Tensor, lambda value: value.to(device, copy=True), (args, kwargs))
        found = self.reference(*moved[0], **moved[1])
        leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        dtypes = [leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        precision = effective_precision(self.settings.precision, [*dtypes, *(leaf.dtype for leaf in leaves)])
        exact = [leaf for leaf in pytree.tree_leaves(truth(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
        rows: Iterator[Row] = (
            compare(f"output{number}", have, want, tolerance(precision, reference=not here))
            for number, (have, want) in enumerate(zip(leaves, exact, strict=True))
        )
        return Verification(self.name, "engine" if here else "reference", precision, tuple(rows))

    @property
    def report(self) -> dict[str, Any]:
        """What the compilation says of itself: engines, build_s, engine_bytes and more, summed over the engines."""
        names = (
            "nodes",
            "calls",
            "layers",
            "fused_blocks",
            "build_s",
            "engine_bytes",
            "weight_bytes",
            "calls_in_torch",
        )
        return {"engines": len(self.engines)} | {
            name: sum(engine.report[name] for engine in self.engines) for name in names
        }

    def save(self, path: Any, program: bool = False) -> None:
        """Refuse: what joins the engines is Python.

        Raises:
            ArtifactWriteError: always.
        """
        raise ArtifactWriteError(
            "cannot be saved: Python code joins its engines",
            subject=self.name,
            hint="compile and save the submodules that torch.export captures whole",
        )

    def extra_repr(self) -> str:
        """Name and number of engines."""
        return f"{self.name}, {len(self.engines)} engines"


def compile_in_pieces(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    settings: Settings,
    truth: Callable[..., Any],
    *,
    name: str,
    reason: DataDependentError,
) -> PiecewiseModule:
    """Compile a module that cannot be captured whole, with the engines that the example call needs.

    Raises:
        DataDependentError: too little of it became engines; it is ``reason``.
    """
    compiled = PiecewiseModule(module, settings, truth, name)
    own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    try:
        compiled.reference(*own_args, **own_kwargs)
    except Exception as error:
        # The module's own, or Dynamo's: there is no piecewise module either.
        raise reason from error
    if sum(engine.report["calls"] for engine in compiled.engines) < settings.min_segment:
        raise reason
    log.warning(
        "%s: is compiled in %d pieces, torch2trt.explain says where it breaks: %s",
        *(name, len(compiled.engines), reason.reason),
    )
    return compiled


def explain_breaks(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    flavour: Flavour,
    *,
    name: str,
    reason: DataDependentError,
) -> Explanation:
    """Where Dynamo cuts a module that cannot be captured whole, and why, for this call."""
    own_args, own_kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    with torch.no_grad():
        found = torch._dynamo.explain(module)(*own_args, **own_kwargs)
    breaks = [
        GraphBreak(
            " ".join(each.reason.strip().splitlines()[:1]),
            next((f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in reversed(each.user_stack)), ""),
        )
        for each in found.break_reasons
    ]
    spelled = f"{flavour.name} {flavour.version_text}"
    return Explanation(
        name, spelled, (), whole=reason.reason, graphs=found.graph_count, breaks=(*dict.fromkeys(breaks),)
    )
