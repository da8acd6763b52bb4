"""The base of all commands: it refuses empty values, and a closed standard output for a result."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import click

from pplex.runtime.errors import ConfigError, OutputError

MAY_BE_EMPTY = {"text_prompt", "text_prompt_of", "personas"}  # empty: without a persona


class Command(click.Command):
    """A command that refuses empty values: they usually come from an unset shell variable.

    `prints`: the command's result is its output, so it refuses a closed standard output.
    """

    def __init__(self, *args: Any, prints: bool = False, **rest: Any):
        super().__init__(*args, **rest)
        self._prints = prints

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not context.resilient_parsing:
            given, _, _ = self.make_parser(context).parse_args(args=list(args))
            for parameter in self.params:
                if parameter.name not in MAY_BE_EMPTY:
                    _check_filled(context, parameter, given)
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> Any:
        if self._prints and sys.stdout is None:
            raise OutputError("This command prints its result, and standard output is closed. Open it: > FILE")
        return super().invoke(context)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


command = partial(click.command, cls=Command)


def _check_filled(context: click.Context, parameter: click.Parameter, given: Mapping[str, Any]) -> None:
    """Raise UsageError for an empty value on the command line, or in the environment variable of an option."""
    texts = list(_texts(given.get(str(parameter.name))))
    if any(not text.strip() for text in texts):
        name, advice = parameter.human_readable_name, "Name one"
        if isinstance(parameter, click.Option):
            name, advice = parameter.opts[0], "Give it a value, or leave it out"
        raise click.UsageError(f"{name} is empty. {advice}. Maybe a shell variable is not set.", context)
    variable = parameter.envvar
    if isinstance(variable, str) and not texts:
        from_environment(variable, context)


def from_environment(variable: str, context: click.Context | None = None) -> str | None:
    """The value of an environment variable, or None. Raises UsageError if it is empty."""
    value = os.environ.get(variable)
    if value is not None and not value.strip():
        raise click.UsageError(f"{variable} is set, but empty. Give it a value, or unset it.", context)
    return value


def _texts(value: Any) -> Iterator[str]:
    """All texts in a parsed value, which can be a text or a nested list of texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that parses a text, or each of several texts. A ConfigError becomes a usage error."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            return tuple(map(parse, value)) if isinstance(value, tuple) else value if value is None else parse(value)
        except ConfigError as error:
            raise click.BadParameter(str(error)) from error

    return callback
