"""From what the user typed to one validated request: `build` checks the shape, `check` the model's row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from .errors import Problem


@dataclass(frozen=True, slots=True)
class Draft:
    """Every option a user can set, as it was typed, and where each came from ("--size", "shots.csv:14").

    Values are text or None; `flags` holds the switches. Nothing here is validated.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A reference picture. `location` is the path, the URL or a short name for the user.

    A local one has its facts: `size` in bytes, width and height in pixels, and either the `path` of its file, which
    the wire reads and encodes while sending, or its `content` where there is no file (standard input, a data URI).
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


class ImageRequest(BaseModel):
    """One validated request, the same for every provider. None means: not asked for, so not sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    provider: str
    model: str
    """The row's name in the model table, or "" for an id the table does not know."""
    model_id: str
    """The id as this provider spells it."""
    prompt: str | None
    size: str
    response_format: Literal["url", "b64_json"] = "url"
    watermark: bool = False
    images: tuple[ImageRef, ...] = ()
    sequence: int | None = None
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

    @property
    def mode(self) -> Literal["generate", "edit", "layers"]:
        """What the request does, by what it holds."""
        if self.layers:
            return "layers"
        return "edit" if self.images else "generate"

    @property
    def pictures_at_most(self) -> int:
        """The most pictures this one request can return, which is what it can cost."""
        return self.sequence or 1

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything that makes the picture, with the contents of references, not their names."""
        data = self.model_dump(mode="json", exclude={"images"})
        data["images"] = [ref.sha256 or ref.location for ref in self.images]
        return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


__all__ = ["Draft", "ImageRef", "ImageRequest", "Problem"]
