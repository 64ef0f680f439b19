"""What a row is known by in the ledger: its request, its id, and which of several equal rows it is."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from .table import Row


def row_key(parts: Sequence[str], row_id: str = "", occurrence: int = 1) -> str:
    """What a row is known by: 32 hexadecimal digits of all that it asks for, its id, and which of equals it is.

    `parts` say what is asked for: the fingerprint of the shape's request, the prompt, the seed. Where the row stands
    has no part in it.
    """
    # No text that came through a table, a flag or a prompt file holds a NUL, so it can part them.
    texts = "\0".join((*parts, row_id, str(occurrence)))
    # A copy costs half of what it takes to begin anew.
    key = _NO_KEY.copy()
    key.update(_bytes(texts))
    return key.hexdigest()


_NO_KEY = hashlib.blake2b(digest_size=16)


def shard_of(key: str, count: int) -> int:
    """Which of `count` shards, from 0, a row belongs to, by its key alone."""
    return int(key, 16) % count


class Identities:
    """Gives the rows of one pass their keys, and numbers those that are equal: two equal rows are two pictures."""

    def __init__(self) -> None:
        self._times = _Numbers()

    def key(self, row: Row, parts: Sequence[str]) -> str:
        """The row's key; `parts` as for `row_key`. A row with an id is no other's equal."""
        return self.key_of(row.id, parts)

    def key_of(self, name: str, parts: Sequence[str]) -> str:
        """The key of a row with this id, or with none."""
        if name:
            return row_key(parts, name)
        first = row_key(parts)
        times = self._times.add(int(first[:16], 16))
        return first if times == 1 else row_key(parts, "", times)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Numbers:
    """A small number for each 64-bit digest. A dict of 100,000 would take 15 MiB, this takes less than 2.

    Digests lie in the first free place behind the one that their last bits name.
    """

    def __init__(self) -> None:
        self._make_room(1024)

    def _make_room(self, places: int) -> None:
        self._digests = array("Q", bytes(8 * places))
        self._numbers = array("I", bytes(array("I").itemsize * places))
        self._free = places * 4 // 5
        self._last = places - 1

    def _find(self, digest: int) -> int:
        """The place of a digest, or the free one that is its."""
        digests, last = self._digests, self._last
        at = digest & last
        while (there := digests[at]) and there != digest:
            at = (at + 1) & last
        return at

    def _take(self, at: int, digest: int, number: int) -> int:
        """Put a new digest into its place; its number."""
        if not self._free:
            self._grow()
            at = self._find(digest)
        self._free -= 1
        self._digests[at], self._numbers[at] = digest, number
        return number

    def _grow(self) -> None:
        digests, numbers = self._digests, self._numbers
        # Four times the room saves work, twice saves memory.
        self._make_room(len(digests) * (4 if len(digests) < 1 << 16 else 2))
        for digest, number in zip(digests, numbers, strict=True):
            if digest:
                self._take(self._find(digest), digest, number)

    def add(self, digest: int) -> int:
        """Count the digest once more; how often it has been counted."""
        # Zero marks a free place.
        at = self._find(digest := digest or 1)
        if not self._digests[at]:
            return self._take(at, digest, 1)
        self._numbers[at] += 1
        return self._numbers[at]

    def keep(self, digest: int, number: int) -> int:
        """The number that was kept for the digest first."""
        at = self._find(digest := digest or 1)
        return self._numbers[at] if self._digests[at] else self._take(at, digest, number)


_ALL_BITS = 2**64 - 1
