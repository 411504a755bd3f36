"""How a run ended, for scripts: exit codes, RUN/status.json, and the errors of single ranks. See docs/exit-codes.md.

Launchers hide the codes of their workers (torchrun makes a 1 of each), so the run also writes what it would have said.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from unimm.disk import DiskError, replace_file
from unimm.errors import UserError

DONE, FAILED, BAD_INPUT, RUNNING = 0, 1, 2, 3
RESUME = 75
"""Saved, or stopped where a checkpoint serves: start the same command again. EX_TEMPFAIL of sysexits.h."""
HUNG = 76
"""The watchdog ended a run that stood still; start it again."""

State = Literal["running", "done", "resume", "failed"]
FILE, ERRORS = "status.json", "errors"


class StatusError(UserError):
    """A folder that holds no run."""


class Status:
    """What this rank tells about the run. Rank 0 writes how it goes; any rank may write how it ended.

    `facts`: stage, step, checkpoint, ...: as of the last `at`. Raises DiskError where the folder can't be written.
    """

    def __init__(self, folder: Path, rank: int = 0, world: int = 1):
        self.folder, self.rank, self.world = folder, rank, world
        self.facts: dict = {}
        self.written = -1e9

    def begin(self) -> None:
        """Forget how an earlier attempt ended. Rank 0 before any other goes on."""
        if self.rank == 0:
            shutil.rmtree(self.folder / ERRORS, ignore_errors=True)
            self._write("running")

    def at(self, **facts) -> None:
        """Note `stage`, `step`, `checkpoint`; written at once where one but the step changed, else once a minute."""
        changed = any(self.facts.get(name) != value for name, value in facts.items() if name != "step")
        self.facts |= facts
        if self.rank == 0 and (changed or time.monotonic() - self.written > 60):
            self._write("running")

    def end(self, state: State, code: int, message: str) -> None:
        """Say how it ended. An error of this rank stands beside those of others in errors/."""
        if state == "failed" or code == HUNG:
            (self.folder / ERRORS).mkdir(parents=True, exist_ok=True)
            own = {"rank": self.rank, "host": socket.gethostname(), "time": time.time(), "code": code,
                   "step": self.facts.get("step"), "message": message}
            replace_file(self.folder / ERRORS / f"rank-{self.rank:05d}.json", json.dumps(own, indent=1).encode())
        elif self.rank > 0:
            return
        self._write(state, code=code, message=message, errors=_errors(self.folder))

    def _write(self, state: State, **more) -> None:
        self.written = time.monotonic()
        content = {"state": state, **self.facts, "world": self.world, "host": socket.gethostname(), "pid": os.getpid(),
                   "time": time.time(), **more}
        replace_file(self.folder / FILE, json.dumps(content, indent=1).encode(), f"{self.rank}.")


@contextmanager
def told(status: Status, ended: Callable[[BaseException], tuple[State, int]]):
    """Write how the inside went: done, or what `ended` makes of its error, which goes on to the caller."""
    status.begin()
    try:
        yield status
    except BaseException as error:
        state, code = ended(error)
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with suppress(DiskError):  # a full disk may be what this is about
            status.end(state, code, f"{name}{error}")
        raise
    status.end("done", DONE, "")


def read_status(folder: Path) -> dict:
    """status.json with the errors of all ranks, the earliest first. Raises StatusError where there is no run."""
    path = folder / FILE
    if not path.is_file():
        raise StatusError(f"{folder} holds no run: it has no {FILE}; give the folder that `unimm train` wrote to")
    return json.loads(path.read_bytes()) | {"errors": _errors(folder)}


def _errors(folder: Path) -> list[dict]:
    """The first of them is the cause: the other ranks then lose their connection to it."""
    found = [json.loads(path.read_bytes()) for path in (folder / ERRORS).glob("rank-*.json")]
    return sorted(found, key=lambda error: error["time"])


def code_of(status: dict) -> int:
    """What `unimm status` exits with: 0 done, 75 start again, 1 failed, 3 running (or killed without a word)."""
    return {"done": DONE, "resume": RESUME, "failed": FAILED, "running": RUNNING}[status["state"]]


def describe(folder: Path, status: dict) -> list[str]:
    """The status as a person reads it."""
    place = f", stage {status['stage']}, step {status['step']:,}" if "step" in status else ""
    lines = [f"{folder}: {status['state']}{place}, as of "
             f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status['time']))}",
             f"newest checkpoint: {status.get('checkpoint') or 'none yet'}"]
    lines += [f"exit code {status['code']}: {status['message'] or 'no error'}"] if "code" in status else []
    lines += [f"rank {e['rank']} on {e['host']}, step {e['step']}: {e['message']}" for e in status["errors"]]
    if status["state"] == "running":
        lines.append(f"process {status['pid']} on {status['host']}; if that has ended, it was killed without a word: "
                     "start the same command again")
    return lines
