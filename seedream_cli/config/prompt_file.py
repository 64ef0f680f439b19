"""Prompts from files and standard input, with the options in their header."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, Problem
from ..storage.file_kinds import HEAD, TAIL, FileKind, find_absent, find_kind, find_stand_in
from ..text import nearest
from .option_kinds import BadValueError
from .options import Option, by_name, find_option

PROMPT_MOST = 1024 * 1024
"""Most bytes of a prompt file."""

FENCE = "+++"


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt and the options of its header by key, each with its origin ("shot.txt:3")."""

    text: str
    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    first_line: int = 1
    is_template: bool = False


def read_prompts(argument: str | None, files: Sequence[str]) -> tuple[list[PromptText], list[Problem]]:
    """Every prompt of the run (the argument, each file, or standard input, `-`), and all problems in them."""
    if argument is not None and files:
        return [], [Problem("prompt", "the prompt was given twice", "give the argument or --prompt-file, not both")]
    if files.count("-") > 1:
        return [], [Problem("prompt_file", "standard input can be read only once", origin="--prompt-file")]
    if argument is not None and argument != "-":
        return [PromptText(argument, origin="PROMPT")], []
    prompts, problems = [], list[Problem]()
    for name in files or ([argument] if argument else []):
        text, wrong = read_text(name, field="prompt_file" if files else "prompt")
        problems += wrong
        if text is not None:
            prompt, wrong = split_header(text, "standard input" if name == "-" else name)
            prompts.append(prompt)
            problems += wrong
    return prompts, problems


def read_text(name: str, *, field: str) -> tuple[str | None, list[Problem]]:
    """A UTF-8 file, or standard input for `-`, without BOM and one trailing newline; None with problems."""
    origin = "standard input" if name == "-" else name
    try:
        raw = _stdin().read(PROMPT_MOST + 1) if name == "-" else _read_bytes(Path(name))
        text = raw.decode("utf-8-sig")
    except (OSError, RuntimeError) as error:
        # RuntimeError: "~name" of a user that does not exist.
        if name != "-" and isinstance(error, FileNotFoundError) and (absent := find_absent(Path(name))):
            return None, [_wrong_kind(field, origin, absent)]
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        return None, [Problem(field, f"cannot read {origin}: {reason.lower()}", origin=origin)]
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError) and (found := find_kind(raw[:HEAD], tail=raw[-TAIL:], name=origin)):
            return None, [_wrong_kind(field, origin, found)]
        line = raw.count(b"\n", 0, error.start) + 1 if isinstance(error, UnicodeDecodeError) else 0
        where = f"{origin}:{line}" if line else origin
        return None, [Problem(field, f"{origin} is not UTF-8", "save it as UTF-8", origin=where)]
    if len(raw) > PROMPT_MOST:
        return None, [Problem(field, f"{origin} is too long for a prompt (over {PROMPT_MOST} bytes)", origin=origin)]
    # A Git LFS pointer or HTML error page is text, and would be paid for as a prompt.
    if found := find_stand_in(raw[:HEAD]) or (find_kind(raw[:HEAD], name=origin) if "\x00" in text else None):
        return None, [_wrong_kind(field, origin, found)]
    if "\x00" in text:
        return None, [Problem(field, f"{origin} holds zero bytes, so it is no text", origin=origin)]
    return text.removesuffix("\n").removesuffix("\r"), []


def _wrong_kind(field: str, origin: str, kind: FileKind) -> Problem:
    """The problem for a file of another kind than text."""
    return Problem(field, f"{origin} is {kind.what}", kind.hint, origin=origin)


def read_chunks(name: str) -> Iterator[bytes]:
    """A file's bytes (standard input for `-`) in chunks. Raises `InputError` where it cannot be read."""
    try:
        with contextlib.nullcontext(_stdin()) if name == "-" else Path(name).open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except OSError as error:
        origin = "standard input" if name == "-" else name
        raise InputError([Problem("file", f"cannot read {origin}: {error.strerror}")]) from error


