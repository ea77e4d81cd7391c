"""A profile in HTML: what a notebook shows, and what a page holds."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from torch2trt.partition.explain import html_table
from torch2trt.tools.profile.report import OWN, Part, short_line

if TYPE_CHECKING:
    from torch2trt.tools.profile.report import Profile

_STYLE = """
.t2t { font-family: sans-serif; font-size: 13px; }
.t2t table { border-collapse: collapse; }
.t2t th, .t2t td { padding: 2px 10px 2px 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.t2t .sortable th { cursor: pointer; }
.t2t .sortable td { max-width: 40em; overflow-wrap: anywhere; }
.t2t details, .t2t .leaf { margin-left: 18px; }
.t2t .bar { display: inline-block; height: 10px; background: #4a7ebb; margin-right: 6px; }
.t2t .picture { overflow: auto; max-height: 900px; border: 1px solid #ddd; }
"""

# No sign in it means something else in XML, so that the page is well-formed.
_SCRIPT = """
for (const head of document.querySelectorAll('.t2t .sortable th')) head.onclick = () => {
  const table = head.closest('table'), column = head.cellIndex, rows = [...table.rows].slice(1);
  const sign = head.dataset.falling === 'yes' ? 1 : -1;
  head.dataset.falling = sign === -1 ? 'yes' : 'no';
  const value = row => row.cells[column].textContent;
  const number = text => text === '' ? -Infinity : Number.parseFloat(text);
  rows.sort((a, b) => {
    const both = [number(value(a)), number(value(b))];
    if (both.some(Number.isNaN)) return sign * value(a).localeCompare(value(b));
    return both[0] === both[1] ? 0 : sign * (both[0] > both[1] ? 1 : -1);
  });
  for (const row of rows) row.parentNode.appendChild(row);
};
"""


def body(profile: Profile) -> str:
    """Summary, modules, lines, kernels, and the picture, every text escaped."""
    lines = [
        (f"{part.ms * 1e3:.1f}", profile.share(part.ms), str(part.calls), _gflops(part.flops), short_line(part.name))
        for part in profile.lines
    ]
    kernels = [
        (
            str(number),
            *profile.cells(kernel),
            kernel.name,
            kernel.kind,
            kernel.tactic,
            kernel.module,
            ", ".join(call.node for call in kernel.calls),
        )
        for number, kernel in enumerate(profile.kernels)
    ]
    rates = ("µs", "share", "TFLOP/s", "GB/s", "of the limit")
    sections = (
        ("", html_table(("", ""), profile.summary)),
        ("Modules, with their children", _tree(profile)),
        ("Source lines", html_table(("µs", "share", "calls", "10⁹ FLOPs", "line"), lines, style="sortable")),
        (
            "Kernels",
            html_table(("", *rates, "kernel", "type", "tactic", "module", "calls"), kernels, style="sortable"),
        ),
        ("In the order of running", f"<div class='picture'>{profile.to_svg()}</div>"),
    )
    return "\n".join(
        (
            "<div class='t2t'>",
            f"<style>{_STYLE}</style>",
            f"<h2>{html.escape(profile.name)}</h2>",
            *(f"<h3>{title}</h3>\n{content}" if title else content for title, content in sections),
            f"<script>{_SCRIPT}</script>",
            "</div>",
        )
    )


def _tree(profile: Profile) -> str:
    children: dict[str, list[Part]] = {}
    for part in profile.modules:
        if part.name:
            children.setdefault(part.name.rpartition(".")[0], []).append(part)
    whole = [part for part in profile.modules if not part.name]
    own = Part(OWN, profile.own_ms, 0, 0)
    return "\n".join([*(_branch(profile, part, children) for part in whole), _leaf(_label(profile, own))])


def _branch(profile: Profile, part: Part, children: dict[str, list[Part]]) -> str:
    label, own = _label(profile, part), children.get(part.name, [])
    if not own:
        return _leaf(label)
    # What takes most of the time is open.
    is_open = " open='open'" if profile.kernels_ms and part.ms / profile.kernels_ms > 0.1 else ""
    inside = "\n".join(_branch(profile, child, children) for child in own)
    return f"<details{is_open}><summary>{label}</summary>\n{inside}</details>"


def _leaf(label: str) -> str:
    return f"<div class='leaf'>{label}</div>"


def _label(profile: Profile, part: Part) -> str:
    width = 200 * part.ms / profile.kernels_ms if profile.kernels_ms else 0
    flops = f", {_gflops(part.flops)}·10⁹ FLOPs" if part.flops else ""
    text = f"{part.name or '.'}: {part.ms * 1e3:.1f} µs, {profile.share(part.ms)}{flops}"
    return f"<span class='bar' style='width:{width:.0f}px'></span>{html.escape(text)}"


def _gflops(flops: int) -> str:
    return f"{flops / 1e9:.3f}" if flops else ""
