"""A profile as a picture: the kernels from top to bottom as they run, and the tensors between them, in SVG."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from torch2trt.tools.profile.report import Kernel, shortened, spell

if TYPE_CHECKING:
    from torch2trt.tools.profile.report import Profile
    from torch2trt.trt.inspector import LayerTensor

# Pixels.
_BOX, _HEIGHT, _GAP = 640, 58, 22
_BAR, _LANE, _MARGIN = 220, 8, 20
_LETTERS = 96  # that a line of a box has room for

_FILLS = {"torch": "#e4d7f5", "copy": "#fde3c4", "kernel": "#d9e8f7"}


def draw(profile: Profile) -> str:
    """The picture; it is XML by itself, and can stand in a page."""
    edges = list(_edges(profile.kernels))
    lanes = _lanes([(first, last) for first, last, _ in edges if last > first + 1])
    left = _MARGIN + _LANE * (1 + max(lanes.values(), default=-1))
    height = 2 * _MARGIN + len(profile.kernels) * (_HEIGHT + _GAP)
    width = left + _BOX + _BAR + 2 * _MARGIN
    root = ET.Element(
        "svg",
        xmlns="http://www.w3.org/2000/svg",
        width=str(width),
        height=str(height),
        viewBox=f"0 0 {width} {height}",
        attrib={"font-family": "sans-serif", "font-size": "11"},
    )
    for first, last, tensor in edges:
        _line(root, left, first, last, lanes.get((first, last)), tensor)
    slowest = max((kernel.ms for kernel in profile.kernels), default=0.0) or 1.0
    for number, kernel in enumerate(profile.kernels):
        _box(root, left, _top(number), kernel)
        _time(root, left + _BOX + _MARGIN, _top(number), kernel.ms / slowest, profile.cells(kernel))
    return ET.tostring(root, encoding="unicode")


def _edges(kernels: tuple[Kernel, ...]) -> Iterator[tuple[int, int, LayerTensor]]:
    """Which kernel reads what which earlier one has written, each pair once."""
    writers: dict[str, int] = {}
    for number, kernel in enumerate(kernels):
        seen: set[int] = set()
        for tensor in kernel.inputs:
            writer = writers.get(tensor.name)
            if writer is not None and writer not in seen:
                seen.add(writer)
                yield writer, number, tensor
        writers.update((tensor.name, number) for tensor in kernel.outputs)


def _lanes(spans: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Beside the boxes, a lane for each line that passes some, such that none in one lane overlap."""
    ends: list[int] = []
    found: dict[tuple[int, int], int] = {}
    for first, last in sorted(spans):
        lane = next((lane for lane, end in enumerate(ends) if end <= first), len(ends))
        ends[lane : lane + 1] = [last]
        found[first, last] = lane
    return found


def _top(number: int) -> int:
    return _MARGIN + number * (_HEIGHT + _GAP)


def _line(root: ET.Element, left: int, first: int, last: int, lane: int | None, tensor: LayerTensor) -> None:
    if lane is None:
        path = f"M {left + _BOX // 2} {_top(first) + _HEIGHT} V {_top(last)}"
    else:
        # Out of the lower half of one box, into the upper half of the other.
        begin, end, x = _top(first) + _HEIGHT * 3 // 4, _top(last) + _HEIGHT // 4, left - _LANE * (lane + 1)
        path = f"M {left} {begin} H {x} V {end} H {left}"
    line = ET.SubElement(root, "path", d=path, fill="none", stroke="#777")
    ET.SubElement(line, "title").text = f"{tensor.name}: {spell(tensor)}"


def _box(root: ET.Element, left: int, top: int, kernel: Kernel) -> None:
    group = ET.SubElement(root, "g")
    full = [kernel.name, f"{kernel.kind} {kernel.tactic}", f"module {kernel.module or '.'}"]
    full += [f"in {tensor.name}: {spell(tensor)}" for tensor in kernel.inputs]
    full += [f"out {tensor.name}: {spell(tensor)}" for tensor in kernel.outputs]
    full += [f"{call.node} ({call.op}) {call.source}" for call in kernel.calls]
    ET.SubElement(group, "title").text = "\n".join(full)
    kind = "torch" if kernel.kind == "torch" else "copy" if not kernel.calls or kernel.kind == "Reformat" else "kernel"
    attributes = {"fill": _FILLS[kind], "stroke": "#555", "rx": "4"}
    size = {"width": str(_BOX), "height": str(_HEIGHT)}
    ET.SubElement(group, "rect", x=str(left), y=str(top), attrib={**size, **attributes})
    read, written = (", ".join(spell(each) for each in tensors) for tensors in (kernel.inputs, kernel.outputs))
    lines: tuple[tuple[str, dict[str, str]], ...] = (
        (kernel.name, {"font-weight": "bold"}),
        (f"{kernel.kind} {kernel.tactic}", {}),
        (f"{read} → {written}" if read or written else "", {"fill": "#444"}),
    )
    for number, (text, extra) in enumerate(lines):
        place = {"x": str(left + 8), "y": str(top + 16 + 17 * number)}
        ET.SubElement(group, "text", attrib={**place, **extra}).text = shortened(text, _LETTERS)


def _time(root: ET.Element, x: int, top: int, part: float, cells: tuple[str, ...]) -> None:
    micros, share, tflops, bandwidth, _ = cells
    bar = {"width": f"{max(part * _BAR, 1):.1f}", "height": "14", "fill": "#4a7ebb"}
    ET.SubElement(root, "rect", x=str(x), y=str(top + 8), attrib=bar)
    rates = [f"{tflops} TFLOP/s" if tflops else "", f"{bandwidth} GB/s" if bandwidth else ""]
    for number, text in enumerate((f"{micros} µs, {share}", ", ".join(filter(None, rates)))):
        ET.SubElement(root, "text", x=str(x), y=str(top + 36 + 15 * number)).text = text
