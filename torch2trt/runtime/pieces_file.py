"""The engines of a module in pieces, as one file: whole artifacts, each under the key of the region it stands for.

The file is an :mod:`torch2trt.runtime.archive`. What joins the engines is the module's own Python, which is not in it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torch2trt import errors
from torch2trt.errors import ArtifactError, Torch2TRTError, UnsupportedNode, UnsupportedOpsError
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.graph.program import Program
from torch2trt.runtime import archive
from torch2trt.runtime import artifact as artifacts
from torch2trt.runtime.artifact import Artifact, LoadedArtifact
from torch2trt.runtime.files import StrPath, atomic_file
from torch2trt.settings import Settings

_DIGEST = re.compile(r"[0-9a-f]{32}")
_KINDS: dict[str, type[Torch2TRTError]] = {
    kind.code: kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Torch2TRTError)
}


class PieceKey(NamedTuple):
    """Which region of a module an engine stands for: regions with the same key compute the same."""

    graph: str
    """A digest of its calls, with the sizes and numbers that are built in."""
    weights: str
    """A digest of what its weights hold."""


class Refusal(NamedTuple):
    """Why a region is left to eager."""

    error: Torch2TRTError
    flavour: str
    """Flavour and version of the TensorRT that it holds for."""


@dataclass(frozen=True)
class PiecesFile:
    """What such a file holds."""

    name: str
    settings: Settings
    torch_version: str
    """Of the torch that traced the regions."""
    engines: Mapping[PieceKey, LoadedArtifact]
    """In the order in which they were built."""
    refusals: Mapping[PieceKey, Refusal]
    """The regions that are left to eager."""
    dynamic: DynamicInputs | None = None
    """The sizes that have ranges."""


def save(
    path: StrPath,
    name: str,
    settings: Settings,
    engines: Mapping[PieceKey, tuple[Artifact, Program | None]],
    refusals: Mapping[PieceKey, Refusal],
    dynamic: DynamicInputs | None = None,
) -> None:
    """Write a file that :func:`load` reads.

    Args:
        engines: each with the Program to write with it, if any.
        dynamic: the sizes that have ranges.

    Raises:
        ArtifactWriteError: it could not be written whole; nothing is left behind.
    """
    members = {_member(key): artifacts.to_bytes(engine, program=program) for key, (engine, program) in engines.items()}
    manifest = {
        "name": name,
        "torch_version": str(torch.__version__),
        "settings": artifacts.settings_to_json(settings),
        "engines": [list(key) for key in engines],
        "refusals": [
            {"region": list(key), "flavour": flavour, **_error_to_json(error)}
            for key, (error, flavour) in refusals.items()
        ],
        "dynamic": None if dynamic is None else dynamic.to_json(),
    }
    whole = archive.with_manifest(archive.PIECES, manifest, members)
    with atomic_file(path) as file:
        archive.write(whole, file)


def load(source: StrPath | bytes, *, namespaces: Collection[str] = ()) -> PiecesFile:
    """Read what :func:`save` wrote; no engine is deserialised.

    Args:
        namespaces: of operators that the file may name, beside torch's own and torchvision's.

    Raises:
        ArtifactError: it is no such file, or one of a whole module, truncated, corrupt, of a format that this version
            does not know, or names an operator that is unknown or not allowed.
        OSError: the file cannot be opened.
    """
    subject = archive.subject_of(source)
    manifest, members = archive.read(source, archive.PIECES)
    archive.check_digests(manifest, members, subject)
    try:
        keys = [_key(item) for item in manifest["engines"]]
        if sorted(map(_member, keys)) != sorted(members):
            raise ArtifactError(f"has other members than its engines: {sorted(members)}", subject=subject)
        name, version = manifest["name"], manifest["torch_version"]
        if not isinstance(name, str) or not isinstance(version, str):
            raise TypeError("name and torch_version are texts")
        return PiecesFile(
            name,
            # Whoever loads it builds, and where that writes is no file's to say.
            dataclasses.replace(Settings.from_json(manifest["settings"]), cache_dir=None),
            version,
            {key: _engine(key, members[_member(key)], namespaces) for key in keys},
            {_key(item["region"]): _refusal(item) for item in manifest["refusals"]},
            # Files of before have none.
            None if (dynamic := manifest.get("dynamic")) is None else DynamicInputs.from_json(dynamic),
        )
    except ArtifactError as error:
        if error.subject == subject:
            raise
        raise ArtifactError(f"{error.reason}: {error.subject}", subject=subject, hint=error.hint) from error
    except (*archive.MALFORMED, Torch2TRTError) as error:
        raise ArtifactError(f"its manifest is malformed: {error!r}", subject=subject) from error


def _member(key: PieceKey) -> str:
    return f"{key.graph}-{key.weights}.t2t"


def _engine(key: PieceKey, data: bytes, namespaces: Collection[str]) -> LoadedArtifact:
    try:
        return artifacts.load(data, namespaces=namespaces)
    except ArtifactError as error:
        raise ArtifactError(error.reason, subject=_member(key), hint=error.hint) from error


def _key(item: Sequence[str]) -> PieceKey:
    key = PieceKey(*item)
    if not all(_DIGEST.fullmatch(digest) for digest in key):
        raise ValueError(f"{item!r} are no digests")
    return key


def _refusal(item: Mapping[str, Any]) -> Refusal:
    if not isinstance(item["flavour"], str):
        raise TypeError("flavour is a text")
    return Refusal(_error_from_json(item), item["flavour"])


def _error_to_json(error: Torch2TRTError) -> dict[str, Any]:
    found: dict[str, Any] = {"code": error.code}
    if isinstance(error, UnsupportedOpsError):
        return found | {"nodes": [dataclasses.asdict(node) for node in error.nodes], "hint": error.hint}
    return found | {name: getattr(error, name) for name in ("reason", "subject", "source", "hint")}


def _error_from_json(item: Mapping[str, Any]) -> Torch2TRTError:
    kind = _KINDS[item["code"]]
    texts = {name: item[name] for name in ("reason", "subject", "source", "hint") if name in item}
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError("what an error says is text")
    if issubclass(kind, UnsupportedOpsError):
        nodes = [UnsupportedNode(**node) for node in item["nodes"]]
        if not all(isinstance(text, str) for node in nodes for text in dataclasses.astuple(node)):
            raise TypeError("what a node is called is text")
        return kind(nodes, **texts)
    return kind(texts.pop("reason"), **texts)
