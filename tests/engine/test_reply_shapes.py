"""Images that lie at another place of an answer than the page of the API says."""

from __future__ import annotations

import base64
import gzip
import json
import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.storage.reply_findings import Findings
from tests.support.command import Command
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, make_image
from tests.support.raw_server import answer

KEY = {"OPENAI_API_KEY": "sk-canary-0123456789-do-not-print"}
SMALL = base64.b64encode(make_image(seed=3)).decode()
LARGE = base64.b64encode(make_image("PNG", (64, 64), seed=5)).decode()

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


# --- what is not plain, shown -----------------------------------------------------------------------------------------

NOISE = random.Random(11)
LINK = "https://store.test/a%2Fb.png?X-Sig=ab+c%7E~==&e=1&n=%20"
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + NOISE.randbytes(12_341)).decode()
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + NOISE.randbytes(9_000)).decode()
A_JPEG, A_PNG = "base64, 12345 bytes, looks like jpeg", "base64, 9008 bytes, looks like png"


def dumped(value: Any) -> bytes:
    """As JSON with every sign that may be an escape written as one."""
    return json.dumps(value).replace("/", "\\/").replace("&", "\\u0026").replace("+", "\\u002B").encode()


BURIED: dict[str, tuple[bytes, list[str]]] = {
    "deep": (json.dumps({"x": [[{"y": {"z": [LINK, {"b": JPEG}]}}]]}).encode(), [LINK, A_JPEG]),
    "escaped": (dumped({"where": LINK, "what": JPEG}), [LINK, A_JPEG]),
    "JSON in JSON in JSON": (dumped({"x": json.dumps({"y": json.dumps([LINK, PNG])})}), [LINK, A_PNG]),
    "markdown": (
        json.dumps(
            {"say": f"![a fox]({LINK}), and https://b.test/x_(1).jpg. \u56fe\uff1ahttps://c.test/2.png\uff0c"}
        ).encode(),
        [LINK, "https://b.test/x_(1).jpg", "https://c.test/2.png"],
    ),
    "a page": (
        f"<html><img src=\"{LINK.replace('&', '&amp;')}\"><a href='https://d.test/3'>x</a></html>".encode(),
        [LINK, "https://d.test/3"],
    ),
    "a data URI": (json.dumps({"q": f"data:image/png;base64,{PNG}"}).encode(), [A_PNG]),
    "URL-safe": (json.dumps({"q": JPEG.replace("+", "-").replace("/", "_").rstrip("=")}).encode(), [A_JPEG]),
    "in lines": (json.dumps({"q": "\r\n".join(textwrap.wrap(PNG, 76)), "l": LINK}).encode(), [A_PNG, LINK]),
    "bare lines": (("\n".join(textwrap.wrap(JPEG, 64)) + f"\n{LINK}\n").encode(), [A_JPEG, LINK]),
    "spaces for plus signs": (json.dumps({"q": JPEG.replace("+", " ")}).encode(), ["base64, 12"]),
    "several in a string": (
        json.dumps({"q": f"{LINK},https://e.test/1.png", "r": "https://e.test/my fox.png"}).encode(),
        [LINK, "https://e.test/1.png", "https://e.test/my fox.png"],
    ),
    "without a host": (
        b'{"q": "/files/x.jpg?s=1", "r": "//cdn.test/y", "no": "/v1/images"}',
        ["/files/x.jpg?s=1", "//cdn.test/y"],
    ),
    "events": (f"data: {json.dumps({'u': LINK})}\n\ndata: [DONE]\n\n".encode(), [LINK]),
    "lines of JSON": (json.dumps({"u": LINK}).encode() + b"\n" + json.dumps({"u": PNG}).encode(), [LINK, A_PNG]),
    "gzip": (gzip.compress(json.dumps({"u": [LINK, PNG]}).encode()), [LINK, A_PNG]),
    "UTF-16": (json.dumps({"u": [LINK, PNG]}).encode("utf-16"), [LINK, A_PNG]),
    "junk around it": (NOISE.randbytes(9_000) + b'"' + LINK.encode() + b'"' + NOISE.randbytes(9_000), [LINK]),
    "hexadecimal": (
        json.dumps({"q": base64.b64decode(PNG).hex()}).encode(),
        ["hexadecimal, 9008 bytes, looks like png"],
    ),
    "nothing": (json.dumps({"id": "a" * 64, "ratio": "16:9", "hash": "0f" * 64}).encode(), []),
}


