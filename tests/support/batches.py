"""Batches of a test: the table, its run, and what became of its rows."""

from __future__ import annotations

import csv
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.command import CANARY, Command, Done
from tests.support.provider_server import Upstream
from tests.support.raw_server import Received, Script

ENV = {"ARK_API_KEY": CANARY}


def table(seedream: Command, rows: int = 6, name: str = "shots.csv") -> Path:
    """A table of so many rows, each with a prompt of its own."""
    return write(seedream, "prompt\n" + "".join(f"fox number {row}\n" for row in range(1, rows + 1)), name)


def write(seedream: Command, text: str, name: str = "shots.csv") -> Path:
    path = seedream.folder / name
    path.write_text(text)
    return path


def run(seedream: Command, upstream: Upstream, *more: str, name: str = "shots.csv", **options: Any) -> Done:
    return seedream("batch", name, "-p", "ark", "--base-url", upstream.url, *more, env=ENV, **options)


def start(seedream: Command, upstream: Upstream, *more: str, name: str = "shots.csv") -> subprocess.Popen[bytes]:
    return seedream.popen("batch", name, "-p", "ark", "--base-url", upstream.url, *more, env=ENV)


def sent(upstream: Upstream) -> Counter[str]:
    """How often each prompt was paid for. What a killed process sent half is no request."""
    return Counter(json.loads(request.body)["prompt"] for request in upstream.posts if is_whole(request))


def is_whole(request: Received) -> bool:
    return len(request.body) == int(request.header("content-length") or 0)


def results(seedream: Command, folder: str = "shots") -> list[dict[str, str]]:
    with (seedream.folder / folder / "results.csv").open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def images(seedream: Command, folder: str = "shots") -> list[str]:
    return sorted(path.name for path in (seedream.folder / folder).glob("*.jp*g"))


def summary(done: Done) -> dict[str, Any]:
    """The last line of `--json`, without what changes from run to run."""
    shown: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return shown


def by_prompt(**scripts: Script) -> Any:
    """Answers those prompts that hold one of these words in their own way."""

    def script(request: Received, number: int) -> Script | None:
        prompt = json.loads(request.body)["prompt"]
        return next((made for word, made in scripts.items() if word in prompt), None)

    return script
