"""The models for people and for the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..request.models import ModelSpec, PriceStep
from ..text import clean
from .console import Console
from .dry_run import _dollars
from .json_output import SCHEMA, JsonObject, plain_value
from .tables import print_facts, print_table, print_text

_MODEL_COLUMNS = ("model", "sizes", "references", "sequence", "stream", "formats", "list price", "as of")


def print_models(rows: Iterable[ModelSpec], console: Console) -> None:
    """All models, a line each. A terminal too narrow for all columns loses the least telling ones first."""
    print_table(console, _MODEL_COLUMNS, [_model_row(model) for model in rows], drop=("formats", "stream", "as of"))


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


def print_model(model: ModelSpec, console: Console) -> None:
    """All that is known of one model, in sections."""
    facts = {
        "aliases": ", ".join(model.aliases),
        "status": "" if model.status == "current" else model.status,
        "default size": model.default_size,
        "size words": ", ".join(model.keywords),
        "own sizes": _own_sizes(model),
        "references": _reference_words(model),
        "sequence": f"up to {model.sequence_max} images in one request" if model.sequence_max else "no",
        "layers": _layer_words(model),
        "formats": ", ".join(model.formats),
        "default format": model.default_format if len(model.formats) > 1 else "",
        "not served at": "; ".join(f"{host} since {day}" for host, day in model.not_served_at.items()),
        "optimize-prompt": ", ".join(model.optimize_modes),
        "as of": model.as_of,
        "source": model.source,
    }
    print_text(console, f"{clean(model.title)} ({clean(model.name)})", "bold cyan")
    print_facts(console, [(name, value) for name, value in facts.items() if value])
    _print_section(console, "sizes", _size_headers(model), _size_rows(model))
    rules = [(option.replace("_", "-"), rule.state, rule.note) for option, rule in model.rules.items()]
    _print_section(console, "parameters", ("option", "state", "note"), rules)
    ids = [(family, ", ".join(spellings)) for family, spellings in model.ids.items()]
    _print_section(console, "ids", ("provider", "id"), ids)
    prices = [(_family(family), price_words(steps)) for family, steps in model.price.items()]
    _print_section(console, f"price an image, as of {clean(model.price_as_of)}", ("provider", "price"), prices)
    if "*" in model.price:
        said = "the list price is the vendor's (ark, byteplus); that of a provider which is not listed may differ"
        print_text(console, said)


def _print_section(console: Console, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A titled table, or nothing where there are no rows."""
    if rows:
        console.out("")
        print_text(console, f"{title}:", "bold")
        print_table(console, headers, rows, indent=2)


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
