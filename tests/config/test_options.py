"""One registry of options: every source of an option takes the same values and refuses the same ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seedream_cli.batch.columns import plan_columns
from seedream_cli.batch.table import open_table
from seedream_cli.cli.flags import FlagValues
from seedream_cli.config import load, option_kinds
from seedream_cli.config.config_file import parse_document
from seedream_cli.config.environment import Environment, read_environment
from seedream_cli.config.option_kinds import Choice, Number, Whole
from seedream_cli.config.options import OPTIONS, Option, by_name, parse_values
from seedream_cli.config.prompt_file import split_header
from seedream_cli.errors import InputError, Problem
from seedream_cli.request.image_request import OptionValues
from tests.support.command import Inside

ON, OFF = ("1", "true", "yes", "on", "y", "Y", " Yes "), ("0", "false", "no", "off", "n", "FALSE")

SAMPLES: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    option_kinds.size: (("2K", "1.5k", "2048x1152"), ("9", "wide", "16:9")),
    option_kinds.aspect: (("16:9", "1:1"), ("16x", "x", "0:1")),
    option_kinds.provider: (("ark", "SANDBOX"), ("arkk", "")),
    option_kinds.link: (("https://h.example/x",), ("h.example", "ftp://h.example")),
    option_kinds.proxy: (("http://h:1", "socks5://h:1"), ("://", "ftp://h")),
    option_kinds.path: (("shots/", "-"), ("s3://bucket/x", "file:///x")),
    option_kinds.template: (("{id}",), ("s3://bucket/x",)),
}
"""Good and bad values of the kinds that are no range and no list of words."""


TEXTS = {"base_url": "https://h.example/v1"}


def samples(option: Option) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Good and bad values of an option, the ends of its range among them."""
    check = option.check
    if isinstance(check, Choice):
        return (*check.words, *check.also, check.words[0].upper()), ("none-such", "1")
    if isinstance(check, Number):
        return (f"{check.low:g}", f"{check.high:.0f}", "3.5"), (
            f"{check.low - 1:g}",
            f"{check.high + 1:.0f}",
            "x",
            "1e1",
        )
    if isinstance(check, Whole):
        good = (str(check.low), str(check.high), f"{check.high}.0", *((check.word,) if check.word else ()))
        return good, (str(check.low - 1), str(check.high + 1), "1.5", "x", "0x1")
    if check is option_kinds.text:
        return (TEXTS.get(option.key, "/a text"),), ()
    return SAMPLES[check]


# --- the sources ------------------------------------------------------------------------------------------------------


def by_flag(option: Option, text: str, folder: Path) -> OptionValues:
    """Typed."""
    return FlagValues({option.key: text}).options(Environment({}))


def by_variable(option: Option, text: str, folder: Path) -> OptionValues:
    """SEEDREAM_<OPTION>."""
    return FlagValues().options(Environment({f"SEEDREAM_{option.name.upper()}": text}))


def by_file(option: Option, text: str, folder: Path) -> OptionValues:
    """A settings file."""
    document = parse_document(f"{option.name} = {json.dumps(text)}\n".encode(), folder / "f", "f", [])
    assert document is not None
    reading = load.combine(Environment({}), [document], [])
    if reading.problems:
        raise InputError(reading.problems)
    return FlagValues().options(Environment({}, reading.settings))


def by_prompt(option: Option, text: str, folder: Path) -> OptionValues:
    """The block above a prompt."""
    prompt, problems = split_header(f"+++\n{option.name} = {json.dumps(text)}\n+++\nx", "f")
    if problems:
        raise InputError(problems)
    return FlagValues().options(Environment({}), prompt)


def by_column(option: Option, text: str, folder: Path) -> OptionValues:
    """A cell of a table."""
    path = folder / "t.jsonl"
    path.write_text(json.dumps({"prompt": "x", option.name: text}))
    with open_table(str(path)) as table:
        columns, problems = plan_columns(table.headings)
        row = next(table.rows(columns))
        problems += row.sort_cells().problems
        if problems:
            raise InputError(problems)
        return row.options(OptionValues())


SOURCES: dict[str, Callable[[Option, str, Path], OptionValues]] = {
    "flag": by_flag,
    "variable": by_variable,
    "file": by_file,
    "prompt": by_prompt,
    "column": by_column,
}


def sources_of(option: Option) -> Iterator[str]:
    """The sources that may set an option. `profile` and `config` are read before all others, by other code."""
    for source in SOURCES:
        if (source == "flag" or option.accepts(source)) and option.key not in {"profile", "config"}:  # type: ignore[arg-type]
            yield source


