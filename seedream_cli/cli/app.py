"""The Typer app: root options, the commands, and errors as messages and exit codes."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from .. import __version__
from ..config.environment import read_environ
from ..config.option_kinds import BadValueError, switch
from ..config.options import OUTPUT
from ..errors import ConfigError, FileError, InputError, InternalError, Problem, SeedreamError
from . import batch
from .completion import SHELLS, completion_script, is_completion, offer_models, words
from .config import config_app
from .context import console_of_run, process_console
from .doctor import DOCTOR_HELP, doctor
from .flags import PlainCommand, PlainGroup, number
from .generate import EDIT_HELP, GENERATE_HELP, RECOVER_HELP, edit, generate, recover
from .history import history_app

app = typer.Typer(
    cls=PlainGroup,
    add_completion=False,
    no_args_is_help=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_EXAMPLES = """\b
  seedream generate "a red fox in the snow" --provider sandbox
  seedream generate "a lighthouse at dusk" -p ark -m 4.5 -s 2K -a 16:9 -o shots/
  seedream models 5.0-lite
"""


@app.callback(
    invoke_without_command=True,
    help=f"Images from ByteDance's Seedream models, saved to disk.\n\nExamples:\n\n{_EXAMPLES}",
)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,  # noqa: FBT002
    show_completion: Annotated[
        str | None,
        typer.Option(
            "--show-completion",
            metavar="SHELL",
            help="Print what makes bash, zsh, fish or powershell complete.",
            autocompletion=words(*SHELLS),
        ),
    ] = None,
) -> int:
    """The root options."""
    console = process_console()
    if version:
        console.out(f"seedream {__version__}")
    elif show_completion is not None:
        console.out_exactly(completion_script(show_completion))
    elif context.invoked_subcommand is None:
        for line in context.get_help().splitlines():
            console.out(line)
    return 0


app.command("generate", cls=PlainCommand, help=GENERATE_HELP)(generate)
app.command("edit", cls=PlainCommand, help=EDIT_HELP)(edit)
app.command("batch", cls=PlainCommand, help=batch.HELP)(batch.batch)


@app.command(
    cls=PlainCommand,
    help="Show what each model can do, or one model in detail.\n\nExamples:\n\n\b\n"
    "  seedream models\n  seedream models 4.5\n  seedream models --json",
)
def models(
    model: Annotated[
        str | None, typer.Argument(help="A model name or id.", show_default=False, autocompletion=offer_models)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)] = False,  # noqa: FBT002
) -> int:
    """The model table."""
    from ..output import model_table
    from ..output.json_output import print_json
    from ..request.models import MODELS, find_model, nearest_models

    console = process_console()
    row = find_model(model) if model else None
    if model and row is None:
        hint = f"known: {', '.join(nearest_models(model) or nearest_models(''))}"
        raise InputError([Problem("model", f"no model is called {model!r}", hint, origin="MODEL")])
    if json:
        print_json(model_table.model_object(row) if row else model_table.models_object(MODELS), console)
        return 0
    if row:
        model_table.print_model(row, console)
    else:
        model_table.print_models(MODELS, console)
    return 0


app.command("recover", cls=PlainCommand, help=RECOVER_HELP)(recover)


@app.command(
    cls=PlainCommand,
    help="Serve the offline provider over HTTP, for tests of your own.\n\nExamples:\n\n\b\n"
    "  seedream sandbox --port 8111\n"
    '  seedream generate "a fox" -p ark --base-url http://127.0.0.1:8111 --api-key-file key.txt',
)
def sandbox(
    port: Annotated[
        int, typer.Option(help="Port; 0 takes a free one.", metavar="N", parser=number("port", 0, 65535))
    ] = 0,
    host: Annotated[str, typer.Option(help="Address to listen at.", metavar="HOST")] = "127.0.0.1",
    latency: Annotated[
        float, typer.Option(help="Seconds each image takes.", metavar="S", parser=number("latency", 0, 3600, float))
    ] = 0.0,
) -> int:
    """Serve the sandbox until interrupted."""
    from ..sandbox.server import Server, serve

    console = process_console()

    def announce(server: Server) -> None:
        console.out(server.url)
        console.err("serving ark, byteplus, cometapi, ope and acedata; any key will do; Ctrl-C ends it")

    serve(host=host, port=port, latency_s=latency, ready=announce)
    return 0


app.command("doctor", cls=PlainCommand, help=DOCTOR_HELP)(doctor)

app.add_typer(history_app, name="history")

app.add_typer(config_app, name="config")


def main(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code; 74 where standard output cannot be written."""
    with console_of_run() as console:
        code = _run_line(argv)
        trouble = console.finish()
        if trouble and code not in {_IO, *_SIGNALS}:
            console.err(
                f"error: standard output cannot be written: {trouble}. What was paid for is saved or kept: seedream "
                "history"
            )
            return _IO
        return code


