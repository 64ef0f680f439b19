"""What stops a request, a row or a whole batch before it is paid for, and what such a stop may be called."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.direct import Direct
from seedream_cli.links import split_link
from seedream_cli.transport import LostConnectionError, Outgoing
from tests.conftest import CANARY, Command
from tests.rawserver import RESET, RawServer, Script, answer, make_certificate
from tests.upstream import noise

ENV = {"OPENAI_API_KEY": CANARY, "ARK_API_KEY": CANARY, "OPE_API_KEY": CANARY, "COMETAPI_KEY": CANARY}

# --- a request that is not written to its end -------------------------------------------------------------------------


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.status, self.body, self.has_left, self.was_cut = 0, bytearray(), False, False

    async def leave(self) -> None:
        pass

    def sent(self) -> None:
        self.has_left = True

    def cut(self) -> None:
        self.was_cut = True

    def head(self, status: int, headers: Any) -> bool:
        self.status = status
        return False

    def data(self, chunk: bytes | memoryview) -> bool:
        self.body += chunk
        return False


def post(url: str, pieces: int, tls: Any = ssl.create_default_context) -> tuple[Ear, Exception | None]:
    """One request with a body of so many megabytes, and what its listener was told."""
    ear = Ear()

    async def go() -> Exception | None:
        way = Direct(keep_s=5.0, connect_s=5.0, tls=tls)
        body = itertools.repeat(b"x" * (1 << 20), pieces)
        try:
            async with asyncio.timeout(30):
                await way.exchange(Outgoing("POST", split_link(url), (), pieces << 20, lambda: body), ear)
        except (LostConnectionError, OSError) as error:
            return error
        finally:
            await way.aclose()
        return None

    return ear, asyncio.run(go())


def head_only(script: Script, end: Any = None) -> Script:
    return Script(script.pieces, end or script.end, "head")


@pytest.mark.parametrize("end", ["fin", "keep", "hold"])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_refusal_before_the_body_is_whole_is_read_and_the_rest_not_sent(
    framing: Any, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server then closes without reading (which resets), or leaves the connection as it is."""
    monkeypatch.setattr("seedream_cli.direct._LAST_WORDS_S", 0.2)
    with RawServer(head_only(answer(b"too large", status=413, framing=framing), end)) as server:
        ear, error = post(server.url, 64)
    assert (error, ear.status, bytes(ear.body), ear.was_cut, ear.has_left) == (None, 413, b"too large", True, False)


def test_reset_before_the_body_is_whole_says_that_it_is_not(tmp_path: Path) -> None:
    """Over TLS as well; a reset after the last byte says nothing of the kind."""
    with RawServer(Script((), "rst", "head")) as server:
        ear, error = post(server.url, 64)
        assert (ear.was_cut, ear.has_left, error is not None) == (True, False, True)
    with RawServer(RESET) as server:
        ear, error = post(server.url, 2)
        assert (ear.was_cut, ear.has_left, error is not None) == (False, True, True)
    made = make_certificate(tmp_path)
    if made is None:
        return
    context = ssl.create_default_context(cafile=made.path)
    for script, cut in ((Script((), "rst", "head"), True), (RESET, False), (answer(b"{}"), False)):
        with RawServer(script, tls=made.server_context()) as server:
            ear, error = post(server.url, 64 if cut else 2, tls=lambda: context)
            assert (ear.was_cut, error is None) == (cut, script.end == "fin"), script
    with RawServer(head_only(answer(b"no", status=401), "keep"), tls=made.server_context()) as server:
        ear, error = post(server.url, 64, tls=lambda: context)
        assert (error, ear.status, bytes(ear.body), ear.was_cut) == (None, 401, b"no", True)


def references(command: Command, rows: int) -> None:
    """A table whose rows each send more than the buffers of two sockets hold."""
    (command.folder / "big.png").write_bytes(noise((2400, 2000)))
    lines = ["id,prompt,image", *(f"r{number},number {number},big.png|big.png" for number in range(rows))]
    (command.folder / "shots.csv").write_text("\n".join(lines))


REFUSALS = {
    "413 as a page": (answer(b"<html>too large</html>", status=413), 4, "refused"),
    "503 as a page": (answer(b"<html>busy</html>", status=503), 5, "unavailable"),
    "a reset": (Script((), "rst"), 6, "network"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_batch_goes_on_after_requests_that_were_not_sent_whole(seedream: Command, name: str) -> None:
    """Five of them in a row are no five doubts, and none may be billed."""
    script, code, kind = REFUSALS[name]
    references(seedream, 5)
    with RawServer(head_only(script)) as server:
        args = ["batch", "shots.csv", "-p", "ark", "--base-url", server.url, "--retries", "0", "--max-unknown", "1"]
        done = seedream(*args, "--json", env=ENV)
        rows = [row for row in map(json.loads, done.out.splitlines()) if "row" in row]
        assert {(row["error"]["code"], row["error"]["billed"]) for row in rows} == {(kind, "no")}, done.err
        assert (len(rows), done.code, len(server.requests)) == (5, code, 5), done.err


def test_refusal_through_a_proxy_before_the_body_is_whole_is_not_billed(seedream: Command) -> None:
    """A proxy that resets in the middle of a request was not given all of it either."""
    references(seedream, 1)
    for script, codes in ((answer(b"<html>too large</html>", status=413), {4, 6}), (Script((), "rst"), {6})):
        with RawServer(head_only(script)) as proxy:
            more = ["--proxy", proxy.url, "--base-url", "http://127.0.0.1:9/v1", "--retries", "0"]
            done = seedream("edit", "x", "big.png", "big.png", "-p", "ark", "--json", *more, env=ENV)
            assert done.code in codes, done.err
            assert done.json["error"]["billed"] == "no"
