"""The wire over real sockets: what leaves byte for byte, what each failure means for the money, what never shows."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import gzip
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from seedream_cli.errors import (
    ApiError,
    BudgetError,
    ConfigError,
    FileError,
    InputError,
    InterruptedRunError,
    LinkError,
    SeedreamError,
)
from seedream_cli.network.client import ProviderClient
from seedream_cli.network.download import Download, DownloadLimits
from seedream_cli.network.exchange import EventsEnd
from seedream_cli.network.policy import Clock, Policy
from seedream_cli.network.request_body import encode_body
from seedream_cli.network.retry import decide, read_retry_after
from seedream_cli.network.urls import next_hop, split_link
from seedream_cli.providers.contract import Call, Reply
from seedream_cli.redaction import check_key, mask, secret_forms
from seedream_cli.request.image_request import ImageRef
from seedream_cli.storage.event_stream import Done, EventParser
from seedream_cli.storage.reply_document import Document, read_document
from tests.support.raw_server import (
    RESET,
    SILENCE,
    Certificate,
    RawServer,
    Received,
    Script,
    Tunnel,
    answer,
    free_port,
    make_certificate,
)
from tests.support.sending import Sent, send

KEY = "sk-canary+0123456789/do-not-print"
SUBMIT = Call("POST", "/images/generations", {"prompt": "a red fox"}, billable=True)
POLL = Call("GET", "/tasks/7")
ROOT = Path(__file__).parents[2]


class FastClock(Clock):
    """A clock whose sleeps take no time but count."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return super().monotonic() + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class HurriedClock(Clock):
    """A clock on which everything takes a twentieth of its time."""

    def monotonic(self) -> float:
        return super().monotonic() * 20

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds / 20)


class FsyncBatch:
    """A reply file in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def size(self) -> int:
        return len(self.data)

    def write(self, chunk: bytes) -> None:
        self.data += chunk

    def reset(self) -> None:
        self.data.clear()

    def load(self) -> Document:
        return read_document(self.data)


class Diary:
    """A watch that remembers."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.waits: list[float] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def retrying(self, wait_s: float, error: SeedreamError, attempt: int) -> None:
        self.waits.append(wait_s)


def at_once(judge: Any) -> Any:
    """A check of what came that is no work."""

    async def check(size: int) -> Any:
        return judge()

    return check


def read(reply: Reply) -> Any:
    """What a dialect does: the body decides, and what it does not know may have been billed."""
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    if reply.status == 200 and isinstance(reply.body, dict) and not error:
        return reply.body
    if reply.status == 429:
        raise ApiError("too many", kind="rate_limited", retryable=True)
    if reply.status == 401:
        raise ApiError(f"bad key: {reply.text or error}", kind="auth")
    if reply.status == 500 and error:
        raise ApiError("overloaded", kind="unavailable", retryable=True)
    raise ApiError(f"no answer: {reply.text[:80]}", kind="unknown_outcome", billed="unknown")


