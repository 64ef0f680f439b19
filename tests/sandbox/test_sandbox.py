"""The offline provider: what it refuses, draws, signs and counts, in process and over real sockets."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageStat

from seedream_cli.errors import ConfigError
from seedream_cli.sandbox import drawing, rules
from seedream_cli.sandbox.families import FAMILIES, RATIOS
from seedream_cli.sandbox.server import Server, make_server, serve
from seedream_cli.sandbox.service import Cut, Delay, SandboxReply, SandboxRequest, Service
from seedream_cli.sandbox.transport import SandboxTransport

LITE = "doubao-seedream-5-0-260128"
PRO = "doubao-seedream-5-0-pro-260628"
V45 = "doubao-seedream-4-5-251128"
V40 = "doubao-seedream-4-0-250828"
T2I = "doubao-seedream-3-0-t2i-250415"
EDIT3 = "doubao-seededit-3-0-i2i-250628"
ARK = "/api/v3/images/generations"
NOW = 1_790_000_000.0


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def post(service: Service, path: str, body: Any, *, key: str = "any-key") -> SandboxReply:
    """One API request."""
    headers = (("Authorization", f"Bearer {key}"), ("Content-Type", "application/json"))
    return service.handle(SandboxRequest("POST", path.encode(), headers, json.dumps(body).encode()))


def body_of(reply: SandboxReply) -> bytes:
    """All bytes of a reply."""
    return b"".join(piece for piece in reply.chunks if isinstance(piece, bytes))


def ask(service: Service, body: dict[str, Any], *, path: str = ARK) -> dict[str, Any]:
    """The JSON of a request that has to succeed."""
    reply = post(service, path, {"model": LITE, "watermark": False, **body})
    answer = json.loads(body_of(reply))
    assert reply.status == 200, answer
    return answer


def fetch(
    service: Service, url: str, *, method: str = "GET", headers: tuple[tuple[str, str], ...] = ()
) -> SandboxReply:
    """The reply to the target of a link."""
    target = "/" + url.split("/", 3)[3]
    return service.handle(SandboxRequest(method, target.encode(), headers))


def open_image(data: bytes) -> Image.Image:
    """An image decoded to its last byte."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def encode(image: Image.Image, kind: str = "PNG") -> str:
    """An image as a data URI."""
    out = io.BytesIO()
    image.save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


