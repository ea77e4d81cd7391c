"""The engines of a module in pieces, by the regions of Dynamo's that they stand for: built, found again, and saved."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch

from torch2trt import api
from torch2trt import backend as backends
from torch2trt.engine import digests
from torch2trt.errors import (
    ArtifactMismatchError,
    ArtifactWriteError,
    BuildCrashError,
    BuildImportError,
    BuildTimeoutError,
    EngineError,
    FlavourNotFoundError,
    FlavourTooOldError,
    FrozenModuleError,
    ProgramMissingError,
    Torch2TRTError,
    UnsupportedGPUError,
)
from torch2trt.frontend.dynamo import Region
from torch2trt.frontend.spelling import NoSpellingError, spell
from torch2trt.graph.dynamic_inputs import DynamicInputs
from torch2trt.runtime import pieces_file
from torch2trt.runtime.files import StrPath
from torch2trt.runtime.module import EngineModule
from torch2trt.runtime.pieces_file import PieceKey, PiecesFile, Refusal
from torch2trt.settings import Settings
from torch2trt.trt import flavour as flavours

log = logging.getLogger(__name__)

# An engine that does not run here; another that is built here does.
_MISFITS = (ArtifactMismatchError, EngineError, FlavourNotFoundError, FlavourTooOldError, UnsupportedGPUError)
# What says nothing of the region, and may go well another time.
_PASSING = (BuildCrashError, BuildImportError, BuildTimeoutError)


class PieceStore:
    """Engines by what they compute, so that one is built once for all regions that compute the same.

    Args:
        name: of the module.
        settings: of every engine.
        file: engines to begin with.
    """

    def __init__(self, name: str, settings: Settings, file: PiecesFile | None = None) -> None:
        self.engines: list[EngineModule] = []
        """In the order in which they were built."""
        self.refusals: list[Torch2TRTError] = []
        """Why regions are left to eager."""
        self._name = name
        self._settings = settings
        self._by_key: dict[PieceKey, EngineModule] = {}
        self._refused: dict[PieceKey, Refusal] = {}
        self._lock = threading.Lock()
        self._first: dict[torch.device, EngineModule] = {}
        self._unspelled: dict[str, None] = {}
        self._traced_by = str(torch.__version__) if file is None else file.torch_version
        # The first piece that is not in the file is said.
        self._announces = file is not None
        if file is not None:
            for key, loaded in file.engines.items():
                program = loaded.program if loaded.has_program else None
                self._put(key, EngineModule(loaded.artifact, program=program, interpret=api.interpret))
            self._refused.update(file.refusals)
            self.refusals.extend(error for error, _ in file.refusals.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> PieceStore:
        # What an engine stands for is known by content, so copies of a module share them.
        return self

    def find(self, region: Region, args: Sequence[Any], build: backends.Build) -> EngineModule:
        """The engine for a region and the sizes and weights of a call, on its device: one that is known, or a new one.

        Raises:
            Torch2TRTError: why the region is left to eager, or why it cannot be built.
        """
        keys: list[PieceKey] = []
        missing = ""
        # Where its tensors are is no part of what it computes, and a reason of its own to build nothing.
        if backends.misplaced(region, args) is None:
            try:
                keys = _keys(region, args)
                missing = self._missing(keys[0])
                for number, key in enumerate(keys):
                    if (found := self._known(key, region, args)) is not None:
                        if number:
                            region.fix_sizes()
                        return found
            except NoSpellingError as error:
                missing = str(error)
                self._unspelled[missing] = None
            except _MISFITS as error:
                missing = error.reason
        if missing and self._announces:
            self._announces = False
            sizes = ", ".join(str(list(args[position].shape)) for position in region.inputs)
            log.warning(
                "%s: what is not in the file is built now, first %s for inputs of %s: %s",
                *(self._name, region.name, sizes, missing),
            )
        try:
            engine = build()
        except backends.REFUSALS as error:
            self.refusals.append(error)
            if keys and not isinstance(error, _PASSING):
                with self._lock:
                    self._refused[_chosen(keys, region)] = Refusal(error, self._flavour())
            raise
        self._share(engine, region.device(args))
        self._put(_chosen(keys, region) if keys else None, engine)
        return engine

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: copy.copy(value) for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def save(self, path: StrPath, *, program: bool, dynamic: DynamicInputs | None = None) -> None:
        """Write all engines to one file.

        Args:
            program: with their Programs.
            dynamic: the sizes that have ranges, as whoever loads the file has to know them.

        Raises:
            ArtifactWriteError: there is nothing to write, or it could not be written whole.
            ProgramMissingError: an engine has no Program to write.
        """
        with self._lock:
            known, refused, count = dict(self._by_key), dict(self._refused), len(self.engines)
        reasons = "; ".join([*self._unspelled])
        if not known:
            raise ArtifactWriteError(
                f"has no engine that can be found again: {reasons}" if reasons else "has no engine to write",
                subject=self._name,
                hint="compile and save the submodules that torch.export captures whole",
            )
        if missing := count - len(known):
            log.warning(
                "%s: %d of %d engines are not written, and will be built where the file is loaded: %s",
                *(self._name, missing, count, reasons),
            )
        if program and not all(engine.has_program for engine in known.values()):
            raise ProgramMissingError(
                "has engines without a Program to write: they were loaded without one",
                subject=self._name,
                hint="save it without program=True, or compile the module again",
            )
        engines = {key: (engine.artifact, engine.program() if program else None) for key, engine in known.items()}
        pieces_file.save(path, self._name, self._settings, engines, refused, dynamic)

    def _put(self, key: PieceKey | None, engine: EngineModule) -> None:
        with self._lock:
            known = None if key is None else self._by_key.get(key)
            if known is None:
                self.engines.append(engine)
            else:
                self.engines[self.engines.index(known)] = engine
            if key is not None:
                self._by_key[key] = engine

    def _share(self, engine: EngineModule, device: torch.device) -> None:
        """Pieces run one after the other, so they need memory for the activations of the largest."""
        with self._lock:
            engine.share_activations(self._first.setdefault(device, engine))

    def _known(self, key: PieceKey, region: Region, args: Sequence[Any]) -> EngineModule | None:
        """The engine with a key, ready to run where a call's tensors are.

        Raises:
            Torch2TRTError: it is known that there can be none, or it does not run here.
        """
        if (refusal := self._refused.get(key)) is not None:
            if self._flavour() in (refusal.flavour, ""):
                raise copy.copy(refusal.error)
            # Another TensorRT may do what that one could not.
            log.info("%s: %s is tried again, which %s refused", self._name, region.name, refusal.flavour)
            with self._lock:
                self._refused.pop(key, None)
                self.refusals[:] = [error for error in self.refusals if error is not refusal.error]
        engine = self._by_key.get(key)
        if engine is None:
            return None
        device = region.device(args)
        if device.type == "cuda":
            try:
                engine = engine.to(device)
            except FrozenModuleError:
                # It is on another GPU, for a region that computes the same there.
                engine = engine.on(device)
            self._share(engine, device)
            engine.open()
        elif not engine.has_program:
            # Without a GPU the reference interpreter takes its place, which reads a network and no plan.
            with torch.inference_mode(False), torch.no_grad():
                program = api.optimize(backends.capture(region, args), self._settings)
            engine = EngineModule(engine.artifact, program=program, interpret=api.interpret)
            self._put(key, engine)
        return engine

    def _flavour(self) -> str:
        """The TensorRT that builds here; empty where there is none."""
        try:
            flavour = flavours.load(self._settings.flavour)
        except Torch2TRTError:
            return ""
        return f"{flavour.name} {flavour.version_text}"

    def _missing(self, key: PieceKey) -> str:
        """What is different from what is known, where something is."""
        if key in self._by_key or key in self._refused:
            return ""
        if any(key.graph == each.graph for each in (*self._by_key, *self._refused)):
            return "its weights are others"
        here = str(torch.__version__)
        other = "" if here == self._traced_by else f" (saved with torch {self._traced_by}, this is {here})"
        return f"there is none of these calls and sizes{other}"


def _keys(region: Region, args: Sequence[Any]) -> list[PieceKey]:
    """The key of a region and, where sizes have ranges, the one that it has where these turn out to be impossible."""
    regions = [region]
    if region.has_ranges:
        regions.append(region.fixed())
    spellings = [spell(each, args) for each in regions]
    held = digests.of_tensors({str(number): tensor for number, tensor in enumerate(spellings[0].tensors)})
    weights = digests.of_text(held.values())
    return [PieceKey(digests.of_text(each.lines)[:32], weights[:32]) for each in spellings]


def _chosen(keys: Sequence[PieceKey], region: Region) -> PieceKey:
    """The key of what a region has become."""
    return keys[0] if region.has_ranges else keys[-1]
