"""Run the daemon: signals, what every process sets up, and how it ends."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path

from service.daemon.daemon import Daemon
from service.daemon.wake import EXIT_FAILED, StopRequest
from service.errors import TamisError
from service.logs import configure
from service.settings import Settings

log = logging.getLogger(__name__)

_M_ARENA_MAX = -8  # of malloc.h


def run(root: Path, settings: Settings) -> int:
    """Run the daemon on `root` until it is told to stop; return the exit code. Raises ConfigurationError."""
    configure(settings.log_format, settings.log_level)
    # Else a crash in a library's own code ends without a word. The stack of the thread that crashed and no other: the
    # others run on, and to read theirs meanwhile can crash in turn and hide from systemd which signal it was.
    faulthandler.enable(all_threads=False)
    _share_arenas()
    # Pillow warns of damage and of sizes that are checked here anyway; a share full of bad files must not fill the log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    stop = StopRequest()
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop.on_signal)
        try:
            Daemon(root, settings, stop, stack).loop()
        except TamisError:
            raise
        # Nothing can go on with a broken disk or graph: it is logged once, and systemd starts the service again.
        except Exception:
            log.critical("ended by an error", exc_info=True)
            return EXIT_FAILED
    return 0


def _share_arenas() -> None:
    """Have the threads share two arenas of memory: with one for each, what each once took is kept, 20 MB in all."""
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
