"""Artifacts made by hand, and files of them that somebody changed."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv

from torch2trt.graph.signature import ConstantLeaf, InputLeaf, Signature, SizeLeaf, TensorLeaf
from torch2trt.runtime.artifact import Artifact
from torch2trt.settings import Settings
from torch2trt.sizes import DimRange, TensorSpec, symbol

BATCH = symbol("batch")


def make_artifact(result: Any = None, **changes: Any) -> Artifact:
    result = {"y": 0, "rest": [1, (2, 3)]} if result is None else result
    signature = Signature(
        inputs=(TensorLeaf("x", TensorSpec((BATCH, 3), torch.float32)), ConstantLeaf(True)),
        outputs=(
            TensorLeaf("y", TensorSpec((2 * BATCH, 3), torch.float16)),
            ConstantLeaf(None),
            InputLeaf(0),
            SizeLeaf(FloorDiv(BATCH, 2) + 1),
        ),
        in_spec=pytree.tree_structure(((0,), {"flag": 0})),
        out_spec=pytree.tree_structure(result),
        dims={"batch": DimRange(1, 4, 16)},
        parameters=("x", "flag"),
    )
    values: dict[str, Any] = {
        "name": "net",
        "plan": random.Random(0).randbytes(5000),
        "signature": signature,
        "settings": Settings(precision="fp16", workspace=1 << 20, cuda_graphs=False),
        "flavour": "tensorrt",
        "flavour_version": "10.6.0",
        "gpu": "NVIDIA H200 (9.0)",
        "report": {"nodes": 7, "layers": 5, "build_s": 1.5},
    }
    return Artifact(**(values | changes))


def with_members(data: bytes, **changes: bytes | None) -> bytes:
    """The zip with members replaced, added, or, where None, left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (members | changes).items():
            if content is not None:
                archive.writestr(name, content)
    return buffer.getvalue()


def with_manifest(data: bytes, **changes: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    return with_members(data, **{"manifest.json": json.dumps(manifest | changes).encode()})
