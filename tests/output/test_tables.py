"""Tables: whole and plain in a pipe, in the width and the colours of a terminal, and text that stays text."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len

from seedream_cli.output import dry_run, model_table
from seedream_cli.output.json_output import render_json
from seedream_cli.output.tables import fold_words, print_facts, print_table
from tests.output.test_summary import EVERY_HOSTILE, HOSTILE, Captured, assert_harmless, model
from tests.support.command import Command, Inside

ESCAPE = "\x1b["

EXPLAINED = [
    ("--seed", "42", "seed", "模型不支持种子参数" * 6),
    ("--size", "2K", "size=2048x2048", "exact pixels " * 8),
]


def on_terminal(width: int, *, color: bool = False) -> Captured:
    return Captured(stdout_is_terminal=True, width=width, color=color)


def without_colors(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_tables_fit_their_terminal(width: int) -> None:
    """No line is wider than the terminal, and nothing is lost on a narrow one; colours change nothing of that."""
    rows = [model(), model("seedream-狐狸", status="retired", tiers={}, aspects={"1:1": "1024x1024"}, price={})]
    plain, colored = on_terminal(width), on_terminal(width, color=True)
    for captured in (plain, colored):
        model_table.print_models(rows, captured.console)
        captured.console.out("---")
        dry_run.print_explained(EXPLAINED, captured.console)
        captured.console.out("---")
        for row in rows:
            model_table.print_model(row, captured.console)
    assert ESCAPE in colored.out
    assert [line.rstrip() for line in without_colors(colored.out).splitlines()] == plain.out.splitlines()
    assert max(map(cell_len, plain.out.splitlines())) <= width
    models, explained, details = plain.out.split("---\n")
    wanted = ("seedream-4.5", "seedream-狐狸 (retired)", "2K 4K", "$0.03 to $0.045", "unknown")
    assert all(word in models for word in wanted)
    assert re.sub(r"\s", "", explained).count("模型不支持种子参数") == 6
    assert "2848x1600" in details


def test_tables_in_a_pipe_are_whole_and_plain() -> None:
    """A row is a line, whatever its length or the terminal's width was; none is cut, folded or coloured."""
    captured = Captured(width=40, color=True, color_anywhere=True)
    path = "out/" + "x" * 300 + ".png"
    print_table(captured.console, ("id", "path"), [("狐狸", path), ("fox", "[red]a[/]")], drop=("id",), crops=True)
    print_facts(captured.console, [("prompt", "a fox " * 50)])
    assert captured.out.splitlines() == ["id    path", f"狐狸  {path}", "fox   [red]a[/]", f"prompt: {'a fox ' * 50}"]


def test_columns_align_beside_wide_characters() -> None:
    """East Asian characters count as two columns, so what follows stands in line; a last column is folded there."""
    rows = [("狐狸", "ok", "one two three four five six"), ("fox", "ok", "")]
    captured = on_terminal(38)
    print_table(captured.console, ("name", "state", "note"), rows)
    assert captured.out.splitlines() == [
        "name  state  note",
        "狐狸  ok     one two three four five",
        "             six",
        "fox   ok",
    ]
    captured = on_terminal(9)
    print_table(captured.console, ("name", "note"), [("fox", "red"), ("owl", "")])
    assert captured.out.splitlines() == ["name: fox", "note: red", "", "name: owl"]


def test_narrow_terminals_lose_columns_and_no_ids() -> None:
    """What is told to be dropped goes first; a last column that is cut leaves the others whole."""
    rows = [("261201-15f22f", "succeeded", "doubao-seedream-5-0", "一只在雪中的红狐狸" * 9)]
    for width, wanted in {
        100: "261201-15f22f  succeeded  doubao-seedream-5-0  一只在雪中的红狐狸",
        50: "261201-15f22f  succeeded  一只在雪中的红狐狸一只",
    }.items():
        captured = on_terminal(width)
        print_table(captured.console, ("id", "status", "model", "prompt"), rows, drop=("model",), crops=True)
        _, row = captured.out.splitlines()
        assert row.startswith(wanted)
        assert row.endswith("…")
        assert cell_len(row) <= width
    captured = on_terminal(30)
    print_table(captured.console, ("id", "status", "model", "prompt"), rows, drop=("model",), crops=True)
    assert captured.out.startswith("id: 261201-15f22f\nstatus: succeeded\nmodel: doubao-seedream-5-0\nprompt: ")


