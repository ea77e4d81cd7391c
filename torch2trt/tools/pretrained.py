"""torchvision's pretrained weights, fetched beside other work and within a deadline."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

from torch2trt.runtime.files import atomic_file

_STALL = 5.0  # seconds without an answer


class Pretrained:
    """Weights on their way into torch's own cache.

    Args:
        weights: a member of one of torchvision's ``…_Weights``.
        seconds: after which fetching stops.
    """

    def __init__(self, weights: Any, *, seconds: float = 20.0) -> None:
        self.problem = ""
        """Why there are none."""
        self.weights = weights
        self._path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        self._deadline = time.monotonic() + seconds
        # Name resolution knows no time limit: a thread that nobody waits for.
        self._thread = threading.Thread(target=self._fetch, daemon=True)
        self._thread.start()

    def state_dict(self) -> dict[str, torch.Tensor] | None:
        """The weights, or None and a ``problem``."""
        self._thread.join(max(0.0, self._deadline + _STALL - time.monotonic()))
        if not self._path.is_file():
            self.problem = self.problem or "no answer in time"
            return None
        return self.weights.get_state_dict(progress=False)  # type: ignore[no-any-return]

    def _fetch(self) -> None:
        if self._path.is_file():
            return
        digest = hashlib.sha256()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (
                urllib.request.urlopen(self.weights.url, timeout=_STALL) as response,
                atomic_file(self._path) as file,
            ):
                while chunk := response.read(1 << 20):
                    if time.monotonic() > self._deadline:
                        raise TimeoutError("too slow")
                    digest.update(chunk)
                    file.write(chunk)
                # torchvision's names end in the beginning of their checksum.
                if not digest.hexdigest().startswith(self._path.stem.rpartition("-")[2]):
                    raise OSError("another checksum than its name says")
        except (OSError, http.client.HTTPException) as error:
            self.problem = str(getattr(error, "reason", error))
