"""Downloads of paid images: what is whole is saved whatever it is called, and what cannot be had now stays in reach."""

from __future__ import annotations

import asyncio
import base64
import csv
import gzip
import io
import random
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from seedream_cli.errors import LinkError
from seedream_cli.network import link_client
from seedream_cli.network.client import ProviderClient
from seedream_cli.network.download import Download
from seedream_cli.network.policy import Policy
from seedream_cli.network.urls import absolute, expiry, may_ask, nearness, resolved_nearness
from seedream_cli.storage.image_info import inspect_bytes
from seedream_cli.storage.pixel_check import check_pixels
from tests.support.batches import ENV
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, events, make_image, noise, sse
from tests.support.raw_server import RawServer, Received, Script, answer

JPEG = make_image()
"""Flat, as no photograph is."""
PNG = noise((60, 60))


def ark(upstream: Upstream, *more: str) -> list[str]:
    """A generation at an upstream."""
    return ["generate", "a fox", "-p", "ark", "--base-url", upstream.url, *more]


def raw_deflate(data: bytes) -> bytes:
    """Compressed without any header."""
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


def named_gzip(data: bytes) -> bytes:
    """Compressed, with a file's name before it and no checksum behind."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"x\0" + raw_deflate(data)


def signed_chunks(data: bytes, size: int = 100) -> bytes:
    """The framing of an upload in signed chunks, which some stores hand out again."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] + [b""]
    return b"".join(b"%x;chunk-signature=%064x\r\n%s\r\n" % (len(part), at, part) for at, part in enumerate(parts))


def labelled(
    name: str, value: str, body: bytes = JPEG, *, status: int = 200, borders: Sequence[int] = (), cut: int | None = None
) -> Script:
    """An answer with one header more."""
    return answer(body, status=status, headers=[(name, value)], borders=borders, cut=cut)


