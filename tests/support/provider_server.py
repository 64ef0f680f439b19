"""A provider of the tests' own: it speaks one dialect's shape, records every byte, and misbehaves as told."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tests.support.raw_server import RESET, RawServer, Received, Script, answer

# The signature covers every byte, so each odd one here must come back as it was given.
QUERY = (
    "X-Tos-Algorithm=TOS4-HMAC-SHA256&X-Tos-Credential=AK%2F20261121%2fcn&X-Tos-Expires=86400"
    "&X-Tos-Signature=ab+c%7E~=="
)


def make_image(
    kind: str = "JPEG", size: tuple[int, int] = (64, 48), seed: int = 0, mode: str = "RGB", **options: Any
) -> bytes:
    """A small real image."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, 90, 160)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def noise(size: tuple[int, int] = (200, 200), **options: Any) -> bytes:
    """A PNG that no one can make smaller: `size[0] * size[1] * 3` bytes and a little more."""
    import os

    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", size, os.urandom(size[0] * size[1] * 3)).save(file, "PNG", compress_level=0, **options)
    return file.getvalue()


class Upstream:
    """Answers a generation with links to itself, and its links with images.

    `reply` makes the JSON answer from the request's body; `script` may replace the whole answer to a POST, `link` that
    to a GET. Both get the number of the request of their kind, from 1.
    """

    def __init__(
        self,
        *,
        reply: Callable[[Mapping[str, Any], int], Any] | None = None,
        script: Callable[[Received, int], Script | None] | None = None,
        link: Callable[[Received, int], Script | None] | None = None,
    ) -> None:
        self._reply = reply or self.images
        self._script = script
        self._link = link
        self.delay_s = 0.0
        self._lock = threading.Lock()
        self._numbers = {"POST": 0, "GET": 0}
        self.server = RawServer(self._serve)

    def __enter__(self) -> Upstream:
        self.server.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self.server.__exit__(*details)

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.url

    @property
    def posts(self) -> list[Received]:
        """The requests that cost money."""
        return [request for request in self.server.requests if request.method == "POST"]

    @property
    def gets(self) -> list[Received]:
        """The downloads."""
        return [request for request in self.server.requests if request.method == "GET"]

    @property
    def bodies(self) -> list[Any]:
        """The JSON of each POST that came whole: a client that is killed may leave half a request behind."""
        return [json.loads(request.body) for request in self.posts if _is_whole(request)]

    def link(self, index: int = 0) -> str:
        """A signed link to image `index`."""
        return f"{self.url}/store/%2Fkey/{index}.jpeg?{QUERY}"

    def images(self, body: Mapping[str, Any], number: int) -> Any:
        """The answer of Ark's shape with as many images as were asked for."""
        count = (body.get("sequential_image_generation_options") or {}).get("max_images", 1)
        data = [{"url": self.link(number * 100 + index), "size": "64x48"} for index in range(count)]
        return {"model": body["model"], "created": 1, "data": data, "usage": {"generated_images": count}}

    def acedata(self, body: Mapping[str, Any], number: int) -> Any:
        """The answer of AceData's shape: a task's id to one that asks for a task, else the result."""
        if body.get("async") or body.get("callback_url"):
            return {"task_id": "t-1"}
        items = [{"prompt": "x", "size": "64x48", "image_url": self.link(number)}]
        return {"success": True, "task_id": "t-1", "trace_id": "r-1", "data": items}

    def _serve(self, request: Received) -> Script:
        with self._lock:
            self._numbers[request.method] += 1
            number = self._numbers[request.method]
        if request.method == "GET":
            made = self._link(request, number) if self._link else None
            if made:
                return made
            seed = int(request.target.decode().split("/")[-1].split(".")[0] or 0)
            return answer(make_image(seed=seed), headers=[("Content-Type", "image/jpeg")])
        if not _is_whole(request):
            return RESET
        made = self._script(request, number) if self._script else None
        if made:
            return made
        reply = json.dumps(self._reply(json.loads(request.body), number)).encode()
        return answer(reply, delay_s=self.delay_s)


def _is_whole(request: Received) -> bool:
    return len(request.body) >= int(request.header("content-length") or 0)


def refusal(status: int, code: str, message: str = "no. Request id: 0217ABC", **headers: str) -> Script:
    """An error in Ark's envelope."""
    body = {"error": {"code": code, "message": message, "param": "", "type": "X"}}
    return answer(json.dumps(body).encode(), status=status, headers=list(headers.items()))


def events(upstream: Upstream, count: int = 3, *, numbered: bool = True, **more: Any) -> list[dict[str, Any]]:
    """The events of a stream of `count` images, without its end. The size has the multiplication sign of the docs."""
    common = {"type": "image_generation.partial_succeeded", "model": "m", "created": 1}
    made = [common | {"url": upstream.link(index), "size": "64×48"} | more for index in range(count)]
    return [event | ({"image_index": index} if numbered else {}) for index, event in enumerate(made)]


def completed(count: int) -> dict[str, Any]:
    """The event that ends a stream of `count` images."""
    return {"type": "image_generation.completed", "model": "m", "created": 2, "usage": {"generated_images": count}}


def failed(index: int, code: str = "OutputImageSensitiveContentDetected") -> dict[str, Any]:
    """The event of an image that was refused."""
    error = {"code": code, "message": "no. Request id: 02AB"}
    return {"type": "image_generation.partial_failed", "model": "m", "image_index": index, "error": error}


def sse(*found: Mapping[str, Any], newline: str = "\n", done: bool = True, named: bool = True) -> bytes:
    """Server-sent events of these, and the terminator."""
    lines = []
    for event in found:
        lines += [f"event: {event['type']}"] if named and "type" in event else []
        lines += [f"data: {json.dumps(event, ensure_ascii=False)}", ""]
    return newline.join([*lines, *(["data: [DONE]", ""] if done else []), ""]).encode()


def ndjson(*found: Mapping[str, Any]) -> bytes:
    """One event a line."""
    return b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in found)
