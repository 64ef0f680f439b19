"""A batch against providers that take only so much: nobody fails for the number of requests, and nobody else waits."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest

from tests.support.batches import images, results, run, summary, table
from tests.support.command import CANARY, Command
from tests.support.provider_server import Upstream, refusal
from tests.support.raw_server import Received, Script, answer


class Narrow(Upstream):
    """Takes `at_once` requests at a time, and `many` in any `span_s`; refuses the others with a 429."""

    def __init__(
        self,
        *,
        at_once: int = 1000,
        many: int = 1_000_000,
        span_s: float = 1.0,
        takes_s: float = 0.1,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(script=self._judge)
        self.at_once = at_once
        self.many = many
        self.span_s = span_s
        self.takes_s = takes_s
        self.headers = {"Retry-After": retry_after} if retry_after else {}
        self.ends: list[float] = []
        self.taken: deque[float] = deque()
        self.paid: Counter[str] = Counter()
        self.busy: list[int] = []
        self.refused: list[float] = []
        self.guard = threading.Lock()

    def _judge(self, request: Received, number: int) -> Script | None:
        with self.guard:
            now, body = time.monotonic(), json.loads(request.body)
            self.ends = [end for end in self.ends if end > now]
            while self.taken and self.taken[0] <= now - self.span_s:
                self.taken.popleft()
            if len(self.ends) >= self.at_once or len(self.taken) >= self.many:
                self.refused.append(now)
                return refusal(429, "ModelAccountRpmRateLimitExceeded", **self.headers)
            self.taken.append(now)
            self.ends.append(now + self.takes_s)
            self.busy.append(len(self.ends))
            self.paid[body["prompt"]] += 1
            reply = self.images(body, number)
        return answer(json.dumps(reply).encode(), delay_s=self.takes_s)


@pytest.mark.parametrize(
    ("upstream", "rows"),
    [
        (Narrow(at_once=6, takes_s=0.1), 60),
        (Narrow(at_once=6, takes_s=0.1, retry_after="0.3"), 100),
        (Narrow(many=15, takes_s=0.02), 60),
        (Narrow(many=30, takes_s=0.02, retry_after="1"), 80),
    ],
    ids=["6 at once", "6 at once, told to wait", "15 a second", "30 a second, told to wait"],
)
def test_a_batch_over_its_providers_limit_fails_no_row(seedream: Command, upstream: Narrow, rows: int) -> None:
    """Everything is made and paid once, most requests are taken at the first try, and the pace comes back."""
    table(seedream, rows)
    with upstream:
        started = time.monotonic()
        done = run(seedream, upstream, "--concurrency", "16", "--ipm", "1000000", "--retries", "1", "--json")
        print(len(upstream.refused), time.monotonic() - started)
        assert done.code == 0, done.err
        assert (summary(done)["succeeded"], len(images(seedream))) == (rows, rows)
        assert set(upstream.paid.values()) == {1}
        assert upstream.paid.total() == rows
        assert 1 <= len(upstream.refused) <= rows // 2
        # What was halved grows again: in the second half of the run more than half of what is allowed is at work.
        if upstream.at_once < 16:
            assert max(upstream.busy[rows // 2 :]) > upstream.at_once // 2


def test_a_provider_that_takes_nothing_fails_its_rows(seedream: Command) -> None:
    """Where none is taken, refusals count against --retries, and the run comes to an end."""
    table(seedream, 4)
    with Narrow(at_once=0) as upstream:
        done = run(seedream, upstream, "--concurrency", "4", "--retries", "1", "--json")
        assert done.code == 5, done.err
        assert summary(done)["failed"] == 4
        assert not upstream.paid
        assert len(upstream.posts) == 8


def test_rows_of_a_slow_provider_keep_no_other_waiting(seedream: Command) -> None:
    """A table that begins with rows of a provider of few requests a minute: those behind them are made meanwhile."""
    rows = [f"slow {number},ark" for number in range(60)] + [f"free {number},byteplus" for number in range(60)]
    write_rows(seedream, rows)
    with Upstream() as slow, Upstream() as free:
        settings(seedream, ark=f'base_url = "{slow.url}"\nrpm = 5', byteplus=f'base_url = "{free.url}"\nipm = 100000')
        env = {"ARK_API_KEY": CANARY, "BYTEPLUS_API_KEY": f"{CANARY}-too"}
        process = seedream.popen("batch", "shots.csv", "--concurrency", "4", env=env)
        ends_at = time.monotonic() + 20
        while len(free.gets) < 60 and time.monotonic() < ends_at and process.poll() is None:
            time.sleep(0.05)
        process.terminate()
        _, err = process.communicate()
        assert len(free.posts) == 60, err
        order = [json.loads(request.body)["prompt"] for request in slow.posts]
        assert sorted(order) == [f"slow {number}" for number in range(5)]
        # What waited was not sent, and says so.
        states = Counter(row["status"] for row in results(seedream))
        assert states == {"succeeded": 65, "unsent": 55}, err


def write_rows(seedream: Command, rows: list[str]) -> Path:
    path = seedream.folder / "shots.csv"
    path.write_text("prompt,provider\n" + "\n".join(rows) + "\n")
    return path


def settings(seedream: Command, **providers: Any) -> None:
    path = seedream.home / ".config" / "seedream" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"[providers.{name}]\n{lines}\n" for name, lines in providers.items()))
