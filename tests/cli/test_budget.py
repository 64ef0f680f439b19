"""Budgets: what a request can cost is read from the body that leaves, and no budget promises more than is known."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from typing import Any

import pytest

from tests.support.command import CANARY, Command, Inside
from tests.support.fork_server import Forked
from tests.support.provider_server import Upstream, make_image, refusal
from tests.support.raw_server import RESET, answer

pytestmark = pytest.mark.hurried
KEYS = dict.fromkeys(("ARK_API_KEY", "OPE_API_KEY", "OPENAI_API_KEY", "COMETAPI_KEY", "ACEDATACLOUD_API_TOKEN"), CANARY)
ENV = {**KEYS, "BYTEPLUS_API_KEY": CANARY}
LIST = "list price; this provider's may differ"


def write_settings(command: Command, text: str) -> None:
    """The user's file."""
    place = command.home / ".config/seedream/config.toml"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def dry(command: Command, *args: str, provider: str = "ark", code: int = 0, verb: str = "generate") -> Any:
    """A dry run as JSON."""
    done = command(verb, *args, "-p", provider, "--dry-run", "--json", env=ENV)
    assert done.code == code, done.err
    return done.json


# --- the body that leaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "option"),
    [
        ("n=10", "-n/--count"),
        ("N=10", "-n/--count"),
        ("num_images=4", "-n/--count"),
        ("numOutputs=4", "-n/--count"),
        ("batch-size=4", "-n/--count"),
        ("maximages=4", "--sequence"),
        ('model="doubao-seedream-5-0-pro-260628"', "--model"),
        ('Size="4K"', "--size"),
        ("width=4096", "--size"),
        ('quality="hd"', "--size"),
        ('aspect_ratio="1:1"', "--aspect"),
        ('sequential_image_generation="auto"', "--sequence"),
        ('sequential_image_generation_options={"max_images":15}', "--sequence"),
        ("sequential_image_generation_options.max_images=15", "--sequence"),
        ("layer_decomposition=true", "--layers"),
        ('layers={"max":100}', "--layers"),
        ('image="https://h.example/x.png"', "--image"),
        ('image_urls=["https://h.example/x.png"]', "--image"),
        ('input={"n":10}', "-n/--count"),
        ('extra_body=[{"a":{"numImages":10}}]', "-n/--count"),
        ('optimize_prompt_options={"mode":"standard","n":3}', "-n/--count"),
        ("stream=true", "--stream"),
        ('prompt="two foxes"', "the prompt itself"),
        ('response_format="b64_json"', "--response-format"),
        ('tools=[{"type":"web_search"}]', "--web-search"),
    ],
)
def test_extra_that_bears_on_money_or_reading_is_refused_with_its_option(
    inside: Inside, pair: str, option: str
) -> None:
    """However it is spelled and however deep it lies, before anything is sent; no dry run promises it either."""
    # Quality has no effect at OPE, says its page, and so no bearing either.
    provider = "cometapi" if pair.startswith("quality") else "ope"
    env = {**ENV, "COMETAPI_KEY": CANARY}
    done = inside("generate", "a fox", "-p", provider, "--extra", pair, "--dry-run", env=env)
    assert done.code == 2
    assert "--extra" in done.err
    assert option in done.err


def test_extra_is_refused_from_every_place_at_once_with_file_and_line(forked: Forked) -> None:
    """Columns of a table, objects of a JSONL row, the settings and a prompt's header are the same option."""
    folder = forked.folder
    (folder / "t.csv").write_text('prompt,extra.n,extra,model\nfox,10,,\nowl,,"size=""4K""",\nelk,,,4.5\n')
    with Upstream() as upstream:
        to = ["-p", "ope", "--base-url", upstream.url, "--max-cost", "0.05"]
        done = forked("batch", "t.csv", *to, env=ENV)
        assert done.code == 2
        assert "t.csv:2" in done.err
        assert "t.csv:3" in done.err
        rows = [{"prompt": "fox", "extra": {"Model": "x", "deep": {"max_images": 9}}}, {"prompt": "owl", "extra.N": 4}]
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
        done = forked("batch", "t.jsonl", *to, env=ENV)
        assert done.code == 2
        assert all(word in done.err for word in ("t.jsonl:1", "t.jsonl:2", "Model", "deep.max_images"))
        (folder / "p.txt").write_text("+++\nextra = {num_images = 4}\n+++\na fox\n")
        done = forked("generate", "-f", "p.txt", *to, env=ENV)
        assert done.code == 2
        assert "p.txt:2" in done.err
        write_settings(forked, "extra = {n = 3}\n")
        done = forked("generate", "a fox", *to, env=ENV)
        assert done.code == 2
        assert "config.toml:1" in done.err
        assert not upstream.posts


