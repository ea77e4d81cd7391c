"""The engine cache: plans by their keys, in a folder that processes share.

Each entry is a folder named after the digest of its key: ``entry`` (what there is to say of it, with a checksum),
``key.json`` (the key in full, to compare others with), ``plan`` and ``uses``, one byte for each hit, whose time is that
of the last one. Entries appear and vanish whole, by renaming. Reading takes no lock; what changes the folder does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from torch2trt.engine import digests
from torch2trt.engine.key import Key
from torch2trt.engine.timing_cache import cache_folder
from torch2trt.settings import Settings

log = logging.getLogger(__name__)

_ENTRY, _KEY, _PLAN, _USES = "entry", "key.json", "plan", "uses"
_FORMAT = 1
_LOCK_SECONDS = 10.0
_DIGEST_LENGTH = hashlib.sha256().digest_size * 2
# What a process that died has left is removed after this time, in seconds; no build takes as long.
_ABANDONED = 24 * 3600
# What damaged JSON leads to.
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Plan:
    """What a build yields."""

    data: bytes = field(repr=False)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else there is to know of the engine, JSON values."""


@dataclass(frozen=True)
class Entry:
    """What there is to say of one engine in the cache, apart from its plan."""

    key: str
    """The digest of its key."""
    name: str
    """What the model was called that it was built of first."""
    inputs: str
    """Their names, dtypes and shapes."""
    flavour: str
    flavour_version: str
    gpu: str | None
    built: float
    """When, in seconds since 1970."""
    seconds: float
    """What lowering and building took."""
    plan_bytes: int
    plan_digest: str
    sections: dict[str, str]
    """The digests of the key's sections."""
    facts: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """An entry as it lies in the cache."""

    entry: Entry
    folder: Path
    size: int
    """Bytes of all its files."""
    used: float
    """When it was last used or built, in seconds since 1970."""
    hits: int


