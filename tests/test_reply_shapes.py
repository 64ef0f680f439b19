"""Images that lie at another place of an answer than the page of the API says."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Command
from tests.rawserver import answer
from tests.upstream import Upstream, picture

KEY = {"OPENAI_API_KEY": "sk-canary-0123456789-do-not-print"}
SMALL = base64.b64encode(picture(seed=3)).decode()
LARGE = base64.b64encode(picture("PNG", (64, 64), seed=5)).decode()

PLAIN: dict[str, Callable[[str], Any]] = {
    "strings in data": lambda link: {"data": [link]},
    "images": lambda link: {"images": [{"url": link}]},
    "images as strings": lambda link: {"created": 1, "images": [link]},
    "data.images": lambda link: {"code": 0, "data": {"images": [{"url": link}]}},
    "data.url": lambda link: {"data": {"url": link, "size": "64x48"}},
    "data.data": lambda link: {"success": True, "data": {"data": [{"url": link}]}},
    "lists in a list": lambda link: [[{"url": link}]],
    "lists in data": lambda link: {"data": [[{"url": link}]]},
    "output": lambda link: {"output": [link]},
    "output as a string": lambda link: {"output": link},
    "result": lambda link: {"result": {"images": [{"url": link}]}},
    "response": lambda link: {"response": {"data": [{"image_url": link}]}},
    "image_urls": lambda link: {"image_urls": [link]},
    "a link": lambda link: link,
    "an object for a link": lambda link: {"data": [{"url": {"url": link}}]},
    "image_url with an object": lambda link: {"data": [{"type": "image_url", "image_url": {"url": link}}]},
    "url as a list": lambda link: {"data": [{"url": [link]}]},
    "the request beside it": lambda link: {
        "request": {"prompt": "cat", "image": "https://sent.test/in.png"},
        "input": {"image_urls": ["https://sent.test/in.png"]},
        "images": [{"url": link, "thumbnail": "https://thumb.test/t.jpg"}],
    },
    "b64": lambda _: {"data": [{"b64": SMALL}]},
    "image": lambda _: {"data": [{"image": SMALL}]},
    "image in a list": lambda _: {"images": [{"image": LARGE}]},
    "b64_json as a list": lambda _: {"data": [{"b64_json": [SMALL]}]},
    "a data URI in a list": lambda _: {"images": [f"data:image/jpeg;base64,{SMALL}"]},
    "base64 in a list": lambda _: {"data": [SMALL]},
}


@pytest.mark.parametrize("shape", PLAIN.values(), ids=PLAIN)
def test_reply_with_its_image_at_another_place_is_saved(seedream: Command, shape: Callable[[str], Any]) -> None:
    """Where the meaning is plain the one image is saved, for one payment; `recover FILE` reads it as well."""
    with Upstream(reply=lambda body, number: shape(f"{upstream.url}/store/1.jpeg")) as upstream:
        made = seedream("generate", "cat", "-p", "openai", "--base-url", upstream.url, env=KEY)
        assert made.code == 0, made.err
        assert len(made.paths) == len(upstream.posts) == 1
        (seedream.folder / "reply.json").write_text(json.dumps(shape(f"{upstream.url}/store/1.jpeg")))
        again = seedream("recover", "reply.json", "-p", "openai", "--base-url", upstream.url, env=KEY)
        assert again.code == 0, again.err
        assert len(again.paths) == len(upstream.posts) == 1


def test_reply_with_several_images_at_another_place_keeps_their_order(seedream: Command) -> None:
    """Each is saved once, in the order of the reply."""
    with Upstream(
        reply=lambda body, number: {"images": [f"{upstream.url}/store/{n}.jpeg" for n in (7, 8, 7)]}
    ) as upstream:
        made = seedream("generate", "cats", "--sequence", "3", "-p", "openai", "--base-url", upstream.url, env=KEY)
        assert len(made.paths) == 2, made.err
        assert [request.target.decode() for request in upstream.gets] in (
            [f"/store/{n}.jpeg" for n in (7, 8)],
            [f"/store/{n}.jpeg" for n in (8, 7)],
        )


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "cat", "image": "https://sent.test/in.png"},
        {"homepage": "https://gateway.test/", "message": "https://gateway.test/help"},
        {"images": []},
        {"images": ["no link"]},
        {"url": ""},
    ],
    ids=["the request", "another link", "an empty list", "a word", "an empty link"],
)
def test_reply_without_a_plain_image_stays_unknown_and_is_kept(seedream: Command, body: Any) -> None:
    """What is not plainly the image is not taken for it: unknown outcome, and the reply is kept."""
    with Upstream(script=lambda *_: answer(json.dumps(body).encode())) as upstream:
        made = seedream("generate", "cat", "-p", "openai", "--base-url", upstream.url, env=KEY)
        assert made.code == 7, made.err
        assert not upstream.gets
    assert list((seedream.home / "state" / "replies").glob("*.reply"))
