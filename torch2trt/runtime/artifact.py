"""Artifacts: everything needed to run one compiled module, as one file.

The file is a zip without compression: ``manifest.json``, ``plan`` and, where asked for, the Program as ``program.json``
and ``program.safetensors``. A hybrid has in the plan's place its parts: ``part0.t2t``, itself an artifact, for an
engine, ``part1.json`` and ``part1.safetensors`` for what runs in torch. Nothing in it is code and reading it runs none.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from torch2trt.errors import ArtifactError, ProgramMissingError
from torch2trt.graph.signature import Signature
from torch2trt.runtime import archive
from torch2trt.runtime.files import StrPath, atomic_file
from torch2trt.settings import Precision, Settings
from torch2trt.tolerance import HALVES, effective_precision, with_halves
from torch2trt.trt import flavour as flavours

if TYPE_CHECKING:
    from torch2trt.graph.operator_call import OperatorCall
    from torch2trt.graph.program import Program

_PLAN, _GRAPH, _WEIGHTS = "plan", "program.json", "program.safetensors"
_STATE = "state.safetensors"
_ENGINE_PART, _TORCH_PART = "engine", "torch"


@dataclass(frozen=True)
class Artifact:
    """Everything needed to run one compiled module."""

    name: str
    plan: bytes = field(repr=False)
    """The serialized engine; empty for a hybrid, whose engines are among its parts."""
    signature: Signature
    settings: Settings
    flavour: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    flavour_version: str
    gpu: str | None
    """The GPU it was built for, as :func:`gpu_here` spells it; None where it was built without one."""
    calls: tuple[OperatorCall, ...] = ()
    """The calls of torch's operators that the plan makes."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the compilation says of itself, JSON values: nodes, layers, fused_blocks, build_s, …"""
    parts: tuple[Artifact | TorchPart, ...] = field(default=(), repr=False)
    """Of a hybrid: what runs in turn. Inputs and outputs of parts have the same name where they are the same value."""
    results: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of a hybrid: by the name of each output, the name of the value that it is."""
    state: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    """The buffers that the module changes, by their paths, as they are before the first call."""

    @property
    def engine_bytes(self) -> int:
        """Bytes of all plans."""
        return len(self.plan) + sum(part.engine_bytes for part in self.parts if isinstance(part, Artifact))

    @property
    def precision(self) -> Precision:
        """The precision asked for, or what the module's own dtypes mean; a coarser one that it casts to within."""
        leaves = [*self.signature.tensor_inputs, *self.signature.tensor_outputs]
        asked = effective_precision(self.settings.precision, (leaf.spec.dtype for leaf in leaves))
        return with_halves(asked, HALVES.keys() & self.report.get("halves", ()))


@dataclass(frozen=True)
class TorchPart:
    """A part of a hybrid that runs in torch."""

    program: Program


@dataclass(frozen=True)
class LoadedArtifact:
    """An artifact as read, and its Program, restored when asked for."""

    artifact: Artifact
    _program: tuple[bytes, bytes] | None = field(default=None, repr=False)
    _namespaces: Collection[str] = ()

    @property
    def has_program(self) -> bool:
        """Whether it was saved with its Program."""
        return self._program is not None

    def program(self) -> Program:
        """The Program.

        Raises:
            ProgramMissingError: it was saved without.
            ArtifactError: it is malformed.
        """
        if self._program is None:
            raise ProgramMissingError(
                "was saved without its Program",
                subject=self.artifact.name,
                hint="save it with .save(path, program=True)",
            )
        return _restored(*self._program, self.artifact.name, self._namespaces)


def gpu_here() -> str | None:
    """The current CUDA device and its compute capability, as ``NVIDIA H200 (9.0)``; None on a machine without one."""
    found = flavours.gpu()
    if found is None:
        return None
    name, (major, minor) = found
    return f"{name} ({major}.{minor})"


# Writing ------------------------------------------------------------------------------------------------------------


def save(artifact: Artifact, path: StrPath, *, program: Program | None = None) -> None:
    """Write an artifact to one file.

    Args:
        program: the Program to write with it, for ``reference``, ``verify`` and rebuilding.

    Raises:
        ArtifactWriteError: it could not be written whole; nothing is left behind.
        ArtifactError: the signature holds what cannot be stored without code.
    """
    members = _members(artifact, program)
    with atomic_file(path) as file:
        archive.write(members, file)