def test_extra_of_a_field_nobody_knows_makes_the_cost_unknown(forked: Forked) -> None:
    """It is sent where no budget is set, with a null cost and a word; a budget of the run or the day refuses it."""
    with Upstream() as upstream:
        to = ["a fox", "-p", "ark", "--base-url", upstream.url, "--extra", "draw_more=3"]
        plan = forked("generate", *to, "--dry-run", "--json", env=ENV)
        assert plan.json["cost"] is None
        assert "extra_unknown" in {warning["code"] for warning in plan.json["warnings"]}
        assert "cost: unknown" in forked("generate", *to, "--dry-run", env=ENV).err
        for more in (["--max-cost", "1"], ["--max-cost", "1", "--force"]):
            done = forked("generate", *to, *more, env=ENV)
            assert done.code == 2
            assert "draw_more" in done.err
        assert forked("generate", *to, env={**ENV, "SEEDREAM_MAX_COST": "1"}).code == 2
        assert not upstream.posts
        assert forked("generate", *to, env=ENV).code == 0
        assert upstream.bodies[0]["draw_more"] == 3
        write_settings(forked, "[budget]\ndaily = 1\n")
        done = forked("generate", *to, env=ENV)
        assert done.code == 2
        assert "[budget] daily" in done.err
        (forked.folder / "t.csv").write_text("prompt,extra.draw_more\nfox,\nowl,3\n")
        assert forked("batch", "t.csv", *to[1:5], env=ENV).code == 2
        assert len(upstream.posts) == 1


def test_extra_of_known_fields_is_merged_and_leaves_the_price(inside: Inside) -> None:
    """What changes neither the money nor the reading of the answer is sent as given, under a budget too."""
    pairs = (
        'user="me"',
        "seed=7",
        "watermark=true",
        'optimize_prompt_options={"mode":"standard","thinking":"disabled"}',
    )
    plan = dry(inside, "a fox", "--max-cost", "1", *(word for pair in pairs for word in ("--extra", pair)))
    assert plan["request"]["user"] == "me"
    assert plan["request"]["optimize_prompt_options"]["thinking"] == "disabled"
    assert plan["cost"]["amount"] == pytest.approx(0.035)


@pytest.mark.parametrize(
    ("extra", "images", "amount"),
    [
        (["n=10"], 10, 0.35),
        (['model="doubao-seedream-5-0-pro-260628"'], 1, 0.09),
        (['sequential_image_generation="auto"'], 15, 15 * 0.035),
        (['sequential_image_generation_options={"max_images":4}', "n=2"], 8, 8 * 0.035),
        (["N=10"], 1, None),
        (['input={"n":3}'], 1, None),
        (['n="10"'], 1, None),
        (['sequential_image_generation_options={"maxImages":4}'], 15, None),
    ],
)
def test_forced_extra_is_counted_by_the_body(
    inside: Inside, extra: list[str], images: int, amount: float | None
) -> None:
    """`--force` sends it, and the sum is that of the body that leaves; where that cannot be read no budget takes it."""
    more = [word for pair in extra for word in ("--extra", pair)]
    plan = dry(inside, "a fox", "--force", *more)
    assert len(plan["images"]) == images
    assert (plan["cost"] and plan["cost"]["amount"]) == (pytest.approx(amount) if amount else None)
    if amount is None:
        dry(inside, "a fox", "--force", "--max-cost", "9", *more, code=2)


def test_forced_count_is_reserved_before_it_is_sent(forked: Forked) -> None:
    """Ten images by the body do not fit a budget for one: exit 10 and no request; a row of a table neither."""
    with Upstream() as upstream:
        to = ["-p", "ark", "--base-url", upstream.url, "--max-cost", "0.1", "--force", "--extra", "n=10"]
        assert forked("generate", "a fox", *to, env=ENV).code == 10
        (forked.folder / "t.csv").write_text("prompt\nfox\n")
        done = forked("batch", "t.csv", *to, env=ENV)
        assert done.code == 10
        assert "$0.35" in done.err
        assert not upstream.posts


def test_prompt_files_are_all_held_to_the_lowest_budget(forked: Forked) -> None:
    """A budget above the second prompt counts as much as one above the first."""
    (forked.folder / "a.txt").write_text("a fox")
    (forked.folder / "b.txt").write_text("+++\nmax-cost = 0.04\n+++\nan owl\n")
    with Upstream() as upstream:
        done = forked("generate", "-f", "a.txt", "-f", "b.txt", "-p", "ark", "--base-url", upstream.url, env=ENV)
        assert done.code == 10
        assert len(upstream.posts) == 1


