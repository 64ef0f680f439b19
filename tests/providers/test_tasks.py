"""Gateways that answer with a task: it is paid for once, asked after for nothing, and never lost."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from seedream_cli.errors import TaskEndedError
from seedream_cli.providers import contract, load
from tests.support.command import CANARY, Command
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream
from tests.support.raw_server import SILENCE, Received, Script, answer

pytestmark = pytest.mark.hurried
ENV = dict.fromkeys(("OPENAI_API_KEY", "OPE_API_KEY", "COMETAPI_KEY", "ARK_API_KEY"), CANARY)
NAME = "task_0000000001"
SUBMITTED = {"code": 200, "data": [{"status": "submitted", "task_id": NAME}]}


def said(value: Any, status: int = 200) -> Script:
    """An answer of JSON."""
    return answer(json.dumps(value).encode(), status=status)


def done_record(link: str, name: str = NAME) -> dict[str, Any]:
    """A task that is done, as such gateways tell it."""
    result = {"images": [{"url": [link], "expires_at": 1893456000}]}
    return {"code": 200, "data": {"id": name, "status": "completed", "progress": 100, "cost": 0.03, "result": result}}


class Gateway(Upstream):
    """Answers a request with `first`, and each asking after the task with the next of `polls`; the last one stays."""

    def __init__(self, first: Any = SUBMITTED, *polls: Script, path: str = f"/v1/tasks/{NAME}") -> None:
        super().__init__(script=self._submit, link=self._asked)
        self.first = first if isinstance(first, Script) else said(first)
        self.polls = polls
        self.asked: list[Received] = []
        self.path = path
        self.headers: list[str | None] = []

    def _submit(self, request: Received, number: int) -> Script:
        return self.first

    def _asked(self, request: Received, number: int) -> Script | None:
        if not request.target.startswith(b"/v1/tasks") and b"/tasks/" not in request.target:
            self.headers.append(request.header("authorization"))
            return None
        assert request.target.decode() == self.path
        assert request.header("authorization") == f"Bearer {CANARY}"
        self.asked.append(request)
        return self.polls[min(len(self.asked), len(self.polls)) - 1] if self.polls else self.found()

    def found(self) -> Script:
        """The task with its image."""
        return said(done_record(self.link(7)))


def generate(command: Command, gateway: Gateway, *more: str, provider: str = "openai") -> Any:
    """One request."""
    args = ["-p", provider, "--model", "4.5", "--base-url", gateway.url, "--json", "-o", "x.jpg"]
    return command("generate", "a fox", *args, *more, env=ENV)


ANSWERS: dict[str, tuple[Any, str]] = {
    "in a list": (SUBMITTED, NAME),
    "a bare id": ({"task_id": "t-9"}, "t-9"),
    "a number": ({"task_id": 4711}, "4711"),
    **{
        word: ({"id": "t-9", "status": word, "object": "image.task", "type": "image", "model": "m"}, "t-9")
        for word in ("queued", "pending", "processing", "submitted", "in_progress", "IN_QUEUE")
    },
    "accepted": (said({"id": "a/../b?c#d", "n": 1}, 202), "a/../b?c#d"),
    "an object": ({"code": "success", "message": "", "data": {"task_id": "t-9", "status": "NOT_START"}}, "t-9"),
    "a list of its own": ({"status": "success", "data": [{"id": "t-9", "state": "waiting"}]}, "t-9"),
    "within an output": ({"request_id": "r", "output": {"task_id": "t-9", "task_status": "PENDING"}}, "t-9"),
    "no error": ({"id": "t-9", "status": "queued", "error": {"code": None, "message": None}, "data": None}, "t-9"),
}


@pytest.mark.parametrize("case", ANSWERS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_task_in_an_answer_is_asked_after_until_its_image_is_there(forked: Forked, case: str, stream: bool) -> None:
    """One payment, GETs with the key at the API's own origin, and the image, whose store sees no key."""
    from urllib.parse import quote

    first, name = ANSWERS[case]
    with Gateway(first, path=f"/v1/tasks/{quote(name, safe='')}") as gateway:
        pending = said({"code": 200, "data": {"id": name, "status": "processing", "progress": 50}})
        bare = said({"code": 200, "data": {"status": "in progress"}})
        other = said({"task_id": name, "id": 17, "status": "WEIRD"})
        gateway.polls = (pending, bare, other, said(done_record(gateway.link(7), name)))
        done = generate(forked, gateway, *(["--stream", "--sequence", "2"] if stream else []))
        assert done.code == 0, done.err
        assert (len(gateway.posts), len(gateway.asked)) == (1, 4)
        assert gateway.headers == [None]
        assert (done.json["task_id"], done.json["usage"]) == (name, {"cost": 0.03})
        assert [path.name for path in forked.folder.iterdir()] == ["x-1.jpg" if stream else "x.jpg"]
        assert forked("recover", env=ENV).code == 0
        assert (len(gateway.posts), len(gateway.asked)) == (1, 4)


