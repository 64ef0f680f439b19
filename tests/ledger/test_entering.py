"""Rows on their way into the ledger, and what they are due: the quick ways say what the plain ones would."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seedream_cli import providers
from seedream_cli.batch.columns import plan_columns
from seedream_cli.batch.options import STEP, BatchOptions
from seedream_cli.batch.row_requests import RowRequests, find_pattern
from seedream_cli.batch.run import _ORDER, Batch, Preview, _code
from seedream_cli.batch.stale import explain_stale
from seedream_cli.batch.table import open_table
from seedream_cli.config.environment import read_environ
from seedream_cli.errors import InputError, InternalError
from seedream_cli.ledger.entering import JsonTemplate, NewRow, RequestTemplate
from seedream_cli.ledger.ledger import Ledger, open_ledger
from seedream_cli.ledger.records import Forecast, NewRequest
from seedream_cli.request.image_request import OptionValues
from tests.support.command import CANARY

NOON = dt.datetime(2026, 11, 25, 12, tzinfo=dt.UTC)


def ledger_at(path: Path, *secrets: str) -> Ledger:
    return open_ledger(path, now=lambda: NOON, secrets=secrets)


@pytest.fixture
def row_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the sheet of a table's text, with these options for every row; the tables are closed at the end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    opened = []

    def make(
        text: str, name: str = "shots.csv", *, order: Mapping[str, Any] | None = None, **values: str
    ) -> RowRequests:
        (tmp_path / name).write_text(text)
        table = open_table(str(tmp_path / name))
        opened.append(table)
        base = OptionValues({"provider": "ark", **values})
        columns, problems = plan_columns(table.headings)
        assert not [p for p in problems if p.severity == "error"]
        place = BatchOptions(tmp_path / "out", tmp_path / "out" / "results.csv", **(order or {}))
        made = RowRequests(table, columns, base, place, read_environ(), sends=False)
        assert not made.check().errors
        return made

    yield make
    for table in opened:
        table.close()


# --- bodies -----------------------------------------------------------------------------------------------------------

TABLE = """id,prompt,seed,size,n,name,aspect,extra,image
a,"a ""red"" fox, 100 % {wild}",7,2K,1,,,,
b,"two
lines",,2K,2,{id}-{aspect}-{index},,,
,a monkey with a key,+07,4K,1,plain/{row},,,
,狐狸 🦊,,2K,3,,16:9,"{""user"": ""x %s"", ""api_key"": ""hidden""}",https://x.example/a.png
é,data:,-1,4K,1,,,,
"""


@pytest.mark.parametrize("provider", [name for name in providers.PROVIDERS if name != "openai"])
@pytest.mark.parametrize("is_verbatim", [True, False])
def test_what_is_entered_is_what_the_dialect_would_send(
    row_requests: Any, provider: str, is_verbatim: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether bodies are made once for a shape or once for a row, the ledger holds what each row's own request is."""
    made = row_requests(TABLE, provider=provider, model="4.5")
    if not is_verbatim:
        monkeypatch.setattr("seedream_cli.batch.row_requests.find_pattern", lambda job: None)
        made = row_requests(TABLE, provider=provider, model="4.5")
    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        batch = Batch(made, ledger, run)
        batch.enter()
        entries = list(ledger.listed(run))
    assert len(entries) == 8
    found = iter(entries)
    for judged in made.judged():
        shape, row = judged.value, judged.row
        request = made.request(judged, shape)
        body = json.loads(json.dumps(shape.job.route.dialect.submit(request).json, default=lambda ref: ref.location))
        if "api_key" in body:
            body["api_key"] = "***"
        for number in range(shape.times):
            entry = next(found)
            assert (entry.prompt, entry.body) == (request.prompt, body)
            assert list(entry.body) == list(body)
            assert (entry.row_id, entry.line, entry.occurrence) == (row.id, row.line, number)
            assert entry.output == {
                "template": made.template(row),
                "first": number * shape.most + 1,
                "of": shape.times * shape.most,
            }
            assert {"row": str(row.number), "size": request.size}.items() <= entry.fields.items()
            assert entry.fields.get("id", "") == row.id
            assert (entry.identity, entry.fingerprint) == (entry.fingerprint, entry.identity)
            assert ("aspect" in entry.fields) == ("{aspect}" in made.template(row))


