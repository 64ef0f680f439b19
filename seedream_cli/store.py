"""The disk room for pictures: where each one goes, and how it gets its final name.

A picture is written to a part file in its own folder, checked to the last byte of its container, and only then
linked to its final name. A file with a final name is therefore whole, and no existing file is replaced unasked.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import string
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from . import files
from .decoding import check_pixels
from .errors import FileError, InputError, LinkError, Problem
from .names import render_name, scheme_problem
from .pictures import SPELLINGS, SUFFIXES, Facts, inspect_file
from .results import Blob
from .spool import DATA_PREFIX

IfExists = Literal["rename", "skip", "error", "overwrite"]

_WINDOW = 1 << 18
_ROOM_BYTES = 8 << 20


# --- targets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where one picture goes: its folder, its name, and the suffix the user typed, "" where the bytes alone decide."""

    folder: Path
    stem: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What `--output`, `--name` and `--if-exists` add up to. With `stdout` the folder is for temporary files."""

    folder: Path
    if_exists: IfExists
    pictures: int
    template: str | None = None
    file: Path | None = None
    stdout: bool = False

    def place(self, fields: Mapping[str, str], *, number: int = 1, of: int = 1, default: str = "{slug}") -> Place:
        """The place of picture `number` (from 1) of `of`; `default` is the template where the user gave none.

        Where several pictures would share a name, it gets "-1", "-2", … at its end.
        """
        if self.file is not None:
            stem = self.file.stem if max(of, self.pictures) <= 1 else f"{self.file.stem}-{number}"
            return Place(self.folder, stem, self.file.suffix)
        template = self.template or default
        path = Path(render_name(template, {**fields, "index": str(number)}))
        numbered = of <= 1 or any(name == "index" for _, name, _, _ in string.Formatter().parse(template))
        return Place(self.folder / path.parent, path.name if numbered else f"{path.name}-{number}")

    def prepare(self, places: Iterable[Place] = ()) -> None:
        """Before anything is paid: makes the folders, proves that they can be written, refuses names that are taken.

        `places` are those known in advance; an explicit file needs none. Raises `FileError` (nothing was sent) for
        the disk and `InputError` for every name that exists while `--if-exists` is "error".
        """
        if self.file is not None:
            places = [self.place({}, number=number, of=self.pictures) for number in range(1, self.pictures + 1)]
        taken, proved = list[Path](), set[Path]()
        for place in [Place(self.folder, ""), *places]:
            if place.folder not in proved:
                _make_folder(self.folder, place.folder)
                _prove_room(place.folder)
                proved.add(place.folder)
            if place.stem and self.if_exists == "error" and (path := existing(place)):
                taken.append(path)
        if taken:
            hint = "--if-exists rename keeps both, skip leaves the old one, overwrite replaces it"
            raise InputError([Problem("output", f"{path} exists already", hint) for path in taken])


def existing(place: Place) -> Path | None:
    """The file that holds this place's name already: under the suffix typed, or under any picture's suffix."""
    suffixes = (place.suffix,) if place.suffix else SPELLINGS
    paths = (place.folder / f"{place.stem}{suffix}" for suffix in suffixes)
    # A dangling link takes a name too, though exists() is blind to it.
    return next((path for path in paths if os.path.lexists(path)), None)


def plan_output(
    output: str | None, *, pictures: int, if_exists: IfExists | None = None, template: str | None = None
) -> Target:
    """Reads `--output`: a folder, a file named by a picture's suffix, "-" for standard output, None for here.

    Looks at the disk but changes nothing. For an explicit file `template` is not used. Raises `InputError`.
    """
    if if_exists is not None and if_exists not in get_args(IfExists):
        hint = f"one of {', '.join(get_args(IfExists))}"
        raise InputError([Problem("if_exists", f'unknown value "{if_exists}"', hint)])
    if output == "-":
        return _plan_stdout(pictures, if_exists)
    if output is not None and (not output.strip() or "\0" in output):
        raise InputError([Problem("output", "the output path is empty or holds a NUL", "give a folder or a file")])
    if output is not None and (problem := scheme_problem("output", output)):
        raise InputError([problem])
    path = Path(output or ".")
    if output is None or output.endswith(tuple(filter(None, ("/", os.sep, os.altsep)))) or _is_folder(path):
        return Target(path, if_exists or "rename", pictures, template)
    if path.suffix.lower() in SPELLINGS:
        return Target(path.parent, if_exists or "error", pictures, file=path)
    if os.path.lexists(path):
        raise InputError([Problem("output", f"{path} is a file, but not named as a picture", _NAME_HINT)])
    if path.suffix:
        raise InputError([Problem("output", f"{path.suffix} is no picture's suffix (in {path})", _NAME_HINT)])
    return Target(path, if_exists or "rename", pictures, template)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # an impossible name, or a folder that may not be entered: making it says which


_NAME_HINT = f"end a file in {', '.join(SUFFIXES.values())}, a folder in /"


def _plan_stdout(pictures: int, if_exists: IfExists | None) -> Target:
    import tempfile

    if pictures > 1:
        message = f"standard output takes one picture, and up to {pictures} were asked for"
        raise InputError([Problem("output", message, "give a folder with --output")])
    return Target(Path(tempfile.gettempdir()), if_exists or "rename", pictures, stdout=True)


def _make_folder(root: Path, folder: Path) -> None:
    """Makes `folder`, which is `root` or below it, and refuses a link inside `root` that leads out of it."""
    _make_one(root)
    inside, step = _real_folder(root), root
    for part in folder.relative_to(root).parts:
        step /= part
        if not Path(os.path.realpath(step)).is_relative_to(inside):
            raise FileError(f"{step} leads out of the output folder", hint="name its real folder with --output")
        _make_one(step)


def _real_folder(folder: Path) -> Path:
    try:
        return Path(os.path.realpath(folder))
    except OSError as error:
        # A working folder that was removed under the shell's feet.
        raise FileError(f"there is no folder {folder}: {files.reason(error)}", hint="name one with --output") from error


def _make_one(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = [folder, *folder.parents]
        other = next((path for path in above if os.path.lexists(path) and not _is_folder(path)), None)
        reason = f"{other} is not a folder" if other else files.reason(error)
        raise FileError(f"cannot make the folder {folder}: {reason}", hint="choose another with --output") from error


def _prove_room(folder: Path) -> None:
    """Proves by a file that the folder can be written: modes say nothing to root, and a mount may be read-only."""
    try:
        _write_proof(folder / _part_name())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "choose another folder with --output"
        raise FileError(f"cannot write to the folder {folder}: {files.reason(error)}", hint=hint) from error
    if free < _ROOM_BYTES:
        hint = "make room, or choose another folder with --output"
        raise FileError(f"only {free / 1e6:.1f} MB are free in {folder}", hint=hint)


def _write_proof(path: Path) -> None:
    descriptor = files.create(path)
    try:
        os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
        # Another run may have swept it away already.
        path.unlink(missing_ok=True)


# --- parts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    """How a picture got its name. `renamed_from` was taken; `retyped_from` was asked for, but the bytes disagree.

    `skipped`: `path` existed and was left, the new picture was dropped.
    """

    path: Path
    renamed_from: Path | None = None
    retyped_from: Path | None = None
    skipped: bool = False


class Part:
    """A picture on its way to the disk. Closed and removed at the end of a `with` block unless it was published.

    Its methods exclude each other: a cancelled task may leave the block while a thread still writes or publishes.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.size = 0
        self._descriptor = descriptor
        self._hash = hashlib.sha256()
        self._turn = threading.RLock()
        # What the umask and the folder's own rules made of 0666: the mode of the finished file.
        self._mode = os.fstat(descriptor).st_mode & 0o777
        files.set_mode(descriptor, 0o600)
        self._has_name = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Adds bytes. Raises `FileError` (billed) where the disk refuses them."""
        with self._turn:
            self._hash.update(chunk)
            self._write(memoryview(chunk))

    def _write(self, rest: memoryview) -> None:
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except OSError as error:
                raise _paid_error("write", self.path, error) from error
            self.size += written
            rest = rest[written:]

    def reset(self) -> None:
        """Forgets what was written, for another attempt at the same picture."""
        with self._turn:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.ftruncate(self._descriptor, 0)
            self.size = 0
            self._hash = hashlib.sha256()

    def finish(self) -> Facts:
        """Checks the whole picture and flushes it. Raises `LinkError` where it is no whole one, `FileError`."""
        facts = self.check()
        self.flush()
        return facts

    def check(self) -> Facts:
        """Checks the whole picture. Raises `LinkError` where it is no whole one."""
        with self._turn, self._open() as file:
            return inspect_file(file, self._hash.hexdigest())

    def check_pixels(self, facts: Facts) -> None:
        """Checks what the container cannot tell. Raises `LinkError` where pixels are missing."""
        with self._turn, self._open() as file:
            file.seek(0)
            data = file.read()
        check_pixels(data, facts)

    def _open(self) -> io.BufferedReader | io.BytesIO:
        """What was written, to read; a small picture in memory, where its many short reads cost nothing."""
        if self.size <= _WINDOW and sys.platform != "win32":
            return io.BytesIO(os.pread(self._descriptor, self.size, 0))
        return os.fdopen(os.dup(self._descriptor), "rb")

    def begin_flush(self) -> None:
        """Sends the bytes on their way to the disk, where the system can; `flush` waits until they are there."""
        with self._turn, contextlib.suppress(OSError):
            if hasattr(os, "posix_fadvise"):
                # Linux takes "these will not be needed" for a reason to write at once.
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def flush(self) -> None:
        """Returns when the bytes survive a power cut. Raises `FileError` (billed)."""
        with self._turn:
            try:
                files.set_mode(self._descriptor, self._mode)
                os.fsync(self._descriptor)
            except OSError as error:
                raise _paid_error("flush", self.path, error) from error

    def publish(self, folder: Path, stem: str, facts: Facts, if_exists: IfExists, *, suffix: str = "") -> Published:
        """Gives the finished part its final name in `folder` (on the same file system); `flush_folder` comes after.

        `suffix` is what the user typed, kept where the bytes agree. Where they do not, the name is one that the user
        did not give: no file of that name is replaced, and none is a reason to drop or fail a paid picture.
        Raises `FileError` (billed), also where the name is taken and `if_exists` is "error".
        """
        asked = folder / f"{stem}{suffix}" if suffix and SPELLINGS.get(suffix.lower()) != facts.format else None
        is_named = bool(suffix)
        suffix = SUFFIXES[facts.format] if asked or not suffix else suffix
        first = folder / f"{stem}{suffix}"
        if not is_named and if_exists == "overwrite" and not (first.is_symlink() or files.is_plain(first)):
            # A pipe, say, that lies under a name which nobody typed: it is left, as is whatever is behind a link.
            if_exists = "rename"
        with self._turn:
            return self._publish(first, "rename" if asked else if_exists, asked, is_named=is_named)

    def _publish(self, first: Path, rule: IfExists, asked: Path | None, *, is_named: bool) -> Published:
        if sys.platform == "win32":
            self._close()  # an open file can be neither renamed nor removed there
        if rule == "overwrite":
            _replace(self.path, first, is_named=is_named)
            return self._published(Published(first))
        if _claim(self.path, first):
            return self._published(Published(first, None, asked))
        if rule == "skip":
            self.discard()
            return Published(first, skipped=True)
        if rule == "error":
            hint = "`seedream recover` saves it under another name"
            raise FileError(f"{first} exists already, so the picture was not saved", hint=hint, billed="yes")
        free = next(path for path in _numbered(first) if _claim(self.path, path))
        return self._published(Published(free, first, asked))

    def _published(self, published: Published) -> Published:
        self._close()
        self._has_name = False
        return published

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Closes and removes the part; nothing happens where it was published."""
        with self._turn:
            self._close()
            if self._has_name:
                self.path.unlink(missing_ok=True)
                self._has_name = False