@pytest.mark.parametrize("provider", ["ope", "cometapi"])
def test_a_task_of_the_other_gateways_is_asked_after(forked: Forked, provider: str) -> None:
    """They run the same software."""
    with Gateway() as gateway:
        done = generate(forked, gateway, provider=provider)
        assert (done.code, len(gateway.posts), len(gateway.asked)) == (0, 1, 1), done.err


def test_a_task_means_nothing_to_a_vendor(forked: Forked) -> None:
    """Its API has none: unknown, and nobody is asked."""
    with Gateway() as gateway:
        done = generate(forked, gateway, provider="ark")
        assert (done.code, len(gateway.posts), len(gateway.asked)) == (7, 1, 0), done.err
        done = forked("recover", "--task", NAME, "-p", "ark", "--base-url", gateway.url, env=ENV)
        assert (done.code, len(gateway.asked)) == (2, 0)


URL = "https://store.example/a.png"
RECORDS: dict[str, tuple[Any, list[str]]] = {
    "the field's": (done_record(URL), [URL]),
    "links": ({"id": NAME, "status": "completed", "results": [URL, URL + "2"]}, [URL, URL + "2"]),
    "as at once": ({"id": NAME, "status": "succeeded", "data": [{"url": URL}]}, [URL]),
    "within data": ({"code": 0, "data": {"status": "SUCCESS", "data": {"data": [{"url": URL}]}}}, [URL]),
    "an output": ({"id": NAME, "status": "succeeded", "input": {"image": ["https://r"]}, "output": [URL]}, [URL]),
    "one link": ({"code": 200, "data": {"task_id": NAME, "status": "SUCCESS", "result_url": URL}}, [URL]),
    "references": (
        {"id": NAME, "status": "done", "prompt": "x", "image": ["https://r"], "result": {"url": URL}},
        [URL],
    ),
    "twice": ({"id": NAME, "status": "completed", "result": {"images": [{"url": URL}], "image_url": URL}}, [URL]),
    "an empty error": ({"id": NAME, "status": "completed", "error": {"code": ""}, "images": [{"url": URL}]}, [URL]),
    "no state": ({"task_id": NAME, "images": [{"url": URL}]}, [URL]),
}


@pytest.mark.parametrize("case", RECORDS)
def test_the_images_of_a_task_are_found(case: str) -> None:
    """Wherever its record has them, once each, and never what it repeats of the request."""
    body, links = RECORDS[case]
    for asked in (NAME, ""):
        found = load("openai").read(contract.Reply(200, {}, body, task_id=asked))
        assert isinstance(found, contract.Ready)
        assert [one.link for one in found.images] == links


ENDED: dict[str, Any] = {
    "the field's": {"id": NAME, "created_at": 1, "finished_at": 2, "response": {"task_id": NAME, "data": []}},
    "no images": {"code": 200, "data": {"id": NAME, "status": "completed", "result": {"images": []}}},
    "an empty link": {"code": 200, "data": {"id": NAME, "status": "completed", "result": {"images": [{"url": [""]}]}}},
    "nothing": {"code": 200, "data": {"status": "SUCCESS", "data": None}},
    "a reference": {"id": NAME, "status": "completed", "prompt": "x", "image": ["https://store.example/r.png"]},
    "failed": {"code": 200, "data": {"id": NAME, "status": "failed", "error": {"code": "x", "message": "too bad"}}},
    "a reason": {"code": "success", "data": {"task_id": NAME, "status": "FAILURE", "fail_reason": "too bad"}},
    # Refused at once it would be free; of what fails after it was taken nobody says that.
    "refused": {"id": NAME, "status": "failed", "error": {"code": "content_policy_violation", "message": "too bad"}},
    "a result": {"success": True, "task_id": NAME, "data": []},
}


