"""Cut a model that fails to the smallest graph that still does, as a script that shows the failure."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn

from torch2trt import api
from torch2trt.engine.child import OUTPUT_FILE, death_of, run_child
from torch2trt.errors import DynamicShapeError, NoFailureError, Torch2TRTError
from torch2trt.examples import Calls
from torch2trt.runtime.files import StrPath
from torch2trt.settings import Settings, merged
from torch2trt.sizes import spell
from torch2trt.tools.script import Recording, Script
from torch2trt.tools.sizes import inputs_at

Fails = Callable[[nn.Module, tuple[torch.Tensor, ...]], bool]
"""Takes a module and its inputs, both on the CPU, and says whether it still fails."""


@dataclass(frozen=True)
class Failure:
    """In which way something fails."""

    kind: Literal["wrong", "error", "crash", "hang", "asked for"]
    """A result above the tolerance, an exception, a process that died or did not end, or what the caller says."""
    what: str = ""
    """The class of the exception, or the signal: another is another failure."""
    detail: str = ""

    def is_like(self, other: Failure | None) -> bool:
        """Whether the other is the same failure, perhaps of a smaller graph."""
        return other is not None and (self.kind, self.what) == (other.kind, other.what)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.kind, self.what, self.detail)))


@dataclass(frozen=True)
class Reduction:
    """The smallest graph that was found to fail."""

    name: str
    failure: Failure
    calls: int
    calls_before: int
    attempts: int
    """Graphs that were tried."""
    script: Script
    """The graph and its tensors; ``script.module()`` called with ``script.inputs.values()``."""
    path: Path | None
    sizes: str = ""
    """Of the dynamic dimensions, as ``batch 64``, where the caller said at which to look."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "failure": asdict(self.failure),
            "sizes": self.sizes,
            "calls": self.calls,
            "calls_before": self.calls_before,
            "attempts": self.attempts,
            "path": None if self.path is None else str(self.path),
        }

    def __str__(self) -> str:
        where = f"\npython {self.path} shows it" if self.path else ""
        at = f" at {self.sizes}" if self.sizes else ""
        return f"{self.name}: {self.calls} of {self.calls_before} calls still fail{at}, {self.failure}{where}"


def reduce(
    module: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    path: StrPath | None = None,
    fails: Fails | None = None,
    tolerance: float | None = None,
    timeout: float | None = None,
    imports: Sequence[str] = (),
    report: Callable[[str], object] = lambda text: None,
    examples: Iterable[Any] | Calls | None = None,
    dynamic_shapes: Any = None,
    profiles: Sequence[Mapping[str, Any]] | None = None,
    at: Mapping[str, int] | None = None,
    name: str | None = None,
    **settings: Any,
) -> Reduction:
    """Cut a module that fails to the smallest graph that still fails in the same way.

    What fails is compiling it (it raises), or verifying it (an error above the tolerance), or the process that does
    it: it is tried in a child process first, and where that dies, each smaller graph has one of its own. Calls that
    are left out give the others the values that they had in eager, as inputs.

    Args:
        module, args, kwargs, examples, dynamic_shapes, profiles, name, settings: as :func:`torch2trt.compile` takes
            them. Dynamic dimensions stay dynamic, and keep their profiles, where the failure needs it.
        at: the sizes to run at, such as ``{"batch": 64}``, for which the example's values repeat; dimensions that are
            left out have the example's size. The script repeats the failure there, and where dimensions stay dynamic,
            compiles for the example's sizes. Unset: the example's sizes, of ``examples`` those of the first.
        path: the script to write; its tensors go beside it, to the same name ending in ``.safetensors``.
        fails: what counts as failing, in place of all this; it is called in this process.
        tolerance: the largest relative error that is none; unset: as ``verify`` has it.
        timeout: seconds after which a child process hangs; unset: it may take as long as it likes.
        imports: modules that register operators which the module uses, for the script to import.
        report: told of each smaller graph.

    Raises:
        NoFailureError: it does not fail, or no longer as a graph on its own.
        CaptureError: ``torch.export`` cannot capture it, so that there is no graph.
        DynamicShapeError: ``at`` names a dimension that there is not.
        InputShapeError: no profile holds the sizes.
        ArtifactWriteError: the files could not be written.
    """
    settings = merged(settings)
    Settings.make(**settings)
    args, kwargs, calls = api.first_call(module, args, kwargs, examples)
    program = api.capture(
        module, args, kwargs, calls=calls, dynamic_shapes=dynamic_shapes, profiles=profiles, name=name
    )
    leaves = program.signature.flatten(args, dict(kwargs or {}))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    tensors += [program.state[leaf.buffer] for leaf in program.signature.state]
    inputs = [tensor.detach().cpu() for tensor in tensors]
    if at is not None and not isinstance(at, Mapping):
        raise DynamicShapeError(f"takes one combination of sizes, got {at!r}", subject="at", hint='{"batch": 64}')
    ((sizes, values),) = inputs_at(program.signature, inputs, at)
    recording = Recording(program, values)
    example = None if at is None else Recording(program, inputs)
    spelled = "" if at is None else spell(sizes)
    # A bar for each of many builds says nothing, and each has to be built.
    given = {"progress": "none", "engine_cache": False} | {key: _plain(value) for key, value in settings.items()}
    tried: dict[tuple[fx.Node, ...], Failure | None] = {}

    def script(calls: Sequence[fx.Node], static: bool, failure: Failure | None = None) -> Script | None:
        title = f"{len(calls)} of {len(recording.calls)} calls of {program.name}"
        title += (f" at {spelled}" if spelled else "") + (f": {failure}" if failure else "")
        how: dict[str, Any] = {"static": static, "imports": imports, "example": example}
        return recording.script(calls, title=_quoted(title), settings=given, tolerance=tolerance, **how)

    def outcome(calls: Sequence[fx.Node], static: bool, in_child: bool) -> Failure | None:
        made = script(calls, static)
        if made is None:
            return None
        if fails is not None:
            return Failure("asked for") if fails(made.module(), tuple(made.inputs.values())) else None
        return _in_child(made, timeout) if in_child else _here(made)

    whole = recording.calls
    for static in (True, False) if program.signature.dims else (True,):
        failure = outcome(whole, static, in_child=True)
        if failure is not None:
            break
    else:
        raise NoFailureError(
            "compiles, and its results are within the tolerance" if fails is None else "does not fail",
            subject=program.name,
            hint="pass the settings with which it fails, or a lower tolerance",
        )
    in_child = failure.kind in ("crash", "hang")
    if failure.kind == "error":
        # Here it is known by its class, and takes no process each; unless it needs one.
        here = outcome(whole, static, in_child=False)
        in_child, failure = here is None, here or failure
    report(f"{program.name}: {len(whole)} calls fail{f' at {spelled}' if spelled else ''}, {failure}")
    wanted = failure

    def still_fails(calls: list[fx.Node]) -> bool:
        key = tuple(calls)
        if key not in tried:
            tried[key] = outcome(calls, static, in_child)
            if wanted.is_like(tried[key]):
                report(f"{len(calls)} of {len(whole)} calls still fail")
        return wanted.is_like(tried[key])

    least = smallest(whole, still_fails)
    failure = tried.get(tuple(least)) or failure
    made = script(least, static, failure)
    assert made is not None
    target = None if path is None else Path(path)
    if target is not None:
        made.write(target)
    return Reduction(program.name, failure, len(least), len(whole), len(tried) + 1, made, target, spelled)


