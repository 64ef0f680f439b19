"""Tables of many rows timed up to the first request: `python -m tests.bench.bench_rows --help`. A command, never a
test.

The real command is run on tables of 1,000 and 100,000 rows, each time in a process of its own, as far as the question
whether to go on; nothing is sent. Its phases are timed apart:

    new            a first run: every row is checked, entered and surveyed
    dry            `--dry-run` in an empty folder
    again          a second run of the same table: every row is known and not sent
    limit          the same with `--limit 1000`
    done           a third one, when every row is done and its file is there
    done-dry       `--dry-run` of that

For each the CPU seconds of the phases are told, and as multiples of `csv.reader` over the same file, which says
more than seconds do; the wall time of the phases together; and the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHASES = ("check", "enter", "preview")
CASES = ("new", "dry", "again", "limit", "done", "done-dry")
MORE = {"dry": ["--dry-run"], "limit": ["--limit", "1000"], "done-dry": ["--dry-run"]}


def write_table(path: Path, rows: int) -> None:
    """A table such as people have: a prompt, options with few values, and a note."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "prompt", "size", "aspect", "seed", "note"])
        for row in range(rows):
            prompt = f"a fox in a forest, number {row}, watercolour on rough paper"
            writer.writerow([f"shot-{row:06}", prompt, "2K", ("16:9", "1:1", "3:4")[row % 3], row, f"note {row}"])


# --- the process that is measured -----------------------------------------------------------------------------------


def timed(name: str, call: Callable[..., Any], found: dict[str, list[float]]) -> Callable[..., Any]:
    """The function, its CPU and wall seconds noted."""

    def run(*arguments: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return call(*arguments)
        finally:
            found[name] = [time.process_time() - cpu, time.perf_counter() - wall]

    return run


def peak_mib() -> float:
    """The largest resident set. Not `getrusage`, which begins with that of the process that started this one."""
    text = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+([0-9]+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


def measure(words: Sequence[str]) -> None:
    """The command as far as the question whether to go on; what it took, as JSON on standard output."""
    from seedream_cli.batch import row_requests, run
    from seedream_cli.cli import app, batch

    found: dict[str, list[float]] = {}
    requests, rows = row_requests.RowRequests, run.Batch
    requests.check = timed("check", requests.check, found)  # type: ignore[method-assign]
    rows.enter = timed("enter", rows.enter, found)  # type: ignore[method-assign]
    rows.preview = timed("preview", rows.preview, found)  # type: ignore[method-assign]
    batch._agreed = lambda *_: False
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        app.main(["batch", *words])
    whole = os.times()
    print(json.dumps({"phases": found, "peak": peak_mib(), "cpu": whole.user + whole.system}))


def read_plainly(path: Path) -> float:
    """CPU seconds of `csv.reader` over the file."""
    began = time.process_time()
    with path.open(newline="") as file:
        for _ in csv.reader(file):
            pass
    return time.process_time() - began


# --- the cases ------------------------------------------------------------------------------------------------------


def finish(folder: Path) -> None:
    """Make every row of a batch done, with a file for each."""
    images = folder / "out"
    with contextlib.closing(sqlite3.connect(images / ".seedream" / "ledger.db")) as db, db:
        db.execute(
            "INSERT INTO images SELECT id, 0, 'saved', 'https://x/' || id, 1, row_id || '.png', 'png', 1, 1, 1, '', "
            "NULL FROM requests"
        )
        db.execute("UPDATE requests SET state = 'saved', owner = NULL, billed = 'yes', billed_images = 1")
        names = [row[0] for row in db.execute("SELECT path FROM images")]
    for name in names:
        (images / name).touch()


def run(table: Path, folder: Path, case: str) -> dict[str, Any]:
    """One case, in a process of its own."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    words = [str(table), "-p", "sandbox", "-q", "-o", str(folder / "out"), *MORE.get(case, ())]
    command = [sys.executable, "-m", "tests.bench.bench_rows", "--measure", "--", *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if set(found["phases"]) != set(PHASES):
        raise SystemExit(done.stderr)
    return found


def rounds(where: Path, rows: int, cases: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case once, in the order in which each makes what the next one needs."""
    table, folder = where / f"rows-{rows}.csv", where / f"home-{rows}"
    folder.mkdir()
    for case in CASES:
        if case == "done":
            finish(folder)
        if case in {"new", *cases}:
            yield case, run(table, folder, case)
    shutil.rmtree(folder)


def show(case: str, rows: int, made: Sequence[dict[str, Any]], plain: float) -> None:
    """A line of medians."""

    def middle(phase: str, at: int) -> float:
        return statistics.median(one["phases"][phase][at] for one in made)

    cpu = [middle(phase, 0) for phase in PHASES]
    wall = statistics.median(sum(one["phases"][phase][1] for phase in PHASES) for one in made)
    both = statistics.median(sum(one["phases"][phase][1] for phase in PHASES[:2]) for one in made)
    peak = statistics.median(one["peak"] for one in made)
    whole = statistics.median(one["cpu"] for one in made)
    times = "  ".join(f"{one:6.3f} {one / plain:6.1f}x" for one in cpu)
    print(f"{case:9} {rows:7}  {times}  {both:7.3f} {wall:7.3f} {whole:7.2f}  {peak:7.1f}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Time tables of many rows up to the first request.")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 100_000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.words)
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as home:
        where = Path(home)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        plain: dict[int, list[float]] = {rows: [] for rows in options.rows}
        for rows in options.rows:
            write_table(where / f"rows-{rows}.csv", rows)
        for _ in range(options.runs):
            for rows in options.rows:
                plain[rows].append(read_plainly(where / f"rows-{rows}.csv"))
                for case, one in rounds(where, rows, options.cases):
                    found.setdefault((case, rows), []).append(one)
    heads = "  ".join(f"{phase:>6} /csv   " for phase in PHASES)
    print(f"CPU s        rows  {heads} wall c+e     all process  peak MiB")
    for (case, rows), made in sorted(found.items(), key=lambda one: (CASES.index(one[0][0]), one[0][1])):
        show(case, rows, made, statistics.median(plain[rows]))
    for rows, times in plain.items():
        print(f"csv.reader {rows:6}  {statistics.median(times):6.3f}")


if __name__ == "__main__":
    main()