@pytest.mark.parametrize("case", ENDED)
def test_a_gateways_task_that_ended_without_an_image_is_over(forked: Forked, case: str) -> None:
    """At the first asking: unknown, named, its record kept, and `recover` makes nothing smaller of it."""
    with Gateway(SUBMITTED, said(ENDED[case])) as gateway:
        done = generate(forked, gateway)
        error = done.json["error"]
        assert (done.code, error["code"], error["billed"]) == (7, "unknown_outcome", "unknown"), done.err
        assert (len(gateway.posts), len(gateway.asked)) == (1, 1)
        assert NAME in error["message"]
        assert ("too bad" in error["message"]) == ("too bad" in json.dumps(ENDED[case]))
        assert "goes on" not in done.err
        replies = [path.read_bytes() for path in (forked.home / "state" / "replies").glob("*.reply")]
        assert [json.loads(one) for one in replies] == [ENDED[case]]
        assert forked("recover", env=ENV).code == 7
        assert forked("recover", "--task", NAME, "-p", "openai", "--base-url", gateway.url, env=ENV).code == 7
        gateway.polls = ()
        done = forked("recover", "--task", NAME, "-p", "openai", "--base-url", gateway.url, env=ENV)
        assert (done.code, len(done.paths), len(gateway.posts)) == (0, 1, 1), done.err


NO_ANSWERS: dict[str, Script] = {
    "404": said({"error": {"message": "Invalid URL (GET /v1/tasks/x)", "type": "invalid_request_error"}}, 404),
    "404 page": answer(b"<html><title>Not Found</title></html>", status=404),
    "405": said({"detail": "Method Not Allowed"}, 405),
    "401": said({"error": {"code": "invalid_api_key", "message": "no"}}, 401),
    "an error with 200": said({"error": {"code": "invalid_api_key", "message": "no"}}),
    "an error in words": said({"status": "error", "message": "rate limited"}),
    "an empty success": said({"status": "success", "data": None}),
    "a page": answer(b"<!doctype html><title>Welcome</title>"),
    "nothing": answer(b""),
    "an empty object": said({}),
    "another's": answer(b"", status=302, headers=[("Location", "http://127.0.0.1:9/")]),
    "500": said({"error": {"code": "", "message": "oops"}}, 500),
}


@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "no ledger"])
@pytest.mark.parametrize("case", NO_ANSWERS)
def test_a_task_that_cannot_be_asked_after_is_named_and_kept(forked: Forked, case: str, ledger: bool) -> None:
    """Exit 7 with a line to paste, which asks again and pays nothing."""
    with Gateway(SUBMITTED, NO_ANSWERS[case]) as gateway:
        done = generate(forked, gateway, *([] if ledger else ["--no-ledger"]))
        error = done.json["error"]
        assert (done.code, error["billed"], len(gateway.posts)) == (7, "unknown", 1), done.err
        assert NAME in error["message"]
        assert done.json["task_id"] == NAME
        line = f"seedream recover --task {NAME} -p openai --base-url {gateway.url}/v1"
        assert line in error["hint"]
        assert list((forked.home / "state" / "replies").glob("*.reply"))
        args = shlex.split(line)[1:]
        assert forked(*args, env=ENV).code == 7
        gateway.polls = ()
        done = forked(*args, "-o", "y.jpg", env=ENV)
        assert (done.code, len(done.paths), len(gateway.posts)) == (0, 1, 1), done.err
        if ledger:
            assert forked("history", "--json").json["requests"][0]["status"] == "succeeded"


NO_TASKS: dict[str, Any] = {
    "no id": {"status": "processing"},
    "a dot": {"task_id": "..", "status": "queued"},
    "control": {"data": [{"task_id": "a\r\nX: y", "status": "submitted"}]},
    "long": {"id": "x" * 5000, "status": "queued"},
    "two": {"data": [{"task_id": "t-1", "status": "submitted"}, {"task_id": "t-2", "status": "submitted"}]},
    "a chat": {"id": "chatcmpl-1", "object": "chat.completion", "choices": []},
    "refused": {"task_id": "t-1", "error": {"code": "invalid_api_key", "message": "no"}},
}


@pytest.mark.parametrize("case", NO_TASKS)
def test_an_answer_without_one_usable_task_asks_nobody(forked: Forked, case: str) -> None:
    """Its reply is kept where it may have been paid for."""
    with Gateway(NO_TASKS[case]) as gateway:
        done = generate(forked, gateway)
        assert (done.code, len(gateway.posts), len(gateway.asked)) == (3 if case == "refused" else 7, 1, 0), done.err
        assert bool(list((forked.home / "state" / "replies").glob("*.reply"))) == (case != "refused")
        if case == "two":
            assert "t-1, t-2" in done.json["error"]["message"]


