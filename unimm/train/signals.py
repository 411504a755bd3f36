"""Signals that ask a run to save and end, and the exit codes that say so. See docs/exit-codes.md."""

import os
import signal
import sys
from pathlib import Path

from unimm.errors import UserError
from unimm.status import BAD_INPUT, FAILED, RESUME, State
from unimm.train import ranks

# In the order in which they win when ranks got different ones: a person before a cluster, its notice before its end.
# SLURM sends SIGUSR1 ahead of the time limit (--signal=USR1@300); Windows has none.
STOPS = (signal.SIGINT, signal.SIGTERM, *(() if sys.platform == "win32" else (signal.SIGUSR1,)))


class Interrupted(Exception):
    """The stage was stopped by a signal after saving.

    Its code is 75, "start me again", where a cluster gave notice; 128 + its number where somebody meant the run to end.
    """

    def __init__(self, signum: int, path: Path, again: str):
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved as {path}\ncontinue with: {again}")
        self.path = path
        self.code = 128 + signum if signum in (signal.SIGINT, signal.SIGTERM) else RESUME


def ended(error: BaseException) -> tuple[State, int]:
    """What a run that ended with this error is to its launcher, and the exit code that says so."""
    match error:
        case Interrupted(code=code):
            return "resume", code
        case KeyboardInterrupt():  # a second Ctrl-C: nothing was saved, and the checkpoint before it serves
            return "resume", 128 + signal.SIGINT
        case UserError() | OSError():
            return "failed", BAD_INPUT
        case _:
            return "failed", FAILED


def votes(received: int) -> list[float]:
    """What this rank got, to be summed over ranks together with whatever else a step sums."""
    return [float(received == number) for number in STOPS]


def verdict(sums: list[float]) -> int:
    """The signal that all ranks obey, or 0, from the sums of their votes."""
    return next((number for number, votes in zip(STOPS, sums, strict=True) if votes), 0)


class Signals:
    """Notes the first signal instead of dying of it. A second Ctrl-C in a lone process stops at once."""

    def __enter__(self):
        self.received = 0
        self.before = {number: signal.signal(number, self._note) for number in STOPS}
        return self

    def _note(self, number: int, frame) -> None:
        if not self.received and ranks.rank() == 0:
            again = "; Ctrl-C again stops at once" if ranks.world() == 1 else ""
            os.write(1, f"\nfinishing the step and saving{again}\n".encode())  # print may be the one interrupted
        elif self.received and ranks.world() == 1 and number == signal.SIGINT:
            raise KeyboardInterrupt  # a person means it; several ranks have a launcher, which repeats the signal
        self.received = number

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
