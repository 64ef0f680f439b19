"""Completions as the shells ask for them, and the files that are made of the commands' declarations.

`python -m tests.test_completion` writes `completions/` and `seedream_cli/cli/grammar.json` anew.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seedream_cli.cli import completion, man_pages
from tests.conftest import Command

ROOT = Path(__file__).parent.parent
SCRIPTS = {"bash": "seedream.bash", "zsh": "_seedream", "fish": "seedream.fish", "powershell": "seedream.ps1"}
GRAMMAR = ROOT / "seedream_cli" / "cli" / "grammar.json"


def made_grammar() -> str:
    """The grammar as the declarations have it."""
    import typer

    from seedream_cli.cli.app import app
    from seedream_cli.cli.history import STATUSES

    page = man_pages.read_command(typer.main.get_command(app), "seedream")
    grammar = man_pages.grammar(page, extra={"STATUS": STATUSES, "SHELL": completion.SHELLS})
    return json.dumps(grammar, ensure_ascii=False, indent=1) + "\n"


def write_files() -> None:
    """Everything that is made of the declarations."""
    GRAMMAR.write_text(made_grammar(), encoding="utf-8")
    for shell, name in SCRIPTS.items():
        (ROOT / "completions" / name).write_text(completion.SCRIPTS[shell], encoding="utf-8")


def test_the_made_files_are_current() -> None:
    """A change of the commands must be a change of the files: `python -m tests.test_completion` makes it."""
    assert GRAMMAR.read_text(encoding="utf-8") == made_grammar()
    for shell, name in SCRIPTS.items():
        assert (ROOT / "completions" / name).read_text(encoding="utf-8") == completion.SCRIPTS[shell]


# --- what may stand where ---------------------------------------------------------------------------------------------

SIZES_OF_45 = ["2K", "4K"]
CASES: dict[str, tuple[list[str], str, set[str]]] = {
    "a command": (["gen"], "words", {"generate"}),
    "a command of a group": (["config", "key", "s"], "words", {"set", "status"}),
    "an option": (["generate", "--gui"], "words", {"--guidance-scale"}),
    "an option once": (["generate", "--seed", "1", "--see"], "words", set()),
    "an option that repeats": (["generate", "-i", "a.png", "--imag"], "words", {"--image"}),
    "a provider": (["generate", "-p", "by"], "words", {"byteplus"}),
    "a joined provider": (["generate", "--provider=by"], "words", {"--provider=byteplus"}),
    "a model": (["edit", "x", "-m", "5.0-f"], "words", {"5.0-flash"}),
    "an id": (["generate", "-m", "doubao-seedream-4-5"], "words", {"doubao-seedream-4-5-251128"}),
    "sizes of the model": (["generate", "-m", "4.5", "-s", ""], "words", set(SIZES_OF_45)),
    "sizes of the joined model": (["generate", "-m4.5", "--size="], "words", {f"--size={s}" for s in SIZES_OF_45}),
    "pixels of the model": (["generate", "--model=4.5", "-s", "2848"], "words", {"2848x1600"}),
    "an aspect": (["generate", "-m", "4.5", "-a", "16"], "words", {"16:9"}),
    "a choice": (["generate", "--if-exists", "re"], "words", {"rename"}),
    "a file": (["generate", "--prompt-file", "x"], "files", set()),
    "a joined file": (["generate", "--output=x"], "files", set()),
    "a picture": (["edit", "make it night", "ph"], "files", set()),
    "a table": (["batch", "sh"], "files", set()),
    "a shard's folder": (["batch", "a.csv", "sh"], "folders", set()),
    "a prompt": (["generate", "a "], "words", set()),
    "after the end of options": (["edit", "--", "x", "-"], "files", set()),
    "a model to show": (["models", "5.0-f"], "words", {"5.0-flash"}),
    "a key": (["config", "get", "max_c"], "words", {"max_cost"}),
    "a provider's key": (["config", "set", "providers.ark.b"], "words", {"providers.ark.base_url"}),
    "a key's value": (["config", "set", "if_exists", "sk"], "words", {"skip"}),
    "a key's model": (["config", "set", "providers.ark.model", "4.5"], "words", {"4.5"}),
    "a status": (["history", "--status", "unk"], "words", {"unknown"}),
    "a shell": (["--show-completion", "z"], "words", {"zsh"}),
    "nonsense": (["nonsense", "--what=x", "-"], "words", {"-h", "-V"}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_place_gets_its_words(case: str) -> None:
    """Commands, options, values of the given model, files: each where it goes, and nothing else."""
    words, kind, wanted = CASES[case]
    answer = completion.complete(words[:-1], words[-1], completion.read_grammar())
    found = {word for word, _ in answer.items}
    assert answer.kind == kind
    assert wanted <= found
    if wanted and case != "nonsense":
        assert found == wanted


def test_profiles_are_those_of_the_files_here(seedream: Command) -> None:
    """Profiles come from the user's and the project's file, or the one on the line; only plain words of them."""
    (seedream.folder / "seedream.toml").write_text('[profiles.wide]\n[profiles."x;$(touch y)\\u001b"]\n')
    user = seedream.home / ".config" / "seedream" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[profiles.night]\nsize = "4K"\n')
    (seedream.folder / "other.toml").write_text("[profiles.only]\n")
    assert seedream("--complete", "fish", "generate", "--profile", "").out == "words\nnight\nwide\n"
    named = seedream("--complete", "fish", "generate", "--config", "other.toml", "--profile", "o")
    assert named.out == "words\nonly\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seedream gen", ["seedream", "gen"]),
        ("seedream generate ", ["seedream", "generate", ""]),
        ('seedream edit "two words" \'it s\' a\\ b "un', ["seedream", "edit", "two words", "it s", "a b", "un"]),
        ("", [""]),
    ],
)
def test_a_line_is_split_as_a_shell_would(line: str, words: list[str]) -> None:
    """Quotes and backslashes keep words together, and the last word may be unfinished."""
    assert completion.split_line(line) == words


# --- the shells themselves --------------------------------------------------------------------------------------------


@pytest.fixture
def shell_home(seedream: Command) -> Command:
    """A home whose PATH has the command, and a folder with files in it."""
    tools = seedream.home / "bin"
    tools.mkdir()
    script = tools / "seedream"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m seedream_cli "$@"\n')
    script.chmod(0o755)
    seedream.env |= {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    (seedream.folder / "a photo.png").write_bytes(b"")
    (seedream.folder / "shots").mkdir()
    return seedream


def run(home: Command, *words: str) -> list[str]:
    """A shell's lines of output."""
    done = subprocess.run(words, env=home.env, cwd=home.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.splitlines()


def need(shell: str) -> None:
    """Skip where a shell is not there."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


BASH = r"""
source "$1"; line=$2; shift 2
COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_seedream seedream "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "words", "wanted"),
    [
        ("seedream gen", ["seedream", "gen"], ["generate"]),
        ("seedream generate -m 4.5 -s ", ["seedream", "generate", "-m", "4.5", "-s", ""], SIZES_OF_45),
        # Bash splits at = and :, and puts the answer behind them.
        ("seedream generate --size=2", ["seedream", "generate", "--size", "=", "2"], ["2K"]),
        ("seedream generate -m 4.5 -a 16:", ["seedream", "generate", "-m", "4.5", "-a", "16", ":"], ["9"]),
        ("seedream edit x a", ["seedream", "edit", "x", "a"], ["a photo.png"]),
        ("seedream batch x.csv ", ["seedream", "batch", "x.csv", ""], ["shots"]),
    ],
)
def test_bash_completes(shell_home: Command, line: str, words: list[str], wanted: list[str]) -> None:
    """The function of the bash script fills COMPREPLY as readline needs it."""
    need("bash")
    script = str(ROOT / "completions" / "seedream.bash")
    found = run(shell_home, "bash", "--norc", "-c", BASH, "bash", script, line, *words)
    assert [word for word in found if word not in {"1K", "1.5K", "3K"} and not re.match(r"2[0-9]+x", word)] == wanted


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("seedream gen", ["generate"]),
        ("seedream generate -m 4.5 -s ", SIZES_OF_45),
        ("seedream generate --output=a", ["--output=a photo.png"]),
        ("seedream edit x a", ["a photo.png"]),
        ("seedream batch x.csv ", ["shots/"]),
    ],
)
def test_fish_completes(shell_home: Command, line: str, wanted: list[str]) -> None:
    """Fish's own `complete -C` offers what its script prints."""
    need("fish")
    script = ROOT / "completions" / "seedream.fish"
    found = run(shell_home, "fish", "--no-config", "-c", f"source {script}; complete -C '{line}'")
    assert [text.partition("\t")[0].replace("\\ ", " ") for text in found] == wanted