@pytest.mark.parametrize("beside", [{"task_id": "t-1", "status": "queued"}, {"id": "t-1", "status": "processing"}])
def test_an_answer_with_images_is_no_task(forked: Forked, beside: dict[str, Any]) -> None:
    """What came is saved, whatever is said of a task beside it."""
    with Gateway() as gateway:
        gateway.first = said({**beside, "data": [{"url": gateway.link(3), **beside}]})
        done = generate(forked, gateway)
        assert (done.code, len(gateway.asked)) == (0, 0), done.err


def test_members_that_were_refused_are_no_task() -> None:
    """A word such as "completed" beside them changes nothing of what they cost."""
    member = {"error": {"code": "OutputImageSensitiveContentDetected", "message": "no"}}
    found = load("openai").read(contract.Reply(200, {}, {"id": "r-1", "status": "completed", "data": [member]}))
    assert isinstance(found, contract.Ready)
    assert [one.error and one.error.billed for one in found.images] == ["no"]
    with pytest.raises(TaskEndedError):
        load("openai").read(contract.Reply(200, {}, {"task_id": "t", "status": "failed"}))


@pytest.mark.parametrize("odd", ["..", "a\x1bb", "x" * 300])
def test_an_id_that_cannot_be_one_is_a_mistake_of_the_command(forked: Forked, odd: str) -> None:
    """Exit 2, and nothing is asked."""
    with Gateway() as gateway:
        done = forked("recover", "--task", odd, "-p", "openai", "--base-url", gateway.url, env=ENV)
        assert (done.code, gateway.server.requests) == (2, []), done.err


# --- batches ----------------------------------------------------------------------------------------------------------


class Shop(Gateway):
    """A task for each row, which is not done before `opened`."""

    def __init__(self) -> None:
        super().__init__()
        self.opened, self.closed = False, answer(b"", status=405)

    def _submit(self, request: Received, number: int) -> Script:
        return said({"code": 200, "data": [{"status": "submitted", "task_id": f"t-{number}"}]})

    def _asked(self, request: Received, number: int) -> Script | None:
        if not request.target.startswith(b"/v1/tasks/"):
            return None
        self.asked.append(request)
        name = request.target.decode().rpartition("/")[2]
        if not self.opened:
            return self.closed
        return said(done_record(self.link(int(name[2:])), name))


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "left"])
def test_a_batch_of_tasks_pays_each_row_once(forked: Forked, is_killed: bool) -> None:
    """Killed, or left with tasks that could not be asked after: the same command asks after them and pays nothing."""
    (forked.folder / "shots.csv").write_text("prompt\nfox\ncat\n")
    with Shop() as shop:
        args = ["batch", "shots.csv", "-p", "openai", "--model", "4.5", "--base-url", shop.url]
        if is_killed:
            # While both tasks are asked after.
            shop.closed = SILENCE
            process = forked.popen(*args, env=ENV)
            _wait(lambda: len(shop.asked) == 2)
            process.kill()
            process.communicate()
        else:
            assert forked(*args, env=ENV).code == 7
        assert len(shop.posts) == 2
        shop.opened = True
        done = forked(*args, env=ENV)
        assert done.code == 0, done.err
        assert (len(shop.posts), len(list((forked.folder / "shots").glob("*.jp*g")))) == (2, 2)


def _wait(until: Callable[[], bool]) -> None:
    """Wait for something that comes for certain."""
    import time

    ends = time.monotonic() + 60
    while not until():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_task_that_was_left_is_asked_after_by_recover(forked: Forked) -> None:
    """The address was named in the run before, so `recover` alone may ask there."""
    with Gateway(SUBMITTED, answer(b"", status=405)) as gateway:
        assert generate(forked, gateway).code == 7
        gateway.polls = ()
        done = forked("recover", env=ENV)
        assert (done.code, len(done.paths), len(gateway.posts)) == (0, 1, 1), done.err


def test_events_that_nobody_needs_do_not_hide_a_task(forked: Forked) -> None:
    """A line of JSON with a type of its own is a task all the same."""
    with Gateway() as gateway:
        gateway.first = answer(json.dumps({"id": NAME, "type": "image", "status": "pending", "n": 1}).encode() + b"\n")
        done = generate(forked, gateway, "--stream", "--sequence", "2")
        assert (done.code, len(gateway.posts), len(gateway.asked)) == (0, 1, 1), done.err
