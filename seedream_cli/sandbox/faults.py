"""Faults on demand, by marks in the prompt.

A prompt may hold these, after it has passed the checks of a real request:

    [[error:CODE]]     that error code of the service, with its status and envelope, nothing billed
    [[status:502]]     a gateway's HTML page with that status (200, 400 to 599); 502, 504 and 524 stand for a lost
                       response, so they are billed
    [[retry-after:S]]  with one of the two above: the header `Retry-After: S`
    [[moderated]]      refused: the prompt is sensitive
    [[hollow]]         HTTP 200 with an error and no image
    [[drop]]           accepted and billed, then the connection closes without a response (a stream: after one image)
    [[break]]          a stream that ends after one image with an `error` event
    [[slow:S]]         S seconds longer (in a stream: for each image)
    [[fail:K]]         image K of the request, counted from 1, is refused as sensitive; repeatable
    [[fewer:K]]        a set of K images where more were allowed
    [[cut]] [[html]]   the image's download is cut in the middle; is an HTML page
    [[expired]]        the image's URL is two days old

`*N` before the closing brackets limits a fault to the first N requests with that prompt (`[[cut*N]]`, `[[html*N]]`: to
the first N fetches of each URL), so `[[error:ServerOverloaded*2]]` succeeds at the third try.
"""

from __future__ import annotations

import re


class Faults:
    """The faults that a prompt asks for at this attempt."""

    _FORM = re.compile(r"\[\[([a-z-]+)(?::([A-Za-z0-9_.]+))?(?:\*([0-9]{1,6}))?\]\]", re.ASCII)
    # Limited by fetches of the URL, not by attempts.
    _ON_LINKS = frozenset({"cut", "html"})

    def __init__(self, prompt: str, attempt: int) -> None:
        self._due: dict[str, list[str]] = {}
        self._times: dict[str, int] = {}
        for name, value, times in self._FORM.findall(prompt):
            if name in self._ON_LINKS or not times or attempt < int(times):
                self._due.setdefault(name, []).append(value)
                self._times[name] = int(times or 0)

    def has(self, name: str) -> bool:
        return name in self._due

    def text(self, name: str) -> str:
        return self._due.get(name, [""])[0]

    def number(self, name: str) -> float | None:
        return next(iter(self.numbers(name)), None)

    def numbers(self, name: str) -> list[float]:
        given = self._due.get(name, [])
        return [float(value) for value in given if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value)]

    def times(self, name: str) -> int:
        return self._times.get(name, 0)
