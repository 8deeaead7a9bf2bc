"""The error by which a file says that it is no image that can be scored."""

from __future__ import annotations


class DecodeError(Exception):
    """A file is not an image that can be scored. `code` is a short name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # As `Exception` has it, only the message would come through a pipe between processes.
        return type(self), (self.code, str(self))


def told(error: BaseException) -> str:
    """Return the type and the words of `error`, cut to a length that a row can hold."""
    return f"{type(error).__name__}: {error}"[:300]
