"""What is shown without asking a provider: the models, and what a request would be, as a plan, a command or a table."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..results import Cost, JobResult, SavedImage
from ..text import clean, clean_path, count_words, money_words
from .console import Console
from .json_output import (
    SCHEMA,
    JsonObject,
    is_reference,
    job_object,
    print_json,
    render_json,
    show_body,
    warning_objects,
)
from .tables import print_table

if TYPE_CHECKING:
    from ..errors import Problem
    from ..request.image_request import ImageRef


def _dollars(amount: float) -> str:
    return money_words(Cost(amount, "USD", ""))


def plan_object(
    body: Mapping[str, Any],
    names: Sequence[str],
    cost: Cost | None,
    url: str,
    *,
    command: str = "generate",
    provider: str = "",
) -> JsonObject:
    """A dry run for scripts: the usual envelope, with the address in `endpoint`."""
    images = tuple(SavedImage(index, path=Path(name)) for index, name in enumerate(names))
    model = str(body.get("model", ""))
    planned = JobResult(0, "", "planned", provider, model, body, images=images, cost=cost)
    return job_object(planned, command) | {"endpoint": url}


def combined_object(objects: Sequence[JsonObject], warnings: Sequence[Problem] = ()) -> JsonObject:
    """One object for what is planned, whatever the number of prompts: the first, with all of them in `requests`."""
    told = {"warnings": warning_objects(warnings)}
    if len(objects) == 1:
        return objects[0] | told
    images = [image for one in objects for image in one.get("images", [])]
    numbered = [{**image, "index": index} for index, image in enumerate(images)]
    return {**objects[0], "images": numbered, **told, "requests": list(objects)}


def explain_object(rows: Iterable[tuple[str, str, str, str]], *, command: str, provider: str) -> JsonObject:
    """What becomes of every option, for scripts."""
    options = [dict(zip(("option", "value", "sent_as", "note"), row, strict=True)) for row in rows]
    return {"schema": SCHEMA, "command": command, "status": "planned", "provider": provider, "options": options}


def plan_lines(body: Mapping[str, Any], names: Sequence[str], cost: Cost | None, url: str) -> list[str]:
    """What stands beside the body of a dry run: where it would go, what it would write, and the most it can cost."""
    references = sum(1 for _ in _references(body))
    with_them = f", with {count_words(references, 'reference image')}" if references else ""
    worst = "unknown, no price is known"
    if cost and cost.note:
        worst = f"up to about {money_words(cost)} ({cost.note}; as of {clean(cost.as_of)})"
    elif cost:
        worst = f"at most about {money_words(cost)} (price of {clean(cost.as_of)})"
    return [
        f"nothing was sent; it would go to {clean(url, 2000)}{with_them}",
        *(f"would write: {clean_path(name)}" for name in names),
        f"cost: {worst}",
    ]


def print_plan(body: Mapping[str, Any], names: Sequence[str], cost: Cost | None, url: str, console: Console) -> None:
    """A dry run: the body on standard output, the rest on standard error."""
    print_json(show_body(body), console, indent=2)
    for line in plan_lines(body, names, cost, url):
        console.err(line)


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif is_reference(value):
        yield value


def curl_command(url: str, body: Mapping[str, Any], key_variable: str, accept: str = "application/json") -> str:
    """A command for any POSIX shell that sends exactly this body; the key stays in the environment.

    The body is written to curl's standard input in pieces, since an argument has a length limit and a leading `@`
    a meaning; a local reference image is encoded from its file when the command runs.
    """
    pieces: list[str] = []
    text = ""
    for piece in _body_pieces(body):
        if isinstance(piece, str):
            text += piece
            continue
        pieces += [f"printf '%s' {_quote(text)}", _encode_file(piece)]
        text = ""
    pieces.append(f"printf '%s' {_quote(text)}")
    source = pieces[0] if len(pieces) == 1 else "{\n" + "".join(f"  {piece}\n" for piece in pieces) + "}"
    variable = key_variable if re.fullmatch(r"[A-Za-z_]\w*", key_variable, re.ASCII) else "SEEDREAM_API_KEY"
    unbuffered = " -N" if accept == "text/event-stream" else ""
    # -g: curl would otherwise read brackets and braces in the address as a range of addresses.
    options = [
        f"curl -sS -g{unbuffered} {_quote(url)}",
        f'-H "Authorization: Bearer ${variable}"',
        "-H 'Content-Type: application/json'",
        f"-H {_quote(f'Accept: {accept}')}",
        "--data-binary @-",
    ]
    return f"{source} | " + " \\\n  ".join(options)


def _body_pieces(value: Any) -> Iterator[str | ImageRef]:
    """The body's JSON, with each local file in its place in the text."""
    if isinstance(value, Mapping):
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else '{'}{render_json(str(key))}:"
            yield from _body_pieces(item)
        yield "}" if value else "{}"
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield "," if number else "["
            yield from _body_pieces(item)
        yield "]" if value else "[]"
    elif is_reference(value):
        yield from _reference_pieces(value)
    else:
        yield render_json(value)


def _reference_pieces(ref: ImageRef) -> Iterator[str | ImageRef]:
    if ref.kind == "url":
        yield render_json(ref.location)
        return
    yield render_json(f"data:{ref.mime};base64,")[:-1]
    if ref.sent is not None:
        # No command of a shell cuts the metadata out: what would leave stands in the text.
        from ..network.request_body import encode_reference

        yield b"".join(encode_reference(ref)).decode()
    else:
        yield base64.b64encode(ref.content).decode() if ref.content else ref
    yield '"'


def _encode_file(ref: ImageRef) -> str:
    """The shell command that writes a file as base64 on one line, whatever the file is called."""
    path = str(ref.path or ref.location)
    if clean_path(path) == path:
        return f"base64 < {_quote(path)} | tr -d '\\r\\n'"
    # A name with hidden characters is spelled in octal. The dot keeps a last newline, which $( ) would drop.
    octal = "".join(f"\\{byte:03o}" for byte in os.fsencode(path))
    return f"""name=$(printf '{octal}.'); base64 < "${{name%.}}" | tr -d '\\r\\n'"""


def _quote(text: str) -> str:
    """Text as one word of any POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def print_explained(rows: Iterable[tuple[str, str, str, str]], console: Console) -> None:
    """How each option was renamed, defaulted or dropped: option, value, what is sent, and why."""
    print_table(console, ("option", "value", "sent as", "note"), list(rows))
