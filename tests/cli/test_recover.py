"""What is read a second time: it can bring images, and never makes a doubt smaller."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.command import CANARY, Command, Done
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, sse
from tests.support.raw_server import Received, Script, answer

ENV = dict.fromkeys(("ARK_API_KEY", "ACEDATACLOUD_API_TOKEN", "OPENAI_API_KEY", "COMETAPI_KEY"), CANARY)
EVENTS = [("Content-Type", "text/event-stream")]


def generate(command: Command, upstream: Upstream, *more: str, provider: str = "ark") -> Done:
    """One request with JSON as its result."""
    return command("generate", "a fox", "-p", provider, "--base-url", upstream.url, "--json", *more, env=ENV)


def entries(command: Command) -> list[dict[str, Any]]:
    """The requests of the history."""
    found: list[dict[str, Any]] = command("history", "--json").json["requests"]
    return found


def kept(command: Command) -> dict[str, bytes]:
    """Every reply that is kept, and what is left of some, by its name."""
    found = (command.home / "state" / "replies").glob("*")
    return {path.name: path.read_bytes() for path in found if path.suffix in {".reply", ".cut", ".part"}}


def fails_link(request: Received, number: int) -> Script | None:
    """A store that has every image but number 9."""
    return answer(b"gone", status=404) if b"/9.jpeg" in request.target else None


# --- replies without an image -----------------------------------------------------------------------------------------

UNUSUAL: dict[str, Script] = {
    "empty link": answer(b'{"created": 1, "data": [{"url": ""}]}'),
    "failed members": answer(b'{"error": {"message": "x"}, "data": [{"error": {"code": "Odd"}}]}', status=504),
    "a task nobody knows": answer(b'{"task_id": "t-77"}'),
    "no list": answer(b'{"created": 1}'),
    "a page": answer(b"<html><title>Welcome</title></html>"),
    "nothing": answer(b""),
    "cut": answer(b'{"data": [{"url": "https://', cut=20),
    "looks refused": answer(b'{"error": {"code": "InputTextSensitiveContentDetected"}}', cut=20, status=200),
    "refused by a page": answer(b'{"error": {"code": "Oops", "message": "no"}}', status=502),
    "an error event": answer(sse({"type": "error", "error": {"code": "Odd", "message": "no"}}), headers=EVENTS),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_recover_changes_nothing_of_a_reply_without_an_image(forked: Forked, case: str) -> None:
    """Exit 7 and the request's price before and after, whoever reads it how often; the reply stays as it came."""
    # Ark says that only images are billed, so that its error event is a verdict; its resellers say no such thing.
    stream, provider = (["--stream"], "cometapi") if case == "an error event" else ([], "ark")
    with Upstream(script=lambda request, number: UNUSUAL[case]) as upstream:
        done = generate(forked, upstream, "-m", "4.5", *stream, provider=provider)
        assert (done.code, done.json["status"], done.json["error"]["billed"]) == (7, "unknown", "unknown"), done.err
        assert done.json["cost"]["amount"] > 0.03
        before, replies = entries(forked), kept(forked)
        assert (before[0]["status"], before[0]["billed"], before[0]["cost"]) == (
            "unknown",
            "unknown",
            done.json["cost"],
        )
        assert bool(replies) == (case != "nothing")
        for args in ([], [done.json["id"]], ["--json"]):
            again = forked("recover", *args, env=ENV)
            assert again.code == 7, (args, again.out, again.err)
            assert not {"succeeded", "not billed", "$0.00"} & set(again.out.split('"')), again.out
            assert "not billed" not in again.err
            assert "history resolve" in again.err
            assert (entries(forked), kept(forked)) == (before, replies), args
        assert generate(forked, upstream, "--no-download", *stream, provider=provider).code == 7
        assert kept(forked).items() >= replies.items()
        assert forked("history", "resolve", done.json["id"], "--unpaid").code == 0
        assert not kept(forked).keys() & replies.keys()
        assert len(upstream.posts) == 2


