"""What is said before and after a payment is what holds: a dry run ends as the run would, prices are never nothing,
refusals name who is asked, and the lines of a batch say what they are.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.command import CANARY, Command, Inside
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, make_image, refusal
from tests.support.raw_server import RESET, answer

pytestmark = pytest.mark.hurried
ENV = {"ARK_API_KEY": CANARY, "OPE_API_KEY": CANARY, "OPENAI_API_KEY": CANARY}


def write_settings(command: Command, text: str) -> None:
    """The user's file."""
    place = command.home / ".config/seedream/config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def lines(out: str) -> list[Any]:
    """Standard output as one JSON object a line."""
    return [json.loads(line) for line in out.splitlines()]


# --- a dry run under a budget ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["generate", "a fox", "-n", "2", "--max-cost", "0.08"], 0),
        (["generate", "a fox", "-n", "3", "--max-cost", "0.08"], 10),
        (["generate", "a fox", "--sequence", "4", "--max-cost", "0.15"], 10),
        (["generate", "-f", "a.txt", "-f", "b.txt", "--max-cost", "0.04"], 10),
        (["edit", "night", "x.png", "--max-cost", "0.01"], 10),
        (["batch", "t.csv", "--max-cost", "0.12"], 0),
        (["batch", "t.csv", "--max-cost", "0.119999"], 10),
        (["batch", "t.csv", "--max-cost", "0.05", "--limit", "1"], 0),
        (["batch", "t.csv", "-n", "2", "--max-cost", "0.2"], 10),
    ],
)
def test_dry_run_ends_as_the_run_would_under_a_budget(forked: Forked, args: list[str], code: int) -> None:
    """The plan is printed all the same, in JSON with the error; the run itself then ends with the same code."""
    (forked.folder / "t.csv").write_text("prompt\nfox\nowl\nelk\n")
    (forked.folder / "a.txt").write_text("a fox")
    (forked.folder / "b.txt").write_text("an owl")
    (forked.folder / "x.png").write_bytes(make_image("PNG", (600, 600)))
    with Upstream() as upstream:
        to = [*args, "-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--concurrency", "1"]
        to = to if args[0] == "batch" else to[:-2]
        done = forked(*to, "--dry-run", env=ENV)
        assert done.code == code
        assert ("error: this may cost up to $" in done.err) is (code == 10)
        shown = forked(*to, "--dry-run", "--json", env=ENV)
        assert shown.code == code
        assert shown.json["status"] == "planned"
        assert (shown.json.get("error") or {}).get("code") == ("budget" if code else None)
        assert not upstream.posts
        assert forked(*to, env=ENV).code == code


def test_dry_run_counts_what_the_batch_and_the_day_have_spent(forked: Forked) -> None:
    """Earlier runs of the folder and of the day leave less: what fitted alone does not fit beside them."""
    (forked.folder / "t.csv").write_text("prompt\nfox\nowl\nelk\n")
    with Upstream() as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        assert forked("batch", "t.csv", *to, "--limit", "1", env=ENV).code == 0
        assert forked("batch", "t.csv", *to, "--max-cost", "0.12", "--dry-run", env=ENV).code == 0
        done = forked("batch", "t.csv", *to, "--max-cost", "0.11", "--dry-run", env=ENV)
        assert (done.code, "$0.04 spent" in done.err) == (10, True)
        write_settings(forked, "[budget]\ndaily = 0.1\n")
        assert forked("generate", "a fox", *to, "--dry-run", env=ENV).code == 0
        done = forked("generate", "a fox", *to, "-n", "2", "--dry-run", env=ENV)
        assert (done.code, "today's budget of $0.10" in done.err) == (10, True)
        assert forked("batch", "t.csv", *to, "--dry-run", env=ENV).code == 10
        assert len(upstream.posts) == 1
        # What shows a request in another way says nothing of money.
        assert forked("generate", "a fox", *to, "-n", "2", "--curl", env=ENV).code == 0
        assert forked("generate", "a fox", *to, "-n", "2", "--explain", env=ENV).code == 0
        # A day's budget of a user who has no ledger yet.
        (forked.home / "state/ledger.db").unlink()
        assert forked("generate", "a fox", *to, "-n", "2", "--dry-run", env=ENV).code == 0


# --- whose price is not known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["generate", "a fox"], ["edit", "night", "x.png"], ["batch", "t.csv"]])
@pytest.mark.parametrize(
    ("provider", "url", "whom"),
    [
        ("ark", "https://gw.example", "gw.example"),
        ("ark", "https://gw.example:8443/api/v3", "gw.example:8443"),
        ("openai", "https://gw.example/v1", "gw.example"),
        ("ope", "", "OPE.AI"),
    ],
)
def test_price_that_is_not_known_is_that_of_whoever_is_asked(
    inside: Inside, args: list[str], provider: str, url: str, whom: str
) -> None:
    """Not the vendor's, where somebody else sends the bill; [prices] is the way out, for --max-cost and the day."""
    (inside.folder / "x.png").write_bytes(make_image("PNG", (600, 600)))
    (inside.folder / "t.csv").write_text("prompt\nfox\n")
    to = [*args, "-p", provider, "-m", "4.5", "--dry-run", *(["--base-url", url] if url else [])]
    done = inside(*to, "--max-cost", "1", env=ENV)
    assert done.code == 2
    assert f"what {whom} takes for 4.5 is not known" in done.err
    assert "[prices]" in done.err
    assert "Volcengine" not in done.err
    write_settings(inside, "[budget]\ndaily = 1\n")
    assert f"what {whom} takes for 4.5 is not known" in inside(*to, env=ENV).err