@pytest.mark.parametrize("name", [*HOSTILE, "all"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_tables_let_no_hostile_text_through(name: str, is_terminal: bool) -> None:
    """Neither markup nor sequences act, on a terminal or in a pipe."""
    text = HOSTILE.get(name, EVERY_HOSTILE)
    captured = Captured(stdout_is_terminal=is_terminal, width=200, color=True)
    print_table(captured.console, ("head", text), [("|", text), ("|", text)])
    print_facts(captured.console, [("fact", text)])
    assert_harmless(without_colors(captured.out))
    if name.startswith("markup"):
        assert captured.out.count(text) == 4


def test_messages_fold_between_words_alone() -> None:
    """A path, an id or a CI service's command never begins or ends in the middle; what follows is set in."""
    assert fold_words("note: a path/to/something/long is here", 16) == [
        "note: a",
        "  path/to/something/long",
        "  is here",
    ]
    assert fold_words("  hint: 狐狸 狐狸 狐狸", 12) == ["  hint: 狐狸", "    狐狸", "    狐狸"]
    assert fold_words("error: one ::error::two", 12) == ["error: one ::error::two"]


def test_model_views_golden() -> None:
    """The README's table, and the detail of one model with sizes, rules, ids and prices."""
    assert model_table.models_markdown([model()]).splitlines() == [
        "| model | sizes | references | sequence | stream | formats | list price | as of |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| seedream-4.5 | 2K 4K | 0 to 14 | up to 15 | yes | jpeg | $0.03 to $0.045 | 2026-11 |",
    ]
    captured = Captured()
    model_table.print_model(model(), captured.console)
    detail = captured.out.splitlines()
    assert detail[0] == "Seedream 4.5 (seedream-4.5)"
    assert "own sizes: WIDTHxHEIGHT of 3,686,400 to 16,777,216 pixels, width / height 1/16 to 16" in detail
    assert "  16:9    2848x1600  -" in detail
    assert "  seed    ignored  4.x draws without a seed | 模型不支持种子参数" in detail
    assert "  cometapi  doubao-seedream-4-5-251128, seedream-4-5" in detail
    assert "  list price  $0.03 for 1K, 1.5K or up to 2.36 MP; $0.045 above; $0.003 more a reference" in detail
    shown = json.loads(render_json(model_table.models_object([model()])))
    assert shown["schema"] == "seedream/1"
    assert shown["models"][0]["tiers"]["2K"]["16:9"] == "2848x1600"
    one = model_table.model_object(model())
    assert [(step["amount"], step["max_pixels"]) for step in one["price"]["*"]] == [(0.03, 2_359_296), (0.045, None)]


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["models", "--json"],
        ["config", "get", "size"],
        ["generate", "a fox", "-p", "sandbox", "--dry-run"],
        ["generate", "a fox", "-p", "sandbox", "--curl"],
    ],
)
def test_rich_is_loaded_for_what_it_draws_alone(seedream: Command, words: list[str]) -> None:
    """Nobody waits for it at a dry run, a version or a setting."""
    assert loads_rich(seedream, words, {}) == "False"


def loads_rich(seedream: Command, words: list[str], env: dict[str, str]) -> str:
    code = "import sys; from seedream_cli.__main__ import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print('rich' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**seedream.env, **env},
        cwd=seedream.folder,
        capture_output=True,
        check=False,
    )
    assert not env or b"--status" in done.stdout
    return done.stderr.decode().splitlines()[-1]


def test_rich_is_not_loaded_at_a_tab(seedream: Command) -> None:
    """A shell that asks for what may follow gets its answer without it."""
    asked = {"_SEEDREAM_COMPLETE": "complete_bash", "COMP_WORDS": "seedream history --sta", "COMP_CWORD": "2"}
    assert loads_rich(seedream, [], asked) == "False"


# --- the commands -----------------------------------------------------------------------------------------------------


def test_history_has_a_line_for_each_run(seedream: Command) -> None:
    """Four requests of a run are one line with their images and cost, which `show` opens; JSON has them all."""
    assert seedream("generate", "a fox", "-n", "3", "-p", "sandbox").code == 0
    assert seedream("generate", "an owl", "-p", "sandbox").code == 0
    assert seedream("generate", "a cat [[moderated]]", "-p", "sandbox").code == 4
    shown = seedream("history").out.splitlines()
    assert [line.split()[-1] for line in shown] == ["prompt", "[[moderated]]", "owl", "fox"]
    run = shown[3].split()[0]
    assert re.search(r"  succeeded  sandbox .*  3/3  ", shown[3])
    assert len(seedream("history", "--json").json["requests"]) == 5
    assert re.findall(r"^id: (.*)", seedream("history", "show", run).out, re.MULTILINE) == [
        f"{run}-{n}" for n in (1, 2, 3)
    ]
    assert [line.split()[0] for line in seedream("history", "-n", "2").out.splitlines()[1:]] == [
        line.split()[0] for line in shown[1:3]
    ]
    assert seedream("history", "-n", "3").out == seedream("history", "-n", "0").out == seedream("history").out
    assert "1/1" in seedream("history", "--text", "owl").out


def test_config_show_lists_what_is_set(inside: Inside) -> None:
    """With its origin; what nobody has set is counted, and listed with --all; JSON has everything as ever."""
    nothing = inside("config", "show")
    assert nothing.out == ""
    assert "nothing is set" in nothing.err
    assert inside("config", "set", "size", "4K").code == 0
    done = inside("config", "show", env={"SEEDREAM_SEED": "7"})
    assert [line.split()[:2] for line in done.out.splitlines()] == [["setting", "value"], ["size", "4K"], ["seed", "7"]]
    assert "$SEEDREAM_SEED" in done.out
    assert "seedream config show --all lists them too" in done.err
    every = inside("config", "show", "--all").out.splitlines()
    assert len(every) > 40
    assert len(inside("config", "show", "--json").json["settings"]) == len(every) - 1
