"""Every option, a row each: its names, help, valid values, and the sources that may set it.

The command line, SEEDREAM_ variables, settings files, prompt files and table columns all read these rows.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Problem
from ..request.limits import COUNT_MOST, GROUP_MOST
from . import option_kinds as kinds
from .option_kinds import BadValueError, Check, Choice, Number, Whole

if TYPE_CHECKING:
    from ..request.image_request import OptionValues
    from .settings import SettingsLayer

Kind = Literal["value", "switch", "list", "count"]

Source = Literal["variable", "file", "prompt", "column"]
"""Where an option may be set beside the command line: environment, settings file, prompt file's block, table."""

REQUEST, OUTPUT, RELIABILITY, PROVIDER, BATCH = "Request", "Output", "Reliability", "Provider", "Batch"

_RUN = "variable file prompt"

_ROW = f"{_RUN} column"

_NEVER = "-"
"""No source, yet known to all, so that the error says "give it on the command line" and not "unknown"."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `key` is its name in code, `flags` its names on the command line, the long one first.

    `kind` is how many values it takes, `check` parses one, `default` holds for every model and provider; an option
    without default is left out of the request. `sources` may set it beside the command line of `commands`. `safe`: an
    untrusted project file may set it. `off` marks the off side of a switch, such as `no-watermark`.
    """

    key: str
    flags: str
    help: str
    metavar: str = ""
    kind: Kind = "value"
    check: Check = kinds.text
    default: str | None = None
    safe: bool = False
    group: str = ""
    commands: str = ""
    sources: str = ""
    off: bool = False

    @property
    def flag(self) -> str:
        """The long flag: `--response-format`."""
        return self.flags.split()[0].partition("/")[0]

    @property
    def name(self) -> str:
        """The name in settings files: `response_format`."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def is_number(self) -> bool:
        """Whether a settings file writes its value as a number; the model 4.5 stays text."""
        return isinstance(self.check, Whole | Number)

    @property
    def words(self) -> Sequence[str]:
        """The valid words, for completion; empty where `check` is no `Choice`."""
        return self.check.words if isinstance(self.check, Choice) else ()

    def accepts(self, source: Source) -> bool:
        """Whether this source may set it."""
        return source in self.sources.split()

    def parse(self, text: str, origin: str, found: list[Problem]) -> Any:
        """Parse a text; None, with a problem added to `found`, where it is not valid."""
        try:
            return self.check(text)
        except BadValueError as error:
            found.append(Problem(self.key, error.message, error.hint, origin=origin))
            return None

    def parse_switch(self, text: str) -> bool:
        """Parse a boolean, inverted on the off side of the switch. Raises `BadValueError`."""
        return kinds.switch(text) is not self.off

    def parse_toml(self, value: Any) -> Any:
        """A TOML value as str, bool or tuple of str, by the option's kind. Raises `BadValueError`."""
        is_plain = isinstance(value, str | int | float)
        if self.kind == "switch" and is_plain:
            return self.parse_switch(str(value))
        if self.kind in {"value", "count"} and is_plain and not isinstance(value, bool):
            return str(value)
        if self.key == "extra" and isinstance(value, dict):
            import json

            return tuple(f"{key}={json.dumps(item, default=str)}" for key, item in value.items())
        items = value if isinstance(value, list) else [value]
        if self.kind == "list" and all(isinstance(item, str) for item in items):
            return tuple(items)
        wanted = {"switch": "true or false", "list": "a list of texts"}.get(self.kind, "text or a number")
        raise BadValueError(f"{self.name} takes {wanted}")


def _group(group: str, commands: str, sources: str, *rows: Option) -> tuple[Option, ...]:
    """Rows with the fields that most of them share."""
    return tuple(
        replace(row, group=group, commands=row.commands or commands, sources=row.sources or sources) for row in rows
    )


# --- the rows ---------------------------------------------------------------------------------------------------------

# fmt: off
_SINGLE = "generate edit"

_SENDING = f"{_SINGLE} batch"

_ALL = f"{_SENDING} recover doctor"

_EVERY = f"{_SENDING} recover"

