"""Writing a file so that a reader sees the old content or the new content, never a part of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that the block writes; it is renamed to ``path`` when the block ends without error.

    The content is not flushed to the disk (fsync). Processes that write the same file at the same time do not disturb each other:
    the last rename counts. Raises what the block or the rename raises; the temporary file is removed then.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write or replace a file; see `replacing`. Raises OSError."""
    with replacing(path) as part:
        part.write_bytes(data)
