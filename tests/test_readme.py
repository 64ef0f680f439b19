"""The README: each example is run as it stands, each table is held to the data, and nothing is promised that is not.

`python -m tests.test_readme` writes the model table anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from seedream_cli import __version__
from seedream_cli.cli import app
from seedream_cli.errors import EXIT_CODES, PARTIAL
from seedream_cli.output.model_table import models_markdown
from seedream_cli.providers import specs
from seedream_cli.request.models import MODELS
from seedream_cli.sandbox import faults
from tests.support.raw_server import free_port

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
MODEL_TABLE = re.compile(r"(?<=tests\.test_readme -->\n).*?(?=<!-- /models -->)", re.DOTALL)
PORT = "8111"
"""The port of the README's sandbox, which a test must not count on."""
OPTIONAL = ("jq", "curl")
"""Programs of examples that a machine may lack."""


# --- what the README shows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One command of an example, the lines shown below it, and the exit code it is said to end with."""

    command: str
    shown: tuple[str, ...]

    @property
    def code(self) -> int:
        """`# exit N` behind the command, else 0."""
        found = re.search(r"# exit (\d+)$", self.command)
        return int(found[1]) if found else 0


def blocks(language: str) -> list[str]:
    """The contents of every fence of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def steps(block: str) -> list[Step]:
    """The commands of an example, each a line that begins with `$ `."""
    first, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    assert not first, f"an example begins with a command: {block}"
    return [Step(command, tuple(shown)) for command, *shown in (part.splitlines() for part in parts)]


def table(first_header: str) -> list[list[str]]:
    """The rows of the table whose header begins with this word, as cells."""
    found = re.search(rf"^\| {first_header} \|.*\n\|[ -|]*\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert found, f"no table begins with {first_header}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in found[1].splitlines()]


def quoted(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)


# --- a place to run it in -------------------------------------------------------------------------------------------


class Shell:
    """A POSIX shell with an empty home and a bare environment, which finds the installed `seedream`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir(parents=True)
        scripts = Path(sys.executable).parent
        assert shutil.which("seedream", path=str(scripts)), f"seedream is not installed in {scripts}"
        path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
        self.env = {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"}
        self.port = str(free_port())

    def run(self, command: str) -> tuple[int, str]:
        """Run a command to its end: exit code and output; standard error goes where standard output goes."""
        done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, timeout=60, check=False, **self.ways)
        return done.returncode, done.stdout

    @property
    def ways(self) -> dict[str, Any]:
        """How a program is started here."""
        console = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        return {"cwd": self.folder, "env": self.env, **console}

    @contextmanager
    def serving(self, command: str) -> Iterator[None]:
        """A server that runs until the example ends; it is ready when it has said its first line."""
        with subprocess.Popen(["sh", "-c", f"exec {command}"], **self.ways) as process:
            assert process.stdout
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            try:
                yield
            finally:
                process.terminate()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A shell of its own."""
    return Shell(tmp_path)


def assert_shown(shown: tuple[str, ...], out: str) -> None:
    """Every shown line was printed, in this order; `…` stands for anything, and the id of a run for any id."""
    printed = iter(same_ids(out).splitlines())
    for line in shown:
        pattern = re.escape(same_ids(line)).replace("…", ".*")
        assert any(re.fullmatch(pattern, real) for real in printed), f"not printed (in this place): {line}\n{out}"


def same_ids(text: str) -> str:
    """The text with every run's id replaced by the same word."""
    return re.sub(r"\b[0-9]{6}-[0-9a-f]{6}\b", "ID", text)


# --- the tests ------------------------------------------------------------------------------------------------------


def test_the_first_section_is_two_lines_to_paste() -> None:
    """Two `sh` blocks in all, both before the first heading, a line each: an image, then the tests."""
    image, tests = blocks("sh")
    assert TEXT.index(image) < TEXT.index(tests) < TEXT.index("\n## ")
    for line in (image, tests):
        assert line.count("\n") == 1
        assert line.startswith("python3 -m venv .venv && ")
    assert "seedream generate " in image
    assert "--provider sandbox" in image
    assert "'.[dev]'" in tests
    assert tests.endswith(".venv/bin/pytest\n")
    assert 120 <= TEXT.count("\n") <= 250


@pytest.mark.skipif(sys.platform == "win32", reason="the examples are written for a POSIX shell")
@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.splitlines()[0][2:50])
def test_an_example_does_what_is_shown(shell: Shell, block: str) -> None:
    """The commands of a block, run one after another, end with the code and print the lines that are shown."""
    wanted = steps(block.replace(PORT, shell.port))
    for program in OPTIONAL:
        if not shutil.which(program) and any(re.search(rf"(^|\| ){program} ", step.command) for step in wanted):
            pytest.skip(f"there is no {program} here")
    if not wanted[0].command.endswith(" &"):
        run_steps(shell, wanted)
        return
    with shell.serving(wanted[0].command.removesuffix(" &")):
        run_steps(shell, wanted[1:])


