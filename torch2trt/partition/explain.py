"""Where each call of a Program would run, and why: as a table, JSON and HTML."""

from __future__ import annotations

import html
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch2trt.errors import UnsupportedOpsError
from torch2trt.graph.program import Program, provenance
from torch2trt.graph.schema import name_of
from torch2trt.partition.partitioner import is_engine, partition
from torch2trt.settings import Settings
from torch2trt.sizes import spell
from torch2trt.trt.flavour import Flavour


@dataclass(frozen=True)
class Placement:
    """One call and where it runs."""

    node: str
    op: str
    module: str
    """Path of the module that the call is in; empty for the outermost."""
    source: str
    """The user's line, as ``file:line in function``."""
    segment: int | None
    """Number of the segment in the order of running; None for what each segment computes as it needs it."""
    where: str
    """``engine`` or ``torch``."""
    reason: str
    """Why it runs in torch; empty in an engine."""


@dataclass(frozen=True)
class GraphBreak:
    """A place where a module cannot be captured on."""

    reason: str
    source: str
    """The user's line, as ``file:line in function``."""


@dataclass(frozen=True)
class Explanation:
    """Where a module would run."""

    name: str
    flavour: str
    placements: tuple[Placement, ...]
    refusal: str = ""
    """Why nothing would be compiled; empty where something would."""
    whole: str = ""
    """Why it cannot be captured whole; empty where it can."""
    graphs: int = 1
    """The pieces that are captured, each compiled by itself."""
    breaks: tuple[GraphBreak, ...] = ()
    """Where those pieces end, and why."""
    pieces: tuple[Explanation, ...] = ()
    """Those pieces that compute something, one for each combination of sizes."""
    inputs: str = ""
    """Of a piece, the shapes of its inputs, as ``4x8, 4``."""
    profiles: tuple[str, ...] = ()
    """The optimization profiles of the engines, as ``batch 1…8…64``; none where no size is dynamic."""

    @property
    def segments(self) -> list[tuple[str, int]]:
        """``engine`` or ``torch`` and the number of calls, for each segment in the order of running."""
        counts = Counter((each.segment, each.where) for each in self.placements if each.segment is not None)
        return [(where, count) for (_, where), count in sorted(counts.items())]

    @property
    def in_torch(self) -> list[Placement]:
        """The calls that run in torch."""
        return [each for each in self.placements if each.where == "torch"]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "flavour": self.flavour,
            "refusal": self.refusal,
            "whole": self.whole,
            "graphs": self.graphs,
            "breaks": [asdict(each) for each in self.breaks],
            "inputs": self.inputs,
            "profiles": list(self.profiles),
            "calls": len(self.placements),
            "calls_in_torch": len(self.in_torch),
            "segments": [{"where": where, "calls": count} for where, count in self.segments],
            "placements": [asdict(each) for each in self.placements],
            "pieces": [each.to_json() for each in self.pieces],
        }

    def to_html(self) -> str:
        """A table of the calls in torch, and one of the modules, every text escaped."""
        break_rows = [(each.reason, each.source) for each in self.breaks]
        piece_rows = [(each.name, each.inputs, each.begin, each.chain) for each in self.pieces]
        torch_rows = [(each.module, each.op, each.reason, each.source) for each in self.in_torch]
        parts = [
            f"<p>{html.escape(self.summary)}</p>",
            html_table(("why it breaks", "line"), break_rows) if break_rows else "",
            html_table(_PIECE_TITLES, piece_rows) if piece_rows else "",
            html_table(("module", "operator in torch", "why", "line"), torch_rows) if torch_rows else "",
            html_table(
                ("module", "calls in engines", "calls in torch"), [tuple(map(str, row)) for row in self.modules]
            ),
        ]
        return "\n".join(filter(None, parts))

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def summary(self) -> str:
        """One line."""
        if self.whole:
            also = f"; {self.refusal}" if self.refusal else ""
            pieces = f"{self.graphs} pieces, for it cannot be captured whole: {self.whole}"
            return f"{self.name} ({self.flavour}): {pieces}{also}"
        profiles = f"; profiles: {'; '.join(self.profiles)}" if self.profiles and not self.refusal else ""
        return f"{self.name} ({self.flavour}): {self.chain}{profiles}"

    @property
    def begin(self) -> str:
        """The user's line that its first call comes from."""
        return next((each.source for each in self.placements if each.source), "")

    @property
    def chain(self) -> str:
        """The segments in the order of running, or why there are none."""
        chain = " → ".join(f"{where} ({count})" for where, count in self.segments)
        return self.refusal or f"{len(self.placements)} calls, {len(self.in_torch)} in torch: {chain}"

    @property
    def modules(self) -> list[tuple[str, int, int]]:
        """Calls in engines and in torch by the path of the module, those of its children not counted."""
        counts: dict[str, list[int]] = {}
        for each in self.placements:
            counts.setdefault(each.module, [0, 0])[each.where == "torch"] += 1
        return [(module, *count) for module, count in counts.items()]  # type: ignore[misc]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        text = io.StringIO()
        console = Console(file=text, width=120, color_system=None, markup=False, highlight=False)
        console.print(self.summary)
        if self.breaks:
            table = Table("why it breaks", "line")
            for each in self.breaks:
                table.add_row(each.reason, each.source)
            console.print(table)
        if self.pieces:
            table = Table(*_PIECE_TITLES)
            for piece in self.pieces:
                table.add_row(piece.name, piece.inputs, piece.begin, piece.chain)
            console.print(table)
        if self.in_torch:
            table = Table("operator", "module", "why it runs in torch")
            for row in self._merged():
                table.add_row(*row)
            console.print(table)
        return text.getvalue().rstrip()

    def _merged(self) -> Iterator[tuple[str, str, str]]:
        """A row for each operator and reason: the module, or how many there are."""
        groups: dict[tuple[str, str], list[Placement]] = {}
        for each in self.in_torch:
            groups.setdefault((each.op, each.reason), []).append(each)
        for (op, reason), members in groups.items():
            more = f" and {len(members) - 1} more" if len(members) > 1 else ""
            at = f"\nat {members[0].source}" if members[0].source else ""
            yield op, f"{members[0].module or '.'}{more}", reason + at


