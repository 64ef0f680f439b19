"""Names in a ledger from elsewhere: an id or a run that was never written by us is refused, however it is hidden."""

from __future__ import annotations

import datetime as dt
import sqlite3
from pathlib import Path

import pytest

from seedream_cli.errors import FileError
from seedream_cli.ledger.ledger import open_ledger
from seedream_cli.ledger.records import NewRequest


def now() -> dt.datetime:
    """A moment."""
    return dt.datetime(2026, 11, 28, tzinfo=dt.UTC)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A ledger with one request of one run."""
    path = tmp_path / "home" / "ledger.db"
    entry = NewRequest(
        id="261128-ab12cd-1",
        position=0,
        provider="ark",
        base_url="https://h.example",
        model="m",
        prompt="a fox",
        body={"prompt": "a fox"},
        fingerprint="f",
        images_at_most=1,
        worst_micro=40_000,
        currency="USD",
        as_of="2026-11",
        fields={},
        output={},
    )
    with open_ledger(path, now=now) as ledger, ledger.run("261128-ab12cd", "generate") as run:
        ledger.enter(run, [entry])
        run.finish(0)
    return path


def plant(place: Path, column: str, value: object) -> None:
    """Put a value into the one request, past all that the tool would look at."""
    db = sqlite3.connect(place)
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute(f"UPDATE requests SET {column} = ?", (value,))
    db.commit()
    db.close()


ODD = ["", "-rf", "../x", "a/b", "abc\0", "abc\0/../../x", "a b", "é", "a" * 101, "a.b", b"abc"]


@pytest.mark.parametrize("column", ["id", "run", "owner", "listed", "payer"])
@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_odd_name_in_a_shared_ledger_is_refused(place: Path, column: str, value: object) -> None:
    """Also where a NUL hides the rest of it, or it names a run that the ledger has not."""
    plant(place, column, value)
    with pytest.raises(FileError, match="never written by seedream"):
        open_ledger(place, now=now, is_shared=True)


@pytest.mark.parametrize("column", ["id", "run", "listed", "payer"])
@pytest.mark.parametrize("value", ["261128-ffffff-2", "Other_run-1", "0", "z" * 100])
def test_plain_name_in_a_shared_ledger_is_taken(place: Path, column: str, value: str) -> None:
    """Of a run that the ledger does not know, too: its line may have been purged."""
    plant(place, column, value)
    open_ledger(place, now=now, is_shared=True).close()
