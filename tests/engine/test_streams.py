"""Sequences, streams and tasks from end to end: what came is kept, what broke is told, and nothing is paid twice."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from seedream_cli import providers
from seedream_cli.config.environment import Environment
from seedream_cli.engine import connect
from seedream_cli.engine.plan import Plan, make_plan
from seedream_cli.engine.run import run_plan
from seedream_cli.network.client import ProviderClient
from seedream_cli.network.policy import Policy
from seedream_cli.request.image_request import OptionValues
from seedream_cli.results import Event, Report
from tests.cli.test_generate import KEYS, LITE, _await
from tests.support.command import CANARY, Command, Done
from tests.support.provider_server import Upstream, completed, events, failed, make_image, ndjson, refusal, sse
from tests.support.raw_server import Received, Script, answer
from tests.support.sending import send


def run(seedream: Command, upstream: Upstream, *args: str, provider: str = "ark", **more: Any) -> Done:
    """One run of `generate` against an upstream, which never waits between tries."""
    env = {KEYS[provider]: CANARY, **more.pop("env", {})}
    args = (*args, "-p", provider, "--base-url", upstream.url)
    return seedream("generate", "a set", *args, env=env, hurried=True, **more)


def once(body: bytes, **more: Any) -> Callable[[Received, int], Script | None]:
    """A script that answers every POST with this body."""
    return lambda request, number: answer(body, **more)


def files(seedream: Command) -> list[Path]:
    """The files that a run left in its folder."""
    return sorted(path for path in seedream.folder.rglob("*") if path.is_file())


# --- sequences ------------------------------------------------------------------------------------------------------


def test_a_sequence_is_one_request_and_its_failed_members_are_told(seedream: Command) -> None:
    """The members that came are saved, each that failed is an error of its own, exit 9; `n` is never sent."""
    with Upstream() as upstream:
        error = {"code": "InternalServiceError", "message": "unexpected. Request id: 0217ABC"}
        refused = {"code": "OutputImageSensitiveContentDetected", "message": "sensitive"}
        data = [{"url": upstream.link(1)}, {"error": refused}, {"url": upstream.link(2)}, {"error": error}]
        upstream._reply = lambda body, number: {"data": data, "usage": {"generated_images": 2}}
        done = run(seedream, upstream, "--sequence", "6", "--json", provider="ope")
        [body] = upstream.bodies
        assert body["sequential_image_generation"] == "auto"
        assert body["sequential_image_generation_options"] == {"max_images": 6}
        assert "n" not in body
        assert (done.code, done.json["status"], len(files(seedream))) == (9, "partial", 2), done.err
        codes = [(image["error"] or {}).get("provider_code") for image in done.json["images"]]
        assert codes == [None, "OutputImageSensitiveContentDetected", None, "InternalServiceError"]
        assert done.json["usage"] == {"generated_images": 2}
        assert done.json["cost"]["amount"] == pytest.approx(0.07)
        assert "asked for up to 6, got 2" in done.err
        assert done.err.count("error:") == 2
        data[:] = [{"error": refused}] * 3
        done = run(seedream, upstream, "--sequence", "auto")
        assert (done.code, len(files(seedream)), len(upstream.posts)) == (4, 2, 2)
        assert "sequential_image_generation_options" not in upstream.bodies[1]


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", sorted(KEYS))
def test_each_provider_streams_in_its_own_form(seedream: Command, provider: str) -> None:
    """The body asks for a stream under the upstream's names, the header for the provider's media type."""
    with Upstream() as upstream:
        made = events(upstream, 2)
        if provider == "acedata":
            made = [event | {"image_url": event.pop("url")} for event in made]
        body = ndjson(*made, completed(2)) if provider == "acedata" else sse(*made, completed(2))
        upstream._script = once(body, framing="chunked")
        done = run(seedream, upstream, "--stream", "--sequence", "2", "--json", provider=provider)
        assert done.code == 0, done.err
        [post] = upstream.posts
        wanted = "application/x-ndjson" if provider == "acedata" else "text/event-stream"
        assert (post.header("accept"), post.header("authorization")) == (wanted, f"Bearer {CANARY}")
        assert upstream.bodies == [
            {
                "model": LITE[provider], "prompt": "a set", "size": "2K", "response_format": "url", "watermark": False,
                "sequential_image_generation": "auto", "sequential_image_generation_options": {"max_images": 2},
                "stream": True,
            }
        ]  # fmt: skip
        saved = [(seedream.folder / image["path"]).read_bytes() for image in done.json["images"]]
        assert saved == [make_image(seed=0), make_image(seed=1)]
        assert done.json["usage"] == {"generated_images": 2}


Case = tuple[Callable[[Upstream], bytes], int, int, str]
WHOLE: dict[str, Callable[[Upstream], bytes]] = {
    "plain": lambda up: sse(*events(up), completed(3)),
    "crlf": lambda up: sse(*events(up), completed(3), newline="\r\n"),
    "cr": lambda up: sse(*events(up), completed(3), newline="\r"),
    "no terminator": lambda up: sse(*events(up), completed(3), done=False),
    "no completed": lambda up: sse(*events(up)),
    "neither, but every image": lambda up: sse(*events(up), done=False),
    "no event lines": lambda up: sse(*events(up), completed(3), named=False),
    "comments": lambda up: b": hello\n\nretry: 100\nid: 7\n\n:\n" + sse(*events(up), completed(3)) + b": bye\n",
    "bom": lambda up: b"\xef\xbb\xbf" + sse(*events(up), completed(3)),
    "no image_index": lambda up: sse(*events(up, numbered=False), completed(3)),
    "each twice": lambda up: sse(*(event for one in events(up) for event in (one, one)), completed(3)),
    "previews": lambda up: sse({"type": "image_generation.partial_image", "b64_json": "/9j/"}, *events(up)),
    "lines": lambda up: ndjson(*events(up), completed(3)),
    "lines without an end": lambda up: ndjson(*events(up)).strip(),
    "one document": lambda up: json.dumps({"data": [{"url": up.link(i)} for i in range(3)]}).encode(),
    "base64": lambda up: sse(
        *({k: v for k, v in e.items() if k != "url"} | {"b64_json": base64.b64encode(make_image(seed=i)).decode()}
          for i, e in enumerate(events(up))), completed(3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_every_shape_of_a_whole_stream_is_read(seedream: Command, name: str) -> None:
    """Three images on disk and exit 0, whatever the line ends, comments, names, numbers and terminators are."""
    with Upstream() as upstream:
        upstream._script = once(WHOLE[name](upstream), framing="chunked", headers=[("Content-Type", "text/plain")])
        done = run(seedream, upstream, "--stream", "--sequence", "3", "--json", "-vv")
        assert done.code == 0, done.err
        assert [path.read_bytes() for path in files(seedream)] == [make_image(seed=i) for i in range(3)]
        assert [image["index"] for image in done.json["images"]] == [0, 1, 2]
        assert (len(upstream.posts), not list((seedream.home / "state").rglob("*.reply"))) == (1, True)
        assert "/9j/" not in done.out + done.err


def _error_event(code: str) -> bytes:
    data = json.dumps({"error": {"code": code, "message": "no. Request ID: 02CD"}})
    return f"event: error\ndata: {data}\n\n".encode()


BROKEN: dict[str, Case] = {
    "fewer and no end": (lambda up: sse(*events(up, 2), done=False), 9, 2, "before it was complete"),
    "no image": (lambda up: sse(), 7, 0, "without an image"),
    "only comments": (lambda up: b": wait\n\n: wait\n\n", 7, 0, "may have been billed"),
    "empty": (lambda up: b"", 7, 0, "may have been billed"),
    "counted and not sent": (lambda up: sse(*events(up, 2), completed(3)), 9, 2, "counts 3 images and 2 came"),
    "one refused": (lambda up: sse(*events(up, 2), failed(2), completed(2)), 9, 2, "refused the content"),
    "all refused": (lambda up: sse(failed(0), failed(1), completed(0)), 4, 0, "refused the content"),
    "refused and no end": (lambda up: sse(failed(0), done=False), 7, 0, "before it was complete"),
    "an error at once": (lambda up: _error_event("BadRequest"), 4, 0, "refused the request"),
    "an overload at once": (lambda up: _error_event("ServerOverloaded"), 5, 0, "fewer requests"),
    "an error after one": (
        lambda up: sse(*events(up, 1), done=False) + _error_event("InternalServiceError"), 9, 1, "1 of up to 3 images"
    ),
    "an error after the end": (lambda up: sse(*events(up)) + _error_event("BadRequest"), 0, 3, ""),
    "garbage between": (
        lambda up: sse(*events(up, 2), done=False) + b"data: {\n\n" + sse(completed(3)), 9, 2, "counts 3 images"
    ),
    "an error in JSON": (lambda up: b'{"error":{"code":"InvalidParameter","message":"bad"}}', 4, 0, "refused"),
    "a page": (lambda up: b"<html>sign in</html>", 7, 0, "web page"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_every_stream_that_breaks_keeps_what_came_and_is_sent_once(seedream: Command, name: str) -> None:
    """The images before the break are on disk, the exit code tells the rest, and there is one POST."""
    body, code, count, words = BROKEN[name]
    with Upstream() as upstream:
        upstream._script = once(body(upstream), framing="chunked")
        done = run(seedream, upstream, "--stream", "--sequence", "3", "--json")
        assert done.code == code, done.err
        assert (len(files(seedream)), len(upstream.posts)) == (count, 1)
        assert words in done.err
        error = done.json["error"] or {"code": None}
        assert (error["code"] == "unknown_outcome") == ("may have been billed" in done.err)
        if "an error after one" in name:
            assert (error["provider_code"], error["request_id"]) == ("InternalServiceError", "02CD")


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("place", [0, 1, 10, 200, 420])
def test_a_connection_that_breaks_in_a_stream_is_never_sent_again(seedream: Command, end: Any, place: int) -> None:
    """Cut before, inside and between events, with a FIN or a reset: 7 without an image, 9 with one, one POST."""
    with Upstream() as upstream:
        whole = sse(*events(upstream), completed(3))
        first = whole.index(b"\n\n") + 2
        upstream._script = once(whole, framing="chunked", cut=place, end=end)
        done = run(seedream, upstream, "--stream", "--sequence", "3", "--retries", "3", "--json")
        saved = whole[:place].count(b"\n\n")
        assert (done.code, len(files(seedream)), len(upstream.posts)) == (9 if saved else 7, saved, 1), done.err
        assert done.json["error"]["billed"] == "unknown"
        assert place != 420 or (place > first and saved)


def test_a_refusal_to_a_stream_is_repeated_like_any_other(seedream: Command) -> None:
    """A 429 in plain JSON before the stream begins was not billed: it is sent again, and a 400 is not."""
    with Upstream() as upstream:
        whole = answer(sse(*events(upstream, 1), completed(1)))
        upstream._script = lambda request, number: refusal(429, "RequestBurstTooFast") if number == 1 else whole
        done = run(seedream, upstream, "--stream")
        assert (done.code, len(upstream.posts), len(files(seedream))) == (0, 2, 1), done.err
        upstream._script = once(b'{"error":{"code":"InvalidParameter","param":"stream","message":"no"}}', status=400)
        assert (run(seedream, upstream, "--stream").code, len(upstream.posts)) == (4, 3)


@pytest.mark.parametrize("kind", ["sse", "lines", "base64"])
def test_each_image_is_on_disk_while_the_stream_is_open(seedream: Command, kind: str) -> None:
    """The server holds the stream after each event until the test has seen the file."""
    with Upstream() as upstream:
        seen = [threading.Event() for _ in range(3)]

        def pieces() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
            for index, (event, held) in enumerate(zip(events(upstream), seen, strict=True)):
                if kind == "base64":
                    event["b64_json"] = base64.b64encode(make_image(seed=index)).decode()
                    del event["url"]
                yield ndjson(event) if kind == "lines" else sse(event, done=False)
                held.wait(20)
            yield ndjson(completed(3)) if kind == "lines" else sse(completed(3))

        upstream._script = lambda request, number: Script(pieces())  # type: ignore[arg-type]
        args = ["generate", "x", "-p", "ark", "--base-url", upstream.url, "--stream", "--sequence", "3"]
        process = seedream.popen(*args, env={"ARK_API_KEY": CANARY})
        for number, held in enumerate(seen, 1):
            _await(lambda number=number: len(list(seedream.folder.glob("x*.jpg"))) == number)
            assert process.poll() is None
            held.set()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, len(out.splitlines())) == (0, 3), err
        assert [path.read_bytes() for path in files(seedream)] == [make_image(seed=i) for i in range(3)]


def test_an_image_of_a_broken_stream_can_be_recovered(seedream: Command) -> None:
    """What was paid before an error event and did not download is saved by `recover`, without another POST."""
    broken = True
    page = answer(b"<html>sign in</html>")
    with Upstream(link=lambda request, number: page if broken else None) as upstream:
        for number, body in enumerate((sse(*events(upstream, 1), done=False), ndjson(*events(upstream, 1)).strip()), 1):
            broken = True
            upstream._script = once(body + (_error_event("InvalidParameter") if number == 1 else b""))
            done = run(seedream, upstream, "--stream", *(["--sequence", "3"] if number == 1 else []), "--json")
            assert done.code == 8, done.err
            broken = False
            done = seedream("recover", done.json["id"], "-o", f"{number}.jpg", env={"ARK_API_KEY": CANARY})
            assert (done.code, len(upstream.posts), len(files(seedream))) == (0, number, number), done.err
        assert not list((seedream.home / "state").rglob("*.reply"))


@pytest.mark.parametrize(
    ("prompt", "code", "count"),
    [("a set", 0, 3), ("[[fail:2]]", 9, 2), ("[[break]]", 9, 1), ("[[drop]]", 9, 1), ("[[fewer:2]]", 0, 2)],
)
def test_the_sandbox_streams_and_breaks(seedream: Command, prompt: str, code: int, count: int) -> None:
    """The offline provider streams too, with members that fail and connections that go."""
    args = ["generate", prompt, "-p", "sandbox", "-m", "4.0", "-s", "1K", "--stream", "--sequence", "3", "-o", "out/"]
    done = seedream(*args)
    assert (done.code, len(files(seedream))) == (code, count), done.err


# --- every byte border, inside one process ---------------------------------------------------------------------------


class Bytes(httpx.AsyncBaseTransport):
    """Answers the POST with these pieces, then breaks or ends, and every GET with an image."""

    def __init__(self, pieces: Sequence[bytes], *, breaks: bool) -> None:
        self.pieces = pieces
        self.breaks = breaks
        self.posts = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        trace = request.extensions.get("trace")
        await request.aread()
        if trace:
            for name in ("send_request_headers", "send_request_body"):
                await trace(f"http11.{name}.started", {"request": SimpleNamespace(method=request.method.encode())})
                await trace(f"http11.{name}.complete", {})
        if request.method == "GET":
            index = int(request.url.raw_path.decode().split("/")[-1].split(".")[0])
            return httpx.Response(200, stream=httpx.ByteStream(make_image(seed=index)))
        self.posts += 1
        return httpx.Response(200, content=self._stream())

    async def _stream(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if self.breaks:
            raise httpx.ReadError("cut")


class Quiet:
    """A sink that hears nothing."""

    def emit(self, event: Event) -> None:
        """Take it."""


def _plan(folder: Path, provider: str) -> Plan:
    values = {"provider": provider, "prompt": "x", "sequence": "3", "output": f"{folder}/", "retries": "3"}
    options = OptionValues(values, {"stream": True})
    return make_plan("generate", [options], Environment({KEYS[provider]: "key"}))


def _execute(
    folder: Path, provider: str, pieces: Sequence[bytes], monkeypatch: Any, *, breaks: bool
) -> tuple[Report, int, Bytes]:
    """One run of the engine over these pieces: its report, how many files it left, and what was asked for."""
    transport = Bytes(pieces, breaks=breaks)
    monkeypatch.setattr(
        connect, "ProviderClient", lambda **options: ProviderClient(**{**options, "transport": transport})
    )
    report = run_plan(_plan(folder / "out", provider), Quiet(), folder / "state")
    saved = list((folder / "out").iterdir())
    for path in saved:
        path.unlink()
    return report, len(saved), transport


def _body(provider: str) -> bytes:
    class Links:
        def link(self, index: int) -> str:
            return f"https://x.invalid/{index}.jpeg"

    made = events(Links(), 2)  # type: ignore[arg-type]
    if provider == "acedata":
        return ndjson(made[0], failed(1), made[1] | {"image_index": 2}, completed(2))
    return sse(made[0], failed(1), made[1] | {"image_index": 2}, completed(2), newline="\r\n")


def _brings_an_image(line: bytes) -> bool:
    try:
        return str(json.loads(line.strip().removeprefix(b"data: "))["type"]).endswith("partial_succeeded")
    except ValueError:
        return False


@pytest.mark.parametrize("provider", ["ark", "acedata"])
def test_a_stream_cut_at_any_byte_keeps_the_images_before_it(tmp_path: Path, provider: str, monkeypatch: Any) -> None:
    """Wherever the connection goes: as many files as events came whole to their last brace, 9 or 7, one request."""
    body = _body(provider)
    # Every byte around the ends of events, and every seventh between them; the parser alone is tried at every border.
    ends = [at for at in range(len(body)) if body.startswith((b"\n", b"\r"), at)]
    places = sorted({*range(0, len(body), 7), *(at + more for at in ends for more in range(-1, 4))})
    for place in places:
        report, saved, transport = _execute(tmp_path, provider, [body[:place]], monkeypatch, breaks=True)
        whole = [line for line in body[:place].split(b"\n") if _brings_an_image(line)]
        assert saved == len(whole), (place, report.jobs[0].error)
        assert transport.posts == 1, (place, report.jobs[0].error)
        assert report.exit_code == (9 if saved else 7), (place, report)


@pytest.mark.parametrize("provider", ["ark", "acedata"])
def test_a_stream_in_two_pieces_is_the_same_at_every_border(provider: str) -> None:
    """Each event arrives once and whole, wherever the pieces meet; and byte by byte."""
    body = _body(provider)
    dialect = providers.load(provider)

    async def read(pieces: Sequence[bytes]) -> list[Any]:
        found: list[Any] = []
        client = ProviderClient(
            base_url="https://x.invalid", key="k", policy=Policy(), transport=Bytes(pieces, breaks=False)
        )
        async with client:
            call = dialect.submit(_plan(Path(), provider).jobs[0].request)
            await send(client, call, dialect.read, found.append, reply_file=Memory())
        return found

    async def all_borders() -> None:
        whole = await read([body])
        assert len(whole) == 4
        for place in range(1, len(body)):
            assert await read([body[:place], body[place:]]) == whole, place
        assert await read([body[i : i + 1] for i in range(len(body))]) == whole

    asyncio.run(all_borders())


class Memory:
    """A reply file of nothing."""

    size = 0

    def write(self, chunk: bytes) -> None:
        """Forget it."""

    def reset(self) -> None:
        """Nothing to empty."""

    def load(self) -> Any:
        """Nothing to read."""


# --- tasks ----------------------------------------------------------------------------------------------------------

TICKET = answer(b'{"task_id":"t-1"}')
PENDING = answer(b'{"_id":"x","id":"t-1","created_at":1.5,"request":{"model":"m"},"type":"images"}')


def ace(seedream: Command, upstream: Upstream, *args: str) -> Done:
    """One run at AceData."""
    return run(seedream, upstream, *args, "--json", provider="acedata")


def polled(*answers: Script | None) -> Callable[[Received, int], Script | None]:
    """A ticket, then these answers to its polls, the last one for ever; None is the finished task."""
    return lambda request, number: TICKET if number == 1 else answers[min(number - 2, len(answers) - 1)]


def test_a_task_goes_on_through_lost_polls(seedream: Command) -> None:
    """Two polls fail, one is pending, and the image comes all the same; both shapes of a finished task are read."""
    with Upstream() as upstream:
        upstream._reply = upstream.acedata
        lost = answer(b"<html>bad gateway</html>", status=502)
        upstream._script = polled(lost, answer(b"", cut=0), PENDING, None)
        done = ace(seedream, upstream)
        assert done.code == 0, done.err
        assert upstream.bodies[0]["async"] is True
        assert upstream.bodies[-1] == {"id": "t-1", "action": "retrieve"}
        assert {post.target for post in upstream.posts[1:]} == {b"/seedream/tasks"}
        response = {"success": True, "task_id": "t-1", "data": [{"image_url": upstream.link(1), "size": "64x48"}]}
        record = {"id": "t-1", "created_at": 1.5, "finished_at": 9.5, "response": response}
        upstream._script = lambda request, number: None
        upstream._reply = lambda body, number: {"items": [record], "count": 1} if "id" in body else {"task_id": "t-1"}
        done = ace(seedream, upstream)
        assert (done.code, len(files(seedream))) == (0, 2), done.err
        left = [path for path in (seedream.home / "state").rglob("*") if path.suffix in {".reply", ".part", ".cut"}]
        assert not left


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        (PENDING, ["--timeout", "1"], "was not ready in time"),
        (answer(b"<html>", status=502), ["--retries", "1"], "could not be asked after"),
        (answer(b"<html>a captive portal"), ["--retries", "1"], "could not be asked after"),
        (refusal(401, "invalid_token"), [], "did not accept the key"),
    ],
)
def test_a_task_that_cannot_be_waited_for_is_unknown_and_names_the_way_back(
    seedream: Command, script: Script, args: list[str], words: str
) -> None:
    """Exit 7, perhaps billed, one submission; `recover` by task or by run fetches it later."""
    with Upstream() as upstream:
        upstream._reply = upstream.acedata
        upstream._script = polled(script)
        done = ace(seedream, upstream, *args)
        assert (done.code, done.json["error"]["code"], done.json["error"]["billed"]) == (
            7,
            "unknown_outcome",
            "unknown",
        )
        assert words in done.err
        assert f"seedream recover --task t-1 -p acedata --base-url {upstream.url}" in done.err
        assert sum(post.target == b"/seedream/images" for post in upstream.posts) == 1
        upstream._script = None
        env = {"ACEDATACLOUD_API_TOKEN": CANARY}
        again = seedream("recover", done.json["id"], env=env)
        assert (again.code, len(files(seedream))) == (0, 1), again.err
        task = ["recover", "--task", "t-1", "-p", "acedata", "--base-url", upstream.url, "-o", "task.jpg"]
        assert seedream(*task, env=env).code == 0
        assert sum(post.target == b"/seedream/images" for post in upstream.posts) == 1


def test_a_task_that_failed_says_why(seedream: Command) -> None:
    """A structured error in the record is the provider's word; `success: false` without one is not the end."""
    undecided = answer(b'{"id":"t-1","created_at":1,"response":{"success":false}}')
    error = {"code": "bad_request", "message": "the size is wrong"}
    record = {"id": "t-1", "created_at": 1, "finished_at": 2, "response": {"success": False, "error": error}}
    with Upstream(script=polled(undecided, answer(json.dumps(record).encode()))) as upstream:
        done = ace(seedream, upstream)
        assert (done.code, done.json["error"]["provider_code"], len(upstream.posts)) == (4, "bad_request", 3), done.err
        assert "the size is wrong" in done.err
        assert "nothing to recover" in seedream("recover").err


