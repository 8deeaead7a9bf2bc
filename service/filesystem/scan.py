"""Lists the regular files below a folder, without following links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from service.filesystem.file_state import FileState, NameFilter, file_state


def scan(folder: Path, names: NameFilter) -> Iterator[tuple[str, FileState]]:
    """Yield each regular file below `folder`, by its path relative to it, with its state.

    Links are not followed; what vanishes meanwhile is left out. Raises OSError when `folder` itself cannot be read.
    """
    pending = [""]
    while pending:
        relative = pending.pop()
        try:
            with os.scandir(folder / relative if relative else folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except FileNotFoundError:
            if not relative:
                raise
            continue
        for entry in listed:
            if names.ignores(entry.name):
                continue
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_file(follow_symlinks=False):
                state = file_state(folder / path)
                if state is not None:
                    yield path, state
