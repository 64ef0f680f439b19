"""Counters of requests and bills, shown by `/sandbox/stats`."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any

REMEMBERED = 10_000
"""Most prompts, URLs and tasks that are stored."""


class Stats:
    """Thread-safe counters of requests and bills, by prompt, for the last `_REMEMBERED` prompts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._prompts: OrderedDict[str, dict[str, int]] = OrderedDict()
            self._fetches: OrderedDict[bytes, int] = OrderedDict()
            self._totals = dict.fromkeys(
                ("generations", "refused", "billed", "images", "links_served", "links_refused"), 0
            )

    def count_request(self) -> int:
        with self._lock:
            self._requests += 1
            return self._requests

    def count_refused(self) -> None:
        with self._lock:
            self._totals["refused"] += 1

    def count_attempt(self, prompt: str) -> int:
        """Count a request; returns how many with this prompt came before."""
        with self._lock:
            self._totals["generations"] += 1
            row = self._row(prompt)
            row["attempts"] += 1
            return row["attempts"] - 1

    def bill(self, prompt: str, images: int) -> None:
        with self._lock:
            row = self._row(prompt)
            row["billed"] += 1
            row["images"] += images
            self._totals["billed"] += 1
            self._totals["images"] += images

    def count_fetch(self, target: bytes, *, served: bool) -> int:
        """Count a fetch; returns how often this URL was fetched before."""
        key = hashlib.sha256(target).digest()
        with self._lock:
            self._totals["links_served" if served else "links_refused"] += 1
            before = self._fetches.pop(key, 0)
            self._fetches[key] = before + 1
            if len(self._fetches) > REMEMBERED:
                self._fetches.popitem(last=False)
            return before

    def billed(self) -> dict[str, int]:
        with self._lock:
            return {prompt: row["billed"] for prompt, row in self._prompts.items() if row["billed"]}

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {**self._totals, "prompts": {prompt: dict(row) for prompt, row in self._prompts.items()}}

    def _row(self, prompt: str) -> dict[str, int]:
        row = self._prompts.setdefault(prompt, {"attempts": 0, "billed": 0, "images": 0})
        self._prompts.move_to_end(prompt)
        if len(self._prompts) > REMEMBERED:
            self._prompts.popitem(last=False)
        return row