def smallest(calls: Sequence[fx.Node], fails: Callable[[list[fx.Node]], bool]) -> list[fx.Node]:
    """A part of a failing list that fails, and of which no single element can be left out.

    The end goes first, then the beginning, each by bisection, then ever smaller pieces between.
    """
    best = list(calls)
    low, high = 0, len(best)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(best[:middle]) else (middle, high)
    best = best[:high]
    low, high = 0, len(best)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(best[middle:]) else (low, middle)
    best = best[low:]
    size = len(best) // 2
    while size:
        before = len(best)
        start = 0
        while start < len(best):
            rest = best[:start] + best[start + size :]
            if rest and fails(rest):
                best = rest
            else:
                start += size
        # Single ones are tried until none can go; what two pieces needed may be free once one of them went.
        size = 1 if size == 1 and len(best) < before else size // 2
    return best


def _here(script: Script) -> Failure | None:
    """Run a script's check in this process."""
    try:
        given = tuple(script.inputs.values()), script.weights, tuple(script.example.values())
        found, passed = script.load()["check"](*given)
    except Torch2TRTError as error:
        subject = f"{error.subject}: " if error.subject else ""
        return Failure("error", type(error).__name__, (subject + error.reason).partition("\n")[0])
    except Exception as error:  # a defect, in whatever way it shows
        return Failure("error", type(error).__name__, str(error).partition("\n")[0])
    return None if passed else Failure("wrong", detail=f"relative error {found.max_rel_error:.3g}")


def _in_child(script: Script, timeout: float | None) -> Failure | None:
    """Run a script in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="torch2trt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "reduced.py"
        script.write(path)
        # What this process can import, the child can.
        code = f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_path({str(path)!r}, run_name='__main__')"
        try:
            ended = run_child([sys.executable, "-c", code], Path(folder), timeout=timeout)
        except subprocess.TimeoutExpired:
            return Failure("hang", detail=f"no end within {timeout:g} s")
        lines = (Path(folder) / OUTPUT_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if ended in (0, 1):
        return Failure("error", detail=last) if ended else None
    return Failure("crash", death_of(ended) or f"exit code {ended}", last)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _quoted(text: str) -> str:
    """Text for a docstring."""
    return re.sub(r'[\\"]', "'", text)
