"""A request that was taken: the images that it gets, and the task that it may be."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import links, rules
from .dialects import Answered
from .faults import Faults
from .links import Sketch
from .rules import Order


@dataclass(frozen=True, slots=True)
class Job:
    order: Order
    attempt: int
    faults: Faults
    about: Answered
    origin: str
    source: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One image to be made: its sketch, or None where it is to fail."""

    index: int
    sketch: Sketch | None
    layer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    about: Answered
    request: rules.Body
    created_at: float
    finished_at: float
    response: Mapping[str, Any]

    def record(self, now: float) -> dict[str, Any]:
        """The task as the service shows it: without a response until it is done."""
        shown: dict[str, Any] = {
            "_id": hashlib.sha256(self.about.task_id.encode()).hexdigest()[:24],
            "id": self.about.task_id,
            "created_at": self.created_at,
            "started_at": self.created_at,
            "request": dict(self.request),
            "trace_id": self.about.request_id,
            "type": "images",
        }
        if now < self.finished_at:
            return shown
        elapsed = self.finished_at - self.created_at
        return {**shown, "finished_at": self.finished_at, "elapsed": elapsed, "response": dict(self.response)}


def plan_images(job: Job) -> list[Part]:
    """The images of a request, in order, those that are to fail without a sketch."""
    order, faults = job.order, job.faults
    fewer = faults.number("fewer")
    images = max(1, min(order.images, int(fewer))) if order.grouped and fewer is not None else order.images
    failing = faults.numbers("fail")
    first = _sketch(job)
    parts = [
        Part(index, None if index + 1 in failing else replace(first, seed=_mix(first.seed, index)))
        for index in range(images)
    ]
    return _add_layers(parts[0], order) if order.layered else parts


def _sketch(job: Job) -> Sketch:
    order = job.order
    words = "\0".join([order.prompt, *(reference.key for reference in order.references)])
    essence = hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:24]
    return Sketch(
        essence=essence,
        label=order.prompt.encode("utf-8", "replace").decode()[: links.LABEL_LETTERS],
        width=order.width,
        height=order.height,
        seed=_mix(int(essence[:8], 16), job.attempt) if order.seed is None else order.seed,
        format=order.format,
        watermark=order.watermark,
        transparent=order.transparent,
        fault="cut" if job.faults.has("cut") else "html" if job.faults.has("html") else "",
        fault_times=job.faults.times("cut") or job.faults.times("html"),
        source=job.source,
    )


def _mix(seed: int, number: int) -> int:
    """Another seed for every number; the first image keeps the seed it was asked for."""
    return seed if not number else int(hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:8], 16)


def _add_layers(base: Part, order: Order) -> list[Part]:
    """The base image and two layers cut from it, each with its place in the base."""
    if base.sketch is None:
        return [base]
    parts = [replace(base, layer={"z_index": 0})]
    rng = random.Random(base.sketch.essence)
    for z_index, name in enumerate(("主体", "foreground"), start=1):
        left, top = (round(side * rng.uniform(0.02, 0.3)) for side in (order.width, order.height))
        right, bottom = (round(side * rng.uniform(0.65, 0.98)) for side in (order.width, order.height))
        sketch = replace(
            base.sketch,
            width=right - left,
            height=bottom - top,
            format="png",
            transparent=True,
            seed=z_index,
            label=name,
        )
        across, down = 1000 / order.width, 1000 / order.height
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
        parts.append(Part(z_index, sketch, layer))
    return parts


def make_task_id(request_id: str) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(request_id.encode()).digest()[:16], version=4))
