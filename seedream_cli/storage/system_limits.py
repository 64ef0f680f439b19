"""How much the system lets this process have: open files and memory, looked at before anything is paid.

What runs out in the middle of a run is no bug of the tool, and says so. A system that tells no bound has none here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from ..errors import FileError, causes

if sys.platform != "win32":
    import resource

SPARE_FILES = 12
"""What a run opens beside its requests: its loop, its journal, and for a moment a folder, a module, a list of names."""

FILES_EACH = 4
"""A request's connection and its reply, an image's connection and its file."""

_USUAL_FILES = 32
"""More than a run has open when it begins: so far below the bound nobody counts."""

_MEMORY = 64 << 20
"""An image of 4096 x 4096 while its pixels are looked at, and the threads that do it."""

_NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})

_NO_ROOM = (
    "failed to map segment",
    "cannot allocate memory",
    "too many open files",
    "start new thread",
    "exception set",
)


def lack_of(error: BaseException) -> str:
    """What has run out where an error, or one behind it, says that; "" for any other error."""
    for cause in causes(error):
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return _memory_words()
        if isinstance(cause, OSError) and cause.errno in _NO_FILES:
            return files_words()
        if isinstance(cause, ImportError | RuntimeError | SystemError):
            # A library or a thread that finds no room says so in words alone.
            said = str(cause).lower()
            if any(words in said for words in _NO_ROOM):
                return files_words() if "open files" in said else _memory_words()
    return ""


def files_words(*, full: bool = True) -> str:
    """What sets how many files may be open; in `full` that no more can be."""
    bound = _bound("RLIMIT_NOFILE")
    allowed = "ulimit -n" if bound is None else f"ulimit -n allows {bound}"
    return f"too many open files ({allowed})" if full else f"{allowed} open files"


def _memory_words() -> str:
    bound = _bound("RLIMIT_AS")
    return "out of memory" if bound is None else f"out of memory (ulimit -v allows {bound >> 20} MB)"


def require_files(wanted: int, what: str) -> None:
    """Raise `FileError` where so many files more cannot be opened; `what` needs them. Takes what the system allows."""
    free = _free_files(wanted)
    if free is not None and free < wanted:
        raise _too_few(what)


def requests_at_once(wanted: int) -> int:
    """How many requests of `wanted` can be under way with the files that may be opened. `FileError` where not one."""
    free = _free_files(SPARE_FILES + FILES_EACH * wanted)
    if free is None:
        return wanted
    if free < SPARE_FILES + FILES_EACH:
        raise _too_few("not sent: a request")
    return min(wanted, (free - SPARE_FILES) // FILES_EACH)


def _too_few(what: str) -> FileError:
    bound = _bound("RLIMIT_NOFILE")
    return FileError(
        f"{what} needs more open files than ulimit -n allows, which is {bound}",
        hint="ulimit -n 256, then the same command again",
    )


def require_memory() -> None:
    """Raise `FileError` where an image that is paid for could not be looked at for want of memory.

    Only a bound on the address space is known in advance.
    """
    bound = _bound("RLIMIT_AS")
    used = _used_memory() if bound is not None else None
    if bound is None or used is None or bound - used >= _MEMORY:
        return
    raise FileError(
        f"not sent: an image of full size needs more memory than ulimit -v allows, which is {bound >> 20} MB",
        hint=f"ulimit -v {(used + 2 * _MEMORY) >> 10}, then the same command again",
    )


def _bound(name: str) -> int | None:
    """A bound of this process; None where there is none, or none is known."""
    if sys.platform == "win32":
        return None
    found = resource.getrlimit(getattr(resource, name))[0]
    return None if found == resource.RLIM_INFINITY else found


def _free_files(wanted: int) -> int | None:
    """How many files can still be opened; None for enough. The bound is raised where the system allows that."""
    if sys.platform == "win32":
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft - wanted >= _USUAL_FILES:
        return None
    aim = wanted + _USUAL_FILES
    aim = aim if hard == resource.RLIM_INFINITY else min(aim, hard)
    if aim > soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            soft = aim
    return soft - _open_files()


def _open_files() -> int:
    """How many files this process has open."""
    try:
        # The folder itself is open while it is read.
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - no path is made of a number
    except OSError as error:
        # With none left not even that can be read.
        return 1 << 30 if error.errno in _NO_FILES else _USUAL_FILES


def _used_memory() -> int | None:
    """How large this process's address space is; None where that cannot be told."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[0]
    except (OSError, MemoryError):
        return None
    return int(pages) * resource.getpagesize() if sys.platform != "win32" else None
