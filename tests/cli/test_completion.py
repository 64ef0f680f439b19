"""A Tab in the shells themselves: what each place is offered, and that asking leaves nothing behind.

`python -m tests.cli.test_completion` writes `completions/` anew.
"""

from __future__ import annotations

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

from tests.support.command import Command

ROOT = Path(__file__).parents[2]
SCRIPTS = {"bash": "seedream.bash", "zsh": "_seedream", "fish": "seedream.fish", "powershell": "seedream.ps1"}


def write_files() -> None:
    """The scripts, as the command prints them."""
    from seedream_cli.cli.completion import completion_script

    for shell, name in SCRIPTS.items():
        (ROOT / "completions" / name).write_text(completion_script(shell) + "\n", encoding="utf-8")


def test_the_scripts_in_the_tree_are_what_the_command_prints(seedream: Command) -> None:
    """`python -m tests.cli.test_completion` makes `completions/`; a shell that is not known is refused."""
    for shell, name in SCRIPTS.items():
        assert seedream("--show-completion", shell).out == (ROOT / "completions" / name).read_text(encoding="utf-8")
    refused = seedream("--show-completion", "tcsh")
    assert refused.code == 2
    assert "shells: bash, zsh, fish, powershell" in refused.err


# --- what may stand where ---------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[str, set[str]]] = {
    "a command": ("gen", {"generate"}),
    "a command of a group": ("config key se", {"set"}),
    "an option": ("generate --guid", {"--guidance-scale"}),
    "a provider": ("generate -p by", {"byteplus"}),
    "a provider's key": ("config key set by", {"byteplus"}),
    "a model": ("edit x -m 5.0-f", {"5.0-flash"}),
    "a model to show": ("models 5.0-f", {"5.0-flash"}),
    "a model's id": ("generate -m doubao-seedream-4-5", {"doubao-seedream-4-5-251128"}),
    "sizes of the model": ("generate -m 4.5 -s ", {"2K", "4K"}),
    "sizes of a model's id": ("generate -m doubao-seedream-4-5-251128 --size ", {"2K", "4K"}),
    "sizes of all": ("batch t.csv -s 1.5", {"1.5K"}),
    "pixels of the model": ("generate --model=4.5 -s 2848", {"2848x1600"}),
    "an aspect": ("generate -m 4.5 -a 21", {"21:9"}),
    "a choice": ("generate --if-exists re", {"rename"}),
    "a profile": ("generate --profile ", {"night", "wide"}),
    "a profile of another file": ("generate --config other.toml --profile ", {"only", "wide"}),
    "a setting": ("config get max_c", {"max_cost"}),
    "a setting of a provider": ("config set providers.ark.b", {"providers.ark.base_url"}),
    "a status": ("history --status unk", {"unknown"}),
    "a shell": ("--show-completion z", {"zsh"}),
    "a prompt": ("generate ", set()),
    "an unfinished quote": ("generate 'a fox", set()),
    "no option": ("generate --what=x", set()),
    "no number": ("generate -n many --timeout x -p by", {"byteplus"}),
    "no file": ("generate --config gone.toml --profile ", {"wide"}),
}  # fmt: skip


@pytest.fixture
def home(seedream: Command) -> Command:
    """A home whose PATH has the command, with profiles, and a folder with files in it."""
    tools = seedream.home / "bin"
    tools.mkdir()
    script = tools / "seedream"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m seedream_cli "$@"\n')
    script.chmod(0o755)
    seedream.env |= {"PATH": f"{tools}:{os.environ['PATH']}", "TERM": "xterm"}
    (seedream.folder / "a photo.png").write_bytes(b"")
    (seedream.folder / "seedream.toml").write_text('[profiles.wide]\n[profiles."x;$(touch y)\\u001b"]\n')
    (seedream.folder / "other.toml").write_text("[profiles.only]\n")
    user = seedream.home / ".config" / "seedream" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[profiles.night]\nsize = "4K"\n')
    return seedream


