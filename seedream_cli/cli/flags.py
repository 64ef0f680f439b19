"""Every option, declared once: its name, its help, its group. A command takes groups of them and gets a `Chosen`."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from ..config.environment import Surroundings, read_surroundings, variable
from ..config.settings import Layer
from ..errors import InputError, Problem
from .completion import offer_aspects, offer_models, offer_profiles, offer_providers, offer_sizes, words

if TYPE_CHECKING:
    from ..config.prompt_file import Option, PromptText
    from ..request.image_request import Draft


class PlainGroup(TyperGroup):
    """A group that lists its commands in the order of their declaration, as plain text."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Commands as declared: the main one first."""
        return list(self.commands)


_SHARED: dict[str, Any] = {"cls": PlainGroup, "add_completion": False, "rich_markup_mode": None}

_File = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Instead of the user's file.", show_default=False)
]

_Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="As if chosen.", show_default=False, autocompletion=offer_profiles),
]

REQUEST, OUTPUT, RELIABILITY, PROVIDER, BATCH = "Request", "Output", "Reliability", "Provider", "Batch"

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)]

_Project = Annotated[bool, typer.Option("--project", help="In the project's seedream.toml, not the user's file.")]


@dataclass(frozen=True, slots=True)
class Flag:
    """One option. `key` is its name in code, environment and tables; `kind` how many values it takes.

    `offers` names the values that a shell may offer.
    """

    key: str
    names: tuple[str, ...]
    help: str
    group: str
    metavar: str = "TEXT"
    kind: Literal["value", "switch", "list", "count"] = "value"
    offers: Callable[..., Sequence[str | tuple[str, str]]] | None = None

    @property
    def annotation(self) -> Any:
        """The Typer parameter that this option is. Values stay text, so that one place checks them, all at once."""
        shared: dict[str, Any] = {"help": self.help, "rich_help_panel": self.group, "show_default": False}
        shared |= {"autocompletion": self.offers} if self.offers else {}
        if self.kind == "switch":
            return Annotated[bool | None, typer.Option(*self.names, **shared)]
        if self.kind == "count":
            return Annotated[int, typer.Option(*self.names, count=True, **shared)]
        if self.kind == "list":
            return Annotated[list[str] | None, typer.Option(*self.names, metavar=self.metavar, **shared)]
        return Annotated[str | None, typer.Option(*self.names, metavar=self.metavar, **shared)]


def _flags(group: str, *rows: tuple[Any, ...]) -> tuple[Flag, ...]:
    return tuple(Flag(key, tuple(names.split()), text, group, *rest) for key, names, text, *rest in rows)


_BACKGROUNDS = words("transparent", "opaque")