def test_a_killed_run_leaves_its_task_for_recover(seedream: Command) -> None:
    """SIGKILL while a task is polled: the id is on disk, and `recover` fetches the image without another payment."""
    with Upstream(script=polled(PENDING)) as upstream:
        upstream._reply = upstream.acedata
        args = ["generate", "x", "-p", "acedata", "--base-url", upstream.url]
        env = {"ACEDATACLOUD_API_TOKEN": CANARY}
        process = seedream.popen(*args, env=env, hurried=True)
        _await(lambda: len(upstream.posts) > 8)
        process.kill()
        process.communicate(timeout=10)
        upstream._script = None
        done = seedream("recover", env=env)
        assert (done.code, len(done.paths)) == (0, 1), done.err
        assert sum(post.target == b"/seedream/images" for post in upstream.posts) == 1
        assert "nothing to recover" in seedream("recover", env=env).err


def test_a_callback_ends_with_a_task_that_can_be_fetched(seedream: Command) -> None:
    """`--callback-url` submits and ends: the id is told, status `submitted`, exit 0; elsewhere it is refused."""
    with Upstream() as upstream:
        upstream._reply = upstream.acedata
        done = ace(seedream, upstream, "--callback-url", "https://me.invalid/cb?x=1")
        assert (done.code, done.json["status"], done.json["task_id"]) == (0, "submitted", "t-1"), done.err
        assert "t-1" in done.err
        assert (len(upstream.posts), upstream.bodies[0]["callback_url"]) == (1, "https://me.invalid/cb?x=1")
        assert "async" not in upstream.bodies[0]
        assert not files(seedream)
        args = ["recover", "--task", "t-1", "-p", "acedata", "--base-url", upstream.url]
        done = seedream(*args, env={"ACEDATACLOUD_API_TOKEN": CANARY})
        assert (done.code, len(files(seedream)), len(upstream.posts)) == (0, 1, 2), done.err
        done = run(seedream, upstream, "--callback-url", "https://me.invalid/cb")
        assert (done.code, len(upstream.posts)) == (2, 2), "only AceData calls back"
        done = ace(seedream, upstream, "--callback-url", "https://me.invalid/cb", "--stream")
        assert (done.code, len(upstream.posts)) == (2, 2), "a stream and a callback exclude each other"


def test_a_signal_during_a_stream_keeps_what_came(seedream: Command) -> None:
    """A second signal stops the stream; the image that came is a file, and the run is not sent again."""
    with Upstream() as upstream:
        script = answer(sse(*events(upstream, 1), done=False), framing="chunked", cut=10_000, end="hold")
        upstream._script = lambda request, number: script
        args = ["generate", "x", "-p", "ark", "--base-url", upstream.url, "--stream", "--sequence", "3"]
        process = seedream.popen(*args, env={"ARK_API_KEY": CANARY})
        _await(lambda: bool(list(seedream.folder.glob("x*.jpg"))))
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert (process.returncode, len(upstream.posts), len(files(seedream))) == (130, 1, 1)
