"""The JSON body of a request, with Ark's field names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .contract import Call, ProviderSpec

if TYPE_CHECKING:
    from ..request.image_request import ImageRequest


def body_of(request: ImageRequest, *, image_list: bool) -> dict[str, Any]:
    """The JSON body: model, size, response_format and watermark always, the rest only if set, `extra` last.

    A reference is its URL, or an `ImageRef` for a local one; a single one is no list unless `image_list`. `n` is never
    sent: Ark ignores it, and gateways treat it as a group of at most that size.
    """
    images = [ref.location if ref.kind == "url" else ref for ref in request.images]
    body: dict[str, Any] = {"model": request.model_id}
    if request.prompt is not None:
        body["prompt"] = request.prompt
    if images:
        body["image"] = images if image_list or len(images) > 1 else images[0]
    body["size"] = request.size
    body["response_format"] = request.response_format
    body["watermark"] = request.watermark
    asked: dict[str, Any] = {
        "seed": request.seed,
        "guidance_scale": request.guidance_scale,
        "sequential_image_generation": "auto" if request.sequence else None,
        "sequential_image_generation_options": (
            {"max_images": request.sequence} if isinstance(request.sequence, int) else None
        ),
        "output_format": request.format,
        "optimize_prompt_options": {"mode": request.optimize_prompt} if request.optimize_prompt else None,
        "tools": [{"type": "web_search"}] if request.web_search else None,
        "background": request.background,
        "layer_decomposition": request.layers or None,
        "stream": request.stream or None,
        "async": request.asynchronous or None,
        "callback_url": request.callback_url,
    }
    body.update((name, value) for name, value in asked.items() if value is not None)
    merged = dict(request.extra)
    rewriting = merged.get("optimize_prompt_options")
    if isinstance(rewriting, Mapping) and "optimize_prompt_options" in body:
        # Merged, so that --extra does not drop the mode of --optimize-prompt.
        merged["optimize_prompt_options"] = {**body["optimize_prompt_options"], **rewriting}
    body.update(merged)
    return body


def submission(spec: ProviderSpec, body: Mapping[str, Any], *, stream_type: str) -> Call:
    """The billable call for a body; `stream_type` is the Accept header where the body asks for a stream."""
    stream = body.get("stream") is True
    accept = stream_type if stream else "application/json"
    return Call("POST", spec.path, body, accept, stream=stream, billable=True)
