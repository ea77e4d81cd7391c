"""Why an engine is not in the cache: the entry that comes nearest, and what differs from it."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch2trt.engine.cache import EngineCache, Stored
from torch2trt.engine.key import Key, Section

# How much it says that two keys share a section: another model may have the same settings.
_WEIGHTS = {"graph": 100, "weights": 50, "weights graph": 10, "inputs": 10}
_SAME_NAME = 20
_SHOWN = 12  # lines, and as many more are only counted
_COMPARED = 4000  # lines; comparing takes the square of them
# What a call is made of has other numbers after every call that comes or goes.
_PLACES = re.compile(r"(?:%|\b[wsx])\d+")
_ARGUMENTS = re.compile(r"\((?=\w+=)|, (?=\w+=)|\) -> ")


@dataclass(frozen=True)
class Difference:
    """A section in which two keys differ."""

    section: str
    lines: tuple[str, ...]
    """Of the other key with ``-`` before them, of this one with ``+``; weights by name."""
    more: int = 0
    """How many lines there are beside these."""

    def __str__(self) -> str:
        rest = f" and {self.more} more" if self.more else ""
        return f"{self.section}: {'; '.join(self.lines)}{rest}"


def nearest(cache: EngineCache, key: Key, name: str) -> Stored | None:
    """The entry that has most in common with a key, None where none is of the same model.

    Args:
        name: what the model is called.
    """
    digests = {section: found.digest for section, found in key.sections.items()}

    def likeness(stored: Stored) -> int:
        shared = digests.items() & stored.entry.sections.items()
        return sum(_WEIGHTS.get(section, 1) for section, _ in shared) + _SAME_NAME * (stored.entry.name == name)

    def same_model(stored: Stored) -> bool:
        shared = digests.items() & stored.entry.sections.items()
        return stored.entry.name == name or any(section in ("graph", "weights") for section, _ in shared)

    # Of equals the one that was used last, which comes first.
    return max(filter(same_model, cache.entries()), key=likeness, default=None)


def differences(cache: EngineCache, stored: Stored, key: Key) -> list[Difference]:
    """What differs from an entry, section by section."""
    changed = [name for name, section in key.sections.items() if stored.entry.sections.get(name) != section.digest]
    other = cache.key_of(stored) if changed else None
    empty = Section(())
    return [
        Difference(name, ("its details are damaged",))
        if other is None
        else _difference(name, other.sections.get(name, empty), key.sections[name])
        for name in changed
    ]


def in_a_line(stored: Stored, found: Sequence[Difference]) -> str:
    """The nearest entry and what differs, for a log."""
    age = spell_age(time.time() - stored.entry.built)
    first = "; ".join(f"{each.section} ({_short(each)})" for each in found)
    return f"the nearest entry is {stored.entry.name!r}, built {age} ago, with another {first}"


def spell_age(seconds: float) -> str:
    """A time in its largest unit, as ``3 h``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _short(difference: Difference) -> str:
    text = difference.lines[0] if difference.lines else ""
    text = text if len(text) <= 100 else f"{text[:99]}…"
    count = len(difference.lines) + difference.more - 1
    return f"{text}, and {count} more" if count else text


def _difference(name: str, old: Section, new: Section) -> Difference:
    if name == "weights":
        lines = list(_weights(old, new))
    elif (before := _table(old)) is not None and (after := _table(new)) is not None:
        lines = list(_values(before, after))
    else:
        lines = list(_lines(old, new))
    lines = lines or ["the same in another order"]
    return Difference(name, tuple(lines[:_SHOWN]), max(0, len(lines) - _SHOWN))


def _table(section: Section) -> dict[str, str] | None:
    """Lines that are values with names, None where they are something else."""
    pairs = [line.partition(": ") for line in section.lines]
    found = {name: value for name, colon, value in pairs if colon and " " not in name}
    return found if len(found) == len(pairs) else None


def _values(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in {**old, **new}:
        before, after = old.get(name, "none"), new.get(name, "none")
        if before != after:
            yield f"{name}: {before} → {after}"


def _weights(old: Section, new: Section) -> Iterator[str]:
    """The names of weights with other content, rather than digests, which tell nobody anything."""
    if len(old.lines) != len(new.lines):
        yield f"{len(old.lines)} → {len(new.lines)} tensors"
    for index, (before, after) in enumerate(zip(old.lines, new.lines, strict=False)):
        if before != after:
            name = new.names[index] if index < len(new.names) else f"number {index}"
            form, other = (line.rpartition(" ")[0].partition(": ")[2] for line in (after, before))
            yield f"{name} {form}" if form == other else f"{name} {other} → {form}"


def _lines(old: Section, new: Section) -> Iterator[str]:
    """Lines that came or went; where only places changed, the lines with other places."""
    first, last = _common(old.lines, new.lines)
    before, after = old.lines[first : len(old.lines) - last], new.lines[first : len(new.lines) - last]
    if len(before) > _COMPARED or len(after) > _COMPARED:
        yield f"{len(before)} lines → {len(after)} lines"
        return
    plain = [_PLACES.sub("%", line) for line in before], [_PLACES.sub("%", line) for line in after]
    if plain[0] == plain[1]:
        yield from _pairs(before, after)
        return
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, *plain, autojunk=False).get_opcodes():
        if kind == "replace" and i2 - i1 == j2 - j1:
            yield from _pairs(before[i1:i2], after[j1:j2])
        elif kind != "equal":
            yield from (f"- {line}" for line in before[i1:i2])
            yield from (f"+ {line}" for line in after[j1:j2])


def _pairs(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Lines that became others: what changed in them, where they are calls of the same operator."""
    for before, after in zip(old, new, strict=True):
        if before == after:
            continue
        (head, *arguments), (other, *others) = (_ARGUMENTS.split(line) for line in (before, after))
        if len(arguments) == len(others) and _PLACES.sub("%", head) == _PLACES.sub("%", other):
            changes = [f"{one} → {two}" for one, two in zip(arguments, others, strict=True) if one != two]
            yield f"{other}: {', '.join(changes) or head}"
        else:
            yield f"- {before}"
            yield f"+ {after}"


def _common(old: Sequence[str], new: Sequence[str]) -> tuple[int, int]:
    """How many lines are the same at the beginning, and how many of the others at the end."""
    most = min(len(old), len(new))
    first = next((index for index in range(most) if old[index] != new[index]), most)
    most -= first
    last = next((index for index in range(most) if old[-1 - index] != new[-1 - index]), most)
    return first, last