REQUEST_FLAGS = _flags(
    REQUEST,
    ("prompt_file", "--prompt-file -f", "Read the prompt from FILE (- is standard input). Repeatable.", "FILE", "list"),
    ("var", "--var", "Fill {name} in the prompt with VALUE. Repeatable.", "NAME=VALUE", "list"),
    (
        "model",
        "--model -m",
        "Model name such as 5.0-lite or 4.5, or an id; `seedream models` lists them.",
        "NAME",
        "value",
        offer_models,
    ),
    (
        "size",
        "--size -s",
        "Tier (1K 1.5K 2K 3K 4K) or WIDTHxHEIGHT. Default 2K.",
        "SIZE",
        "value",
        offer_sizes,
    ),
    (
        "aspect",
        "--aspect -a",
        "Ratio such as 16:9: the exact pixels of the tier in that shape.",
        "W:H",
        "value",
        offer_aspects,
    ),
    ("count", "--count -n", "Send N independent requests, each billed. Default 1.", "N"),
    ("sequence", "--sequence", "One request for a related set of up to N pictures.", "N|auto"),
    ("image", "--image -i", "Reference: a file, a URL, a data URI or -. Repeatable.", "REF", "list"),
    (
        "keep_metadata",
        "--keep-metadata",
        "Send references as they are, EXIF and GPS too; else upright and without.",
        "",
        "switch",
    ),
    ("fit_images", "--fit-images", "Shrink or convert references that are too big, and say so.", "", "switch"),
    ("seed", "--seed", "Seed, -1 to 2147483647, for models that take one.", "N"),
    ("guidance_scale", "--guidance-scale", "How closely to follow the prompt, 1 to 10 (3.0 models).", "X"),
    ("format", "--format", "File format asked of the model: jpeg or png.", "jpeg|png", "value", words("jpeg", "png")),
    (
        "response_format",
        "--response-format",
        "How the picture travels: url (default) or b64_json.",
        "url|b64_json",
        "value",
        words("url", "b64_json"),
    ),
    (
        "optimize_prompt",
        "--optimize-prompt",
        "Prompt rewriting at the provider: standard or fast.",
        "standard|fast",
        "value",
        words("standard", "fast"),
    ),
    ("web_search", "--web-search/--no-web-search", "Let the model search the web (5.0 lite).", "", "switch"),
    (
        "background",
        "--background",
        "transparent or opaque (5.5; 5.0 Pro and Flash from one PNG).",
        "HOW",
        "value",
        _BACKGROUNDS,
    ),
    ("stream", "--stream/--no-stream", "Save each picture the moment it is made.", "", "switch"),
    ("watermark", "--watermark/--no-watermark", "Ask for the provider's watermark. Default: none.", "", "switch"),
    ("asynchronous", "--async/--sync", "Submit a task and poll it (AceData; default there).", "", "switch"),
    ("callback_url", "--callback-url", "Submit a task, have its result POSTed to URL, and end (AceData).", "URL"),
    ("extra", "--extra", "Merge KEY=JSON into the request body, last. Repeatable.", "KEY=JSON", "list"),
    ("force", "--force", "Send although a local check refuses.", "", "switch"),
    ("strict", "--strict", "Refuse where an option would be ignored or dropped.", "", "switch"),
)

EDIT_FLAGS = _flags(
    REQUEST,
    ("each", "--each", "One request for each picture.", "", "switch"),
    ("layers", "--layers", "Split one picture into layers (5.5, 5.0 Pro and Flash); needs no prompt.", "", "switch"),
)

OUTPUT_FLAGS = _flags(
    OUTPUT,
    ("output", "--output -o", "File or folder; - writes one picture to standard output. Default: here.", "PATH"),
    ("name", "--name", "File name without suffix: {slug} {id} {index} {row} {model} {seed} {date} {hash}.", "TEMPLATE"),
    (
        "if_exists",
        "--if-exists",
        "rename (default), skip, error (default for a named file) or overwrite.",
        "HOW",
        "value",
        words("rename", "skip", "error", "overwrite"),
    ),
    ("no_download", "--no-download", "Print the result links instead of saving pictures.", "", "switch"),
    ("json", "--json", "Print one JSON object on standard output.", "", "switch"),
    (
        "progress",
        "--progress",
        "auto, bar, plain or none; on standard error.",
        "KIND",
        "value",
        words("auto", "bar", "plain", "none"),
    ),
    ("quiet", "--quiet -q", "Only results and errors.", "", "switch"),
    ("verbose", "--verbose -v", "Say more; -vv shows the wire with secrets masked.", "", "count"),
    ("dry_run", "--dry-run", "Check everything, print the exact body and send nothing.", "", "switch"),
    ("curl", "--curl", "Print the same request as a curl command and send nothing.", "", "switch"),
    ("explain", "--explain", "Print what becomes of every option here and send nothing.", "", "switch"),
)

RELIABILITY_FLAGS = _flags(
    RELIABILITY,
    ("timeout", "--timeout", "Most seconds for one request. Default 600.", "S"),
    ("connect_timeout", "--connect-timeout", "Most seconds to connect. Default 10.", "S"),
    ("retries", "--retries", "Further tries after a failure proven unbilled. Default 4.", "N"),
    ("retry_ambiguous", "--retry-ambiguous", "Also re-send what may have been billed.", "", "switch"),
)

MONEY_FLAGS = _flags(
    RELIABILITY,
    ("max_cost", "--max-cost", "Refuse to start, or stop, rather than spend more than this (USD).", "AMOUNT"),
    ("max_unknown", "--max-unknown", "Send nothing new after N unknown outcomes in a row. Default 3.", "N"),
    ("ledger", "--ledger/--no-ledger", "Write down what is sent and paid (default), or not.", "", "switch"),
    ("reuse", "--reuse", "Return the files of the same request where they exist, at no cost.", "", "switch"),
)