@pytest.mark.parametrize("case", ["empty link", "looks refused", "a page"])
def test_recover_without_a_ledger_keeps_a_reply_without_an_image(forked: Forked, case: str) -> None:
    """No ledger tells how it was judged: its bytes stay, and nobody calls it unpaid."""
    with Upstream(script=lambda request, number: UNUSUAL[case]) as upstream:
        assert generate(forked, upstream, "--no-ledger").code == 7
        replies = kept(forked)
        assert replies
        for more in ([], ["--no-ledger"], ["--json"]):
            again = forked("recover", *more, env=ENV)
            assert again.code == 7, again.err
            assert "not billed" not in again.err
            assert kept(forked) == replies or list(kept(forked).values()) == list(replies.values())


def test_recover_saves_what_is_there_and_keeps_the_doubt_about_the_rest(forked: Forked) -> None:
    """Of two members one is empty: one image, and the reply stays until the user settles the other."""

    def reply(body: Any, number: int) -> Any:
        return {"data": [{"url": upstream.link(1)}, {"url": ""}]}

    with Upstream(reply=reply) as upstream:
        done = generate(forked, upstream, "--sequence", "2", "-m", "4.5")
        assert (done.code, done.json["status"], len(list(forked.folder.glob("*.jp*g")))) == (9, "partial", 1), done.err
        replies = kept(forked)
        assert replies
        for _ in range(2):
            again = forked("recover", env=ENV)
            assert again.code in {7, 9}, again.err
            assert (entries(forked)[0]["status"], kept(forked)) == ("unknown", replies)
        assert len(list(forked.folder.glob("*.jp*g"))) == 1
        assert entries(forked)[0]["cost"]["amount"] == done.json["cost"]["amount"] > 0.07


def test_recover_ends_a_doubt_with_an_image(forked: Forked) -> None:
    """A later version reads what an earlier one could not: the row is saved, once, and the reply goes."""
    with Upstream(script=lambda request, number: answer(b'{"created": 1}')) as upstream:
        done = generate(forked, upstream, "-m", "4.5")
        [name] = kept(forked)
        whole = json.dumps({"data": [{"url": upstream.link(3)}]}).encode()
        (forked.home / "state" / "replies" / name).write_bytes(whole)
        again = forked("recover", env=ENV)
        assert (again.code, len(again.paths)) == (0, 1), again.err
        [entry] = entries(forked)
        assert (entry["status"], entry["billed"], entry["cost"]) == ("succeeded", "yes", done.json["cost"])
        assert not kept(forked)
        assert forked("recover", env=ENV).code == 0


def test_recover_killed_at_each_step_loses_no_reply(forked: Forked) -> None:
    """Of a reply with one image and one doubt: at every moment the image is on disk, or its reply is."""

    def reply(body: Any, number: int) -> Any:
        return {"data": [{"url": upstream.link(9)}, {"url": ""}]}

    with Upstream(reply=reply, link=fails_link) as upstream:
        assert generate(forked, upstream, "--sequence", "2", "--retries", "0").code in {7, 8}
        upstream._link = None
        for step in range(1, 40):
            code = forked("recover", "--retries", "0", env=ENV, wounds={"kill": step}).code
            assert kept(forked)
            assert entries(forked)[0]["billed"] != "no"
            if code >= 0:
                break
        assert code in {7, 9}
        assert len(list(forked.folder.glob("*.jp*g"))) == 1
        assert entries(forked)[0]["status"] == "unknown"


def test_recover_by_two_processes_keeps_the_doubt(forked: Forked) -> None:
    """Both say 7, or one that the other has it in hand."""
    with Upstream(script=lambda request, number: UNUSUAL["empty link"]) as upstream:
        generate(forked, upstream)
        before, replies = entries(forked), kept(forked)
        runs = [forked.popen("recover", env=ENV) for _ in range(3)]
        for run in runs:
            run.communicate(timeout=60)
        assert {run.returncode for run in runs} <= {7, 75}
        assert (entries(forked), kept(forked)) == (before, replies)