@pytest.mark.parametrize("case", BURIED)
def test_reply_tells_every_link_and_image_in_it(tmp_path: Path, case: str) -> None:
    """Wherever they stand and however they are written; the same at every place where a piece may end."""
    body, wanted = BURIED[case]
    path = tmp_path / "1.reply"
    path.write_bytes(body)
    found = [one.line for one in Findings(path)]
    if case == "spaces for plus signs":
        assert len(found) == 1
        assert found[0].startswith(wanted[0])
        return
    if case == "junk around it":
        found = [line for line in found if line == LINK]
    assert found == wanted


@pytest.mark.parametrize("shift", range(0, 120, 7))
def test_reply_in_pieces_tells_the_same(tmp_path: Path, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No link and no image is cut, lost or told twice where one piece of a long reply ends."""
    monkeypatch.setattr("seedream_cli.storage.reply_findings._PIECE", 64)
    monkeypatch.setattr("seedream_cli.storage.reply_findings._LINK_MOST", 200)
    monkeypatch.setattr("seedream_cli.storage.reply_findings._AHEAD", 100)
    path = tmp_path / "1.reply"
    body = dumped({"p": "x " * shift, "l": [LINK, PNG, LINK + "2", "y" * shift, JPEG, LINK + "3"]})
    path.write_bytes(body)
    assert [one.line for one in Findings(path)] == [LINK, A_PNG, LINK + "2", A_JPEG, LINK + "3"]


HOSTILE = {
    "links without end": b'{"u": "https://' + b"x" * 1_000_000 + b'"}',
    "colons": b"://" * 100_000,
    "quotes": b'"/a' * 100_000,
    "backslashes": b"\\" * 3_000_000,
    "short runs": (b"a" * 40 + b" ") * 20_000,
    "one link": b"https://a.test/x " * 40_000,
    "many links": b"".join(b"https://a.test/%d " % number for number in range(15_000)),
    "brackets": b"https://a.test/" + b"(" * 5_000 + b"[" * 5_000,
    "much in a little": gzip.compress(b"https://a.test/x\n" * 100_000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_reply_made_to_be_read_for_ever_is_read_soon(tmp_path: Path, case: str) -> None:
    """The number of findings, and of looks, has a bound, and what is left out is said."""
    path = tmp_path / "1.reply"
    path.write_bytes(HOSTILE[case])
    found = Findings(path)
    lines = [one.line for one in found]
    assert len(lines) <= 10_000
    assert all(len(line) <= 8_192 for line in lines)
    assert bool(found.notes) == (case in {"links without end", "many links", "brackets"})


@pytest.mark.parametrize(
    ("provider", "case"),
    [("ark", "deep"), ("openai", "escaped"), ("ark", "markdown"), ("openai", "gzip"), ("ark", "UTF-16")],
)
def test_reply_of_unknown_outcome_shows_what_it_holds(forked: Forked, provider: str, case: str) -> None:
    """`history show ID --links` prints it alone, one a line; `recover ID` explains with it, and changes nothing."""
    env = {"ARK_API_KEY": "k-1234567", "OPENAI_API_KEY": "k-1234567"}
    body, wanted = BURIED[case]
    with Upstream(script=lambda *_: answer(body)) as upstream:
        made = forked("generate", "a fox", "-p", provider, "--base-url", upstream.url, "--json", env=env)
        assert made.code == 7, made.err
        shown = forked("history", "show", made.json["id"], "--links", env=env)
        assert (shown.code, shown.out.splitlines()) == (0, wanted)
        assert f"id: {made.json['id']}" in shown.err
        scripted = forked("history", "show", made.json["id"], "--links", "--json", env=env).json["requests"][0]
        assert scripted["reply"]["links"] == [line for line in wanted if "://" in line]
        assert len(scripted["reply"]["encoded"]) == sum("base64" in line for line in wanted)
        [kept] = (forked.home / "state" / "replies").glob("*.reply")
        plain = forked("history", "show", made.json["id"], env=env)
        assert f"reply: {kept}" in plain.out
        assert f"seedream history show {made.json['id']} --links" in plain.out
        assert "store.test" not in plain.out
        for more in ([], [made.json["id"]], [made.json["id"], "--json"]):
            again = forked("recover", *more, env=env)
            assert again.code == 7
            assert [line.strip() for line in again.err.splitlines() if line.strip() in wanted] == wanted
        assert kept.read_bytes() == body
        assert not upstream.gets


def test_reply_that_no_ledger_knows_shows_what_it_holds(forked: Forked) -> None:
    """The same for a run without a ledger and for a reply out of a file."""
    env = {"ARK_API_KEY": "k-1234567"}
    body, wanted = BURIED["deep"]
    with Upstream(script=lambda *_: answer(body)) as upstream:
        made = forked("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--no-ledger", env=env)
        assert made.code == 7, made.err
    (forked.folder / "reply.json").write_bytes(body)
    for args in (["--no-ledger"], [], ["reply.json", "-p", "ark"], ["reply.json"]):
        again = forked("recover", *args, env=env)
        assert again.code == (2 if args == ["reply.json"] else 7), again.err
        assert all(line in again.err for line in wanted), again.err


def test_reply_that_echoes_a_key_or_signs_of_a_terminal_shows_neither(forked: Forked) -> None:
    """A key in a link is taken out, a hidden sign becomes a visible escape, and a long reply is told in part."""
    env = {"OPENAI_API_KEY": "sk-echo-0123456789"}
    links = [f"https://a.test/{number}" for number in range(60)]
    body = {
        "x": [
            "https://a.test/?key=sk-echo-0123456789",
            "https://a.test/\u202egpj.exe",
            "https://a.test/\u001b[2Jx",
            *links,
        ]
    }
    with Upstream(script=lambda *_: answer(json.dumps(body).encode())) as upstream:
        made = forked("generate", "a fox", "-p", "openai", "--base-url", upstream.url, "--json", env=env)
        assert made.code == 7
        shown = forked("history", "show", made.json["id"], "--links", env=env)
        again = forked("recover", made.json["id"], env=env)
        for text in (shown.out, again.err):
            assert "sk-echo" not in text
            assert not {"\u202e", "\x1b"} & set(text)
            assert {"https://a.test/?key=***", "https://a.test/\\u202egpj.exe"} <= {
                line.strip() for line in text.splitlines()
            }
        assert shown.out.splitlines()[-60:] == links
        assert again.err.count("https://a.test") == 20
        assert "there is more in it" in again.err
        assert "sk-echo" not in forked("history", "show", made.json["id"], "--links", "--json", env=env).out


def test_links_of_the_ledger_are_printed_alone(forked: Forked) -> None:
    """What the ledger knows needs no look into the reply, whose other links are not the image's."""
    env = {"ARK_API_KEY": "k-1234567"}
    with Upstream(link=lambda *_: answer(b"gone", status=404)) as upstream:
        made = forked("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--json", "--retries", "0", env=env)
        assert made.code == 8, made.err
        shown = forked("history", "show", made.json["id"], "--links", env=env)
        assert shown.out.splitlines() == [upstream.link(100)]
        plain = forked("history", "show", made.json["id"], env=env)
        assert f"way on: seedream recover {made.json['id']}" in plain.out


def test_reply_of_many_openings_is_left_after_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error counts the lines before it: a million of them, one behind the other, would take minutes."""
    from seedream_cli.storage import reply_document

    tried, read = list[int](), reply_document.read_value

    def counted(text: str, start: int) -> Any:
        tried.append(start)
        return read(text, start)

    monkeypatch.setattr(reply_document, "read_value", counted)
    with pytest.raises(ValueError, match="no JSON"):
        reply_document.read_document(b"x[" * 300_000)
    assert len(tried) < 30_000
    assert reply_document.read_document(b"x [1 of 4]\n" * 100 + b'{"data": []}').values == ({"data": []},)