PROVIDER_FLAGS = _flags(
    PROVIDER,
    (
        "provider",
        "--provider -p",
        "cometapi acedata ope ark byteplus openai sandbox.",
        "NAME",
        "value",
        offer_providers,
    ),
    ("base_url", "--base-url", "Another address of the API, with or without its version.", "URL"),
    ("api_key_file", "--api-key-file", "Read the key from FILE, or from standard input with -.", "FILE"),
    ("proxy", "--proxy", "Proxy for every connection; else the environment's.", "URL"),
    ("profile", "--profile", "Use [profiles.NAME] of the configuration files.", "NAME", "value", offer_profiles),
    ("config", "--config", "Read FILE instead of the user's configuration file.", "FILE"),
)

GENERATE_FLAGS = REQUEST_FLAGS + OUTPUT_FLAGS + RELIABILITY_FLAGS + MONEY_FLAGS + PROVIDER_FLAGS

BATCH_TYPED_FLAGS = _flags(
    BATCH,
    ("prompt_template", "--prompt", "The prompt of every row, columns in it as {column}.", "TEMPLATE"),
    (
        "lines",
        "--lines",
        "The table is one prompt a line, as a .txt file is.",
        "",
        "switch",
    ),
    ("map", "--map", "Take COLUMN for OPTION; without OPTION it is a variable. Repeatable.", "COLUMN=OPTION", "list"),
    (
        "only",
        "--only",
        "Run only rows that failed, whose outcome is unknown, or whose files are gone for good.",
        "WHICH",
        "value",
        words("failed", "unknown", "missing"),
    ),
    ("shard", "--shard", "Run only part I of N parts; auto asks the variables of the CI or cluster.", "I/N|auto"),
    ("verify", "--verify", "Hash the files that are there, and fetch again what is damaged.", "", "switch"),
    ("explain_stale", "--explain-stale", "Say of each row that would run why, and send nothing.", "", "switch"),
    ("yes", "--yes -y", "Do not ask before a costly run.", "", "switch"),
    ("merge", "--merge", "Join the folders of shards into one. Sends nothing.", "", "switch"),
)
"""What is typed for one run of a batch, and stands in no file, table or variable."""

BATCH_SET_FLAGS = _flags(
    BATCH,
    ("concurrency", "--concurrency", "Most requests in flight. Default 8.", "N"),
    ("ipm", "--ipm", "Most pictures a minute. Default: what is known of the provider.", "N"),
    ("rpm", "--rpm", "Most requests a minute. Default: what is known of the provider.", "N"),
    ("limit", "--limit", "Run at most N rows this time.", "N"),
    ("fail_fast", "--fail-fast", "Take no new row once one has failed.", "", "switch"),
    ("max_failures", "--max-failures", "Take no new row once N have failed.", "N"),
    ("results", "--results", "Where the table of results goes. Default: results.csv in the output folder.", "FILE"),
)

FLAGS = EDIT_FLAGS + GENERATE_FLAGS + BATCH_SET_FLAGS
"""Every option that files, headers, tables and the environment may set."""

_NOT_IN_BATCH = frozenset({"curl", "explain", "reuse"})

BATCH_FLAGS = (
    *BATCH_TYPED_FLAGS,
    *BATCH_SET_FLAGS,
    *(flag for flag in GENERATE_FLAGS if flag.key not in _NOT_IN_BATCH),
)

_OF_ROWS = {flag.key for flag in REQUEST_FLAGS} - {"prompt_file", "var"} | {"name", "provider", "layers"}

RUN_KEYS = frozenset(flag.key for flag in FLAGS if flag.key not in _OF_ROWS)
"""Options that hold for a whole run, and so for no row of a table."""

_SENDING = {"no_download", "dry_run", "curl", "explain", "retry_ambiguous", "max_cost", "max_unknown", "reuse"}

RECOVER_FLAGS = (
    Flag("task", ("--task",), "Save the pictures of this task at the provider. Repeatable.", REQUEST, "ID", "list"),
    *(f for f in OUTPUT_FLAGS + RELIABILITY_FLAGS + MONEY_FLAGS + PROVIDER_FLAGS if f.key not in _SENDING),
)