@pytest.mark.parametrize("body", [b'{"data": [{"url": ""}]}', b'{"created": 1}', b"<html>"])
def test_recover_of_a_file_leaves_the_file(seedream: Command, body: bytes) -> None:
    """A raw reply is the user's: it is read, and never removed; no copy is left of one without an image."""
    path = seedream.folder / "reply.json"
    path.write_bytes(body)
    for _ in range(2):
        done = seedream("recover", "reply.json", "-p", "ark", env=ENV)
        assert done.code == 7, done.err
        assert path.read_bytes() == body
    assert not kept(seedream)
    assert seedream("recover", env=ENV).code == 0
    piped = seedream("recover", "-", "-p", "ark", env=ENV, stdin=body)
    assert piped.code == 7
    assert list(kept(seedream).values()) == [body]


def test_recover_reads_what_was_cut_without_a_ledger(forked: Forked) -> None:
    """A reply that was put aside is looked at as well, and stays while nothing is made of it."""
    replies = forked.home / "state" / "replies"
    replies.mkdir(parents=True)
    (replies / "261128-abcdef.1.cut").write_bytes(b'{"data": [{"url": "https://')
    (replies / "261128-abcdef.1.cut").chmod(0o600)
    done = forked("recover", env=ENV)
    assert done.code == 7, done.err
    assert kept(forked) == {"261128-abcdef.1.cut": b'{"data": [{"url": "https://'}


def test_recover_keeps_what_came_of_a_doubtful_attempt(forked: Forked) -> None:
    """The request was repeated on the user's order and is saved: what came of the first attempt stays in doubt."""
    unclear = answer(b'{"created": 1}', status=500)
    with Upstream(script=lambda request, number: unclear if number == 1 else None) as upstream:
        done = generate(forked, upstream, "--retry-ambiguous")
        assert done.code == 0, done.err
        assert list(kept(forked).values()) == [b'{"created": 1}']
        assert entries(forked)[0]["status"] == "succeeded"
        assert list(kept(forked).values()) == [b'{"created": 1}']
        assert forked("history", "resolve", done.json["id"], "--unpaid").code == 0
        assert not kept(forked)


def test_a_batch_reads_a_doubtful_reply_before_it_pays_again(forked: Forked) -> None:
    """`--only unknown --retry-ambiguous` sends nothing where the kept reply has the image after all."""
    (forked.folder / "shots.csv").write_text("prompt\na fox\na cat\n")
    args = ["batch", "shots.csv", "-p", "ark"]
    with Upstream(script=lambda request, number: answer(b'{"created": 1}')) as upstream:
        args += ["--base-url", upstream.url]
        assert forked(*args, env=ENV).code == 7
        first, second = sorted((forked.folder / "shots/.seedream/replies").glob("*.reply"))
        first.write_bytes(json.dumps({"data": [{"url": upstream.link(3)}]}).encode())
        assert forked(*args, env=ENV).code == 7
        assert second.is_file()
        upstream._script = None
        done = forked(*args, "--only", "unknown", "--retry-ambiguous", env=ENV)
        assert done.code == 0, done.err
        assert (len(upstream.posts), len(list((forked.folder / "shots").glob("*.jp*g")))) == (3, 2)


# --- tasks that ended -------------------------------------------------------------------------------------------------

TICKET = answer(b'{"task_id":"t-1"}')


def record(**more: Any) -> Script:
    """The record of a task that has ended."""
    return answer(json.dumps({"id": "t-1", "created_at": 1.0, "finished_at": 2.0, **more}).encode())


ENDED = {
    "no images": record(response={"success": True, "task_id": "t-1", "data": []}),
    "no response": record(),
    "not a success": record(response={"success": False}),
    "null data": record(response={"success": True, "task_id": "t-1", "data": None}),
    "an empty link": record(response={"success": True, "task_id": "t-1", "data": [{"image_url": ""}]}),
    "an unclear error": record(response={"success": False, "error": {"code": "api_error", "message": "no"}}),
    "cancelled": record(status="cancelled", finished_at=None),
    "in a list": answer(b'{"count": 1, "items": [{"id": "t-1", "created_at": 1, "finished_at": 2, "response": {}}]}'),
    "a bare result": answer(b'{"success": true, "task_id": "t-1", "data": []}'),
    "nothing but an end": answer(b'{"id": "t-1", "finished_at": 2.0}'),
    "nothing but a state": answer(b'{"id": "t-1", "status": "expired"}'),
    "under data": answer(b'{"data": {"id": "t-1", "finished_at": "2026-11-28T08:00:00Z"}}'),
}