_EDIT = _group(
    REQUEST, "edit", _RUN,
    Option("each", "--each", "One request for each image.", kind="switch", safe=True),
    Option("layers", "--layers", "Split one image into layers (5.5, 5.0 Pro and Flash); needs no prompt.",
           kind="switch", safe=True, sources=_ROW),
)

_RECOVER = _group(
    REQUEST, "recover", "",
    Option("task", "--task", "Save the images of this task at the provider. Repeatable.", "ID", kind="list"),
)

# For one run of a batch, so no file, table or variable sets them.
_BATCH = _group(
    BATCH, "batch", "",
    Option("prompt_template", "--prompt", "The prompt of every row, columns in it as {column}.", "TEMPLATE"),
    Option("lines", "--lines", "The table is one prompt a line, as a .txt file is.", kind="switch"),
    Option("map", "--map", "Take COLUMN for OPTION; without OPTION it is a variable. Repeatable.",
           "COLUMN=OPTION", kind="list"),
    Option("only", "--only", "Run only rows that failed, whose outcome is unknown, or whose files are gone for good.",
           "WHICH", check=Choice(("failed", "unknown", "missing"))),
    Option("shard", "--shard", "Run only part I of N parts; auto asks the variables of the CI or cluster.",
           "I/N|auto"),
    Option("verify", "--verify", "Hash the files that are there, and fetch again what is damaged.", kind="switch"),
    Option("explain_stale", "--explain-stale", "Say of each row that would run why, and send nothing.", kind="switch"),
    Option("yes", "--yes -y", "Do not ask before a costly run.", kind="switch"),
    Option("merge", "--merge", "Join the folders of shards into one. Sends nothing.", kind="switch"),
)

_BATCH_SET = _group(
    BATCH, "batch", _RUN,
    Option("concurrency", "--concurrency", "Most requests in flight. Default 8.",
           "N", check=Whole(1, 1000), default="8", safe=True),
    Option("ipm", "--ipm", "Most images a minute. Default: what is known of the provider.",
           "N", check=Whole(1, 10**9), safe=True),
    Option("rpm", "--rpm", "Most requests a minute. Default: what is known of the provider.",
           "N", check=Whole(1, 10**9), safe=True),
    Option("limit", "--limit", "Run at most N rows this time.", "N", check=Whole(1, 10**9), safe=True),
    Option("fail_fast", "--fail-fast", "Take no new row once one has failed.", kind="switch", safe=True),
    Option("max_failures", "--max-failures", "Take no new row once N have failed.",
           "N", check=Whole(0, 10**9), safe=True),
    Option("results", "--results", "Where the table of results goes. Default: results.csv in the output folder.",
           "FILE", check=kinds.path, default="results.csv"),
)

