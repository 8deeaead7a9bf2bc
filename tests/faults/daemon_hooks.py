"""What a daemon of the fault tests is made to do before its first line: decode slowly, have few events, lose answers.

Each returns an environment for the daemon. The hook is a `sitecustomize`, so that the service has none in its code.
"""

from __future__ import annotations

from pathlib import Path

DECODE_SLOWLY = """
import time
import PIL.Image
real = PIL.Image.open
def slow(*args, **kwargs):
    time.sleep({seconds})
    return real(*args, **kwargs)
PIL.Image.open = slow
"""

# The kernel counts watches by user namespace: in one of its own, limits touch no other process of the machine.
LIMIT_EVENTS = """
import ctypes, os
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
user, group = os.geteuid(), os.getegid()
if libc.unshare(0x10000000):
    raise OSError(ctypes.get_errno(), "unshare")
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"{{user}} {{user}} 1")
Path("/proc/self/gid_map").write_text(f"{{group}} {{group}} 1")
Path("/proc/sys/user/{limit}").write_text("{value}")
"""

LOSE_ANSWERS = """
import psycopg
real, commits = psycopg.Connection.commit, 0
def commit(self):
    global commits
    real(self)
    commits += 1
    if commits % {every} == 0:
        self.close()
        raise psycopg.OperationalError("the answer of this commit was lost on purpose")
psycopg.Connection.commit = commit
"""

FAILING = r"""
import errno, os, re
FILE = re.compile(r"^odd-(\w+)-(E\w+)\.[0-9A-Z]{{26}}")
FOLDER = re.compile(r"^odd-(folder|train)-(E\w+)$")
TOPS = {{"folder": ("normal", "anomaly"), "train": ("training",)}}
def told(call, name, folder):
    name = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else ""
    above, _, name = name.rpartition("/")
    if folder is not None:
        above = os.readlink(f"/proc/self/fd/{{folder}}")
    if (match := FILE.match(name)) and match[1] == call:
        return match[2]
    top = above.rpartition("/")[2]
    if call in ("open", "mkdir") and (match := FOLDER.match(name)) and top in TOPS[match[1]]:
        return match[2]
def failing(call):
    real = getattr(os, call)
    def wrapped(*args, **kwargs):
        names = [(args[0], kwargs.get("dir_fd", kwargs.get("src_dir_fd")))]
        if call in ("rename", "link"):
            names.append((args[1], kwargs.get("dst_dir_fd")))
        for name, folder in names:
            code = told(call, name, folder)
            if code is not None and there("{while_there}", os.F_OK):
                raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), name)
        return real(*args, **kwargs)
    setattr(os, call, wrapped)
there = os.access
for call in ("open", "stat", "rename", "link", "unlink", "mkdir"):
    failing(call)
"""

# While the file `{flag}` is there, a call fails on whatever is named after it: `odd-claim-13` in the last part of a
# path makes the rename of a claim fail with error 13, and so on. What others made, and what the calls do, is real.
FAIL_BY_NAME = """
import io, os, re
there, readlink = os.path.exists, os.readlink
NAMED = re.compile(r"odd-([a-z]+)-([0-9]+)")
def fail(path, *steps):
    if isinstance(path, int):
        path = readlink(f"/proc/self/fd/{{path}}")
    path = os.fsdecode(path)
    named = NAMED.search(path.rpartition("/")[2])
    if named and named[1] in steps and there({flag!r}):
        number = int(named[2])
        raise OSError(number, os.strerror(number), path)
def failing(call, *steps):
    def called(path, *args, **kwargs):
        fail(path, *steps)
        return call(path, *args, **kwargs)
    return called
def opens(path, flags, mode=0o777, *, dir_fd=None, real=os.open):
    claimed = isinstance(path, str) and "--" in path
    fail(path, "again" if claimed else "open", *([] if claimed else ["scan"]))
    return real(path, flags, mode, dir_fd=dir_fd)
class Entry:
    def __init__(self, entry):
        self.entry, self.name, self.path = entry, entry.name, entry.path
    def stat(self, **options):
        fail(self.name, "look")
        return self.entry.stat(**options)
    def __getattr__(self, name):
        return getattr(self.entry, name)
class Entries:
    def __init__(self, real):
        self.real = real
    def __enter__(self):
        return self
    def __exit__(self, *told):
        self.real.close()
    def __iter__(self):
        return map(Entry, self.real)
    def __next__(self):
        return Entry(next(self.real))
def scandir(path=".", real=os.scandir):
    fail(path, "list")
    return Entries(real(path))
class File(io.FileIO):
    def read(self, *args):
        fail(self.fileno(), "read")
        return super().read(*args)
def fdopen(descriptor, *args, real=os.fdopen, **kwargs):
    return File(descriptor) if kwargs.get("buffering") == 0 else real(descriptor, *args, **kwargs)
def fsync(descriptor, real=os.fsync):
    path = readlink(f"/proc/self/fd/{{descriptor}}")
    fail(path, "sync" if "/processing/" in path else "source" if "/incoming/" in path else "")
    return real(descriptor)
os.open, os.scandir, os.fdopen, os.fsync = opens, scandir, fdopen, fsync
os.stat = failing(os.stat, "stat")
os.rename = failing(os.rename, "claim")
os.mkdir = failing(os.mkdir, "make")
os.pread = failing(os.pread, "peek")
os.fdatasync = failing(os.fdatasync, "flush")
"""


# Of Debian 12, 3.40.1; None in the place of a module is one that is not installed.
WITHOUT_BUNDLED_SQLITE = """
import sys
sys.modules["pysqlite3"] = None
"""


def decoding_slowly(folder: Path, seconds: float) -> dict[str, str]:
    """Every image takes `seconds` more to decode."""
    return _hook(folder, DECODE_SLOWLY.format(seconds=seconds))


def with_few_events(folder: Path, limit: str, value: int) -> dict[str, str]:
    """The kernel gives at most `value` of `limit`: `max_inotify_instances` or `max_inotify_watches`."""
    return _hook(folder, LIMIT_EVENTS.format(limit=limit, value=value))


def without_bundled_sqlite(folder: Path) -> dict[str, str]:
    """The package with a SQLite of its own is not installed: Python's decides about the journal."""
    return _hook(folder, WITHOUT_BUNDLED_SQLITE)


def losing_answers(folder: Path, every: int) -> dict[str, str]:
    """Of every so many commits by PostgreSQL one holds, and the daemon is told that its connection is lost."""
    return _hook(folder, LOSE_ANSWERS.format(every=every))


def failing_by_name(folder: Path, flag: Path) -> dict[str, str]:
    """While the file `flag` is there, the call that the name of an entry says fails on it with the error it says."""
    return _hook(folder, FAIL_BY_NAME.format(flag=str(flag)))


def _hook(folder: Path, code: str) -> dict[str, str]:
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(hook)}


def failing(folder: Path, while_there: Path) -> dict[str, str]:
    """While the file `while_there` is there, calls on files and folders fail as their names say.

    `odd-<call>-<ERRNO>.<ULID>…`, as a delivered file is named, fails in `os.<call>`; a folder `odd-folder-<ERRNO>`
    right below `normal` or `anomaly` cannot be opened, nor can `odd-train-<ERRNO>` right below `training`.
    """
    return _hook(folder, FAILING.format(while_there=str(while_there)))
