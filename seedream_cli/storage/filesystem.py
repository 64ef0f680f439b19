"""What each system does with files in its own way: making, locking, replacing, flushing names, moves that replace
nothing.

POSIX, macOS and Windows are told apart here for all who write files. Everything but `atomic_write` raises the system's
own `OSError`; what that means for the user and the money is the caller's to say.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError
from .system_limits import lack_of

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


def create(path: Path, mode: int = 0o600) -> int:
    """A descriptor of a new file, to read and write. Never opens what exists, not even through a link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)


class ForeignError(OSError):
    """A name of ours that holds what we did not make: a link, a pipe, a folder of somebody else's. It is left alone."""

    way_out = "a folder from elsewhere may hold such a thing: remove it, or choose another folder"


_SHARED = (
    "copies made of hard links (cp -al, rsync --link-dest) share it: go on in a copy of the whole folder "
    "(`cp -a FOLDER COPY`), and remove nothing, since it may be all that knows what was paid for"
)

_NOT_YOURS = (
    "it may be all that knows what was paid for, so do not remove it: make the whole folder yours "
    "(`sudo chown -R $USER FOLDER`), or go on in a copy of your own (`cp -r FOLDER COPY`)"
)


def _foreign(path: Path, what: str, way_out: str = "") -> ForeignError:
    error = ForeignError(errno.ELOOP, f"it is {what}", str(path))
    error.way_out = way_out or error.way_out
    return error


