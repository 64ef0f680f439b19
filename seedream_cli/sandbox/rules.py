"""The service's validation of a request's body.

Independent of the client's validation, so that an error in one shows up against the other. Raises the first `Refusal`,
as the services do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from . import drawing
from .families import RATIOS, Family

Body = Mapping[str, Any]

ERRORS: dict[str, tuple[int, str]] = {
    "MissingParameter": (400, "BadRequest"),
    "InvalidParameter": (400, "BadRequest"),
    "InvalidImageURL": (400, "BadRequest"),
    "InvalidEndpoint.ClosedEndpoint": (400, "BadRequest"),
    "InputTextSensitiveContentDetected": (400, "BadRequest"),
    "InputImageSensitiveContentDetected": (400, "BadRequest"),
    "OutputImageSensitiveContentDetected": (400, "BadRequest"),
    "InputTextRiskDetection": (400, "BadRequest"),
    "InputImageRiskDetection": (400, "BadRequest"),
    "OutputTextRiskDetection": (400, "BadRequest"),
    "OutputImageRiskDetection": (400, "BadRequest"),
    "ContentSecurityDetectionError": (400, "BadRequest"),
    "SensitiveContentDetected": (400, "BadRequest"),
    "InvalidSubscription": (400, "Forbidden"),
    "AuthenticationError": (401, "Unauthorized"),
    "InvalidAccountStatus": (401, "Forbidden"),
    "AccessDenied": (403, "Forbidden"),
    "OperationDenied": (403, "Forbidden"),
    "AccountOverdueError": (403, "Forbidden"),
    "InvalidEndpointOrModel": (404, "NotFound"),
    "ModelNotOpen": (404, "NotFound"),
    "NotFound": (404, "NotFound"),
    "UnsupportedModel": (404, "NotFound"),
    "ModelAccountIpmRateLimitExceeded": (429, "TooManyRequests"),
    "ModelAccountRpmRateLimitExceeded": (429, "TooManyRequests"),
    "ModelAccountTpmRateLimitExceeded": (429, "TooManyRequests"),
    "APIAccountRpmRateLimitExceeded": (429, "TooManyRequests"),
    "AccountRateLimitExceeded": (429, "TooManyRequests"),
    "RateLimitExceeded": (429, "TooManyRequests"),
    "ServerOverloaded": (429, "TooManyRequests"),
    "RequestBurstTooFast": (429, "TooManyRequests"),
    "QuotaExceeded": (429, "TooManyRequests"),
    "SetLimitExceeded": (429, "TooManyRequests"),
    "InflightBatchsizeExceeded": (429, "TooManyRequests"),
    "InternalServiceError": (500, "InternalServerError"),
    # Codes of gateways, with their `type`.
    "model_not_found": (503, "comet_api_error"),
    "invalid_request": (500, "comet_api_error"),
    "convert_request_failed": (500, "comet_api_error"),
    "token_mismatched": (400, ""),
    "api_not_implemented": (400, ""),
    "bad_request": (400, ""),
    "disabled": (400, ""),
    "no_token": (400, ""),
    "invalid_token": (401, ""),
    "token_expired": (401, ""),
    "used_up": (403, ""),
    "no_api": (404, ""),
    "request_too_large": (413, ""),
    "too_many_requests": (429, ""),
    "api_error": (500, ""),
}
"""HTTP status and `type` of each error code; `AccessDenied.X` has those of its longest prefix."""

_MESSAGES = {
    "InputTextSensitiveContentDetected": "The request failed because the input text may contain sensitive information.",
    "InputImageSensitiveContentDetected": (
        "The request failed because the input image may contain sensitive information."
    ),
    "OutputImageSensitiveContentDetected": (
        "The request failed because the output image may contain sensitive information."
    ),
    "AuthenticationError": "The API key doesn't exist.",
    "AccountOverdueError": "The request failed because your account has an overdue balance.",
    "InternalServiceError": "The service encountered an unexpected internal error.",
    "ModelAccountIpmRateLimitExceeded": "The images per minute (IPM) limit of this model is exceeded for your account.",
    "api_error": "fetch failed",
}


class Refusal(Exception):  # noqa: N818 (the service means it, it is no defect)
    """The service refuses: an error code of `ERRORS`, the message, and the field."""

    def __init__(self, code: str, message: str, param: str = "", *, native: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.native = native
        """Whether it is the gateway's own error, in its own envelope."""
        self.retry_after = ""
        """The Retry-After header, "" for none."""
        self.status, self.type = status_and_type(code)