def options() -> dict[str, Option]:
    """Every long name, without its dashes, as a header or a table column spells it."""
    from ..config.prompt_file import Option

    named = {}
    for flag in FLAGS:
        for name in (name for names in flag.names for name in names.split("/") if name.startswith("--")):
            named[name[2:]] = Option(flag.key, flag.kind, f"/{name}" in flag.names[0])
    return named


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was typed: text, switches and lists by key; only what was given."""

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verbosity: int = 0

    def draft(self, surroundings: Surroundings, prompt: PromptText | None = None, text: str | None = None) -> Draft:
        """One draft: what was typed, over the header of the prompt's file, over the environment, over the files.

        Each option has its origin. `text` is the prompt once its variables are filled in.
        """
        from ..request.image_request import Draft

        around = read_environment(surroundings).over(surroundings.settings.layer)
        values, switches, lists, origins = {**around.values}, {**around.switches}, {**around.lists}, {**around.origins}
        if prompt is not None:
            values, switches, lists = (
                values | {**prompt.values},
                switches | {**prompt.switches},
                lists | {**prompt.lists},
            )
            origins |= {**prompt.origins, "prompt": prompt.origin}
        given = {flag.key: flag.names[0].split("/")[0] for flag in FLAGS if self.holds(flag.key)}
        values, switches, lists = values | {**self.values}, switches | {**self.switches}, lists | {**self.lists}
        if text is not None:
            values["prompt"] = text
        return Draft(values, switches, lists, origins | given)

    def surroundings(self) -> Surroundings:
        """The environment and the configuration files. Raises `InputError` with all that is wrong in the files."""
        from ..config.load import load

        file, profile = self.values.get("config"), self.values.get("profile")
        return load(read_surroundings(), options(), file=file, profile=profile)

    def drafts(self, surroundings: Surroundings, prompts: Sequence[PromptText], problems: list[Problem]) -> list[Draft]:
        """A draft for each prompt, its variables filled in; one without a prompt where there is none."""
        from ..config.prompt_file import fill

        variables, wrong = self.variables()
        problems += wrong + self.ignored(surroundings)
        if not prompts:
            return [self.draft(surroundings)]
        drafts = []
        for prompt in prompts:
            text, missing = fill(prompt, variables)
            problems += missing
            drafts.append(self.draft(surroundings, prompt, text))
        return drafts

    def ignored(self, surroundings: Surroundings) -> list[Problem]:
        """What an untrusted project file may not set: warnings, or errors where the user is strict."""
        strict = self.draft(surroundings).switches.get("strict") if surroundings.settings.warnings else False
        severity: Literal["error", "warning"] = "error" if strict else "warning"
        return [replace(problem, severity=severity) for problem in surroundings.settings.warnings]

    def with_pictures(self, drafts: Sequence[Draft], pictures: Sequence[str]) -> list[Draft]:
        """The drafts with the pictures named as arguments: all in every request, or with `--each` one request each."""
        made = []
        for draft in drafts:
            own, each = draft.lists.get("image", ()), draft.switches.get("each", False)
            given = {"image": draft.origins["image"] if own else "IMAGE"}
            # Where no argument names a picture, those of --image are the ones to go through.
            subjects, own = (own, ()) if each and not pictures else (tuple(pictures), own)
            for some in [(picture,) for picture in subjects] if each and subjects else [subjects]:
                # The picture that is edited comes first: prompts speak of "the first picture".
                lists = {**draft.lists, "image": (*some, *own)}
                label = _stem(some[0]) if some and (each or draft.switches.get("layers")) else ""
                made.append(replace(draft, lists=lists, origins={**draft.origins, **given}, label=label))
        return made

    def variables(self) -> tuple[dict[str, str], list[Problem]]:
        """What `--var` gives, and what of it is not NAME=VALUE."""
        pairs = [pair.partition("=") for pair in self.lists.get("var", ())]
        hint = "write --var name=value"
        wrong = [Problem("var", f"{name!r} is not NAME=VALUE", hint) for name, equals, _ in pairs if not equals]
        return {name.strip(): value for name, equals, value in pairs if equals}, wrong

    def loudness(self, draft: Draft) -> int:
        """How often `--verbose` was said: on the command line, else by the environment or a file."""
        said = draft.values.get("verbose", "").strip()
        return self.verbosity or (int(said) if re.fullmatch(r"[0-9]", said) else 0)

    def holds(self, key: str) -> bool:
        """Whether an option was typed."""
        return key in self.values or key in self.switches or key in self.lists


def _stem(picture: str) -> str:
    """What a picture's file is called, for the name of its edited version."""
    return PurePath(picture.split("?", maxsplit=1)[0]).stem if not picture.startswith("data:") else ""