def read_from(option: Option, source: str, text: str, folder: Path) -> tuple[Any, list[tuple[str, str]]]:
    """The parsed value of an option from one source, and the problems with it."""
    found: list[Problem] = []
    try:
        options = SOURCES[source](option, text, folder)
        value = parse_values(options, found).get(option.key)
        assert options.origins[option.key]
    except InputError as error:
        value, found = None, [*error.problems]
    return value, [(problem.message, problem.hint) for problem in found]


CASES = [
    (option, source)
    for option in OPTIONS.values()
    if option.kind == "value" and option.key != "prompt_template"
    for source in sources_of(option)
]


@pytest.mark.parametrize(("option", "source"), CASES, ids=[f"{option.key}-{source}" for option, source in CASES])
def test_option_takes_the_same_values_from_every_source(option: Option, source: str, tmp_path: Path) -> None:
    """Each good value is parsed to the same, and each bad one refused with the same message, from all five sources."""
    good, bad = samples(option)
    for text in good:
        value, wrong = read_from(option, source, text, tmp_path)
        assert (value, wrong) == (option.check(text), []), text
    # An empty variable and an empty cell set nothing.
    for text in filter(None, bad):
        with pytest.raises(option_kinds.BadValueError) as refused:
            option.check(text)
        value, wrong = read_from(option, source, text, tmp_path)
        assert (value, wrong) == (None, [(refused.value.message, refused.value.hint)]), text


SWITCHES = [
    (name, source)
    for name, option in by_name().items()
    if option.kind == "switch"
    for source in sources_of(option)
    if source != "flag" and not (source == "variable" and option.off)
]


@pytest.mark.parametrize(("name", "source"), SWITCHES)
def test_switch_takes_the_same_words_from_every_source(name: str, source: str, tmp_path: Path) -> None:
    """y, yes, on, 1 and true, and their opposites, in a variable, a file, a prompt's block and a cell; nothing else."""
    found = by_name()[name]
    option = Option(found.key, f"--{name}", "", kind="switch", off=found.off)
    for texts, on in ((ON, True), (OFF, False)):
        for text in texts:
            options = SOURCES[source](option, text, tmp_path)
            assert options.switches == {option.key: on is not found.off}, text
    for text in ("perhaps", "2", "t"):
        with pytest.raises(InputError) as refused:
            SOURCES[source](option, text, tmp_path)
        (problem,) = refused.value.problems
        assert problem.message == f"{text!r} is neither yes nor no"


def test_every_option_has_a_check_and_stands_in_one_row() -> None:
    """Each kind of value has samples above, each key and each name as typed is there once."""
    names = [name for option in OPTIONS.values() for name in option.flags.replace("/", " ").split()]
    assert len(names) == len(set(names))
    for option in OPTIONS.values():
        good, _ = samples(option)
        assert good
        assert option.default is None or option.kind == "switch" or option.check(option.default) is not None
        assert option.commands, option.key


# --- what was taken, and refused only later ---------------------------------------------------------------------------

