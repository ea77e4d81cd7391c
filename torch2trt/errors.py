"""Every error the package raises on purpose: a number, the op or argument, the reason, and what to do.

The hundreds group the numbers: 1 the call, 2 conversion, 3 environment, 4 build, 5 running, 6 artifacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "ArtifactError",
    "ArtifactMismatchError",
    "ArtifactWriteError",
    "BuildCrashError",
    "BuildError",
    "BuildImportError",
    "BuildTimeoutError",
    "CaptureError",
    "ContractError",
    "DataDependentError",
    "DynamicShapeError",
    "EngineError",
    "ExampleInputError",
    "FlavourNotFoundError",
    "FlavourTooOldError",
    "FrozenModuleError",
    "InputDeviceError",
    "InputDtypeError",
    "InputShapeError",
    "InputStructureError",
    "InterpreterError",
    "MissingPackageError",
    "ModelNameError",
    "NetworkError",
    "NoCandidateError",
    "NoFailureError",
    "NoGPUError",
    "ProgramMissingError",
    "RandomOpError",
    "SettingError",
    "TooSmallError",
    "Torch2TRTError",
    "TrainingModeError",
    "UnsupportedGPUError",
    "UnsupportedNode",
    "UnsupportedOpsError",
    "WeightError",
]


class Torch2TRTError(Exception):
    """Base class.

    Args:
        reason: what is wrong, one sentence without a trailing period.
        subject: the operator, argument or file that it is about.
        source: the user's source line, as ``file:line in function``.
        hint: what to do about it.
    """

    code: ClassVar[str] = "T2T000"

    def __init__(self, reason: str, *, subject: str = "", source: str = "", hint: str = "") -> None:
        self.reason = reason
        self.subject = subject
        self.source = source
        self.hint = hint
        super().__init__(reason)

    def __str__(self) -> str:
        text = f"[{self.code}] " + (f"{self.subject}: " if self.subject else "") + self.reason
        if self.source:
            text += f"\n  at {self.source}"
        if self.hint:
            text += f"\n  what to do: {self.hint}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.reason, self.subject, self.source, self.hint)


def _rebuild(cls: type[Torch2TRTError], reason: str, subject: str, source: str, hint: str) -> Torch2TRTError:
    return cls(reason, subject=subject, source=source, hint=hint)


# 1xx: the call ------------------------------------------------------------------------------------------------------


class SettingError(Torch2TRTError, ValueError):
    """An unknown setting, or a value that a setting does not take."""

    code = "T2T101"


class TrainingModeError(Torch2TRTError):
    """The module, or a submodule that behaves differently there, is in training mode."""

    code = "T2T102"


class WeightError(Torch2TRTError):
    """A weight that no engine can hold: float64, complex, NaN."""

    code = "T2T103"


class CaptureError(Torch2TRTError):
    """``torch.export`` could not capture the module: control flow on data, an unsupported construct."""

    code = "T2T104"


class DynamicShapeError(Torch2TRTError):
    """A dynamic dimension that the module does not honour, or a profile or an example that is not within it."""

    code = "T2T105"


class RandomOpError(Torch2TRTError):
    """An operator that draws random numbers when the module runs."""

    code = "T2T106"


class ExampleInputError(Torch2TRTError):
    """Example inputs that cannot become engine inputs: float64, several devices, none at all."""

    code = "T2T107"


class ModelNameError(Torch2TRTError):
    """A model name on the command line that resolves to nothing."""

    code = "T2T108"


class NoFailureError(Torch2TRTError):
    """What was to be reduced to the graph that fails does not fail."""

    code = "T2T109"


class DataDependentError(CaptureError):
    """Control flow, or a size, that depends on the values of tensors, so that no one trace holds for all inputs."""

    code = "T2T110"


class NoCandidateError(Torch2TRTError):
    """Of all settings that were tried none runs, is right, and is within the bound."""

    code = "T2T111"


class TooSmallError(Torch2TRTError):
    """A piece of a module for which an engine would not pay."""

    code = "T2T112"


# 2xx: conversion ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnsupportedNode:
    """One graph node that cannot be converted."""

    node: str
    op: str
    reason: str
    source: str = ""
    module: str = ""


class UnsupportedOpsError(Torch2TRTError):
    """Lists every node that no converter takes, each with its reason and source line."""

    code = "T2T201"

    def __init__(self, nodes: Sequence[UnsupportedNode], *, hint: str = "") -> None:
        self.nodes = tuple(nodes)
        ops = sorted({node.op for node in self.nodes})
        lines = [f"{len(self.nodes)} node(s) cannot be converted, of {len(ops)} operator(s):"]
        for node in self.nodes:
            lines.append(f"  {node.node}: {node.op}: {node.reason}")
            if node.module:
                lines.append(f"    in module {node.module}")
            if node.source:
                lines.append(f"    at {node.source}")
        super().__init__("\n".join(lines), hint=hint)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_unsupported, (type(self), self.nodes, self.hint)


def _rebuild_unsupported(
    cls: type[UnsupportedOpsError], nodes: Sequence[UnsupportedNode], hint: str
) -> UnsupportedOpsError:
    return cls(nodes, hint=hint)


class NetworkError(Torch2TRTError):
    """TensorRT refused a layer, or a layer's result is not what the graph says it must be."""

    code = "T2T202"