def run_steps(shell: Shell, wanted: list[Step]) -> None:
    """Run commands in order. `cat FILE` shows a file that the reader has written, so it is written first."""
    for step in wanted:
        if step.command.startswith("cat "):
            (shell.folder / step.command.removeprefix("cat ")).write_text("\n".join(step.shown) + "\n")
        if "--api-key-file" in step.command:
            assert "--base-url http://127.0.0.1:" in step.command, f"would leave this machine: {step.command}"
        code, out = shell.run(step.command)
        assert code == step.code, f"{step.command}\n{out}"
        assert_shown(step.shown, out)


def test_the_provider_table_is_the_data(shell: Shell) -> None:
    """Every provider in its order with its variables and address, and an example that its dialect takes."""
    rows = table("provider")
    assert [quoted(row[0]) for row in rows] == [[spec.name] for spec in specs()]
    for spec, (_, variables, address, example) in zip(specs(), rows, strict=True):
        assert quoted(variables) == list(spec.key_variables)
        own = "" if spec.offline else spec.base_url
        assert [url for url in quoted(address) if "://" in url] == ([own] if own else [])
        code, out = shell.run(f"{quoted(example)[0]} --dry-run")
        assert code == 0, out
        assert f"it would go to {own}" in out
        assert "warning:" not in out


def test_the_model_table_is_the_data() -> None:
    """The table between the markers is the one that the data gives."""
    found = MODEL_TABLE.search(TEXT)
    assert found
    assert found[0] == models_markdown(MODELS), "run: python -m tests.test_readme"


def test_the_exit_codes_are_the_data() -> None:
    """Every exit code once, with every error code that ends in it."""
    named = {int(code): quoted(row[2]) for row in table("exit") for code in row[0].split(",")}
    expected: dict[int, list[str]] = {0: [], PARTIAL: [], 143: ["interrupted"]}
    for kind, code in EXIT_CODES.items():
        expected.setdefault(code, []).append(kind)
    assert named == expected
    again = re.search(r"^Worth a second try.*?Never: ([0-9, and]+)\.", TEXT, re.DOTALL | re.MULTILINE)
    assert again
    never = {int(code) for code in re.findall(r"\d+", again[1])}
    assert {int(row[0]) for row in table("exit") if row[4].startswith("never")} == never


def parameters() -> dict[str, set[str]]:
    """The long names of every option, by command ("history show"); "" for those of no command."""
    found: dict[str, set[str]] = {}

    def visit(command: Any, name: str) -> None:
        names = {n for parameter in command.params for n in (*parameter.opts, *parameter.secondary_opts)}
        found[name] = {n for n in names if n.startswith("--")}
        for word, inner in getattr(command, "commands", {}).items():
            visit(inner, f"{name} {word}".strip())

    visit(typer.main.get_command(app.app), "")
    return found


def test_every_command_and_option_is_there_and_no_other() -> None:
    """What the help offers stands in the README, and the README promises nothing that the help does not offer."""
    offered = parameters()
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", TEXT))
    known = set().union(*offered.values())
    assert sorted(known - said) == [], "options that the README does not name"
    assert sorted(said - known - {"--help"}) == [], "options that do not exist"
    commands = set(re.findall(r"(?:^\$ |bin/|`)seedream ([a-z]+)", TEXT, re.MULTILINE))
    assert commands == {name.split()[0] for name in offered if name}
    inner = {name for name in offered if " " in name}
    groups = {name.split()[0] for name in inner}
    named = set(re.findall(rf"`(?:seedream )?((?:{'|'.join(groups)})(?: [a-z]+)+)", TEXT))
    assert named == {name for name in inner if not any(other.startswith(f"{name} ") for other in inner)}


def test_variables_are_those_of_options() -> None:
    """A variable that the README names is an option's, the state folder's or the key's."""
    options = {name[2:].replace("-", "_").upper() for names in parameters().values() for name in names}
    named = set(re.findall(r"SEEDREAM_([A-Z_]+)", TEXT))
    assert named <= options | {"STATE_DIR", "API_KEY"}


def test_the_sandbox_faults_are_those_it_knows() -> None:
    """The README lists every fault that a prompt can ask of the sandbox."""
    fault = re.compile(r"\[\[([a-z-]+)")
    assert faults.__doc__
    assert set(fault.findall(TEXT)) == set(fault.findall(faults.__doc__))


def test_the_version_is_one() -> None:
    """README and CHANGELOG speak of the version that is here; what is not released stands under Unreleased."""
    assert set(re.findall(r"\bseedream ([0-9]+\.[0-9]+\.[0-9]+)", TEXT)) == {__version__}
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(numbers(heading) <= numbers(__version__) for heading in headings[1:])
    pinned = re.search(r"^requires-python = \">=([0-9.]+)\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert pinned
    assert f"Python {pinned[1]}" in TEXT


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, for comparing."""
    return tuple(int(part) for part in version.split("."))


if __name__ == "__main__":
    README.write_text(MODEL_TABLE.sub(lambda _: models_markdown(MODELS), TEXT), encoding="utf-8")
