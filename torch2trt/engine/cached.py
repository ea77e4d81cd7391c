"""Engines that are built once: from the cache where they are known, and into it where they are not."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torch2trt.engine.cache import EngineCache, Entry, Plan
from torch2trt.engine.differences import differences, in_a_line, nearest, spell_age
from torch2trt.engine.key import Key, NoKeyError
from torch2trt.settings import Settings
from torch2trt.trt.flavour import Flavour

log = logging.getLogger(__name__)

State = Literal["hit", "miss", "off"]


@dataclass(frozen=True)
class Result:
    """An engine, and whether it was known."""

    plan: Plan
    state: State
    seconds: float = 0.0
    """What the cache took: the key, reading and writing."""


def is_on(flavour: Flavour, settings: Settings) -> bool:
    """Whether engines of a flavour are cached: where nothing else is set, those that take long to build are."""
    return not flavour.has("quick_builds") if settings.engine_cache is None else settings.engine_cache


def cached(
    key_of: Callable[[], Key],
    build: Callable[[], Plan],
    *,
    name: str,
    flavour: Flavour,
    gpu: str | None,
    settings: Settings,
) -> Result:
    """The engine of a key from the cache, else from a build, which fills the cache.

    Of several processes that want the same engine one builds, and the others wait for it. No trouble with the cache
    is an error: it costs time, and the log says why.

    Args:
        key_of: computes the key.
        build: builds the engine, and raises what it likes.
        name: the model's.
        gpu: the one that it is built for, in words.
    """
    if not is_on(flavour, settings):
        return Result(build(), "off")
    start = time.perf_counter()
    try:
        key = key_of()
    except NoKeyError as error:
        # Whoever asked for the cache is to know.
        level = logging.WARNING if settings.engine_cache else logging.INFO
        log.log(level, "%s: is built without the engine cache: %s", name, error)
        return Result(build(), "off", time.perf_counter() - start)
    cache = EngineCache.of(settings)
    if found := cache.find(key.digest):
        return _hit(name, found, start)
    _say_why(cache, key, name)
    with cache.building(key.digest, patience=settings.build_timeout, name=name) as waited:
        if waited and (found := cache.find(key.digest)):
            return _hit(name, found, start)
        began = time.perf_counter()
        plan = build()
        ended = time.perf_counter()
        cache.keep(
            key,
            plan,
            name=name,
            flavour=flavour.name,
            version=flavour.version_text,
            gpu=gpu,
            seconds=ended - began,
        )
    return Result(plan, "miss", time.perf_counter() - start - (ended - began))


def joint_state(states: Iterable[State]) -> State:
    """The state of several engines: a hit where all that are cached were known."""
    found = set(states)
    return "miss" if "miss" in found else "hit" if "hit" in found else "off"


def _hit(name: str, found: tuple[Entry, Plan], start: float) -> Result:
    entry, plan = found
    seconds = time.perf_counter() - start
    age = spell_age(time.time() - entry.built)
    log.info("%s: its engine, built %s ago in %.1f s, was found in %.2f s", name, age, entry.seconds, seconds)
    return Result(plan, "hit", seconds)


def _say_why(cache: EngineCache, key: Key, name: str) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    found = nearest(cache, key, name)
    if found is None:
        log.info("%s: the engine cache has nothing of this model", name)
    else:
        log.info("%s: is not in the engine cache: %s", name, in_a_line(found, differences(cache, found, key)))