def test_references_are_counted_for_every_request(inside: Inside) -> None:
    """Three requests with two references each cost three times the references, as they will be billed."""
    (inside.folder / "x.png").write_bytes(make_image("PNG", (600, 600)))
    plan = dry(inside, "night", "x.png", "x.png", "-m", "5.5", "-s", "1K", "-n", "3", verb="edit")
    assert plan["cost"]["amount"] == pytest.approx(3 * (0.020 + 2 * 0.008))


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "images", "amount"), [("5.5", 30, 30 * 0.035 + 0.008), ("pro", 17, 17 * 0.09 + 0.003)]
)
def test_layers_are_counted_to_the_ceiling_of_the_model(forked: Forked, model: str, images: int, amount: float) -> None:
    """In the plan of a request and of a table, in its names, and in what a budget holds."""
    (forked.folder / "x.png").write_bytes(make_image("PNG", (600, 600)))
    plan = dry(forked, "--layers", "x.png", "-m", model, verb="edit")
    assert len(plan["images"]) == images
    assert plan["cost"]["amount"] == pytest.approx(amount)
    (forked.folder / "t.csv").write_text("image,layers\nx.png,yes\n")
    table = forked("batch", "t.csv", "-m", model, "-p", "ark", "--dry-run", "--json", env=ENV)
    assert (table.json["images"], table.json["cost"]["amount"]) == (images, pytest.approx(amount))
    with Upstream() as upstream:
        to = ["-p", "ark", "--base-url", upstream.url, "--max-cost", f"{amount - 0.001:.4f}"]
        assert forked("edit", "--layers", "x.png", "-m", model, *to, env=ENV).code == 10
        assert not upstream.posts


def test_layers_of_another_ceiling_count_what_the_model_can_make_at_most(inside: Inside) -> None:
    """Nobody has seen the name of that field: it is refused, and forced it is 100 images of unknown cost."""
    (inside.folder / "x.png").write_bytes(make_image("PNG", (600, 600)))
    args = ["--layers", "x.png", "-m", "5.5", "--extra", 'layer_decomposition_options={"max_images":100}']
    dry(inside, *args, verb="edit", code=2)
    plan = dry(inside, *args, "--force", verb="edit")
    assert (len(plan["images"]), plan["cost"]) == (100, None)


@pytest.mark.parametrize(
    ("size", "amount"), [("1K", 0.02), ("1536x1536", 0.02), ("2352x1008", 0.02), ("1700x1600", 0.035), ("2K", 0.035)]
)
def test_price_step_of_the_newest_model_goes_by_pixels(inside: Inside, size: str, amount: float) -> None:
    """Up to 2,601,123 pixels it is the lower one, by the vendor's card."""
    assert dry(inside, "a fox", "-m", "5.5", "-s", size)["cost"]["amount"] == pytest.approx(amount)


# --- whose price ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "args", "is_known"),
    [
        ("ark", ["-m", "4.5"], True),
        ("ark", ["-m", "4.5", "--base-url", "https://ark.ap-southeast-1.volces.com"], True),
        ("ark", ["-m", "4.5", "--base-url", "https://gateway.example"], False),
        ("ark", ["-m", "4.5", "--base-url", "https://evilvolces.com"], False),
        ("byteplus", ["-m", "4.5", "--base-url", "https://ark.eu-west.bytepluses.com/api/v3"], True),
        ("byteplus", ["-m", "4.5", "--base-url", "https://gateway.example"], False),
        ("ope", ["-m", "4.5"], False),
        ("openai", ["-m", "4.5", "--base-url", "http://127.0.0.1:9"], False),
        ("cometapi", ["-m", "4.5"], True),
        ("cometapi", ["-m", "4.0"], False),
        ("acedata", ["-m", "4.5"], True),
        ("acedata", ["-m", "4.5", "--base-url", "https://gateway.example"], False),
        ("sandbox", [], True),
    ],
)
def test_list_price_is_a_bound_only_where_the_vendor_is_called(
    inside: Inside, provider: str, args: list[str], is_known: bool
) -> None:
    """Elsewhere the plan says so in text and JSON, `--max-cost` is refused with the line that makes it known, and
    that line does.
    """
    (inside.folder / "t.csv").write_text("prompt\nfox\n")
    plan = dry(inside, "a fox", *args, provider=provider)
    assert (plan["cost"].get("note") == LIST) is not is_known
    table = inside("batch", "t.csv", "-p", provider, *args, "--dry-run", "--json", env=ENV)
    assert (table.json["cost"].get("note") == LIST) is not is_known
    assert (LIST in table.err) is not is_known
    assert ("at most $" in table.err) is is_known
    text = inside("generate", "a fox", "-p", provider, *args, "--dry-run", env=ENV)
    assert (LIST in text.err) is not is_known
    held = inside("generate", "a fox", "-p", provider, *args, "--max-cost", "1", "--dry-run", env=ENV)
    assert held.code == (0 if is_known else 2)
    if is_known:
        return
    assert inside("batch", "t.csv", "-p", provider, *args, "--max-cost", "1", "--dry-run", env=ENV).code == 2
    words = held.err.partition("image: seedream ")[2].split()
    assert words[:2] == ["config", "set"]
    assert inside(*words[:3], "0.05").code == 0
    plan = dry(inside, "a fox", *args, "--max-cost", "1", provider=provider)
    assert (plan["cost"]["amount"], plan["cost"].get("note")) == (0.05, None)


