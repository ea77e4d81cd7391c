"""The file that an artifact is: a zip without compression, of a manifest in JSON and members with their digests in it.

Equal contents are equal files. Nothing in one is code, and reading it runs none.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

from torch2trt.errors import ArtifactError
from torch2trt.runtime.files import StrPath

WHOLE = "torch2trt artifact"
"""The format of a whole module."""
PIECES = "torch2trt artifact in pieces"
"""The format of the engines of a module in pieces."""

_OTHER = {
    PIECES: (
        "holds the engines of a module in pieces, and not the Python that joins them",
        "pass the module that they were compiled from: torch2trt.load(path, module=model)",
    ),
    WHOLE: ("is the artifact of a whole module, which needs no module beside it", "load it without module="),
}
_VERSION = 1
_MANIFEST = "manifest.json"
_JSON_LIMIT = 64 << 20
_MADE = (1980, 1, 1, 0, 0, 0)  # equal artifacts are equal files

# What parsing JSON of the wrong shape raises: pytree asserts, sizes are parsed as syntax.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, AssertionError, SyntaxError, RecursionError)
# What the zipfile module raises for bytes that are no intact zip.
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, EOFError, OSError, OverflowError, NotImplementedError, RuntimeError, ValueError),
    *(struct.error, LookupError),
)


def with_manifest(form: str, manifest: Mapping[str, Any], members: dict[str, bytes]) -> dict[str, bytes]:
    """All members, in order, with the manifest first.

    Args:
        form: :data:`WHOLE` or :data:`PIECES`.
        manifest: what else is to be in it, as JSON values.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    whole = {"format": form, "version": _VERSION, **manifest, "members": digests}
    return {_MANIFEST: json.dumps(whole, indent=1).encode(), **members}


def write(members: Mapping[str, bytes], file: IO[bytes]) -> None:
    """Write the members of :func:`with_manifest`."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _MADE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def subject_of(source: StrPath | bytes) -> str:
    """What errors call a file, or its bytes."""
    return "artifact" if isinstance(source, bytes) else str(source)


def read(source: StrPath | bytes, form: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the other members, from a file or from its bytes; their digests are still to be checked.

    Raises:
        ArtifactError: it is no artifact, not of this form, truncated or corrupt, or of a format that this version does
            not know.
        OSError: the file cannot be opened.
    """
    subject = subject_of(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    with file:
        members = _read_zip(file, subject)
    return _read_manifest(members.pop(_MANIFEST), form, subject), members


def is_in_pieces(path: StrPath) -> bool:
    """Whether a file holds a module in pieces; only its manifest is read, and what is no artifact holds none."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_MANIFEST) as file:
            manifest = parse_json(file.read(_JSON_LIMIT + 1))
    except (*_BROKEN_ZIP, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == PIECES


def parse_json(data: bytes) -> Any:
    """The value that JSON spells.

    Raises:
        ValueError, RecursionError: it is none, or too large.
    """
    if len(data) > _JSON_LIMIT:
        raise ValueError(f"{len(data)} bytes of JSON")
    return json.loads(data)


def check_digests(manifest: Mapping[str, Any], members: Mapping[str, bytes], subject: str) -> None:
    """Refuse members that are not those of the manifest.

    Raises:
        ArtifactError: one is missing, too many, or another.
    """
    digests = manifest["members"]
    if members.keys() != digests.keys():
        raise ArtifactError(f"holds {sorted(members)}, its manifest names {sorted(digests)}", subject=subject)
    for name, data in members.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            raise ArtifactError(
                f"{name} is corrupt: its checksum differs",
                subject=subject,
                hint="copy it again, or compile and save again",
            )


def _read_zip(file: IO[bytes], subject: str) -> dict[str, bytes]:
    start = file.read(2)
    if start != b"PK":
        hint = "load what .save() wrote"
        if start in (b"pt", b"ft"):
            hint = "a bare plan is for trtexec, Triton and DeepStream; load what .save() wrote"
        raise ArtifactError("is no artifact of torch2trt" if start else "is empty", subject=subject, hint=hint)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            names = sorted(info.filename for info in infos)
            if _MANIFEST not in names:
                raise ArtifactError("is a zip, but no artifact of torch2trt", subject=subject)
            if len(set(names)) < len(names):
                raise ArtifactError(f"has other members than an artifact: {names}", subject=subject)
            for info in infos:
                # Stored members are as large as their part of the file, whatever the directory claims.
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ArtifactError(f"{info.filename} is compressed, which artifacts are not", subject=subject)
            return {info.filename: archive.read(info) for info in infos}
    except _BROKEN_ZIP as error:
        raise ArtifactError(
            f"is truncated or corrupt: {error}", subject=subject, hint="copy it again, or compile and save again"
        ) from error


def _read_manifest(data: bytes, form: str, subject: str) -> dict[str, Any]:
    try:
        manifest = parse_json(data)
        if not isinstance(manifest, dict) or manifest.get("format") not in _OTHER:
            raise ArtifactError("is a zip, but no artifact of torch2trt", subject=subject)
        if manifest["format"] != form:
            reason, hint = _OTHER[manifest["format"]]
            raise ArtifactError(reason, subject=subject, hint=hint)
        if manifest.get("version") != _VERSION:
            raise ArtifactError(
                f"has format version {manifest.get('version')!r}, this is version {_VERSION}",
                subject=subject,
                hint="load it with the torch2trt that saved it, or compile and save again",
            )
        if not isinstance(manifest["members"], dict):
            raise TypeError("members is an object")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"its manifest is malformed: {error!r}", subject=subject) from error
    return manifest
