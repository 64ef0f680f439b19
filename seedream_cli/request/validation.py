"""Validation: makes an `ImageRequest` of option values, or reports all problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Problem
from . import extra_fields
from .findings import Findings
from .image_request import STDIN, ImageRef, ImageRequest, OptionValues, TargetModel
from .model_checks import check_for_model
from .models import Rule
from .sizes import aspect_meant, resolve_aspect, size_hint, size_problem


@dataclass(frozen=True, slots=True)
class Validated:
    """The request, None where a problem of severity "error" was found; and how often to send it.

    `dropped` are the options that were set and are not sent, each with its rule.
    """

    request: ImageRequest | None
    count: int
    problems: tuple[Problem, ...]
    dropped: Mapping[str, Rule]


def build(
    options: OptionValues, values: Mapping[str, Any], target_model: TargetModel, images: Sequence[ImageRef] = ()
) -> Validated:
    """Validate options for one provider and model. Reports all problems, not the first.

    `values` are the options' by key, read; what could not be read is not among them, and was reported.
    """
    builder = _RequestBuilder(options, values, target_model)
    wanted: dict[str, Any] = {
        **{name: values.get(name) for name in ("seed", "guidance_scale", "optimize_prompt", "background")},
        **{name: values.get(name) for name in ("sequence", "callback_url")},
        **{name: builder.switch(name) for name in ("stream", "web_search", "layers")},
        "format": values.get("format") or builder.format_of_suffix(),
    }
    fields: dict[str, Any] = {
        "provider": target_model.provider,
        "model": target_model.model.name if target_model.model else "",
        "model_id": target_model.model_id,
        "prompt": builder.prompt(needed=not wanted["layers"]),
        "size": builder.size(layers=bool(wanted["layers"])),
        "response_format": values.get("response_format", "url"),
        "watermark": builder.switch("watermark"),
        "images": tuple(images),
        "extra": builder.extra(),
    }
    builder.check_texts({**fields, **wanted})
    fields.update(builder.apply_rules(wanted))
    # After the rules, which may drop `stream`: a task is the default only without a stream.
    tasks = builder.asynchronous(
        streaming=bool(fields.get("stream")), called_back=fields.get("callback_url") is not None
    )
    fields.update(builder.apply_rules({"asynchronous": tasks}))
    check_for_model(fields, target_model, builder.found)
    failed = any(p.severity == "error" for p in builder.found.problems)
    request = None if failed else ImageRequest(**{k: v for k, v in fields.items() if v is not None})
    return Validated(request, values.get("count", 1), tuple(builder.found.problems), builder.dropped)


# Dropping one of these would change what the user pays for, so they are refused instead.
_ESSENTIAL = {"sequence", "layers", "images", "callback_url", "background"}

_RULED = {"asynchronous": "async"}


class _RequestBuilder:
    """Reads options by the rules of one provider and model, and collects all problems."""

    def __init__(self, options: OptionValues, values: Mapping[str, Any], target_model: TargetModel) -> None:
        self.options = options
        self.values = values
        self.target_model = target_model
        self.found = Findings(options)
        self.dropped: dict[str, Rule] = {}

    def switch(self, name: str) -> bool:
        """Whether a switch is on."""
        return self.options.switches.get(name, False)

    def asynchronous(self, *, streaming: bool, called_back: bool) -> bool | None:
        asked = self.options.switches.get("asynchronous")
        if asked and streaming:
            self.found.add_error("asynchronous", "a task cannot stream its images", "leave out --async or --stream")
        if called_back and streaming:
            self.found.add_error("callback_url", "a stream calls nobody back", "leave out --callback-url or --stream")
        if asked is None:
            return (self.target_model.asynchronous and not streaming and not called_back) or None
        return asked or None

    def prompt(self, *, needed: bool) -> str | None:
        prompt = self.options.values.get("prompt")
        if prompt is None or not prompt.strip():
            if needed:
                self.found.add_error("prompt", "there is no prompt" if prompt is None else "the prompt is empty")
            return None
        if _is_broken(prompt):
            self.found.add_error("prompt", "the prompt holds bytes that are no UTF-8", "save it as UTF-8")
            return None
        return prompt

    def check_texts(self, fields: Mapping[str, Any]) -> None:
        """Texts that JSON cannot encode: lone surrogates from arguments that were no UTF-8."""
        for name, option in {"model_id": "model", "callback_url": "callback_url", "extra": "extra"}.items():
            if _is_broken(json.dumps(fields[name], ensure_ascii=False)):
                self.found.add_error(option, "it holds bytes that are no UTF-8")

    def size(self, *, layers: bool) -> str:
        model = self.target_model.model
        default = model.default_size if model else "2K"
        if layers and model and model.layer_sizes:
            # The provider's default, and the cheapest: layers of the image's own size.
            default = model.layer_sizes[0]
        size: str = self.values.get("size", default)
        aspect = self.values.get("aspect")
        if aspect is not None:
            size = self.size_for_aspect(size, aspect)
        problem = size_problem(model, size, layers=layers) if model else None
        if model is None and aspect_meant(size):
            problem = f"{size!r} is a shape, not a size: {size_hint(size)}"
        if problem and size in self.target_model.unconfirmed_sizes and not self.found.strict and not layers:
            where = f"{self.target_model.provider} lists {size} as a size"
            self.found.warn("size", f"{where}, the model's own pages do not; sent as it is", code="size_unconfirmed")
        elif problem:
            self.found.refuse("size", problem)
        return size

    def format_of_suffix(self) -> str | None:
        """The format for the output file's suffix, if the model makes it and it is not the default; else None."""
        model, output = self.target_model.model, self.values.get("output", "")
        wanted_format = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg"}.get(output.rpartition(".")[2].lower())
        if model is None or wanted_format is None or self.values.get("background") or self.switch("layers"):
            return None
        is_made = self.target_model.rule("format").state == "taken" and wanted_format in model.formats
        return wanted_format if is_made and wanted_format != model.default_format else None

    def size_for_aspect(self, size: str, aspect: str) -> str:
        """The exact pixels of a tier for an aspect ratio."""
        if self.target_model.model is None:
            self.found.add_error(
                "aspect", "the pixels for a ratio are not known for this model", "give --size WIDTHxHEIGHT"
            )
            return size
        pixels = resolve_aspect(self.target_model.model, size, aspect)
        if isinstance(pixels, Problem):
            self.found.add_error("aspect", pixels.message, pixels.hint)
            return size
        return pixels

    def extra(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for pair in self.options.lists.get("extra", ()):
            key, equals, text = pair.partition("=")
            if not equals or not key.strip():
                self.found.add_error(
                    "extra", f"{pair!r} is not KEY=JSON", "write --extra 'key=\"text\"' or --extra key=1"
                )
                continue
            value, problem = _parse_json(text)
            if problem:
                quoted = json.dumps(text, ensure_ascii=False)
                self.found.add_error(
                    "extra", f"the value of {key} is no JSON: {problem}", f"text is written {key}={quoted}"
                )
            else:
                merged[key] = value
        for one in extra_fields.fields_of(without_ignored(merged, self.target_model.ignored_fields)):
            self.check_extra_field(one)
        return merged

    def check_extra_field(self, found: extra_fields.Field) -> None:
        """Refuse a field that an option sets: costs and parsing are derived from the options."""
        why = {
            "money": f"{found.path} bears on how many images come or what they cost",
            "reading": f"{found.path} changes how the answer must be read",
        }.get(found.affects)
        if why and self.found.force:
            self.found.warn("extra", f"{why}; sent because of --force", code="extra_forced")
        elif why:
            option = "`seedream edit --layers`, or a column layers" if found.option == "--layers" else found.option
            self.found.add_error("extra", why, f"use {option}")
        elif found.affects == "unknown":
            message = f"{found.path} is no field of the API that is known here, so what the request costs is not known"
            self.found.warn("extra", message, code="extra_unknown")

    def apply_rules(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the rules of model and provider to the options that were set: keep, drop, warn or refuse."""
        admitted: dict[str, Any] = {}
        for name, value in wanted.items():
            if value is None or value is False:
                continue
            rule = self.rule_for(name, value)
            if rule.state == "taken" or (rule.state == "unconfirmed" and name == "asynchronous"):
                admitted[name] = value
                continue
            if self.apply_rule(name, rule, essential=name in _ESSENTIAL and value != "opaque"):
                admitted[name] = value
            else:
                self.dropped[name] = rule
        return admitted

    def rule_for(self, name: str, value: Any) -> Rule:
        """The rule for an option with this value."""
        model = self.target_model.model
        rule = self.target_model.rule(_RULED.get(name, name))
        if model is None or rule.state in {"refused", "ignored"}:
            return rule
        if name == "optimize_prompt" and model.optimize_modes and value not in model.optimize_modes:
            return Rule("refused", f"{model.title} knows only {', '.join(model.optimize_modes)}", model.source)
        if name == "format" and model.formats and value not in model.formats:
            return Rule("refused", f"{model.title} makes only {', '.join(model.formats)}", model.source)
        if name == "background" and value not in model.backgrounds:
            return Rule("refused", f"{model.title} knows only {', '.join(model.backgrounds)}", model.source)
        return rule

    def apply_rule(self, name: str, rule: Rule, *, essential: bool) -> bool:
        """Whether an option whose rule is not "taken" is sent; adds a warning or error."""
        where = f"{self.target_model.provider} {self.target_model.model_id}"
        why = f" ({rule.note})" if rule.note else ""
        flag = self.options.origin(name)
        message = {
            "unconfirmed": f"whether {where} takes {flag} is not confirmed{why}",
            "ignored": f"{where} ignores {flag}{why}",
            "refused": f"{where} refuses {flag}{why}",
        }[rule.state]
        if self.found.force:
            self.found.warn(name, f"{message}; sent because of --force", code=f"option_{rule.state}")
            return True
        if self.found.strict or (essential and rule.state != "unconfirmed"):
            models_taking = self.target_model.models_taking(_RULED.get(name, name)) if essential else ()
            others = f"-m {' or '.join(models_taking)} takes it; " if models_taking else ""
            hint = f"{others}leave it out" + (", or send it with --force" if essential else " or drop --strict")
            self.found.add_error(name, message, hint)
            return False
        sent = rule.state == "unconfirmed"
        self.found.warn(name, message if sent else f"{message}; not sent", code=f"option_{rule.state}")
        return sent


def without_ignored(extra: Mapping[str, Any], ignored_fields: Sequence[str]) -> dict[str, Any]:
    """The extra fields without scalar ones that have no effect at the provider."""
    return {
        key: value for key, value in extra.items() if key not in ignored_fields or isinstance(value, Mapping | list)
    }


def _is_broken(text: str) -> bool:
    """Whether a text holds surrogates, which UTF-8 cannot encode: invalid bytes of an argument, or half a pair."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def shared_stdin(options: OptionValues) -> list[Problem]:
    """A problem where standard input is used twice: a key in it might be sent as a prompt or image."""
    takers = {
        "the prompt": options.origins.get("prompt") == STDIN,
        "the image": "-" in options.lists.get("image", ()),
        "the key": options.values.get("api_key_file") == "-",
    }
    taking = [name for name, takes in takers.items() if takes]
    if len(taking) < 2:
        return []
    hint = "give all but one of them in files or as arguments"
    return [Problem("stdin", f"standard input cannot be both {' and '.join(taking)}", hint, origin=STDIN)]


def _parse_json(text: str) -> tuple[Any, str]:
    """(JSON value, ""), or (None, error)."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except (ValueError, RecursionError) as error:
        return None, str(error)


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity are no JSON; a server would refuse them."""
    raise ValueError(f"{name} is no JSON")
