"""Command-line arguments through tyro, its refusals shortened to one line."""

import contextlib
import functools
import io
import operator
import re
from collections.abc import Callable
from typing import Annotated

from unimm.errors import UserError


class ArgumentError(UserError):
    """An option that does not exist, or a value that it can't take."""


def one_of(*commands: Callable):
    """A type for tyro: one of these functions by its name (`eval_`: eval), as the call, yet to be made, of it."""
    from tyro.conf import subcommand

    def later(command: Callable) -> Callable:
        return functools.wraps(command)(lambda *given, **named: functools.partial(command, *given, **named))

    kinds = (Annotated[later(command), subcommand(command.__name__.rstrip("_"))] for command in commands)
    return functools.reduce(operator.or_, kinds)


def read_arguments(kind, arguments: list[str], prog: str, **options):
    """`tyro.cli`, with ArgumentError in place of its error box. `--help` prints and exits."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=arguments, prog=prog, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ArgumentError(one_line(said.getvalue())) from None


def one_line(boxed: str) -> str:
    """A tyro error box as one line, with the first option that it thinks was meant."""
    lines = [line.strip("│ ").strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰─" and "full helptext" not in line]
    if lines[1:] and set(lines[1]) == {"-"}:  # where stdout is not UTF-8, a rule under the title is all of the box
        lines = [line for line in lines[2:] if set(line) != {"-"}]
    problem = lines[0] if lines else "the arguments could not be read"
    if "Perhaps you meant:" in lines:
        meant = lines[lines.index("Perhaps you meant:") + 1].split(" ")[0]
        return f"{problem}; did you mean {meant}?"
    ends = [n for n, line in enumerate(lines) if line.startswith(("--", "Argument helptext"))]
    return " ".join(lines[:ends[0] if ends and ends[0] else 4]).removesuffix(" Argument helptext:")
