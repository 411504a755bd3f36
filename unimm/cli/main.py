"""The `unimm` command: reads what is asked for, and does it; heavy imports wait for their use."""

import os
import sys
from functools import partial

from unimm.arguments import read_arguments
from unimm.cli.commands import COMMAND
from unimm.config.check import ConfigError
from unimm.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """The `unimm` command. Bad input ends in one line on stderr and exit code 2; see docs/exit-codes.md."""
    code = 0
    try:
        code = run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"unimm: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"unimm: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("\nunimm: interrupted", file=sys.stderr)
        code = 130
    if "torch" in sys.modules:
        from unimm.train import ranks

        ranks.leave(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Do one command; the exit code."""
    command, rest = parse(arguments)
    if "overrides" in command.keywords:
        return command(overrides=rest) or 0
    if rest:
        raise ConfigError(f"unknown option {rest[0]}; see --help for what this command takes")
    return command() or 0


def parse(arguments: list[str]) -> tuple[partial, list[str]]:
    """The command's call, and the options that it does not know: overrides of the recipe."""
    # The deepspeed launcher adds --local_rank=N unless told not to; LOCAL_RANK says the same.
    given = [argument for argument in arguments if not argument.startswith("--local_rank=")] or ["--help"]
    return read_arguments(COMMAND, given, "unimm", return_unknown_args=True,
                          description="Train and run language models that read and write images as tokens.")