_PIECE_TITLES = ("piece", "inputs", "it begins at", "where it runs")


def explain(program: Program, flavour: Flavour, settings: Settings) -> Explanation:
    """Where each call of an optimised Program would run."""
    refusal, phases, reasons = "", {}, {}
    try:
        parted = partition(program, flavour, settings)
        phases, reasons = dict(parted.phases), {node.name: reason for node, reason in parted.reasons.items()}
    except UnsupportedOpsError as error:
        reasons = {each.node: each.reason for each in error.nodes}
        refusal = f"nothing is compiled: {len(error.nodes)} calls cannot be converted" + (
            f", {error.hint}" if error.hint else ""
        )
    numbers = {phase: number for number, phase in enumerate(sorted(set(phases.values())))}
    placements = []
    for node in program.calls:
        if program.is_size(node):
            continue
        module, source = provenance(node)
        in_torch = node.name in reasons or bool(refusal) or (node in phases and not is_engine(phases[node]))
        placements.append(
            Placement(
                node=node.name,
                op=name_of(node.target),
                module=module,
                source=source,
                segment=numbers[phases[node]] if node in phases else None,
                where="torch" if in_torch else "engine",
                reason=reasons.get(node.name, ""),
            )
        )
    spelled = tuple(spell(ranges) for ranges in program.signature.ranges if ranges)
    return Explanation(
        program.name, f"{flavour.name} {flavour.version_text}", tuple(placements), refusal, profiles=spelled
    )


def together(
    name: str,
    flavour: str,
    pieces: Sequence[Explanation],
    whole: str,
    graphs: int,
    breaks: tuple[GraphBreak, ...],
) -> Explanation:
    """What is known of a module from its pieces, whose segments run one after the other.

    Args:
        whole, graphs, breaks: as :class:`Explanation` has them.
    """
    placements: list[Placement] = []
    for piece in pieces:
        first = 1 + max((each.segment for each in placements if each.segment is not None), default=-1)
        placements += [
            each if each.segment is None else replace(each, segment=first + each.segment) for each in piece.placements
        ]
    return Explanation(
        name, flavour, tuple(placements), whole=whole, graphs=graphs, breaks=breaks, pieces=tuple(pieces)
    )


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, style: str = "") -> str:
    """A table in HTML, every text escaped.

    Args:
        style: a class that a page's style sheet or script knows.
    """
    left = "style='text-align:left'"
    head = "".join(f"<th {left}>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td {left}>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table{f' class={style!r}' if style else ''}><tr>{head}</tr>{body}</table>"