_KINDS = (
    (stat.S_ISLNK, "a symbolic link, and none is followed here"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def _kind(mode: int) -> str:
    return next((name for is_it, name in _KINDS if is_it(mode)), "no file")


def check_file(path: Path, *, lone: bool = True) -> bool:
    """Whether there is such a file. Raises `ForeignError` for a link, for what is no file, and, where it must be
    `lone`, for one that has a second name: to write in it would write in that.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise _foreign(path, _kind(found.st_mode))
    if lone and found.st_nlink > 1:
        raise _foreign(path, "a file with a second name elsewhere (a hard link)", _SHARED)
    return True


def is_plain(path: Path) -> bool:
    """Whether it is a file, and no link to one."""
    try:
        return check_file(path, lone=False)
    except OSError:
        return False


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """A descriptor of a file of ours. Raises `ForeignError`, before anything of it is changed, for what `check_file`
    refuses.
    """
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), mode)
    except FileNotFoundError:
        raise
    except OSError:
        check_file(path)
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _foreign(path, _kind(found.st_mode))
        if found.st_nlink > 1:
            check_file(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_folder(folder: Path) -> bool:
    """Whether there is such a folder. Raises `ForeignError` for a link, for what is none, and for somebody else's."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        raise _foreign(folder, "no folder" if stat.S_ISREG(found.st_mode) else _kind(found.st_mode))
    if sys.platform != "win32" and os.geteuid() not in {0, found.st_uid}:
        raise _foreign(folder, "another user's folder", _NOT_YOURS)
    return True


def is_own_folder(folder: Path) -> bool:
    """Whether it is a folder of ours, and no link to one."""
    try:
        return check_folder(folder)
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Make a folder of ours, for its owner alone, where there is none. Raises what `check_folder` does."""
    if not check_folder(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_folder(folder)


def create_locked(path: Path, mode: int = 0o600) -> int:
    """A descriptor of a new file that is locked from the moment it has its name, so that nobody takes it for a dead
    process's. Raises `FileExistsError` where the name is taken.
    """
    if sys.platform == "win32":
        return create(path, mode)
    descriptor = _create_nameless(path.parent, mode)
    if descriptor is not None:
        try:
            lock(descriptor)
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)
        except FileExistsError:
            os.close(descriptor)
            raise
        except OSError:
            # No /proc here, say: the way below needs none.
            os.close(descriptor)
        else:
            return descriptor
    unborn = Path(f"{path}.new")
    try:
        descriptor = create(unborn, mode)
    except FileExistsError:
        # A dead process left it: a living one takes it away in the next step.
        unborn.unlink(missing_ok=True)
        descriptor = create(unborn, mode)
    try:
        lock(descriptor)
        move_to_free(unborn, path)
    except BaseException:
        os.close(descriptor)
        unborn.unlink(missing_ok=True)
        raise
    return descriptor


def _create_nameless(folder: Path, mode: int) -> int | None:
    """A descriptor of a file that vanishes with its process until it gets a name; None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
    except OSError:
        return None


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file as one step, so that a reader sees the old or the new one. A new one is for its owner alone.

    A link stays a link: what it points to is replaced. What is no file is written to as it is. Raises `FileError`.
    """
    try:
        target = final_target(path)
        if target is None:
            with os.fdopen(open_stream(path), "wb") as stream:
                stream.write(data)
            return
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
        with atomic_file(target) as file:
            set_mode(file.fileno(), mode)
            file.write(data)
    except OSError as error:
        hint = "check the folder's permissions and room"
        raise FileError(f"cannot write {path}: {reason(error)}", hint=hint) from error


@contextlib.contextmanager
def atomic_file(path: Path, mode: int = 0o600, *, flushes_name: bool = True) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the name at the end of the block, whole and flushed; after an exception the
    name holds what it held. A link at `path` is replaced. Raises `OSError`, which the caller puts in its own words.

    Until then it is a part beside it, locked so that `sweep_parts` leaves it, and removes it once its process is dead.
    `flushes_name` may be False where the caller flushes the folder, or where the name may be lost in a power cut.
    """
    part = path.with_name(part_name())
    try:
        with os.fdopen(create_locked(part, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if flushes_name:
        flush_folder(path.parent)


def replace(part: Path, final: Path, *, may_fail: bool = False) -> None:
    """Give a whole and flushed file its name, in the place of what has it, and make that survive a power cut.

    For what cannot be an `atomic_file`: a reply that must be there before it is whole, and what SQLite makes.
    """
    part.replace(final)
    flush_folder(final.parent, may_fail=may_fail)


def reason(error: OSError) -> str:
    """The system's own words for what went wrong, to stand at the end of a message."""
    return lack_of(error) or (error.strerror or type(error).__name__).lower()


def lock(descriptor: int) -> bool:
    """Marks the file as in use by a living process. False where another holds it or locks are not to be had."""
    # On Windows nobody else could read what is locked.
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            return try_lock(descriptor)
    return False


_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK}

_LOCK_BYTE = 1 << 30


def try_lock(descriptor: int, *, wait: bool = False, shared: bool = False) -> bool:
    """Locks a file until it is closed. False where another has it; raises `OSError` where there are no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCK_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def set_mode(descriptor: int, mode: int) -> None:
    """Gives an open file its permissions, where the system has such."""
    if sys.platform != "win32":
        os.fchmod(descriptor, mode)


_NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENODEV}


def take_room(descriptor: int, offset: int, size: int, path: Path) -> None:
    """Takes `size` bytes of the disk for a file from `offset` on, where the system can; looks whether they are free
    where it cannot.
    """
    if size <= 0:
        return
    try:
        if sys.platform == "linux":
            os.posix_fallocate(descriptor, offset, size)
        elif shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError as error:
        if error.errno not in _NO_RESERVATION:
            raise


_STREAM = re.compile(r"/dev/(?:std(?P<name>in|out|err)|fd/(?P<dev>[0-9]{1,9}))|/proc/[^/]+/fd/(?P<proc>[0-9]{1,9})")

_LINKS_MOST = 40


def _own_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path such as /dev/stdout, or a link to it, means."""
    here = os.path.abspath(path)  # noqa: PTH100 - links are followed one by one
    for _ in range(_LINKS_MOST):
        if found := _STREAM.fullmatch(here):
            number = {"in": 0, "out": 1, "err": 2}.get(found["name"])
            return int(found["dev"] or found["proc"]) if number is None else number
        try:
            here = os.path.abspath(os.path.join(os.path.dirname(here), os.readlink(here)))  # noqa: PTH100, PTH115, PTH118, PTH120
        except OSError:
            return None
    return None


def final_target(path: Path) -> Path | None:
    """The file that a whole new one for `path` takes the place of: what a link leads to, so that the link stays.

    None for what is no file, such as a device, a pipe, or this process's standard output: that is written to, since a
    name put over it would destroy it. Raises `OSError`.
    """
    try:
        return _final_target(path)
    except RuntimeError as error:
        # pathlib's word for links that lead to one another.
        raise OSError(errno.ELOOP, "a loop of links", str(path)) from error


def _final_target(path: Path) -> Path | None:
    if sys.platform != "win32" and _own_descriptor(path) is not None:
        return None
    try:
        found = path.stat()
    except FileNotFoundError:
        return path.resolve() if path.is_symlink() else path
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    return path.resolve() if path.is_symlink() else path


def open_stream(path: Path) -> int:
    """A descriptor to write to what is no file. Raises `OSError`, also at once for a pipe that nobody reads."""
    own = _own_descriptor(path)
    if own is not None:
        return os.dup(own)
    try:
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads it", str(path)) from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


# EACCES: a folder that may be written but not listed.
_NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}


def flush_folder(folder: Path, *, may_fail: bool = False) -> None:
    """Makes a new name survive a power cut. Some file systems know no such thing, and the name stands anyway.

    With `may_fail` no failure is one: for what is worth having also without.
    """
    if sys.platform == "win32":
        return
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
        except OSError as error:
            if not may_fail and error.errno not in _NO_FLUSH:
                raise


_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


def move_to_free(part: Path, final: Path) -> None:
    """Gives a file a name that nothing holds, as one step. FileExistsError where something holds it."""
    # A hard link never replaces a name, where every kind of check before a rename loses races.
    try:
        os.link(part, final)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _move_exclusively(part, final)
    else:
        part.unlink()


def _move_exclusively(part: Path, final: Path) -> None:
    """For file systems without links (FAT, some shares): a rename that fails where the name exists."""
    if sys.platform == "win32":
        part.rename(final)
        return
    problem = _rename_noreplace(part, final)
    if problem not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}:
        if problem:
            raise OSError(problem, os.strerror(problem), str(final))
        return
    # The last way out: an empty file takes the name, which only its maker may replace. A kill between the two steps
    # leaves that empty file; it loses no image, as the part is still there.
    os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    part.replace(final)


def _rename_noreplace(part: Path, final: Path) -> int:
    """The system's own exclusive rename: 0, or an errno; ENOSYS where there is none."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    source, target = os.fsencode(part), os.fsencode(final)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        rename_excl = ctypes.c_uint(4)
        return ctypes.get_errno() if library.renamex_np(source, target, rename_excl) else 0
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, rename_noreplace = -100, ctypes.c_uint(1)  # AT_FDCWD, RENAME_NOREPLACE
        return ctypes.get_errno() if library.renameat2(here, source, here, target, rename_noreplace) else 0
    return errno.ENOSYS


_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "glusterfs", "lustre", "gpfs", "davfs"}


def is_remote(path: Path) -> bool:
    """Whether the file lies on another machine. Unknown counts as local: SQLite refuses most of what it cannot do."""
    if sys.platform == "win32":
        return str(path.absolute()).startswith("\\\\")
    kind = _file_system(path.resolve())
    return kind in _REMOTE or kind.startswith("fuse.")


def _file_system(path: Path) -> str:
    """The type of the file system a path lies on, from Linux's table of mounts; "" elsewhere."""
    try:
        lines = Path("/proc/self/mounts").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        place, found = line.split()[1:3]
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place)
        # Of mounts on one place the last one lies on top.
        if len(place) >= best and path.is_relative_to(place):
            best, kind = len(place), found
    return kind


def _disk_error(doing: str, path: Path, error: OSError, *, billed: bool = False) -> FileError:
    hint = "the reply is paid for: set that right before the next request" if billed else "nothing was sent"
    hint = f"{hint}; {error.way_out}" if isinstance(error, ForeignError) else hint
    return FileError(f"cannot {doing} {path}: {reason(error)}", hint=hint, billed="yes" if billed else "no")


# --- parts: files that have no final name yet -----------------------------------------------------------------------


def part_name() -> str:
    """A name that no file has, for one that is not whole yet."""
    return f".seedream-{os.urandom(6).hex()}.part"


_PART_NAME = re.compile(r"\.seedream-[0-9a-f]{12}\.part")


def sweep_parts(folder: Path) -> int:
    """Removes part files that killed runs left in `folder`; the number removed.

    A part is locked from its first moment while its process lives. Where there are no locks nothing is removed.
    """
    if not folder.is_dir():
        return 0
    # One by one: the folder of a large batch has as many names as the table has rows.
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if _PART_NAME.fullmatch(entry.name)]
    return sum(map(_sweep_one, paths))


def _sweep_one(path: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # a link, someone else's, or gone already
    try:
        stale = lock(descriptor)
        if stale:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return stale