RED = encode(Image.new("RGB", (640, 480), (230, 20, 20)))
GREEN = encode(Image.new("RGB", (640, 480), (20, 200, 40)))
CLEAR = encode(Image.new("RGBA", (600, 600), (20, 20, 230, 0)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(clock: Clock) -> Service:
    return Service(clock=clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with make_server() as running:
        yield running


# --- sizes and images -------------------------------------------------------------------------------------------------


def test_every_size_of_the_table_is_legal() -> None:
    """Each tier's pixels lie in the family's own range, and have the shape of their column to within 4 %."""
    for family in FAMILIES:
        for sizes in family.tiers.values():
            for ratio, size in sizes.items():
                width, height = map(int, size.split("x"))
                left, right = map(int, ratio.split(":"))
                assert family.pixels is not None
                assert family.pixels[0] <= width * height <= family.pixels[1]
                assert abs(width / height * right / left - 1) < 0.04
    assert all(tuple(sizes) == RATIOS for family in FAMILIES for sizes in family.tiers.values())


@pytest.mark.parametrize(
    ("model", "size", "prompt", "expected"),
    [
        (LITE, None, "a fox", "2048x2048"),
        (LITE, "2K", "a fox, 16:9", "2848x1600"),
        (LITE, "4k", "竖版 9:16 的猫", "3040x5504"),
        (PRO, "1K", "at 12:30 a fox in 3:2", "1248x832"),
        (PRO, "1500x1000", "a fox", "1500x1000"),
        (V40, "1K", "16:9 fox", "1280x720"),
        (V45, "16000x1000", "a line", "16000x1000"),
        (T2I, None, "a fox", "1024x1024"),
        (T2I, "777x555", "a fox", "777x555"),
        ("ep-2026-abc", "2K", "a fox", "2048x2048"),
    ],
)
def test_images_have_exactly_the_size_asked_for(
    service: Service, model: str, size: str | None, prompt: str, expected: str
) -> None:
    """A tier takes its ratio from the prompt, an exact size is kept, and the usage counts its pixels."""
    answer = ask(service, {"model": model, "size": size, "prompt": prompt})
    (item,) = answer["data"]
    width, height = map(int, expected.split("x"))
    assert item["size"] == expected
    assert answer["usage"]["output_tokens"] == answer["usage"]["total_tokens"] == width * height // 256
    image = open_image(body_of(fetch(service, item["url"])))
    assert (image.format, image.size) == ("JPEG", (width, height))


def test_base64_and_link_give_the_same_bytes(clock: Clock) -> None:
    """The way of handing over does not change the image, and PNG is PNG."""
    body = {"prompt": "a fox", "seed": 7, "output_format": "png"}
    linked = ask(Service(clock=clock), body)["data"][0]
    inline = ask(Service(clock=clock), {**body, "response_format": "b64_json"})["data"][0]
    data = base64.b64decode(inline["b64_json"], validate=True)
    assert "url" not in inline
    assert body_of(fetch(Service(clock=clock), linked["url"])) == data
    assert open_image(data).format == "PNG"


def test_drawing_depends_on_prompt_seed_and_size_alone() -> None:
    """The same arguments give the same bytes; another prompt or seed another image; any size is whole."""
    first = drawing.draw("a fox", 300, 200, 1, format="png", label="a fox")
    assert drawing.draw("a fox", 300, 200, 1, format="png", label="a fox") == first
    others = [("a fox", 2), ("a cat", 1), ("a cat", 2)]
    assert len({first, *(drawing.draw(p, 300, 200, s, format="png", label="a fox") for p, s in others)}) == 4
    for size in ((1, 1), (15, 900), (900, 15)):
        drawn = drawing.draw("x", *size, 0, format="png", label="猫 🦊 \x00 long " * 50, watermark=True)
        assert open_image(drawn).size == size


def test_requests_without_a_seed_differ_in_a_repeatable_order(clock: Clock) -> None:
    """Two equal requests give two images, the same two in another process; with a seed they are one image."""

    def draw_twice(body: dict[str, Any]) -> list[bytes]:
        service = Service(clock=clock)
        return [body_of(fetch(service, ask(service, body)["data"][0]["url"])) for _ in range(2)]

    untiered = draw_twice({"prompt": "a fox", "model": T2I})
    assert untiered[0] != untiered[1]
    assert draw_twice({"prompt": "a fox", "model": T2I, "seed": -1}) == untiered
    seeded = draw_twice({"prompt": "a fox", "model": T2I, "seed": 0})
    assert seeded[0] == seeded[1]


def test_references_can_be_seen_in_the_result(service: Service, clock: Clock) -> None:
    """An edit takes on its reference's colour, also where the reference is a link of the sandbox itself."""

    def colour(image: object) -> list[float]:
        answer = ask(service, {"prompt": "edit", "model": PRO, "size": "1K", "seed": 3, "image": image})
        assert answer["usage"]["input_images"] == (1 if isinstance(image, str) else 2)
        shown = open_image(body_of(fetch(service, answer["data"][0]["url"])))
        return ImageStat.Stat(shown).mean

    red, green = colour(RED), colour(GREEN)
    assert red[0] > green[0] + 60
    assert green[1] > red[1] + 60
    assert green[1] > colour([RED, GREEN])[1] > red[1]
    own = ask(service, {"prompt": "a fox", "model": PRO, "size": "1K"})["data"][0]["url"]
    assert colour(own) != colour("https://example.com/image.jpg")
    clock.now += 90_000
    refused = post(service, ARK, {"model": LITE, "prompt": "edit", "image": own})
    assert refused.status == 400
    assert b"Error while downloading" in body_of(refused)
    assert b"Signature" not in body_of(refused)


def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """Shows how long drawing takes; a slow machine is no failure."""
    lines = []
    for width, height, kind in ((2048, 2048, "jpeg"), (2048, 2048, "png"), (4096, 4096, "jpeg")):
        started = time.perf_counter()
        drawing.draw("a fox", width, height, 1, format=kind, label="a fox")  # type: ignore[arg-type]
        lines.append(f"{width}x{height} {kind}: {time.perf_counter() - started:.2f} s")
    with capsys.disabled():
        print("\ndrawing:", ", ".join(lines))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"size": "1024x1024"}, "size", "image size must be at least 3686400 pixels"),
        ({"size": "5000x5000"}, "size", "image size must be at most 16777216 pixels"),
        ({"size": "60000x200"}, "size", "aspect ratio"),
        ({"size": "16:9"}, "size", "size must be one of 'WIDTHxHEIGHT', '2k', '3k', or '4k'"),
        ({"size": "2048×2048"}, "size", "size must be one of"),
        ({"size": "adaptive"}, "size", "size must be one of"),
        ({"size": "1K"}, "size", "not supported for model doubao-seedream-5-0"),
        ({"size": 2048}, "size", "expected a value of type str"),
        ({"model": PRO, "size": "2200x2200"}, "size", "at most 4624220"),
        ({"model": EDIT3, "image": RED, "size": "1024x1024"}, "size", "adaptive"),
        ({"image": [RED] * 15}, "image", "number of reference images cannot exceed 14"),
        ({"model": PRO, "image": ["https://x/y"] * 11}, "image", "number of reference images cannot exceed 10"),
        ({"model": T2I, "image": RED}, "image", "is not supported by the current model"),
        ({"model": EDIT3}, "image", "missing"),
        ({"model": EDIT3, "image": encode(Image.new("RGB", (900, 200)))}, "image", "between 0.33 and 3.00"),
        ({"image": RED.replace("image/png", "image/PNG")}, "image", "lower case"),
        ({"image": "data:image/svg;base64,AAAA"}, "image", "lower case"),
        ({"image": RED[:-3] + "!!!"}, "image", "base64"),
        ({"image": RED[: RED.index(",") + 1] + "AAAA"}, "image", "cannot be read"),
        ({"image": encode(Image.new("RGB", (14, 14)))}, "image", "at least 15px"),
        ({"image": ""}, "image", "empty"),
        ({"image": {"url": "x"}}, "image", "expected a value of type"),
        ({"model": PRO, "sequential_image_generation": "disabled"}, "sequential_image_generation", "not supported"),
        ({"sequential_image_generation": "on"}, "sequential_image_generation", "auto, disabled"),
        (
            {"sequential_image_generation": "auto", "sequential_image_generation_options": {"max_images": 16}},
            "sequential_image_generation_options.max_images",
            "between 1 and 15",
        ),
        (
            {
                "sequential_image_generation": "auto",
                "sequential_image_generation_options": {"max_images": 14},
                "image": ["https://x/y"] * 2,
            },
            "sequential_image_generation_options.max_images",
            "cannot exceed 15",
        ),
        ({"model": PRO, "stream": True}, "stream", "not supported"),
        ({"stream": "true"}, "stream", "expected a value of type bool"),
        ({"model": V45, "output_format": "png"}, "output_format", "not supported"),
        ({"output_format": "webp"}, "output_format", "must be one of: jpeg, png"),
        ({"optimize_prompt_options": {"mode": "fast"}}, "optimize_prompt_options.mode", "must be 'standard'"),
        ({"model": V45, "tools": [{"type": "web_search"}]}, "tools", "not supported"),
        ({"tools": [{"type": "code"}]}, "tools", "web_search"),
        ({"seed": 2**31}, "seed", "between -1 and 2147483647"),
        ({"seed": True}, "seed", "expected a value of type int"),
        ({"guidance_scale": 11}, "guidance_scale", "between 1 and 10"),
        ({"response_format": "b64"}, "response_format", "url, b64_json"),
        ({"background": "transparent"}, "background", "not supported"),
        ({"model": PRO, "background": "transparent"}, "background", "requires exactly one input image"),
        ({"model": PRO, "background": "transparent", "image": RED}, "image", "at least one transparent pixel"),
        (
            {"model": PRO, "background": "transparent", "image": CLEAR, "output_format": "jpeg"},
            "output_format",
            "must be png when background is transparent",
        ),
        ({"layer_decomposition": True, "image": RED}, "layer_decomposition", "not supported"),
        ({"model": PRO, "layer_decomposition": True, "image": RED, "size": "1024x1024"}, "size", "'auto'"),
        ({"model": PRO, "layer_decomposition": True}, "image", "exactly one input image"),
        ({"prompt": " "}, "prompt", "missing"),
        ({"prompt": ["a"]}, "prompt", "expected a value of type str"),
    ],
)
def test_bad_parameters_are_refused_by_name(service: Service, body: dict[str, Any], param: str, words: str) -> None:
    """Each rule of the service gives a 400 that names the field, holds a request id, and bills nothing."""
    reply = post(service, ARK, {"model": LITE, "prompt": "a fox", **body})
    error = json.loads(body_of(reply))["error"]
    assert (reply.status, error["param"], error["type"]) == (400, param, "BadRequest")
    assert words in error["message"]
    assert " Request id: 02" in error["message"]
    assert service.billed == {}


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "expected"),
    [
        (ARK, {"model": "seedream-9"}, "k", 404, {"code": "InvalidEndpointOrModel.NotFound", "type": "NotFound"}),
        ("/ark" + ARK, {"model": "seedream-4-5-251128"}, "k", 404, {"code": "InvalidEndpointOrModel.NotFound"}),
        ("/byteplus" + ARK, {"model": V45}, "k", 404, {"code": "InvalidEndpointOrModel.NotFound"}),
        (ARK, {"model": LITE}, "k", 400, {"code": "MissingParameter", "param": "prompt"}),
        (ARK, {}, "bad-key", 401, {"code": "AuthenticationError", "type": "Unauthorized"}),
        (ARK, {}, "über", 401, {"code": "AuthenticationError"}),
        (ARK, {}, "overdue-key", 403, {"code": "AccountOverdueError", "type": "Forbidden"}),
        ("/v1/images/generations", {"model": "x"}, "k", 503, {"code": "model_not_found", "type": "comet_api_error"}),
        ("/cometapi/v1/images/generations", {"model": LITE}, "k", 500, {"code": "invalid_request"}),
        ("/cometapi/v1/images/generations", {}, "bad", 401, {"code": "", "type": "comet_api_error"}),
        ("/cometapi/v1/images/generations", {"model": LITE, "prompt": "x", "size": "1K"}, "k", 400, {"param": "size"}),
        ("/ope/v1/images/generations", {"model": LITE}, "k", 404, {"type": "NotFound"}),
        ("/seedream/images", {"model": "seedream-4.5", "prompt": "x"}, "k", 400, {"code": "bad_request"}),
        ("/seedream/images", {"prompt": "x"}, "k", 400, {"code": "token_mismatched"}),
        ("/acedata/seedream/images", {}, "bad", 401, {"code": "invalid_token"}),
        ("/acedata/seedream/images", {}, "overdue", 403, {"code": "used_up"}),
        ("/acedata/seedream/nothing", {}, "k", 404, {"code": "no_api"}),
    ],
)
def test_refusals_wear_the_envelope_of_their_service(
    service: Service, path: str, body: dict[str, Any], key: str, status: int, expected: dict[str, str]
) -> None:
    """Keys, model ids and missing fields are refused with each service's status, code and shape."""
    reply = post(service, path, body, key=key)
    answer = json.loads(body_of(reply))
    assert reply.status == status
    assert expected.items() <= answer["error"].items()
    if "seedream/images" in path:
        assert answer["success"] is False
        assert answer["trace_id"]


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["2K", "auto", RED]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "model",
    "prompt",
    "image",
    "size",
    "seed",
    "guidance_scale",
    "sequential_image_generation",
    "sequential_image_generation_options",
    "stream",
    "tools",
    "output_format",
    "optimize_prompt_options",
    "response_format",
    "watermark",
    "background",
    "layer_decomposition",
    "n",
    "async",
    "callback_url",
    "id",
    "ids",
    "action",
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(
        [ARK, "/v1/images/generations", "/ope/v1/images/generations", "/seedream/images", "/seedream/tasks"]
    ),
    st.sampled_from([LITE, PRO, T2I, EDIT3]),
    st.dictionaries(st.sampled_from(FIELDS), JSONISH, max_size=4),
)
def test_no_body_confuses_the_service(path: str, model: str, body: dict[str, Any]) -> None:
    """Whatever JSON comes in, the answer is JSON with data, a task or an error, never an exception."""
    reply = post(Service(), path, {"model": model, "prompt": "x", "size": None, **body, "response_format": "url"})
    text = body_of(reply)
    if b"event:" not in text and b"image_generation" not in text:
        assert {"data", "error", "task_id", "items", "response"} & json.loads(text).keys()