# --- over all runs of a batch -----------------------------------------------------------------------------------------


def rows(command: Command, count: int, name: str = "t.csv") -> None:
    """A table of so many rows."""
    (command.folder / name).write_text("prompt\n" + "".join(f"fox {number}\n" for number in range(count)))


def batch(command: Command, upstream: Upstream, *args: str, table: str = "t.csv") -> Any:
    """One run at 0.04 an image, one request after the other."""
    to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--concurrency", "1"]
    return command("batch", table, *to, *args, env=ENV)


def test_max_cost_of_a_batch_holds_over_all_its_runs(forked: Forked) -> None:
    """The same command spends nothing anew, an edited row neither; a higher one goes on; the words say so."""
    rows(forked, 6)
    with Upstream() as upstream:
        first = batch(forked, upstream, "--max-cost", "0.1")
        assert (first.code, len(upstream.posts)) == (10, 2)
        assert "the same command goes on only with a higher --max-cost" in first.err
        assert "run the same command again" not in first.err
        again = batch(forked, upstream, "--max-cost", "0.10", "--json")
        assert (again.code, len(upstream.posts)) == (10, 2)
        summary = json.loads(again.out.splitlines()[-1])
        assert (summary["exit_code"], summary["error"]["code"], summary["unsent"]) == (10, "budget", 4)
        assert "$0.08, $0.02 is left" in again.err
        assert "$0.08, $0.02 is left" in batch(forked, upstream, "--max-cost", "0.10", "--dry-run").err
        (forked.folder / "t.csv").write_text("prompt\nwolf\nfox 1\nfox 2\nfox 3\nfox 4\nfox 5\n")
        assert batch(forked, upstream, "--max-cost", "0.10").code == 10
        assert batch(forked, upstream, "--max-cost", "0.10", "--only", "missing").code == 0
        assert len(upstream.posts) == 2
        assert batch(forked, upstream, "--max-cost", "0.17").code == 10
        assert len(upstream.posts) == 4
        assert batch(forked, upstream, "--max-cost", "1").code == 0
        assert len(upstream.posts) == 7
        assert batch(forked, upstream, "--max-cost", "0.01").code == 0, "nothing is left to pay for"


def test_max_cost_of_a_batch_counts_unknown_outcomes_as_paid(forked: Forked) -> None:
    """Two lost replies fill the budget for two: no run of this folder sends a third, by whatever option."""
    rows(forked, 4)
    with Upstream(script=lambda request, number: RESET) as upstream:
        assert batch(forked, upstream, "--max-cost", "0.08").code == 10
        assert len(upstream.posts) == 2
        for more in ([], ["--only", "unknown", "--retry-ambiguous"]):
            done = batch(forked, upstream, "--max-cost", "0.08", *more)
            assert done.code == 10
            assert "possibly" in done.err
        assert len(upstream.posts) == 2


@pytest.mark.parametrize("folder", [None, "all"])
def test_max_cost_is_shared_by_the_shards_and_adds_up_when_merged(forked: Forked, folder: str | None) -> None:
    """Four shards spend no more than one run would, run once or twice, in folders of their own or in one; what is
    merged counts as spent.
    """
    rows(forked, 40)
    into = ["-o", folder] if folder else []
    with Upstream() as upstream:
        for number in (1, 2, 3, 4, 1, 2, 3, 4):
            done = batch(forked, upstream, "--max-cost", "0.35", "--shard", f"{number}/4", *into)
            assert done.code == 10
        # Of 0.0875 each two fit, and so does the whole.
        assert len(upstream.posts) == 8
        if folder:
            assert batch(forked, upstream, "--max-cost", "0.35", *into).code == 10
        else:
            shards = [f"t-{number}-of-4" for number in (1, 2, 3, 4)]
            assert forked("batch", "--merge", "t.csv", *shards, "-p", "ark", "-m", "4.5", env=ENV).code == 9
            assert batch(forked, upstream, "--max-cost", "0.35").code == 10
        assert len(upstream.posts) == 8
        assert batch(forked, upstream, "--max-cost", "0.36", *into).code == 10
        assert len(upstream.posts) == 9


def test_what_two_merged_folders_both_paid_is_counted_twice(forked: Forked) -> None:
    """Of a row that was made in both only one is kept; the money of the other stays spent, however often one merges."""
    rows(forked, 2)
    with Upstream() as upstream:
        for folder in ("a", "b"):
            assert batch(forked, upstream, "-o", folder).code == 0
        for _ in range(2):
            done = forked("batch", "--merge", "t.csv", "a", "b", "-o", "c", "-p", "ark", "-m", "4.5", env=ENV)
            assert done.code == 0, done.err
        rows(forked, 4)
        assert batch(forked, upstream, "-o", "c", "--max-cost", "0.2").code == 10
        assert len(upstream.posts) == 5


