"""No pattern takes long over a text that somebody else wrote."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seedream_cli.providers import faults
from tests.support.command import Command
from tests.support.provider_server import Upstream
from tests.support.raw_server import answer

ROOT = Path(__file__).parents[2] / "seedream_cli"
KEY = {"ARK_API_KEY": "sk-canary-0123456789-do-not-print"}
FUNCTIONS = {"compile", "match", "search", "fullmatch", "split", "sub", "subn", "findall", "finditer"}


def constant(node: ast.expr, names: dict[str, str | bytes]) -> str | bytes | None:
    """A pattern's text, with what an f-string puts in taken from the module's constants, or as a plain word."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.JoinedStr):
        parts = [
            str(part.value)
            if isinstance(part, ast.Constant)
            else str(names.get(part.value.id, "word"))
            if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name)
            else "word"
            for part in node.values
        ]
        return "".join(parts)
    return None


def uses(source: str, call: ast.Call, parents: dict[ast.AST, ast.AST]) -> set[str]:
    """By which functions a pattern is asked: its own, or those that its name is used with in the file."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr != "compile":
        return {call.func.attr}
    parent = parents.get(call)
    if not (isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name)):
        return {"match", "fullmatch", "search"}
    name = parent.targets[0].id
    found = set(re.findall(rf"\b{name}\.([a-z]+)\(", source)) | set(re.findall(rf"\bre\.([a-z]+)\({name}\b", source))
    return found or {"match", "fullmatch", "search"}


def patterns() -> list[tuple[str, str | bytes, int, list[str]]]:
    """Every pattern of the package with its place, its flags and how it is asked, from the syntax trees."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        names = {
            node.targets[0].id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str | bytes)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (
                isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.func.attr in FUNCTIONS
            ):
                continue
            text = constant(node.args[0], names)
            said = ast.unparse(node)
            flags = sum(int(getattr(re, name)) for name in ("IGNORECASE", "DOTALL", "ASCII") if f"re.{name}" in said)
            if text is not None:
                text = text.replace(b"%b", b"word") if isinstance(text, bytes) else text
                asked = {one if one in {"match", "fullmatch"} else "search" for one in uses(source, node, parents)}
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", text, flags, sorted(asked)))
    return found


# Runs in processes of their own, where only the processor's time for each text counts, which load does not change: a
# pattern that is linear takes less than a millisecond, one that is not takes a thousand times as long or never ends.
ATTACK = """
import re, resource, sys, time
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
LENGTH, MOST_S = 8_000, 0.2
UNITS = [" ", "a", "0", ".", "-", "/", '"', ",", "(", "=", "_", "{", ":", "[",
         "a.", "a-", "a ", " .", ";a", "\\\\a", "\\xff\\xd0"]
def words(text):
    return re.findall(r"[A-Za-z]{2,}(?:[:/ _-]+[A-Za-z]+)*[:/]*", text)
for place, text, flags, asked in eval(sys.stdin.read()):
    print(place, flush=True)
    pattern = re.compile(text, flags)
    plain = text.decode("latin-1") if isinstance(text, bytes) else text
    starts = [*dict.fromkeys(["", *words(plain)[:3]])]
    for start in starts:
        for unit in UNITS:
            once, often = start + unit * (LENGTH // len(unit)), (start + unit) * (LENGTH // len(start + unit))
            for attack in {once + "!", often + "!"}:
                given = attack.encode("latin-1") if isinstance(text, bytes) else attack
                for name in asked:
                    before = time.process_time()
                    getattr(pattern, name)(given)
                    if time.process_time() - before > MOST_S:
                        sys.exit()
print("done")
"""


def test_patterns_are_linear() -> None:
    """The worst cases of every pattern, 8,000 characters each."""
    found = patterns()
    assert len(found) > 80
    done = subprocess.run(
        [sys.executable, "-c", ATTACK], input=repr(found), capture_output=True, text=True, check=False
    )
    last = done.stdout.splitlines()[-1:]
    assert last == ["done"], f"the pattern at {last} takes too long: {done.stderr}"


WORST = {
    "spaces": " " * 300_000,
    "spaces in words": ("request id" + " " * 3000) * 100,
    "ids": "(request id: a" * 20_000,
    "dots": "." * 1_000_000,
    "data URI": "data:image/" + "a." * 500_000,
    "bearers": "Bearer " * 100_000,
}


@pytest.mark.parametrize("text", WORST.values(), ids=WORST)
@pytest.mark.parametrize("place", ["message", "code", "url", "detail", "text"])
def test_a_provider_s_words_hold_nothing_up(seedream: Command, text: str, place: str) -> None:
    """Whatever a provider says, and wherever, the run goes on: a pattern that is not linear takes hours over this."""
    bodies = {
        "message": {"error": {"code": "InvalidParameter", "message": text}},
        "code": {"error": {"code": text, "message": "no"}},
        "url": {"data": [{"url": text}]},
        "detail": {"detail": [{"loc": [text], "msg": text}]},
        "text": text,
    }
    body = json.dumps(bodies[place]).encode() if place != "text" else text.encode()
    status = 200 if place == "url" else 400
    with Upstream(script=lambda *_: answer(body, status=status), link=lambda *_: answer(status=404)) as upstream:
        done = seedream("generate", "cat", "-p", "ark", "--base-url", upstream.url, "--retries", "0", env=KEY)
        assert done.code in {4, 7, 8}, done.err
        assert len(upstream.posts) == 1
    assert len(done.err) < 8_000


def test_a_message_loses_its_request_id() -> None:
    """The id at the end of a message is told by itself, however it is set off."""
    for message in (
        "no such size (request id: 0123)",
        "no such size, Request-ID=0123.",
        "no such size request_id : 0123 ",
    ):
        fault = faults.fault_in({"error": {"message": message}})
        assert fault is not None
        assert (fault.message, fault.request_id) == ("no such size", "0123")
    for message in ("the request id is missing", "send the request again: now please", "request id:"):
        fault = faults.fault_in({"error": {"message": message}})
        assert fault is not None
        assert (fault.message, fault.request_id) == (message, "")


def test_a_settings_file_of_long_numbers_is_read(seedream: Command) -> None:
    """A line of forty digits in a project's file is no reason to think for years."""
    (seedream.folder / "seedream.toml").write_text("extra = [\n" + "1" * 60 + "\n]\n")
    assert seedream("generate", "cat", "-p", "sandbox", "--dry-run", timeout=60).code in {0, 2, 3}
