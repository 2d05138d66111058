"""The `tersor` application: its commands, its exit statuses, and how an error ends it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tersor._version import __version__
from tersor.cli.commands import (
    bench,
    compress,
    decompress,
    demo,
    doctor,
    evaluate,
    inspect,
    plan,
    run_model,
    sensitivity,
    verify,
)
from tersor.cli.render import print_error
from tersor.format.errors import TersorError, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EPILOG = """
**Exit status**: 0 done · 1 failed · 2 wrong usage, or the output exists · 3 a checkpoint breaks the format ·
4 verification failed · 5 writing was cut short (run again to resume) · 6 a library is missing ·
7 a GPU kernel failed · 130 interrupted

**Environment**: TERSOR_THREADS, threads of the CPU codec · TERSOR_DISABLE_AUTOLOAD=1, do not register with
Transformers when torch is imported
"""

app = typer.Typer(
    name="tersor",
    help="Terse weights for large language models: lossless at about 70 % of bfloat16, proven bit for bit.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, saying how to go on when it is interrupted: Typer would end it without a word."""

    @functools.wraps(command)
    def run_command(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            _tell_interrupted()
            raise typer.Exit(INTERRUPTED) from None

    return run_command


def _tell_interrupted() -> None:
    resumes = any(command in sys.argv[1:2] for command in ("compress", "decompress"))
    message = "interrupted" + (
        "; what is done is kept, run the same command again to go on" if resumes else ""
    )
    print_error(message, "--json" in sys.argv)


for _name, _module in (
    ("compress", compress),
    ("verify", verify),
    ("decompress", decompress),
    ("inspect", inspect),
    ("plan", plan),
    ("run", run_model),
    ("eval", evaluate),
    ("sensitivity", sensitivity),
    ("bench", bench),
    ("doctor", doctor),
    ("demo", demo),
):
    app.command(_name, epilog=_module.EPILOG)(_interruptible(_module.command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tersor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


# What is raised for options that cannot be parsed. Typer brings its own copy of click, older ones the package; the
# name that both export is a subclass of it.
_ParseError: Any = typer.BadParameter.__base__


def _unparsed(error: Any) -> UsageError:
    """The error of a command line that Typer rejects, as one of ours."""
    command = error.ctx.command_path if error.ctx else "tersor"
    return UsageError(f"{error.format_message().rstrip('.')}; `{command} --help` lists what there is")


def run() -> None:
    """Run the command line; errors raised on purpose become a message and their exit status.

    With --json Typer's own complaints come here too, so that they are told as documents; without, Typer shows them.
    """
    as_json = "--json" in sys.argv
    try:
        sys.exit(app(prog_name="tersor", standalone_mode=not as_json))
    except _ParseError as error:
        ours = _unparsed(error)
        print_error(ours, as_json)
        sys.exit(ours.exit_status)
    except TersorError as error:
        print_error(error, as_json)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _tell_interrupted()
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; so do we
        sys.exit(1)