# --- what nobody knows ------------------------------------------------------------------------------------------------

EMPTY = answer(json.dumps({"created": 1, "data": [{"url": ""}]}).encode())
NO_USAGE = answer(json.dumps({"data": [{"url": ""}], "usage": {"generated_images": 0}}).encode())


@pytest.mark.parametrize("reply", [RESET, EMPTY, NO_USAGE], ids=["lost", "empty", "counted-none"])
def test_unknown_outcome_shows_its_price_as_possible_cost(forked: Forked, reply: Any) -> None:
    """In text, JSON, the history, the results and the summary: never nothing, and never as certain."""
    rows(forked, 1)
    with Upstream(script=lambda request, number: reply) as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        done = forked("generate", "a fox", *to, "--json", env=ENV)
        assert (done.code, done.json["status"]) == (7, "unknown")
        assert done.json["cost"]["amount"] == done.json["possible_cost"]["amount"] == pytest.approx(0.04)
        assert "possibly $0.04" in done.err
        assert "$0.00" not in done.err
        [entry] = forked("history", "--json").json["requests"]
        assert (entry["billed"], entry["cost"]["amount"], entry["possible_cost"]["amount"]) == ("unknown", 0.04, 0.04)
        for shown in (forked("history"), forked("history", "show", entry["id"])):
            assert "possibly $0.04" in shown.out
        done = batch(forked, upstream, "--json")
        assert done.code == 7
        assert "possibly $0.04" in done.err
        assert "$0.00" not in done.err
        row, summary = map(json.loads, done.out.splitlines()[-2:])
        assert row["possible_cost"]["amount"] == pytest.approx(0.04)
        assert (summary["cost"]["amount"], summary["possible_cost"]["amount"]) == (0, pytest.approx(0.04))
        [told] = csv.DictReader((forked.folder / "t/results.csv").read_text().splitlines())
        assert (told["billed"], told["cost"]) == ("unknown", "0.04")


def test_doubt_about_one_of_several_images_is_told_beside_what_is_certain(forked: Forked) -> None:
    """One image came and of the other nobody knows: one price is certain, the other possible, in text and JSON."""
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {"data": [{"url": upstream.link(1)}, {"url": ""}]}
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--sequence", "2"]
        done = forked("generate", "two foxes", *to, "--json", env=ENV)
        assert (done.code, len(list(forked.folder.glob("*.jpg")))) == (9, 1)
        assert (done.json["cost"]["amount"], done.json["possible_cost"]["amount"]) == (0.08, 0.04)
        assert "charged about $0.04 · possibly $0.04 more" in done.err


@pytest.mark.parametrize("code", ["odd", "InternalServiceErrorX", ""])
def test_doubt_about_the_only_image_is_an_unknown_outcome(forked: Forked, code: str) -> None:
    """An answer of 200 whose image failed without a clear word may be billed: no exit code says otherwise."""
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {"data": [{"error": {"code": code, "message": "it broke"}}]}
        args = ["-p", "openai", "--base-url", upstream.url, "--json"]
        done = forked("generate", "a fox", *args, env=ENV)
        error = done.json["error"]
        assert (done.code, done.json["status"], error["code"], error["billed"]) == (
            7,
            "unknown",
            "unknown_outcome",
            "unknown",
        )
        assert done.json["images"][0]["error"]["code"] == "unknown_outcome"
        assert "history resolve" in error["hint"]
        rows(forked, 2)
        done = forked("batch", "t.csv", *args, env=ENV)
        summary = json.loads(done.out.splitlines()[-1])
        assert (done.code, summary["failed"], summary["unknown"]) == (7, 0, 2)
        forked("batch", "t.csv", *args, "--only", "failed", env=ENV)
        assert len(upstream.posts) == 3, "nothing is paid again"


def test_unknown_outcome_at_an_unknown_price_is_no_price_of_nothing(forked: Forked) -> None:
    """Of a batch whose prices nobody knows the sum stays unknown."""
    rows(forked, 1)
    with Upstream(script=lambda request, number: RESET) as upstream:
        done = batch(forked, upstream, "-m", "ep-20261121-abc", "--json")
        assert json.loads(done.out.splitlines()[-1])["cost"] is None
        assert "1 request of unknown price" in done.err
        assert "$0.00" not in done.err


# --- a budget that cannot be looked at --------------------------------------------------------------------------------


def plant_settings(command: Forked, how: str) -> None:
    """Settings with a day's budget, behind something that cannot be passed."""
    folder = command.home / ".config/seedream"
    if how == "a file":
        (command.home / ".config").write_text("[budget]\ndaily = 0.01\n")
        return
    write_settings(command, "[budget]\ndaily = 0.01\n")
    if how == "damaged":
        write_settings(command, "[budget\ndaily = 0.01\n")
    elif how == "no entry":
        folder.chmod(0)
    elif how == "trust":
        (folder / "config.toml").unlink()
        (command.folder / "seedream.toml").write_text("[budget]\ndaily = 0.01\n")
        assert command("config", "trust").code == 0
        (folder / "trusted.json").write_text("{")
    else:
        folder.rename(command.home / "moved")
        folder.symlink_to(folder if how == "a loop" else command.home / "gone")


