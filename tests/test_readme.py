"""The documents' examples run: every block of sh or python in them that is not marked as something else."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import torch2trt.backend  # noqa: F401  # a source tree has no entry point by which Dynamo would find it
from torch2trt.tolerance import RELATIVE
from torch2trt.tools import cli
from torch2trt.trt import flavour as flavours

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]

GPU, SET_UP = "needs a GPU", "set-up"
BLOCK = re.compile(r"(?ms)(?:^<!-- (?P<mark>[^\n]+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$")


@dataclass(frozen=True)
class Block:
    """One fenced block, and what the comment on the line above it says of it."""

    language: str
    text: str
    mark: str
    line: int


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], found["mark"] or "", text.count("\n", 0, found.start("text")) + 1)
        for found in BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[str]:
    """The lines of a block, those that end in a backslash joined with the next."""
    return [line for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def run(path: Path, folder: Path, marks: set[str]) -> int:
    """Run a document's blocks in a folder, from top to bottom as a reader would; returns how many there were."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for block in blocks_of(path):
        if block.mark not in marks or block.language not in ("python", "sh"):
            continue
        count += 1
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(path), "exec"), names)
            continue
        for command in commands_of(block):
            words = shlex.split(command, comments=True)
            # The script of this name calls the same function, after seconds of importing torch.
            if words[0] == "torch2trt":
                assert cli.main(words[1:]) == 0, command
            else:
                subprocess.run(command, shell=True, check=True, cwd=folder)
    return count


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    count = run(path, tmp_path, {""})
    assert count or path != README


@pytest.mark.gpu
@pytest.mark.timeout(1200)  # TensorRT times kernels in every build
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run_on_a_gpu(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(path, tmp_path, {"", GPU})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_marks_are_known(path: Path) -> None:
    for block in blocks_of(path):
        assert block.mark in ("", GPU, SET_UP), f"{path.name}:{block.line}"
        assert block.language in ("python", "sh", "bat", "text"), f"{path.name}:{block.line}"


def test_set_up_names_what_is_there() -> None:
    """Commands that CI does not repeat: their make targets and extras exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    targets = re.findall(r"\bmake (\w+)(?=`|\s+#)", text)
    extras = [extra for group in re.findall(r"\.\[([\w,]+)\]", text) for extra in group.split(",")]
    assert {"demo", "test"} <= set(targets)
    assert {"rtx", "cu12", "cu13"} <= set(extras)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"the extra {extra}"


def test_tables_say_what_the_code_does() -> None:
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.e+-]+) \|$", text, re.MULTILINE)
    assert {name: float(value) for name, value in rows} == RELATIVE
    for name, oldest in flavours._OLDEST.items():
        assert f"| `{name}` {'.'.join(map(str, oldest))} or newer" in text