def status_and_type(code: str) -> tuple[int, str]:
    """Status and type of an error code, by its longest known prefix; an unknown code is a bad request."""
    known = code
    while known not in ERRORS and "." in known:
        known = known.rpartition(".")[0]
    return ERRORS.get(known, (400, "BadRequest"))


def message_of(code: str) -> str:
    """The message of an error code that a prompt asked for."""
    return _MESSAGES.get(code, f"The request failed with {code}, as the prompt asked the sandbox to.")


# --- the request ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """One input image. `data` and `facts` are set for a data URI only."""

    key: str
    data: bytes = field(default=b"", repr=False)
    facts: drawing.InputImage | None = None


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A valid request: what is drawn, and how it is returned."""

    family: Family
    model: str
    prompt: str
    width: int
    height: int
    images: int
    grouped: bool
    streamed: bool
    response_format: Literal["url", "b64_json"]
    format: Literal["jpeg", "png"]
    watermark: bool
    seed: int | None
    references: tuple[Reference, ...]
    transparent: bool
    layered: bool
    searching: bool
    reports_format: bool


def parse_body(raw: bytes, content_type: str) -> Body:
    """The JSON object of a request, without nulls, which the services treat as missing."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal("InvalidParameter", f"the content type must be application/json, got '{content_type[:60]}'")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refusal("InvalidParameter", "the request body is not valid JSON") from error
    if not isinstance(body, dict):
        raise Refusal("InvalidParameter", "the request body must be a JSON object")
    return {key: value for key, value in body.items() if value is not None}


def parse_request(body: Body, family: Family, *, watermark_default: bool, can_search: bool = True) -> ParsedRequest:
    """Validate a body whose model is of `family`. Raises the first `Refusal`."""
    layered = bool(_typed(body, "layer_decomposition", bool))
    if layered and not family.has_layers:
        raise _unsupported("layer_decomposition")
    prompt = _typed(body, "prompt", str) or ""
    if not prompt.strip() and not layered:
        raise _missing("prompt")
    references = _read_references(body, family)
    streamed = _read_stream(body, family)
    grouped, images = _read_group(body, family, len(references))
    searching = _read_tools(body, family, can_search=can_search)
    _check_numbers(body)
    _check_mode(body, family)
    format_ = _read_format(body, family)
    transparent = _read_background(body, family, references, layered=layered)
    if layered:
        _check_layers(references)
    width, height = _read_size(body, family, prompt, references, layered=layered)
    watermark = _typed(body, "watermark", bool)
    seed = _typed(body, "seed", int)
    return ParsedRequest(
        family=family,
        model=body["model"],
        prompt=prompt,
        width=width,
        height=height,
        images=images,
        grouped=grouped,
        streamed=streamed,
        response_format=_choice(body, "response_format", ("url", "b64_json")) or "url",  # type: ignore[arg-type]
        format="png" if transparent else format_,
        watermark=watermark_default if watermark is None else watermark,
        seed=None if seed in {None, -1} else seed,
        references=references,
        transparent=transparent,
        layered=layered,
        searching=searching,
        reports_format=family.has_layers,
    )


# --- fields -----------------------------------------------------------------------------------------------------------


def _invalid(param: str, message: str) -> Refusal:
    text = f"The parameter `{param}` specified in the request is not valid: {message}."
    return Refusal("InvalidParameter", text, param)


def _unsupported(param: str) -> Refusal:
    return _invalid(param, f"the parameter `{param}` is not supported by the current model")


def _missing(param: str) -> Refusal:
    text = f"The request failed because it is missing one or multiple required parameters: `{param}`."
    return Refusal("MissingParameter", text, param)


