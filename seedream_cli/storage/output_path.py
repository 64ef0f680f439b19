"""Where images go: `--output`, `--name` and `--if-exists`, proved to be writable before anything is paid."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import FileError, InputError, Problem
from . import filesystem
from .file_names import render_name, scheme_problem
from .image_info import SPELLINGS, SUFFIXES

IfExists = Literal["rename", "skip", "error", "overwrite"]

_ROOM_BYTES = 8 << 20

_NAME_MOST = 255

_DEEPEST = 200


@dataclass(frozen=True, slots=True)
class OutputPath:
    """Where one image goes: its folder, its name, and the suffix the user typed, "" where the bytes alone decide."""

    folder: Path
    stem: str
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class OutputTarget:
    """What `--output`, `--name` and `--if-exists` add up to. With `stdout` the folder is for temporary files."""

    folder: Path
    if_exists: IfExists
    images: int
    template: str | None = None
    file: Path | None = None
    stdout: bool = False

    def place(self, fields: Mapping[str, str], *, number: int = 1, of: int = 1, default: str = "{slug}") -> OutputPath:
        """The place of image `number` (from 1) of `of`; `default` is the template where the user gave none.

        Where several images would share a name, it gets "-1", "-2", … at its end.
        """
        if self.file is not None:
            stem = self.file.stem if max(of, self.images) <= 1 else f"{self.file.stem}-{number}"
            return OutputPath(self.folder, stem, self.file.suffix)
        template = self.template or default
        path = Path(render_name(template, {**fields, "index": str(number)}))
        numbered = of <= 1 or any(name == "index" for _, name, _, _ in string.Formatter().parse(template))
        return OutputPath(self.folder / path.parent, path.name if numbered else f"{path.name}-{number}")

    def prepare(self, places: Iterable[OutputPath] = ()) -> None:
        """Before anything is paid: makes the folders, proves that they can be written, refuses names that are taken.

        `places` are those known in advance; an explicit file needs none. Raises `FileError` (nothing was sent) for
        the disk and `InputError` for every name that exists while `--if-exists` is "error".
        """
        if self.file is not None:
            places = [self.place({}, number=number, of=self.images) for number in range(1, self.images + 1)]
        taken, proved = list[Path](), set[Path]()
        for place in [OutputPath(self.folder, ""), *places]:
            if place.folder not in proved:
                _make_folder(self.folder, place.folder)
                _prove_room(place.folder)
                proved.add(place.folder)
            if place.stem and self.if_exists == "error" and (path := existing(place)):
                taken.append(path)
        if taken:
            hint = "--if-exists rename keeps both, skip leaves the old one, overwrite replaces it"
            raise InputError([Problem("output", f"{path} exists already", hint) for path in taken])


def existing(place: OutputPath) -> Path | None:
    """The file that holds this place's name already: under the suffix typed, or under any image's suffix."""
    suffixes = (place.suffix,) if place.suffix else SPELLINGS
    paths = (place.folder / f"{place.stem}{suffix}" for suffix in suffixes)
    # A dangling link takes a name too, though exists() is blind to it.
    return next((path for path in paths if os.path.lexists(path)), None)


def plan_output(
    output: str | None, *, images: int, if_exists: IfExists | None = None, template: str | None = None
) -> OutputTarget:
    """Reads `--output`: a folder, a file named by an image's suffix, "-" for standard output, None for here.

    Looks at the disk but changes nothing. For an explicit file `template` is not used. Raises `InputError`.
    """
    if if_exists is not None and if_exists not in get_args(IfExists):
        hint = f"one of {', '.join(get_args(IfExists))}"
        raise InputError([Problem("if_exists", f'unknown value "{if_exists}"', hint)])
    if output == "-":
        return _plan_stdout(images, if_exists)
    if output is not None and (not output.strip() or "\0" in output):
        raise InputError([Problem("output", "the output path is empty or holds a NUL", "give a folder or a file")])
    if output is not None and (problem := scheme_problem("output", output)):
        raise InputError([problem])
    path = Path(output or ".")
    if problem := _length_problem(path, images):
        raise InputError([problem])
    if output is None or output.endswith(tuple(filter(None, ("/", os.sep, os.altsep)))) or _is_folder(path):
        return OutputTarget(path, if_exists or "rename", images, template)
    if path.suffix.lower() in SPELLINGS:
        return OutputTarget(path.parent, if_exists or "error", images, file=path)
    if os.path.lexists(path):
        raise InputError([Problem("output", f"{path} is a file, but not named as an image", _NAME_HINT)])
    if path.suffix:
        raise InputError([Problem("output", f"{path.suffix} is no image's suffix (in {path})", _NAME_HINT)])
    return OutputTarget(path, if_exists or "rename", images, template)


def _length_problem(path: Path, images: int) -> Problem | None:
    """What no disk takes as a file: found out before anything is paid, for an image may come that has no place."""
    is_file = path.suffix.lower() in SPELLINGS
    name = path.name + (f"-{images}" if images > 1 else "")
    if is_file and (length := len(os.fsencode(name))) > _NAME_MOST:
        return Problem("output", f"a name of {length} bytes is longer than disks take, {_NAME_MOST}", "shorten it")
    if len(path.parts) > _DEEPEST:
        return Problem("output", f"{len(path.parts)} folders deep is deeper than is made, {_DEEPEST}", "shorten it")
    return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # an impossible name, or a folder that may not be entered: making it says which


_NAME_HINT = f"end a file in {', '.join(SUFFIXES.values())}, a folder in /"


def _plan_stdout(images: int, if_exists: IfExists | None) -> OutputTarget:
    import tempfile

    if images > 1:
        message = f"standard output takes one image, and up to {images} were asked for"
        raise InputError([Problem("output", message, "give a folder with --output")])
    return OutputTarget(Path(tempfile.gettempdir()), if_exists or "rename", images, stdout=True)


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
        raise FileError(
            f"there is no folder {folder}: {filesystem.reason(error)}", hint="name one with --output"
        ) from error


def _make_one(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = [folder, *folder.parents]
        other = next((path for path in above if os.path.lexists(path) and not _is_folder(path)), None)
        reason = f"{other} is not a folder" if other else filesystem.reason(error)
        raise FileError(f"cannot make the folder {folder}: {reason}", hint="choose another with --output") from error


def _prove_room(folder: Path) -> None:
    """Proves by a file that the folder can be written: modes say nothing to root, and a mount may be read-only."""
    try:
        _write_proof(folder / filesystem.part_name())
        free = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "choose another folder with --output"
        raise FileError(f"cannot write to the folder {folder}: {filesystem.reason(error)}", hint=hint) from error
    if free < _ROOM_BYTES:
        hint = "make room, or choose another folder with --output"
        raise FileError(f"only {free / 1e6:.1f} MB are free in {folder}", hint=hint)


def _write_proof(path: Path) -> None:
    descriptor = filesystem.create(path)
    try:
        os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
        # Another run may have swept it away already.
        path.unlink(missing_ok=True)
