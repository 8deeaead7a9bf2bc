"""Lists the regular files below a folder, without following links."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from service.filesystem.file_state import FileState, NameFilter, file_state, list_folder


def scan(folder: Path, names: NameFilter) -> Iterator[tuple[str, FileState]]:
    """Yield each regular file below `folder`, by its path relative to it, with its state.

    Links are not followed; what vanishes meanwhile is left out. Raises OSError when `folder` itself cannot be read.
    """
    pending = [""]
    while pending:
        relative = pending.pop()
        here = folder / relative
        try:
            files, folders = list_folder(here, names)
        except FileNotFoundError:
            if not relative:
                raise
            continue
        prefix = f"{relative}/" if relative else ""
        pending += [f"{prefix}{name}" for name in folders]
        for name in files:
            state = file_state(here / name)
            if state is not None:
                yield f"{prefix}{name}", state
