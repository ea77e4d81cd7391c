"""An artifact in words: the line that a module prints, and the table that a notebook shows."""

from __future__ import annotations

import html

from torch2trt.graph.signature import TensorLeaf, dtype_to_json
from torch2trt.runtime.artifact import Artifact
from torch2trt.sizes import spell


def line(artifact: Artifact) -> str:
    """Name, flavour, precision and signature."""
    flavour = f"{artifact.flavour} {artifact.flavour_version}"
    return f"{artifact.name}, {flavour}, {artifact.precision}, {signature(artifact)}"


def signature(artifact: Artifact) -> str:
    """Inputs and outputs, as ``(x: float32[batch×3]) → (y: float32[batch])``."""
    return f"({_leaves(artifact.signature.tensor_inputs)}) → ({_leaves(artifact.signature.tensor_outputs)})"


def table(artifact: Artifact) -> dict[str, str]:
    """What there is to know, as texts by their titles."""
    report, ranges = artifact.report, artifact.signature.ranges
    rows = {
        "flavour": f"{artifact.flavour} {artifact.flavour_version}",
        "built for": artifact.gpu or "any GPU that the flavour serves",
        "precision": artifact.precision,
        "inputs": _leaves(artifact.signature.tensor_inputs),
        "outputs": _leaves(artifact.signature.tensor_outputs),
    }
    if ranges[0]:
        rows["profile" if len(ranges) == 1 else "profiles"] = "; ".join(map(spell, ranges))
    if "nodes" in report and "layers" in report:
        rows["nodes → layers"] = f"{report['nodes']} → {report['layers']}"
    if "fused_blocks" in report:
        rows["fused blocks"] = str(report["fused_blocks"])
    if artifact.parts:
        kinds = ["engine" if isinstance(part, Artifact) else "torch" for part in artifact.parts]
        rows["segments"] = " → ".join(kinds)
    if report.get("cache") == "hit":
        rows["build time"] = f"none: found in the engine cache in {report['cache_s']:.2f} s"
    elif "build_s" in report:
        rows["build time"] = f"{report['build_s']:.1f} s"
    return {**rows, "engine size": f"{artifact.engine_bytes / 1e6:.1f} MB"}


def html_table(artifact: Artifact) -> str:
    """The table as HTML, every text escaped."""
    left = "style='text-align:left'"
    rows = "".join(
        f"<tr><th {left}>{html.escape(title)}</th><td {left}>{html.escape(text)}</td></tr>"
        for title, text in table(artifact).items()
    )
    return f"<table><caption>{html.escape(artifact.name)}</caption>{rows}</table>"


def _leaves(leaves: list[TensorLeaf]) -> str:
    return ", ".join(
        f"{leaf.name}: {dtype_to_json(leaf.spec.dtype)}[{'×'.join(map(str, leaf.spec.shape))}]" for leaf in leaves
    )