@pytest.mark.parametrize("case", ENDED)
def test_a_task_that_ended_without_an_image_is_over_at_the_first_poll(forked: Forked, case: str) -> None:
    """Unknown, the record kept; it is neither polled to the deadline nor said to go on. `recover` changes nothing."""
    scripts = [TICKET, ENDED[case]]
    with Upstream(script=lambda request, number: scripts[min(number, 2) - 1]) as upstream:
        done = generate(forked, upstream, provider="acedata")
        error = done.json["error"]
        assert (done.code, error["code"], error["billed"], len(upstream.posts)) == (7, "unknown_outcome", "unknown", 2)
        assert "goes on" not in done.err
        assert "t-1" in error["message"]
        assert done.json["cost"]["amount"] > 0
        replies = kept(forked)
        assert [json.loads(one) for one in replies.values()] == [json.loads(_body(ENDED[case]))]
        for args in ([], ["--task", "t-1", "-p", "acedata", "--base-url", upstream.url]):
            again = forked("recover", *args, env=ENV)
            assert again.code == 7, (args, again.err)
            assert entries(forked)[0]["status"] == "unknown"
            assert kept(forked) == replies
        assert sum(post.target == b"/seedream/images" for post in upstream.posts) == 1


def _body(script: Script) -> bytes:
    """The body of an answer, which is its last piece."""
    return [piece for piece in script.pieces if isinstance(piece, bytes)][-1]


@pytest.mark.parametrize("ended", [0, "", "0", "0001-01-01T00:00:00Z", None])
@pytest.mark.parametrize("provider", ["acedata", "openai"])
def test_a_task_without_a_time_of_its_end_goes_on(forked: Forked, provider: str, ended: object) -> None:
    """Programs write "not yet" in several ways: the image that is still to come is not given up for any of them."""
    asked = []
    pending = {"id": "t-1", "created_at": 1.0, "finished_at": ended, "response": None}

    def script(request: Received, number: int) -> Script | None:
        if request.target.endswith(b"/generations") or request.target == b"/seedream/images":
            return TICKET
        asked.append(request.target)
        links = [{"image_url": upstream.link(), "url": upstream.link()}]
        whole = {"id": "t-1", "finished_at": 2.0, "response": {"success": True, "data": links}}
        return answer(json.dumps(pending if len(asked) < 3 else whole).encode())

    def link(request: Received, number: int) -> Script | None:
        return script(request, number) if b"/tasks/" in request.target else None

    with Upstream(script=script, link=link) as upstream:
        done = generate(forked, upstream, provider=provider)
        assert (done.code, len(asked)) == (0, 3), done.err


def test_a_batch_of_tasks_that_ended_stops_after_a_few(forked: Forked) -> None:
    """Each is one more doubt: no new row leaves after three in a row."""
    (forked.folder / "shots.csv").write_text("prompt\n" + "".join(f"fox {number}\n" for number in range(12)))

    def script(request: Received, number: int) -> Script:
        return TICKET if request.target == b"/seedream/images" else ENDED["no images"]

    with Upstream(script=script) as upstream:
        args = ["batch", "shots.csv", "-p", "acedata", "--base-url", upstream.url, "--concurrency", "1"]
        done = forked(*args, env=ENV, hurried=True)
        assert done.code == 7, done.err
        assert 3 <= sum(post.target == b"/seedream/images" for post in upstream.posts) < 12
        assert "goes on" not in done.err