# --- sets, layers, streams --------------------------------------------------------------------------------------------


def group(prompt: str, most: int, **more: Any) -> dict[str, Any]:
    """The body of a set of up to `most` images."""
    options = {"max_images": most}
    return {
        "prompt": prompt,
        "sequential_image_generation": "auto",
        "sequential_image_generation_options": options,
        **more,
    }


def test_sets_return_members_and_their_failures(service: Service) -> None:
    """A set has as many images as allowed or as the prompt says, a failed one in its place and not in the usage."""
    answer = ask(service, group("seasons [[fail:2]]", 3))
    assert [sorted(item) for item in answer["data"]] == [["size", "url"], ["error"], ["size", "url"]]
    assert answer["data"][1]["error"]["code"] == "OutputImageSensitiveContentDetected"
    assert answer["usage"] == {"generated_images": 2, "output_tokens": 32768, "total_tokens": 32768}
    assert answer["model"] == "doubao-seedream-5-0"
    assert len(ask(service, group("seasons [[fewer:2]]", 4))["data"]) == 2
    links = [item["url"] for item in ask(service, group("seasons", 3))["data"]]
    assert len({body_of(fetch(service, link)) for link in links}) == 3
    nothing = ask(service, {"prompt": "one [[fail:1]]"})
    assert nothing["error"]["code"] == "OutputImageSensitiveContentDetected"
    assert "data" not in nothing
    assert service.billed == {"seasons [[fail:2]]": 1, "seasons [[fewer:2]]": 1, "seasons": 1}