_ON, _OFF = {"1", "true", "yes", "on", "y"}, {"0", "false", "no", "off", "n"}


def read_switch(text: str) -> bool | None:
    """A yes or no as people write it; None where it is neither."""
    word = text.strip().lower()
    return word in _ON if word in _ON | _OFF else None


def read_environment(surroundings: Surroundings) -> Layer:
    """What SEEDREAM_<OPTION> variables say, a list one item a line. Raises `InputError` for a switch of neither."""
    layer = Layer({}, {}, {}, {})
    wrong = []
    for flag in FLAGS:
        name = flag.names[0].split("/")[0].removeprefix("--").replace("-", "_")
        found = surroundings.option(name)
        if found is None or flag.key in {"prompt_file", "var"}:
            continue
        origin = f"${variable(name)}"
        into: Any = layer.switches if flag.kind == "switch" else layer.lists if flag.kind == "list" else layer.values
        taken = read_switch(found) if flag.kind == "switch" else found
        if taken is None:
            wrong.append(Problem(flag.key, f"{found!r} is neither yes nor no", "give 1 or 0", origin=origin))
        if flag.kind == "count" and not re.fullmatch(r"[0-9]", found.strip()):
            wrong.append(Problem(flag.key, f"{found!r} is no number from 0 to 9", origin=origin))
        into[flag.key] = tuple(filter(None, found.splitlines())) if flag.kind == "list" else taken
        layer.origins[flag.key] = origin  # type: ignore[index]
    if wrong:
        raise InputError(wrong)
    return layer


def takes(flags: Iterable[Flag]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command these options. Its function gets them as the keyword `chosen`, beside its own parameters."""
    offered = tuple(flags)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "chosen"]
        extra = [
            inspect.Parameter(
                flag.key,
                inspect.Parameter.KEYWORD_ONLY,
                default=0 if flag.kind == "count" else None,
                annotation=flag.annotation,
            )
            for flag in offered
        ]

        def run(**given: Any) -> int:
            values = {f.key: given[f.key] for f in offered if f.kind == "value" and given[f.key] is not None}
            switches = {f.key: given[f.key] for f in offered if f.kind == "switch" and given[f.key] is not None}
            lists = {f.key: tuple(given[f.key]) for f in offered if f.kind == "list" and given[f.key]}
            chosen = Chosen(values, switches, lists, given.get("verbose", 0))
            return command(**{p.name: given[p.name] for p in own}, chosen=chosen)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature([*own, *extra])  # type: ignore[attr-defined]
        return run

    return decorate


def number(option: str, least: int, most: int, kind: type[int] | type[float] = int) -> Callable[[Any], Any]:
    """What reads an option that is a number, and says in our own words what is none."""

    def read(value: Any) -> Any:
        with contextlib.suppress(ValueError):
            found = kind(value)
            if least <= found <= most:
                return found
        raise InputError([Problem(option, f"{value!r} is no number from {least} to {most}", origin=f"--{option}")])

    return read


class PlainCommand(TyperCommand):
    """A command whose help is plain text with its options in groups: rich would cost 65 ms at every `--help`."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments in the usage line; each version of Typer has marks of its own for them."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *(_argument_word(argument) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options group by group, in the order in which the groups first appear."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                # A newer Typer writes the name of a Python type behind an argument.
                record = (
                    (_argument_word(parameter).replace("[", "").replace("]", ""), record[1]) if is_argument else record
                )
                panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Other"
                groups.setdefault(panel, []).append(record)
        for panel, records in groups.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def _argument_word(argument: Any) -> str:
    """An argument as a person types it: "[IMAGE]..." where it may be left out and may repeat."""
    word = argument.metavar or argument.name.upper()
    return (word if argument.required else f"[{word}]") + ("..." if argument.nargs == -1 else "")