def too_long_a_length(body: bytes) -> Script:
    """Its head promises 100 bytes more than there are."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) + 100}\r\nConnection: close\r\n\r\n"
    return Script([head.encode() + body])


# --- labels are opinions ----------------------------------------------------------------------------------------------

WHOLE: dict[str, tuple[Script, bytes]] = {
    **{
        f"encoding {name}": (labelled("Content-Encoding", name), JPEG)
        for name in ("aws-chunked", "utf-8", "none", "gzip", "br", "identity, gzip", "deflate", "")
    },
    "gzip": (labelled("Content-Encoding", "gzip", gzip.compress(PNG), borders=[1, 7]), PNG),
    "gzip without a word": (answer(gzip.compress(PNG)), PNG),
    "gzip with a name, twice": (
        labelled("Content-Encoding", "gzip, gzip", gzip.compress(named_gzip(PNG))),
        PNG,
    ),
    "gzip, its checksum wrong": (labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-8] + bytes(8)), PNG),
    "gzip, its checksum cut": (labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-8]), PNG),
    "deflate with its header": (labelled("Content-Encoding", "deflate", zlib.compress(PNG)), PNG),
    "deflate, bare": (labelled("Content-Encoding", "deflate", raw_deflate(PNG)), PNG),
    "signed chunks": (labelled("Content-Encoding", "aws-chunked", signed_chunks(PNG), borders=[3, 90, 195]), PNG),
    "type text/html": (labelled("Content-Type", "text/html; charset=utf-8"), JPEG),
    **{f"status {status}": (answer(JPEG, status=status), JPEG) for status in (201, 202, 203, 226)},
    "206 of all": (labelled("Content-Range", f"bytes 0-{len(JPEG) - 1}/{len(JPEG)}", status=206), JPEG),
    "206 of all, told wrongly": (labelled("Content-Range", f"bytes 0-{len(JPEG)}/{len(JPEG)}", status=206), JPEG),
    "a length that is too long": (too_long_a_length(JPEG), JPEG),
    "chunks without an end": (answer(JPEG, framing="chunked", cut=len(JPEG)), JPEG),
    "no length": (answer(JPEG, framing="close"), JPEG),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_image_that_is_whole_is_saved_whatever_it_is_called(forked: Forked, name: str) -> None:
    """Size and the image check decide, at the first attempt; header lines, status and framing do not."""
    script, body = WHOLE[name]
    with Upstream(link=lambda request, number: script) as upstream:
        done = forked(*ark(upstream), env=ENV)
        assert (done.code, len(upstream.gets)) == (0, 1), done.err
        [path] = done.paths
        assert (forked.folder / path).read_bytes() == body


PARTS: dict[str, Script] = {
    "204": Script([b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"]),
    "205": answer(JPEG, status=205),
    "206 of a part": labelled("Content-Range", f"bytes 0-{len(JPEG) - 1}/{len(JPEG) + 9}", status=206),
    "206 from the middle": labelled("Content-Range", f"bytes 5-{len(JPEG) + 4}/{len(JPEG) + 5}", status=206),
    "302 without Location": answer(JPEG, status=302),
    "404 with an image": answer(JPEG, status=404),
    "a page": labelled("Content-Encoding", "gzip", gzip.compress(b"<html>" + b"x" * 2000)),
    "cut in its middle": answer(PNG, cut=len(PNG) // 2),
    "compressed and cut": labelled("Content-Encoding", "gzip", gzip.compress(PNG)[:-2000]),
    "zeros out of nothing": answer(gzip.compress(bytes(4_000_000), 1)),
    "an image that never ends": answer(gzip.compress(PNG[:-12] + bytes(68_000_000), 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_image_that_is_not_whole_stays_in_reach(forked: Forked, name: str) -> None:
    """No file is written, the end is 8, and `recover` saves it once the store has come to its senses."""
    script = PARTS[name]
    with Upstream(link=lambda request, number: script) as upstream:
        done = forked(*ark(upstream, "--retries", "0"), env=ENV)
        assert done.code == 8, done.err
        assert not list(forked.folder.iterdir())
        upstream._link = None
        assert forked("recover", env=ENV).code == 0
        assert len(upstream.posts) == 1


# --- pixels -----------------------------------------------------------------------------------------------------------


def photo(
    size: tuple[int, int] = (330, 250), *, grey_from: int | None = None, kind: str = "JPEG", **options: Any
) -> bytes:
    """An image with something everywhere; below a line it may be of the very grey that decoders fill up with."""
    from PIL import Image

    mode = options.pop("mode", "RGB")
    data = random.Random(1).randbytes(40 * 30 * 3)
    image = Image.frombytes("RGB", (40, 30), data).resize(size)
    if grey_from is not None:
        image.paste((128, 128, 128), (0, grey_from, *size))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def closed_again(jpeg: bytes, share: float) -> bytes:
    """A JPEG of which only a share of the compressed data is left, behind which its end marker stands."""
    start = jpeg.index(b"\xff\xda") + 14
    return jpeg[: start + int((len(jpeg) - start) * share)].rstrip(b"\xff") + b"\xff\xd9"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(idat: bytes, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG in RGB around compressed data."""
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def webp(share: float) -> bytes:
    """A WEBP with a share of its only frame, in a container that is whole."""
    made = photo(kind="WEBP")
    body = made[20 : 20 + int((len(made) - 20) * share) // 2 * 2]
    inner = b"WEBP" + made[12:16] + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def gif(blocks: int) -> bytes:
    """A GIF with the first blocks of its only frame, in a container that is whole."""
    made = photo(kind="GIF")
    at = made.index(b",\0\0\0\0") + 10
    at += (3 << ((made[at - 1] & 7) + 1) if made[at - 1] & 0x80 else 0) + 1
    for _ in range(blocks):
        at += 1 + made[at] if made[at] else 0
    return made[:at] + b"\0\x3b"


ROWS = zlib.compress(bytes(8 * 25))
KINDS: list[dict[str, Any]] = [
    {"progressive": progressive, "restart_marker_blocks": restart, **more}
    for progressive in (False, True)
    for restart in (0, 7)
    for more in ({"subsampling": "4:4:4"}, {"subsampling": "4:2:0", "optimize": True}, {"mode": "L"}, {"mode": "CMYK"})
]


def is_whole(data: bytes) -> bool:
    """What the check says of an image whose container is whole."""
    facts = inspect_bytes(data)
    try:
        check_pixels(data, facts)
    except LinkError:
        return False
    return True


@pytest.mark.parametrize("options", KINDS)
def test_pixels_of_a_jpeg_that_was_closed_again_are_missed(options: dict[str, Any]) -> None:
    """Cut anywhere it is not whole; a whole one is, be its lower half or all of it the grey that stands for nothing."""
    for grey_from in (None, 120, 0):
        whole = photo(grey_from=grey_from, **options)
        assert is_whole(whole)
        assert is_whole(whole[:-2] + bytes(16) + whole[-2:]), "bytes behind the last pixel are no damage"
        for share in (0.1, 0.5, 0.9) if grey_from is None else ():
            assert not is_whole(closed_again(whole, share)), share


SOUND = {
    **{f"png {mode}": make_image("PNG", mode=mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")},
    "png of 16 bits": make_image("PNG", mode="I;16"),
    "png in one piece": png(ROWS),
    "webp": webp(1),
    "webp without loss": photo(kind="WEBP", lossless=True),
    "gif": gif(1000),
    "one pixel": make_image(size=(1, 1)),
}
DAMAGED = {
    "png of garbage": png(b"no compressed data"),
    "png of too few rows": png(zlib.compress(bytes(7 * 25))),
    "png, cut and closed": png(ROWS[:-6]),
    "png, its checksum wrong": png(ROWS[:-4] + b"abcd"),
    "png of nothing": png(b""),
    "webp, half": webp(0.5),
    "gif, half": gif(2),
}


@pytest.mark.parametrize("name", [*SOUND, *DAMAGED])
def test_pixels_that_are_no_pixels_are_found(name: str) -> None:
    """A container that is whole around data that is not is no image; no whole image is refused."""
    assert is_whole((SOUND | DAMAGED)[name]) == (name in SOUND)


def test_pixels_of_a_gif_with_a_long_comment_are_checked_at_once() -> None:
    """Old versions of the library take minutes over it."""
    whole, comment = gif(1000), b"!\xfe" + (b"\xff" + bytes(255)) * 30_000 + b"\0"
    started = time.process_time()
    for data, is_sound in ((whole, True), (gif(2), False)):
        assert is_whole(data[:-1] + comment + b";") == is_sound
    assert time.process_time() - started < 10


def test_pixels_of_a_bomb_are_never_decoded(forked: Forked) -> None:
    """A header of 60,000 by 60,000 is refused by the header."""
    bomb = png(ROWS, (60_000, 60_000))
    with Upstream(link=lambda request, number: answer(bomb)) as upstream:
        done = forked(*ark(upstream, "--retries", "0"), env=ENV)
        assert done.code == 8
        assert "60000x60000" in done.err


@pytest.mark.parametrize("size", [(64, 48), (700, 500)])
def test_image_without_its_lower_half_is_fetched_again(forked: Forked, size: tuple[int, int]) -> None:
    """Half an image with an end marker is no image: the next attempt brings the whole one."""
    whole = photo(size)
    halves = answer(closed_again(whole, 0.5))
    with Upstream(link=lambda request, number: halves if number == 1 else answer(whole)) as upstream:
        done = forked(*ark(upstream), env=ENV)
        assert done.code == 0, done.err
        assert (forked.folder / done.paths[0]).read_bytes() == whole
        assert (len(upstream.gets), len(upstream.posts)) == (2, 1)


@pytest.mark.parametrize("verb", ["generate", "batch"])
def test_image_in_a_reply_that_is_damaged_stays_on_disk(forked: Forked, verb: str) -> None:
    """Its base64 is all that was paid for: it is kept, and the error says where, and how it is read again."""
    half = base64.b64encode(closed_again(photo(), 0.5)).decode()
    (forked.folder / "shots.csv").write_text("prompt\na fox\n")
    source = ["shots.csv"] if verb == "batch" else ["a fox"]
    with Upstream(reply=lambda body, number: {"data": [{"b64_json": half}]}) as upstream:
        first = [verb, *source, "-p", "ark", "--base-url", upstream.url, "--response-format", "b64_json"]
        for args in (first, first if verb == "batch" else ["recover"]):
            done = forked(*args, env=ENV)
            assert done.code == 8, done.err
            assert "reads it again" in done.err + done.out
            [kept] = forked.home.rglob("*.reply")
            assert half.encode() in kept.read_bytes()
        assert len(upstream.posts) == 1
        assert not list(forked.folder.rglob("*.jpg"))


# --- where links lead -------------------------------------------------------------------------------------------------

RELATIVE = {
    "/files/a fox.jpg": "/files/a%20fox.jpg",
    "files/x.jpg?s=%2f": "/files/x.jpg?s=%2f",
    "?id=7": "/?id=7",
    "  /x.jpg\n": "/x.jpg",
    "//{HOST}/x.jpg": "/x.jpg",
    "HTTP://{HOST}/a b.jpg": "/a%20b.jpg",
}


@pytest.mark.parametrize("how", ["generate", "stream", "recover"])
def test_link_without_a_host_belongs_to_the_api(forked: Forked, how: str) -> None:
    """It is asked for at the API's own origin, without the key, and the ledger has it whole for later."""
    links = list(RELATIVE)

    def found() -> list[str]:
        return [link.replace("{HOST}", upstream.url.partition("//")[2]) for link in links]

    def reply(body: Any, number: int) -> Any:
        return {"data": [{"url": link} for link in found()], "usage": {"generated_images": len(links)}}

    def script(request: Received, number: int) -> Script | None:
        made = [{**event, "url": link} for event, link in zip(events(upstream, len(links)), found(), strict=True)]
        return answer(sse(*made), headers=[("Content-Type", "text/event-stream")]) if how == "stream" else None

    refused = answer(b"", status=503)
    with Upstream(reply=reply, script=script, link=lambda request, number: refused) as upstream:
        if how != "recover":
            upstream._link = lambda request, number: answer(JPEG)
        more = ["--sequence", str(len(links)), "--retries", "0", *(["--stream"] if how == "stream" else [])]
        done = forked("generate", "a fox", "-p", "ark", "--base-url", f"{upstream.url}/api/v3", *more, env=ENV)
        if how == "recover":
            assert done.code == 8, done.err
            upstream.server.requests.clear()
            upstream._link = lambda request, number: answer(JPEG)
            done = forked("recover", env=ENV)
        assert done.code == 0, done.err
        assert sorted(request.target.decode() for request in upstream.gets) == sorted(RELATIVE.values())
        assert all(request.header("authorization") is None for request in upstream.gets)


def test_link_without_a_scheme_is_https() -> None:
    """But on this machine, where the API's own scheme serves."""
    assert absolute("//cdn.example/x", "https://api.example/v1") == "https://cdn.example/x"
    assert absolute("//cdn.example/x", "http://127.0.0.1:8/v1") == "https://cdn.example/x"
    assert absolute("//[::1]:9/x", "http://127.0.0.1:8/v1") == "http://[::1]:9/x"
    assert absolute("/x", "https://api.example:8443/v1") == "https://api.example:8443/x"
    assert absolute("ftp://h/x", "https://api.example/v1") == "ftp://h/x"


HERE = [
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "2130706433",
    "0177.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "localhost",
    "LOCALHOST.",
]
HERE += ["a.localhost", "0.0.0.0", "0", "::", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "127.0.0.1."]
NEAR = ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "fe80::1", "fc00::1", "fd12::1"]
NEAR += ["::ffff:10.0.0.1", "64:ff9b::a00:1", "2852039166", "0xa9fea9fe", "224.0.0.1", "198.18.0.1", "fe80::1%eth0"]
FAR = ["api.example", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "localhost.example", "10.example"]


def test_link_is_as_near_as_its_host_in_any_spelling() -> None:
    """No way of writing an address makes it another place."""
    assert {host: nearness(host) for host in HERE} == dict.fromkeys(HERE, "loopback")
    assert {host: nearness(host) for host in NEAR} == dict.fromkeys(NEAR, "private")
    assert {host: nearness(host) for host in FAR} == dict.fromkeys(FAR, "public")
    assert resolved_nearness("198.18.0.1") == "public", "a local proxy's stand-in for every name"
    assert [may_ask(api, "private") for api in ("loopback", "private", "public")] == [True, True, False]


@pytest.mark.parametrize(
    "link", ["http://127.0.0.1:{PORT}/x", "https://store.example:{PORT}/x", "https://2130706433:{PORT}/x"]
)
@pytest.mark.parametrize("api", ["https://api.example", "https://10.0.0.1"])
def test_link_of_an_api_elsewhere_never_reaches_this_machine(
    monkeypatch: pytest.MonkeyPatch, link: str, api: str
) -> None:
    """Not by its spelling, and not by a name that stands for it: no connection is made."""

    def look_up(host: str, port: Any, *more: Any, **named: Any) -> Any:
        found = "127.0.0.1" if host == "store.example" else "192.0.2.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, int(port or 0)))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def go(url: str) -> None:
        async with ProviderClient(base_url=api, key="", policy=Policy(5.0, 5.0, 0)) as line:
            await line.fetch(Download(url, lambda _: None, lambda: None, lambda size: asyncio.sleep(0)))

    with RawServer(answer(JPEG)) as server:
        with pytest.raises(LinkError) as caught:
            asyncio.run(go(link.replace("{PORT}", str(server.port))))
        assert server.connections == 0
        assert "leads to this machine" in caught.value.message


def test_link_that_was_refused_is_told_and_kept(forked: Forked) -> None:
    """A redirect goes by the same rule, the end is 8, and `recover` prints the link."""
    with Upstream() as upstream:
        away = answer(b"", status=302, headers=[("Location", "https://10.0.0.1/x")])
        odd = answer(b"", status=302, headers=[("Location", "http://store.example/x")])
        upstream._link = lambda request, number: away if number == 1 else odd
        done = forked(*ark(upstream, "--connect-timeout", "1", "--retries", "0"), env=ENV)
        assert done.code == 8
        again = forked("recover", env=ENV)
        assert again.code == 8
        assert "without TLS" in again.err
        shown = next(line for line in again.err.splitlines() if "--links" in line)
        printed = forked(*shown[shown.index("history") :].split()[:4], env=ENV)
        assert upstream.link(100) in printed.out


def test_link_of_a_name_is_asked_for_at_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up once, so that nothing can change between the judgement and the connection."""
    looks: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: Any, *more: Any, **named: Any) -> Any:
        looks.append(host)
        return real("127.0.0.1", port, *more, **named)

    async def go(port: int) -> bytes:
        data = bytearray()

        async def admit(address: str) -> None:
            assert address == "127.0.0.1"

        monkeypatch.setattr(link_client, "nearness", lambda host: "private")
        monkeypatch.setattr(link_client.LinkClient, "_admission_to", lambda self, target: admit)
        async with ProviderClient(base_url="https://api.example", key="", policy=Policy(5.0, 5.0, 0)) as line:
            monkeypatch.setattr(line._downloads, "_is_plain_allowed", True)
            link = f"http://store.example:{port}/x"
            await line.fetch(Download(link, data.extend, data.clear, lambda size: asyncio.sleep(0)))
        return bytes(data)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with RawServer(answer(JPEG)) as server:
        assert asyncio.run(go(server.port)) == JPEG
    assert looks.count("store.example") == 1


# --- links that are not there yet, or not any more --------------------------------------------------------------------

EARLY = b'<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the '
EARLY += b"request. Signature not valid in the specified time frame</Message></Error>"
LATE = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
FAR_AHEAD = "Fri, 01 Jan 2100 00:00:00 GMT"
DATES = {
    "TOS": ("X-Tos-Date=20260101T000000Z&X-Tos-Expires=60", 1767225660),
    "S3": ("X-Amz-Expires=60&X-Amz-Date=20260101T000000Z", 1767225660),
    "S3 version 2": ("Expires=1767225660&Signature=a", 1767225660),
    "Azure": ("se=2026-01-01T00%3A01%3A00Z&sig=a", 1767225660),
    "a CDN": ("lk3s=a&x-expires=1767225660&x-signature=a", 1767225660),
    "in thousandths": ("expires=1767225660000", 1767225660),
    "Qiniu": ("e=1767225660&token=a", 1767225660),
    "COS": ("q-sign-time=1767225600%3B1767225660", 1767225660),
    "a lifetime alone": ("X-Tos-Expires=86400", None),
    "a number": ("e=5&exp=a", None),
    "none": ("x=1", None),
}


@pytest.mark.parametrize("name", DATES)
def test_link_says_itself_when_it_dies(name: str) -> None:
    """In every spelling that stores have; what is no moment says nothing."""
    query, moment = DATES[name]
    assert expiry(f"https://store.example/x.jpg?{query}") == moment


def dated(upstream: Upstream, query: str) -> Any:
    """An answer whose link bears a date."""
    return lambda body, number: {"data": [{"url": f"{upstream.url}/store/1.jpg?{query}"}]}


ALIVE, DEAD = "Expires=4102444800", "Expires=1767225660"


@pytest.mark.parametrize(
    ("status", "body", "query"),
    [(403, EARLY, ALIVE), (403, LATE, "x=1"), (404, b"", "x=1"), (410, b"gone", ALIVE)],
)
def test_link_that_is_not_there_yet_is_asked_for_again(forked: Forked, status: int, body: bytes, query: str) -> None:
    """One refusal of a link that was just made, or lives by its own date, is not the end."""
    refused = answer(body, status=status)
    with Upstream(link=lambda request, number: refused if number == 1 else None) as upstream:
        upstream._reply = dated(upstream, query)
        done = forked(*ark(upstream), env=ENV)
        assert (done.code, len(upstream.gets), len(upstream.posts)) == (0, 2, 1), done.err


@pytest.mark.parametrize(
    ("status", "body", "query", "date", "kind"),
    [
        (403, LATE, ALIVE, None, "download"),
        (403, LATE, "x=1", None, "download"),
        (404, b"", ALIVE, None, "download"),
        (403, LATE, DEAD, None, "expired"),
        (403, b"<html>", DEAD, None, "expired"),
        (410, b"", DEAD, None, "expired"),
        (503, LATE, DEAD, None, "download"),
        (403, LATE, ALIVE, "Fri, 01 Jan 2100 00:00:01 GMT", "expired"),
        (403, LATE, DEAD, "Wed, 31 Dec 2025 00:00:00 GMT", "download"),
        (403, LATE, "x=1", FAR_AHEAD, "expired"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--no-ledger",)])
def test_link_has_expired_where_its_date_and_the_store_agree(
    forked: Forked, status: int, body: bytes, query: str, date: str | None, kind: str, more: tuple[str, ...]
) -> None:
    """By the store's own clock; and whatever it is called, `recover` by its name tries once more."""
    refused = answer(body, status=status, headers=[("Date", date)] if date else [])
    with Upstream(link=lambda request, number: refused) as upstream:
        upstream._reply = dated(upstream, query)
        done = forked(*ark(upstream, "--retries", "0", "--json", *more), env=ENV)
        assert (done.code, done.json["images"][0]["error"]["code"]) == (8, kind), done.err
        name = done.json["id"]
        again = forked("recover", name, "--retries", "0", env=ENV)
        assert again.code == 8, again.err
        upstream._link = None
        saved = forked("recover", name, env=ENV)
        assert (saved.code, len(saved.paths), len(upstream.posts)) == (0, 1, 1), saved.err


# --- what came and what was asked for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "came", "differs"),
    [
        ("4K", (1024, 1024), True),
        ("2K", (1024, 1024), True),
        ("2K", (2048, 2048), False),
        ("2K", (2848, 1600), False),
        ("2048x2048", (2048, 2040), False),
        ("2048x2048", (2048, 1024), True),
        ("2560x1440", (1440, 2560), True),
    ],
)
def test_size_that_is_not_the_one_asked_for_is_told(
    forked: Forked, asked: str, came: tuple[int, int], differs: bool
) -> None:
    """In words, in JSON and in a batch; with --strict the end is 9, and the image is saved all the same."""
    image = make_image("PNG", came)
    (forked.folder / "shots.csv").write_text(f"prompt,size\na fox,{asked}\n")
    with Upstream(link=lambda request, number: answer(image)) as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        done = forked("generate", "a fox", "-s", asked, *to, "--force", "--json", env=ENV)
        assert (done.code, [one["code"] for one in done.json["warnings"]]) == (0, ["size_differs"] * differs), done.err
        said = f"{asked} was asked for, and {came[0]}x{came[1]} came"
        assert (said in done.err) == differs
        strict = forked("batch", "shots.csv", *to, "--strict", env=ENV)
        assert strict.code == (9 if differs else 0), strict.err
        assert (said in strict.err) == differs
        with (forked.folder / "shots" / "results.csv").open(newline="") as file:
            assert [row["warning"] for row in csv.DictReader(file)] == [said * differs]
        assert len(list(forked.folder.rglob("*.png"))) == 2