def test_gateways_change_the_request_in_their_own_way(service: Service) -> None:
    """OPE turns n into a set and knows short ids, also on the bare path; Ark ignores n; AceData says image_url."""
    body = {"model": "doubao-seedream-4.5", "prompt": "a fox", "n": 3, "output_format": "png", "quality": "hd"}
    for path in ("/ope/v1/images/generations", "/v1/images/generations"):
        assert len(ask(service, body, path=path)["data"]) == 3
    assert len(ask(service, {"prompt": "a fox", "n": 3})["data"]) == 1
    ace = ask(service, {"prompt": "a fox"}, path="/seedream/images")
    assert ace["success"] is True
    assert set(ace["data"][0]) == {"prompt", "size", "image_url"}
    searched = ask(service, {"prompt": "a fox", "tools": [{"type": "web_search"}]})
    assert searched["tools"] == [{"type": "web_search"}]
    assert searched["usage"]["tool_usage"] == {"web_search": 1}


def test_layers_have_places_in_their_base(service: Service) -> None:
    """Layers come as a base and clear PNGs whose boxes fit their sizes; a clear background is a PNG with alpha."""
    answer = ask(service, {"model": PRO, "prompt": None, "layer_decomposition": True, "image": RED})
    base, *layers = answer["data"]
    assert (base["z_index"], base["size"], base["output_format"]) == (0, "2368x1776", "jpeg")
    assert "bounding_box" not in base
    assert [layer["z_index"] for layer in layers] == [1, 2]
    for layer in layers:
        left, top, right, bottom = layer["bounding_box"]["absolute"]
        assert layer["size"] == f"{right - left}x{bottom - top}"
        assert all(0 <= value <= 1000 for value in layer["bounding_box"]["normalized"])
    image = open_image(body_of(fetch(service, layers[0]["url"])))
    assert (image.format, image.mode, image.getchannel("A").getextrema()) == ("PNG", "RGBA", (0, 255))
    clear = ask(service, {"model": PRO, "prompt": "cut out", "background": "transparent", "image": CLEAR, "size": "1K"})
    assert open_image(body_of(fetch(service, clear["data"][0]["url"]))).mode == "RGBA"


