"""An accepted request: its images, and the task that it may be."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import links, rules
from .dialects import ReplyContext
from .faults import Faults
from .links import ImageSpec
from .rules import ParsedRequest


@dataclass(frozen=True, slots=True)
class Job:
    parsed: ParsedRequest
    attempt: int
    faults: Faults
    context: ReplyContext
    origin: str
    source: bytes


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image to be made; `spec` is None where it is to fail."""

    index: int
    spec: ImageSpec | None
    layer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    context: ReplyContext
    request: rules.Body
    created_at: float
    finished_at: float
    response: Mapping[str, Any]

    def record(self, now: float) -> dict[str, Any]:
        """The task's JSON: without a response until it is done."""
        shown: dict[str, Any] = {
            "_id": hashlib.sha256(self.context.task_id.encode()).hexdigest()[:24],
            "id": self.context.task_id,
            "created_at": self.created_at,
            "started_at": self.created_at,
            "request": dict(self.request),
            "trace_id": self.context.request_id,
            "type": "images",
        }
        if now < self.finished_at:
            return shown
        elapsed = self.finished_at - self.created_at
        return {**shown, "finished_at": self.finished_at, "elapsed": elapsed, "response": dict(self.response)}


def plan_images(job: Job) -> list[PlannedImage]:
    """The images of a request, in order."""
    parsed, faults = job.parsed, job.faults
    fewer = faults.number("fewer")
    images = max(1, min(parsed.images, int(fewer))) if parsed.grouped and fewer is not None else parsed.images
    failing = faults.numbers("fail")
    first = _image_spec(job)
    parts = [
        PlannedImage(index, None if index + 1 in failing else replace(first, seed=_mix(first.seed, index)))
        for index in range(images)
    ]
    return _add_layers(parts[0], parsed) if parsed.layered else parts


def _image_spec(job: Job) -> ImageSpec:
    parsed = job.parsed
    words = "\0".join([parsed.prompt, *(reference.key for reference in parsed.references)])
    prompt_hash = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return ImageSpec(
        prompt_hash=prompt_hash,
        label=parsed.prompt.encode("utf-8", "replace").decode()[: links.LABEL_LETTERS],
        width=parsed.width,
        height=parsed.height,
        seed=_mix(int(prompt_hash[:8], 16), job.attempt) if parsed.seed is None else parsed.seed,
        format=parsed.format,
        watermark=parsed.watermark,
        transparent=parsed.transparent,
        fault="cut" if job.faults.has("cut") else "html" if job.faults.has("html") else "",
        fault_times=job.faults.times("cut") or job.faults.times("html"),
        source=job.source,
    )


def _mix(seed: int, number: int) -> int:
    """A seed per image; the first one keeps the requested seed."""
    return seed if not number else int(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:8], 16)


def _add_layers(base: PlannedImage, parsed: ParsedRequest) -> list[PlannedImage]:
    """The base image and two layers with their positions in it."""
    if base.spec is None:
        return [base]
    parts = [replace(base, layer={"z_index": 0})]
    rng = random.Random(base.spec.prompt_hash)
    for z_index, name in enumerate(("主体", "foreground"), start=1):
        left, top = (round(side * rng.uniform(0.02, 0.3)) for side in (parsed.width, parsed.height))
        right, bottom = (round(side * rng.uniform(0.65, 0.98)) for side in (parsed.width, parsed.height))
        spec = replace(
            base.spec,
            width=right - left,
            height=bottom - top,
            format="png",
            transparent=True,
            seed=z_index,
            label=name,
        )
        across, down = 1000 / parsed.width, 1000 / parsed.height
        box = {
            "absolute": [left, top, right, bottom],
            "normalized": [round(left * across), round(top * down), round(right * across), round(bottom * down)],
        }
        layer = {
            "z_index": z_index,
            "name": name,
            "description": f"layer {z_index} of the sandbox",
            "bounding_box": box,
        }
        parts.append(PlannedImage(z_index, spec, layer))
    return parts


def make_task_id(request_id: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(request_id.encode()).digest()[:16], version=4))
