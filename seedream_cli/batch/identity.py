"""What a row is known by in the ledger: its request, its id, and which of several equal rows it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


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
    """Gives the rows of one pass their keys, and numbers those that are equal: two equal rows are two images."""

    def __init__(self) -> None:
        # By the first half of a key: 8 MiB for 100,000 rows.
        self._times = dict[int, int]()

    def key_of(self, name: str, parts: Sequence[str]) -> str:
        """The key of a row with this id, or none; `parts` as for `row_key`. A row with an id is no other's equal."""
        if name:
            return row_key(parts, name)
        first = row_key(parts)
        digest = int(first[:16], 16)
        times = self._times[digest] = self._times.get(digest, 0) + 1
        return first if times == 1 else row_key(parts, "", times)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