def test_streams_are_framed_as_the_service_frames_them(service: Service) -> None:
    """Events with names, indices over successes and failures, the usage, then [DONE]; AceData sends plain lines."""
    body = group("seasons [[fail:2]]", 3, model=LITE, stream=True)
    reply = post(service, ARK, body)
    assert dict(reply.headers)["content-type"].startswith("text/event-stream")
    frames = body_of(reply).decode().split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    kinds = [event["type"].removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_succeeded", "partial_failed", "partial_succeeded", "completed"]
    assert [event.get("image_index") for event in events] == [0, 1, 2, None]
    assert events[-1]["usage"]["generated_images"] == 2
    lines = body_of(post(service, "/seedream/images", body)).decode().splitlines()
    assert [json.loads(line)["type"].removeprefix("image_generation.") for line in lines] == kinds
    assert post(service, ARK, {**body, "size": "1K"}).status == 400
    broken = body_of(post(service, ARK, {**body, "prompt": "x [[break]]"}))
    assert broken.count(b"event: ") == 2
    assert b'event: error\ndata: {"error":{"code":"InternalServiceError"' in broken


# --- links ------------------------------------------------------------------------------------------------------------


def test_links_outlive_their_process_but_not_their_day(service: Service, clock: Clock) -> None:
    """A link needs no memory: a later process serves the same bytes, for a day; one from `[[expired]]` at no time."""
    url = ask(service, {"prompt": "长提示 long prompt " * 2000, "image": [RED, GREEN]})["data"][0]["url"]
    assert url.startswith("https://sandbox.invalid/links/")
    assert len(url) < 3000
    assert "X-Tos-Expires=86400" in url
    assert "%2F" in url
    assert body_of(fetch(Service(clock=clock), url)) == body_of(fetch(service, url))
    assert fetch(Service(clock=clock, secret=b"another"), url).status == 403
    clock.now += 86_401
    late = fetch(service, url)
    assert (late.status, json.loads(body_of(late))["Message"]) == (403, "Request has expired")
    born_old = ask(service, {"prompt": "a fox [[expired]]"})["data"][0]["url"]
    assert fetch(service, born_old).status == 403


def test_altered_links_are_refused_byte_for_byte(server: Server) -> None:
    """Over a real socket: a changed, re-encoded, missing or added byte anywhere gives the store's 403."""
    _, text = call(server, "POST", ARK, {"model": T2I, "prompt": "a fox"})
    url = json.loads(text)["data"][0]["url"]
    assert url.startswith(server.url + "/links/")
    target = url.removeprefix(server.url)
    spots = [10, 30, len(target) // 2, target.index("?") + 3, target.index("%2F"), len(target) - 60, len(target) - 1]
    altered = [target[:spot] + chr(ord(target[spot]) ^ 1) + target[spot + 1 :] for spot in spots]
    altered += [
        target.replace("%2F", "%2f"),
        target.replace("%2F", "/"),
        target.replace("&X-Tos-SignedHeaders=host", ""),
        target.split("&")[0],
        target.partition("?")[0],
        target + "&x=1",
        target + "&",
        target.replace("?", "??"),
        "/" + target,
        target.replace("&X-Tos-Date", "%26X-Tos-Date"),
        target.replace("links", "LINKS"),
        target.upper(),
    ]
    for other in altered:
        status, refusal = call(server, "GET", other)
        assert status == (404 if other.startswith(("//", "/LINKS")) else 403), other
        if status == 403:
            assert json.loads(refusal) == {
                "Code": "AccessDenied",
                "Message": "Access Denied",
                "EC": "0003-00000015",
            }
    assert call(server, "HEAD", target)[0] == 405
    assert call(server, "GET", target, key="any-key")[0] == 403
    status, image = call(server, "GET", target)
    assert (status, open_image(image).size) == (200, (1024, 1024))


# --- faults, tasks, counters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [code for code in rules.ERRORS if rules.ERRORS[code][1] not in {"", "comet_api_error"}]
)
def test_errors_on_demand_have_their_status(service: Service, code: str) -> None:
    """`[[error:CODE]]` answers any code of the service with its status and type, billing nothing."""
    reply = post(service, ARK, {"model": LITE, "prompt": f"a fox [[error:{code}.Any]]"})
    error = json.loads(body_of(reply))["error"]
    assert (reply.status, error["type"], error["code"]) == (*rules.ERRORS[code], f"{code}.Any")
    assert service.billed == {}


def test_faults_can_end_after_some_attempts(service: Service) -> None:
    """`*N` limits a fault to the first N requests with the prompt, and Retry-After can be asked for."""
    body = {"model": LITE, "prompt": "a fox [[error:ServerOverloaded*2]] [[retry-after:1.5]]"}
    replies = [post(service, ARK, body) for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 429, 200]
    assert dict(replies[0].headers)["retry-after"] == "1.5"
    assert post(service, "/seedream/images", body | {"prompt": "[[error:QuotaExceeded]]"}).status == 429
    moderated = post(service, ARK, {**body, "prompt": "a fox [[moderated]]"})
    assert (moderated.status, b"InputTextSensitiveContentDetected" in body_of(moderated)) == (400, True)
    hollow = ask(service, {"prompt": "a fox [[hollow]]"})
    assert hollow.keys() == {"model", "created", "error"}
    assert service.billed == {body["prompt"]: 1}


def test_gateway_pages_and_lost_answers_count_as_billed(service: Service) -> None:
    """A 502 page and a dropped answer stand for images that were paid for; a 503 page does not."""
    for status in (502, 503):
        reply = post(service, ARK, {"model": LITE, "prompt": f"[[status:{status}]]"})
        assert (reply.status, b"<html>" in body_of(reply)) == (status, True)
    lost = post(service, ARK, {"model": LITE, "prompt": "[[drop*1]]"})
    assert list(lost.chunks) == [Cut()]
    assert ask(service, {"prompt": "[[drop*1]]"})["data"]
    assert service.billed == {"[[status:502]]": 1, "[[drop*1]]": 2}


def test_spoiled_links(service: Service) -> None:
    """`[[cut]]` breaks the body off under its full length, `[[html]]` answers a page; `*1` heals after one fetch."""
    cut = ask(service, {"model": T2I, "prompt": "a fox [[cut*1]]"})["data"][0]["url"]
    broken, whole = fetch(service, cut), fetch(service, cut)
    assert list(broken.chunks)[-1] == Cut()
    assert len(body_of(broken)) < int(dict(broken.headers)["content-length"]) == len(body_of(whole))
    page = ask(service, {"model": T2I, "prompt": "a fox [[html]]"})["data"][0]["url"]
    assert [fetch(service, page).headers[0] for _ in range(2)] == [("content-type", "text/html")] * 2


def test_tasks_are_pending_until_their_time(clock: Clock) -> None:
    """An asynchronous request answers a task id at once; the record gains its response when the time has passed."""
    service = Service(clock=clock, latency_s=30)
    path = "/acedata/seedream/tasks"
    ids = [
        ask(service, {"prompt": prompt, **how}, path="/seedream/images")["task_id"]
        for prompt, how in (
            ("a fox", {"async": True}),
            ("a fox [[error:InternalServiceError]]", {"callback_url": "https://example.com/hook"}),
        )
    ]
    pending = json.loads(body_of(post(service, path, {"id": ids[0]})))
    assert pending["request"]["prompt"] == "a fox"
    assert not {"response", "finished_at", "elapsed"} & pending.keys()
    clock.now += 30
    done = json.loads(body_of(post(service, path, {"id": ids[0], "action": "retrieve"})))
    assert done["elapsed"] == 30
    assert done["response"]["task_id"] == ids[0]
    assert fetch(service, done["response"]["data"][0]["image_url"]).status == 200
    batch = json.loads(body_of(post(service, path, {"ids": [*ids, "unknown"], "action": "retrieve_batch"})))
    assert batch["count"] == 2
    assert batch["items"][1]["response"]["success"] is False
    assert batch["items"][1]["response"]["error"]["code"] == "api_error"
    assert post(service, path, {"id": "unknown"}).status == 400
    both = {"model": LITE, "prompt": "x", "stream": True, "async": True}
    assert post(service, "/seedream/images", both).status == 400
    assert service.billed == {"a fox": 1}


def test_delays_hold_back_generations_only(clock: Clock) -> None:
    """Latency and `[[slow:S]]` come in front of the first bytes, before each image of a stream, and nowhere else."""
    service = Service(clock=clock, latency_s=2)
    reply = post(service, ARK, {"model": LITE, "prompt": "[[slow:0.5]]"})
    assert [piece for piece in reply.chunks if isinstance(piece, Delay)] == [Delay(2.5)]
    streamed = post(service, ARK, group("x", 3, model=LITE, stream=True))
    assert [isinstance(piece, Delay) for piece in streamed.chunks] == [True, False] * 3 + [False]
    refused = post(service, ARK, {"model": LITE, "prompt": "x", "size": "9K"})
    link = ask(service, {"prompt": "a fox"})["data"][0]["url"]
    for quick in (refused, fetch(service, link)):
        assert not any(isinstance(piece, Delay) for piece in quick.chunks)


# --- the server -------------------------------------------------------------------------------------------------------


def call(
    server: Server,
    method: str,
    target: str,
    body: Any = None,
    *,
    key: str = "",
    raw: http.client.HTTPConnection | None = None,
) -> tuple[int, bytes]:
    """One request over a socket by http.client, which sends the target as it is."""
    connection = raw or http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if body is not None or key:
        headers["Authorization"] = f"Bearer {key or 'any-key'}"
    try:
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        if raw is None:
            connection.close()


def test_server_keeps_connections_and_counts(server: Server) -> None:
    """One connection carries several requests, plain, chunked and streamed; the counters can be read and reset."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        assert call(server, "DELETE", "/sandbox/stats", raw=connection)[0] == 200
        kept = connection.sock
        assert call(server, "POST", ARK, {"model": T2I, "prompt": "a fox"}, raw=connection)[0] == 200
        body = json.dumps(group("seasons", 2, model=LITE, stream=True)).encode()
        connection.request(
            "POST",
            ARK,
            iter([body[:20], body[20:]]),
            {"Authorization": "Bearer k", "Content-Type": "application/json"},
            encode_chunked=True,
        )
        answer = connection.getresponse()
        assert answer.getheader("transfer-encoding") == "chunked"
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert call(server, "POST", ARK, {"model": T2I}, raw=connection)[0] == 400
        stats = json.loads(call(server, "GET", "/sandbox/stats", raw=connection)[1])
        assert connection.sock is kept
    finally:
        connection.close()
    assert (stats["generations"], stats["refused"], stats["billed"], stats["images"]) == (2, 1, 2, 3)
    assert stats["prompts"]["seasons"] == {"attempts": 1, "billed": 1, "images": 2}
    assert server.billed == {"a fox": 1, "seasons": 1}


def test_server_lists_models_and_loses_its_way(server: Server) -> None:
    """Catalogs have each service's shape and want a key; a wrong path is JSON at Ark and a web page at gateways."""
    catalog = json.loads(call(server, "GET", "/ark/api/v3/models", key="k")[1])["data"]
    assert {"id": LITE, "domain": "ImageGeneration", "status": "Running"}.items() <= catalog[3].items()
    assert json.loads(call(server, "GET", "/ope/v1/models", key="k")[1])["object"] == "list"
    assert call(server, "GET", "/api/v3/models")[0] == 401
    assert call(server, "GET", ARK, key="k")[0] == 405
    assert json.loads(call(server, "POST", "/api/v3/image", {})[1])["error"]["code"] == "NotFound"
    assert call(server, "POST", "/v1/image", {})[1].startswith(b"<html>")


def test_server_cuts_and_drops_connections(server: Server) -> None:
    """A cut image ends short of its length, a dropped answer is an empty reply; both are seen by a plain client."""
    _, text = call(server, "POST", ARK, {"model": T2I, "prompt": "a fox [[cut]]"})
    with pytest.raises(http.client.IncompleteRead):
        call(server, "GET", json.loads(text)["data"][0]["url"].removeprefix(server.url))
    with pytest.raises(http.client.RemoteDisconnected):
        call(server, "POST", ARK, {"model": T2I, "prompt": "a fox [[drop]]"})
    with pytest.raises(http.client.IncompleteRead):
        call(server, "POST", ARK, group("x [[drop]]", 2, model=LITE, stream=True))


def test_server_refuses_bodies_it_cannot_frame(server: Server) -> None:
    """A nonsense length or chunk ends the connection with a 400; an announced giant with a 413 before it is sent."""
    for header, status in (
        (b"Content-Length: ten\r\n\r\n", b"400"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"Content-Length: 9999999999\r\n\r\n", b"413"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"POST /api/v3/images/generations HTTP/1.1\r\nHost: x\r\n" + header)
            received = b""
            while piece := raw.recv(4096):
                received += piece
        assert received.split()[1] == status


def test_server_stops_with_clients_waiting() -> None:
    """Stopping does not wait for idle connections or for a slow generation, and frees the port."""
    server = make_server(latency_s=60).start()
    idle = socket.create_connection(("127.0.0.1", server.port))
    outcome: list[BaseException] = []

    def wait_long() -> None:
        try:
            call(server, "POST", ARK, {"model": T2I, "prompt": "a fox"})
        except (http.client.HTTPException, OSError) as error:
            outcome.append(error)

    client = threading.Thread(target=wait_long)
    client.start()
    deadline = time.monotonic() + 10
    while not server.billed and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    server.stop()
    client.join()
    idle.close()
    assert time.monotonic() - started < 5
    assert outcome
    with make_server(port=server.port) as again:
        assert call(again, "GET", "/sandbox/stats")[0] == 200
        with pytest.raises(ConfigError, match="in use"):
            make_server(port=again.port)


def test_serve_hands_over_its_server_and_ends_when_stopped() -> None:
    """`serve` blocks its thread, tells the caller the address, and comes back after `stop`."""
    ready: list[Server] = []
    thread = threading.Thread(target=lambda: serve(ready=ready.append))
    thread.start()
    deadline = time.monotonic() + 10
    while not ready and time.monotonic() < deadline:
        time.sleep(0.01)
    assert call(ready[0], "GET", "/sandbox/stats")[0] == 200
    ready[0].stop()
    thread.join(10)
    assert not thread.is_alive()


# --- the transport ----------------------------------------------------------------------------------------------------


class ExactURL(httpx.URL):
    """A URL that is sent as it was given."""

    exact = b""

    @property
    def raw_path(self) -> bytes:
        return self.exact


def run_client(use: Any, service: Service | None = None, **options: Any) -> Any:
    """Run `use(client)` with a client mounted on the sandbox."""

    async def go() -> Any:
        async with httpx.AsyncClient(transport=SandboxTransport(service), **options) as client:
            return await use(client)

    return asyncio.run(go())


def prepare(client: httpx.AsyncClient, prompt: str, **more: Any) -> httpx.Request:
    """A generation at the in-process address."""
    body = {"model": T2I, "prompt": prompt, **more}
    return client.build_request(
        "POST", f"https://sandbox.invalid{ARK}", json=body, headers={"Authorization": "Bearer k"}
    )


def test_transport_announces_requests_as_a_connection_does(server: Server) -> None:
    """The trace callback sees the same events, with the same members, as over a socket to the server."""

    async def record(client: httpx.AsyncClient, url: str) -> list[tuple[str, Any]]:
        seen: list[tuple[str, Any]] = []

        async def trace(name: str, info: dict[str, Any]) -> None:
            request, returned = info.get("request"), info.get("return_value")
            outcome = returned[:3] if isinstance(returned, tuple) else returned
            seen.append((name, request.method if request is not None else outcome))

        async def pieces() -> Any:
            yield json.dumps({"model": T2I, "prompt": "a fox"}).encode()

        headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
        answer = await client.post(url, content=pieces(), headers=headers, extensions={"trace": trace})
        assert answer.status_code == 200
        assert answer.http_version == "HTTP/1.1"
        assert answer.reason_phrase == "OK"
        return [event for event in seen if event[0].startswith("http11.") and "response_closed" not in event[0]]

    async def over_socket() -> list[tuple[str, Any]]:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await record(client, server.url + ARK)

    mounted = run_client(lambda client: record(client, f"https://sandbox.invalid{ARK}"))
    assert mounted == asyncio.run(over_socket())
    assert mounted[0] == ("http11.send_request_headers.started", b"POST")


def test_transport_takes_the_target_as_it_is() -> None:
    """A link arrives byte for byte where the request holds it so, and is refused where one escape was changed."""

    async def use(client: httpx.AsyncClient) -> None:
        url = (await client.send(prepare(client, "a fox"))).json()["data"][0]["url"]
        target = "/" + url.split("/", 3)[3]
        for exact, status in ((target, 200), (target.replace("%2F", "%2f"), 403)):
            request = client.build_request("GET", "https://sandbox.invalid/")
            request.url = ExactURL("https://sandbox.invalid/")
            request.url.exact = exact.encode()
            answer = await client.send(request)
            assert answer.status_code == status
        assert (await client.get(url)).headers["content-type"] == "image/jpeg"

    run_client(use)


def test_transport_fails_as_a_connection_does() -> None:
    """A cut body, a lost answer and a pause beyond the read timeout raise what httpx raises over a network."""

    async def use(client: httpx.AsyncClient) -> None:
        url = (await client.send(prepare(client, "[[cut]]"))).json()["data"][0]["url"]
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
            await client.get(url)
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            await client.send(prepare(client, "[[drop]]"))
        with pytest.raises(httpx.ReadTimeout):
            await client.send(prepare(client, "[[slow:30]]"))
        answer = await client.send(prepare(client, "x [[drop]]", model=LITE, stream=True), stream=True)
        pieces = answer.aiter_raw()
        got = await anext(pieces)
        with pytest.raises(httpx.RemoteProtocolError, match="chunked"):
            await anext(pieces)
        await answer.aclose()
        assert got.startswith(b"event: image_generation.partial_succeeded\n")

    run_client(use, timeout=httpx.Timeout(5, read=0.1))


def test_transport_leaves_the_loop_free() -> None:
    """While large images are drawn for base64 and for links, the event loop goes on turning."""

    async def use(client: httpx.AsyncClient) -> int:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.002)

        ticker = asyncio.create_task(turn())
        sent = [prepare(client, "a fox", response_format="b64_json", size="2048x2048") for _ in range(2)]
        answers = await asyncio.gather(*(client.send(request) for request in sent))
        ticker.cancel()
        images = {answer.json()["data"][0]["b64_json"] for answer in answers}
        assert len(images) == 2
        return turns

    assert run_client(use) > 10


def test_request_headers_are_found_in_any_case() -> None:
    """Header names have no case, whichever mount they come through."""
    request = SandboxRequest("GET", b"/api/v3/models", (("AUTHORIZATION", "bearer any"),))
    assert Service().handle(request).status == 200
    assert Service().handle(replace(request, headers=())).status == 401
