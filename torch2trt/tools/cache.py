"""The engine cache on the command line: ``torch2trt cache list | why | prune``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch2trt import api
from torch2trt.engine.cache import EngineCache, Stored
from torch2trt.engine.cached import is_on
from torch2trt.engine.differences import Difference, differences, nearest, spell_age
from torch2trt.engine.key import Key, NoKeyError
from torch2trt.errors import ArtifactWriteError, CaptureError
from torch2trt.graph.program import Program
from torch2trt.settings import Settings
from torch2trt.tools.inputs import Example
from torch2trt.tools.models import Model
from torch2trt.tools.outcome import Outcome
from torch2trt.trt import flavour as flavours
from torch2trt.trt.flavour import Flavour


def listing(settings: Settings) -> Outcome:
    """The engines in the cache."""
    cache, now = EngineCache.of(settings), time.time()
    found = cache.entries()
    total = sum(stored.size for stored in found)
    data = {
        "folder": str(cache.folder),
        "bytes": total,
        "limit": cache.limit,
        "entries": [_to_json(stored) for stored in found],
    }
    table = Table("model", "inputs", "flavour", "gpu", title=str(cache.folder))
    for title in ("size", "built", "used", "hits", "saved"):
        table.add_column(title, justify="right")
    for stored in found:
        entry = stored.entry
        table.add_row(
            entry.name,
            entry.inputs,
            f"{entry.flavour} {entry.flavour_version}",
            entry.gpu or "none",
            f"{stored.size / 1e6:.1f} MB",
            f"{spell_age(now - entry.built)} ago",
            f"{spell_age(now - stored.used)} ago",
            str(stored.hits),
            f"{stored.hits * entry.seconds:.1f} s",
        )
    saved = sum(stored.hits * stored.entry.seconds for stored in found)
    line = f"{len(found)} engine(s), {total / 1e6:.1f} MB of at most {cache.limit / 1e6:.1f} MB, {saved:.1f} s saved"
    return Outcome(data, Group(table, Text(line)) if found else Text(f"{cache.folder} holds no engines"))


def why(model: Model, example: Example, profiles: Sequence[Mapping[str, Any]] | None, settings: Settings) -> Outcome:
    """Which engines of a model are in the cache, and for the others what differs from the entry that comes nearest.

    Of a module in pieces, the engines that the example needs.

    Raises:
        Torch2TRTError: the model cannot be compiled.
    """
    flavour = flavours.load(settings.flavour)
    programs = _programs(model, example, profiles, flavour, settings)
    cache, on = EngineCache.of(settings), is_on(flavour, settings)
    data: dict[str, Any] = {"name": model.name, "folder": str(cache.folder), "on": on, "reason": "", "engines": []}
    parts: list[RenderableType] = []
    if not on:
        asked = "engine_cache is off" if settings.engine_cache is False else f"{flavour.name} builds quickly"
        parts.append(Text(f"its engines are not cached: {asked}"))
    try:
        keys = [found for program in programs for found in api.engine_keys(program, flavour, settings)]
    except NoKeyError as error:
        return Outcome({**data, "on": False, "reason": str(error)}, Text(f"its engines are never cached: {error}"))
    for name, key in keys:
        found, shown = _explained(cache, name, key)
        data["engines"].append(found)
        parts.append(shown)
    return Outcome(data, Group(*parts))


def _programs(
    model: Model,
    example: Example,
    profiles: Sequence[Mapping[str, Any]] | None,
    flavour: Flavour,
    settings: Settings,
) -> list[Program]:
    asked: dict[str, Any] = {"dynamic_shapes": example.dynamic_shapes, "profiles": profiles, "name": model.name}
    try:
        program = api.capture(model.module, example.args, example.kwargs, **asked)
    except CaptureError as error:
        if not settings.fallback:
            raise
        from torch2trt.pieces import programs_of

        return programs_of(model.module, example.args, example.kwargs, flavour, settings, reason=error, **asked)
    return [api.optimize(program, settings, flavour)]


def prune(settings: Settings, *, max_bytes: int | None, days: float | None) -> Outcome:
    """Remove engines that are too much, or that were not used for some days.

    Raises:
        ArtifactWriteError: they could not be removed.
    """
    cache = EngineCache.of(settings)
    since = None if days is None else time.time() - days * 86400
    try:
        count, size = cache.prune(max_bytes=max_bytes, unused_since=since)
    except OSError as error:
        raise ArtifactWriteError(
            f"could not be pruned: {error}", subject=str(cache.folder), hint="look at its permissions"
        ) from error
    left = cache.size
    data = {"folder": str(cache.folder), "removed": count, "removed_bytes": size, "bytes": left}
    return Outcome(data, Text(f"{count} engine(s) removed, {size / 1e6:.1f} MB; {left / 1e6:.1f} MB are left"))


def _explained(cache: EngineCache, name: str, key: Key) -> tuple[dict[str, Any], RenderableType]:
    near = nearest(cache, key, name)
    hit = near is not None and near.entry.key == key.digest
    found = [] if near is None else differences(cache, near, key)
    data = {
        "name": name,
        "key": key.digest,
        "state": "hit" if hit else "miss",
        "nearest": None if near is None else _to_json(near),
        "differences": [_difference_to_json(each) for each in found],
    }
    if near is None:
        return data, Text(f"{name}: nothing of this model is in the cache")
    entry, age = near.entry, spell_age(time.time() - near.entry.built)
    if hit:
        return data, Text(f"{name}: is in the cache, built {age} ago in {entry.seconds:.1f} s, {near.hits} hit(s)")
    table = Table("section", "what differs", show_lines=True)
    for each in found:
        rest = [f"and {each.more} more"] if each.more else []
        table.add_row(each.section, Text("\n".join([*each.lines, *rest])))
    return data, Group(Text(f"{name}: is not in the cache; nearest is {entry.name!r}, built {age} ago"), table)


def _difference_to_json(difference: Difference) -> dict[str, Any]:
    return {"section": difference.section, "lines": list(difference.lines), "more": difference.more}


def _to_json(stored: Stored) -> dict[str, Any]:
    entry = stored.entry
    return {
        "key": entry.key,
        "name": entry.name,
        "inputs": entry.inputs,
        "flavour": entry.flavour,
        "flavour_version": entry.flavour_version,
        "gpu": entry.gpu,
        "bytes": stored.size,
        "built": entry.built,
        "used": stored.used,
        "hits": stored.hits,
        "build_s": entry.seconds,
        "saved_s": stored.hits * entry.seconds,
    }
