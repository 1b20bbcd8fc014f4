"""The front door: which commands there are, in the order of work, how help reads, how all end."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from artifacts.command import list_, promote, show, verify
from artifacts.completion import is_for_bash, with_whole_words
from artifacts.errors import ParitylineError, Stopped
from artifacts.terminal import say, say_error, styled
from serving.command import build, pull, push, serve
from serving.scoring.command import score
from training.command import recipes, train
from training.report.command import report
from training.tuning.command import tune

# What typer exits with after Ctrl-C.
_INTERRUPTED = 130
_SETTINGS = {"help_option_names": ["--help", "-h"], "max_content_width": 100}


class _Help:
    """How the help of a command reads: sections, and examples as they are typed."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments and required options by name; the braces around them are typer's."""
        required = [
            f"{param.opts[0]} {param.metavar}"
            for param in self.get_params(ctx)
            if param.param_type_name == "option" and param.required
        ]
        pieces = [piece for piece in super().collect_usage_pieces(ctx) if piece != "[OPTIONS]"]
        return [piece.replace("{", "").replace("}", "") for piece in (*pieces, *required)] + [
            "[OPTIONS]"
        ]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Paragraphs, and a line for each example."""
        for paragraph in (self.help or "").split("\n\n"):
            if paragraph.startswith("Examples:"):
                _, *examples = paragraph.splitlines()
                with formatter.section(_heading("Examples")):
                    for example in examples:
                        formatter.write(f"  {example.strip()}\n")
            else:
                formatter.write_paragraph()
                formatter.write_text(paragraph.replace("\n", " "))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options, and those of a panel under its name."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            if getattr(param, "hidden", False):
                continue
            name, text = param.get_help_record(ctx)
            section = getattr(param, "rich_help_panel", None) or "Options"
            if param.param_type_name == "argument":
                section, name = "Arguments", param.metavar + "..." * (param.nargs != 1)
                text = text.removesuffix("  [required]")
            sections.setdefault(section, []).append((name, text))
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)
        for section, rows in sections.items():
            if rows:
                with formatter.section(_heading(section)):
                    formatter.write_dl(rows)


class _Command(_Help, TyperCommand):
    pass


class _Contents(_Help, TyperGroup):
    """`parityline --help`: a table of contents."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["COMMAND", "[OPTIONS]"]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Each command with the first sentence of its help, under its panel."""
        width = max(map(len, self.commands))
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = f"{name:<{width}}", command.get_short_help_str(limit=200)
            panels.setdefault(command.rich_help_panel, []).append(row)
        for panel, rows in panels.items():
            with formatter.section(_heading(panel)):
                formatter.write_dl(rows)


def _heading(name: str) -> str:
    return styled(name, "", sys.stdout)


app = typer.Typer(
    name="parityline",
    cls=_Contents,
    help="Labelled data to a served classifier, and proof that what is served was trained.",
    epilog="`parityline COMMAND --help` has a command's options, and examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    # Plain text: it can be piped, and neither rich nor a parser of markdown is imported.
    rich_markup_mode=None,
    context_settings=_SETTINGS,
)

for _panel, _commands in {
    "Train": (recipes, train, tune),
    "Look": (list_, show, report, verify),
    "Serve": (promote, serve),
    "Score": (score,),
    "Move": (build, push, pull),
}.items():
    for _command in _commands:
        app.command(
            _command.__name__.rstrip("_"),
            cls=_Command,
            rich_help_panel=_panel,
            context_settings=_SETTINGS,
        )(_command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"parityline {version('parityline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1."""
    # BentoML tells its makers of what it is used for, unless this says no.
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    # Whatever a label holds and the terminal's encoding lacks, it is shown.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if is_for_bash():
            with_whole_words(_run, os.environ)
        else:
            _run()
    except Stopped as stopped:
        _below_the_echo()
        say(str(stopped), stderr=True)
        sys.exit(stopped.exit_status)
    except ParitylineError as error:
        say_error(str(error))
        sys.exit(1)
    except OSError as error:
        # What no command has a better word for: a name too long, a folder that may not be read,
        # standard output on a disk that is full.
        what = "" if error.filename is None else f"{error.filename}: "
        say_error(f"{what}{error.strerror or error}")
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            _below_the_echo()
            say("interrupted; nothing was left half-written", stderr=True)
        raise


def _below_the_echo() -> None:
    # A terminal shows Ctrl-C as ^C, wherever the cursor is.
    if sys.stderr.isatty():
        say("", stderr=True)


def _run() -> None:
    # The same name, and the same variable for completion, however it was started.
    app(prog_name="parityline")


if __name__ == "__main__":
    main()