@pytest.mark.parametrize(
    "args",
    [
        ["-p", "ope", "-m", "5.0-pro"],
        ["-p", "byteplus", "-m", "5.0-lite", "--base-url", "https://ark.eu-west.bytepluses.com/api/v3"],
        ["-p", "openai"],
        ["-p", "ark", "--base-url", "ftp://gw.example"],
    ],
)
def test_price_is_not_asked_of_what_cannot_be_had(inside: Inside, args: list[str]) -> None:
    """A model that is not served there, or no address: one error, and no hint to state a price."""
    (inside.folder / "t.csv").write_text("prompt\nfox\n")
    for verb in (["generate", "a fox"], ["batch", "t.csv"]):
        done = inside(*verb, *args, "--max-cost", "1", "--dry-run", env={**ENV, "BYTEPLUS_API_KEY": CANARY})
        assert done.code == 2
        assert done.err.count("error: ") == 1
        assert "prices" not in done.err


# --- prices that are nearly nothing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0.0000004", "1e-9", "5e-324"])
def test_price_below_what_money_is_counted_in_is_refused(inside: Inside, value: str) -> None:
    """It would be counted as nothing, and a budget would hold nothing; of a reference as of an image, by file too."""
    done = inside("config", "set", "prices.4.5", value)
    assert (done.code, "$0.000001" in done.err) == (2, True)
    for text in (f'"4.5" = {value}', f'"4.5" = {{amount = 0.04, per_reference = {value}}}'):
        write_settings(inside, f"[prices]\n{text}\n")
        done = inside("generate", "a fox", "-p", "ark", "--dry-run", env=ENV)
        assert (done.code, "config.toml:2" in done.err, "$0.000001" in done.err) == (3, True, True)
    write_settings(inside, '[prices]\n"4.5" = 0\n')
    assert inside("generate", "a fox", "-p", "ark", "-m", "4.5", "--dry-run", env=ENV).code == 0


def test_price_of_a_crumb_is_held_and_shown(forked: Forked) -> None:
    """A millionth of a dollar is no nothing: a budget for two draws two, of a run, a run without a ledger, a batch."""
    (forked.folder / "t.csv").write_text("prompt\nfox\nowl\nelk\n")
    write_settings(forked, '[prices]\n"4.5" = 0.0000014\n')
    with Upstream() as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--max-cost", "0.000005"]
        assert "$0.000003" in forked("generate", "a fox", *to, "-n", "2", "--dry-run", env=ENV).err
        for more in ([], ["--no-ledger"]):
            before = len(upstream.posts)
            assert forked("generate", "a fox", *to, "-n", "4", *more, env=ENV).code == 10
            assert len(upstream.posts) - before == 2, "two millionths each, since no price is rounded down"
        before = len(upstream.posts)
        assert forked("batch", "t.csv", *to, env=ENV).code == 10
        assert len(upstream.posts) - before == 2


# --- what no ledger knows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("reply", [RESET, answer(b'{"data":[{"url":""}]}'), answer(b"<html>", status=502)])
def test_unknown_outcome_without_a_ledger_is_not_to_be_resolved(forked: Forked, count: str, reply: Any) -> None:
    """`history resolve` would know nothing of it: neither after the run, nor when `recover` looks at what is kept."""
    with Upstream(script=lambda request, number: reply) as upstream:
        to = ["generate", "a fox", "-n", count, "-p", "ark", "--base-url", upstream.url]
        for args in ([*to, "--no-ledger"], ["recover", "--no-ledger"], ["recover"]):
            done = forked(*args, env=ENV)
            assert "--paid" not in done.err
            assert ("nothing is to resolve" in done.err) is (done.code == 7)
        assert "seedream history resolve" in forked(*to, env=ENV).err


# --- the lines of a batch -------------------------------------------------------------------------------------------


def test_batch_json_says_of_every_line_what_it_is(forked: Forked) -> None:
    """Plan, rows with one request or several, refused or saved, the summary; and what ended it before any row."""
    (forked.folder / "t.csv").write_text("id,prompt,count\na,fox,1\nb,owl,2\nc,elk,1\n")

    def script(request: Any, number: int) -> Any:
        return refusal(400, "InvalidParameter") if b'"elk"' in request.body else None

    with Upstream(script=script) as upstream:
        to = ["batch", "t.csv", "-p", "ark", "--base-url", upstream.url, "--json"]
        assert [line["type"] for line in lines(forked(*to, "--dry-run", env=ENV).out)] == ["plan"]
        done = forked(*to, env=ENV)
        shown = lines(done.out)
        assert [line["type"] for line in shown] == ["row", "row", "row", "summary"]
        assert all(list(line)[:2] == ["schema", "type"] for line in shown)
        assert {(line["row"], line["line"], line["row_id"]) for line in shown[:-1]} == {
            (1, 2, "a"),
            (2, 3, "b"),
            (3, 4, "c"),
        }
        [two] = [line for line in shown[:-1] if line["row"] == 2]
        assert len(two["images"]) == len(two["requests"]) == 2
        assert all("type" not in one for one in two["requests"])
    failed = lines(forked("batch", "none.csv", "--json", env=ENV).out)
    assert [(line["type"], line["error"]["code"]) for line in failed] == [("error", "validation")]
    alone = forked("generate", "a fox", "-p", "sandbox", "--json")
    assert "type" not in alone.json
