"""What is shown without asking a provider: the models, and what a request would be, as a plan, a command or a table."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .envelope import SCHEMA, JsonObject, is_reference, job_object, plain_value, print_json, render_json, show_body
from .models import ModelSpec, PriceStep
from .results import Cost, JobResult, SavedImage
from .streams import Streams
from .text import clean, clean_path, count_words, fits, money_words, pair, stack, table_lines, wrap

if TYPE_CHECKING:
    from .errors import Problem
    from .request import ImageRef

# --- models ---------------------------------------------------------------------------------------------------------

_MODEL_COLUMNS = ("model", "sizes", "references", "sequence", "stream", "formats", "list price", "as of")


def models_table(rows: Iterable[ModelSpec], width: int) -> list[str]:
    """All models, a line each. A terminal too narrow for all columns loses the least telling ones first."""
    cells = [dict(zip(_MODEL_COLUMNS, _model_row(model), strict=True)) for model in rows]
    headers: list[str] = list(_MODEL_COLUMNS)
    for dropped in ("", "formats", "stream", "as of"):
        headers = [header for header in headers if header != dropped]
        listed = [[row[header] for header in headers] for row in cells]
        if fits(headers, listed, width):
            return table_lines(headers, listed, width)
    return stack(_MODEL_COLUMNS, [list(row.values()) for row in cells], width)


def models_markdown(rows: Iterable[ModelSpec]) -> str:
    """The same as a Markdown table."""
    listed = [_MODEL_COLUMNS, ("---",) * len(_MODEL_COLUMNS), *(_model_row(model) for model in rows)]
    cells = ([clean(cell, None).replace("\\", "\\\\").replace("|", "\\|") for cell in row] for row in listed)
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def models_object(rows: Iterable[ModelSpec]) -> JsonObject:
    """All models for scripts."""
    return {"schema": SCHEMA, "models": [plain_value(model) for model in rows]}


def model_object(model: ModelSpec) -> JsonObject:
    """One model for scripts."""
    plain: JsonObject = plain_value(model)
    return {"schema": SCHEMA, **plain}


def model_detail(model: ModelSpec, width: int) -> list[str]:
    """All that is known of one model, in sections."""
    facts = {
        "aliases": ", ".join(model.aliases),
        "status": "" if model.status == "current" else model.status,
        "default size": model.default_size,
        "size words": ", ".join(model.keywords),
        "own sizes": _own_sizes(model),
        "references": _reference_words(model),
        "sequence": f"up to {model.sequence_max} pictures in one request" if model.sequence_max else "no",
        "layers": _layer_words(model),
        "formats": ", ".join(model.formats),
        "default format": model.default_format if len(model.formats) > 1 else "",
        "not served at": "; ".join(f"{host} since {day}" for host, day in model.not_served_at.items()),
        "optimize-prompt": ", ".join(model.optimize_modes),
        "as of": model.as_of,
        "source": model.source,
    }
    lines = wrap(f"{clean(model.title)} ({clean(model.name)})", width)
    for name, value in facts.items():
        lines += pair(name, value, width) if value else []
    lines += _section("sizes", _size_headers(model), _size_rows(model), width)
    rules = [(option.replace("_", "-"), rule.state, rule.note) for option, rule in model.rules.items()]
    lines += _section("parameters", ("option", "state", "note"), rules, width)
    ids = [(family, ", ".join(spellings)) for family, spellings in model.ids.items()]
    lines += _section("ids", ("provider", "id"), ids, width)
    prices = [(_family(family), price_words(steps)) for family, steps in model.price.items()]
    lines += _section(f"price a picture, as of {clean(model.price_as_of)}", ("provider", "price"), prices, width)
    said = "the list price is the vendor's (ark, byteplus); that of a provider which is not listed may differ"
    return lines + (wrap(said, width) if "*" in model.price else [])


def _section(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """A titled table, or nothing where there are no rows."""
    if not rows:
        return []
    return ["", f"{title}:", *(f"  {line}".rstrip() for line in table_lines(headers, rows, width - 2))]


def _model_row(model: ModelSpec) -> tuple[str, ...]:
    name = model.name if model.status == "current" else f"{model.name} ({model.status})"
    return (
        name,
        " ".join(model.tiers) or model.default_size,
        _span(*model.references),
        f"up to {model.sequence_max}" if model.sequence_max else "no",
        _stream_word(model),
        " ".join(model.formats),
        _price_span(model.price.get("*", ())),
        model.price_as_of or model.as_of,
    )


def _stream_word(model: ModelSpec) -> str:
    rule = model.rules.get("stream")
    return {"taken": "yes", "unconfirmed": "unconfirmed"}.get(rule.state, "no") if rule else "yes"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _own_sizes(model: ModelSpec) -> str:
    if not model.pixels:
        return ""
    return f"WIDTHxHEIGHT of {_pixels(model.pixels)}, width / height {_ratio(model.ratio)}"


def _ratio(span: tuple[float, float]) -> str:
    low, high = (f"1/{round(1 / bound)}" if 0 < bound < 1 else f"{bound:g}" for bound in span)
    return f"{low} to {high}"


def _reference_words(model: ModelSpec) -> str:
    if not model.references[1]:
        return "none"
    most, safe = model.reference_bytes / 1e6, model.reference_bytes_safe / 1e6
    facts = [
        ", ".join(model.reference_formats),
        f"up to {most:g} MB each" + (f", {safe:g} MB is safe" if safe < most else ""),
        f"{_pixels(model.reference_pixels)}, sides of {model.reference_side} or more",
        f"width / height {_ratio(model.reference_ratio)}",
    ]
    elsewhere = (f"{name}: {', '.join(taken)}" for name, taken in model.reference_formats_at.items())
    return f"{_span(*model.references)} ({'; '.join([*facts, *elsewhere])})"


def _layer_words(model: ModelSpec) -> str:
    if not model.layers_max:
        return ""
    source = f"{', '.join(model.layer_reference_formats)}; {_pixels(model.layer_reference_pixels)}"
    usual = f", {model.layers_images} images in all if no number is asked for" * (
        model.layers_images <= model.layers_max
    )
    return f"up to {model.layers_max} above the base{usual}; sizes {', '.join(model.layer_sizes)}; from one {source}"


def _pixels(span: tuple[int, int]) -> str:
    return f"{span[0]:,} to {span[1]:,} pixels"


def _size_headers(model: ModelSpec) -> tuple[str, ...]:
    return ("aspect", *model.tiers) if model.tiers else ("aspect", "size")


def _size_rows(model: ModelSpec) -> list[tuple[str, ...]]:
    """A row an aspect ratio: its exact pixels at every tier."""
    if not model.tiers:
        return list(model.aspects.items())
    aspects = dict.fromkeys(aspect for sizes in model.tiers.values() for aspect in sizes)
    return [(aspect, *(sizes.get(aspect, "-") for sizes in model.tiers.values())) for aspect in aspects]


def _family(name: str) -> str:
    return "list price" if name == "*" else name


def _price_span(steps: Sequence[PriceStep]) -> str:
    """Such as "$0.03 to $0.05"."""
    amounts = sorted({step.amount for step in steps})
    return " to ".join(map(_dollars, amounts[:1] + amounts[1:][-1:])) or "unknown"


def price_words(steps: Sequence[PriceStep]) -> str:
    """Such as "$0.03 for 1K, 1.5K or up to 2.36 MP; $0.05 for 2K or above; $0.003 more a reference"."""
    words: list[str] = []
    for step in steps:
        spans = [", ".join(step.tiers)]
        if step.max_pixels is None:
            spans.append("above" if words else "")
        elif step.max_pixels:
            spans.append(f"up to {step.max_pixels / 1e6:.3g} MP")
        span = " or ".join(filter(None, spans))
        words.append(f"{_dollars(step.amount)}{' for ' * bool(step.tiers) or ' ' * bool(span)}{span}")
    extra = max((step.per_reference for step in steps), default=0.0)
    words += [f"{_dollars(extra)} more a reference"] if extra else []
    return "; ".join(words) or "unknown"


def _dollars(amount: float) -> str:
    return money_words(Cost(amount, "USD", ""))


# --- what would be sent ---------------------------------------------------------------------------------------------


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
    told = {"warnings": [{"code": warning.code, "message": warning.message} for warning in warnings]}
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
    with_them = f", with {count_words(references, 'reference picture')}" if references else ""
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


def print_plan(body: Mapping[str, Any], names: Sequence[str], cost: Cost | None, url: str, streams: Streams) -> None:
    """A dry run: the body on standard output, the rest on standard error."""
    print_json(show_body(body), streams, indent=2)
    for line in plan_lines(body, names, cost, url):
        streams.err(line)


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
    a meaning; a local reference picture is encoded from its file when the command runs.
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
        from .body import encode_reference

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


def explain_table(rows: Iterable[tuple[str, str, str, str]], width: int) -> list[str]:
    """How each option was renamed, defaulted or dropped: option, value, what is sent, and why."""
    return table_lines(("option", "value", "sent as", "note"), rows, width)
