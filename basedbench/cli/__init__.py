"""The command line: one thin file per command; each parses, calls and prints.

Command files import nothing heavy at the top, so that `basedbench --help` answers at once.
"""

import os
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from basedbench import __version__, threads
from basedbench.cli import once, output
from basedbench.cli.options import options_of
from basedbench.cli.surroundings import explained
from basedbench.errors import UserError, visible
from basedbench.signals import exit_code, heed_signals, within_a_command
from basedbench.streams import stderr_never_fails

COMMANDS = ("recall", "throughput", "plot", "compare", "check", "calibrate", "list", "results", "env")


class _Group(TyperGroup):
    """An error that the user can mend is one sentence on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with within_a_command():
                _check_folder()
                return super().invoke(ctx)
        except (output.OutputError, output.ReaderGoneError):
            raise
        except UserError as error:
            _say(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as stop:
            typer.echo("\nStopped.", err=True)
            raise typer.Exit(exit_code(stop)) from None
        except Exception as error:
            if (said := explained(error)) is not None:  # click would say "Aborted" of some
                _say(UserError(said))
                raise typer.Exit(2) from error
            _point_to_the_folder(error)
            raise


def _check_folder() -> None:
    """UserError where there is no working folder: libraries name all kinds of causes then."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working folder cannot be entered ({error.strerror}); cd to one that is there.") from None


def _point_to_the_folder(error: Any) -> None:
    """Commands that write results have --out, those that read them --results: say which is meant."""
    if getattr(error, "option_name", None) in ("--results", "--out", "--output") and getattr(error, "ctx", None):
        error.possibilities = sorted(options_of(error.ctx.command) & {"--results", "--out"})


app = typer.Typer(
    name="basedbench",
    cls=_Group,
    help="How much recall does a byte of recurrent state buy, and what does it cost in throughput?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"basedbench {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for _command in COMMANDS:
    import_module(f"basedbench.cli.{_command}").register(app)
once.heeded(app)


def main() -> None:
    """Run the command line; exit code 2 says that the user can mend it."""
    try:
        _run()
    except SystemExit as stop:
        threads.leave(stop.code)
        raise


def _run() -> None:
    heed_signals()
    stderr_never_fails()
    output.guard()
    try:
        try:
            app()
        finally:
            output.finish()
    except output.ReaderGoneError:
        output.give_up()
        raise SystemExit(output.ReaderGoneError.CODE) from None
    except output.OutputError as error:
        output.give_up()
        _say(error)
        raise SystemExit(2) from None


def _say(error: UserError) -> None:
    typer.echo(f"Error: {visible(str(error))}", err=True)
