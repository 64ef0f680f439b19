"""The options as the user set them, and the validated request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .limits import GROUP_MOST
from .models import ModelSpec, Rule

STDIN = "standard input"
"""The origin of a prompt that was read from standard input."""


@dataclass(frozen=True, slots=True)
class OptionValues:
    """Option values, unparsed, with the origin of each ("--size", "shots.csv:14").

    `values` are texts, `switches` booleans, `lists` repeatable options. `label` is a prefix of the file names.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    def origin(self, name: str) -> str:
        """The origin of an option, for a message."""
        return self.origins.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class Sent:
    """The bytes sent for a reference where they differ from its own: `size` bytes from `parts` or `copy`.

    A part is a (start, end) range of the reference's bytes, or literal bytes. `copy` iterates over the chunks of a
    re-encoded image.
    """

    size: int
    sha256: str
    parts: tuple[tuple[int, int] | bytes, ...] = ()
    copy: Callable[[], Iterator[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference image. `location` is the path, the URL or a short name for messages.

    A local one has `size` in bytes, width and height in pixels, and either the `path` of its file, which is read and
    encoded while sending, or its `content` where there is no file (standard input, a data URI). `sha256` is that of the
    original, also where `sent` differs, so that --keep-metadata does not change the request's fingerprint.
    """

    kind: Literal["file", "url", "data"]
    location: str
    path: Path | None = None
    sha256: str = ""
    mime: str = ""
    width: int = 0
    height: int = 0
    size: int = 0
    content: bytes = field(default=b"", repr=False)
    animated: bool = False
    sent: Sent | None = field(default=None, repr=False)

    @property
    def sent_size(self) -> int:
        """Bytes that are sent."""
        return self.sent.size if self.sent is not None else self.size

    def summary(self) -> str | dict[str, Any]:
        """What stands for it wherever a request's body is shown or kept: its link, or its name, sha256 and bytes."""
        if self.kind == "url":
            return self.location
        shown = {"file": self.location, "sha256": self.sha256, "bytes": self.size or len(self.content)}
        return shown | ({"sent_sha256": self.sent.sha256, "sent_bytes": self.sent.size} if self.sent else {})


class ImageRequest(BaseModel):
    """One validated request, the same for every provider. None: not set, so not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    provider: str
    model: str
    """The name in the model table, or "" for an unknown id."""
    model_id: str
    """The id that this provider uses."""
    prompt: str | None = None
    size: str
    response_format: Literal["url", "b64_json"] = "url"
    watermark: bool = False
    images: tuple[ImageRef, ...] = ()
    sequence: int | Literal["auto"] | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    format: Literal["jpeg", "png"] | None = None
    stream: bool = False
    optimize_prompt: Literal["standard", "fast"] | None = None
    web_search: bool = False
    background: Literal["transparent", "opaque", "auto"] | None = None
    layers: bool = False
    asynchronous: bool = False
    callback_url: str | None = None
    extra: Mapping[str, Any] = {}
    most: int = 0
    """The most images that the request body asks for; 0 before the body is built."""

    @property
    def mode(self) -> Literal["generate", "edit", "layers"]:
        """What the request does."""
        if self.layers:
            return "layers"
        return "edit" if self.images else "generate"

    @property
    def images_at_most(self) -> int:
        """The most images this one request can return, which is the most it can cost."""
        if self.most:
            return self.most
        if self.sequence == "auto":
            return max(1, GROUP_MOST - len(self.images))
        return self.sequence or 1

    @property
    def fingerprint(self) -> str:
        """The sha256 of all fields, with the contents of references, not their names."""
        data = self.model_dump(mode="json", exclude={"images", "most"})
        data["images"] = [ref.sha256 or ref.location for ref in self.images]
        return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TargetModel:
    """The provider, the model's row (None: not in the table) and the model id that the provider uses.

    `rule` returns how an option is treated; `asynchronous`: tasks are the default. `reference_bytes` and
    `reference_formats` are the provider's own limits for a reference, None and () for none. `ignored_fields`,
    `unconfirmed_sizes` and `prompt_characters` are as in `ProviderSpec`; `models_taking` returns the names of the
    models of this provider that take an option.
    """

    provider: str
    model: ModelSpec | None
    model_id: str
    rule: Callable[[str], Rule]
    asynchronous: bool = False
    reference_bytes: int | None = None
    reference_formats: tuple[str, ...] = ()
    ignored_fields: tuple[str, ...] = ()
    unconfirmed_sizes: tuple[str, ...] = ()
    prompt_characters: int | None = None
    models_taking: Callable[[str], Sequence[str]] = lambda _: ()

    @property
    def taken_formats(self) -> tuple[str, ...]:
        """The formats of references that both the model and the provider take."""
        model, own = self.model, self.reference_formats
        formats = model.reference_formats_at.get(self.provider, model.reference_formats) if model else ()
        return tuple(name for name in formats if not own or name in own)

    @property
    def taken_bytes(self) -> int:
        """The most bytes of a reference that both the model and the provider take."""
        most = self.model.reference_bytes if self.model else 30_000_000
        return min(most, self.reference_bytes or most)

    @property
    def safe_bytes(self) -> int:
        """The most bytes of a reference that every page allows: the provider's own, else the least of others'."""
        if self.model is None or self.reference_bytes is not None:
            return self.taken_bytes
        return min(self.taken_bytes, self.model.reference_bytes_safe)