def _stdin() -> BinaryIO:
    """Standard input; OSError where the process was started without one."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "it is closed")
    return sys.stdin.buffer


def _read_bytes(path: Path) -> bytes:
    """At most `PROMPT_MOST` + 1 bytes: a huge file is reported as too long without reading it into memory."""
    with path.expanduser().open("rb") as file:
        return file.read(PROMPT_MOST + 1)


def split_header(text: str, origin: str) -> tuple[PromptText, list[Problem]]:
    """Split a prompt from the TOML header between two lines `+++`; without a header the text is the prompt."""
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].strip() != FENCE:
        return PromptText(text, origin=origin), []
    end = next((number for number, line in enumerate(lines[1:], 1) if line.strip() == FENCE), None)
    if end is None:
        where = f"{origin}:1"
        return PromptText(text, origin=origin), [
            Problem(
                "prompt_file", f"the block that opens with {FENCE} never ends", f"close it with {FENCE}", origin=where
            )
        ]
    table, problems = _parse_toml("".join(lines[1:end]), origin)
    reader = _Header(lines[1:end], origin)
    reader.read(table)
    body = "".join(lines[end + 1 :])
    empty = len(body) - len(body.lstrip("\r\n"))
    prompt = PromptText(
        body.strip("\r\n"),
        reader.values,
        reader.switches,
        reader.lists,
        reader.variables,
        reader.origins,
        origin,
        end + 2 + body.count("\n", 0, empty),
        is_template=True,
    )
    return prompt, problems + reader.problems


def _parse_toml(text: str, origin: str) -> tuple[Mapping[str, Any], list[Problem]]:
    """Parse the header; an error is reported with its line in the file."""
    import tomllib

    try:
        return tomllib.loads(text), []
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        line = int(found[1]) + 1 if found else 2 + text.count("\n")
        message = re.sub(r" \(at .*\)$", "", str(error)).lower()
        return {}, [Problem("prompt_file", f"no TOML: {message}", origin=f"{origin}:{line}")]


class _Header:
    """Sorts a header's keys into values, switches and lists by the kind of option."""

    def __init__(self, lines: Sequence[str], origin: str) -> None:
        self.lines = lines
        self.origin = origin
        self.values: dict[str, str] = {}
        self.switches: dict[str, bool] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.variables: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[Problem] = []

    def read(self, table: Mapping[str, Any]) -> None:
        """Read every key; an invalid one is added to `problems` with its line."""
        for name, value in table.items():
            option = find_option(name)
            if option is None:
                near = nearest(name, by_name())
                hint = f"did you mean {near[0]}?" if near else "the options are those of seedream generate --help"
                self.add_error(name, f"unknown option {name}", hint)
                continue
            self.origins[option.key] = self.location(name)
            self.read_option(name, option, value)

    def read_option(self, name: str, option: Option, value: Any) -> None:
        """One option's value, by its kind."""
        if option.key == "var":
            self.read_variables(name, value)
        elif not option.accepts("prompt"):
            self.add_error(name, f"{name} cannot stand in a prompt file", "give it on the command line")
        else:
            try:
                parsed = option.parse_toml(value)
            except BadValueError as error:
                self.add_error(name, error.message, error.hint)
                return
            if option.kind == "switch":
                self.switches[option.key] = parsed
            elif option.kind == "list":
                self.lists[option.key] = tuple(map(self.resolve_reference, parsed)) if option.key == "image" else parsed
            else:
                self.values[option.key] = parsed

    def resolve_reference(self, reference: str) -> str:
        """The path of a reference, which is relative to the prompt file's folder, as in a table."""
        folder = Path(self.origin).parent
        if reference == "-" or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", reference) or folder == Path():
            return reference
        return str(folder / Path(reference).expanduser())

    def read_variables(self, name: str, value: Any) -> None:
        """`[var]` as a table, or `var` as the text or texts that `--var` takes."""
        pairs: dict[str, Any] = {}
        if isinstance(value, dict):
            pairs = value
        else:
            for item in value if isinstance(value, list) else [value]:
                key, equals, text = str(item).partition("=")
                pairs[key] = text if equals else None
        for key, text in pairs.items():
            if isinstance(text, bool) or not isinstance(text, str | int | float):
                self.add_error(name, f"the variable {key} has no text", 'write [var] and name = "value" below it')
            else:
                self.variables[key.strip()] = str(text)

    def location(self, name: str) -> str:
        """ "FILE:LINE" of a key."""
        pattern = re.compile(rf"\s*\[?[\"']?{re.escape(name)}[\"']?\s*[=.\]]")
        number = next((n for n, line in enumerate(self.lines) if pattern.match(line)), 0)
        return f"{self.origin}:{number + 2}"

    def add_error(self, name: str, message: str, hint: str = "") -> None:
        """Add a problem at a key."""
        self.problems.append(Problem(name, message, hint, origin=self.location(name)))


_VARIABLE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_.-]*)\}")


def fill(prompt: PromptText, variables: Mapping[str, str]) -> tuple[str, list[Problem]]:
    """Replace `{name}` by its variable, `{{` and `}}` by braces. Braces without a name stay. Returns problems too."""
    if not (prompt.is_template or variables):
        return prompt.text, []
    known = {**prompt.variables, **variables}
    problems = []

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return found[0][0]
        if name not in known:
            line = prompt.first_line + prompt.text.count("\n", 0, found.start())
            near = nearest(name, known)
            hint = (
                f"did you mean {{{near[0]}}}?" if near else f"give --var {name}=… (or write {{{{{name}}}}} for braces)"
            )
            problems.append(Problem("prompt", f"no value for {{{name}}}", hint, origin=f"{prompt.origin}:{line}"))
            return found[0]
        return known[name]

    return _VARIABLE.sub(replace, prompt.text), problems