@pytest.mark.parametrize("how", ["a file", "a loop", "a dead link", "no entry", "damaged", "trust"])
def test_settings_that_cannot_be_looked_at_stop_before_payment(forked: Forked, how: str) -> None:
    """A day's budget may stand there: exit 3 with the place and the way out, for one request and for a table."""
    if how == "no entry" and os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    rows(forked, 1)
    plant_settings(forked, how)
    with Upstream() as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        for args in (["generate", "a fox", *to], ["batch", "t.csv", *to]):
            done = forked(*args, env=ENV)
            assert done.code == 3, done.err
            assert "hint" in done.err or how == "damaged"
        assert not upstream.posts
        if how not in {"damaged", "trust"}:
            assert forked("generate", "a fox", *to, "--config", "/dev/null", env=ENV).code == 0


def test_settings_of_somebody_without_a_home_stop_before_payment(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user whom the system does not know: exit 3 with the variables that help, and no folder called `~`."""
    pwd = pytest.importorskip("pwd")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    del inside.env["HOME"]
    done = inside("generate", "a fox", "-p", "ark", env=ENV)
    assert done.code == 3
    assert "$SEEDREAM_CONFIG" in done.err
    del inside.env["SEEDREAM_STATE_DIR"]
    done = inside("generate", "a fox", "-p", "ark", env={**ENV, "SEEDREAM_CONFIG": "/dev/null"})
    assert done.code == 3
    assert "$SEEDREAM_STATE_DIR" in done.err
    assert not list(inside.folder.iterdir())


def test_budget_of_the_day_is_not_passed_by_without_a_ledger(forked: Forked) -> None:
    """--no-ledger, a ledger that is switched off or cannot be read: nothing is sent, and no hint leads around it."""
    rows(forked, 1)
    write_settings(forked, "[budget]\ndaily = 1\n")
    with Upstream() as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url]
        for verb in (["generate", "a fox"], ["batch", "t.csv"]):
            done = forked(*verb, *to, "--no-ledger", env=ENV)
            assert done.code == 2
            assert "[budget] daily" in done.err
        assert forked("generate", "a fox", "-p", "sandbox", "--no-ledger").code == 0
        assert forked("recover", "--no-ledger", env=ENV).code == 0
        write_settings(forked, "[budget]\ndaily = 1\n[ledger]\nenabled = false\n")
        done = forked("generate", "a fox", *to, env=ENV)
        assert done.code == 2
        assert "config.toml:4" in done.err
        write_settings(forked, "[budget]\ndaily = 1\n")
        (forked.home / "state/ledger.db").unlink(missing_ok=True)
        (forked.home / "state/ledger.db").write_bytes(b"no ledger at all" * 300)
        for verb in (["generate", "a fox"], ["batch", "t.csv"]):
            done = forked(*verb, *to, env=ENV)
            assert done.code == 74
            assert "--no-ledger" not in done.err
        assert not upstream.posts


def test_max_cost_holds_without_a_ledger(forked: Forked) -> None:
    """The run's own budget is kept in memory then: what is refused gives its share back, what is in doubt does not."""
    with Upstream() as upstream:
        to = ["a fox", "-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--no-ledger", "--max-cost", "0.09"]
        assert forked("generate", *to, "-n", "4", env=ENV).code == 10
        assert len(upstream.posts) == 2
        upstream._script = lambda request, number: refusal(429, "RequestBurstTooFast") if number == 3 else None
        assert forked("generate", *to, "-n", "2", env=ENV).code == 0
        assert len(upstream.posts) == 5
        upstream._script = lambda request, number: RESET
        assert forked("generate", *to, "--retry-ambiguous", env=ENV).code == 7
        assert len(upstream.posts) == 7


# --- prices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("prices.4.55", "0.04", "did you mean 4.5"),
        ("prices.5.0-lit", "0.04", "5.0-lite"),
        ("prices.openai/5.0-lit", "0.04", "5.0-lite"),
        ("prices.dall-e", "0.04", "PROVIDER/ID"),
        ("prices.arkk/4.5", "0.04", "did you mean ark?"),
        ("prices.ope.4.5", "0.04", "write ope/4.5"),
        ("prices.sandbox/4.5", "0.04", "costs nothing"),
        ("prices.4.5", "-0.04", "US dollars"),
        ("prices.4.5", "nan", "US dollars"),
        ("prices.4.5", "inf", "US dollars"),
        ("prices.4.5", "0.25 CNY", "US dollars"),
        ("prices.4.5", "¥0.25", "US dollars"),
    ],
)
def test_prices_take_only_what_has_an_effect(inside: Inside, key: str, value: str, words: str) -> None:
    """What would change nothing, or is no price, is refused with what may have been meant; a file is held to it too."""
    done = inside("config", "set", key, value)
    assert done.code == 2
    assert words in done.err
    assert not (inside.home / ".config/seedream/config.toml").exists()
    number = value if value in {"nan", "inf"} or value.lstrip("-").replace(".", "").isdecimal() else f'"{value}"'
    write_settings(inside, f'[prices]\n"{key.removeprefix("prices.")}" = {number}\n')
    told = inside("generate", "a fox", "-p", "ark", "--dry-run", env=ENV)
    assert told.code == 3
    assert "config.toml:2" in told.err
    assert words in told.err


