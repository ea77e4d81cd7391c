"""Pages that need no other file."""

from __future__ import annotations

import html
from pathlib import Path

from torch2trt.runtime.files import atomic_file


def document(title: str, body: str) -> str:
    """A page in HTML.

    Args:
        title: plain text.
        body: HTML.
    """
    head = f"<head><meta charset='utf-8'/><title>{html.escape(title)}</title></head>"
    return f"<!DOCTYPE html>\n<html lang='en'>{head}\n<body>\n{body}\n</body></html>\n"


def write(path: Path, text: str) -> None:
    """Write a file whole.

    Raises:
        ArtifactWriteError: it could not be; nothing is left behind.
    """
    with atomic_file(path) as file:
        file.write(text.encode())
