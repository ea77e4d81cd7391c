"""What the documents say of the code: generated pages are current, and what they point to is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from torch2trt.passes.pipeline import PASSES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/*.md"))]
PAGES = runpy.run_path(str(ROOT / "docs" / "write_reference.py"))["PAGES"]

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)?(?:#([\w-]+))?\)")
CODE = re.compile(r"`([\w./-]+/[\w./-]*)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Headings as GitHub names them in links."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text)}


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str) -> None:
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == PAGES[name](), "run: python docs/write_reference.py"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target, anchor in LINK.findall(text):
        linked = path.parent / target if target else path
        assert linked.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{path.name} links to {target}#{anchor}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_the_text_exist(path: Path) -> None:
    """Paths of this repository, which start with one of its folders or lie in the package."""
    folders = {item.name for item in ROOT.iterdir() if item.is_dir()}
    for named in CODE.findall(path.read_text(encoding="utf-8")):
        if named.split("/")[0] in folders:
            assert (ROOT / named).exists(), f"{path.name} names {named}"
        elif (ROOT / "torch2trt" / named.split("/")[0]).is_dir():
            assert (ROOT / "torch2trt" / named).exists(), f"{path.name} names {named}"


def test_every_pass_is_described() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`[^|]+`) \|", text[text.index("## Passes") :], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == {each.__name__ for each in PASSES}