def open_part(folder: Path) -> Part:
    """A new part file in `folder`, which is made where it is missing. Never opens an existing file or a link."""
    path = folder / _part_name()
    try:
        try:
            descriptor = files.create_locked(path, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            _make_one(folder)
            descriptor = files.create_locked(path, 0o666)
    except OSError as error:
        raise _paid_error("write", path, error) from error
    return Part(path, descriptor)


def _part_name() -> str:
    return f".seedream-{os.urandom(6).hex()}.part"


_PART_NAME = re.compile(r"\.seedream-[0-9a-f]{12}\.part")


def _paid_error(verb: str, path: Path, error: OSError) -> FileError:
    hint = "the picture is paid for: set that right, then run `seedream recover`"
    return FileError(f"cannot {verb} {path}: {files.reason(error)}", hint=hint, billed="yes")


def flush_folder(folder: Path) -> None:
    """Makes the names of published pictures survive a power cut. Raises `FileError` (billed)."""
    try:
        files.flush_folder(folder)
    except OSError as error:
        raise _paid_error("flush", folder, error) from error


def _replace(part: Path, final: Path, *, is_named: bool) -> None:
    """The part in the place of a file. A link that the user named stays one, and what is no file is written to."""
    try:
        target = files.final_target(final) if is_named else final
        if target is None:
            with part.open("rb") as source, os.fdopen(files.open_stream(final), "wb") as stream:
                shutil.copyfileobj(source, stream)
            part.unlink()
        elif target == final:
            part.replace(final)
        else:
            # The file behind a link may lie on another disk.
            beside = target.with_name(_part_name())
            try:
                with part.open("rb") as source, os.fdopen(files.create(beside, 0o666), "wb") as copy:
                    shutil.copyfileobj(source, copy)
                    copy.flush()
                    os.fsync(copy.fileno())
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
            part.unlink()
    except (OSError, RuntimeError) as error:
        known = error if isinstance(error, OSError) else OSError("a loop of links")
        raise _paid_error("write", final, known) from error


def _numbered(first: Path) -> Iterator[Path]:
    """Names "stem-2", "stem-3", … from about the first free one: thousands may be taken, so they are bisected."""

    def name(number: int) -> Path:
        return first.with_stem(f"{first.stem}-{number}")

    low, high = 1, 2
    while os.path.lexists(name(high)):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if os.path.lexists(name(middle)) else (low, middle)
    return map(name, itertools.count(high))


def _claim(part: Path, final: Path) -> bool:
    """Moves the part to a name that nothing holds, as one step; False where something holds it."""
    try:
        files.move_to_free(part, final)
    except FileExistsError:
        return False
    except OSError as error:
        raise _paid_error("write", final, error) from error
    return True


def _digest(path: Path) -> str:
    """The sha256 of a file, whatever it holds: the one that lies there may be damaged."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_same(place: Place, facts: Facts) -> Path | None:
    """The picture itself where it is on disk already, under this place's name or a numbered one.

    A process may have died after it gave a picture its name and before it could write that down.
    """
    suffixes = {place.suffix or SUFFIXES[facts.format], SUFFIXES[facts.format]}
    for suffix in sorted(suffixes):
        taken = itertools.takewhile(os.path.lexists, _names(place.folder / f"{place.stem}{suffix}"))
        for path in taken:
            if path.is_file() and path.stat().st_size == facts.bytes and _digest(path) == facts.sha256:
                return path
    return None


def _names(first: Path) -> Iterator[Path]:
    yield first
    yield from (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2))


def sweep(folder: Path) -> int:
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
        stale = files.lock(descriptor)
        if stale:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return stale


# --- base64 ---------------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(rb"\\(?:([/nrt])|u00([0-9a-fA-F]{2}))")
_SPACES = b"\r\n\t "
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def write_blob(blob: Blob, part: Part) -> None:
    """Decodes a base64 picture from the kept reply straight into `part`, in bounded memory.

    Undoes what JSON writers do to base64: "/", "+" and "=" as escapes, line breaks, a data URI's prefix, the alphabet
    of URLs. Padding may be missing. Raises `LinkError` (not retryable: the reply stays as it is) for what is no base64,
    `FileError`.
    """
    if blob.is_raw:
        _copy(blob, part)
        return
    _decode(_blob_text(blob), part)


def write_base64(text: str, part: Part) -> None:
    """As `write_blob`, for base64 that is in memory already: short, or from a stream."""
    raw = text.encode("ascii", "replace")
    start = prefix.end() if (prefix := DATA_PREFIX.match(raw)) else 0
    _decode((raw[at : at + _WINDOW].translate(_URL_SAFE, _SPACES) for at in range(start, len(raw), _WINDOW)), part)


def _copy(blob: Blob, part: Part) -> None:
    """A picture that is no base64: the whole reply."""
    with _open_reply(blob.path) as file:
        file.seek(blob.offset)
        left = blob.length
        while left and (piece := file.read(min(_WINDOW, left))):
            part.write(piece)
            left -= len(piece)


def _decode(pieces: Iterable[bytes], part: Part) -> None:
    rest, padded = b"", False
    for text in pieces:
        rest += text
        whole = len(rest) // 4 * 4
        padded = _write_decoded(rest[:whole], part, after_padding=padded)
        rest = rest[whole:]
    if rest:
        _write_decoded(rest + b"=" * (-len(rest) % 4), part, after_padding=padded)


def _write_decoded(text: bytes, part: Part, *, after_padding: bool) -> bool:
    if not text:
        return after_padding
    if after_padding:
        raise LinkError("the picture's base64 goes on after its end")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise LinkError(f"the picture's base64 is damaged: {str(error).lower()}") from error
    part.write(data)
    return text.endswith(b"=")


def _blob_text(blob: Blob) -> Iterator[bytes]:
    """The characters of the base64 alone, piece by piece."""
    left, held, first = blob.length, b"", True
    with _open_reply(blob.path) as file:
        file.seek(blob.offset)
        while left:
            raw = file.read(min(_WINDOW, left))
            if not raw:
                raise LinkError(f"the kept reply {blob.path} stops before its picture's end")
            left -= len(raw)
            raw = held + raw
            if first and (prefix := DATA_PREFIX.match(raw)):
                raw = raw[prefix.end() :]
            first = False
            # An escape may lie across two reads: its start waits for its end.
            cut = raw.rfind(b"\\", max(0, len(raw) - 5)) if left else -1
            raw, held = (raw[:cut], raw[cut:]) if cut >= 0 else (raw, b"")
            yield _unescape(raw) if b"\\" in raw else raw.translate(_URL_SAFE, _SPACES)


def _open_reply(path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise LinkError(f"cannot read the kept reply {path}: {files.reason(error)}") from error


def _unescape(raw: bytes) -> bytes:
    def plain(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[2].decode()) if found[2] else b"/" if found[1] == b"/" else b""

    return _ESCAPE.sub(plain, raw).translate(_URL_SAFE, _SPACES)