def test_a_dialect_that_changes_prompts_makes_every_body_itself(row_requests: Any) -> None:
    """A prompt in upper case, cut, trimmed, sent twice or within another text is found out before it is relied upon."""
    (judged,) = row_requests("prompt,seed\na fox,7\n").judged()
    job = judged.value.job
    true = job.route.dialect.submit

    def changing(**changes: Any) -> Any:
        def submit(request: Any) -> Any:
            call = true(request)
            body = {key: changes[key](value) if key in changes else value for key, value in call.json.items()}
            return SimpleNamespace(json={**body, **{key: made(body) for key, made in changes.items() if key == "more"}})

        dialect = SimpleNamespace(spec=job.route.spec, submit=submit)
        return SimpleNamespace(request=job.request, route=SimpleNamespace(dialect=dialect))

    assert find_pattern(job).own == ("prompt", "seed")
    assert find_pattern(changing()).own == ("prompt", "seed")
    assert find_pattern(changing(prompt=lambda _: "one for all")).own == ("seed",)
    for wrong in (
        {"prompt": str.upper},
        {"prompt": str.strip},
        {"prompt": lambda text: text[:4000]},
        {"prompt": lambda text: [text]},
        {"prompt": lambda text: text.replace("\n", " ")},
        {"seed": lambda number: number or None},
        {"seed": str},
        {"more": lambda body: len(body["prompt"])},
    ):
        assert find_pattern(changing(**wrong)) is None, wrong


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(max_size=9) | st.sampled_from(["prompt", "a %s", "api_key", "token"]), JSON, max_size=5),
    st.text(max_size=20) | st.sampled_from(["a monkey", "100 %", "data:" + "x" * 2000, "\ud800", f"my {CANARY}", "%s"]),
    st.integers(-1, 2**31),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_row_is_stored_as_a_request_of_its_own_is(
    tmp_path_factory: pytest.TempPathFactory, common: dict[str, Any], prompt: str, seed: int
) -> None:
    """With or without secrets to hide, whatever its prompt and body, a row of a mould is the request it stands for."""
    body = {**common, "prompt": prompt, "seed": seed}
    output = {"template": prompt, "first": 1, "of": 2}
    shared: dict[str, Any] = {
        "provider": "ark",
        "base_url": f"https://me:{CANARY}@x.example",
        "model": f"m {CANARY}",
        "images_at_most": 2,
        "worst_micro": 5,
        "currency": "USD",
        "as_of": "2026",
        "file": f"{CANARY}.csv",
    }
    request_template = RequestTemplate(
        body=JsonTemplate(body, ("seed", "prompt")),
        fields=JsonTemplate({"row": "", "id": ""}, ("row", "id")),
        output=JsonTemplate(output, ("template", "first")),
        **shared,
    )
    own = [{"prompt": prompt, "seed": seed}[key] for key in request_template.body.own]
    row = NewRow(request_template, "r-1", 1000, 2, "i", 0, prompt, prompt, own, ("1", prompt), (prompt, 1))
    request = NewRequest(
        id="r-1",
        position=1000,
        prompt=prompt,
        body=body,
        fingerprint="i",
        identity="i",
        row_id=prompt,
        line=2,
        fields={"row": "1", "id": prompt},
        output=output,
        **shared,
    )
    folder = tmp_path_factory.mktemp("l")
    for secrets in ((), (CANARY,)):
        rows = []
        for way in ("enter", "enter_rows"):
            with ledger_at(folder / f"{way}{len(secrets)}.db", *secrets) as ledger, ledger.run("r", "batch") as run:
                getattr(ledger, way)(run, [request if way == "enter" else row])
                rows.append(tuple(ledger._database.connection.execute("SELECT * FROM requests").fetchone()))
        assert rows[0] == rows[1]


