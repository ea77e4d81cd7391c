"""What a profile holds, and its roll-ups: as a table, JSON, HTML and SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from torch2trt.tools.profile.attribution import Call, shares
from torch2trt.trt.inspector import LayerTensor

if TYPE_CHECKING:
    from rich.table import Table

OWN = "TensorRT's own"
"""The row of kernels that compute no call of the graph."""
_KERNELS_SHOWN, _MODULES_SHOWN = 16, 24


@dataclass(frozen=True)
class Limits:
    """What this GPU did in the same process; no kernel can be expected to do more."""

    gb_per_s: float
    """Of a large copy, bytes read and written, 10⁹ a second."""
    tflops: float
    """Of a large product of matrices in the engine's arithmetic, 10¹² a second."""


@dataclass(frozen=True)
class Memory:
    """Of all engines of a module, in bytes."""

    plan: int
    """What is built, saved and loaded: kernels and weights."""
    weights: int | None
    """None where TensorRT does not tell."""
    activations: int
    """What a run needs beside inputs and outputs, for the largest shapes; engines of a hybrid share it."""
    io: int
    """The call's inputs and outputs."""


@dataclass(frozen=True)
class Kernel:
    """One layer of an engine, in most cases one kernel; or one segment that runs in torch."""

    name: str
    kind: str
    """Its type as TensorRT calls it; ``torch`` for a segment in torch."""
    tactic: str
    """The kernel that TensorRT chose."""
    segment: int
    """Number of the engine, or of the segment in torch, in the order of running."""
    ms: float
    """Median time in milliseconds."""
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    bytes: int | None = None
    """Read and written if each element of inputs, outputs and weights moves once; None where it is not known."""
    flops: int | None = None
    """None where they are not known."""
    calls: tuple[Call, ...] = ()
    """What it computes of the graph."""

    @property
    def module(self) -> str:
        """Path of the innermost module that all its calls are in."""
        common = [_ancestors(call.module) for call in self.calls]
        return max((path for path in common[0] if all(path in paths for paths in common)), key=len) if common else ""

    @property
    def tflops(self) -> float | None:
        """10¹² FLOPs a second; None where there are none, or no time."""
        return self.flops / self.ms / 1e9 if self.flops and self.ms else None

    @property
    def gb_per_s(self) -> float | None:
        """10⁹ bytes a second; None where they are not known, or there is no time."""
        return self.bytes / self.ms / 1e6 if self.bytes and self.ms else None


@dataclass(frozen=True)
class CallTime:
    """One call of the graph."""

    call: Call
    ms: float
    """Its shares of the kernels that compute it."""
    kernels: int
    """In how many it is."""


@dataclass(frozen=True)
class Part:
    """What runs within one module, its children included, or comes from one line."""

    name: str
    """The module's path, or the line as ``file:line in function``."""
    ms: float
    calls: int
    flops: int


