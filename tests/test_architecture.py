"""The house: which room may import what, read from the syntax trees."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "seedream_cli"
FILES = sorted(ROOT.rglob("*.py"))


def place_of(path: Path) -> str:
    """The room and the name of a file: "network/client"."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


def room(path: Path) -> str:
    """The room a file belongs to; a file of the top level is one of its own."""
    return place_of(path).partition("/")[0]


def is_at_home(place: str, homes: set[str]) -> bool:
    """Whether a file is one of these, or lies in one of these rooms."""
    return place in homes or place.partition("/")[0] in homes


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree, read once for all tests."""
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Absolute names of all that a file imports, our own as `seedream_cli.x`."""
    package = ("seedream_cli", *path.relative_to(ROOT).parts[:-1])
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_imports_go_down_only() -> None:
    """The layers of pyproject.toml hold, and every file has its room."""
    pytest.importorskip("importlinter", reason="import-linter is not installed: pip install -e '.[dev]'")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert done.returncode == 0, done.stdout


TOP = {"__init__", "__main__", "errors", "redaction", "results", "text"}


def test_every_file_lies_in_a_room() -> None:
    """Nothing but what every room needs stands outside of one, and every room says what it is for."""
    for path in FILES:
        place = place_of(path)
        assert "/" in place or place in TOP, f"{place} lies in no room"
        if path.name == "__init__.py":
            assert ast.get_docstring(tree_of(path)), f"{place} does not say what its room is for"


ONLY = {
    "typer": {"cli"},
    "click": set(),
    "httpx": {"network/transports", "network/connections", "sandbox/transport"},
    "httpcore": {"network/transports", "network/connections"},
    "h11": set(),
    "httptools": set(),
    "rich": {"output/live_progress", "output/tables"},
    "sqlite3": {"ledger"},
    "platformdirs": {"config/environment"},
    "difflib": {"text"},
    "fcntl": {"storage/filesystem"},
    "msvcrt": {"storage/filesystem"},
    "PIL": {
        "sandbox/drawing",
        "request/reference_metadata",
        "request/reference_fit",
        "storage/image_containers",
        "storage/pixel_check",
    },
    "requests": set(),
    "openai": set(),
}


@pytest.mark.parametrize("package", ONLY)
def test_each_library_has_its_rooms(package: str) -> None:
    """A library is imported only in the rooms that own it."""
    for path in FILES:
        place = place_of(path)
        for name, line in imports(path):
            if name.split(".")[0] == package:
                assert is_at_home(place, ONLY[package]), f"{place}:{line} imports {package}"


@functools.cache
def calls(path: Path) -> list[tuple[str, int]]:
    """Dotted names of everything a file calls or reads as an attribute."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append((f"{node.value.id}.{node.attr}", node.lineno))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append((node.func.id, node.lineno))
    return found


DIALECT = re.compile(
    r"PRAGMA|\bjson_\w+\(|GLOB|INSERT OR|ON CONFLICT|\browid\b|ATTACH DATABASE|\binstr\(|\btypeof\(|TEMP TABLE|"
    r"IS (NOT )?\?|sqlite_master|group_concat|BEGIN IMMEDIATE"
)


def test_sql_that_only_sqlite_takes_stands_in_one_file() -> None:
    """A second database needs its own words for that file, and no other."""
    found = {place_of(path) for path in FILES if DIALECT.search(path.read_text())}
    assert found == {"ledger/schema"}


OWNERS = {
    "os.environ": {"config/environment"},
    "os.getenv": {"config/environment"},
    "print": set(),
    "asyncio.run": {"engine"},
    "asyncio.sleep": {"network/policy", "sandbox/transport"},
    "sys.stdout": {"cli/context", "__main__"},
    "sys.stderr": {"cli/context"},
    "time.sleep": {"sandbox/server"},
    "sys.exit": {"__main__"},
    "os.fsync": {"storage/filesystem", "storage/image_file", "storage/reply_file", "ledger/file"},
    "os.link": {"storage/filesystem"},
    "os.rename": set(),
    "os.replace": set(),
}


@pytest.mark.parametrize("name", OWNERS)
def test_each_deed_has_its_room(name: str) -> None:
    """Reading the environment, printing, sleeping and looping happen in one place each."""
    for path in FILES:
        place = place_of(path)
        for called, line in calls(path):
            assert called != name or is_at_home(place, OWNERS[name]), f"{place}:{line} uses {name}"


def test_providers_are_pure() -> None:
    """A dialect does no I/O, reads no clock and knows no provider but its declared parent."""
    forbidden = {"os", "time", "datetime", "asyncio", "httpx", "pathlib", "socket", "random", "subprocess", "io"}
    for path in (ROOT / "providers").glob("*.py"):
        for name, line in imports(path):
            assert name.split(".")[0] not in forbidden, f"providers/{path.name}:{line} imports {name}"


def test_provider_and_model_names_stay_at_home() -> None:
    """A provider's name stands in providers/ (and as a key of a model's ids); a model's name in models.py alone."""
    from seedream_cli.providers import PROVIDERS
    from seedream_cli.request.models import MODELS

    models = {text for row in MODELS for ids in row.ids.values() for text in (row.name, *ids)}
    for path in FILES:
        here, place = room(path), place_of(path)
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if here not in {"providers", "sandbox"} and place != "request/models":
                assert node.value not in set(PROVIDERS) - {"sandbox"}, f"{where} names a provider"
            if here != "sandbox" and place != "request/models":
                assert node.value not in models, f"{where} names a model"


def test_importing_the_command_line_is_light() -> None:
    """`seedream --help` waits for none of the heavy libraries."""
    heavy = ("httpx", "rich", "pydantic", "sqlite3", "asyncio", "PIL", "platformdirs", "tomllib")
    code = f"import sys, seedream_cli.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _calls_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def test_every_error_code_is_raised_and_registered() -> None:
    """Each code of the JSON output is raised somewhere, and each one raised has its exit code."""
    from seedream_cli.errors import EXIT_CODES

    trees = [tree_of(path) for path in FILES if room(path) != "errors"]
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {node.func.id for tree in trees for node in ast.walk(tree) if _calls_a_name(node)}
    own = {"InputError": "validation", "ConfigError": "config", "LinkError": "download", "FileError": "filesystem"}
    own |= {"BusyError": "busy", "InternalError": "internal", "BudgetError": "budget"}
    own |= {"InterruptedRunError": "interrupted"}
    by_class = {kind for name, kind in own.items() if name in names}
    given = {
        word.value.value
        for tree in trees
        for word in ast.walk(tree)
        if isinstance(word, ast.keyword) and word.arg == "kind" and isinstance(word.value, ast.Constant)
    }
    raised = {kind for kind in given if isinstance(kind, str)} - {"file", "url", "data", "switch", "list", "count"}
    assert not {kind for kind in EXIT_CODES if kind not in texts | by_class}
    assert raised <= set(EXIT_CODES)
