"""What becomes of a model: captured, built, and compared with float64 eager: the engine, or on the CPU the network."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from tests.model_suite import MODELS
from torch2trt import api
from torch2trt.errors import CaptureError, Torch2TRTError, UnsupportedOpsError
from torch2trt.graph.program import Program
from torch2trt.partition.explain import explain
from torch2trt.pieces import PiecewiseModule, compile_in_pieces
from torch2trt.runtime.artifact import TorchPart
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.verification import compare
from torch2trt.settings import Settings
from torch2trt.tolerance import tolerance
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour

Status = Literal["whole", "hybrid", "failed"]

SETTINGS = Settings(precision="fp32", optimization_level=0, progress="none")

# Results that eager itself gets wrong in float32 may differ from float64's so many times more.
_CONDITION = 4.0


@dataclass(frozen=True)
class Outcome:
    """What became of one model: in one engine, in engines with torch between them, or not at all."""

    name: str
    status: Status
    family: str = ""
    flavour: str = ""
    """``tensorrt`` or ``tensorrt_rtx``."""
    nodes: int = 0
    """Calls that were captured."""
    layers: int = 0
    engines: int = 0
    error: float = 0.0
    """The largest, relative to the scale of its output."""
    seconds: float = 0.0
    in_torch: tuple[tuple[str, int, str], ...] = ()
    """Operators that run in torch: the name, how often, and why."""
    detail: str = ""
    """Why it failed."""


def check(name: str) -> Iterator[Outcome]:
    """Take one model through every stage."""
    start = time.perf_counter()
    model = MODELS[name]
    found: dict[str, Any] = {}
    try:
        module, args, kwargs = model.build()
        if torch.cuda.is_available():
            args, kwargs = _moved((args, kwargs), "cuda")
            module.cuda()
            # What runs in torch is held to float32 too.
            torch.backends.cudnn.allow_tf32 = False
        found = _check(module, args, kwargs)
    except UnsupportedOpsError as error:
        reasons = Counter((each.op, each.reason) for each in error.nodes)
        text = "; ".join(f"{op} ({count}): {reason}" for (op, reason), count in reasons.items())
        found = {"status": "failed", "detail": f"{error.code}: {text}"[:800]}
    except Exception as error:  # whatever happens to a model is its outcome
        code = error.code if isinstance(error, Torch2TRTError) else type(error).__name__
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        found = {"status": "failed", "detail": f"{code}: {' '.join(lines[:3])}"[:800]}
    finally:
        gc.collect()
    flavour = flavours.load().name
    yield Outcome(name, family=model.family, flavour=flavour, seconds=round(time.perf_counter() - start, 1), **found)


def _check(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    flavour = flavours.load()
    try:
        program = api.optimize(api.capture(module, args, kwargs), SETTINGS)
    except CaptureError as error:
        return _check_pieces(module, args, kwargs, error)
    compiled = api.build(program, flavour, SETTINGS, truth=api.truth_of(module))
    verified = compiled.verify(*args, **kwargs)
    report = compiled.report
    found: dict[str, Any] = {
        "status": "hybrid" if compiled.artifact.parts else "whole",
        "nodes": report["nodes"],
        "layers": report["layers"],
        "engines": report["engines"],
        "error": float(f"{verified.max_rel_error:.2g}"),
        "in_torch": _in_torch(program, compiled, flavour),
    }
    if not verified.passed and (wrong := _wrong(compiled, module, args, kwargs)):
        found |= {"status": "failed", "detail": f"wrong: {wrong}"}
    return found


def _check_pieces(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reason: CaptureError
) -> dict[str, Any]:
    truth = api.truth_of(module)
    compiled = compile_in_pieces(module, args, kwargs, SETTINGS, truth, name=type(module).__name__, reason=reason)
    verified = compiled.verify(*args, **kwargs)
    report = compiled.report
    found: dict[str, Any] = {
        "status": "hybrid",
        "nodes": report["nodes"],
        "layers": report["layers"],
        "engines": report["engines"],
        "error": float(f"{verified.max_rel_error:.2g}"),
        "in_torch": (("Python", report["engines"] - 1, "graph break"),),
    }
    if not verified.passed and (wrong := _wrong(compiled, module, args, kwargs)):
        found |= {"status": "failed", "detail": f"wrong: {wrong}"}
    return found


def _in_torch(program: Program, compiled: EngineModule, flavour: Flavour) -> tuple[tuple[str, int, str], ...]:
    parts = [part for part in compiled.artifact.parts if isinstance(part, TorchPart)]
    if not parts:
        return ()
    placements = explain(program, flavour, SETTINGS).in_torch
    counts = Counter((each.op, each.reason) for each in placements)
    return tuple((op, count, reason) for (op, reason), count in sorted(counts.items()))


def _wrong(
    compiled: EngineModule | PiecewiseModule, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """The outputs that are further from float64 than float32 explains."""
    exact = api.truth_of(module)(*args, **kwargs)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = _moved((args, kwargs), "cpu")  # where float32 is no TF32
        eager = copy.deepcopy(module).cpu()(*own[0], **own[1])
    result = compiled(*args, **kwargs) if _on_gpu(args, kwargs) else compiled.reference(*args, **kwargs)
    leaves = map(pytree.tree_leaves, _moved((result, eager, exact), "cpu"))
    texts = []
    for position, (have, usual, want) in enumerate(zip(*leaves, strict=True)):
        if isinstance(want, torch.Tensor):
            found = compare(str(position), have, want, tolerance("fp32", reference=True)).max_rel_error
            expected = compare(str(position), usual, want, 0.0).max_rel_error
            if found > max(_CONDITION * expected, tolerance("fp32", reference=True)):
                texts.append(f"output {position} {tuple(want.shape)}: error {found:.2g}, eager's is {expected:.2g}")
    return ", ".join(texts)


def _on_gpu(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.is_cuda for leaf in pytree.tree_leaves((args, kwargs)))


def _moved(values: Any, device: str) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda value: value.to(device), values)
