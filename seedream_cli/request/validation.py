"""From what the user typed to one validated request: `build` checks the shape, `check` the model's row."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import Problem
from . import extra_fields
from .image_request import STDIN, ImageRef, ImageRequest, OptionValues, TargetModel
from .limits import GROUP_MOST
from .models import MODELS, ModelSpec, Rule, nearest_models
from .sizes import resolve_aspect, shape_meant, size_hint, size_problem


@dataclass(frozen=True, slots=True)
class Validated:
    """The outcome of `build`: the request unless a problem of severity "error" was found, and how often to send it.

    `dropped` names the options that were asked for and are not sent, each with its rule.
    """

    request: ImageRequest | None
    count: int
    problems: tuple[Problem, ...]
    dropped: Mapping[str, Rule]


def build(
    options: OptionValues, values: Mapping[str, Any], recipient: TargetModel, images: Sequence[ImageRef] = ()
) -> Validated:
    """Check a draft for one provider and model and make the request. Finds all problems, not the first.

    `values` are the draft's by key, read; what could not be read is not among them, and was told.
    """
    form = _RequestForm(options, values, recipient)
    wanted: dict[str, Any] = {
        **{name: values.get(name) for name in ("seed", "guidance_scale", "optimize_prompt", "background")},
        **{name: values.get(name) for name in ("sequence", "callback_url")},
        **{name: form.switch(name) for name in ("stream", "web_search", "layers")},
        "format": values.get("format") or form.wished_format(),
    }
    fields: dict[str, Any] = {
        "provider": recipient.provider,
        "model": recipient.model.name if recipient.model else "",
        "model_id": recipient.model_id,
        "prompt": form.prompt(needed=not wanted["layers"]),
        "size": form.size(layers=bool(wanted["layers"])),
        "response_format": values.get("response_format", "url"),
        "watermark": form.switch("watermark"),
        "images": tuple(images),
        "extra": form.extra(),
    }
    form.check_texts({**fields, **wanted})
    fields.update(form.admit(wanted))
    # Whether a task is the default hangs on what is sent, not on what was asked for: a stream may have been dropped.
    tasks = form.asynchronous(streaming=bool(fields.get("stream")), called_back=fields.get("callback_url") is not None)
    fields.update(form.admit({"asynchronous": tasks}))
    form.check(fields)
    failed = any(p.severity == "error" for p in form.problems)
    request = None if failed else ImageRequest(**{k: v for k, v in fields.items() if v is not None})
    return Validated(request, values.get("count", 1), tuple(form.problems), form.dropped)


# What the user is charged for or gets hangs on these, so a request without them is not the one that was asked for.
_ESSENTIAL = {"sequence", "layers", "images", "callback_url", "background"}

_RULED = {"asynchronous": "async"}


class _RequestForm:
    """The options that make a request, held against the rules of one provider and model. Collects all problems."""

    def __init__(self, options: OptionValues, values: Mapping[str, Any], recipient: TargetModel) -> None:
        self.options = options
        self.values = values
        self.recipient = recipient
        self.problems: list[Problem] = []
        self.dropped: dict[str, Rule] = {}
        self.force = options.switches.get("force", False)
        self.strict = options.switches.get("strict", False)

    def switch(self, name: str) -> bool:
        """Whether a yes-or-no option is on."""
        return self.options.switches.get(name, False)

    def add_error(self, name: str, message: str, hint: str = "") -> None:
        """Note an error that `--force` cannot overrule: the value has no meaning."""
        self.problems.append(Problem(name, message, hint, origin=self.options.origin(name)))

    def object_to(self, name: str, message: str, hint: str = "") -> None:
        """Note an error about what the model takes; with `--force` it is a warning, since models change monthly."""
        severity: Literal["error", "warning"] = "warning" if self.force else "error"
        way_out = hint if self.force else "; ".join(part for part in (hint, "--force sends it all the same") if part)
        self.problems.append(Problem(name, message, way_out, severity, self.options.origin(name)))

    def warn(self, name: str, message: str, hint: str = "", code: str = "") -> None:
        """Note something worth knowing that stops nothing."""
        self.problems.append(Problem(name, message, hint, "warning", self.options.origin(name), code or name))

    def asynchronous(self, *, streaming: bool, called_back: bool) -> bool | None:
        asked = self.options.switches.get("asynchronous")
        if asked and streaming:
            self.add_error("asynchronous", "a task cannot stream its images", "leave out --async or --stream")
        if called_back and streaming:
            self.add_error("callback_url", "a stream calls nobody back", "leave out --callback-url or --stream")
        if asked is None:
            return (self.recipient.asynchronous and not streaming and not called_back) or None
        return asked or None

    def prompt(self, *, needed: bool) -> str | None:
        prompt = self.options.values.get("prompt")
        if prompt is None or not prompt.strip():
            if needed:
                self.add_error("prompt", "there is no prompt" if prompt is None else "the prompt is empty")
            return None
        if _is_broken(prompt):
            self.add_error("prompt", "the prompt holds bytes that are no UTF-8", "save it as UTF-8")
            return None
        return prompt

    def check_texts(self, fields: Mapping[str, Any]) -> None:
        """Whatever else the user worded, JSON must be able to carry it."""
        for name, option in {"model_id": "model", "callback_url": "callback_url", "extra": "extra"}.items():
            if _is_broken(json.dumps(fields[name], ensure_ascii=False)):
                self.add_error(option, "it holds bytes that are no UTF-8")

    def size(self, *, layers: bool) -> str:
        model = self.recipient.model
        default = model.default_size if model else "2K"
        if layers and model and model.layer_sizes:
            # The provider's own default, and the cheapest: layers as large as the image is.
            default = model.layer_sizes[0]
        size: str = self.values.get("size", default)
        aspect = self.values.get("aspect")
        if aspect is not None:
            size = self.shaped(size, aspect)
        problem = size_problem(model, size, layers=layers) if model else None
        if model is None and shape_meant(size):
            problem = f"{size!r} is a shape, not a size: {size_hint(size)}"
        if problem and size in self.recipient.doubtful_sizes and not self.strict and not layers:
            where = f"{self.recipient.provider} lists {size} as a size"
            self.warn("size", f"{where}, the model's own pages do not; sent as it is", code="size_unconfirmed")
        elif problem:
            self.object_to("size", problem)
        return size

    def wished_format(self) -> str | None:
        """What the suffix of a named output file asks of the model, where that makes it and makes another by itself."""
        model, output = self.recipient.model, self.values.get("output", "")
        wish = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg"}.get(output.rpartition(".")[2].lower())
        if model is None or wish is None or self.values.get("background") or self.switch("layers"):
            return None
        is_made = self.recipient.rule("format").state == "taken" and wish in model.formats
        return wish if is_made and wish != model.default_format else None

    def shaped(self, size: str, aspect: str) -> str:
        """The exact pixels of a tier for an aspect ratio."""
        if self.recipient.model is None:
            self.add_error("aspect", "the pixels for a ratio are not known for this model", "give --size WIDTHxHEIGHT")
            return size
        pixels = resolve_aspect(self.recipient.model, size, aspect)
        if isinstance(pixels, Problem):
            self.add_error("aspect", pixels.message, pixels.hint)
            return size
        return pixels

    def extra(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for pair in self.options.lists.get("extra", ()):
            key, equals, text = pair.partition("=")
            if not equals or not key.strip():
                self.add_error("extra", f"{pair!r} is not KEY=JSON", "write --extra 'key=\"text\"' or --extra key=1")
                continue
            value, problem = _parse_json(text)
            if problem:
                quoted = json.dumps(text, ensure_ascii=False)
                self.add_error("extra", f"the value of {key} is no JSON: {problem}", f"text is written {key}={quoted}")
            else:
                merged[key] = value
        for one in extra_fields.fields_of(without_idle(merged, self.recipient.idle_fields)):
            self.judge_extra(one)
        return merged

    def judge_extra(self, found: extra_fields.Field) -> None:
        """Refuse what an option does, since all sums and the reading of the answer go by the options."""
        why = {
            "money": f"{found.path} bears on how many images come or what they cost",
            "reading": f"{found.path} changes how the answer must be read",
        }.get(found.bearing)
        if why and self.force:
            self.warn("extra", f"{why}; sent because of --force", code="extra_forced")
        elif why:
            option = "`seedream edit --layers`, or a column layers" if found.option == "--layers" else found.option
            self.add_error("extra", why, f"use {option}")
        elif found.bearing == "unknown":
            message = f"{found.path} is no field of the API that is known here, so what the request costs is not known"
            self.warn("extra", message, code="extra_unknown")

    def admit(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Hold what was asked for against the rules of the model and provider; drop, warn or refuse."""
        admitted: dict[str, Any] = {}
        for name, value in wanted.items():
            if value is None or value is False:
                continue
            rule = self.rule_for(name, value)
            if rule.state == "taken" or (rule.state == "unconfirmed" and name == "asynchronous"):
                admitted[name] = value
                continue
            if self.keep(name, rule, essential=name in _ESSENTIAL and value != "opaque"):
                admitted[name] = value
            else:
                self.dropped[name] = rule
        return admitted

    def rule_for(self, name: str, value: Any) -> Rule:
        """The rule for an option, or for this value of it where a model takes only some."""
        model = self.recipient.model
        rule = self.recipient.rule(_RULED.get(name, name))
        if model is None or rule.state in {"refused", "ignored"}:
            return rule
        if name == "optimize_prompt" and model.optimize_modes and value not in model.optimize_modes:
            return Rule("refused", f"{model.title} knows only {', '.join(model.optimize_modes)}", model.source)
        if name == "format" and model.formats and value not in model.formats:
            return Rule("refused", f"{model.title} makes only {', '.join(model.formats)}", model.source)
        if name == "background" and value not in model.backgrounds:
            return Rule("refused", f"{model.title} knows only {', '.join(model.backgrounds)}", model.source)
        return rule

    def keep(self, name: str, rule: Rule, *, essential: bool) -> bool:
        """Whether an option under a rule other than "taken" is sent; says so either way."""
        where = f"{self.recipient.provider} {self.recipient.model_id}"
        why = f" ({rule.note})" if rule.note else ""
        flag = self.options.origin(name)
        message = {
            "unconfirmed": f"whether {where} takes {flag} is not confirmed{why}",
            "ignored": f"{where} ignores {flag}{why}",
            "refused": f"{where} refuses {flag}{why}",
        }[rule.state]
        if self.force:
            self.warn(name, f"{message}; sent because of --force", code=f"option_{rule.state}")
            return True
        if self.strict or (essential and rule.state != "unconfirmed"):
            able = self.recipient.able(_RULED.get(name, name)) if essential else ()
            others = f"-m {' or '.join(able)} takes it; " if able else ""
            hint = f"{others}leave it out" + (", or send it with --force" if essential else " or drop --strict")
            self.add_error(name, message, hint)
            return False
        sent = rule.state == "unconfirmed"
        self.warn(name, message if sent else f"{message}; not sent", code=f"option_{rule.state}")
        return sent

    def check(self, fields: dict[str, Any]) -> None:
        """What holds between options, and between the request and the model's row."""
        images, sequence = fields["images"], fields.get("sequence")
        model = self.recipient.model
        self.check_prompt(fields["prompt"] or "")
        self.check_extra(fields["extra"])
        if isinstance(sequence, int) and sequence + len(images) > GROUP_MOST:
            self.object_to(
                "sequence",
                f"{len(images)} references and {sequence} images are more than {GROUP_MOST} together",
                f"ask for at most {GROUP_MOST - len(images)}",
            )
        if model is None:
            known = nearest_models(self.recipient.model_id)
            hint = f"known ones like it: {', '.join(known)}" if known else ""
            self.warn(
                "model", f"{self.recipient.model_id} is not in the model table; sent as it is", hint, "model_unknown"
            )
            return
        if model.status == "retired":
            self.warn("model", f"{model.title} is retired and may be gone", code="model_retired")
        if model.status == "unconfirmed":
            words = f"no official page describes {model.title} yet: what is known of it is {model.source}"
            self.warn("model", words, code="model_unconfirmed")
        self.check_references(model, fields)
        self.check_look(fields)

    def check_prompt(self, prompt: str) -> None:
        """Prompts that are longer than is advised are sent; what they say late may have no effect."""
        advice = prompt_advice(prompt, self.recipient.prompt_characters)
        if advice:
            self.problems.append(replace(advice, origin=self.options.origin("prompt")))

    def check_extra(self, extra: Mapping[str, Any]) -> None:
        """Fields given as they are: those that do nothing here, and what is known of the others."""
        for key in (key for key in extra if key in self.recipient.idle_fields):
            message = f"{self.recipient.provider} lists {key} as without effect"
            if self.strict:
                self.add_error("extra", message, "leave it out or drop --strict")
            else:
                self.warn("extra", f"{message}; sent as it is", code="option_ignored")
        if "optimize_prompt_options" in extra:
            self.check_rewriting(extra["optimize_prompt_options"])

    def check_rewriting(self, options: Any) -> None:
        """How the prompt is rewritten, given as the API's own object."""
        model = self.recipient.model
        if not isinstance(options, Mapping):
            hint = """write --extra 'optimize_prompt_options={"thinking":"disabled"}'"""
            self.object_to("extra", "optimize_prompt_options is an object", hint)
            return
        mode, thinking = options.get("mode"), options.get("thinking")
        modes = model.optimize_modes if model else ("standard", "fast")
        if model and self.recipient.rule("optimize_prompt").state == "refused":
            self.object_to("extra", f"{model.title} takes no optimize_prompt_options", "leave it out")
            return
        if mode is not None and mode not in modes:
            self.object_to("extra", f"the mode {json.dumps(mode)} is not known", f"give {' or '.join(modes)}")
        if thinking is not None and thinking not in _THINKING:
            self.object_to("extra", f"thinking {json.dumps(thinking)} is not known", f"give {' or '.join(_THINKING)}")
        elif thinking is not None and model and not model.thinking:
            self.warn("extra", f"whether {model.title} takes thinking is not confirmed", code="option_unconfirmed")

    def check_references(self, model: ModelSpec, fields: Mapping[str, Any]) -> None:
        """The references against the model's row: how many, and each one's format, bytes, pixels and shape."""
        images = fields["images"]
        low, high = model.references
        rule = self.recipient.rule("images")
        if images and (high == 0 or rule.state in {"refused", "ignored"}):
            self.object_to("image", f"{model.title} takes no reference images")
            return
        if len(images) > high:
            hint = f"{model.title} takes {high}, the image that is edited among them"
            self.object_to("image", f"{len(images)} reference images are too many", hint)
        if len(images) < low:
            self.object_to("image", f"{model.title} needs a reference image", "give one with -i, or use another model")
        layers = bool(fields.get("layers"))
        for ref in images:
            if ref.kind != "url":
                self.check_reference(model, ref, layers=layers)

    def check_reference(self, model: ModelSpec, ref: ImageRef, *, layers: bool) -> None:
        """One local reference. What can be shrunk or re-encoded is told how."""
        kind, pixels = ref.mime.removeprefix("image/"), ref.width * ref.height
        formats = model.layer_reference_formats if layers else self.recipient.taken_formats
        least, most = model.layer_reference_pixels if layers else model.reference_pixels
        shrink = "--fit-images sends it smaller"
        if layers and kind not in formats and kind in model.layer_reference_formats_at.get(self.recipient.provider, ()):
            words = f"{ref.location} is {kind}; {self.recipient.provider} is said to take it for layers, others do not"
            self.warn("image", words, "--fit-images converts it", "reference_unconfirmed")
        elif kind not in formats:
            self.object_to(
                "image", f"{ref.location} is {kind}; {', '.join(formats)} are taken", "--fit-images converts it"
            )
        if ref.sent_size > self.recipient.taken_bytes:
            limit = self.recipient.taken_bytes / 1e6
            self.object_to(
                "image", f"{ref.location} has {ref.sent_size / 1e6:.1f} MB, over the {limit:g} MB taken", shrink
            )
        elif ref.size > self.recipient.safe_bytes:
            safe = self.recipient.safe_bytes / 1e6
            words = f"{ref.location} has {ref.size / 1e6:.1f} MB; some pages allow {safe:g} MB only"
            self.warn("image", words, shrink, "reference_large")
        if pixels > most:
            self.object_to("image", f"{ref.location} has {pixels:,} pixels; at most {most:,} are taken", shrink)
        if pixels < least or min(ref.width, ref.height) < model.reference_side:
            self.object_to(
                "image", f"{ref.location} is too small ({ref.width}x{ref.height})", f"at least {least:,} pixels"
            )
        low, high = model.reference_ratio
        if ref.height and not low <= ref.width / ref.height <= high:
            self.object_to(
                "image",
                f"{ref.location} is too long ({ref.width}x{ref.height})",
                f"width to height must lie between 1:{1 / low:g} and {high:g}:1; crop it",
            )
        if ref.animated:
            self.warn("image", f"{ref.location} is animated; models look at one frame", code="reference_animated")

    def check_look(self, fields: dict[str, Any]) -> None:
        """Transparent backgrounds and layers, which start from exactly one image."""
        images, model = fields["images"], self.recipient.model
        if fields.get("background") == "transparent":
            if model and model.transparent_from_text:
                pass
            elif len(images) != 1:
                others = " or ".join(_from_text(self.recipient.able("background")))
                hint = "give one" + (f", or draw from text alone with -m {others}" if others else "")
                self.object_to("background", "a transparent background needs exactly one reference image", hint)
            elif images[0].kind != "url" and images[0].mime != "image/png":
                self.object_to("background", "a transparent background needs a PNG with transparent pixels")
            if fields.get("format") == "jpeg":
                self.object_to("format", "a transparent background needs --format png")
            # JPEG is the provider's default and has no transparency: the request would only be refused.
            fields.setdefault("format", "png")
        if not fields.get("layers"):
            return
        if len(images) != 1:
            self.object_to("layers", f"layers are made of exactly one image, not {len(images)}")
        if fields.get("background"):
            self.object_to("layers", "--layers and --background cannot be combined")


