"""The options of a command as Typer parameters, made from config/options, and their values."""

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
    """A group that lists its commands as declared, as plain text."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Commands in the order of declaration."""
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
    """An option as a Typer parameter. Values stay text: they are parsed later, with all errors reported at once."""
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
    """The options given on the command line, by key."""

    values: Mapping[str, str] = field(default_factory=dict)
    switches: Mapping[str, bool] = field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    verbosity: int = 0

    def options(
        self, environment: Environment, prompt: PromptText | None = None, text: str | None = None
    ) -> OptionValues:
        """Options merged by precedence: command line, header of the prompt file, environment, settings files.

        `text` is the prompt with its variables filled in.
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
        """The environment with the settings files. Raises `InputError` with all problems in them."""
        from ..config.load import load

        file, profile = self.values.get("config"), self.values.get("profile")
        return load(read_environ(), file=file, profile=profile)

    def drafted(
        self, environment: Environment, prompts: Sequence[PromptText], problems: list[Problem]
    ) -> list[OptionValues]:
        """Options for each prompt, with its variables filled in; one without a prompt where there is none."""
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
        """Unknown variables, and settings of an untrusted project file: errors with --strict, else warnings."""
        found = [*misspelt_variables(environment), *environment.settings.warnings]
        strict = self.options(environment).switches.get("strict") if found else False
        severity: Literal["error", "warning"] = "error" if strict else "warning"
        return [replace(problem, severity=severity) for problem in found]

    def with_images(self, drafted: Sequence[OptionValues], images: Sequence[str]) -> list[OptionValues]:
        """The options with the images of the arguments: all in each request, or with `--each` one request per image."""
        made = []
        for options in drafted:
            own, each = options.lists.get("image", ()), options.switches.get("each", False)
            given = {"image": options.origins["image"] if own else "IMAGE"}
            # Without arguments `--each` goes through the images of --image.
            subjects, own = (own, ()) if each and not images else (tuple(images), own)
            for some in [(image,) for image in subjects] if each and subjects else [subjects]:
                # The edited image comes first: prompts refer to "the first image".
                lists = {**options.lists, "image": (*some, *own)}
                label = _stem(some[0]) if some and (each or options.switches.get("layers")) else ""
                made.append(replace(options, lists=lists, origins={**options.origins, **given}, label=label))
        return made

    def variables(self) -> tuple[dict[str, str], list[Problem]]:
        """The variables of `--var`, and the problems with them."""
        pairs = [pair.partition("=") for pair in self.lists.get("var", ())]
        hint = "write --var name=value"
        wrong = [Problem("var", f"{name!r} is not NAME=VALUE", hint) for name, equals, _ in pairs if not equals]
        return {name.strip(): value for name, equals, value in pairs if equals}, wrong

    def verbosity_of(self, options: OptionValues) -> int:
        """The count of `--verbose` on the command line, else of the environment or a file."""
        message = options.values.get("verbose", "").strip()
        return self.verbosity or (int(message) if re.fullmatch(r"[0-9]", message) else 0)


def _stem(image: str) -> str:
    """The stem of an image's file name, for the name of its edited version; "" for a data URI."""
    return PurePath(image.split("?", maxsplit=1)[0]).stem if not image.startswith("data:") else ""


def takes(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator: adds the options of a command, which its function gets as `flag_values`."""
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
    """A parser for a numeric option, with our own error message."""

    def read(value: Any) -> Any:
        with contextlib.suppress(ValueError):
            found = kind(value)
            if least <= found <= most:
                return found
        raise InputError([Problem(option, f"{value!r} is no number from {least} to {most}", origin=f"--{option}")])

    return read


class PlainCommand(TyperCommand):
    """A command whose help is plain text with grouped options; importing rich would take 65 ms."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line, the same for all versions of Typer."""
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return ["[OPTIONS]", *(_argument_word(argument) for argument in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options by group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                # Newer versions of Typer append the Python type.
                record = (
                    (_argument_word(parameter).replace("[", "").replace("]", ""), record[1]) if is_argument else record
                )
                panel = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Other"
                groups.setdefault(panel, []).append(record)
        for panel, records in groups.items():
            with formatter.section(panel):
                formatter.write_dl(records)


def _argument_word(argument: Any) -> str:
    """An argument in the usage line: "[IMAGE]..." where it is optional and repeatable."""
    word = argument.metavar or argument.name.upper()
    return (word if argument.required else f"[{word}]") + ("..." if argument.nargs == -1 else "")