def typed_at(home: Command, shell: list[str], text: str, done: str) -> str:
    """What a terminal shows once `done` stands in it, after `text` was typed to an interactive shell."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        shell, env=home.env, cwd=home.folder, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    shown, waited = "", time.monotonic() + 20
    try:
        os.write(leader, text.encode())
        while done not in shown and time.monotonic() < waited:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65_536).decode(errors="replace")
        return shown
    finally:
        process.kill()
        process.wait()
        os.close(leader)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [("gen", "generate "), ("generate -p bytep", "byteplus "), ("generate --size=1.5", "--size=1.5K "),
     ("edit x a", "a\\ photo.png ")],
)  # fmt: skip
def test_zsh_completes(shell_home: Command, line: str, wanted: str) -> None:
    """In an interactive zsh the Tab key finishes the word, the file's name and the joined value."""
    need("zsh")
    (shell_home.home / ".zshrc").write_text(
        f"fpath=({ROOT}/completions $fpath)\nautoload -Uz compinit && compinit -u -D\nPS1='> '\n"
        "unsetopt zle_bracketed_paste\n"
        "show() { BUFFER=\"print -r -- '<<'${(qq)BUFFER}'>>'\"; zle accept-line }\nzle -N show\nbindkey '^X' show\n"
    )
    shell_home.env |= {"ZDOTDIR": str(shell_home.home)}
    shown = typed_at(shell_home, ["zsh", "-i"], f"seedream {line}\t\x18", ">>\r\n")
    assert re.search(r"<<seedream (.*)>>\r\n", shown), shown
    assert re.search(r"\n<<seedream (.*)>>\r\n", shown)[1].endswith(wanted)  # type: ignore[index]


# --- how long it takes ------------------------------------------------------------------------------------------------


def test_an_answer_loads_nothing_heavy() -> None:
    """A Tab loads none of what is heavy."""
    heavy = (
        "typer",
        "httpx",
        "rich",
        "pydantic",
        "sqlite3",
        "asyncio",
        "PIL",
        "dataclasses",
        "seedream_cli.request.models",
    )
    code = f"""
import sys
from seedream_cli.cli.completion import respond
assert respond("bash", ["seedream generate -m 4.5 -s "]) == "words\\n2K\\n4K\\n"
print([m for m in {heavy!r} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    write_files()