@pytest.mark.parametrize(
    ("key", "args"),
    [
        ("prices.5.0", ["-p", "ope"]),
        ("prices.doubao-seedream-4-5-251128", ["-p", "ope", "-m", "4.5"]),
        ("prices.ep-20261121-abc", ["-p", "ark", "-m", "ep-20261121-abc"]),
        (
            "prices.openai/acme/seedream-x",
            ["-p", "openai", "--base-url", "https://gw.example", "-m", "acme/seedream-x"],
        ),
        ("prices.openai/own-model", ["-p", "openai", "--base-url", "https://gw.example", "-m", "own-model"]),
    ],
)
def test_prices_that_are_stated_make_a_budget_possible(inside: Inside, key: str, args: list[str]) -> None:
    """By name, by id, for one provider or any: what was refused under a budget is planned at this price."""
    plan = ("generate", "a fox", *args, "--max-cost", "1", "--dry-run", "--json")
    assert inside(*plan, env=ENV).code == 2
    assert inside("config", "set", key, "0.07").code == 0
    done = inside(*plan, env=ENV)
    assert done.json["cost"] == {"amount": 0.07, "currency": "USD", "as_of": "your settings"}


def test_prices_in_another_currency_are_refused(inside: Inside) -> None:
    """A table with a currency of its own is no price in dollars."""
    write_settings(inside, '[prices]\n"4.5" = {amount = 0.25, currency = "CNY"}\n')
    done = inside("generate", "a fox", "-p", "ark", "--dry-run", env=ENV)
    assert done.code == 3
    assert "prices are in US dollars, not in CNY" in done.err


def test_batch_folder_that_another_run_makes_meanwhile_is_held_all_the_same(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that comes to be while the table is read does not count as held: that was two runs in one batch."""
    from seedream_cli.batch.row_requests import RowRequests
    from seedream_cli.ledger.ledger import lock_batch

    rows(inside, 1)
    check = RowRequests.check
    with contextlib.ExitStack() as other:

        def meanwhile(row_requests: RowRequests) -> Any:
            (inside.folder / "t").mkdir()
            other.enter_context(lock_batch(inside.folder / "t/.seedream"))
            return check(row_requests)

        monkeypatch.setattr(RowRequests, "check", meanwhile)
        done = inside("batch", "t.csv", "-p", "sandbox")
    assert done.code == 75
    assert "holds the batch" in done.err


def test_rows_that_another_process_had_are_no_success(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that could not be taken in hand are left, and 0 means that all is on disk."""
    from seedream_cli.ledger.runs import Runs

    rows(inside, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Runs, "claim", lambda runs, run, ids: frozenset())
        done = inside("batch", "t.csv", "-p", "sandbox")
    assert (done.code, "2 not sent" in done.err) == (9, True)
    assert inside("batch", "t.csv", "-p", "sandbox").code == 0


def test_images_that_came_are_counted_though_the_provider_counts_fewer(forked: Forked) -> None:
    """A count of nothing beside images is no way past a budget, with a ledger or without, in one run or a batch."""
    rows(forked, 6)
    with Upstream() as upstream:
        upstream._reply = lambda body, number: {
            "data": [{"url": upstream.link(number * 10)}, {"url": upstream.link(number * 10 + 1)}],
            "usage": {"generated_images": 0},
        }
        done = batch(forked, upstream, "--max-cost", "0.19", "--json")
        assert (done.code, len(upstream.posts)) == (10, 2)
        assert json.loads(done.out.splitlines()[-1])["cost"]["amount"] == pytest.approx(0.16)
        for more in ([], ["--no-ledger"]):
            to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, *more]
            assert forked("generate", "a fox", *to, "--json", env=ENV).json["cost"]["amount"] == pytest.approx(0.08)