@pytest.mark.parametrize("gone", [1, 3, 99])
def test_a_task_that_is_not_there_yet_is_asked_for_again(forked: Forked, gone: int) -> None:
    """A 404 for a young task is no verdict; one that stays is a doubt, and the task's id is kept."""
    absent = answer(b'{"error": {"code": "no_api", "message": "no such task"}}', status=404)

    def script(request: Received, number: int) -> Script | None:
        return TICKET if number == 1 else absent if number <= 1 + gone else None

    with Upstream(script=script) as upstream:
        upstream._reply = upstream.acedata
        args = ["-p", "acedata", "--base-url", upstream.url, "--json"]
        done = forked("generate", "a fox", *args, env=ENV, hurried=True)
        if gone < 9:
            assert (done.code, len(upstream.posts)) == (0, 2 + gone), done.err
            return
        assert (done.code, done.json["error"]["billed"]) == (7, "unknown"), done.err
        # 1, 2, 4 … s, until a minute is over.
        assert len(upstream.posts) == 1 + 7
        assert "goes on" not in done.err
        again = forked("recover", "--task", "t-1", *args[:4], env=ENV, hurried=True)
        assert again.code == 7, again.err
        assert entries(forked)[0]["billed"] == "unknown"
        upstream._script = None
        done = forked("recover", env=ENV)
        assert (done.code, len(done.paths)) == (0, 1), done.err
        assert sum(post.target == b"/seedream/images" for post in upstream.posts) == 1


# --- links that were handed out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("--no-download",),
        ("--no-download", "--sequence", "3"),
        ("-n", "2", "--no-download"),
    ],
    ids=["one link", "a set", "two requests"],
)
def test_recover_of_links_that_were_handed_out_saves_them(forked: Forked, args: tuple[str, ...]) -> None:
    """Where they are named: once, for nothing. Nothing is named, nothing is fetched."""
    with Upstream() as upstream:
        made = forked("generate", "a fox", "-p", "ark", "-m", "4.5", "--base-url", upstream.url, *args, env=ENV)
        assert made.code == 0, made.err
        paid, [run] = len(upstream.posts), {entry["run"] for entry in entries(forked)}
        images = sum(len(entry["images"]) for entry in entries(forked))
        cost = [entry["cost"] for entry in entries(forked)]
        upstream.server.requests.clear()
        assert forked("recover", env=ENV).code == 0
        assert not upstream.gets
        again = forked("recover", run, env=ENV)
        assert (again.code, len(again.paths)) == (0, images), again.err
        assert all((forked.folder / path).stat().st_size for path in again.paths)
        assert (len(upstream.posts), len(upstream.gets)) == (0, images)
        assert {entry["status"] for entry in entries(forked)} == {"succeeded"}
        assert [entry["cost"] for entry in entries(forked)] == cost
        assert paid == len(cost)
        third = forked("recover", run, env=ENV)
        assert third.code == 2
        assert "all its images are saved" in third.err


def test_recover_of_a_link_that_was_handed_out_and_is_dead_says_so(forked: Forked) -> None:
    """It is not called saved, and what was there before is fetched by a later one, if it comes back."""
    with Upstream(link=lambda request, number: answer(b"busy", status=503) if number < 3 else None) as upstream:
        made = forked("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--no-download", "--json", env=ENV)
        assert made.code == 0
        again = forked("recover", made.json["id"], "--retries", "0", env=ENV)
        assert again.code == 8, again.err
        assert entries(forked)[0]["billed"] == "yes"
        while (again := forked("recover", made.json["id"], "--retries", "0", env=ENV)).code == 8:
            assert len(upstream.gets) < 10
        assert (again.code, len(again.paths), len(upstream.posts)) == (0, 1, 1)


def test_recover_of_links_that_were_handed_out_killed_at_each_step_saves_one_file(forked: Forked) -> None:
    """At every moment the link is known, or the file is there."""
    with Upstream() as upstream:
        made = forked("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "--no-download", "--json", env=ENV)
        for step in range(1, 40):
            done = forked("recover", made.json["id"], env=ENV, wounds={"kill": step})
            if done.code >= 0:
                break
        assert done.code in {0, 2}, done.err
        assert len(list(forked.folder.glob("*.jp*g"))) == 1
        assert entries(forked)[0]["status"] == "succeeded"
        assert len(upstream.posts) == 1
