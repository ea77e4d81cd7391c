"""What is installed, which TensorRT is used here and why, and what to install: ``torch2trt doctor``."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch2trt import __version__
from torch2trt.engine.timing_cache import cache_folder
from torch2trt.errors import Torch2TRTError
from torch2trt.runtime.artifact import gpu_here
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

_OPTIONAL = {
    "torchvision": "models named torchvision:…, and the demo",
    "scikit-learn": "the demo",
    "timm": "models named timm:…",
    "transformers": "models named transformers:…",
    "onnx": "the road through ONNX",
    "onnx-graphsurgeon": "the road through ONNX",
    "polygraphy": "the road through ONNX",
}


@dataclass(frozen=True)
class FlavourFinding:
    """One flavour on this machine."""

    name: str
    version: str | None
    problem: str
    """Why it cannot be used here; empty when it can."""
    hint: str


@dataclass(frozen=True)
class Findings:
    """What there is on this machine."""

    torch2trt: str
    python: str
    platform: str
    torch: str
    cuda: str | None
    """The CUDA version that torch was built with."""
    driver: str | None
    """The NVIDIA driver's version."""
    gpu: str | None
    """The current CUDA device and its compute capability."""
    flavours: tuple[FlavourFinding, ...]
    packages: dict[str, str | None]
    """Versions of the optional packages."""
    cache: str
    """The cache folder."""
    chosen: str | None
    """The flavour that is used where none is asked for; None: none can be."""
    reason: str
    """Why it was chosen, or why none was."""
    todo: tuple[str, ...]
    """What would help."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    def __rich__(self) -> RenderableType:
        """Tables, and below them the choice and what to do."""
        machine = Table(title="machine", show_header=False)
        for title in ("torch2trt", "python", "platform", "torch", "cuda", "driver", "gpu", "cache"):
            machine.add_row(title, getattr(self, title) or "none")
        found = Table("flavour", "version", "usable here", "install", title="TensorRT")
        for item in self.flavours:
            found.add_row(item.name, item.version or "", item.problem or "yes", item.hint)
        optional = Table("package", "version", "for", title="optional")
        for name, version in self.packages.items():
            optional.add_row(name, version or "not installed", _OPTIONAL[name])
        verdict = f"{self.chosen}: {self.reason}" if self.chosen else f"nothing usable: {self.reason}"
        return Group(machine, found, optional, Text(verdict), *(Text(f"what to do: {text}") for text in self.todo))


def examine() -> Findings:
    """Look at this machine; the flavour chosen is imported, so that a broken installation shows."""
    driver = _driver()
    chosen, reason, hints = _choose()
    if driver is not None and not torch.cuda.is_available():
        what = "was built without CUDA" if torch.version.cuda is None else f"(CUDA {torch.version.cuda}) cannot use it"
        hints.append(f"there is an NVIDIA driver {driver}, but torch {what}: see https://pytorch.org/get-started")
    return Findings(
        torch2trt=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        driver=driver,
        gpu=gpu_here(),
        flavours=tuple(_flavour(name) for name in flavours.NAMES),
        packages={name: _version(name) for name in _OPTIONAL},
        cache=str(cache_folder(Settings())),
        chosen=chosen,
        reason=reason,
        todo=tuple(hints),
    )


def _choose() -> tuple[str | None, str, list[str]]:
    try:
        name, reason = flavours.choose()
        flavours.load(name)
    except Torch2TRTError as error:
        return None, f"{error.subject}: {error.reason}".removeprefix(": "), [error.hint] if error.hint else []
    except (ImportError, OSError) as error:
        # A wheel without its libraries, or libraries that this system cannot load.
        return None, f"{name} cannot be imported: {error}", [f"pip install --force-reinstall {name.replace('_', '-')}"]
    return name, reason, []


def _flavour(name: str) -> FlavourFinding:
    found = flavours.find(name)
    version = None if found.version is None else ".".join(map(str, found.version))
    return FlavourFinding(name, version, found.problem, found.hint)


def _driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (subprocess.SubprocessError, OSError):
        return None  # the program without a working driver
    return lines[0] if lines else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