ADVISED_CJK, _ADVISED_WORDS = 300, 600
"""How long a prompt may be by the API's own advice: so many Chinese characters, or so many English words."""

_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")

_THINKING = ("auto", "enabled", "disabled")


def without_idle(extra: Mapping[str, Any], idle_fields: Sequence[str]) -> dict[str, Any]:
    """The fields given as they are, but for plain values of those that have no effect at the provider."""
    return {key: value for key, value in extra.items() if key not in idle_fields or isinstance(value, Mapping | list)}


def prompt_advice(prompt: str, characters: int | None) -> Problem | None:
    """The warning for a prompt over the API's advice; `characters` is the provider's own for what is not Chinese."""
    if len(prompt) <= ADVISED_CJK or not _is_long(prompt, characters):
        return None
    others = f"{characters} others" if characters else f"{_ADVISED_WORDS} words"
    message = f"the prompt is longer than the {ADVISED_CJK} Chinese characters or {others} that are advised"
    return Problem("prompt", message, "what it says late may have no effect", "warning", code="prompt_long")


def _is_long(prompt: str, characters: int | None) -> bool:
    """Whether a prompt is over the advice, its Chinese and its other part together. `characters` bounds the other."""
    chinese = 0 if prompt.isascii() else len(_CJK.findall(prompt))
    rest = len(prompt) - chinese if characters else len(_CJK.sub(" ", prompt).split())
    return chinese / ADVISED_CJK + rest / (characters or _ADVISED_WORDS) > 1


def _from_text(names: Sequence[str]) -> list[str]:
    """Those of the models that make a transparent image from text alone."""
    return [row.name for row in MODELS if row.name in names and row.transparent_from_text]


def _is_broken(text: str) -> bool:
    """Whether a text holds what UTF-8 cannot carry: bytes of the command line that were none, or half a pair."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def shared_stdin(options: OptionValues) -> list[Problem]:
    """Standard input serves one thing; a key there must never be read as a prompt or as an image."""
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
    """A JSON value and "", or None and what is wrong with it."""
    try:
        return json.loads(text, parse_constant=_refuse_constant), ""
    except (ValueError, RecursionError) as error:
        return None, str(error)


def _refuse_constant(name: str) -> Any:
    """NaN and Infinity are Python's, not JSON's; a server would refuse them."""
    raise ValueError(f"{name} is no JSON")
