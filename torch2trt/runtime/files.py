"""Files that appear under their names when they are whole, and not at all otherwise."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from torch2trt.errors import ArtifactWriteError

StrPath = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_file(path: StrPath) -> Iterator[IO[bytes]]:
    """A file to write that appears under its name when the block ends well, and not at all otherwise.

    Raises:
        ArtifactWriteError: for every OSError inside, a full disk among them.
    """
    target = Path(path)
    # Beside the target, since only within one file system is the renaming atomic.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        file = open(temporary, "xb")  # noqa: SIM115
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except ArtifactWriteError:
        raise
    except OSError as error:
        raise ArtifactWriteError(
            f"could not be written: {error.strerror or error}",
            subject=str(target),
            hint="nothing was left behind; look at the folder's free space and permissions",
        ) from error