_IO = 74

_SIGNALS = (129, 130, 143)

_LOOK = "seedream history tells what was sent"


def _run_line(argv: Sequence[str]) -> int:
    """Run a command line and report its error."""
    # For a completion request Typer prints the words and exits.
    completion_init()
    try:
        code = app(args=list(argv), prog_name="seedream", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(InputError([_usage_problem(error)], kind="usage"), argv)
    except SeedreamError as error:
        return _fail(error, argv)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except OSError as error:
        # A closed pipe (`| head`) is no error; a full disk behind standard output is.
        if isinstance(error, BrokenPipeError):
            return 0
        from ..storage.filesystem import reason

        if trouble := process_console().finish():
            return _fail(FileError(f"standard output cannot be written: {trouble}"), [])
        return _fail(FileError(f"cannot write or read: {reason(error)}", hint=_LOOK), argv)
    except Exception as bug:  # noqa: BLE001
        from ..storage.system_limits import lack_of

        lack = lack_of(bug)
        return _fail(FileError(lack, hint=_LOOK) if lack else _as_bug(bug), argv)
    return code if isinstance(code, int) else 0


def _fail(error: SeedreamError, argv: Sequence[str]) -> int:
    """Print the error, with `--json` also as an object; nothing for a completion request."""
    if is_completion():
        return error.exit_code
    from ..output.json_output import failure_object, print_json
    from ..output.summary import print_error

    console = process_console()
    print_error(error, console)
    command = next((word for word in argv if not word.startswith("-")), "")
    if "--json" in argv or (command in _WITH_SETTINGS and _is_json_set()):
        print_json(failure_object(command, error), console)
    return error.exit_code


_WITH_SETTINGS = {"generate", "edit", "batch", "recover", "doctor"}
"""Commands that take options from the environment and settings files."""


def _is_json_set() -> bool:
    """Whether a variable or settings file sets `json`; False where they cannot be read, which may be the error."""
    from ..config.config_file import find_settings_files
    from ..config.load import read

    environment = read_environ()
    with contextlib.suppress(BadValueError):
        return switch(environment.option("json") or "")
    with contextlib.suppress(ConfigError):
        reading = read(environment, find_settings_files(environment), check_values=False)
        return reading.settings.layer.switches.get("json", False)
    return False


def _usage_problem(error: typer.TyperException) -> Problem:
    """A usage error, without quoting a stray argument: it might be a key."""
    message = error.format_message().rstrip(".")
    stray = "unexpected extra argument" in message
    if stray:
        message = "there is an argument too many"
    hint = "put the prompt in quotes" if stray else "seedream --help shows the commands and their options"
    return Problem("command", message[:1].lower() + message[1:], hint, code="usage")


def _as_bug(bug: Exception) -> InternalError:
    """A bug, by exception type and line only: its message may contain a key."""
    frames = traceback.extract_tb(bug.__traceback__)
    place = next((frame for frame in reversed(frames) if __package__ in frame.filename), frames[-1])
    where = f"{place.filename.rpartition(__package__)[2].strip('/')}:{place.lineno}"
    return InternalError(
        f"a bug in seedream: {type(bug).__name__} at {where}",
        hint="nothing more was sent; `seedream recover` saves what was paid for. Please report this line",
    )
