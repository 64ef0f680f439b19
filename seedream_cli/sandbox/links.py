"""Signed URLs like those of the services' object store. A URL contains all that is needed to draw its image.

So it works in a later process, and nothing is stored. The signature covers every byte before it: a client that
re-encodes or sorts the query gets a 403, as from the real store.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass
from typing import Any, Literal

PREFIX = b"/links/"

ISSUER = b"&X-Tos-Credential=AKLTsandbox%2F"

LIFETIME_S = 86_400

LABEL_LETTERS = 160

_TAIL = b"&X-Tos-SignedHeaders=host"

_SIGNED = re.compile(
    rb"/links/[a-z0-9.-]+/([A-Za-z0-9_-]+)\.(?:jpeg|png)"
    rb"\?X-Tos-Algorithm=TOS4-HMAC-SHA256&X-Tos-Credential=AKLTsandbox%2F[0-9]{8}%2Fsandbox%2Ftos%2Frequest"
    rb"&X-Tos-Date=([0-9]{8}T[0-9]{6}Z)&X-Tos-Expires=([0-9]+)"
)

LinkFault = Literal["", "cut", "html"]

_FAULTS: dict[str, LinkFault] = {"cut": "cut", "html": "html"}


class LinkRefused(Exception):  # noqa: N818 (the store means it, it is no defect)
    """The store refuses the URL: status, code and message of its response."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """All that determines an image's bytes. `prompt_hash` is of the prompt, `label` is the prompt's start.

    `fault` applies to the first `fault_times` fetches of the URL, 0 for all.
    """

    prompt_hash: str
    label: str
    width: int
    height: int
    seed: int
    format: Literal["jpeg", "png"]
    watermark: bool = False
    transparent: bool = False
    fault: LinkFault = ""
    fault_times: int = 0
    source: bytes = b""

    def pack(self) -> str:
        """The spec as URL-safe base64."""
        fields = {
            "e": self.prompt_hash,
            "l": self.label,
            "w": self.width,
            "h": self.height,
            "s": self.seed,
            "f": self.format,
            "m": int(self.watermark),
            "t": int(self.transparent),
            "x": self.fault,
            "n": self.fault_times,
            "r": base64.b64encode(self.source).decode(),
        }
        short = {key: value for key, value in fields.items() if value not in {"", 0}}
        text = json.dumps(short, separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def sign(spec: ImageSpec, folder: str, *, secret: bytes, issued_at: float) -> bytes:
    """The target (path and query) of the image's URL, valid for a day from `issued_at` (Unix seconds)."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(issued_at))
    target = (
        f"/links/{folder}/{spec.pack()}.{spec.format}?X-Tos-Algorithm=TOS4-HMAC-SHA256"
        f"&X-Tos-Credential=AKLTsandbox%2F{moment[:8]}%2Fsandbox%2Ftos%2Frequest"
        f"&X-Tos-Date={moment}&X-Tos-Expires={LIFETIME_S}"
    ).encode()
    return target + b"&X-Tos-Signature=" + _signature(target, secret) + _TAIL


def open_link(target: bytes, *, secret: bytes, now: float) -> ImageSpec:
    """The spec in a URL's target as received; raises `LinkRefused` for an altered or expired one."""
    signed, _, rest = target.partition(b"&X-Tos-Signature=")
    if not hmac.compare_digest(rest, _signature(signed, secret) + _TAIL):
        raise LinkRefused(403, "AccessDenied", "Access Denied")
    parts = _SIGNED.fullmatch(signed)
    if parts is None:
        raise LinkRefused(404, "NoSuchKey", "The specified key does not exist.")
    if now > _read_moment(parts[2]) + int(parts[3]):
        raise LinkRefused(403, "AccessDenied", "Request has expired")
    try:
        return _unpack(parts[1])
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise LinkRefused(404, "NoSuchKey", "The specified key does not exist.") from error


def _signature(target: bytes, secret: bytes) -> bytes:
    return hmac.new(secret, target, hashlib.sha256).hexdigest().encode()


def _read_moment(text: bytes) -> float:
    return calendar.timegm(time.strptime(text.decode(), "%Y%m%dT%H%M%SZ"))


def _unpack(token: bytes) -> ImageSpec:
    fields: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token + b"=" * (-len(token) % 4)))
    width, height = int(fields["w"]), int(fields["h"])
    # Anybody can sign with the well-known secret, so the size is limited.
    if not (0 < width <= 16_384 and 0 < height <= 16_384 and width * height <= 17_000_000):
        raise ValueError("the image is too large")
    return ImageSpec(
        prompt_hash=str(fields.get("e", "")),
        label=str(fields.get("l", "")),
        width=width,
        height=height,
        seed=int(fields.get("s", 0)),
        format="png" if fields.get("f") == "png" else "jpeg",
        watermark=bool(fields.get("m")),
        transparent=bool(fields.get("t")),
        fault=_FAULTS.get(fields.get("x", ""), ""),
        fault_times=int(fields.get("n", 0)),
        source=base64.b64decode(fields.get("r", "")),
    )