@pytest.mark.parametrize("more", [[], ["--no-ledger"]])
def test_attempt_before_that_may_be_billed_stays_possible_cost(forked: Forked, more: list[str]) -> None:
    """--retry-ambiguous: what the lost attempt may have cost is told beside the price of the one that came."""
    rows(forked, 1)
    with Upstream(script=lambda request, number: RESET if number % 2 else None) as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, *more]
        done = forked("generate", "a fox", *to, "--retry-ambiguous", "--json", env=ENV)
        assert (done.code, len(upstream.posts)) == (0, 2)
        assert (done.json["cost"]["amount"], done.json["possible_cost"]["amount"]) == pytest.approx((0.08, 0.04))
        assert "about $0.04 · possibly $0.04 more" in done.err
        done = batch(forked, upstream, "--retry-ambiguous", "--json", *more)
        summary = json.loads(done.out.splitlines()[-1])
        assert (summary["cost"]["amount"], summary["possible_cost"]["amount"]) == pytest.approx((0.04, 0.04))
        upstream._script = lambda request, number: RESET
        done = forked("generate", "an owl", *to, "--retry-ambiguous", "--retries", "2", "--json", env=ENV)
        many = len(upstream.posts) - 4
        assert done.json["possible_cost"]["amount"] == pytest.approx(0.04 * many)
        assert f"possibly ${0.04 * many:.2f}" in done.err


@pytest.mark.parametrize("verb", ["generate", "batch"])
def test_budget_of_the_day_counts_every_attempt_that_may_be_billed(forked: Forked, verb: str) -> None:
    """--retry-ambiguous is held by [budget] daily attempt by attempt, and what never left is no possible cost."""
    rows(forked, 1)
    write_settings(forked, "[budget]\ndaily = 0.10\n")
    with Upstream(script=lambda request, number: RESET) as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--retry-ambiguous", "--retries", "4"]
        done = forked(*(["generate", "a fox"] if verb == "generate" else ["batch", "t.csv"]), *to, env=ENV)
        assert (done.code, len(upstream.posts)) == (7, 2), done.err
        assert "possibly $0.08" in done.err
        assert "0.12" not in done.err
        assert "$0.08" in next(line for line in forked("history").err.splitlines() if line.startswith("today"))
        told = forked("history", "stats", "--json").json["total"]
        assert (told["cost"]["amount"], told["possible_cost"]["amount"]) == pytest.approx((0.0, 0.08))


@pytest.mark.parametrize("verb", ["generate", "batch"])
def test_attempt_that_was_refused_unbilled_is_no_possible_cost(forked: Forked, verb: str) -> None:
    """The one before it, whose answer was lost, stays in doubt: the message, the history and the day say that alone."""
    rows(forked, 1)
    refused = refusal(400, "InvalidParameter")
    with Upstream(script=lambda request, number: RESET if number == 1 else refused) as upstream:
        to = ["-p", "ark", "-m", "4.5", "--base-url", upstream.url, "--retry-ambiguous"]
        done = forked(*(["generate", "a fox"] if verb == "generate" else ["batch", "t.csv"]), *to, env=ENV)
        assert (done.code, len(upstream.posts)) == (7, 2), done.err
        assert "possibly $0.04" in done.err
        assert "0.08" not in done.err
        told = forked("history", "stats", "--json").json["total"]
        assert (told["cost"]["amount"], told["possible_cost"]["amount"]) == pytest.approx((0.0, 0.04))
        assert "$0.04" in next(line for line in forked("history").err.splitlines() if line.startswith("today"))


@pytest.mark.parametrize("verdict", ["--paid", "--unpaid"])
def test_rows_settled_as_unpaid_give_the_day_its_budget_back(forked: Forked, verdict: str) -> None:
    """What history resolve says of a batch's rows holds in the account of the day as in the batch's own."""
    rows(forked, 3)
    write_settings(forked, "[budget]\ndaily = 0.12\n")
    with Upstream(script=lambda request, number: RESET if number in {2, 3} else None) as upstream:
        assert batch(forked, upstream).code == 9
        run = forked("history", "--json").json["batches"][0]["id"]
        assert forked("history", "resolve", run, verdict).code == 0
        paid = 0.12 if verdict == "--paid" else 0.04
        today = next(line for line in forked("history").err.splitlines() if line.startswith("today"))
        assert today == f"today: ${paid:.2f}"
        assert forked("history", "stats", "--json").json["total"]["cost"]["amount"] == pytest.approx(paid)
        done = batch(forked, upstream, *(["--only", "missing"] if verdict == "--paid" else []))
        assert (done.code, len(upstream.posts)) == ((10, 3) if verdict == "--paid" else (0, 5)), done.err
        # Of a row that was paid twice, one time for nothing, the doubt alone is taken back.
        if verdict == "--unpaid":
            return
        write_settings(forked, "[budget]\ndaily = 0.24\n")
        upstream._script = lambda request, number: RESET if number == 4 else None
        assert batch(forked, upstream, "--only", "missing").code == 9
        run = forked("history", "--json").json["batches"][0]["id"]
        assert forked("history", "resolve", run, "--unpaid").code == 0
        told = forked("history", "stats", "--json").json["total"]["cost"]["amount"]
        today = next(line for line in forked("history").err.splitlines() if line.startswith("today"))
        assert (told, today) == (pytest.approx(0.16), "today: $0.16")
