"""The child process of :mod:`torch2trt.engine.child`: ``python -m torch2trt.tools.build_worker FOLDER``."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

import torch

from torch2trt.converters.lower import lower
from torch2trt.converters.own_operators import register
from torch2trt.engine.builder import build
from torch2trt.engine.child import (
    CALL_FILE,
    ERROR_FILE,
    LOG_FILE,
    MODEL_FILE,
    PLAN_FILE,
    UNWRITTEN,
    Job,
    OwnOperators,
    error_to_json,
)
from torch2trt.errors import ArtifactWriteError, Torch2TRTError
from torch2trt.graph.serialize import load_program
from torch2trt.graph.signature import Signature
from torch2trt.trt import flavour as flavours
from torch2trt.trt.core import NetworkCore
from torch2trt.trt.flavour import Flavour
from torch2trt.trt.parser import ParsedNetwork

ORPHANED = 3
"""The exit code of a worker whose parent is gone."""

log = logging.getLogger(__name__)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return json.dumps({"name": record.name, "level": record.levelno, "message": message})


def main(folder: Path) -> int:
    """Build the job in a folder, and leave the plan or the error there.

    Returns:
        The exit code, 0 where there is a plan or an error of this package, :data:`UNWRITTEN` on a full disk.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    job = Job.read(folder)
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(_JsonLines())
    logging.getLogger("torch2trt").addHandler(handler)
    logging.getLogger("torch2trt").setLevel(job.log_level)
    try:
        if job.device is not None:
            torch.cuda.set_device(job.device)
        network, signature = _network(folder, flavours.load(job.flavour), job.own)
        plan = build(network, signature, job.settings, name=job.name)
        try:
            (folder / PLAN_FILE).write_bytes(plan)
        except OSError as error:
            raise ArtifactWriteError("could not be written", subject=PLAN_FILE) from error
    except ArtifactWriteError:
        # Where the plan does not fit, the reason may not either.
        return UNWRITTEN
    except Torch2TRTError as error:
        (folder / ERROR_FILE).write_text(json.dumps(error_to_json(error)), encoding="utf-8")
    except Exception:
        log.exception("the build failed")
        return 1
    return 0


def _network(folder: Path, flavour: Flavour, own: OwnOperators) -> tuple[NetworkCore, Signature]:
    if not (folder / MODEL_FILE).exists():
        register(own)
        program = load_program(folder, namespaces=own.namespaces)
        return lower(program, flavour), program.signature
    call = json.loads((folder / CALL_FILE).read_text(encoding="utf-8"))
    path = None if call["path"] is None else Path(call["path"])
    network = ParsedNetwork(flavour, (folder / MODEL_FILE).read_bytes(), path)
    return network, Signature.from_json(call["signature"])


def end_with_parent() -> None:
    """Wait for the parent's end, and be gone with it."""
    # Nothing is ever written to stdin: it ends when the parent does, however that happens. TensorRT may be hanging,
    # so nothing is asked to finish first.
    os.read(0, 1)
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