def _typed(body: Body, name: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field, None where it is missing; another JSON type is refused. A bool is no number."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise _invalid(name, f"expected a value of type {wanted}, but got {type(value).__name__}")
    return value


def _choice(body: Body, name: str, allowed: Iterable[str]) -> str | None:
    value: str | None = _typed(body, name, str)
    if value is not None and value not in allowed:
        raise _invalid(name, f"must be one of: {', '.join(allowed)}")
    return value


def _read_stream(body: Body, family: Family) -> bool:
    streamed = bool(_typed(body, "stream", bool))
    if streamed and not family.grouped:
        raise _unsupported("stream")
    return streamed


def _read_group(body: Body, family: Family, references: int) -> tuple[bool, int]:
    """Whether a set is asked for, and of how many images; the sandbox returns the maximum, four by default."""
    names = ("sequential_image_generation", "sequential_image_generation_options")
    given = [name for name in names if name in body]
    if given and not family.grouped:
        raise _unsupported(given[0])
    mode = _choice(body, names[0], ("auto", "disabled"))
    options = _typed(body, names[1], dict) or {}
    most = _typed(options, "max_images", int)
    if most is not None and not 1 <= most <= 15:
        raise _invalid(f"{names[1]}.max_images", "must be between 1 and 15")
    if mode != "auto":
        return False, 1
    if most is not None and references + most > 15:
        raise _invalid(
            f"{names[1]}.max_images",
            f"the number of reference images ({references}) plus max_images ({most}) cannot exceed 15",
        )
    return True, most if most is not None else min(4, 15 - references)


def _read_tools(body: Body, family: Family, *, can_search: bool) -> bool:
    tools = _typed(body, "tools", list)
    if tools is None:
        return False
    if not (family.searching and can_search):
        raise _unsupported("tools")
    if any(not isinstance(tool, dict) or tool.get("type") != "web_search" for tool in tools):
        raise _invalid("tools", "the type of a tool must be one of: web_search")
    return bool(tools)


def _check_numbers(body: Body) -> None:
    seed = _typed(body, "seed", int)
    if seed is not None and not -1 <= seed <= 2**31 - 1:
        raise _invalid("seed", "must be between -1 and 2147483647")
    scale = _typed(body, "guidance_scale", (int, float))
    if scale is not None and not 1 <= scale <= 10:
        raise _invalid("guidance_scale", "must be between 1 and 10")


def _check_mode(body: Body, family: Family) -> None:
    options = _typed(body, "optimize_prompt_options", dict)
    if options is None:
        return
    if not family.modes:
        raise _unsupported("optimize_prompt_options")
    mode = options.get("mode")
    if mode is not None and mode not in family.modes:
        allowed = " or ".join(f"'{name}'" for name in family.modes)
        raise _invalid("optimize_prompt_options.mode", f"optimize_prompt_options.mode must be {allowed}")


def _read_format(body: Body, family: Family) -> Literal["jpeg", "png"]:
    if "output_format" in body and not family.formats:
        raise _unsupported("output_format")
    chosen = _choice(body, "output_format", family.formats)
    return family.format if chosen is None else "png" if chosen == "png" else "jpeg"


def _read_background(body: Body, family: Family, references: tuple[Reference, ...], *, layered: bool) -> bool:
    """Whether the background is transparent. Only the newest family can do that without an input image."""
    if "background" in body and not family.backgrounds:
        raise _unsupported("background")
    if _choice(body, "background", family.backgrounds) != "transparent":
        return False
    if layered:
        raise _invalid("background", "cannot be combined with layer_decomposition")
    if body.get("output_format", "png") != "png":
        raise _invalid("output_format", "must be png when background is transparent")
    if "auto" in family.backgrounds:
        return True
    if len(references) != 1:
        raise _invalid("background", "transparent background requires exactly one input image")
    facts = references[0].facts
    if facts is not None and not (facts.format == "png" and facts.has_transparent_pixel):
        raise _invalid("image", "transparent background requires a PNG input with at least one transparent pixel")
    return True


def _check_layers(references: tuple[Reference, ...]) -> None:
    if len(references) != 1:
        raise _invalid("image", "layer decomposition requires exactly one input image")
    facts = references[0].facts
    if facts is None:
        return
    if facts.format not in {"png", "jpeg"}:
        raise _invalid("image", "layer decomposition requires a png or jpeg input")
    if facts.width * facts.height < 262_144:
        raise _invalid("image", "layer decomposition requires an input of at least 262144 pixels")


# --- input images -----------------------------------------------------------------------------------------------------

_DATA_URI = re.compile(r"data:image/(jpeg|jpg|png|webp|bmp|tiff|gif|heic|heif);base64,", re.ASCII)


def _read_references(body: Body, family: Family) -> tuple[Reference, ...]:
    image = _typed(body, "image", (str, list))
    given = [] if image is None else [image] if isinstance(image, str) else image
    least, most = family.references
    if given and not most:
        raise _unsupported("image")
    if len(given) < least:
        raise _missing("image")
    if len(given) > most:
        raise _invalid("image", f"number of reference images cannot exceed {most}")
    if least and not isinstance(image, str):
        raise _invalid("image", "expected a value of type str, but got list")
    return tuple(_read_reference(item, family) for item in given)


def _read_reference(item: object, family: Family) -> Reference:
    """One input image. A URL is not fetched: the sandbox opens no connection."""
    if not isinstance(item, str):
        raise _invalid("image", f"expected a value of type str, but got {type(item).__name__}")
    if not item:
        raise Refusal("InvalidImageURL.EmptyURL", "The image URL in the request is empty.", "image")
    if item.startswith(("http://", "https://")):
        return Reference(key=item)
    head = _DATA_URI.match(item)
    if head is None:
        text = "The image must be a URL or data:image/<format>;base64,<data> with the format in lower case."
        raise Refusal("InvalidImageURL.InvalidFormat", text, "image")
    try:
        data = base64.b64decode(item[head.end() :], validate=True)
    except binascii.Error as error:
        raise _invalid("image", "the base64 data of the image cannot be decoded") from error
    return Reference(hashlib.sha256(data).hexdigest(), data, _check_image(data, head[1], family))


def _check_image(data: bytes, declared: str, family: Family) -> drawing.InputImage | None:
    if len(data) > 30 * 1024 * 1024:
        raise _invalid("image", "image size cannot exceed 30 MB")
    facts = drawing.inspect(data)
    if facts is None:
        if declared in {"heic", "heif"} and data[4:8] == b"ftyp":
            return None
        raise Refusal("InvalidParameter", "The image in the request cannot be read as an image.", "image")
    width, height = facts.width, facts.height
    if width <= 14 or height <= 14:
        side = "width" if width <= 14 else "height"
        raise _invalid("image", f"expected the {side} to be at least 15px, but received a {width}x{height}px image")
    if not 196 <= width * height <= 36_000_000:
        raise _invalid("image", f"the image must have 196 to 36000000 pixels, but has {width * height}")
    widest = family.reference_ratio
    if not 1 / widest <= width / height <= widest:
        raise _invalid(
            "image",
            f"expected the aspect ratio to be between {1 / widest:.2f} and {widest:.2f}, "
            f"but received image with aspect ratio: {width / height:.2f} instead",
        )
    return facts


# --- sizes ------------------------------------------------------------------------------------------------------------

_EXACT = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", re.ASCII)

_RATIO_WORDS = re.compile(r"(?<![\d:])(\d{1,2})\s?[:：]\s?(\d{1,2})(?![\d:])", re.ASCII)


def _read_size(
    body: Body, family: Family, prompt: str, references: tuple[Reference, ...], *, layered: bool
) -> tuple[int, int]:
    """Width and height. A tier's ratio is found in the prompt, or is the input image's."""
    size: str = _typed(body, "size", str) or ("auto" if layered else family.default_size)
    tier = size.upper()
    if layered:
        if tier != "AUTO" and tier not in family.tiers:
            raise _invalid("size", "size must be one of '1k', '1.5k', '2k', or 'auto' when layers are decomposed")
        return _nearest(family.tiers["2K" if tier == "AUTO" else tier], references)
    if size == "adaptive" and family.pixels is None:
        return _nearest(family.untiered, references)
    if tier in family.tiers:
        return _parse(family.tiers[tier][_ratio_in(prompt)])
    if re.fullmatch(r"[0-9.]+K", tier) and family.pixels is not None:
        raise _invalid("size", f"the specified size is not supported for model {family.ark[0].rpartition('-')[0]}")
    exact = _EXACT.fullmatch(size)
    if exact is None or family.pixels is None:
        raise _invalid("size", _size_words(family))
    return _check_exact(int(exact[1]), int(exact[2]), family.pixels)


def _size_words(family: Family) -> str:
    if family.pixels is None:
        return "size must be 'adaptive'"
    words = ["'WIDTHxHEIGHT'", *(f"'{tier.lower()}'" for tier in family.tiers)]
    if len(words) == 1:
        return f"size must be {words[0]}"
    return f"size must be one of {', '.join(words[:-1])}, or {words[-1]}"


def _check_exact(width: int, height: int, pixels: tuple[int, int]) -> tuple[int, int]:
    least, most = pixels
    if width * height < least:
        raise _invalid("size", f"image size must be at least {least} pixels")
    if width * height > most:
        raise _invalid("size", f"image size must be at most {most} pixels")
    if not width <= 16 * height or not height <= 16 * width:
        raise _invalid("size", "the aspect ratio of size must be between 1/16 and 16")
    return width, height


def _ratio_in(prompt: str) -> str:
    for left, right in _RATIO_WORDS.findall(prompt):
        if (ratio := f"{int(left)}:{int(right)}") in RATIOS:
            return ratio
    return "1:1"


def _nearest(sizes: Mapping[str, str], references: tuple[Reference, ...]) -> tuple[int, int]:
    """The size whose ratio is nearest to the first input image's, 1:1 where that is unknown."""
    facts = references[0].facts if references else None
    wanted = facts.width / facts.height if facts else 1.0
    return min(map(_parse, sizes.values()), key=lambda wh: max(wh[0] / wh[1] / wanted, wanted * wh[1] / wh[0]))


def _parse(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)
