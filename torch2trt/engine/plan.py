"""From TensorRT's builder to the bytes of a plan, by the way that needs less memory."""

from __future__ import annotations

import functools
import tempfile
from typing import IO, Any

from torch2trt.errors import ArtifactWriteError
from torch2trt.trt.flavour import Flavour

# Bytes. TensorRT builds with one copy of the weights, and returns another or writes it in parts of 64 MiB, of which
# there are up to three at a time.
_LARGE = 128 << 20


def serialize(builder: Any, definition: Any, config: Any, flavour: Flavour, *, weight_bytes: int) -> bytes | None:
    """Build a network's plan, through a temporary file where the weights are large and TensorRT can.

    Args:
        builder, definition, config: the ``IBuilder``, its ``INetworkDefinition`` and ``IBuilderConfig``.
        weight_bytes: about how large the plan will be; 0 where that is not known.

    Returns:
        The plan, or None where TensorRT built none.

    Raises:
        ArtifactWriteError: the file could not be written.
    """
    if weight_bytes >= _LARGE and flavour.has("stream_writer"):
        return _through_file(builder, definition, config, flavour)
    memory = builder.build_serialized_network(definition, config)
    # By now TensorRT has given back what it needed to build: the copy is not the peak.
    return None if memory is None else bytes(memory)


def _through_file(builder: Any, definition: Any, config: Any, flavour: Flavour) -> bytes | None:
    try:
        with tempfile.TemporaryFile(prefix="torch2trt-") as file:
            writer = _writer_class(flavour)(file)
            built = builder.build_serialized_network_to_stream(definition, config, writer)
            if writer.error is not None:
                raise writer.error
            file.seek(0)
            return file.read() if built else None
    except OSError as error:
        raise ArtifactWriteError(
            f"could not be written: {error}",
            subject="the plan's temporary file",
            hint="look at the free space of the folder for temporary files, or name another in TMPDIR",
        ) from error


@functools.cache
def _writer_class(flavour: Flavour) -> Any:
    class PlanWriter(flavour.trt.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self, file: IO[bytes]) -> None:
            flavour.trt.IStreamWriter.__init__(self)
            self._file = file
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            # No exception may pass through TensorRT.
            try:
                return self._file.write(data)
            except OSError as error:
                self.error = error
                return 0

    return PlanWriter