def client(
    base_url: str, *, key: str = KEY, clock: Clock | None = None, log: Any = None, **more: Any
) -> ProviderClient:
    """A wire with short deadlines and a fast clock."""
    proxy, transport = more.pop("proxy", None), more.pop("transport", None)
    policy = Policy(**{"timeout_s": 5.0, "connect_timeout_s": 5.0, "retries": 2, **more})
    clock = clock or FastClock()
    return ProviderClient(
        base_url=base_url,
        key=key,
        policy=policy,
        proxy=proxy,
        transport=transport,
        clock=clock,
        random=random.Random(7),
        log=log,
        environ=os.environ,
        certificates=(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")),
    )


def ask(
    base_url: str, call: Call = SUBMIT, *, reply_file: Any = None, gate: Any = None, watch: Any = None, **more: Any
) -> Any:
    """One call in a loop of its own."""

    async def go() -> Any:
        async with client(base_url, **more) as line:
            return await send(line, call, read, reply_file=reply_file, gate=gate, watch=watch)

    return asyncio.run(go())


_LIMITS = ("max_bytes", "deadline_s", "stall_s", "lowest_rate")


def fetch(
    link: str, base_url: str = "http://127.0.0.1:9", *, explain: Any = None, whole: int = 0, **more: Any
) -> bytes:
    """One link in a loop of its own; the bytes that a caller's file would hold; `whole` is how many make an image."""
    limits = DownloadLimits(**{name: more.pop(name) for name in _LIMITS if name in more})
    dies = more.pop("dies", None)

    async def go() -> bytes:
        data = bytearray()

        def judge() -> bytes:
            if whole and len(data) != whole:
                raise LinkError(f"no image: {len(data)} bytes", retryable=True)
            return bytes(data)

        async with client(base_url, **more) as line:
            return await line.fetch(
                Download(link, data.extend, data.clear, at_once(judge), explain=explain, dies=dies, limits=limits)
            )

    return asyncio.run(go())


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for loopback."""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    if made is None:
        pytest.skip("no openssl command")
    return made


# --- links, byte for byte ---------------------------------------------------------------------------------------------

SIGNED = "X-Tos-Credential=AKLT%2F20260101%2Fcn-beijing%2Ftos%2Frequest&X-Tos-Signature=ab12&X-Tos-SignedHeaders=host"
EXACT = [
    "/", "/a%2Fb.jpg?X=1", "/a%2fb.jpg?X=1", "/a?c=AK%2F2026%2Fcn", "/a?c=AK%2f2026%2fcn", "/a%7Eb?x=%7E", "/%41?x=%41",
    "/a~b?x=~", "/a?x=a+b", "/a?x=a%2Bb", "/a?x=a%20b", "/a?x=!*'()", "/a!*'()b", "/a?x=%21%2A%27%28%29", '/a?x="q"',
    '/a"b', "/a?x=1|2", "/a|b", "/a?x=1%7C2", "/a?x={}^`\\", "/a?x[0]=[1]", "/a[0]", "/a?x=<b>", "/a<b>", "/a?x=1&&y=2",
    "/a?&x=1", "/a?x=1&", "/a?x=&y=1", "/a?uploads&y", "/a?x=1&x=2&x=1", "/a?", "/a??x=1", "/a?x=1;y=2", "/a?x=:@/?",
    "/a?sig=abc==&y=1", "/a?sig=ab+/c==", "/%e5%9b%be?x=%e5%9b%be", "/%FF?x=%FF", "/a%zz?x=%zz", "/a%?x=100%",
    "/a%252F?x=%252F", "/a//b?x=1", "//a/b?x=1", "/a/./b?x=1", "/a/../b?x=1", "/a/%2e%2e/b?x=1", "/a?x=%23", "/a?x=%00",
    "/a./b.?x=1", "/a?x=$,", "/a$,;=:@&+b", "/a\\b", "/a?u=https://h/p?q=1", f"/p/doubao/0001.jpeg?{SIGNED}",
    "/b/k.png?AWSAccessKeyId=AK&Expires=1700000000&Signature=aB%2Bc%2Fd%3D",
    "/b/k.png?response-content-disposition=attachment%3B%20filename%3D%22a%20b.png%22&X-Amz-Signature=ff",
    "/c/b.png?sv=2021-08-06&se=2026-01-01T00%3A00%3A00Z&sr=b&sp=r&sig=aB%2Bc%2Fd%3D",
    "/c/b.png?se=2026-01-01T00:00:00Z&sig=aB%2Bc%2Fd%3D",
]  # fmt: skip
MENDED = {
    "/a b?x=c d ": "/a%20b?x=c%20d",
    "": "/",
    "?x=1": "/?x=1",
    "/a?x=1#frag": "/a?x=1",
    "/图.png?x=图": "/%E5%9B%BE.png?x=%E5%9B%BE",
    "  ": "/",
}
MENDED["/a b?x=c d "] = "/a%20b?x=c%20d"
LINKS = {link: link for link in EXACT} | MENDED


async def _fetch_all(line: ProviderClient, origin: str) -> None:
    for link in LINKS:
        await line.fetch(Download(origin + link, lambda _: None, lambda: None, at_once(lambda: None)))


def _targets(server: RawServer) -> list[str]:
    return [request.target.decode("latin-1") for request in server.requests]


def test_links_leave_byte_for_byte() -> None:
    """Every link's target arrives as it was given; only non-ASCII characters are escaped."""

    async def go(url: str) -> None:
        async with client(url) as line:
            await _fetch_all(line, url)

    with RawServer(answer(b"ok", end="keep")) as server:
        asyncio.run(go(server.url))
        assert _targets(server) == list(LINKS.values())


def test_links_leave_byte_for_byte_through_a_forward_proxy() -> None:
    """A plain proxy gets the absolute form with the same bytes, and nothing of the user's."""

    async def go(proxy: str, origin: str) -> None:
        async with client(origin, proxy=proxy) as line:
            assert line.proxy_in_use == proxy.removeprefix("http://")
            await _fetch_all(line, origin)

    with Tunnel(answer(b"ok", end="keep")) as proxy:
        origin = f"http://localhost:{free_port()}"
        asyncio.run(go(proxy.url, origin))
        assert _targets(proxy) == [origin + link for link in LINKS.values()]
        assert not {name for r in proxy.requests for name, _ in r.headers} & {"authorization", "cookie"}


def test_links_leave_byte_for_byte_through_a_tunnel(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment sees the host alone; the image's host sees the exact bytes."""

    async def go(origin: str) -> None:
        async with client(origin) as line:
            await _fetch_all(line, origin)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    with RawServer(answer(b"ok", end="keep"), tls=certificate.server_context()) as store, Tunnel() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        asyncio.run(go(store.url))
        assert _targets(store) == list(LINKS.values())
        assert {(r.method, r.target.decode()) for r in proxy.requests} == {("CONNECT", f"127.0.0.1:{store.port}")}
        assert b"Signature" not in b"".join(r.raw for r in proxy.requests)


@pytest.mark.parametrize(
    "link",
    ["ftp://h/x", "/x", "", "https://", "https://u:p@h/x", "https://h\\@e/x", "https://h/a\nb",
     "https://h /x", "https://h/\x7f", "https://h:port/x", "https://h:99999/x", "https://[::1/x", "javascript:1", "file:///etc/passwd"],
)  # fmt: skip
def test_links_that_cannot_be_sent_are_refused(link: str) -> None:
    """A link with a user name, a space, a control character or no host is refused, not mended."""
    with pytest.raises(LinkError) as caught:
        split_link(link)
    assert not caught.value.retryable


def test_plain_http_links_are_for_this_machine() -> None:
    """A provider elsewhere cannot hand out links that travel in clear."""
    with pytest.raises(LinkError, match="plain http"):
        fetch("http://example.invalid/x?sig=secret", "https://api.example.invalid")


# --- redirects of links -----------------------------------------------------------------------------------------------

HOP_CASES = [
    ("https://a.example/x?s=1", "https://b.example/%2f?t=~", "https://b.example", b"/%2f?t=~"),
    ("https://a.example/x?s=1", "/y?t=%2F", "https://a.example", b"/y?t=%2F"),
    ("https://a.example/x/z?s=1", "y", "https://a.example", b"/x/y"),
    ("https://a.example/x?s=1", "?t=2", "https://a.example", b"/x?t=2"),
    ("https://a.example/x", "//b.example/y", "https://b.example", b"/y"),
    ("http://127.0.0.1:8/x", "http://localhost:9/y", "http://localhost:9", b"/y"),
    ("http://127.0.0.1:8/x", "https://b.example/y", "https://b.example", b"/y"),
]


@pytest.mark.parametrize(("start", "location", "origin", "raw"), HOP_CASES)
def test_redirects_are_rebuilt_from_their_location(start: str, location: str, origin: str, raw: bytes) -> None:
    """A redirect's target is its own Location, byte for byte, and nothing of the link before."""
    hop = next_hop(split_link(start), location)
    assert (f"{hop.scheme}://{hop.authority}", hop.raw) == (origin, raw)


@pytest.mark.parametrize(
    "location",
    ["http://b.example/x", "http://127.0.0.1/x", "https://127.0.0.1/x", "https://localhost/x", "https://10.0.0.1/x",
     "https://169.254.169.254/latest", "https://[::1]/x", "https://[::ffff:10.0.0.1]/x", "https://2130706433/x",
     "https://127.1/x", "https://0/x", "https://u:p@b.example/x", "file:///etc/passwd", "data:,x", "https://b\\c/x"],
)  # fmt: skip
def test_redirects_to_doubtful_places_are_refused(location: str) -> None:
    """No plain http, no private or loopback address, no user name, no other scheme."""
    with pytest.raises(LinkError):
        next_hop(split_link("https://a.example/x"), location)


def test_a_redirect_carries_nothing_along_and_ends() -> None:
    """The second host sees its own link without key, cookie or referrer; the fourth redirect is one too many."""
    with RawServer(answer(b"IMAGE")) as second:
        cookie = [("Location", f"{second.url}/b%2f?t=~"), ("Set-Cookie", "a=b; Path=/")]
        with RawServer(answer(status=302, headers=cookie)) as first:
            assert fetch(f"{first.url}/a?sig=secret", first.url) == b"IMAGE"
        assert second.requests[0].target == b"/b%2f?t=~"
        names = {name for name, _ in second.requests[0].headers}
        assert names == {"host", "user-agent", "accept", "accept-encoding"}
        assert b"secret" not in second.requests[0].raw
    with RawServer(answer(status=307, headers=[("Location", "/again")])) as loop:
        with pytest.raises(LinkError, match="more than 3 times"):
            fetch(f"{loop.url}/a")
        assert loop.count("GET") == 4


# --- downloads --------------------------------------------------------------------------------------------------------

GOOD = answer(b"x" * 5000)
FAULTS: dict[str, tuple[Script, int]] = {
    "reset": (RESET, 3),
    "closed": (Script(), 3),
    "cut, length": (answer(b"x" * 5000, cut=1000), 3),
    "cut, chunked": (answer(b"x" * 5000, framing="chunked", cut=1000), 3),
    "empty": (answer(b""), 3),
    "204": (Script([b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"]), 3),
    "206": (answer(b"x" * 100, status=206), 3),
    "503": (answer(b"<Error/>", status=503), 3),
    "429": (answer(b"", status=429), 3),
    "403": (answer(b"<Error/>", status=403), 1),
    "404": (answer(b"", status=404), 1),
    "gzip of no image": (answer(gzip.compress(b"x" * 5000), headers=[("Content-Encoding", "gzip")]), 3),
    "302 without Location": (answer(b"", status=302), 1),
    "too long, told": (answer(b"x" * 9000), 1),
    "too long, not told": (answer(b"x" * 9000, framing="close"), 1),
    "too slow": (answer(b"x" * 40, drip_s=0.02), 3),
    "silence": (SILENCE, 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_download_is_repeated_or_refused(fault: str) -> None:
    """Whatever is not a whole 200 is no image; what may pass is tried again into an empty file, the rest is not."""
    script, tries = FAULTS[fault]
    limits: dict[str, Any] = {"max_bytes": 6000, "stall_s": 0.2, "lowest_rate": 1000.0}
    with RawServer(script) as server:
        with pytest.raises(LinkError) as caught:
            fetch(f"{server.url}/p.jpeg?X-Sig=secret", whole=5000, **limits)
        assert server.count("GET") == tries
        assert caught.value.retryable == (tries > 1)
        assert "secret" not in str(caught.value)
    if tries > 1:
        with RawServer(script, GOOD) as server:
            assert fetch(f"{server.url}/p.jpeg", whole=5000, **limits) == b"x" * 5000


def test_a_drip_fed_download_ends_at_its_deadline() -> None:
    """Bytes that keep coming do not keep a download alive."""
    with RawServer(answer(b"x" * 400, drip_s=0.02)) as server, pytest.raises(LinkError, match=r"in 0\.3 s"):
        fetch(f"{server.url}/p", deadline_s=0.3, retries=0, whole=5000)


def test_a_store_explains_its_refusal() -> None:
    """The caller reads the store's own error, and an expired link is not tried again."""
    body = b"<Error><Code>AccessDenied</Code>" + b" " * 5000

    def explain(head: bytes, status: int) -> tuple[str, str]:
        assert len(head) == 2000
        return "expired", f"expired ({status}): https://store.example/x?X-Tos-Signature=secret"

    with RawServer(answer(body, status=403)) as server:
        with pytest.raises(LinkError, match=r"expired \(403\)") as caught:
            fetch(f"{server.url}/p", explain=explain, dies=1)
        assert caught.value.kind == "expired"
        assert "secret" not in caught.value.message
        assert server.count("GET") == 1


def test_an_image_that_its_judge_refuses_is_fetched_again() -> None:
    """What `check` calls broken is another attempt, and what it makes of a whole image is handed on."""

    async def go(link: str) -> Any:
        data, judged = bytearray(), list[bytes]()

        def check() -> bytes:
            judged.append(bytes(data))
            if data != b"good":
                raise LinkError("not an image", retryable=True)
            return judged[-1]

        async with client("http://127.0.0.1:9") as line:
            return await line.fetch(Download(link, data.extend, data.clear, at_once(check))), judged

    with RawServer(answer(b"bad"), answer(b"good")) as server:
        assert asyncio.run(go(server.url)) == (b"good", [b"bad", b"good"])


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_goes_out_as_written() -> None:
    """Compact UTF-8 JSON with its length, the key in one header, no cookies, no compression asked for."""
    call = Call("POST", "/images/generations", {"prompt": '图 "x"', "n": 1}, billable=True)
    diary = Diary()

    async def go(url: str) -> Any:
        async with client(f"{url}/v1/") as line:
            await send(line, call, read)
            return await send(line, call, read, watch=diary)

    reply = answer(b'{"data":[]}', headers=[("Set-Cookie", "a=b; Path=/"), ("X-Request-Id", "r1")])
    with RawServer(reply) as server:
        result = asyncio.run(go(server.url))
        request = server.requests[1]
        assert server.connections == 2
    assert (result.value, result.attempts, result.reply.headers["x-request-id"]) == ({"data": []}, 1, "r1")
    assert request.target == b"/v1/images/generations"
    assert request.body == '{"prompt":"图 \\"x\\"","n":1}'.encode()
    headers = dict(request.headers)
    assert headers.pop("user-agent").startswith("seedream/")
    assert headers == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(request.body)),
    }
    assert diary.stages == ["connecting", "sent", "receiving"]


OK = answer(b'{"data":[]}')
LOST = {
    "reset": RESET,
    "closed": Script(),
    "head cut": Script([b"HTTP/1.1 200 OK\r\nContent-Le"]),
    "cut, length": answer(b'{"data":[]}', cut=5),
    "cut, chunked": answer(b'{"data":[]}', framing="chunked", cut=5),
    "cut, close": answer(b'{"data":[]}', framing="close", cut=5),
    "garbage": Script([b"SSH-2.0-x\r\n\r\n"]),
    "silence": SILENCE,
    "drip": answer(b'{"data":[]' + b" " * 400 + b"}", drip_s=0.02),
    "502 HTML": answer(b"<html>bad gateway</html>", status=502),
    "200 HTML": answer(b"<html>welcome</html>"),
    "gzip cut": answer(
        gzip.compress(b'{"data":["%s"]}' % random.randbytes(99).hex().encode())[:-40],
        headers=[("Content-Encoding", "gzip")],
    ),
    "brotli": answer(b"\x0b\x02\x80", headers=[("Content-Encoding", "br")]),
    "too large": answer(b" " * (9 << 20)),
    "bomb": answer(gzip.compress(b" " * (64 << 20)), headers=[("Content-Encoding", "gzip")]),
}


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_is_unknown_and_not_sent_again(fault: str) -> None:
    """After the first byte left, only a whole answer that its reader understands ends the doubt."""
    with RawServer(LOST[fault]) as server:
        with pytest.raises(ApiError) as caught:
            ask(server.url, timeout_s=0.5 if fault in {"silence", "drip"} else 5.0)
        assert server.count("POST") == 1
    error = caught.value
    assert (error.kind, error.billed, error.retryable, error.exit_code) == ("unknown_outcome", "unknown", False, 7)


@pytest.mark.parametrize("fault", ["reset", "cut, length"])
def test_a_poll_is_simply_repeated(fault: str) -> None:
    """A call that costs nothing has no doubtful outcome."""
    with RawServer(LOST[fault], OK) as server:
        assert ask(server.url, POLL).attempts == 2
        assert [r.method for r in server.requests] == ["GET", "GET"]


def test_the_user_may_order_a_doubtful_request_again() -> None:
    """With retry_ambiguous the second request is sent, and the first one is not forgotten."""
    with RawServer(RESET, OK) as server:
        result = ask(server.url, retry_ambiguous=True, retries=1)
        assert (result.attempts, result.ambiguous, server.count("POST")) == (2, 1, 2)
    with RawServer(RESET, answer(b'{"error":1}', status=401)) as server:
        with pytest.raises(ApiError) as caught:
            ask(server.url, retry_ambiguous=True)
        assert (caught.value.kind, server.count("POST")) == ("unknown_outcome", 2)


def _unreachable(kind: str, certificate: Certificate) -> Iterator[tuple[str, dict[str, Any]]]:
    if kind == "refused":
        yield f"http://127.0.0.1:{free_port()}", {}
    elif kind == "no such host":
        yield "https://nowhere.invalid", {}
    elif kind == "untrusted":
        with RawServer(OK, tls=certificate.server_context()) as server:
            yield server.url, {}
            assert not server.requests
    elif kind == "no TLS":
        with RawServer(OK) as server:
            yield server.url.replace("http", "https"), {"connect_timeout_s": 1.0}
    elif kind == "proxy 502":
        with RawServer(answer(b"<html>", status=502)) as server:
            yield "https://api.example.invalid", {"proxy": server.url}
            assert {r.method for r in server.requests} == {"CONNECT"}
            assert KEY.encode() not in b"".join(r.raw for r in server.requests)
    else:
        with RawServer(SILENCE) as server:
            yield "https://api.example.invalid", {"proxy": server.url, "connect_timeout_s": 0.3, "retries": 0}


@pytest.mark.parametrize("kind", ["refused", "no such host", "untrusted", "no TLS", "proxy 502", "silent proxy"])
def test_what_never_left_is_network_and_free(kind: str, certificate: Certificate) -> None:
    """Without a connection nothing was sent: retried, then told as a network failure, never as unknown."""
    for url, more in _unreachable(kind, certificate):
        diary = Diary()
        with pytest.raises(ApiError) as caught:
            ask(url, watch=diary, gate=lambda _: pytest.fail("nothing may leave"), **{"retries": 1, **more})
        error = caught.value
        assert (error.kind, error.delivered, error.billed, error.retryable) == ("network", "no", "no", True)
        assert len(diary.waits) == more.get("retries", 1)
        if kind == "refused":
            assert "refused" in error.message.lower()
        if kind == "untrusted":
            assert "certificate" in error.message


HELD = [FileError("the ledger is full"), BudgetError("enough"), InterruptedRunError("stopped", signal_number=2)]


@pytest.mark.parametrize("failure", HELD, ids=lambda failure: failure.kind)
def test_the_gate_holds_every_byte_back(failure: SeedreamError) -> None:
    """What the gate raises comes through unchanged and not one byte of the request has left."""

    def gate(attempt: int) -> None:
        assert attempt == 1
        raise failure

    with RawServer(OK) as server:
        with pytest.raises(type(failure)) as caught:
            ask(server.url, gate=gate)
        assert caught.value is failure
        assert failure.billed == "no"
    assert not server.requests  # the server has ended: nothing can come any more


def test_the_gate_is_asked_before_each_attempt() -> None:
    """429, 429, 200: three POSTs, each announced."""
    gates: list[int] = []
    busy = answer(b"{}", status=429)
    with RawServer(busy, busy, OK) as server:
        result = ask(server.url, gate=gates.append)
        assert (result.attempts, gates, server.count("POST")) == (3, [1, 2, 3], 3)


def test_definite_refusals_are_sent_once() -> None:
    """A 401 and a redirect end a call; the redirect's host never hears of it."""
    with RawServer(answer(b'{"error":"no"}', status=401, headers=[("X-Tt-Logid", "log7")])) as server:
        with pytest.raises(ApiError) as caught:
            ask(server.url)
        assert (caught.value.kind, caught.value.request_id, server.count("POST")) == ("auth", "log7", 1)
    with (
        RawServer(OK) as other,
        RawServer(answer(status=307, headers=[("Location", f"{other.url}/x?t=secret")])) as server,
    ):
        with pytest.raises(ApiError, match="not followed") as caught:
            ask(server.url)
        assert (caught.value.kind, caught.value.billed, caught.value.status) == ("refused", "no", 307)
        assert "secret" not in caught.value.message
        assert not other.requests


def test_an_unbilled_server_error_is_tried_three_times_in_all() -> None:
    """The provider's own 5xx error is repeated, but not as often as a refusal at the door."""
    with RawServer(answer(b'{"error":{"code":"InternalServiceError"}}', status=500)) as server:
        with pytest.raises(ApiError):
            ask(server.url, retries=9)
        assert server.count("POST") == 3


def test_one_429_holds_all_calls_back() -> None:
    """What one call is told to wait, the others wait as well."""
    clock, times = HurriedClock(), list[float]()

    def reply(_: Received) -> Script:
        times.append(clock.monotonic())
        return answer(b"{}", status=429, headers=[("Retry-After", "4")]) if len(times) == 1 else OK

    async def go(url: str) -> None:
        async with client(url, clock=clock, slots=1, timeout_s=60.0) as line:
            await asyncio.gather(*(send(line, SUBMIT, read) for _ in range(3)))

    with RawServer(reply) as server:
        asyncio.run(go(server.url))
    assert len(times) == 4
    assert times[1] - times[0] >= 4


def test_waiting_to_try_again_holds_no_slot() -> None:
    """While one call backs off, the next one takes the only slot."""
    seen: list[str] = []

    def reply(request: Received) -> Script:
        seen.append(json.loads(request.body)["prompt"])
        return answer(b'{"error":{"code":"x"}}', status=500) if len(seen) == 1 else OK

    async def go(url: str) -> None:
        async with client(url, clock=HurriedClock(), slots=1, timeout_s=60.0) as line:
            calls = [Call("POST", "/x", {"prompt": name}, billable=True) for name in "ab"]
            await asyncio.gather(*(send(line, call, read) for call in calls))

    with RawServer(reply) as server:
        asyncio.run(go(server.url))
    assert seen == ["a", "b", "a"]


def test_images_and_requests_a_minute_are_kept() -> None:
    """The third image of a minute that allows two waits for the next minute; a group too large goes alone."""
    clock = FastClock()

    async def go(url: str) -> list[float]:
        times = []
        async with client(url, clock=clock, ipm=2) as line:
            for images in (1, 1, 1, 9):
                await send(line, SUBMIT, read, images=images)
                times.append(sum(clock.slept))
        return times

    with RawServer(OK) as server:
        times = asyncio.run(go(server.url))
    assert times[1] == 0
    assert 59 < times[2] < 62
    assert 118 < times[3] < 124


def test_a_full_disk_after_the_answer_came_is_not_called_free() -> None:
    """The disk refuses the reply: the request was at work, so its exit code promises nothing."""

    class Full(FsyncBatch):
        def write(self, chunk: bytes) -> None:
            raise FileError("no space left")

    with RawServer(OK) as server:
        with pytest.raises(FileError) as caught:
            ask(server.url, reply_file=Full())
        assert (caught.value.billed, caught.value.exit_code) == ("unknown", 8)


def test_the_sandbox_serves_both_clients_without_a_socket() -> None:
    """A transport replaces the network for calls and links; the gate still stands before it."""
    asked: list[str] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        # What a transport sends it must tell, as a connection does: the wire proves with it what left.
        if trace := request.extensions.get("trace"):
            sent = SimpleNamespace(method=request.method.encode())
            await trace("http11.send_request_headers.started", {"request": sent})
        asked.append(f"{request.method} {request.url.raw_path.decode()} {'authorization' in request.headers}")
        return httpx.Response(200, json={"data": []})

    async def go() -> None:
        async with client("https://sandbox.invalid/v3", transport=httpx.MockTransport(serve)) as line:
            await send(line, SUBMIT, read, gate=lambda n: asked.append(f"gate {n}"))
            link = "https://store.invalid/a/../b?s=1"
            await line.fetch(Download(link, lambda _: None, lambda: None, at_once(lambda: None)))

    asyncio.run(go())
    assert asked == ["gate 1", "POST /v3/images/generations True", "GET /a/../b?s=1 False"]


# --- request bodies ---------------------------------------------------------------------------------------------------


def _reference(path: Path, data: bytes) -> ImageRef:
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    return ImageRef("file", path.name, path, digest, "image/png", size=len(data))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 << 16, (3 << 16) + 1, 500_000])
def test_references_are_encoded_exactly(tmp_path: Path, size: int) -> None:
    """The length is right beforehand and the body is the JSON with the data URIs in their places."""
    data = random.Random(size).randbytes(size)
    refs = [_reference(tmp_path / "a.png", data), ImageRef("data", "-", mime="image/webp", size=size, content=data)]
    remote = ImageRef("url", "https://h/a.png?x=1")
    length, pieces = encode_body({"prompt": "图", "image": [*refs, remote], "one": refs[0]})
    body = b"".join(pieces())
    assert len(body) == length == len(b"".join(pieces()))
    encoded = base64.b64encode(data).decode()
    uris = [f"data:image/png;base64,{encoded}", f"data:image/webp;base64,{encoded}"]
    assert json.loads(body) == {"prompt": "图", "image": [*uris, "https://h/a.png?x=1"], "one": uris[0]}


@pytest.mark.parametrize("change", [b"x" * 999, b"x" * 1001, None])
def test_a_changed_reference_sends_nothing(tmp_path: Path, change: bytes | None) -> None:
    """A file that is not what was checked stops the request before a byte of it leaves."""
    ref = _reference(tmp_path / "a.png", b"x" * 1000)
    (tmp_path / "a.png").unlink() if change is None else (tmp_path / "a.png").write_bytes(change)
    with RawServer(OK) as server, pytest.raises(InputError):
        ask(server.url, Call("POST", "/x", {"image": [ref]}, billable=True))
    assert not server.requests


def test_a_reference_swapped_in_place_never_leaves_whole(tmp_path: Path) -> None:
    """Other bytes of the same size are noticed before the last of them is sent, so no request is complete."""
    ref = _reference(tmp_path / "a.png", b"x" * 900_000)
    (tmp_path / "a.png").write_bytes(b"x" * 899_999 + b"y")
    with RawServer(OK) as server, pytest.raises(InputError, match=r"a\.png changed"):
        ask(server.url, Call("POST", "/x", {"image": [ref]}, billable=True))
    assert all(len(r.body) < int(r.header("content-length") or 0) for r in server.requests)


@pytest.mark.parametrize("value", ["half \ud83d", float("nan")])
def test_what_json_cannot_carry_is_refused(value: Any) -> None:
    """A lone surrogate or NaN is an input error, not a crash and not a mended prompt."""
    with pytest.raises(InputError):
        encode_body({"prompt": value})


_MEMORY_CODE = """
import asyncio, json, resource, sys
from pathlib import Path
from seedream_cli.providers.contract import Call
from seedream_cli.request.image_request import ImageRef
from seedream_cli.network.client import ProviderClient
from seedream_cli.network.policy import Policy
url, path = sys.argv[1], Path(sys.argv[2])
refs = [ImageRef("file", "a", path, "", "image/png", size=path.stat().st_size) for _ in range(14)]
call = Call("POST", "/x", {"image": refs}, billable=True)
async def go(call):
    async with ProviderClient(base_url=url, key="k" * 20, policy=Policy()) as client:
        async with client.open(call) as exchange:
            await exchange.send()
            await exchange.receive(lambda reply: reply)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asyncio.run(go(Call("POST", "/x", {}, billable=True)))
before = peak()
asyncio.run(go(call))
print(json.dumps(peak() - before))
"""


def test_fourteen_large_references_are_not_held(tmp_path: Path) -> None:
    """140 MB of references go out in pieces: the process grows by less than one of them."""
    image = tmp_path / "a.png"
    with image.open("wb") as file:
        file.truncate(10_000_000)
    with RawServer(OK) as server:
        command = [sys.executable, "-c", _MEMORY_CODE, server.url, str(image)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT)
        assert len(server.requests[1].body) == int(server.requests[1].header("content-length") or 0)
        assert len(server.requests[1].body) > 14 * 13_333_333
    assert int(done.stdout) < 8_000, "KiB"


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["", "  ", '""', "a b", "Bearer abc", "ab\ncd", "schlüssel", "a\x00b", "ab\u200bcd"])
def test_an_unusable_key_is_refused_unseen(raw: str) -> None:
    """The error says what is wrong with a key without showing it."""
    with pytest.raises(ConfigError) as caught:
        check_key(raw)
    assert caught.value.exit_code == 3
    assert len(raw) < 4 or raw not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("raw", [f"{KEY}\n", f"\ufeff{KEY}\r\n", f' "{KEY}" ', f"'{KEY}'"])
def test_what_surrounds_a_key_is_taken_off(raw: str) -> None:
    """Line ends, BOM and quotes of files and shells are no part of a key."""
    assert check_key(raw) == KEY


def test_mask_leaves_no_secret_and_the_rest() -> None:
    """The key in any spelling, bearer tokens, queries, user names and signatures go; other words stay."""
    forms = secret_forms(KEY)
    spellings = [KEY, httpx.QueryParams({"k": KEY}).__str__()[2:], base64.b64encode(KEY.encode()).decode()]
    spellings += [base64.b64encode(f"{'u' * n}:{KEY}:x".encode()).decode() for n in range(4)]
    spellings += [base64.urlsafe_b64encode(f"{'u' * n}{KEY}".encode()).decode() for n in range(3)]
    for spelling in spellings:
        masked = mask(f"before {spelling} after", forms)
        assert masked.startswith("before ")
        assert masked.endswith(" after")
        assert not any(form in masked for form in forms)
        assert "***" in masked
    text = 'see https://u:pw@h.example/a?X-Tos-Signature=s3 or "https:\\/\\/h\\/a?sig=s3", Bearer s3, Signature=s3&x=1'
    masked = mask(text)
    assert "s3" not in masked
    assert "pw" not in masked
    assert masked.startswith("see https://***@h.example/a?*** or ")
    assert mask("size 2K is wrong, see the docs") == "size 2K is wrong, see the docs"


def test_no_error_and_no_log_line_shows_the_key(caplog: pytest.LogCaptureFixture) -> None:
    """A provider that repeats the key, and loggers turned up to DEBUG, still leave nothing to read."""
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    echo = f"key {KEY} of https://h.example/p?sig=secret is wrong".encode()
    signed = "/p.png?X-Sig=secret"
    with RawServer(answer(echo, status=401), answer(b"no", status=404)) as server:
        with pytest.raises(ApiError) as refused:
            ask(server.url, log=lines.append)
        with pytest.raises(LinkError) as missing:
            fetch(server.url + signed, log=lines.append)
    assert "***" in refused.value.message
    told = [*lines, str(refused.value), str(missing.value), refused.value.message, caplog.text]
    assert lines
    assert not [text for text in told if KEY in text or "secret" in text]


def test_the_key_goes_nowhere_in_clear() -> None:
    """Plain http is refused but for this machine, and so are addresses that hold a user name or no host."""
    for url in (
        "http://api.example.com/v1",
        "http://10.0.0.1",
        "https://u:p@h/v1",
        "ftp://h",
        "h/v1",
        "https://h/v1?k=1",
    ):
        with pytest.raises(ConfigError) as caught:
            client(url)
        assert ":p@" not in caught.value.message
    with pytest.raises(ConfigError, match="in clear"):
        client("http://127.0.0.1:1", proxy="http://proxy.example:3128")
    for url in ("http://localhost:1/v1", "http://[::1]:1", "http://127.0.0.2", "https://api.example.com/v1"):
        client(url)


def test_a_proxy_elsewhere_never_sees_calls_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's HTTP_PROXY is for the world; the local gateway is reached directly, a local proxy is honoured."""
    with RawServer(OK) as server, Tunnel(OK) as proxy:
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
        ask(server.url)
        assert server.count("POST") == 1
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        ask(server.url)
        assert proxy.requests[0].target.startswith(b"http://127.0.0.1:")


def test_netrc_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .netrc replaces no key and gives no credentials to an image's host."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password hunter2\ndefault login user password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with RawServer(OK) as server:
        ask(server.url)
        fetch(f"{server.url}/p")
        assert [r.header("authorization") for r in server.requests] == [f"Bearer {KEY}", None]


def test_an_unusable_proxy_is_a_matter_of_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheme that cannot be spoken is told as such, without the password."""
    for proxy in ("socks5://user:hunter2@h:1", "gopher://user:hunter2@h:1"):
        with pytest.raises(ConfigError) as caught:
            ask("https://api.example.invalid", proxy=proxy)
        assert "hunter2" not in caught.value.message


# --- rules of waiting -------------------------------------------------------------------------------------------------

NOW = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
DATE = "Thu, 01 Jan 2026 12:00:30 GMT"
RETRY_AFTER = [
    ("30", "", 30.0), ("0", "", 0.0), ("1.5", "", 1.5), ("99999999999", "", 600.0), (" 7 ", "", 7.0),
    ("-5", "", None), ("1e9", "", None), ("9" * 400, "", None), ("٣", "", None), ("inf", "", None), ("nan", "", None),
    ("", "", None), ("soon", "", None), ("30, 60", "", None), ("30s", "", None),
    ("Thu, 32 Jan 2026 12:00:30 GMT", "", None),
    (DATE, "", 30.0), (DATE, "Thu, 01 Jan 2026 12:00:10 GMT", 20.0), (DATE, "Thu, 01 Jan 2026 11:00:30 GMT", 600.0),
    (DATE, "garbage", 30.0), ("Thu, 01 Jan 2026 11:00:00 GMT", "", 0.0), ("Thu Jan  1 12:00:30 2026", "", 30.0),
    ("Thursday, 01-Jan-26 12:00:30 GMT", "", 30.0), ("Thu, 01 Jan 2026 20:00:30 +0800", "", 30.0),
]  # fmt: skip


@pytest.mark.parametrize(("value", "date", "wanted"), RETRY_AFTER)
def test_retry_after_in_all_its_forms(value: str, date: str, wanted: float | None) -> None:
    """Seconds and dates are understood, dates by the server's own clock; hostile values are no value."""
    assert read_retry_after({"retry-after": value, "date": date}, NOW) == wanted


def test_who_is_sent_again_and_when() -> None:
    """The table of repetition: what is retryable, how often, how long the waits are."""
    policy, bold = Policy(retries=4), Policy(retries=4, retry_ambiguous=True)

    def waits(policy: Policy, attempt: int, elapsed: float = 0.0, **error: Any) -> list[float | None]:
        failure = ApiError("x", **error)
        return [decide(failure, attempt, elapsed, policy, random.Random(seed)) for seed in range(200)]

    def spread(found: list[float | None]) -> tuple[float, float]:
        numbers = [wait for wait in found if wait is not None]
        assert len(numbers) == len(found)
        return min(numbers), max(numbers)

    nothing = [None] * 200
    limited: dict[str, Any] = {"kind": "rate_limited", "retryable": True}
    lost: dict[str, Any] = {"kind": "unknown_outcome", "billed": "unknown"}
    assert waits(policy, 1, kind="refused") == nothing
    assert waits(policy, 5, **limited) == nothing
    assert waits(policy, 1, **lost) == nothing
    assert waits(policy, 1, kind="unavailable", billed="unknown", retryable=True) == nothing
    assert waits(policy, 3, kind="unavailable", retryable=True) == nothing
    assert waits(policy, 1, elapsed=600, **limited) == nothing
    assert waits(policy, 1, **limited, retry_after_s=700.0) == nothing
    assert None not in waits(bold, 1, **lost)
    low, high = spread(waits(policy, 3, **limited))
    assert 2 <= low < 2.2
    assert 3.8 < high <= 4
    low, high = spread(waits(policy, 4, kind="network", retryable=True))
    assert 0 <= low < 0.4
    assert 7.6 < high <= 8
    low, high = spread(waits(policy, 1, **limited, retry_after_s=20.0))
    assert 20 <= low < high <= 21


# --- streams ----------------------------------------------------------------------------------------------------------

PARTIAL = "image_generation.partial_succeeded"
IMAGES: list[dict[str, Any]] = [{"type": PARTIAL, "image_index": n, "url": f"https://h/图{n}?s=1"} for n in range(3)]
COMPLETED: dict[str, Any] = {"type": "image_generation.completed", "usage": {"generated_images": 3}}
EVENTS = [*IMAGES, COMPLETED]


def _sse(end: str = "\n", *, done: bool = True) -> bytes:
    lines = ["\ufeff: a comment", "retry: 5", ""]
    for event in EVENTS:
        lines += [f"event: {event['type']}", f"data: {json.dumps(event, ensure_ascii=False)}", ""]
    lines += ["data: [DONE]", "", ""] if done else [""]
    return end.join(lines).encode()


NDJSON = b"".join(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in EVENTS)
MULTILINE = 'data: {"type": "image_generation.completed",\ndata:\ndata: "usage": {"generated_images": 3}}\n\n'


def _parse(pieces: list[bytes]) -> tuple[list[Any], bool, str]:
    parser = EventParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    last, unfinished = parser.close()
    return [*events, *last], unfinished, parser.mode


@pytest.mark.parametrize("body", [_sse("\n"), _sse("\r"), _sse("\r\n")], ids=["LF", "CR", "CRLF"])
def test_events_come_out_whole_wherever_the_body_is_split(body: bytes) -> None:
    """Any border, inside a character or a line end, gives the same events."""
    wanted = ([*EVENTS, Done()], False, "sse")
    assert _parse([body[n : n + 1] for n in range(len(body))]) == wanted
    for border in range(len(body)):
        assert _parse([body[:border], body[border:]]) == wanted


def test_lines_of_json_come_out_whole_wherever_the_body_is_split() -> None:
    """The same for one object a line, with and without the last line's end."""
    for body in (NDJSON, NDJSON[:-1], NDJSON.replace(b"\n", b"\r\n")):
        for border in range(len(body)):
            assert _parse([body[:border], body[border:]]) == (EVENTS, False, "lines")


@pytest.mark.parametrize(("body", "mode"), [(_sse(), "sse"), (NDJSON, "lines")], ids=["sse", "lines"])
def test_a_cut_never_makes_an_event(body: bytes, mode: str) -> None:
    """Cut at every byte: only events that were whole come out, in order, and a cut inside one is noticed."""
    for length in range(60, len(body)):
        events, unfinished, found = _parse([body[:length]])
        assert found == mode
        assert events == [*EVENTS, Done()][: len(events)]
        rest = body[:length].rpartition(b"\n\n")[2]
        data = rest.partition(b"data: ")[2].strip()
        ends = not rest or data == b"[DONE]" or (data.count(b"{") == data.count(b"}") > 0)
        assert unfinished != ends or mode == "lines"


def test_data_of_several_lines_is_one_event_and_noise_is_passed_over() -> None:
    """Lines of data are joined; data that is no JSON object, unknown fields and nameless comments are no events."""
    noise = "id: 7\nfoo: bar\n:\n\ndata: ping\n\ndata: [1]\n\n"
    named = 'event: error\ndata:{"error":{"code":"x"}}\n\n'
    events, unfinished, mode = _parse([(noise + MULTILINE + named).encode()])
    assert events == [COMPLETED, {"type": "error", "error": {"code": "x"}}]
    assert (unfinished, mode) == (False, "sse")


@pytest.mark.parametrize(
    "body",
    [b'{"error":{"code":"x","type":"BadRequest"}}', b'{"error":{"code":"x"}}\n', b'{\n  "data": [\n  ]\n}', b"", b" \n",
     b"<html>", b"[]", b'{"data":[{"b64_json":"' + b"A" * 20000 + b'"}]}', b"not json", b'{"success":true}\n',
     b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_one_document_is_no_stream(body: bytes) -> None:
    """An error, a page or a whole reply is left to the reader of replies, however it is split."""
    for pieces in ([body], [body[n : n + 1] for n in range(min(len(body), 50))] + [body[50:]]):
        assert _parse(pieces) == ([], False, "whole")


def test_an_event_of_27_megabytes_is_parsed_in_linear_time() -> None:
    """A base64 image inside an event arrives in 64 kB pieces and is joined once."""
    event = {"type": "image_generation.partial_succeeded", "b64_json": "A" * 27_000_000}
    text = json.dumps(event).encode()
    for body in (b"data: " + text + b"\n\n", text + b"\n"):
        events, unfinished, _ = _parse([body[at : at + 65536] for at in range(0, len(body), 65536)])
        assert events == [event]
        assert not unfinished


def stream(
    url: str, *, on_event: Callable[[dict[str, Any]], None] | None = None, disk: FsyncBatch | None = None, **more: Any
) -> tuple[Sent, list[dict[str, Any]]]:
    """One stream in a loop of its own, and its events."""
    events: list[dict[str, Any]] = []

    async def go() -> Sent:
        async with client(url, **more) as line:
            return await send(line, SUBMIT, read, on_event or events.append, reply_file=disk or FsyncBatch())

    return asyncio.run(go()), events


def test_a_stream_hands_events_over_and_keeps_every_byte() -> None:
    """Events in order, the raw body on disk, and [DONE] ends it even if the server holds on."""
    disk = FsyncBatch()
    held = answer(_sse(), framing="chunked", cut=len(_sse()), borders=range(1, len(_sse()), 7), end="hold")
    with RawServer(answer(b"{}", status=429), held) as server:
        end, events = stream(server.url, disk=disk)
    assert events == EVENTS
    assert (end.value, end.attempts, bytes(disk.data)) == (EventsEnd("done"), 2, _sse())


@pytest.mark.parametrize(
    ("script", "count", "ended"),
    [
        (answer(_sse(done=False), framing="chunked"), 4, "eof"),
        (answer(NDJSON, framing="close"), 4, "eof"),
        (answer(_sse(), framing="length", cut=450), 2, "cut"),
        (answer(_sse(), framing="chunked", cut=450), 2, "cut"),
        (answer(_sse()[:450], framing="chunked"), 2, "cut"),
        (answer(_sse(), framing="close", cut=450), 2, "cut"),
        (answer(_sse(), framing="length", cut=450, end="rst"), None, "cut"),
        (answer(NDJSON, framing="chunked", cut=300), 3, "cut"),
    ],
)
def test_how_a_stream_ended_is_told(script: Script, count: int | None, ended: str) -> None:
    """What came whole is delivered; a cut in any framing is reported as unknown and nothing is sent again."""
    with RawServer(script) as server:
        end, events = stream(server.url, retry_ambiguous=True)
        assert server.count("POST") == 1
    assert end.value.ended == ended
    assert count is None or len(events) == count
    assert events == EVENTS[: len(events)]
    if ended == "cut":
        assert (end.value.cut.kind, end.value.cut.billed) == ("unknown_outcome", "unknown")


def test_a_stream_that_is_no_stream_goes_through_read() -> None:
    """A whole reply is read as one, an error is raised by its reader, and a cut document is unknown."""
    with RawServer(answer(b'{"data":[{"url":"u"}]}', headers=[("Content-Type", "text/event-stream")])) as server:
        end, events = stream(server.url)
        assert (end.value, events) == ({"data": [{"url": "u"}]}, [])
    with RawServer(answer(b'{"error":{"code":"x"}}', status=401)) as server, pytest.raises(ApiError) as caught:
        stream(server.url)
    assert caught.value.kind == "auth"
    with RawServer(answer(b'{"data":[{"url":"u"}]}', cut=9)) as server, pytest.raises(ApiError) as caught:
        stream(server.url)
    assert caught.value.kind == "unknown_outcome"


def test_an_error_event_ends_the_stream_and_is_not_repeated() -> None:
    """What the reader of events raises comes through, even if it says that it may be repeated."""

    def refuse(event: dict[str, Any]) -> None:
        raise ApiError(f"busy, {KEY}", kind="rate_limited", retryable=True)

    with RawServer(answer(b'event: error\ndata: {"error":{"code":"x"}}\n\n')) as server:
        with pytest.raises(ApiError, match=r"busy, \*\*\*"):
            stream(server.url, on_event=refuse)
        assert server.count("POST") == 1
