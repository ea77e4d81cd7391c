"""Bare plans, for trtexec, Triton and DeepStream: the engine alone, and a JSON beside it that says how it is called."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from torch2trt.errors import ArtifactWriteError
from torch2trt.graph.signature import Signature, TensorLeaf, spec_to_json
from torch2trt.runtime.artifact import Artifact
from torch2trt.runtime.files import StrPath, atomic_file
from torch2trt.sizes import DimRange, TensorSpec, evaluate


def export_plan(artifact: Artifact, path: StrPath) -> None:
    """Write the bare plan for trtexec, Triton or DeepStream, and ``<path>.json`` that describes it.

    Shapes there are the engine's; where its axes are in another order than the module's, ``order`` has the module's.

    Raises:
        ArtifactWriteError: the files could not be written whole; neither is left behind. Or the plan calls operators of
            torch, which none of these has.
    """
    if artifact.calls:
        names = ", ".join(sorted({call.name for call in artifact.calls}))
        raise ArtifactWriteError(
            f"calls operators of torch, which a bare plan cannot: {names}",
            subject=artifact.name,
            hint="run it with torch2trt, or write a converter for them",
        )
    description = {
        "name": artifact.name,
        "flavour": artifact.flavour,
        "flavour_version": artifact.flavour_version,
        "gpu": artifact.gpu,
        "precision": artifact.precision,
        "inputs": [_describe(leaf, artifact.signature) for leaf in artifact.signature.tensor_inputs],
        "outputs": [_describe(leaf, artifact.signature) for leaf in _distinct(artifact.signature.tensor_outputs)],
        "dims": {name: dataclasses.asdict(span) for name, span in artifact.signature.dims.items()},
        "profiles": [
            {
                "dims": {name: dataclasses.asdict(span) for name, span in ranges.items()},
                "inputs": {leaf.name: _profile(leaf.stored, ranges) for leaf in artifact.signature.tensor_inputs},
            }
            for ranges in artifact.signature.ranges
        ],
        "sha256": hashlib.sha256(artifact.plan).hexdigest(),
    }
    with atomic_file(f"{os.fspath(path)}.json") as beside, atomic_file(path) as plan:
        beside.write(json.dumps(description, indent=2).encode() + b"\n")
        beside.flush()
        plan.write(artifact.plan)


def _describe(leaf: TensorLeaf, signature: Signature) -> dict[str, Any]:
    order = {"order": list(leaf.order)} if leaf.order else {}
    return {"name": leaf.name, **spec_to_json(leaf.stored), **order, "profile": _profile(leaf.stored, signature.dims)}


def _profile(spec: TensorSpec, ranges: Mapping[str, DimRange]) -> dict[str, list[int | None]]:
    """The shapes at the ends and at the optimum of ranges; None for a size that only TensorRT knows."""
    profile: dict[str, list[int | None]] = {}
    for which in ("min", "opt", "max"):
        dims = {name: getattr(span, which) for name, span in ranges.items()}
        known = [
            isinstance(size, int) or {str(part) for part in size.free_symbols} <= dims.keys() for size in spec.shape
        ]
        profile[which] = [evaluate(size, dims) if ok else None for size, ok in zip(spec.shape, known, strict=True)]
    return profile


def _distinct(leaves: list[TensorLeaf]) -> list[TensorLeaf]:
    return list({leaf.name: leaf for leaf in leaves}.values())
