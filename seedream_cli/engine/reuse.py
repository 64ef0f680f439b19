"""The files of an earlier request that was the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ..ledger.ledger import Ledger
from ..ledger.records import Entry, ImageRow
from ..results import SavedImage
from .plan import Job, Plan
from .work import Reuse


def reuse(plan: Plan, ledger: Ledger) -> Plan:
    """The plan with every request that was made before, and whose files are on disk, handed those files instead.

    Several requests that are the same now are handed what several earlier ones made, and are sent where there are too
    few. Nothing is entered for what is handed out.
    """
    used: set[str] = set()

    def reused(job: Job) -> Job:
        found = _earlier(job, ledger) if job.download else ()
        entry = next((one for one in found if one.id not in used and _is_whole(one)), None)
        if entry is None:
            return job
        used.add(entry.id)
        return replace(job, id=entry.id, work=Reuse(tuple(map(_saved_image, entry.images))), in_ledger=False)

    drafted = tuple(replace(one, jobs=tuple(map(reused, one.jobs))) for one in plan.drafted)
    return replace(plan, drafted=drafted)


def earlier_notices(plan: Plan, ledger: Ledger) -> list[str]:
    """That nothing is reused, where a request was made before and its files are on disk; a line a request."""
    found = {}
    for job in plan.jobs:
        if job.download and job.request.fingerprint not in found:
            earlier = next((one for one in _earlier(job, ledger, limit=5) if _has_files(one)), None)
            if earlier is not None:
                found[job.request.fingerprint] = (
                    f"the same request made {earlier.images[0].path} before ({earlier.id}); nothing is reused, a new "
                    "one is sent and paid for (--reuse returns the old files)"
                )
    return list(found.values())


def _earlier(job: Job, ledger: Ledger, *, limit: int = 100) -> list[Entry]:
    """Earlier requests that were the same: to the same provider at the same address."""
    spec = job.route.spec
    found = ledger.reusable(job.request.fingerprint, limit=limit)
    return [one for one in found if (one.provider, one.base_url) == (spec.name, job.route.base_url)]


def _has_files(entry: Entry) -> bool:
    return all(row.path is not None and row.path.is_file() for row in entry.images)


def _is_whole(entry: Entry) -> bool:
    """Whether every file of a request is there, byte for byte as it was saved."""
    return _has_files(entry) and all(
        row.path is not None and hashlib.sha256(row.path.read_bytes()).hexdigest() == row.sha256 for row in entry.images
    )


def _saved_image(row: ImageRow) -> SavedImage:
    return SavedImage(row.index, row.path, row.link, row.format, row.width, row.height, row.bytes, row.sha256)
