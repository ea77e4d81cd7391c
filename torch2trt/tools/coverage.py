"""What converts: counts over PyTorch's samples and whole models, and the pages that say it, from committed results.

``docs/coverage/models.json`` is what ``python -m tests.model_suite`` found, ``docs/coverage/samples.json`` what became
of PyTorch's samples and of the rows in the tests' tables. ``docs/operators.md`` and ``docs/models.md`` follow from them
and from the converters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch2trt.errors import SettingError

FOLDER = Path(__file__).parents[2] / "docs"
"""The documents, in a checkout."""

_ROW = "row"
_RIGHT, _REFUSED, _WRONG, _SKIPPED = range(4)
_STATUSES = ("whole", "hybrid", "failed")
_PLACE = {"right": _RIGHT, "refused": _REFUSED, "skipped": _SKIPPED}  # a crash and a hang are wrong
_OF_A_MODEL = ("name", "flavour", "family", "status", "nodes", "layers", "engines", "error", "in_torch", "detail")


@dataclass(frozen=True)
class Samples:
    """Samples of one operator in one dtype, or one row of the tables."""

    counts: tuple[int, int, int, int]
    """Right, refused with a reason, wrong, and without a truth to compare with."""
    operators: Mapping[str, tuple[int, int, int]]
    """Right, refused and wrong ones by the operators of their graphs: exported, captured and optimised."""


@dataclass(frozen=True)
class Coverage:
    """The committed results; a model that fares worse on one flavour than on another counts as the worse."""

    models: tuple[Mapping[str, Any], ...]
    samples: Mapping[tuple[str, str], Samples]
    """By name and dtype; ``row`` stands for the dtype of a table's row."""
    core: tuple[str, ...]
    """The operators of the Core ATen opset, of the torch that the samples ran with."""

    @property
    def counts(self) -> dict[str, dict[str, Any]]:
        """The numbers, as ``torch2trt coverage --json`` prints them.

        The samples are of the operators that are named after a Core ATen one, or run as such ones alone.
        """
        found = [each.counts for (_, dtype), each in self.samples.items() if dtype != _ROW]
        right, refused, wrong = (sum(counts[place] for counts in found) for place in (_RIGHT, _REFUSED, _WRONG))
        worst: dict[str, str] = {}
        for model in self.models:
            worst[model["name"]] = max(model["status"], worst.get(model["name"], _STATUSES[0]), key=_STATUSES.index)
        outcomes = Counter(worst.values())
        samples = {"right": right, "refused": refused, "wrong": wrong}
        return {
            "core_aten": {
                "total": len(self.core),
                "converted": sum(map(self.is_converted, self.core)),
                "samples": samples,
            },
            "samples": {"total": right + refused + wrong, **samples},
            "models": {
                "total": len(worst),
                **{status: outcomes[status] for status in _STATUSES},
            },
        }

    def of_operator(self, name: str) -> tuple[int, int, int]:
        """How many samples and rows that an operator is reached by are right, refused and wrong."""
        found = [each.operators[name] for each in self.samples.values() if name in each.operators]
        return sum(each[0] for each in found), sum(each[1] for each in found), sum(each[2] for each in found)

    def is_converted(self, name: str) -> bool:
        """Whether an operator is reached, at least once rightly, and never wrongly."""
        right, _, wrong = self.of_operator(name)
        return right > 0 and wrong == 0


def read(folder: Path = FOLDER) -> Coverage:
    """The results in ``coverage/`` of a folder of documents.

    Raises:
        SettingError: they are not there.
    """
    try:
        models = json.loads((folder / "coverage" / "models.json").read_text(encoding="utf-8"))
        samples = json.loads((folder / "coverage" / "samples.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = "run it in a checkout, or pass --folder"
        raise SettingError(f"has no {error.filename}", subject="folder", hint=hint) from error
    return Coverage(
        tuple(models),
        {
            (name, dtype): Samples(tuple(counts), {key: tuple(value) for key, value in operators.items()})
            for name, dtype, counts, operators in samples["samples"]
        },
        tuple(samples["core"]),
    )


def merge(coverage: Coverage, models: Sequence[Path] = (), samples: Sequence[Path] = ()) -> Coverage:
    """Take new results in: of the models and samples in the files, and no others.

    Args:
        models: what ``python -m tests.model_suite`` wrote.
        samples: what the sweep of PyTorch's samples and ``python -m tests.rows`` wrote.
    """
    by_name = {(model["name"], model["flavour"]): model for model in coverage.models}
    for found in (each for path in models for each in _lines(path)):
        by_name[found["name"], found["flavour"]] = {key: found[key] for key in _OF_A_MODEL if found[key]}
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for path in samples:
        for found in _lines(path):
            groups.setdefault((found["op"], found["dtype"]), {})[found["sample"]] = found
    known = {**coverage.samples, **{key: _counted(found.values()) for key, found in groups.items()}}
    return Coverage(
        tuple(by_name[key] for key in sorted(by_name)),
        {key: known[key] for key in sorted(known)},
        core_operators() if groups else coverage.core,
    )


def write(coverage: Coverage, folder: Path = FOLDER) -> None:
    """Write the results and the pages that follow from them."""
    from torch2trt.tools.coverage_pages import PAGES

    (folder / "coverage").mkdir(parents=True, exist_ok=True)
    samples = [[*key, list(each.counts), each.operators] for key, each in coverage.samples.items()]
    texts = {
        "coverage/models.json": _array(coverage.models),
        "coverage/samples.json": f'{{"core": {json.dumps(coverage.core)},\n"samples": {_array(samples).rstrip()}}}\n',
        **{name: page(coverage) for name, page in PAGES.items()},
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def core_operators() -> tuple[str, ...]:
    """The overloads that torch counts among the Core ATen opset."""
    names = {
        name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if name[:6] == "aten::"
    }
    packets = (getattr(torch.ops.aten, name, None) for name in names)
    overloads = (
        getattr(packet, name)
        for packet in packets
        if isinstance(packet, torch._ops.OpOverloadPacket)
        for name in packet.overloads()
    )
    return tuple(sorted(str(overload) for overload in overloads if torch.Tag.core in overload.tags))


def _counted(found: Iterable[Mapping[str, Any]]) -> Samples:
    counts = [0, 0, 0, 0]
    operators: dict[str, list[int]] = {}
    for sample in found:
        place = _PLACE.get(sample["status"], _WRONG)
        counts[place] += 1
        for name in sample["operators"] if place != _SKIPPED else ():
            operators.setdefault(name, [0, 0, 0])[place] += 1
    return Samples(
        (counts[0], counts[1], counts[2], counts[3]),
        {name: (one, two, three) for name, (one, two, three) in sorted(operators.items())},
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise SettingError(f"cannot be read: {error}", subject=str(path)) from error


def _array(items: Iterable[Any]) -> str:
    """JSON with a line an item, so that changes can be read."""
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in items) + "\n]\n"