BAD = [
    ("limit", "0", "0 is out of range"),
    ("max_unknown", "0", "0 is out of range"),
    ("size", "9K", "no model has the size 9K"),
    ("provider", "arkk", "did you mean ark?"),
    ("format", "tiff", "give jpeg or png"),
    ("aspect", "16x", "'16x' is no ratio"),
    ("aspect", "17:3", "no model has the ratio 17:3"),
    ("timeout", "-1", "-1 is out of range"),
    ("retries", "1.5", "'1.5' is no whole number"),
    ("concurrency", "0", "0 is out of range"),
    ("max_cost", "2000000", "give 0 to 1e+06"),
    ("output", "s3://bucket/x", "s3:// is no place to write to"),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_config_set_refuses_what_no_command_takes(inside: Inside, key: str, value: str, words: str) -> None:
    """Exit 2 with the way out, and nothing is written."""
    done = inside("config", "set", key, value)
    assert (done.code, words in done.err) == (2, True), done.err
    assert not (inside.home / ".config").exists()
    if key == "size":
        assert "sizes are 1K, 1.5K, 2K, 3K, 4K, or WIDTHxHEIGHT" in done.err


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_settings_file_with_a_bad_value_is_told_with_its_line(inside: Inside, key: str, value: str, words: str) -> None:
    """Exit 3, also where the command at hand does not take the option."""
    (inside.folder / "own.toml").write_text(f"\n{key} = {json.dumps(value)}\n")
    done = inside("generate", "fox", "-p", "sandbox", "--dry-run", "--config", "own.toml")
    assert (done.code, done.out) == (3, ""), done.err
    assert "own.toml:2" in done.err
    assert words in done.err


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_variable_with_a_bad_value_is_told_with_its_name(inside: Inside, key: str, value: str, words: str) -> None:
    """Exit 2, also where the command at hand does not take the option; doctor tells it too."""
    env = {f"SEEDREAM_{key.upper()}": value, "ARK_API_KEY": "k"}
    done = inside("generate", "fox", "--dry-run", env=env)
    assert (done.code, done.out) == (2, ""), done.err
    assert f"SEEDREAM_{key.upper()}" in done.err
    if key not in {"size", "aspect"}:  # held against the model that is asked
        assert words in done.err


def test_size_in_a_file_is_free_for_a_model_that_nobody_knows(inside: Inside) -> None:
    """A model of tomorrow may have it."""
    (inside.folder / "own.toml").write_text('model = "ep-2027"\nsize = "9K"\n')
    done = inside("generate", "fox", "-p", "ark", "--dry-run", "--json", "--config", "own.toml")
    assert (done.code, done.json["request"]["size"]) == (0, "9K"), done.err


@pytest.mark.parametrize("word", ["y", "yes", "on", "1", "true"])
def test_yes_is_sent_as_yes_from_everywhere(inside: Inside, word: str) -> None:
    """A watermark asked for in a variable, a file, a prompt's block or a cell is in the body."""
    (inside.folder / "own.toml").write_text(f'watermark = "{word}"\n')
    (inside.folder / "p.txt").write_text(f'+++\nwatermark = "{word}"\n+++\nfox\n')
    (inside.folder / "t.csv").write_text(f"prompt,watermark\nfox,{word}\n")
    end = ("-p", "ark", "--dry-run", "--json")
    for args, env in (
        (("generate", "fox"), {"SEEDREAM_WATERMARK": word}),
        (("generate", "fox", "--config", "own.toml"), {}),
        (("generate", "-f", "p.txt"), {}),
    ):
        done = inside(*args, *end, env=env)
        assert (done.code, done.json["request"]["watermark"]) == (0, True), done.err
    done = inside("batch", "t.csv", *end)
    assert (done.code, done.json["options"]) == (0, ["watermark"]), done.out + done.err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("SEEDREAM_PROVIDR", "did you mean SEEDREAM_PROVIDER?"),
        ("SEEDREAM_MAXCOST", "did you mean SEEDREAM_MAX_COST?"),
        ("SEEDREAM_SYNC", "set SEEDREAM_ASYNC"),
        ("SEEDREAM_PROMPT_FILE", "give --prompt-file on the command line"),
        ("SEEDREAM_ONLY", "seedream generate --help"),
    ],
)
def test_variable_of_no_option_names_the_nearest(inside: Inside, name: str, hint: str) -> None:
    """A warning of one line on standard error and in the JSON, and with --strict nothing is sent."""
    (inside.folder / "t.csv").write_text("prompt\nfox\n")
    for args in (("generate", "fox", "-p", "sandbox", "--dry-run"), ("batch", "t.csv", "-p", "sandbox", "--dry-run")):
        done = inside(*args, env={name: "x"})
        assert (done.code, f"${name}" in done.err, hint in done.err) == (0, True, True), done.err
        assert inside(*args, "--strict", env={name: "x"}).code == 2
    shown = inside("doctor", "-p", "sandbox", env={name: "x"})
    assert name in shown.out


def test_variables_that_are_read_are_warned_of_by_nobody(inside: Inside) -> None:
    """Those of options, of the key and of the state folder."""
    names = {f"SEEDREAM_{option.name.upper()}" for option in OPTIONS.values() if option.accepts("variable")}
    assert {"SEEDREAM_CONFIG", "SEEDREAM_PROFILE", "SEEDREAM_MAX_COST", "SEEDREAM_ASYNC"} <= names
    env = {"SEEDREAM_API_KEY": "k", "SEEDREAM_MAX_COST": "1", "SEEDREAM_CONFIG": "/dev/null"}
    done = inside("generate", "fox", "-p", "sandbox", "--dry-run", env=env)
    assert (done.code, "no option has" in done.err) == (0, False), done.err
    assert not read_environment(Environment({"SEEDREAM_PROVIDR": "x"})).values
