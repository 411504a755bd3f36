"""Being asked to stop: noted, acted on after the step, on all ranks together."""

import os
import signal
from pathlib import Path

from unimm.train import ranks

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""A person, a launcher or scheduler, and SLURM's warning before the time is up (--signal=USR1@300)."""


class Interrupted(Exception):
    """The stage was stopped by a signal after saving; `code` is the exit code, 128 + the signal's number."""

    def __init__(self, signum: int, path: Path, again: str):
        super().__init__(f"stopped by {signal.Signals(signum).name}, saved as {path}\ncontinue with: {again}")
        self.code = 128 + signum
        self.path = path


class Signals:
    """Notes the first signal that asks to stop. A second Ctrl-C in a lone process stops at once."""

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
