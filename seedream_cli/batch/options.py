"""The options of a batch: what is chosen, how much is sent at once, and which shard of the table this run takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.environment import Environment
from ..config.options import value_of
from ..errors import Problem
from ..ledger.records import Caps
from ..request.image_request import OptionValues
from ..storage import file_names
from .identity import shard_of
from .table import Table

HOME = ".seedream"
"""The folder beside the images that holds the batch's ledger and its kept replies."""

STEP = 1000
"""Positions between two rows, for the requests of one row."""

Only = Literal["failed", "unknown", "missing"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, from 1, of `count`."""

    index: int = 1
    count: int = 1

    def has(self, key: str) -> bool:
        """Whether the row of this key is its."""
        return self.count == 1 or shard_of(key, self.count) == self.index - 1


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What holds for the whole batch. `folder` takes the images, `results` the table of results."""

    folder: Path
    results: Path
    shard: Shard = Shard()
    only: Only | None = None
    limit: int | None = None
    concurrency: int = 8
    max_failures: int = 0
    max_unknown: int = 3
    verify: bool = False

    @property
    def home(self) -> Path:
        """Where the batch's own files lie."""
        return self.folder / HOME

    def caps(self, caps: Caps) -> Caps:
        """What may be spent: `--max-cost` holds for all runs of the folder together, and each shard has its part."""
        if caps.run is None:
            return caps
        part = caps.run // self.shard.count if self.shard.count > 1 else None
        return Caps(None, caps.daily, caps.currency, caps.run, part, self.shard.has)


def read_order(options: OptionValues, table: Table, environment: Environment, found: list[Problem]) -> BatchOptions:
    """The options of the batch; what is wrong with them is added to `found`."""
    only = value_of("only", options, found)
    if only == "unknown" and not options.switches.get("retry_ambiguous"):
        hint = "add --retry-ambiguous to send them all the same, or settle them with `seedream history resolve`"
        found.append(Problem("only", "rows of unknown outcome may have been billed", hint, origin="--only"))
    shard = read_shard(options.values.get("shard"), environment.environ, found)
    folder = _read_folder(value_of("output", options, found), table, shard, found)
    results = value_of("results", options, found)
    failures = value_of("max_failures", options, found) or 0
    limit = value_of("limit", options, found)
    return BatchOptions(
        folder,
        Path(results) if results else folder / "results.csv",
        shard,
        only,
        limit,
        value_of("concurrency", options, found) or 8,
        1 if options.switches.get("fail_fast") else failures,
        value_of("max_unknown", options, found) or 3,
        options.switches.get("verify", False),
    )


def _read_folder(output: str | None, table: Table, shard: Shard, found: list[Problem]) -> Path:
    """Where images go: the folder given, else one that is called as the table."""
    if output is None:
        stem = Path(table.name).stem if table.folder != Path() or table.name != "standard input" else "batch"
        part = f"-{shard.index}-of-{shard.count}" if shard.count > 1 else ""
        return Path(f"{file_names.clean_name(stem)}{part}")
    folder = Path(output).expanduser()
    if output == "-" or folder.is_file():
        what = "standard output takes one image" if output == "-" else f"{output} is a file"
        found.append(Problem("output", f"{what}, and a batch fills a folder", "give a folder with -o", origin="-o"))
    return folder


_SHARD_VARIABLES = (
    # (number of this part, the first number, how many parts): GitLab counts from 1, the others from 0.
    ("CI_NODE_INDEX", 1, "CI_NODE_TOTAL"),
    ("CIRCLE_NODE_INDEX", 0, "CIRCLE_NODE_TOTAL"),
    ("BUILDKITE_PARALLEL_JOB", 0, "BUILDKITE_PARALLEL_JOB_COUNT"),
    ("AWS_BATCH_JOB_ARRAY_INDEX", 0, "AWS_BATCH_JOB_ARRAY_SIZE"),
    ("JOB_COMPLETION_INDEX", 0, "JOB_COMPLETIONS"),
)


def read_shard(text: str | None, environ: Mapping[str, str], found: list[Problem]) -> Shard:
    """`I/N`; or `auto`, or `auto/N` where the surroundings tell only the part's number, as Kubernetes does."""
    if text is None:
        return Shard()
    word, _, count = text.strip().lower().partition("/")
    if word == "auto" and (count.isdecimal() or "/" not in text):
        return _find_shard(count, environ, found)
    if word.isdecimal() and count.isdecimal() and 1 <= int(word) <= int(count) <= 100_000:
        return Shard(int(word), int(count))
    found.append(
        Problem("shard", f"{text!r} is no part", "write 2/4 for the second of four, or auto", origin="--shard")
    )
    return Shard()


def _find_shard(count: str, environ: Mapping[str, str], found: list[Problem]) -> Shard:
    """The part by the variables of a CI service or a cluster."""
    numbers = {name: int(text) for name, text in environ.items() if text.isdecimal() and len(text) < 10}
    places = [(name, first, numbers.get(total)) for name, first, total in _SHARD_VARIABLES]
    slurm = numbers.get("SLURM_ARRAY_TASK_COUNT"), numbers.get("SLURM_ARRAY_TASK_MIN", 0)
    step = max(1, numbers.get("SLURM_ARRAY_TASK_STEP", 1))
    places.append(("SLURM_ARRAY_TASK_ID", slurm[1], slurm[0]))
    for name, first, total in places:
        parts = int(count) if count.isdecimal() else total
        if name not in numbers or parts is None:
            continue
        index = (numbers[name] - first) // (step if name.startswith("SLURM") else 1)
        if 0 <= index < parts:
            return Shard(index + 1, parts)
        found.append(Problem("shard", f"${name} is {numbers[name]}, which is none of {parts} parts", origin="--shard"))
        return Shard()
    looked = ", ".join(name for name, _, _ in places)
    hint = f"give --shard I/N, or auto/N where only the part's number is set; looked at {looked}"
    found.append(Problem("shard", "no variable tells which part this is", hint, origin="--shard"))
    return Shard()