@dataclass(frozen=True)
class Profile:
    """Where the time of one call goes: kernel by kernel, and rolled up by module and source line.

    A kernel that computes several calls shares its time among them by their FLOPs, equally where they have none: the
    sums are the kernels' times, but what is one kernel cannot really be told apart.
    """

    name: str
    flavour: str
    gpu: str
    precision: str
    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    kernels: tuple[Kernel, ...]
    """In the order of running."""
    run_ms: float
    """The whole run, without the profiler. It is less than the kernels' sum, since the profiler keeps them apart."""
    in_cuda_graph: bool
    """Whether the whole run is a CUDA graph; else the host may be what takes the time."""
    runs: int
    """How often each kernel was timed."""
    limits: Limits
    memory: Memory
    has_program: bool = True
    """Whether the graph was at hand: else there are no lines and FLOPs."""

    @property
    def kernels_ms(self) -> float:
        """The kernels' sum."""
        return sum(kernel.ms for kernel in self.kernels)

    @property
    def own_ms(self) -> float:
        """Of kernels that compute no call of the graph, copies between layouts mostly."""
        return sum(kernel.ms for kernel in self.kernels if not kernel.calls)

    @property
    def flops(self) -> int:
        """Of all kernels."""
        return sum(kernel.flops or 0 for kernel in self.kernels)

    @property
    def calls(self) -> list[CallTime]:
        """The calls that some kernel computes, in the order in which they first run."""
        times: dict[Call, list[float]] = {}
        for kernel in self.kernels:
            for call, share in zip(kernel.calls, shares(kernel.calls), strict=True) if kernel.calls else ():
                times.setdefault(call, []).append(kernel.ms * share)
        return [CallTime(call, sum(found), len(found)) for call, found in times.items()]

    @property
    def modules(self) -> list[Part]:
        """Times by path, children included, each before its children; the first is the whole, but for own_ms."""
        members: dict[str, list[CallTime]] = {}
        for each in self.calls:
            parts = each.call.module.split(".") if each.call.module else []
            for length in range(len(parts) + 1):
                members.setdefault(".".join(parts[:length]), []).append(each)
        order = {path: number for number, path in enumerate(members)}
        # A module that is entered again stays with its parent.
        paths = sorted(members, key=lambda path: [order[above] for above in _ancestors(path)])
        return [_part(path, members[path]) for path in paths]

    @property
    def lines(self) -> list[Part]:
        """Times by source line, the slowest first; one without a name for what no line is known of."""
        members: dict[str, list[CallTime]] = {}
        for each in self.calls:
            members.setdefault(each.call.source, []).append(each)
        found = [_part(line, calls) for line, calls in members.items()]
        return sorted(found, key=lambda part: -part.ms) if self.has_program else []

    def of_limit(self, kernel: Kernel) -> float | None:
        """How near a kernel is to what bounds it, as a fraction: the GPU's arithmetic or its memory."""
        near = [
            value / limit
            for value, limit in ((kernel.tflops, self.limits.tflops), (kernel.gb_per_s, self.limits.gb_per_s))
            if value is not None and limit
        ]
        return max(near, default=None)

    @property
    def summary(self) -> list[tuple[str, str]]:
        """What there is to know of the whole, as texts by their titles."""
        shapes = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in self.shapes.items())
        if self.in_cuda_graph:
            how = "in a CUDA graph"
        elif len({kernel.segment for kernel in self.kernels}) > 1:
            how = "engines, in CUDA graphs where they can be, and torch between them"
        else:
            how = "without a CUDA graph, so it may be the host that takes the time"
        memory = self.memory
        weights = f", {mb(memory.weights)} of it weights" if memory.weights is not None else ""
        rows = [
            ("GPU", f"{self.gpu}, {self.flavour}, {self.precision}"),
            ("inputs", shapes),
            ("whole run", f"{self.run_ms:.3f} ms, {how}"),
            (
                "kernels",
                f"{self.kernels_ms:.3f} ms in {len(self.kernels)}, each alone: the profiler keeps them apart, "
                "so their sum is more than the whole run takes",
            ),
        ]
        if self.kernels_ms:
            rows.append((OWN, f"{self.own_ms:.3f} ms, {self.own_ms / self.kernels_ms:.0%} of the kernels' sum"))
        if self.flops and self.run_ms:
            rows.append(("FLOPs", f"{self.flops / 1e9:.2f}·10⁹: {self.flops / self.run_ms / 1e9:.1f} TFLOP/s"))
        return [
            *rows,
            ("limits measured here", f"{self.limits.tflops:.1f} TFLOP/s, {self.limits.gb_per_s:.0f} GB/s"),
            (
                "memory",
                f"plan {mb(memory.plan)}{weights}; activations {mb(memory.activations)}; "
                f"inputs and outputs {mb(memory.io)}",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values; times in milliseconds, sizes in bytes."""
        return {
            "name": self.name,
            "flavour": self.flavour,
            "gpu": self.gpu,
            "precision": self.precision,
            "inputs": {name: list(shape) for name, shape in self.shapes.items()},
            "run_ms": self.run_ms,
            "in_cuda_graph": self.in_cuda_graph,
            "runs": self.runs,
            "kernels_ms": self.kernels_ms,
            "own_ms": self.own_ms,
            "flops": self.flops,
            "limits": asdict(self.limits),
            "memory": asdict(self.memory),
            "kernels": [self._kernel_to_json(kernel) for kernel in self.kernels],
            "calls": [{**asdict(each.call), "ms": each.ms, "kernels": each.kernels} for each in self.calls],
            "modules": [asdict(part) for part in self.modules],
            "lines": [asdict(part) for part in self.lines],
        }

    def _kernel_to_json(self, kernel: Kernel) -> dict[str, Any]:
        return {
            "name": kernel.name,
            "kind": kernel.kind,
            "tactic": kernel.tactic,
            "segment": kernel.segment,
            "module": kernel.module,
            "calls": [call.node for call in kernel.calls],
            "ms": kernel.ms,
            "flops": kernel.flops,
            "bytes": kernel.bytes,
            "tflops": kernel.tflops,
            "gb_per_s": kernel.gb_per_s,
            "of_limit": self.of_limit(kernel),
            **{key: [_tensor_to_json(tensor) for tensor in getattr(kernel, key)] for key in ("inputs", "outputs")},
        }

    def to_html(self) -> str:
        """One page that needs no other file: times by module and line, the kernels, and the engine as a picture."""
        from torch2trt.tools import page

        return page.document(f"Profile of {self.name}", self._repr_html_())

    def to_svg(self) -> str:
        """The kernels in the order of running: what they are, their formats and times, and the tensors between them."""
        from torch2trt.tools.profile.drawing import draw

        return draw(self)

    def _repr_html_(self) -> str:
        from torch2trt.tools.profile.webpage import body

        return body(self)

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=160, color_system=None, markup=False, highlight=False)
        console.print(self.name)
        for title, line in self.summary:
            console.print(f"  {title}: {line}")
        console.print(self._table_of_kernels())
        console.print(self._table_of_modules())
        return text.getvalue().rstrip()

    def _table_of_kernels(self) -> Table:
        table = _table("kernel", "module", numbers=("µs", "share", "TFLOP/s", "GB/s", "of the limit"))
        shown = sorted(self.kernels, key=lambda kernel: -kernel.ms)[:_KERNELS_SHOWN]
        for kernel in shown:
            table.add_row(shortened(kernel.name, 70), shortened(kernel.module or ".", 40), *self.cells(kernel))
        if len(shown) < len(self.kernels):
            rest = self.kernels_ms - sum(kernel.ms for kernel in shown)
            table.add_row(f"{len(self.kernels) - len(shown)} others", "", f"{rest * 1e3:.1f}", self.share(rest))
        return table

    def _table_of_modules(self) -> Table:
        table = _table("module, with its children", numbers=("µs", "share", "calls"))
        modules = self.modules
        shown = {part.name for part in sorted(modules, key=lambda part: -part.ms)[:_MODULES_SHOWN]}
        for part in modules:
            if part.name in shown:
                table.add_row(part.name or ".", f"{part.ms * 1e3:.1f}", self.share(part.ms), str(part.calls))
        if len(modules) > len(shown):
            table.add_row(f"{len(modules) - len(shown)} others, which take less")
        table.add_row(OWN, f"{self.own_ms * 1e3:.1f}", self.share(self.own_ms))
        return table

    def share(self, ms: float) -> str:
        """A time as a part of the kernels' sum."""
        return f"{ms / self.kernels_ms:.1%}" if self.kernels_ms else ""

    def cells(self, kernel: Kernel) -> tuple[str, str, str, str, str]:
        """Microseconds, share, TFLOP/s, GB/s and the part of the limit; empty where unknown."""
        near = self.of_limit(kernel)
        return (
            f"{kernel.ms * 1e3:.1f}",
            self.share(kernel.ms),
            "" if kernel.tflops is None else f"{kernel.tflops:.2f}",
            "" if kernel.gb_per_s is None else f"{kernel.gb_per_s:.0f}",
            "" if near is None else f"{near:.0%}",
        )


def mb(size: int) -> str:
    """Bytes in words."""
    return f"{size / 1e6:.1f} MB"


def shortened(text: str, most: int) -> str:
    """The beginning of a text that is too long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def short_line(line: str) -> str:
    """A source line without the folders of its file."""
    path, colon, rest = line.rpartition(":")
    return f"{PurePath(path).name}:{rest}" if colon else line


def spell(tensor: LayerTensor) -> str:
    """A tensor as ``fp16[1×64×56×56] HWC8``."""
    shape = f"[{'×'.join(map(str, tensor.shape))}]" if tensor.shape is not None else ""
    return f"{tensor.dtype}{shape} {tensor.format}".strip()


def _tensor_to_json(tensor: LayerTensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": None if tensor.shape is None else list(tensor.shape),
        "dtype": tensor.dtype,
        "format": tensor.format,
    }


def _ancestors(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def _part(name: str, calls: list[CallTime]) -> Part:
    return Part(name, sum(each.ms for each in calls), len(calls), sum(each.call.flops or 0 for each in calls))


def _table(*titles: str, numbers: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(*titles)
    for title in numbers:
        table.add_column(title, justify="right")
    return table