_REQUEST = _group(
    REQUEST, _SENDING, _ROW,
    Option("prompt_file", "--prompt-file -f", "Read the prompt from FILE (- is standard input). Repeatable.",
           "FILE", kind="list", sources=_NEVER),
    Option("var", "--var", "Fill {name} in the prompt with VALUE. Repeatable.",
           "NAME=VALUE", kind="list", sources="prompt"),
    Option("model", "--model -m", "Model name such as 5.0-lite or 4.5, or an id; `seedream models` lists them.",
           "NAME", safe=True, commands=f"{_SENDING} doctor"),
    Option("size", "--size -s", "Tier (1K 1.5K 2K 3K 4K) or WIDTHxHEIGHT. Default 2K.",
           "SIZE", check=kinds.size, safe=True),
    Option("aspect", "--aspect -a", "Ratio such as 16:9: the exact pixels of the tier in that shape.",
           "W:H", check=kinds.aspect, safe=True),
    Option("count", "--count -n", "Send N independent requests, each billed. Default 1.",
           "N", check=Whole(1, COUNT_MOST), default="1", safe=True),
    Option("sequence", "--sequence", "One request for a related set of up to N images.",
           "N|auto", check=Whole(1, GROUP_MOST, "auto"), safe=True),
    Option("image", "--image -i", "Reference: a file, a URL, a data URI or -. Repeatable.",
           "REF", kind="list", safe=True),
    Option("keep_metadata", "--keep-metadata",
           "Send references as they are, EXIF and GPS too; else upright and without.",
           kind="switch"),
    Option("fit_images", "--fit-images", "Shrink or convert references that are too big, and say so.",
           kind="switch", safe=True),
    Option("seed", "--seed", "Seed, -1 to 2147483647, for models that take one.",
           "N", check=Whole(-1, 2**31 - 1), safe=True),
    Option("guidance_scale", "--guidance-scale", "How closely to follow the prompt, 1 to 10 (3.0 models).",
           "X", check=Number(1, 10), safe=True),
    Option("format", "--format", "File format asked of the model: jpeg or png.",
           "jpeg|png", check=Choice(("jpeg", "png"), {"jpg": "jpeg"}), safe=True),
    Option("response_format", "--response-format", "How the image travels: url (default) or b64_json.",
           "url|b64_json", check=Choice(("url", "b64_json"), {"b64": "b64_json"}), default="url", safe=True),
    Option("optimize_prompt", "--optimize-prompt", "Prompt rewriting at the provider: standard or fast.",
           "standard|fast", check=Choice(("standard", "fast")), safe=True),
    Option("web_search", "--web-search/--no-web-search", "Let the model search the web (5.0 lite).",
           kind="switch", default="false", safe=True),
    Option("background", "--background", "transparent or opaque (5.5; 5.0 Pro and Flash from one PNG).",
           "HOW", check=Choice(("transparent", "opaque", "auto")), safe=True),
    Option("stream", "--stream/--no-stream", "Save each image the moment it is made.",
           kind="switch", default="false", safe=True),
    Option("watermark", "--watermark/--no-watermark", "Ask for the provider's watermark. Default: none.",
           kind="switch", default="false", safe=True),
    Option("asynchronous", "--async/--sync", "Submit a task and poll it (AceData; default there).",
           kind="switch", safe=True),
    Option("callback_url", "--callback-url", "Submit a task, have its result POSTed to URL, and end (AceData).",
           "URL", check=kinds.link),
    Option("extra", "--extra", "Merge KEY=JSON into the request body, last. Repeatable.", "KEY=JSON", kind="list"),
    Option("force", "--force", "Send although a local check refuses.", kind="switch"),
    Option("strict", "--strict", "Refuse where an option would be ignored or dropped.", kind="switch", safe=True),
)

_OUTPUT = _group(
    OUTPUT, _EVERY, _RUN,
    Option("output", "--output -o", "File or folder; - writes one image to standard output. Default: here.",
           "PATH", check=kinds.path, safe=True, commands=_ALL),
    Option("name", "--name", "File name without suffix: {slug} {id} {index} {row} {model} {seed} {date} {hash}.",
           "TEMPLATE", check=kinds.template, safe=True, sources=_ROW),
    Option("if_exists", "--if-exists", "rename (default), skip, error (default for a named file) or overwrite.",
           "HOW", check=Choice(("rename", "skip", "error", "overwrite")), default="rename", safe=True),
    Option("no_download", "--no-download", "Print the result links instead of saving images.",
           kind="switch", safe=True, commands=_SENDING),
    Option("json", "--json", "Print one JSON object on standard output.",
           kind="switch", safe=True, commands=_ALL),
    Option("progress", "--progress", "auto, bar, plain or none; on standard error.",
           "KIND", check=Choice(("auto", "bar", "plain", "none")), default="auto", safe=True),
    Option("quiet", "--quiet -q", "Only results and errors.", kind="switch", safe=True),
    Option("verbose", "--verbose -v", "Say more; -vv shows the wire with secrets masked.",
           kind="count", check=Whole(0, 9), safe=True, sources="variable file"),
    Option("dry_run", "--dry-run", "Check everything, print the exact body and send nothing.",
           kind="switch", safe=True, commands=_SENDING),
    Option("curl", "--curl", "Print the same request as a curl command and send nothing.",
           kind="switch", safe=True, commands=_SINGLE),
    Option("explain", "--explain", "Print what becomes of every option here and send nothing.",
           kind="switch", safe=True, commands=_SINGLE),
)

