"""The request as it was asked for, and as it is once it is validated."""

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
"""The origin that a prompt has which was read there."""


@dataclass(frozen=True, slots=True)
class OptionValues:
    """Every option a user can set, as it was typed, and where each came from ("--size", "shots.csv:14").

    `values` is text, `switches` the yes-or-no options, `lists` the repeatable ones. Nothing here is validated. `label`
    goes in front of the names of its images.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    def origin(self, name: str) -> str:
        """Where the option came from, for a message."""
        return self.origins.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes out in place of a reference's own bytes: `size` of them, made of `parts` of its own or of a `copy`.

    A part is a range of the reference's bytes, or bytes that stand in for some. `copy` gives the pieces of an image
    that was made anew.
    """

    size: int
    sha256: str
    parts: tuple[tuple[int, int] | bytes, ...] = ()
    copy: Callable[[], Iterator[bytes]] | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference image. `location` is the path, the URL or a short name for the user.

    A local one has its facts: `size` in bytes, width and height in pixels, and either the `path` of its file, which
    the wire reads and encodes while sending, or its `content` where there is no file (standard input, a data URI).
    `sent` is what leaves where that differs. The image is known by its own `sha256` all the same: what is left out
    of it makes no other request.
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
        """The bytes that leave."""
        return self.sent.size if self.sent is not None else self.size

    def summary(self) -> str | dict[str, Any]:
        """What stands for it wherever a request's body is shown or kept: its link, or its name, sha256 and bytes."""
        if self.kind == "url":
            return self.location
        shown = {"file": self.location, "sha256": self.sha256, "bytes": self.size or len(self.content)}
        return shown | ({"sent_sha256": self.sent.sha256, "sent_bytes": self.sent.size} if self.sent else {})


class ImageRequest(BaseModel):
    """One validated request, the same for every provider. None means: not asked for, so not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    provider: str
    model: str
    """The row's name in the model table, or "" for an id the table does not know."""
    model_id: str
    """The id as this provider spells it."""
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
    """The most images that the body of this request can bring; 0 while its body has not been looked at."""

    @property
    def mode(self) -> Literal["generate", "edit", "layers"]:
        """What the request does, by what it holds."""
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
        """The sha256 of everything that makes the image, with the contents of references, not their names."""
        data = self.model_dump(mode="json", exclude={"images", "most"})
        data["images"] = [ref.sha256 or ref.location for ref in self.images]
        return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TargetModel:
    """Whom the request is for: the provider, the model's row (None: not in the table) and the id as it spells it.

    `rule` says how an option fares there; `asynchronous` whether tasks are its way unless told otherwise.
    `reference_bytes` and `reference_formats` are the provider's own limits for a reference, where it has any.
    `idle_fields`, `doubtful_sizes` and `prompt_characters` are as in the provider's data; `able` names the models that
    this provider serves and that take an option.
    """

    provider: str
    model: ModelSpec | None
    model_id: str
    rule: Callable[[str], Rule]
    asynchronous: bool = False
    reference_bytes: int | None = None
    reference_formats: tuple[str, ...] = ()
    idle_fields: tuple[str, ...] = ()
    doubtful_sizes: tuple[str, ...] = ()
    prompt_characters: int | None = None
    able: Callable[[str], Sequence[str]] = lambda _: ()

    @property
    def taken_formats(self) -> tuple[str, ...]:
        """The formats of references that both the model and the provider take."""
        model, own = self.model, self.reference_formats
        formats = model.reference_formats_at.get(self.provider, model.reference_formats) if model else ()
        return tuple(name for name in formats if not own or name in own)

    @property
    def taken_bytes(self) -> int:
        """The most bytes of a reference that both take."""
        most = self.model.reference_bytes if self.model else 30_000_000
        return min(most, self.reference_bytes or most)

    @property
    def safe_bytes(self) -> int:
        """The bytes of a reference that every page allows: the provider's own word, else the least of others."""
        if self.model is None or self.reference_bytes is not None:
            return self.taken_bytes
        return min(self.taken_bytes, self.model.reference_bytes_safe)
