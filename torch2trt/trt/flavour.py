"""The TensorRT packages this project can use, what each can do, and which one to take here.

This is the only file that imports a TensorRT package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from torch2trt.errors import FlavourNotFoundError, FlavourTooOldError, NoGPUError, UnsupportedGPUError

Version = tuple[int, ...]

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt_rtx"
NAMES = (TENSORRT, TENSORRT_RTX)

_OLDEST: dict[str, Version] = {TENSORRT: (10, 6), TENSORRT_RTX: (1, 2)}
_INSTALL = {
    TENSORRT: "pip install 'torch2trt[cu12]' (CUDA 12) or 'torch2trt[cu13]' (CUDA 13)",
    TENSORRT_RTX: "pip install 'torch2trt[rtx]'",
}
# Compute capabilities that TensorRT-RTX builds for and runs on; the data-centre chips 9.0 and 10.0 are not among them.
RTX_COMPUTE_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))

# What a flavour can do, from which version on (first version, first version without it); a flavour not named cannot.
_CAPABILITIES: dict[str, dict[str, tuple[Version, Version | None]]] = {
    "attention": {TENSORRT: ((10, 15), None), TENSORRT_RTX: ((1, 3), None)},
    "attention_v2": {TENSORRT: ((10, 16), None), TENSORRT_RTX: ((1, 5), None)},
    "normalization_v2": {TENSORRT: ((10, 15), None), TENSORRT_RTX: ((1, 3), None)},
    # Later ones, and TensorRT-RTX with them, are reported to sample wrongly (NVIDIA/TensorRT issue 4813).
    "grid_sample": {TENSORRT: ((10, 0), (10, 13))},
    "cumulative": {TENSORRT: ((10, 8), None), TENSORRT_RTX: ((1, 2), None)},
    "squeeze": {TENSORRT: ((10, 8), None), TENSORRT_RTX: ((1, 2), None)},
    "odd_groups_of_halves": {TENSORRT_RTX: ((1, 2), None)},
    # Without it: no engine ("formats.cpp: CHECK(def_tactic_desc)") where as many slices are gathered as there are, or
    # more, and they go to a pointwise layer beside a transposition with a reshape, and elsewhere.
    "repeating_gathers_of_halves": {TENSORRT: ((10, 0), None)},
    # 10.6 rounds int32 and int64 in sums of products that are more than a few digits.
    "exact_integers": {TENSORRT_RTX: ((1, 2), None)},
    "int8_numbers": {TENSORRT_RTX: ((1, 2), None)},
    "resize_of_bfloat16": {TENSORRT_RTX: ((1, 2), None)},
    "build_without_gpu": {TENSORRT_RTX: ((1, 0), None)},
    # It times no kernels: ResNet-50 takes it half a second, and tensorrt half a minute.
    "quick_builds": {TENSORRT_RTX: ((1, 0), None)},
    "timing_cache": {TENSORRT: ((10, 0), None)},
    "refit": {TENSORRT: ((10, 0), None)},
    "plugins": {TENSORRT: ((10, 0), None)},
    "inspector": {TENSORRT: ((10, 0), None)},
    "non_zero": {TENSORRT: ((10, 0), None)},
    "nms": {TENSORRT: ((10, 0), None)},
    "stream_writer": {TENSORRT: ((10, 15), None), TENSORRT_RTX: ((1, 2), None)},
    "runtime_config": {TENSORRT: ((10, 8), None), TENSORRT_RTX: ((1, 0), None)},
    "explicit_precision_of_normalization": {TENSORRT: ((10, 0), (11,))},
}


@dataclass(frozen=True)
class Flavour:
    """One imported TensorRT package."""

    name: str
    version: Version
    trt: Any
    """The package itself; typed as Any because its stubs differ between versions."""

    def has(self, capability: str) -> bool:
        """Whether this flavour, in this version, can do what the capability table names."""
        span = _CAPABILITIES[capability].get(self.name)
        if span is None:
            return False
        first, gone = span
        return self.version >= first and (gone is None or self.version < gone)

    @property
    def version_text(self) -> str:
        """The version as text, ``10.6.0``."""
        return ".".join(str(part) for part in self.version)


def who_has(capability: str) -> str:
    """The flavours and versions that can do what the capability table names, in words."""
    found = []
    for name, (first, gone) in _CAPABILITIES[capability].items():
        until = f", before {'.'.join(map(str, gone))}" if gone else ""
        found.append(f"{name} from {'.'.join(map(str, first))}{until}")
    return ", ".join(found)


@dataclass(frozen=True)
class Finding:
    """What looking for one flavour found."""

    name: str
    version: Version | None
    problem: str
    """Why it cannot be used on this machine; empty when it can."""
    hint: str


def gpu() -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the current CUDA device, or None on a machine without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(), torch.cuda.get_device_capability()


def find(name: str) -> Finding:
    """Look for one flavour without loading its libraries."""
    version = _installed_version(name)
    if version is None:
        return Finding(name, None, "not installed", _INSTALL[name])
    if version < _OLDEST[name]:
        oldest = ".".join(map(str, _OLDEST[name]))
        return Finding(name, version, f"too old: {oldest} is the oldest supported", _INSTALL[name])
    device = gpu()
    if name == TENSORRT and device is None:
        return Finding(name, version, "needs an NVIDIA GPU and its driver, to build as well as to run", "")
    if name == TENSORRT_RTX and device is not None and device[1] not in RTX_COMPUTE_CAPABILITIES:
        major, minor = device[1]
        text = f"does not serve {device[0]} (compute capability {major}.{minor}); engines can be built, not run"
        return Finding(name, version, text, _INSTALL[TENSORRT])
    return Finding(name, version, "", "")


def choose(name: str | None = None) -> tuple[str, str]:
    """The flavour to use and the reason, without loading it.

    Args:
        name: the flavour asked for, or None for what fits the machine.

    Raises:
        FlavourNotFoundError, FlavourTooOldError: not installed, or too old.
        NoGPUError: enterprise TensorRT on a machine without a GPU.
        UnsupportedGPUError: no installed flavour serves the GPU.
    """
    if name is not None:
        finding = find(name)
        _raise_unless_buildable(finding)
        return name, "asked for"
    findings = {candidate: find(candidate) for candidate in NAMES}
    device = gpu()
    if device is None:
        _raise_unless_buildable(findings[TENSORRT_RTX])
        return TENSORRT_RTX, "no GPU here, and TensorRT-RTX builds without one"
    for candidate in NAMES:
        if not findings[candidate].problem:
            return candidate, f"serves {device[0]}"
    if all(finding.version is None for finding in findings.values()):
        raise FlavourNotFoundError("no TensorRT package is installed", hint=f"{_INSTALL[TENSORRT]}")
    problems = "; ".join(f"{finding.name}: {finding.problem}" for finding in findings.values())
    raise UnsupportedGPUError(problems, subject=device[0], hint=_INSTALL[TENSORRT])


@functools.cache
def load(name: str | None = None) -> Flavour:
    """Import the flavour that :func:`choose` names."""
    name, _ = choose(name)
    module = importlib.import_module(name)
    return Flavour(name, _parse(module.__version__), module)


def _raise_unless_buildable(finding: Finding) -> None:
    if finding.version is None:
        raise FlavourNotFoundError("not installed", subject=finding.name, hint=finding.hint)
    if finding.version < _OLDEST[finding.name]:
        raise FlavourTooOldError(finding.problem, subject=finding.name, hint=finding.hint)
    if finding.name == TENSORRT and gpu() is None:
        hint = f"build with flavour='tensorrt_rtx' ({_INSTALL[TENSORRT_RTX]}), or on a machine with a GPU"
        raise NoGPUError(finding.problem, subject=finding.name, hint=hint)


def _installed_version(name: str) -> Version | None:
    if importlib.util.find_spec(name) is None:
        return None
    # The wheels are named after the CUDA version, and a hand-made install has only its bindings.
    for wheel in (name, *(f"{name}_{cuda}{part}" for cuda in ("cu12", "cu13") for part in ("", "_bindings"))):
        try:
            return _parse(importlib.metadata.version(wheel))
        except importlib.metadata.PackageNotFoundError:
            continue
    return _parse(importlib.import_module(name).__version__)


def _parse(text: str) -> Version:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
