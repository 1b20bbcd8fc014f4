"""The command line, from the command line itself."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import typer

import parityline
from docs.reference.words import cell, code, table

_EXAMPLES = re.compile(r"\n*^Examples:\n((?:[ ]+.+\n?)+)", re.MULTILINE)


def page() -> str:
    """Each command with its arguments, options and example."""
    group: Any = typer.main.get_command(parityline.app)
    lines = [
        "# Command line",
        "",
        "`parityline COMMAND --help` says the same on a terminal. Exit status: 0 when it is done, "
        "1 when the work failed (with one line that says what, what was expected and what was "
        "found), 2 for a command that is not written as it must be, 130 and 143 when it was ended "
        "by Ctrl-C and by SIGTERM.",
        "",
        *table(
            ["command", ""],
            [
                [f"[`{name}`](#{name})", cell(command.help.split("\n\n")[0])]
                for name, command in sorted(group.commands.items())
            ],
        ),
    ]
    for name, command in sorted(group.commands.items()):
        lines += _command(name, command, group)
    return "\n".join(lines)


def _command(name: str, command: Any, group: Any) -> list[str]:
    context = command.context_class(command, info_name=f"{group.name} {name}")
    text = _EXAMPLES.sub("", command.help).strip()
    lines = [f"## {name}", "", text, "", "```text", *_usage(command, context), "```", ""]
    if found := examples(command):
        lines += ["```sh", *found, "```", ""]
    arguments = [found for found in command.params if found.param_type_name == "argument"]
    options = [found for found in command.params if found.param_type_name == "option"]
    if arguments:
        lines += table(
            ["argument", ""],
            [
                [code(argument.metavar or argument.name.upper()), _help(argument)]
                for argument in arguments
            ],
        )
    if options:
        lines += table(
            ["option", "takes", "default", ""],
            [[*_option(option), _help(option)] for option in options],
        )
    return lines


def examples(command: Any) -> list[str]:
    """The command lines that a command's help shows."""
    found = _EXAMPLES.search(command.help)
    return [line.strip() for line in found[1].splitlines()] if found else []


def _usage(command: Any, context: Any) -> list[str]:
    usage: str = command.get_usage(context)
    return [usage.removeprefix("Usage: ")]


def _help(parameter: Any) -> str:
    return cell(parameter.help or "").replace("*", r"\*")


def _option(option: Any) -> list[str]:
    names = ", ".join(code(name) for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        takes = ""
    else:
        kind = option.type_descriptor.annotation
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        takes = ", ".join(map(code, choices)) if choices else _value(option)
    default = option.default
    shown = option.required or default is None or default is False or default == []
    if option.required:
        return [names, takes, "required"]
    if option.is_flag and option.secondary_opts and default is not None:
        return [names, takes, code(option.opts[0] if default else option.secondary_opts[0])]
    return [names, takes, "" if shown else code(default)]


def _value(option: Any) -> str:
    """Its name in the usage, and its range."""
    bounds = [
        f"{sign}\u00a0{bound:g}"
        for sign, bound in (("≥", option.min), ("≤", option.max))
        if bound is not None
    ]
    return ", ".join([code(option.metavar), *bounds])
