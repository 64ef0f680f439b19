"""Shows stored responses: their path, and the URLs and base64 images in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.credentials import known_keys
from ..engine.stored_reply import POLLED
from ..output.json_output import JsonObject
from ..redaction import secret_forms
from ..storage import filesystem, reply_file, reply_findings

if TYPE_CHECKING:
    from ..config.environment import Environment
    from ..ledger.records import Entry
    from ..output.console import Console


_FINDINGS_MOST = 20
"""Most findings that are printed beside an error."""


@dataclass(frozen=True, slots=True)
class StoredReplies:
    """The stored responses of a request, newest first, and the encodings of keys to mask in them."""

    paths: tuple[Path, ...] = ()
    forms: tuple[str, ...] = ()
    is_plain: bool = False
    """Whether the ledger has all of its images."""

    def lines(self, entry: Entry) -> list[str]:
        """Their paths, and the commands to go on with."""
        if not self.paths:
            return []
        lines = [f"reply: {path} ({path.stat().st_size} bytes)" for path in self.paths]
        if entry.status == "unknown" or entry.doubts:
            look = f"seedream history show {entry.id} --links prints the links and images that are in it"
            settle = f"seedream history resolve {entry.id} --paid or --unpaid settles it"
            return [*lines, f"way on: {look}; seedream recover {entry.id} reads it again; {settle}"]
        return [*lines, f"way on: seedream recover {entry.id} saves what is in it"]

    def print_found(self, entry: Entry, console: Console) -> None:
        """Print the request's URLs and what its responses contain to standard output, notes to standard error."""
        known = list(dict.fromkeys(image.link for image in entry.images if image.link))
        for link in known:
            console.out(link)
        for path in () if self.is_plain else self.paths:
            found = reply_findings.Findings(path, self.forms)
            for one in found:
                if one.link not in known:
                    console.out(one.line)
            for note in found.notes:
                console.err(f"note: {path}: {note}")

    def as_object(self, *, links: bool) -> JsonObject:
        """The same as a JSON object; {} where no response is stored."""
        if not self.paths:
            return {}
        shown: JsonObject = {"path": str(self.paths[0]), "bytes": self.paths[0].stat().st_size}
        if links:
            found = [one for path in self.paths for one in reply_findings.Findings(path, self.forms)]
            shown["links"] = list(dict.fromkeys(one.link for one in found if one.link))
            shown["encoded"] = [
                {"coding": one.coding, "bytes": one.bytes, "format": one.format or None}
                for one in found
                if not one.link
            ]
        return {"reply": shown}


def stored_replies_of(entry: Entry, replies: Path, environment: Environment) -> StoredReplies:
    """The stored responses of a request in a folder."""
    names = [f"{entry.id}.reply", f"{entry.id}{POLLED}.reply"]
    kept = [path for name in names if filesystem.is_own_folder(replies) and filesystem.is_plain(path := replies / name)]
    asides = [*reply_file.list_asides(replies, entry.id), *reply_file.list_asides(replies, entry.id + POLLED)]
    paths = (*kept, *reversed(asides))
    has_links = bool(entry.images) and all(one.link or one.state == "failed" for one in entry.images)
    is_plain = has_links and entry.status != "unknown" and not entry.doubts
    return StoredReplies(paths, key_forms(environment) if paths else (), is_plain)


def key_forms(environment: Environment) -> tuple[str, ...]:
    """The encodings of all known keys."""
    return tuple(form for key in known_keys(environment) for form in secret_forms(key))


def found_lines(name: str, path: Path, forms: tuple[str, ...]) -> Iterator[str]:
    """What an unreadable response contains, as lines for standard error."""
    found, is_first = reply_findings.Findings(path, forms, _FINDINGS_MOST), True
    for one in found:
        if is_first:
            yield f"note: {name}: this is in its reply, and none of it is plainly the image:"
        is_first = False
        yield f"  {one.line}"
    for note in found.notes:
        yield f"note: {name}: {note}; all of it lies in {path}"