_RELIABILITY = _group(
    RELIABILITY, _EVERY, _RUN,
    Option("timeout", "--timeout", "Most seconds for one request. Default 600.",
           "S", check=Number(0.1, 86_400), default="600", safe=True),
    Option("connect_timeout", "--connect-timeout", "Most seconds to connect. Default 10.",
           "S", check=Number(0.1, 3_600), default="10", safe=True),
    Option("retries", "--retries", "Further tries after a failure proven unbilled. Default 4.",
           "N", check=Whole(0, 100), default="4", safe=True),
    Option("retry_ambiguous", "--retry-ambiguous", "Also re-send what may have been billed.",
           kind="switch", default="false", commands=_SENDING),
    Option("max_cost", "--max-cost", "Refuse to start, or stop, rather than spend more than this (USD).",
           "AMOUNT", check=Number(0, 1_000_000), commands=_SENDING),
    Option("max_unknown", "--max-unknown", "Send nothing new after N unknown outcomes in a row. Default 3.",
           "N", check=Whole(1, 1_000_000), default="3", commands=_SENDING),
    Option("ledger", "--ledger/--no-ledger", "Write down what is sent and paid (default), or not.", kind="switch"),
    Option("reuse", "--reuse", "Return the files of the same request where they exist, at no cost.",
           kind="switch", safe=True, commands=_SINGLE),
)

_PROVIDER = _group(
    PROVIDER, _ALL, _RUN,
    Option("provider", "--provider -p", "cometapi acedata ope ark byteplus openai sandbox.",
           "NAME", check=kinds.provider, safe=True, sources=_ROW),
    Option("base_url", "--base-url", "Another address of the API, with or without its version.", "URL"),
    Option("api_key_file", "--api-key-file", "Read the key from FILE, or from standard input with -.", "FILE"),
    Option("proxy", "--proxy", "Proxy for every connection; else the environment's.", "URL", check=kinds.proxy),
    Option("profile", "--profile", "Use [profiles.NAME] of the configuration files.",
           "NAME", safe=True, sources="variable file"),
    Option("config", "--config", "Read FILE instead of the user's configuration file.", "FILE", sources="variable"),
)

# fmt: on

_ROWS = (*_EDIT, *_RECOVER, *_BATCH, *_BATCH_SET, *_REQUEST, *_OUTPUT, *_RELIABILITY, *_PROVIDER)

OPTIONS: Mapping[str, Option] = {row.key: row for row in _ROWS}
"""Every option by its key."""

SETTABLE = tuple(row for row in sorted(_ROWS, key=lambda row: row.group == BATCH) if row.sources)
"""Every option that some source may set, the batch's own last."""


def options_of(command: str) -> tuple[Option, ...]:
    """The options that a command takes, in the order of its help."""
    return tuple(row for row in _ROWS if command in row.commands.split())


@functools.cache
def by_name() -> Mapping[str, Option]:
    """Options by long flag without dashes, the off sides of switches too."""
    named = {}
    for row in SETTABLE:
        for flag in (flag for flags in row.flags.split() for flag in flags.split("/") if flag.startswith("--")):
            named[flag.removeprefix("--")] = replace(row, off=f"/{flag}" in row.flags)
    return named


def find_option(name: str) -> Option | None:
    """The option of a name, with dashes or underscores; None where there is none."""
    return by_name().get(name.replace("_", "-"))


def value_of(key: str, given: OptionValues | SettingsLayer, found: list[Problem]) -> Any:
    """The parsed value of one option; None where it is not set or, with a problem added to `found`, not valid."""
    text = given.values.get(key)
    return None if text is None else OPTIONS[key].parse(text, given.origins.get(key, OPTIONS[key].flag), found)


def parse_values(given: OptionValues | SettingsLayer, found: list[Problem]) -> dict[str, Any]:
    """The parsed values of options; an invalid one is left out, with a problem added to `found`."""
    read = {key: value_of(key, given, found) for key in given.values if key in OPTIONS}
    return {key: value for key, value in read.items() if value is not None}
