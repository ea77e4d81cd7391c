"""The folder of the engine cache: damage, bounds, and several that use it at once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from tests.caching import cache, key, put, put_later
from tests.threads import in_threads
from torch2trt.engine import cached
from torch2trt.engine.cache import EngineCache, Plan
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

__all__ = ["cache"]  # a fixture, which tests name

FLAVOUR = flavours.load()
ROOT = Path(__file__).parents[1]

# Damage ---------------------------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[:-7],
    "garbage": lambda data: os.urandom(len(data)),
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
}


@pytest.mark.parametrize("file", ["plan", "entry"])
@pytest.mark.parametrize("damage", [*DAMAGE, "gone", "a folder"])
def test_a_damaged_entry_is_a_miss_and_is_replaced(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    digest = put_later(cache, "a")
    path = cache.folder / digest / file
    data = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes(DAMAGE[damage](data))
    assert cache.find(digest) is None
    assert "built again" in caplog.text
    caplog.clear()
    put_later(cache, "a")
    found = cache.find(digest)
    assert found is not None
    assert found[1].data == b"a" * 1000
    assert not caplog.records
    assert sorted(path.name for path in cache.folder.iterdir()) == [".lock", digest]


def test_an_entry_in_another_ones_place(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    one, other = put_later(cache, "a"), put_later(cache, "b")
    for file in ("plan", "entry", "key.json"):
        (cache.folder / other / file).write_bytes((cache.folder / one / file).read_bytes())
    assert cache.find(other) is None


def test_a_hit_needs_nothing_written(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    uses = cache.folder / put(cache, "a") / "uses"
    uses.unlink()
    uses.mkdir()  # which cannot be appended to, whoever runs this
    found = cache.find(key("a").digest)
    assert found is not None
    assert found[1].data == b"a" * 1000


# Bounds ---------------------------------------------------------------------------------------------------------------


def names(cache: EngineCache) -> list[str]:
    return [stored.entry.name for stored in cache.entries()]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    for name in "abc":
        put_later(cache, name)
    assert names(cache) == ["c", "b", "a"]
    assert cache.find(key("a").digest) is not None
    assert names(cache) == ["a", "c", "b"]
    cache.limit = cache.size + 100
    put_later(cache, "d")
    assert names(cache) == ["d", "a", "c"]
    assert cache.size <= cache.limit
    assert cache.find(key("b").digest) is None


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torch2trt.engine")
    cache = EngineCache(tmp_path / "engines", 5000)
    put_later(cache, "a")
    put_later(cache, "b", size=5000)
    assert names(cache) == ["a"]
    assert "larger than engine_cache_bytes" in caplog.text


def test_damaged_entries_count_and_go_too(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    folder = cache.folder / put_later(cache, "a")
    (folder / "entry").write_bytes(b"")
    (folder / "uses").unlink()
    os.utime(folder, (1e9, 1e9))
    assert not cache.entries()
    cache.limit = cache.size
    put_later(cache, "b")
    assert not folder.exists()


def test_what_a_process_that_died_left_is_removed(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    put_later(cache, "a")
    old, young = cache.folder / ".new-0123", cache.folder / ".new-4567"
    for path in (old, young):
        path.mkdir()
        (path / "plan").write_bytes(b"half")
    lock = cache.folder / f"{key('z').digest}.lock"
    lock.touch()
    for path in (old, lock):
        os.utime(path, (1e9, 1e9))
    assert names(cache) == ["a"]
    put_later(cache, "b")
    assert not old.exists()
    assert not lock.exists()
    assert young.exists()


def test_pruning(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 1 << 20)
    assert cache.prune(max_bytes=0) == (0, 0)
    for name in "abcd":
        put_later(cache, name)
    assert cache.prune(max_bytes=cache.size) == (0, 0)
    count, size = cache.prune(unused_since=cache.entries()[1].used - 5)
    assert (count, size > 2000) == (2, True)
    assert names(cache) == ["d", "c"]
    assert cache.prune(max_bytes=cache.size - 1)[0] == 1
    assert names(cache) == ["d"]
    assert cache.prune(max_bytes=0)[0] == 1
    assert cache.size == 0


# Several at once ------------------------------------------------------------------------------------------------------

SCRIPT = """
import hashlib, sys, torch, torch2trt
from tests.caching import X, net
compiled = torch2trt.compile(net(), (X,), engine_cache=True, cache_dir=sys.argv[1], progress="none")
print(compiled.report["cache"], hashlib.sha256(compiled.artifact.plan).hexdigest())
"""


def test_two_processes_share_one_build(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = sorted(process.communicate(timeout=250)[0].split() for process in processes)
    assert [state for state, _ in found] == ["hit", "miss"]
    assert found[0][1] == found[1][1]


def test_who_waits_for_another_builds_nothing(cache: EngineCache, tmp_path: Path) -> None:
    builds: list[int] = []
    settings = Settings(cache_dir=tmp_path, engine_cache=True)

    def build() -> Plan:
        builds.append(1)
        time.sleep(0.5)
        return Plan(b"plan", {"a": 1})

    def work(number: int) -> None:
        how = {"name": "net", "flavour": FLAVOUR, "gpu": None, "settings": settings}
        found = cached.cached(lambda: key("same"), build, **how)  # type: ignore[arg-type]
        assert (found.plan.data, found.plan.facts) == (b"plan", {"a": 1})

    in_threads(work, 4)
    assert len(builds) == 1
    assert [stored.hits for stored in cache.entries()] == [3]
    assert not list(cache.folder.glob("?*.lock"))


def test_patience_ends(cache: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "torch2trt.engine")
    with (
        cache.building("0", patience=None, name="one") as first,
        cache.building("0", patience=0.1, name="two") as second,
    ):
        assert (first, second) == (False, True)
    assert "two: another process builds this engine" in caplog.text


def test_many_that_read_write_and_prune(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 8000)
    ends = time.monotonic() + 3

    def work(number: int) -> None:
        while time.monotonic() < ends:
            for name in "abcdef"[number:] + "abcdef"[:number]:
                found = cache.find(key(name).digest)
                assert found is None or found[1].data == name.encode() * 1000
                put(cache, name)
            cache.prune(max_bytes=4000)

    in_threads(work, 4)
    assert cache.size <= 8000
    assert not list(cache.folder.glob(".new-*"))


def test_a_lock_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path / "engines", 8000)
    put_later(cache, "a")
    monkeypatch.setattr("torch2trt.engine.cache._LOCK_SECONDS", 0.1)
    with filelock.FileLock(cache.folder / ".lock"):
        put_later(cache, "b")
    assert "could not be kept" in caplog.text
    assert names(cache) == ["a"]