class ContractError(Torch2TRTError):
    """A stage of the pipeline broke what must hold after it: a defect of this package, please report it."""

    code = "T2T203"


class InterpreterError(Torch2TRTError):
    """The reference interpreter met a layer that it cannot execute."""

    code = "T2T204"


# 3xx: environment ---------------------------------------------------------------------------------------------------


class FlavourNotFoundError(Torch2TRTError):
    """No usable TensorRT package is installed."""

    code = "T2T301"


class FlavourTooOldError(Torch2TRTError):
    """The installed TensorRT is older than the oldest one supported."""

    code = "T2T302"


class UnsupportedGPUError(Torch2TRTError):
    """The GPU is one that the flavour does not serve."""

    code = "T2T303"


class NoGPUError(Torch2TRTError):
    """An engine was to run, or enterprise TensorRT to build, on a machine without a GPU."""

    code = "T2T304"


class MissingPackageError(Torch2TRTError):
    """An optional package is needed for what was asked."""

    code = "T2T305"


# 4xx: build ---------------------------------------------------------------------------------------------------------


class BuildError(Torch2TRTError):
    """TensorRT returned no engine; the reason is what it logged."""

    code = "T2T401"


class BuildTimeoutError(BuildError):
    """The build did not end within the time limit."""

    code = "T2T402"


class BuildCrashError(BuildError):
    """The build process died."""

    code = "T2T403"


class BuildImportError(BuildError):
    """A build process does not know an operator, whose module it cannot import."""

    code = "T2T404"


# 5xx: running -------------------------------------------------------------------------------------------------------


class InputStructureError(Torch2TRTError, TypeError):
    """A call with another number or structure of inputs than the engine was built for."""

    code = "T2T501"


class InputDtypeError(Torch2TRTError, TypeError):
    """An input of another dtype."""

    code = "T2T502"


class InputShapeError(Torch2TRTError, ValueError):
    """An input whose shape no optimization profile holds."""

    code = "T2T503"


class InputDeviceError(Torch2TRTError, ValueError):
    """An input on another device than the engine's."""

    code = "T2T504"


class FrozenModuleError(Torch2TRTError, TypeError):
    """Something that would change an engine after it was built: ``.half()``, ``.to(other_device)``."""

    code = "T2T505"


class EngineError(Torch2TRTError, RuntimeError):
    """TensorRT failed to deserialise or to run an engine."""

    code = "T2T506"


# 6xx: artifacts -----------------------------------------------------------------------------------------------------


class ArtifactError(Torch2TRTError):
    """A file that is no artifact of this package, is truncated or corrupt, or needs a module beside it, or none."""

    code = "T2T601"


class ArtifactMismatchError(Torch2TRTError):
    """An artifact built by another TensorRT version or for another GPU."""

    code = "T2T602"


class ArtifactWriteError(Torch2TRTError, OSError):
    """A file could not be written whole; nothing was left behind."""

    code = "T2T603"


class ProgramMissingError(Torch2TRTError):
    """The artifact does not carry the Program that this needs."""

    code = "T2T604"