def to_bytes(artifact: Artifact, *, program: Program | None = None) -> bytes:
    """What :func:`save` would write."""
    buffer = io.BytesIO()
    archive.write(_members(artifact, program), buffer)
    return buffer.getvalue()


def _members(artifact: Artifact, program: Program | None) -> dict[str, bytes]:
    """The members of the zip, in order."""
    signature = artifact.signature.to_json()
    # What could not be read again, such as a defaultdict that calls code, is refused now.
    Signature.from_json(signature)
    members = {} if artifact.parts else {_PLAN: artifact.plan}
    for number, part in enumerate(artifact.parts):
        if isinstance(part, Artifact):
            members[_part_names(_ENGINE_PART, number)[0]] = to_bytes(part)
        else:
            members |= zip(_part_names(_TORCH_PART, number), _program_members(part.program), strict=True)
    if artifact.state:
        import safetensors.torch

        tensors = {name: value.detach().cpu().contiguous() for name, value in artifact.state.items()}
        members[_STATE] = safetensors.torch.save(tensors)
    if program is not None:
        members |= zip((_GRAPH, _WEIGHTS), _program_members(program), strict=True)
    manifest = {
        "name": artifact.name,
        "flavour": artifact.flavour,
        "flavour_version": artifact.flavour_version,
        "torch_version": str(torch.__version__),
        "gpu": artifact.gpu,
        "calls": [call.to_json() for call in artifact.calls],
        "settings": settings_to_json(artifact.settings),
        "signature": signature,
        "report": artifact.report,
        "parts": [_ENGINE_PART if isinstance(part, Artifact) else _TORCH_PART for part in artifact.parts],
        "results": dict(artifact.results),
    }
    return archive.with_manifest(archive.WHOLE, manifest, members)


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Settings as a manifest has them."""
    # The cache folder is the builder's own and says nothing to whoever loads this.
    names = [item.name for item in dataclasses.fields(Settings) if item.name != "cache_dir"]
    return {name: getattr(settings, name) for name in names}


def _part_names(kind: str, number: int) -> tuple[str, ...]:
    """The members that hold a part."""
    return (f"part{number}.t2t",) if kind == _ENGINE_PART else (f"part{number}.json", f"part{number}.safetensors")


def _program_members(program: Program) -> tuple[bytes, bytes]:
    import safetensors.torch

    from torch2trt.graph import serialize

    # Whoever loads it says which operators it may name.
    data, tensors = serialize.dump(program, namespaces=serialize.namespaces_of(program))
    return json.dumps(data).encode(), safetensors.torch.save(tensors)


def _restored(data: bytes, weights: bytes, subject: str, namespaces: Collection[str]) -> Program:
    """The inverse of :func:`_program_members`."""
    import safetensors.torch

    from torch2trt.graph import serialize

    try:
        parsed, tensors = archive.parse_json(data), safetensors.torch.load(weights)
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"its Program is malformed: {error}", subject=subject) from error
    if not isinstance(parsed, dict):
        raise ArtifactError("its Program is malformed", subject=subject)
    return serialize.restore(parsed, tensors, namespaces=namespaces)


# Reading ------------------------------------------------------------------------------------------------------------


def load(source: StrPath | bytes, *, namespaces: Collection[str] = ()) -> LoadedArtifact:
    """Read an artifact from a file, or from its bytes.

    Args:
        namespaces: of operators that the file may name, beside torch's own and torchvision's.

    Raises:
        ArtifactError: it is no artifact, is truncated or corrupt, of a format that this version does not know, or names
            an operator that is unknown or not allowed.
        OSError: the file cannot be opened.
    """
    subject = archive.subject_of(source)
    manifest, members = archive.read(source, archive.WHOLE)
    _check_members(members, manifest, subject)
    try:
        artifact = _from_manifest(manifest, members, subject, namespaces)
    except ArtifactError as error:
        reason = f"{error.reason}: {error.subject}" if error.subject else error.reason
        raise ArtifactError(reason, subject=subject, hint=error.hint) from error
    except archive.MALFORMED as error:
        raise ArtifactError(f"its manifest is malformed: {error!r}", subject=subject) from error
    program = (members[_GRAPH], members[_WEIGHTS]) if _GRAPH in members else None
    return LoadedArtifact(artifact, program, namespaces)


def _check_members(members: dict[str, bytes], manifest: dict[str, Any], subject: str) -> None:
    try:
        parts = manifest["parts"]
        if not {*parts} <= {_ENGINE_PART, _TORCH_PART}:
            raise TypeError("parts are engine or torch")
    except (LookupError, TypeError) as error:
        raise ArtifactError(f"its manifest is malformed: {error!r}", subject=subject) from error
    wanted = {name for number, kind in enumerate(parts) for name in _part_names(kind, number)} or {_PLAN}
    if members.keys() - {_GRAPH, _WEIGHTS, _STATE} != wanted or len(members.keys() & {_GRAPH, _WEIGHTS}) == 1:
        raise ArtifactError(f"has other members than an artifact: {sorted(members)}", subject=subject)
    archive.check_digests(manifest, members, subject)


def _from_manifest(
    manifest: dict[str, Any], members: Mapping[str, bytes], subject: str, namespaces: Collection[str]
) -> Artifact:
    texts = {key: manifest[key] for key in ("name", "flavour", "flavour_version")}
    gpu, report = manifest["gpu"], manifest["report"]
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(gpu, str | None):
        raise TypeError("name, flavour, flavour_version and gpu are texts")
    if texts["flavour"] not in flavours.NAMES:
        raise ValueError(f"unknown flavour {texts['flavour']!r}")
    if not isinstance(report, dict):
        raise TypeError("report is an object")
    signature, results = Signature.from_json(manifest["signature"]), manifest["results"]
    parts = tuple(_part(kind, number, members, subject, namespaces) for number, kind in enumerate(manifest["parts"]))
    if parts:
        _check_chain(signature, parts, results)
    state = _state(members, signature)
    return Artifact(
        **texts,
        plan=members.get(_PLAN, b""),
        parts=parts,
        results=results,
        state=state,
        signature=signature,
        settings=Settings.from_json(manifest["settings"]),
        gpu=gpu,
        calls=_calls(manifest.get("calls", []), namespaces),
        report=report,
    )


def _calls(items: list[dict[str, Any]], namespaces: Collection[str]) -> tuple[OperatorCall, ...]:
    if not items:
        return ()
    from torch2trt.graph.operator_call import OperatorCall

    return tuple(OperatorCall.from_json(item, namespaces) for item in items)


def _state(members: Mapping[str, bytes], signature: Signature) -> dict[str, torch.Tensor]:
    import safetensors.torch

    try:
        found = safetensors.torch.load(members[_STATE]) if _STATE in members else {}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    wanted = {leaf.buffer: (leaf.spec.shape, leaf.spec.dtype) for leaf in signature.state}
    if {name: (tuple(value.shape), value.dtype) for name, value in found.items()} != wanted:
        raise ValueError("the state is not that of the signature")
    return found


def _part(
    kind: str, number: int, members: Mapping[str, bytes], subject: str, namespaces: Collection[str]
) -> Artifact | TorchPart:
    data = [members[name] for name in _part_names(kind, number)]
    if kind == _ENGINE_PART:
        part = load(data[0], namespaces=namespaces).artifact
        if part.parts:
            raise ValueError("a hybrid among the parts of a hybrid")
        return part
    return TorchPart(_restored(data[0], data[1], subject, namespaces))


def _check_chain(signature: Signature, parts: tuple[Artifact | TorchPart, ...], results: Mapping[str, str]) -> None:
    """Every part finds its inputs among the caller's and the results of earlier parts."""
    known = {leaf.name for leaf in signature.tensor_inputs}
    for part in parts:
        own = part.signature if isinstance(part, Artifact) else part.program.signature
        if missing := {leaf.name for leaf in own.tensor_inputs} - known:
            raise ValueError(f"a part reads {sorted(missing)}, which no earlier one makes")
        known |= {leaf.name for leaf in own.tensor_outputs}
    if results.keys() != {leaf.name for leaf in signature.tensor_outputs} or not known.issuperset(results.values()):
        raise ValueError("the results are not those of the signature")
