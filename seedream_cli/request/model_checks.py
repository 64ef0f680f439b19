"""Checks of a request against its model's row and its provider's limits."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import Problem
from .findings import Findings
from .image_request import ImageRef, TargetModel
from .limits import GROUP_MOST
from .models import MODELS, ModelSpec, nearest_models

ADVISED_CJK, _ADVISED_WORDS = 300, 600
"""The API's advice for a prompt: at most so many Chinese characters, or English words."""

_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")

_THINKING = ("auto", "enabled", "disabled")


def check_for_model(fields: dict[str, Any], target_model: TargetModel, found: Findings) -> None:
    """Check options against each other and the model's row; adds the implied format of a transparent image."""
    _ModelChecks(target_model, found).check(fields)


class _ModelChecks:
    def __init__(self, target_model: TargetModel, found: Findings) -> None:
        self.target_model = target_model
        self.found = found

    def check(self, fields: dict[str, Any]) -> None:
        """Check options against each other and against the model's row."""
        images, sequence = fields["images"], fields.get("sequence")
        model = self.target_model.model
        self.check_prompt(fields["prompt"] or "")
        self.check_extra(fields["extra"])
        if isinstance(sequence, int) and sequence + len(images) > GROUP_MOST:
            self.found.refuse(
                "sequence",
                f"{len(images)} references and {sequence} images are more than {GROUP_MOST} together",
                f"ask for at most {GROUP_MOST - len(images)}",
            )
        if model is None:
            known = nearest_models(self.target_model.model_id)
            hint = f"known ones like it: {', '.join(known)}" if known else ""
            self.found.warn(
                "model", f"{self.target_model.model_id} is not in the model table; sent as it is", hint, "model_unknown"
            )
            return
        if model.status == "retired":
            self.found.warn("model", f"{model.title} is retired and may be gone", code="model_retired")
        if model.status == "unconfirmed":
            words = f"no official page describes {model.title} yet: what is known of it is {model.source}"
            self.found.warn("model", words, code="model_unconfirmed")
        self.check_references(model, fields)
        self.check_backgrounds(fields)

    def check_prompt(self, prompt: str) -> None:
        """Warn about a prompt that is longer than the API advises: its end may have no effect."""
        advice = prompt_advice(prompt, self.target_model.prompt_characters)
        if advice:
            self.found.warn("prompt", advice.message, advice.hint, advice.code)

    def check_extra(self, extra: Mapping[str, Any]) -> None:
        """Fields of `--extra`: those without effect at the provider, and known objects."""
        for key in (key for key in extra if key in self.target_model.ignored_fields):
            message = f"{self.target_model.provider} lists {key} as without effect"
            if self.found.strict:
                self.found.add_error("extra", message, "leave it out or drop --strict")
            else:
                self.found.warn("extra", f"{message}; sent as it is", code="option_ignored")
        if "optimize_prompt_options" in extra:
            self.check_rewriting(extra["optimize_prompt_options"])

    def check_rewriting(self, options: Any) -> None:
        """The API's object `optimize_prompt_options`."""
        model = self.target_model.model
        if not isinstance(options, Mapping):
            hint = """write --extra 'optimize_prompt_options={"thinking":"disabled"}'"""
            self.found.refuse("extra", "optimize_prompt_options is an object", hint)
            return
        mode, thinking = options.get("mode"), options.get("thinking")
        modes = model.optimize_modes if model else ("standard", "fast")
        if model and self.target_model.rule("optimize_prompt").state == "refused":
            self.found.refuse("extra", f"{model.title} takes no optimize_prompt_options", "leave it out")
            return
        if mode is not None and mode not in modes:
            self.found.refuse("extra", f"the mode {json.dumps(mode)} is not known", f"give {' or '.join(modes)}")
        if thinking is not None and thinking not in _THINKING:
            self.found.refuse(
                "extra", f"thinking {json.dumps(thinking)} is not known", f"give {' or '.join(_THINKING)}"
            )
        elif thinking is not None and model and not model.thinking:
            self.found.warn(
                "extra", f"whether {model.title} takes thinking is not confirmed", code="option_unconfirmed"
            )

    def check_references(self, model: ModelSpec, fields: Mapping[str, Any]) -> None:
        """The references against the model's row: number, format, bytes, pixels and ratio."""
        images = fields["images"]
        low, high = model.references
        rule = self.target_model.rule("images")
        if images and (high == 0 or rule.state in {"refused", "ignored"}):
            self.found.refuse("image", f"{model.title} takes no reference images")
            return
        if len(images) > high:
            hint = f"{model.title} takes {high}, the image that is edited among them"
            self.found.refuse("image", f"{len(images)} reference images are too many", hint)
        if len(images) < low:
            self.found.refuse(
                "image", f"{model.title} needs a reference image", "give one with -i, or use another model"
            )
        layers = bool(fields.get("layers"))
        for ref in images:
            if ref.kind != "url":
                self.check_reference(model, ref, layers=layers)

    def check_reference(self, model: ModelSpec, ref: ImageRef, *, layers: bool) -> None:
        """One local reference; the hints name --fit-images where it helps."""
        kind, pixels = ref.mime.removeprefix("image/"), ref.width * ref.height
        formats = model.layer_reference_formats if layers else self.target_model.taken_formats
        least, most = model.layer_reference_pixels if layers else model.reference_pixels
        shrink = "--fit-images sends it smaller"
        if (
            layers
            and kind not in formats
            and kind in model.layer_reference_formats_at.get(self.target_model.provider, ())
        ):
            words = (
                f"{ref.location} is {kind}; {self.target_model.provider} is said to take it for layers, others do not"
            )
            self.found.warn("image", words, "--fit-images converts it", "reference_unconfirmed")
        elif kind not in formats:
            self.found.refuse(
                "image", f"{ref.location} is {kind}; {', '.join(formats)} are taken", "--fit-images converts it"
            )
        if ref.sent_size > self.target_model.taken_bytes:
            limit = self.target_model.taken_bytes / 1e6
            self.found.refuse(
                "image", f"{ref.location} has {ref.sent_size / 1e6:.1f} MB, over the {limit:g} MB taken", shrink
            )
        elif ref.size > self.target_model.safe_bytes:
            safe = self.target_model.safe_bytes / 1e6
            words = f"{ref.location} has {ref.size / 1e6:.1f} MB; some pages allow {safe:g} MB only"
            self.found.warn("image", words, shrink, "reference_large")
        if pixels > most:
            self.found.refuse("image", f"{ref.location} has {pixels:,} pixels; at most {most:,} are taken", shrink)
        if pixels < least or min(ref.width, ref.height) < model.reference_side:
            self.found.refuse(
                "image", f"{ref.location} is too small ({ref.width}x{ref.height})", f"at least {least:,} pixels"
            )
        low, high = model.reference_ratio
        if ref.height and not low <= ref.width / ref.height <= high:
            self.found.refuse(
                "image",
                f"{ref.location} is too long ({ref.width}x{ref.height})",
                f"width to height must lie between 1:{1 / low:g} and {high:g}:1; crop it",
            )
        if ref.animated:
            self.found.warn("image", f"{ref.location} is animated; models look at one frame", code="reference_animated")

    def check_backgrounds(self, fields: dict[str, Any]) -> None:
        """Transparent backgrounds and layers, which need exactly one reference."""
        images, model = fields["images"], self.target_model.model
        if fields.get("background") == "transparent":
            if model and model.transparent_from_text:
                pass
            elif len(images) != 1:
                others = " or ".join(_from_text(self.target_model.models_taking("background")))
                hint = "give one" + (f", or draw from text alone with -m {others}" if others else "")
                self.found.refuse("background", "a transparent background needs exactly one reference image", hint)
            elif images[0].kind != "url" and images[0].mime != "image/png":
                self.found.refuse("background", "a transparent background needs a PNG with transparent pixels")
            if fields.get("format") == "jpeg":
                self.found.refuse("format", "a transparent background needs --format png")
            # The default is JPEG, which has no alpha: the provider would refuse the request.
            fields.setdefault("format", "png")
        if not fields.get("layers"):
            return
        if len(images) != 1:
            self.found.refuse("layers", f"layers are made of exactly one image, not {len(images)}")
        if fields.get("background"):
            self.found.refuse("layers", "--layers and --background cannot be combined")


def prompt_advice(prompt: str, characters: int | None) -> Problem | None:
    """A warning for a prompt longer than advised. `characters` is the provider's limit for text that is not Chinese."""
    if len(prompt) <= ADVISED_CJK or not _is_long(prompt, characters):
        return None
    others = f"{characters} others" if characters else f"{_ADVISED_WORDS} words"
    message = f"the prompt is longer than the {ADVISED_CJK} Chinese characters or {others} that are advised"
    return Problem("prompt", message, "what it says late may have no effect", "warning", code="prompt_long")


def _is_long(prompt: str, characters: int | None) -> bool:
    """Whether a prompt's Chinese and other text together exceed the advice."""
    chinese = 0 if prompt.isascii() else len(_CJK.findall(prompt))
    rest = len(prompt) - chinese if characters else len(_CJK.sub(" ", prompt).split())
    return chinese / ADVISED_CJK + rest / (characters or _ADVISED_WORDS) > 1


def _from_text(names: Sequence[str]) -> list[str]:
    """The models among `names` that make a transparent image from text alone."""
    return [row.name for row in MODELS if row.name in names and row.transparent_from_text]
