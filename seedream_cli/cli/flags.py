"""The options of a command as Typer's parameters, made of their rows in config/options; what is typed is a `Chosen`."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from ..config.environment import Environment, misspelt_variables, read_environ, read_environment
from ..config.options import OPTIONS, OUTPUT, Option, options_of
from ..errors import InputError, Problem
from .completion import offer_profiles, offers_of

if TYPE_CHECKING:
    from ..config.prompt_file import PromptText
    from ..request.image_request import OptionValues


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

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)]

_Every = Annotated[bool, typer.Option("--all", help="Also what is not set.")]

_Project = Annotated[bool, typer.Option("--project", help="In the project's seedream.toml, not the user's file.")]


def _annotation(option: Option) -> Any:
    """The Typer parameter that an option is. Values stay text, so that one place checks them, all at once."""
    shared: dict[str, Any] = {"help": option.help, "rich_help_panel": option.group, "show_default": False}
    shared |= {"autocompletion": offers} if (offers := offers_of(option)) else {}
    names = option.flags.split()
    if option.kind == "switch":
        return Annotated[bool | None, typer.Option(*names, **shared)]
    if option.kind == "count":
        return Annotated[int, typer.Option(*names, count=True, **shared)]
    if option.kind == "list":
        return Annotated[list[str] | None, typer.Option(*names, metavar=option.metavar, **shared)]
    return Annotated[str | None, typer.Option(*names, metavar=option.metavar, **shared)]


@dataclass(frozen=True, slots=True)
class FlagValues:
    """What was typed: text, switches and lists by key; only what was given."""

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verbosity: int = 0

    def options(
        self, environment: Environment, prompt: PromptText | None = None, text: str | None = None
    ) -> OptionValues:
        """One draft: what was typed, over the header of the prompt's file, over the environment, over the files.

        Each option has its origin. `text` is the prompt once its variables are filled in.
        """
        from ..request.image_request import OptionValues

        around = read_environment(environment).over(environment.settings.layer)
        values, switches, lists, origins = {**around.values}, {**around.switches}, {**around.lists}, {**around.origins}
        if prompt is not None:
            values, switches, lists = (
                values | {**prompt.values},
                switches | {**prompt.switches},
                lists | {**prompt.lists},
            )
            origins |= {**prompt.origins, "prompt": prompt.origin}
        given = {key: OPTIONS[key].flag for key in (*self.values, *self.switches, *self.lists)}
        values, switches, lists = values | {**self.values}, switches | {**self.switches}, lists | {**self.lists}
        if text is not None:
            values["prompt"] = text
        return OptionValues(values, switches, lists, origins | given)

    def environment(self) -> Environment:
        """The environment and the configuration files. Raises `InputError` with all that is wrong in the files."""
        from ..config.load import load

        file, profile = self.values.get("config"), self.values.get("profile")
        return load(read_environ(), file=file, profile=profile)

    def drafted(
        self, environment: Environment, prompts: Sequence[PromptText], problems: list[Problem]
    ) -> list[OptionValues]:
        """A draft for each prompt, its variables filled in; one without a prompt where there is none."""
        from ..config.prompt_file import fill

        variables, wrong = self.variables()
        problems += wrong + self.ignored(environment)
        if not prompts:
            return [self.options(environment)]
        drafted = []
        for prompt in prompts:
            text, missing = fill(prompt, variables)
            problems += missing
            drafted.append(self.options(environment, prompt, text))
        return drafted

    def ignored(self, environment: Environment) -> list[Problem]:
        """Variables of no option, and what an untrusted project file may not set: errors where the user is strict."""
        found = [*misspelt_variables(environment), *environment.settings.warnings]
        strict = self.options(environment).switches.get("strict") if found else False
        severity: Literal["error", "warning"] = "error" if strict else "warning"
        return [replace(problem, severity=severity) for problem in found]

    def with_images(self, drafted: Sequence[OptionValues], images: Sequence[str]) -> list[OptionValues]:
        """The drafts with the images named as arguments: all in every request, or with `--each` one request each."""
        made = []
        for options in drafted:
            own, each = options.lists.get("image", ()), options.switches.get("each", False)
            given = {"image": options.origins["image"] if own else "IMAGE"}
            # Where no argument names an image, those of --image are the ones to go through.
            subjects, own = (own, ()) if each and not images else (tuple(images), own)
            for some in [(image,) for image in subjects] if each and subjects else [subjects]:
                # The image that is edited comes first: prompts speak of "the first image".
                lists = {**options.lists, "image": (*some, *own)}
                label = _stem(some[0]) if some and (each or options.switches.get("layers")) else ""
                made.append(replace(options, lists=lists, origins={**options.origins, **given}, label=label))
        return made

    def variables(self) -> tuple[dict[str, str], list[Problem]]:
        """What `--var` gives, and what of it is not NAME=VALUE."""
        pairs = [pair.partition("=") for pair in self.lists.get("var", ())]
        hint = "write --var name=value"
        wrong = [Problem("var", f"{name!r} is not NAME=VALUE", hint) for name, equals, _ in pairs if not equals]
        return {name.strip(): value for name, equals, value in pairs if equals}, wrong

    def loudness(self, options: OptionValues) -> int:
        """How often `--verbose` was said: on the command line, else by the environment or a file."""
        said = options.values.get("verbose", "").strip()
        return self.verbosity or (int(said) if re.fullmatch(r"[0-9]", said) else 0)


def _stem(image: str) -> str:
    """What an image's file is called, for the name of its edited version."""
    return PurePath(image.split("?", maxsplit=1)[0]).stem if not image.startswith("data:") else ""


def takes(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command its options. Its function gets them as the keyword `chosen`, beside its own parameters."""
    offered = options_of(name)

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flag_values"]
        extra = [
            inspect.Parameter(
                option.key,
                inspect.Parameter.KEYWORD_ONLY,
                default=0 if option.kind == "count" else None,
                annotation=_annotation(option),
            )
            for option in offered
        ]

        def run(**given: Any) -> int:
            values = {f.key: given[f.key] for f in offered if f.kind == "value" and given[f.key] is not None}
            switches = {f.key: given[f.key] for f in offered if f.kind == "switch" and given[f.key] is not None}
            lists = {f.key: tuple(given[f.key]) for f in offered if f.kind == "list" and given[f.key]}
            flag_values = FlagValues(values, switches, lists, given.get("verbose", 0))
            return command(**{p.name: given[p.name] for p in own}, flag_values=flag_values)

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