def test_what_names_a_secret_is_never_a_row_s_own() -> None:
    """Its value is masked, which a pattern could not do."""
    with pytest.raises(InternalError):
        JsonTemplate({"api_key": ""}, ("api_key",))


def test_a_table_that_breaks_off_leaves_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises while rows are drawn, a changed table say, is passed on, and what it had begun is not written."""
    monkeypatch.setattr("seedream_cli.ledger.entering.ROWS_PER_TRANSACTION", 10)

    def requests() -> Iterator[NewRequest]:
        for number in range(25):
            if number == 24:
                raise InputError([])
            yield NewRequest(
                id=f"r-{number}",
                position=number,
                provider="ark",
                base_url="https://x",
                model="m",
                prompt="p",
                body={},
                fingerprint="f",
                identity=str(number),
            )

    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        with pytest.raises(InputError):
            ledger.enter(run, requests())
        assert len(list(ledger.listed(run))) == 20
        assert ledger._database.connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_a_row_needs_a_run_that_the_ledger_knows(tmp_path: Path) -> None:
    """Rows are entered without asking for each of them, so it is asked once."""
    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        run.id = "nobody"
        with pytest.raises(InternalError):
            ledger.enter_rows(run, [])
        run.id = "r"
        assert ledger._database.connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


# --- identities -------------------------------------------------------------------------------------------------------


def test_rows_of_earlier_versions_are_known_again(row_requests: Any, tmp_path: Path) -> None:
    """What a row is known by holds for ever: another value would pay for every row of every ledger again."""
    text = "prompt,id,seed,size,n\na fox,,,2K,1\na fox,,,2K,1\na fox,a,,2K,1\na fox,,7,2K,1\n狐狸,,,4K,2\n"
    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        Batch(row_requests(text, model="4.5"), ledger, run).enter()
        assert [(entry.identity, entry.occurrence) for entry in ledger.listed(run)] == IDENTITIES


IDENTITIES = [
    ("94f5a147d5941cb83c2c71f18735265f", 0),
    ("59da44517603ac4181e55c7326d1f855", 0),
    ("8434a196aebdc8b07776e274bcaa61ee", 0),
    ("7d0f4baf8244bb2300dd6215a7e4e83e", 0),
    ("04416b2ac4ad2e8af7cac897508bc661", 0),
    ("04416b2ac4ad2e8af7cac897508bc661", 1),
]
"""As version 0.1.0 wrote them down."""


# --- surveys ----------------------------------------------------------------------------------------------------------


def plain_survey(batch: Batch) -> Preview:
    """What a survey is, row by row from whole entries."""
    preview, limit = Preview(), batch.order.limit
    for _, group in itertools.groupby(batch.ledger.listed(batch.run), key=lambda entry: entry.position // STEP):
        requests = [(batch.action(entry), entry) for entry in group]
        actions = {action for action, _ in requests}
        preview.rows += 1
        if actions & {"send", "again"} and limit and preview.due["send"] + preview.due["again"] >= limit:
            preview.due["left"] += 1
            continue
        preview.due[next(action for action in _ORDER if action in actions)] += 1
        for action, entry in requests:
            if action == "fetch":
                preview.fetched += 1
            elif action in {"send", "again"}:
                micro = entry.worst_micro
                preview.forecast += Forecast(1, entry.images_at_most, micro or 0, int(micro is None))
            elif action in {"failed", "unknown", "missing"}:
                preview.codes.add(_code(entry, action))
    preview.seconds = batch._guess_seconds(preview)
    return preview


FATES = ("queued", "queued", "saved", "saved", "gone", "lost", "handed", "partial", "none", "failed", "billed")
FATES += ("unknown", "ready", "resolved", "expired", "waiting")


def meet(ledger: Ledger, name: str, fate: str, folder: Path) -> None:
    """Let a request have met its fate."""
    state = {"gone": "saved", "lost": "saved", "handed": "saved", "partial": "saved", "none": "saved"}.get(fate, fate)
    state = {"billed": "failed", "expired": "saved"}.get(state, state)
    error = json.dumps({"code": "moderation", "message": "no"}) if state == "failed" else None
    billed = {"queued": "no", "failed": "yes" if fate == "billed" else "no", "unknown": "unknown"}.get(state, "yes")
    sql = "UPDATE requests SET state = ?, owner = NULL, billed = ?, error = ? WHERE id = ?"
    ledger._database.connection.execute(sql, (state, billed, error, name))
    if state != "saved" or fate == "none":
        return
    states = {"handed": ["handed", "saved"], "partial": ["saved", "failed"], "expired": ["saved", "expired"]}
    for number, image in enumerate(states.get(fate, ["saved", "saved"])):
        path = f"{name}-{number}.png"
        if fate not in {"gone", "lost"} or number == 0:
            (folder / path).write_bytes(b"x")
        expires = 1 if fate == "lost" else None
        ledger._database.connection.execute(
            "INSERT INTO images VALUES (?, ?, ?, 'https://x/1', ?, ?, 'png', 1, 1, 1, '', ?)",
            (name, number, image, expires, path if image == "saved" else None, error),
        )


def tangle(ledger: Ledger, run: Any, folder: Path, dice: random.Random, rows: int) -> None:
    """Rows of one to three requests, each with a fate of its own."""

    def requests() -> Iterator[NewRequest]:
        for row in range(rows):
            for nth in range(dice.choice((1, 1, 1, 2, 3))):
                yield NewRequest(
                    id=f"{row}-{nth}",
                    position=row * STEP + nth,
                    provider="ark",
                    base_url="https://x",
                    model="m",
                    prompt="p",
                    body={},
                    fingerprint="f",
                    images_at_most=dice.choice((1, 4)),
                    worst_micro=dice.choice((None, 40_000)),
                    identity=hashlib.md5(str(row).encode()).hexdigest(),
                    occurrence=nth,
                )

    ledger.enter(run, requests())
    fates = FATES if dice.random() < 0.8 else ("queued",)
    for entry in list(ledger.listed(run)):
        meet(ledger, entry.id, dice.choice(fates), folder)


@pytest.mark.parametrize("seed", range(12))
def test_a_survey_counts_what_every_single_row_says(seed: int, tmp_path: Path) -> None:
    """Whatever became of the requests, with any limit and any choice of rows."""
    dice, home = random.Random(seed), tmp_path / "out"
    home.mkdir()
    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        tangle(ledger, run, home, dice, rows=dice.choice((3, 40, 450)))
        for only, limit in itertools.product((None, "failed", "unknown", "missing"), (None, 1, 7, 100, 1000)):
            order = BatchOptions(home, home / "results.csv", only=only, limit=limit)  # type: ignore[arg-type]
            row_requests: Any = SimpleNamespace(order=order, routes={})
            batch = Batch(row_requests, ledger, run, now=lambda: 1000.0)
            assert batch.preview() == plain_survey(batch), (only, limit)
            runs = {"send", "again", "fetch"}
            doubtful = [entry for entry in batch.doubtful() if batch.action(entry) in runs]
            assert doubtful == [entry for entry in ledger.listed(run) if batch.action(entry) in runs]


def test_stale_rows_are_told_in_the_order_of_the_table(row_requests: Any, tmp_path: Path) -> None:
    """New, failed and vanished ones; those that are done are not spoken of."""
    made = row_requests("prompt\na\nb\nc\nd\ne\n")
    home = tmp_path / "out"
    home.mkdir()
    with ledger_at(tmp_path / "ledger.db") as ledger, ledger.run("r", "batch") as run:
        batch = Batch(made, ledger, run)
        batch.enter()
        fates = dict(
            zip((entry.id for entry in ledger.listed(run)), ("saved", "gone", "queued", "failed"), strict=False)
        )
        for name, fate in fates.items():
            meet(ledger, name, fate, home)
        told = [(row.number, why.partition(":")[0]) for row, why in explain_stale(batch)]
        assert told == [(2, "its file is gone"), (3, "new"), (4, "failed before"), (5, "new")]
