"""What an artifact holds, and which layers a model becomes: ``torch2trt inspect``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch2trt import api
from torch2trt.converters.lower import lower
from torch2trt.errors import Torch2TRTError
from torch2trt.graph.flops import flops
from torch2trt.graph.ops import FUSED_BLOCKS
from torch2trt.graph.program import Program
from torch2trt.runtime import archive, pieces_file, summary
from torch2trt.runtime import artifact as artifacts
from torch2trt.runtime.artifact import Artifact, LoadedArtifact
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, spell
from torch2trt.tools.inputs import Example
from torch2trt.tools.models import Model
from torch2trt.trt import flavour as flavours


def is_artifact(name: str) -> bool:
    """Whether a name on the command line is meant as an artifact rather than as a model."""
    return Path(name).is_file() and not name.endswith(".pt2")


def artifact(path: str) -> tuple[dict[str, Any], RenderableType]:
    """An artifact's manifest and sizes, as JSON values and as a table; the engine is not deserialised.

    Of a module in pieces, those of each engine, and why other pieces are left to eager.

    Raises:
        ArtifactError: it is no artifact, truncated, corrupt, or of another format version.
    """
    if archive.is_in_pieces(path):
        return _pieces(path)
    loaded = artifacts.load(path)
    found, size = loaded.artifact, Path(path).stat().st_size
    settings = _changed(found.settings)
    data = {**_artifact(loaded), "settings": settings, "file_bytes": size}
    shown = table(found)
    shown.add_row("settings", _spell(settings))
    shown.add_row("program", _SAVED[loaded.has_program])
    shown.add_row("file size", f"{size / 1e6:.1f} MB")
    return data, shown


def pieces(name: str, engines: Sequence[Artifact], refusals: Sequence[Torch2TRTError]) -> Group:
    """A module in pieces: its engines, and why other pieces are left to eager."""
    shown = Table("engine", "signature", "built for", "size", title=f"{name}, in pieces")
    for engine in engines:
        flavour = f"{engine.flavour} {engine.flavour_version}, {engine.precision}"
        built_for = f"{engine.gpu or 'any GPU that the flavour serves'}\n{flavour}"
        shown.add_row(engine.name, summary.signature(engine), built_for, f"{engine.engine_bytes / 1e6:.1f} MB")
    return Group(shown, *(Text(f"left to eager: {error}") for error in refusals))


def _pieces(path: str) -> tuple[dict[str, Any], RenderableType]:
    found, size = pieces_file.load(path), Path(path).stat().st_size
    settings = _changed(found.settings)
    engines = [loaded.artifact for loaded in found.engines.values()]
    data = {
        "name": found.name,
        "torch_version": found.torch_version,
        "settings": settings,
        "engines": [_artifact(loaded) for loaded in found.engines.values()],
        "left_to_eager": [str(error) for error, _ in found.refusals.values()],
        "engine_bytes": sum(engine.engine_bytes for engine in engines),
        "file_bytes": size,
    }
    programs = {_SAVED[loaded.has_program] for loaded in found.engines.values()}
    foot = (
        f"settings: {_spell(settings)}; program: {', '.join(sorted(programs))}; file size: {size / 1e6:.1f} MB; "
        f"traced by torch {found.torch_version}; to load it: torch2trt.load(path, module=model)"
    )
    return data, Group(pieces(found.name, engines, [error for error, _ in found.refusals.values()]), Text(foot))


_SAVED = {True: "saved with it", False: "not saved with it"}


def _artifact(loaded: LoadedArtifact) -> dict[str, Any]:
    found = loaded.artifact
    return {
        "name": found.name,
        "flavour": found.flavour,
        "flavour_version": found.flavour_version,
        "gpu": found.gpu,
        "precision": found.precision,
        "signature": found.signature.to_json(),
        "report": found.report,
        "program": loaded.has_program,
        "engine_bytes": found.engine_bytes,
    }


def _changed(settings: Settings) -> dict[str, Any]:
    """Those that are not as they are by default."""
    return {
        item.name: getattr(settings, item.name)
        for item in dataclasses.fields(Settings)
        if getattr(settings, item.name) != item.default
    }


def _spell(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "defaults"


def network(
    model: Model, example: Example, settings: Settings, profiles: Sequence[Mapping[str, Any]] | None = None
) -> tuple[dict[str, Any], RenderableType]:
    """The network that a model becomes, by type of layer, and its FLOPs in each profile; nothing is built.

    Args:
        profiles: as :func:`torch2trt.compile` takes them.

    Raises:
        DynamicShapeError: the model does not take the profiles.
        UnsupportedOpsError: what cannot be converted, and why.
    """
    flavour = flavours.load(settings.flavour)
    program = api.capture(
        model.module,
        example.args,
        example.kwargs,
        dynamic_shapes=example.dynamic_shapes,
        profiles=profiles,
        name=model.name,
    )
    program = api.optimize(program, settings, flavour)
    built = lower(program, flavour)
    layers = Counter(built.definition.get_layer(i).type.name.lower() for i in range(built.definition.num_layers))
    data: dict[str, Any] = {
        "name": program.name,
        "flavour": flavour.name,
        "flavour_version": flavour.version_text,
        "nodes": program.captured_nodes,
        "calls": len(program.calls),
        "layers": layers.total(),
        "fused_blocks": sum(node.target in FUSED_BLOCKS for node in program.calls),
        "weight_bytes": program.weights.source_bytes,
        "flops": _flops(program, program.signature.dims),
        "profiles": [
            {"profile": spell(ranges), "flops": _flops(program, ranges)}
            for ranges in program.signature.ranges
            if ranges
        ],
        "layers_by_type": dict(layers.most_common()),
    }
    layer_table = Table("layer")
    layer_table.add_column("count", justify="right")
    for kind, count in layers.most_common():
        layer_table.add_row(kind, str(count))
    head = (
        f"{program.name}: {data['nodes']} nodes → {data['layers']} layers, {data['fused_blocks']} fused blocks, "
        f"{data['weight_bytes'] / 1e6:.1f} MB of weights, {data['flops'] / 1e9:.2f}·10⁹ FLOPs "
        f"({flavour.name} {flavour.version_text})"
    )
    usual = [f"profile {each['profile']}: {each['flops'] / 1e9:.2f}·10⁹ FLOPs" for each in data["profiles"]]
    return data, Group(Text(head), *map(Text, usual), layer_table)


def _flops(program: Program, ranges: Mapping[str, DimRange]) -> int:
    """FLOPs of a call with the usual sizes."""
    return sum(flops(program, {name: span.opt for name, span in ranges.items()}).values())


def table(artifact: Artifact) -> Table:
    """An artifact in rows of title and text."""
    shown = Table(title=artifact.name, show_header=False)
    for title, text in summary.table(artifact).items():
        shown.add_row(title, text)
    return shown
