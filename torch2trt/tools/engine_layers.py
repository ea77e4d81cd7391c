"""The layers of an artifact's engines in each optimization profile: ``torch2trt inspect ARTIFACT --layers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch2trt.errors import DynamicShapeError
from torch2trt.graph.signature import Signature
from torch2trt.runtime import archive, pieces_file
from torch2trt.runtime import artifact as artifacts
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.context import Engine
from torch2trt.runtime.layers import information_at
from torch2trt.sizes import DimRange, spell, symbols
from torch2trt.trt.inspector import Layer, LayerTensor, layers, printable

Asked = Mapping[str, int | tuple[int, int, int]]
"""Sizes by which a profile is chosen, as :func:`torch2trt.tools.inputs.parse_profile` reads them."""

Informed = Callable[[Artifact, Mapping[str, int]], str]
"""What the inspector says of one engine where the named dimensions have these sizes."""


@dataclass(frozen=True)
class InProfile:
    """One engine in one profile."""

    engine: str
    profile: str
    """Its ranges in words; empty where all sizes are known."""
    layers: tuple[Layer, ...]

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """What runs, whatever the sizes are."""
        return [(layer.kind, layer.tactic or layer.name) for layer in self.layers]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "engine": self.engine,
            "profile": self.profile,
            "layers": [
                {
                    "name": printable(layer.name),
                    "kind": layer.kind,
                    "tactic": printable(layer.tactic),
                    "inputs": [_spelled(tensor) for tensor in layer.inputs],
                    "outputs": [_spelled(tensor) for tensor in layer.outputs],
                    "calls": list(layer.origins),
                    "bytes": layer.bytes,
                }
                for layer in self.layers
            ],
        }


def inspect_layers(path: str, asked: Sequence[Asked]) -> tuple[dict[str, Any], RenderableType]:
    """The layers of what ``.save()`` wrote, each engine at the usual sizes of each profile, as JSON values and tables.

    Args:
        path: an artifact, or the engines of a module in pieces.
        asked: the profiles to show; none: all.

    Raises:
        ArtifactError: it is no artifact, truncated, corrupt, or of another format version.
        DynamicShapeError: no engine has such a profile.
        NoGPUError, UnsupportedGPUError, ArtifactMismatchError: it cannot be opened on this machine.
        EngineError: TensorRT refuses the plan, or the sizes.
    """
    if archive.is_in_pieces(path):
        found = [loaded.artifact for loaded in pieces_file.load(path).engines.values()]
    else:
        found = [artifacts.load(path).artifact]
    rows = look(found, asked, information())
    return {"name": path, "layers": [row.to_json() for row in rows]}, Group(*_shown(rows))


def look(found: Sequence[Artifact], asked: Sequence[Asked], informed: Informed) -> list[InProfile]:
    """Every engine in every profile that is asked for.

    Raises:
        DynamicShapeError: no engine has such a profile.
    """
    rows: list[InProfile] = []
    for artifact in found:
        for ranges in chosen(artifact.signature, asked):
            parts = [part for part in artifact.parts if isinstance(part, Artifact)] or [artifact]
            for part in parts:
                sizes = {name: span.opt for name, span in {**part.signature.dims, **ranges}.items()}
                # What goes in may be as large as data before it says.
                known = all(symbols(leaf.spec.shape) <= sizes.keys() for leaf in part.signature.tensor_inputs)
                told = layers(informed(part, sizes)) if known else []
                rows.append(InProfile(part.name, spell(ranges), tuple(told)))
    if not rows:
        there_are = {spell(ranges): None for artifact in found for ranges in artifact.signature.ranges}
        raise DynamicShapeError(
            f"there is none of {'; '.join(map(_words, asked))}",
            subject="profile",
            hint=f"the profiles are: {'; '.join(filter(None, there_are)) or 'none, all sizes are known'}",
        )
    return rows


def chosen(signature: Signature, asked: Sequence[Asked]) -> list[dict[str, DimRange]]:
    """The profiles of a signature that are asked for, by one size, which is the usual, or by all three; all by none."""
    return [
        ranges
        for ranges in signature.ranges
        if not asked or any(all(_is(ranges.get(name), sizes) for name, sizes in each.items()) for each in asked)
    ]


def information() -> Informed:
    """Ask TensorRT, on the current GPU; each engine is opened once."""
    opened: dict[int, Engine] = {}

    def informed(artifact: Artifact, sizes: Mapping[str, int]) -> str:
        if id(artifact) not in opened:
            opened[id(artifact)] = Engine(artifact)
        engine = opened[id(artifact)]
        inputs = [
            torch.zeros(leaf.spec.at(sizes), dtype=leaf.spec.dtype, device=engine.device)
            for leaf in artifact.signature.tensor_inputs
        ]
        return information_at(engine, inputs)

    return informed


def _is(span: DimRange | None, sizes: int | tuple[int, int, int]) -> bool:
    if span is None:
        return False
    return span.opt == sizes if isinstance(sizes, int) else (span.min, span.opt, span.max) == sizes


def _words(asked: Asked) -> str:
    return spell({name: sizes if isinstance(sizes, int) else DimRange(*sizes) for name, sizes in asked.items()})


def _shown(rows: Sequence[InProfile]) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for number, row in enumerate(rows):
        title = f"{row.engine}, profile {row.profile}" if row.profile else row.engine
        same = next((each for each in rows[:number] if (each.engine, each.kernels) == (row.engine, row.kernels)), None)
        if not row.layers:
            shown.append(Text(f"{title}: the inspector tells nothing"))
        elif same is not None:
            shown.append(Text(f"{title}: the same {len(row.layers)} kernels as in profile {same.profile}"))
        else:
            table = Table("layer", "kind", "kernel", "reads", "writes", title=title)
            for layer in row.layers:
                reads, writes = ("\n".join(map(_spelled, each)) for each in (layer.inputs, layer.outputs))
                calls = ", ".join(layer.origins) or printable(layer.name)
                table.add_row(calls, layer.kind, printable(layer.tactic), reads, writes)
            shown.append(table)
    return shown


def _spelled(tensor: LayerTensor) -> str:
    shape = "?" if tensor.shape is None else "×".join(map(str, tensor.shape)) or "scalar"
    return " ".join(filter(None, (tensor.dtype, shape, tensor.format)))
