"""Images that end, hang or swell whatever decodes them, as a bug in a C library would.

The hook is a `sitecustomize`, so that the service has none in its code; it acts in the processes that decode.
"""

from __future__ import annotations

from pathlib import Path

from tests.conftest import image_bytes

HOOK = """
import importlib.abc, os, signal, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "service.imaging.decoder":
            return None
        # Before it takes the functions from there.
        sys.meta_path.remove(self)
        import service.imaging.decode as module
        for name in ("decode", "decode_within"):
            setattr(module, name, failing(getattr(module, name)))
        return None

def failing(decode):
    def decode_or_fail(data, *given, **options):
        if b"crash here" in data:
            os.kill(os.getpid(), signal.SIGSEGV)
        if b"hang here" in data:
            time.sleep(1000)
        while b"compute here" in data:
            pass
        if b"swell here" in data:
            bytearray(300_000_000)
        return decode(data, *given, **options)
    return decode_or_fail

sys.meta_path.insert(0, Finder())
"""


def hook(folder: Path) -> Path:
    """Return a folder, made in `folder`, that a PYTHONPATH has in it for the hook to act."""
    made = folder / "hook"
    made.mkdir()
    (made / "sitecustomize.py").write_text(HOOK)
    return made


def bad_image(how: str, seed: int = 500) -> bytes:
    """Return an image that does `crash`, `hang`, `compute` or `swell` to its decoder."""
    return image_bytes(20, seed=seed) + f"{how} here".encode()
