"""Killed at every step, and run again: nothing is paid twice, nothing that was paid for is lost, no file is half."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CANARY, Command
from tests.rawserver import Script, answer
from tests.upstream import Upstream, picture

MOST_STEPS = 40


def _files(seedream: Command) -> list[Path]:
    """What is there under a final name; each must be a whole picture whenever one looks."""
    found = [path for path in seedream.folder.rglob("*") if path.is_file() and not path.name.startswith(".seedream-")]
    for path in found:
        data = path.read_bytes()
        assert data.startswith((b"\xff\xd8", b"\x89PNG")), path
        assert data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82")), f"{path} is half a file"
    return found


def _base64(upstream: Upstream) -> Callable[[Any, int], Any]:
    import base64

    raw = base64.b64encode(picture("PNG", (90, 90), 3)).decode() * 1
    return lambda body, number: {"data": [{"b64_json": raw}], "usage": {"generated_images": 1}}


def _task(upstream: Upstream) -> Callable[[Any, int], Any]:
    def reply(body: Any, number: int) -> Any:
        if "model" in body:
            return {"task_id": "t-1"}
        return {"success": True, "task_id": "t-1", "data": [{"size": "64x48", "image_url": upstream.link(5)}]}

    return reply


def _events(upstream: Upstream) -> Script:
    lines = []
    for index in range(2):
        event = {"type": "image_generation.partial_succeeded", "image_index": index, "url": upstream.link(index)}
        lines.append(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
    done = {"type": "image_generation.completed", "usage": {"generated_images": 2}}
    lines.append(f"event: {done['type']}\ndata: {json.dumps(done)}\n\ndata: [DONE]\n\n")
    return answer("".join(lines).encode(), headers=[("Content-Type", "text/event-stream")])


SHAPES: dict[str, tuple[str, list[str], int]] = {
    "one picture": ("ark", [], 1),
    "a set": ("ark", ["--sequence", "3"], 3),
    "base64": ("ark", ["--response-format", "b64_json"], 1),
    "a stream": ("ark", ["--sequence", "2", "--stream"], 2),
    "a task": ("acedata", [], 1),
}
KEYS = {"ark": "ARK_API_KEY", "acedata": "ACEDATACLOUD_API_TOKEN"}


def _upstream(shape: str) -> Upstream:
    upstream = Upstream()
    if shape == "base64":
        upstream._reply = _base64(upstream)
    elif shape == "a task":
        upstream._reply = _task(upstream)
    elif shape == "a stream":
        upstream._script = lambda request, number: _events(upstream)
    return upstream


def _billable(upstream: Upstream) -> int:
    """How many POSTs cost money; asking after a task does not."""
    return sum("model" in body for body in upstream.bodies)


@pytest.mark.parametrize("shape", SHAPES)
def test_killed_at_every_step_nothing_is_paid_twice_or_lost(tmp_path: Path, shape: str) -> None:
    """SIGKILL at step 1, 2, 3 … until a run ends untouched; after each, `recover` saves what an answer came for.

    The one window that no client can close is an answer that had not reached the disk: then the request is unknown,
    is never sent again, and is told as such.
    """
    provider, args, pictures = SHAPES[shape]
    for step in range(1, MOST_STEPS):
        seedream = Command(tmp_path / f"{step}")
        env = {KEYS[provider]: CANARY}
        with _upstream(shape) as upstream:
            base = ["-p", provider, "--base-url", upstream.url]
            done = seedream("generate", "a fox", *base, *args, env={**env, "SEEDREAM_FAULT": f"kill:{step}"})
            _files(seedream)
            if done.code == 0:
                assert step > 8, "the steps were not reached"
                assert len(_files(seedream)) == pictures
                return
            assert done.code == -signal.SIGKILL, done.err
            recovered = seedream("recover", env=env)
            assert _billable(upstream) <= 1, f"step {step}: paid twice"
            [entry] = seedream("history", "--json").json["requests"] or [None]
            if entry is None:
                assert _billable(upstream) == 0, f"step {step}: a paid request is in no book"
                continue
            saved = len(_files(seedream))
            if saved == pictures:
                assert entry["status"] == "succeeded", (step, entry)
                assert seedream("recover", env=env).code == 0
            else:
                assert saved == 0, (step, saved, recovered.err)
                assert entry["status"] in {"unknown", "unsent"}, (step, entry["status"], recovered.err)
                # Only before an answer is on disk may a paid request be in doubt.
                assert entry["answered_at"] is None
            assert not list(seedream.home.rglob("*.part")), f"step {step} left a part"
            assert not list(seedream.home.rglob("*.reply")) or entry["status"] == "unknown"
    pytest.fail("the run never ended untouched")


def test_the_next_run_fetches_what_a_dead_one_paid_for(seedream: Command) -> None:
    """The same command after a crash sends its own request only, and saves the dead one's picture on the way."""
    env = {"ARK_API_KEY": CANARY}
    with Upstream() as upstream:
        args = ["generate", "a fox", "-p", "ark", "--base-url", upstream.url]
        # The steps of one picture end near the fourteenth; each killed run leaves what the next ones fetch.
        for step in range(1, 15):
            seedream(*args, env={**env, "SEEDREAM_FAULT": f"kill:{step}"})
        before = _billable(upstream)
        done = seedream(*args, env=env)
        assert done.code == 0, done.err
        assert len(done.paths) == 1, "only its own picture is a result"
        assert _billable(upstream) == before + 1
        statuses = [entry["status"] for entry in seedream("history", "--json").json["requests"]]
        assert not {"unsaved", "running", "submitted"} & set(statuses), statuses
        assert len(_files(seedream)) == statuses.count("succeeded")
        # A request is in doubt that was paid and lost its answer, or that died between its intent and its first byte.
        assert statuses.count("succeeded") <= _billable(upstream) <= len(statuses) - statuses.count("unsent")


@pytest.mark.parametrize("seed", range(6))
def test_killed_from_outside_at_any_time(tmp_path: Path, seed: int) -> None:
    """SIGKILL at a random moment of four requests: whole files only, and each request is paid once at the most."""
    rng = random.Random(seed)
    seedream = Command(tmp_path / "home")
    env = {"ARK_API_KEY": CANARY}
    with Upstream() as upstream:
        upstream.delay_s = 0.2
        run = seedream.popen("generate", "a fox", "-p", "ark", "--base-url", upstream.url, "-n", "4", env=env)
        time.sleep(0.3 + rng.random() * 0.7)
        run.kill()
        run.communicate()
        _files(seedream)
        seedream("recover", env=env)
        entries = seedream("history", "--json").json["requests"]
        assert _billable(upstream) <= 4
        saved = [entry for entry in entries if entry["status"] == "succeeded"]
        assert len(_files(seedream)) == len(saved)
        assert all(entry["status"] in {"succeeded", "unknown", "unsent"} for entry in entries), entries