@pytest.mark.parametrize("place", PLACES)
def test_each_place_gets_its_words(home: Command, place: str) -> None:
    """Commands, options and values of the given model, each where it goes; and silence where there is nothing."""
    line, wanted = PLACES[place]
    asked = {"_SEEDREAM_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = home(env=asked | {"_TYPER_COMPLETE_ARGS": f"seedream {line}"})
    found = {text.partition("\t")[0] for text in done.out.splitlines() if text}
    assert (found, done.err) == (wanted, "")
    assert not (home.home / "state").exists()
    assert not (home.folder / "y").exists()


def test_ids_of_the_history_are_offered_and_nothing_is_settled(home: Command) -> None:
    """The newest requests first; without a history there is none afterwards either, and a foreign file is let be."""
    asked = {"_SEEDREAM_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    home("generate", "a fox", "-n", "2", "-p", "sandbox", "-m", "4.0", "-s", "1K")
    ids = [row["id"] for row in home("history", "--json").json["requests"]]
    assert len(ids) == 2
    for line in ("history show ", "history resolve ", "recover "):
        done = home(env=asked | {"_TYPER_COMPLETE_ARGS": f"seedream {line}"})
        assert (done.out.split(), done.err) == (ids, "")
    ledger = home.home / "state" / "ledger.db"
    ledger.write_bytes(b"no ledger")
    done = home(env=asked | {"_TYPER_COMPLETE_ARGS": "seedream history show "})
    assert (done.out.strip(), done.err, ledger.read_bytes()) == ("", "", b"no ledger")


# --- the shells themselves --------------------------------------------------------------------------------------------


def typed_at(home: Command, shell: list[str], text: str, done: str) -> str:
    """What a terminal shows once `done` stands in it, after `text` was typed to an interactive shell."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        shell, env=home.env, cwd=home.folder, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    shown, waited = "", time.monotonic() + 50
    try:
        os.write(leader, text.encode())
        while not re.search(done, shown) and time.monotonic() < waited:
            if select.select([leader], [], [], 0.2)[0]:
                shown += os.read(leader, 65_536).decode(errors="replace")
        return shown
    finally:
        process.kill()
        process.wait()
        os.close(leader)


TYPED = [
    ("gen", "generate "),
    ("generate -p bytep", "generate -p byteplus "),
    ("generate -m 4.5 -s 2848", "generate -m 4.5 -s 2848x1600 "),
    ("edit x a", "edit x a\\ photo.png "),
]


@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_bash_completes(home: Command, line: str, wanted: str) -> None:
    """In an interactive bash the Tab key finishes the word and the file's name."""
    rc = home.home / "rc"
    # What follows the Tab puts the line, as it then stands, where it can be read.
    rc.write_text(
        f"PS1='> '\nsource {ROOT}/completions/seedream.bash\nbind 'set enable-bracketed-paste off'\n"
        "show() { printf '<<%s>>\\n' \"$READLINE_LINE\"; }\nbind -x '\"\\C-x\": show'\n"
    )
    shown = typed_at(home, ["bash", "--noprofile", "--rcfile", str(rc), "-i"], f"seedream {line}\t\x18", r"<<.*>>")
    assert f"<<seedream {wanted}>>" in shown, shown


@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_zsh_completes(home: Command, line: str, wanted: str) -> None:
    """In an interactive zsh the Tab key finishes the word and the file's name."""
    (home.home / ".zshrc").write_text(
        f"autoload -Uz compinit && compinit -u -D\nsource {ROOT}/completions/_seedream\n"
        "PS1='> '\nunset zle_bracketed_paste\n"
        "show() { BUFFER=\"print -r -- '<<'${(qq)BUFFER}'>>'\"; zle accept-line }\nzle -N show\nbindkey '^X' show\n"
    )
    home.env |= {"ZDOTDIR": str(home.home)}
    shown = typed_at(home, ["zsh", "-i"], f"seedream {line}\t\x18", r"\n<<.*>>\r\n")
    assert f"\n<<seedream {wanted}>>\r\n" in shown, shown


@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_fish_completes(home: Command, line: str, wanted: str) -> None:
    """Fish's own `complete -C` offers what its script prints."""
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    words = ["fish", "--no-config", "-c", f"source {ROOT}/completions/seedream.fish; complete -C 'seedream {line}'"]
    done = subprocess.run(words, env=home.env, cwd=home.folder, capture_output=True, text=True, timeout=60, check=False)
    found = [text.partition("\t")[0] for text in done.stdout.splitlines()]
    last = wanted.replace("\\ ", " ").removesuffix(" ").removeprefix(line.rpartition(" ")[0]).strip()
    assert (found, done.stderr) == ([last], "")


if __name__ == "__main__":
    write_files()