class EngineCache:
    """The engine cache in a folder, which need not be there yet.

    Args:
        folder: of this cache alone.
        limit: bytes that it may grow to; those least recently used go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    @classmethod
    def of(cls, settings: Settings) -> EngineCache:
        """The cache that settings name."""
        return cls(cache_folder(settings) / "engines", settings.engine_cache_bytes)

    # -- one engine ---------------------------------------------------------------------------------------------------

    def find(self, digest: str) -> tuple[Entry, Plan] | None:
        """The engine of a key, or None; damage is one that is not there, and the log says so."""
        folder = self.folder / digest
        try:
            entry = _read_entry(folder)
            plan = (folder / _PLAN).read_bytes()
            if entry.key != digest or digests.of_bytes(plan) != entry.plan_digest:
                raise ValueError("its plan has another checksum")
        except FileNotFoundError:
            if not folder.exists():
                return None
            log.warning("%s lacks a file: the engine is built again", folder)
            return None
        except (OSError, *_DAMAGE) as error:
            log.warning("%s cannot be used, so the engine is built again: %s", folder, error)
            return None
        # A folder that is only read is as good.
        with contextlib.suppress(OSError), open(folder / _USES, "ab") as uses:
            uses.write(b".")
        return entry, Plan(plan, entry.facts)

    def keep(
        self, key: Key, plan: Plan, *, name: str, flavour: str, version: str, gpu: str | None, seconds: float
    ) -> None:
        """Put an engine into the cache, in the place of one of the same key, and remove what is then too much.

        What cannot be written is only logged: an engine that is not kept costs time.
        """
        entry = Entry(
            key=key.digest,
            name=name,
            inputs=", ".join(key.sections["inputs"].lines),
            flavour=flavour,
            flavour_version=version,
            gpu=gpu,
            built=time.time(),
            seconds=seconds,
            plan_bytes=len(plan.data),
            plan_digest=digests.of_bytes(plan.data),
            sections={name: section.digest for name, section in key.sections.items()},
            facts=plan.facts,
        )
        text = json.dumps(key.to_json())
        if len(plan.data) + len(text) > self.limit:
            log.info("%s: its engine is larger than engine_cache_bytes, so it is not kept", name)
            return
        new = self.folder / f".new-{secrets.token_hex(8)}"
        try:
            new.mkdir(parents=True)
            (new / _KEY).write_text(text, encoding="utf-8")
            (new / _PLAN).write_bytes(plan.data)
            (new / _USES).touch()
            _write_entry(new, entry)
            with self._locked():
                self._discard([self.folder / entry.key])
                new.rename(self.folder / entry.key)
                self._shrink(self.limit, spare=entry.key)
        except (OSError, ValueError, TypeError, filelock.Timeout) as error:
            log.warning("%s: its engine could not be kept in %s: %s", name, self.folder, error)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @contextlib.contextmanager
    def building(self, digest: str, *, patience: float | None, name: str) -> Iterator[bool]:
        """A block in which no other process builds the same engine.

        Args:
            patience: seconds to wait for another process before building it all the same; None: as long as it takes.
            name: the model's, for the log.

        Yields:
            Whether there was something to wait for, so that the engine may be there now.
        """
        path = self.folder / f"{digest}.lock"
        lock, waited = filelock.FileLock(path), False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                waited = True
                log.info("%s: another process builds this engine: waiting for it", name)
                with contextlib.suppress(filelock.Timeout):
                    lock.acquire(timeout=-1 if patience is None else patience)
        except (OSError, NotImplementedError) as error:
            log.debug("%s cannot be locked: %s", path, error)
        try:
            yield waited
        finally:
            if lock.is_locked:
                lock.release()
                # Whoever comes between here and there builds the engine twice, and no more than that.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    # -- all engines --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Stored]:
        """What is in the cache and can be read, the most recently used first."""
        found: list[Stored] = []
        for folder, size, used in self._folders():
            with contextlib.suppress(OSError, *_DAMAGE):
                hits = (folder / _USES).stat().st_size
                found.append(Stored(_read_entry(folder), folder, size, used, hits))
        return found

    def key_of(self, stored: Stored) -> Key | None:
        """The key of an entry, None where it is damaged."""
        try:
            key = Key.from_json(json.loads((stored.folder / _KEY).read_text(encoding="utf-8")))
        except (OSError, *_DAMAGE):
            return None
        return key if key.digest == stored.entry.key else None

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(size for _, size, _ in self._folders())

    def prune(self, *, max_bytes: int | None = None, unused_since: float | None = None) -> tuple[int, int]:
        """Remove entries: those that are too much, the least recently used first, or those not used since a time.

        Args:
            unused_since: seconds since 1970.

        Returns:
            How many, and how many bytes.

        Raises:
            filelock.Timeout: another process holds the lock for too long.
            OSError: the folder cannot be changed.
        """
        if not self.folder.exists():
            return 0, 0
        with self._locked():
            before = self._folders()
            if unused_since is not None:
                self._discard([folder for folder, _, used in before if used < unused_since])
            if max_bytes is not None:
                self._shrink(max_bytes)
            left = self._folders()
        return len(before) - len(left), sum(item[1] for item in before) - sum(item[1] for item in left)

    def _folders(self) -> list[tuple[Path, int, float]]:
        """Folder, bytes and last use of each entry, be it sound or not, the most recently used first."""
        found: list[tuple[Path, int, float]] = []
        with contextlib.suppress(OSError):
            for folder in self.folder.iterdir():
                # One may go while it is looked at.
                with contextlib.suppress(OSError):
                    if folder.is_dir() and not folder.name.startswith("."):
                        stats = {path.name: path.stat() for path in folder.iterdir()}
                        used = stats[_USES].st_mtime if _USES in stats else folder.stat().st_mtime
                        found.append((folder, sum(each.st_size for each in stats.values()), used))
        return sorted(found, key=lambda item: item[2], reverse=True)

    def _shrink(self, limit: int, *, spare: str = "") -> None:
        """Remove the least recently used entries until the rest is small enough; the lock is held."""
        found = self._folders()
        total = sum(size for _, size, _ in found)
        for folder, size, _ in reversed(found):
            if total <= limit:
                break
            if folder.name != spare:
                self._discard([folder])
                total -= size
        for path in [*self.folder.glob(".*-*"), *self.folder.glob("?*.lock")]:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED:
                    path.unlink() if path.is_file() else shutil.rmtree(path)

    def _discard(self, folders: list[Path]) -> None:
        """Remove entries as one step each; the lock is held."""
        for folder in folders:
            gone = self.folder / f".gone-{secrets.token_hex(8)}"
            # One that is gone is no matter, and one that is being read cannot be moved on Windows.
            with contextlib.suppress(OSError):
                folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def _locked(self) -> filelock.BaseFileLock:
        return filelock.FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS)


def _write_entry(folder: Path, entry: Entry) -> None:
    data = json.dumps({"format": _FORMAT, **asdict(entry)}).encode()
    (folder / _ENTRY).write_bytes(hashlib.sha256(data).hexdigest().encode() + data)


def _read_entry(folder: Path) -> Entry:
    """The entry in a folder.

    Raises:
        OSError: there is none.
        ValueError, TypeError, LookupError: it is damaged.
    """
    written = (folder / _ENTRY).read_bytes()
    data = written[_DIGEST_LENGTH:]
    if hashlib.sha256(data).hexdigest().encode() != written[:_DIGEST_LENGTH]:
        raise ValueError("it has another checksum")
    values = json.loads(data)
    if values.pop("format") != _FORMAT:
        raise ValueError("it has another format")
    return Entry(**values)
