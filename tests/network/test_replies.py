"""Paid replies as they really come: kept byte for byte, then judged by the bytes, whatever they are called."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import CANARY, Done
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, completed, events, make_image, ndjson, sse
from tests.support.raw_server import Script, answer

ENV = {"ARK_API_KEY": CANARY}


def generate(command: Forked, upstream: Upstream, *more: str) -> Done:
    return command("generate", "a fox", "-p", "ark", "--base-url", upstream.url, *more, env=ENV)


def images(command: Forked) -> list[Path]:
    """The files of images below the working folder."""
    return sorted(path for path in command.folder.rglob("*") if path.suffix in {".jpeg", ".jpg", ".png"})


def kept(command: Forked) -> list[bytes]:
    """The replies that are kept, as they are on disk."""
    return [path.read_bytes() for path in sorted((command.home / "state/replies").glob("*.reply"))]


def coded(body: bytes, *labels: str) -> Script:
    return answer(body, headers=[("Content-Encoding", label) for label in labels])


def raw(head: str, body: bytes) -> Script:
    return Script((head.encode().replace(b"\n", b"\r\n") + b"\r\n" + body,))


def deflated(body: bytes) -> bytes:
    return zlib.compress(body)[2:-4]


BEFORE = "HTTP/1.1 200 OK\nConnection: close\n"
CODED: dict[str, Callable[[bytes], Script]] = {
    "utf-8": lambda body: coded(body, "utf-8"),
    "aws-chunked": lambda body: coded(body, "aws-chunked"),
    "chunks of an upload": lambda body: coded(
        b"%x;chunk-signature=0a\r\n%s\r\n0;chunk-signature=0b\r\n\r\n" % (len(body), body), "aws-chunked"
    ),
    "identity, gzip": lambda body: coded(gzip.compress(body), "identity, gzip"),
    "two headers": lambda body: coded(gzip.compress(gzip.compress(body)), "gzip", "gzip"),
    "gzip over plain": lambda body: coded(body, "gzip"),
    "br over plain": lambda body: coded(body, "br"),
    "x-foo over gzip": lambda body: coded(gzip.compress(body), "x-foo"),
    "gzip without a label": lambda body: answer(gzip.compress(body)),
    "two members": lambda body: coded(gzip.compress(body[:20]) + gzip.compress(body[20:]), "gzip"),
    "wrong checksum": lambda body: coded(gzip.compress(body)[:-8] + b"12345678", "gzip"),
    "cut behind the document": lambda body: coded(gzip.compress(body)[:-6], "gzip"),
    "deflate": lambda body: coded(zlib.compress(body), "deflate"),
    "raw deflate": lambda body: coded(deflated(body), "deflate"),
}
WRAPPED: dict[str, Callable[[bytes], bytes]] = {
    "then done": lambda body: body + b"\n\ndata: [DONE]\n\n",
    "twice": lambda body: body + b"\n" + body,
    "then text": lambda body: body + b'\nit is "done',
    "then zeros": lambda body: body + b"\0" * 300,
    "guarded": lambda body: b")]}'\n" + body,
    "loop before it": lambda body: b"while(1);" + body,
    "comment before it": lambda body: b"<!-- proxy [12] -->\n" + body,
    "a warning before it": lambda body: b"<br />\n<b>Warning</b>: Undefined {index} in <b>/a.php</b><br />\n" + body,
    "called": lambda body: b"/**/cb(" + body + b");",
    "as a string": lambda body: json.dumps(body.decode()).encode(),
    "UTF-16": lambda body: body.decode().encode("utf-16"),
    "UTF-16 without a mark": lambda body: body.decode().encode("utf-16-be"),
    "UTF-32": lambda body: body.decode().encode("utf-32"),
    "NaN": lambda body: body.replace(b'"total_tokens": 1', b'"total_tokens": NaN, "x": -Infinity'),
    "control character": lambda body: body.replace(b'"m"', b'"m\n\x01"'),
    "no UTF-8": lambda body: body.replace(b'"m"', b'"\xff\xfem"'),
    "names twice": lambda body: body.replace(b'"usage"', b'"data": [], "usage"'),
    "long number": lambda body: body.replace(b'"total_tokens": 1', b'"total_tokens": ' + b"9" * 5000),
    "lists in lists": lambda body: body.replace(b'"m"', b"[" * 5000 + b'"]"' + b"]" * 5000),
    "objects in objects": lambda body: body.replace(
        b'"total_tokens": 1', b'"a":' + b'{"a":' * 5000 + b"1" + b"}" * 5000
    ),
    "an event": lambda body: b"data: " + body + b"\n\ndata: [DONE]\n\n",
    "events without empty lines": lambda body: b'data: {"progress": 1}\ndata: ' + body + b"\n",
    "lines": lambda body: b'{"progress": 1}\n' + body + b"\n",
    "a comment of a stream": lambda body: b": wait\n\n" + body,
}
FRAMED: dict[str, Callable[[bytes], Script]] = {
    "two equal lengths": lambda body: raw(f"{BEFORE}Content-Length: {len(body)}\nContent-Length: {len(body)}\n", body),
    "a list of equal lengths": lambda body: raw(f"{BEFORE}Content-Length: {len(body)}, {len(body)}\n", body),
    "a length beside chunks": lambda body: raw(
        f"{BEFORE}Content-Length: 7\nTransfer-Encoding: chunked\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    ),
    "a length that says nothing": lambda body: raw(f"{BEFORE}Content-Length: \n", body),
    "a length and a comma": lambda body: raw(f"{BEFORE}Content-Length: {len(body)},\n", body),
    "no last chunk": lambda body: raw(f"{BEFORE}Transfer-Encoding: chunked\n", b"%x\r\n%s\r\n" % (len(body), body)),
    "garbage behind the chunks": lambda body: raw(
        f"{BEFORE}Transfer-Encoding: chunked\n", b"%x\r\n%s\r\n0\r\n\r\nHTTP?" % (len(body), body)
    ),
    "chunked over plain": lambda body: raw(f"{BEFORE}Transfer-Encoding: chunked\n", body),
    "gzip, chunked": lambda body: raw(
        f"{BEFORE}Transfer-Encoding: gzip, chunked\n",
        b"%x\r\n%s\r\n0\r\n\r\n" % (len(gzip.compress(body)), gzip.compress(body)),
    ),
    "a length too long": lambda body: raw(f"{BEFORE}Content-Length: {len(body) + 9}\n", body),
    "a length too short": lambda body: raw(f"{BEFORE}Content-Length: {len(body) - 9}\n", body),
    "bare LF and a fold": lambda body: Script((b"HTTP/1.1 200 OK\nX-Long: a\n  b\nConnection: close\n\n" + body,)),
    "status 203": lambda body: answer(body, status=203),
}


def reply(upstream: Upstream) -> bytes:
    made = upstream.images({"model": "m"}, 1)
    made["usage"] = {"generated_images": 1, "total_tokens": 1}
    return json.dumps(made).encode()


@pytest.mark.parametrize("case", [*CODED, *WRAPPED, *FRAMED])
def test_reply_in_an_odd_shape_brings_its_image(forked: Forked, case: str) -> None:
    """A label, a wrapper or a flaw beside the image keeps no image from the disk."""

    def script(request: Any, number: int) -> Script:
        body = reply(upstream)
        if case in WRAPPED:
            return answer(WRAPPED[case](body))
        return (CODED.get(case) or FRAMED[case])(body)

    with Upstream(script=script) as upstream:
        done = generate(forked, upstream)
        assert done.code == 0, done.err
        assert len(upstream.posts) == 1
    assert [path.read_bytes() for path in images(forked)] == [make_image(seed=100)]
    assert not kept(forked)


@pytest.mark.parametrize("case", ["raw deflate", "gzip without a label", "UTF-16", "an event", "then text", "NaN"])
def test_reply_in_an_odd_shape_comes_from_a_file_and_in_a_batch(forked: Forked, case: str) -> None:
    """`recover FILE` knows no label at all, and a batch keeps its replies in a journal."""

    def packed(body: bytes) -> bytes:
        made = {"raw deflate": deflated, "gzip without a label": gzip.compress}
        return (made.get(case) or WRAPPED[case])(body)

    with Upstream(script=lambda request, number: answer(packed(reply(upstream)))) as upstream:
        (forked.folder / "reply.bin").write_bytes(packed(reply(upstream)))
        done = forked("recover", "reply.bin", "-p", "ark", "--base-url", upstream.url, env=ENV)
        assert (done.code, len(images(forked))) == (0, 1), done.err
        (forked.folder / "shots.csv").write_text("prompt\na\nb\n")
        done = forked("batch", "shots.csv", "-p", "ark", "--base-url", upstream.url, env=ENV)
        assert (done.code, len(images(forked)), len(upstream.posts)) == (0, 3, 2), done.err


@pytest.mark.parametrize("form", ["events", "lines", "events, gzip"])
@pytest.mark.parametrize("asked", [[], ["--stream"]])
def test_reply_of_events_brings_its_images(forked: Forked, form: str, asked: list[str]) -> None:
    """Events count whether anybody asked for them or not."""

    def script(request: Any, number: int) -> Script:
        made = [*events(upstream, 2), completed(2)]
        body = ndjson(*made) if form == "lines" else sse(*made)
        return answer(gzip.compress(body) if "gzip" in form else body)

    with Upstream(script=script) as upstream:
        done = generate(forked, upstream, "--sequence", "2", *asked)
    assert (done.code, len(images(forked))) == (0, 2), done.err


@pytest.mark.parametrize(
    "form", ["plain", "gzip", "UTF-16", "events", "URL-safe", "lines and tabs", "parameters", "raw"]
)
def test_reply_with_base64_in_an_odd_shape_brings_its_image(forked: Forked, form: str) -> None:
    """Long base64 stays on disk, packed or not, until it is an image."""
    data = make_image("PNG", (2000, 900), mode="RGB", compress_level=0)[:]
    text = base64.b64encode(data).decode()
    if form == "URL-safe":
        text = base64.urlsafe_b64encode(data).decode().rstrip("=")
    if form == "lines and tabs":
        text = "\n\t".join(text[at : at + 760] for at in range(0, len(text), 760))
    if form == "parameters":
        text = f"DATA:image/png;charset=utf-8;name=a,b.png;base64,{text}"
    body = json.dumps({"data": [{"b64_json": text}]}).encode()
    if form == "events":
        body = sse({"type": "image_generation.partial_succeeded", "image_index": 0, "b64_json": text}, completed(1))
    packed = {"gzip": gzip.compress, "UTF-16": lambda plain: plain.decode().encode("utf-16"), "raw": lambda plain: data}
    body = packed.get(form, bytes)(body)
    with Upstream(script=lambda request, number: answer(body)) as upstream:
        done = generate(forked, upstream)
    assert done.code == 0, done.err
    assert [path.read_bytes() for path in images(forked)] == [data]
    assert not list((forked.home / "state/replies").iterdir())


LOST: dict[str, tuple[Script, bytes]] = {
    "br": (coded(b"\x0b\x02\x80{\x01\x02", "br"), b"\x0b\x02\x80{\x01\x02"),
    "zstd": (coded(b"\x28\xb5\x2f\xfd\x00\x01", "zstd"), b"\x28\xb5\x2f\xfd\x00\x01"),
    "several lengths": (raw(f"{BEFORE}Content-Length: 2\nContent-Length: 4\n", b"{}  "), b"{}  "),
    "cut": (answer(b'{"data": [{"url": "https://h/a"}, {"ur', cut=38), b'{"data": [{"url": "https://h/a"}, {"ur'),
    "a page": (
        answer(b'<html><script>x = {"url": "https://h/logo.png"}</script>'),
        b'<html><script>x = {"url": "https://h/logo.png"}</script>',
    ),
}


@pytest.mark.parametrize("case", LOST)
def test_reply_that_cannot_be_read_is_kept_as_it_came(forked: Forked, case: str) -> None:
    """Exit 7, and every byte on disk."""
    script, came = LOST[case]
    with Upstream(script=lambda request, number: script) as upstream:
        done = generate(forked, upstream)
    assert (done.code, kept(forked)) == (7, [came]), done.err
    if case in {"br", "zstd"}:
        assert case in done.err


def test_reply_in_gzip_is_judged_by_its_code(forked: Forked) -> None:
    """A refusal is one however it is packed."""
    body = json.dumps({"error": {"code": "InputTextSensitiveContentDetected", "message": "no"}}).encode()
    with Upstream(script=lambda request, number: answer(gzip.compress(body), status=400)) as upstream:
        done = generate(forked, upstream)
    assert done.code == 4, done.err


def test_reply_that_grows_without_end_is_kept_small(forked: Forked) -> None:
    """A megabyte that holds a thousand is undone to a bound, and what lies in its reach is read."""
    space = b" " * (1 << 20)
    for whole in (True, False):

        def script(request: Any, number: int, whole: bool = whole) -> Script:
            packer = zlib.compressobj(1, wbits=31)
            start = reply(upstream) if whole else b'{"data": [], "x": "'
            pieces = [packer.compress(start), *(packer.compress(space) for _ in range(200)), packer.flush()]
            return coded(b"".join(pieces), "gzip")

        with Upstream(script=script) as upstream:
            done = generate(forked, upstream)
        assert done.code == (0 if whole else 7), done.err
    assert sum(path.stat().st_size for path in (forked.home / "state/replies").iterdir()) < 8 << 20
