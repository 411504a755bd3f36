"""Which rank is late, since when, and where it stands: told while the run hangs, by a thread beside it.

    watchdog.beat(step, "data")    on the way through a step; costs an assignment

Each rank's thread writes what its main thread last said to heartbeats/rank-00000.json in the stage's folder, which all
nodes share, and with it the main thread's Python stack once that has stood still for `seconds`. Rank 0's thread reads
them all and says who is behind. Collectives release Python's lock while they wait, so threads run; where something
holds the lock for good, faulthandler's own thread, which needs none, still leaves the stack in rank-00000.stack.txt.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from unimm.disk import DiskError, replace_file
from unimm.status import HUNG

Where = Literal["start", "data", "forward", "backward", "collective", "update", "save", "preview", "end"]
FOLDER = "heartbeats"


class Beat(NamedTuple):
    """`count` counts the beats within a step, so that (step, count) orders ranks by how far they are."""

    step: int
    count: int
    where: Where
    time: float
    clock: float


@dataclass
class _Peer:
    """What rank 0 knows of a rank: its newest file, and when by rank 0's own clock that was first seen."""

    found: dict | None
    seen: float


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Watchdog:
    """One rank's heartbeat. `start` and `stop` run the thread; `look` is one round of it.

    seconds   without a beat until a rank counts as late; 0: nothing is watched
    ends      end the process after half as long again, with exit code 76
    last_words  called before that with what to tell
    """

    def __init__(self, folder: Path, rank: int, world: int, seconds: float, say: Callable[[str], None] = _say,
                 ends: bool = False, last_words: Callable[[str], None] = lambda text: None,
                 clock: Callable[[], float] = time.monotonic, leave: Callable[[int], None] = os._exit):
        self.folder, self.rank, self.world, self.seconds = folder / FOLDER, rank, world, seconds
        self.say, self.ends, self.last_words, self.clock, self.leave = say, ends, last_words, clock, leave
        self.watched = threading.get_ident()
        self.now = Beat(0, 0, "start", time.time(), clock())
        self.peers = {each: _Peer(None, clock()) for each in range(world)}
        self.told: tuple | None = None
        self.written = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def beat(self, step: int, where: Where) -> None:
        count = self.now.count + 1 if step == self.now.step else 0
        self.now = Beat(step, count, where, time.time(), self.clock())

    def start(self) -> "Watchdog":
        """Begin to watch the thread that made this. Raises DiskError where the folder can't be written."""
        if not self.seconds:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stack = open(self._path(self.rank).with_suffix(".stack.txt"), "w")
        self._write([])
        self._arm()
        self.thread.start()
        return self

    def stop(self) -> None:
        """Leave off and take the files away."""
        if not self.seconds:
            return
        self.stopping.set()
        self.thread.join()
        faulthandler.cancel_dump_traceback_later()
        self.stack.close()
        for path in (self._path(self.rank), self._path(self.rank).with_suffix(".stack.txt")):
            path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self.stopping.wait(self.seconds / 8):
            self._arm()
            self.look()

    def _arm(self) -> None:
        """Put off what comes true only if this thread, too, gets no turn."""
        faulthandler.dump_traceback_later(self.seconds, file=self.stack)

    def look(self) -> None:
        """One round: write this rank's file, on rank 0 read all of them, end the process where it is time."""
        age = self.clock() - self.now.clock
        late = age > self.seconds
        stack = self._stack() if late else []
        with suppress(DiskError):  # a full disk stops saving, loudly; watching goes on without files
            self._write(stack)
        text = self._judge(stack) if self.rank == 0 else self._own(age, stack) if late else None
        if text:
            self.say(text)
        if self.ends and age > 1.5 * self.seconds:
            self.last_words(self._own(age, []) or "")
            self.leave(HUNG)

    def _own(self, age: float, stack: list[str]) -> str | None:
        """What a rank says of itself, once for each place where it hangs."""
        place = (self.now.step, self.now.count)
        if stack and self.told == place:
            return None
        self.told = place
        return "\n".join([_line(self._facts(stack), age), *stack])

    def _stack(self) -> list[str]:
        frame = sys._current_frames().get(self.watched)
        return "".join(traceback.format_stack(frame)).splitlines() if frame else []

    def _facts(self, stack: list[str]) -> dict:
        now = self.now
        return {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "step": now.step,
                "count": now.count, "where": now.where, "since": now.time, "age": self.clock() - now.clock,
                "written": self.written, "stack": stack}

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.json"

    def _write(self, stack: list[str]) -> None:
        self.written += 1
        replace_file(self._path(self.rank), json.dumps(self._facts(stack), indent=1).encode())

    def _judge(self, stack: list[str]) -> str | None:
        """Rank 0: who is late, those furthest behind first, with their stacks; None where all is as it was."""
        for rank in range(1, self.world):
            self._read(rank)
        self.peers[0] = _Peer(self._facts(stack), self.clock())
        silent = [rank for rank, peer in self.peers.items() if self.clock() - peer.seen > self.seconds]
        late = {rank: peer.found for rank, peer in self.peers.items()
                if rank not in silent and peer.found and peer.found["age"] > self.seconds}
        place = (tuple(silent), tuple((rank, found["step"], found["count"]) for rank, found in late.items()))
        if place == self.told or not (silent or late):
            if self.told and not (silent or late):
                self.told = None
                return f"watchdog: all {self.world} ranks move again"
            return None
        self.told = place
        gone = [(self.peers[rank].found or {"rank": rank}) | {"stack": self._dumped(rank)} for rank in silent]
        return "\n".join(_report(late, gone, self.world))

    def _dumped(self, rank: int) -> list[str]:
        """What faulthandler wrote of a rank whose threads get no turn."""
        with suppress(OSError):
            return self._path(rank).with_suffix(".stack.txt").read_text(errors="replace").splitlines()
        return []

    def _read(self, rank: int) -> None:
        known = self.peers[rank].found
        try:
            found = json.loads(self._path(rank).read_bytes())
        except FileNotFoundError:
            if known:  # it was there: that rank ended in good order
                self.peers[rank].seen = self.clock()
            return
        if known is None or (found["pid"], found["written"]) != (known["pid"], known["written"]):
            self.peers[rank] = _Peer(found, self.clock())


def _report(late: dict[int, dict], silent: list[dict], world: int) -> list[str]:
    lines = [f"watchdog: {len(late) + len(silent)} of {world} ranks do not move"]
    for found in silent:
        last = f" on {found['host']}, last seen in {found['where']} of step {found['step']}" if "step" in found else ""
        lines.append(f"rank {found['rank']}{last}: no sign of life; its process or node is gone or frozen")
        lines += [f"  {line}" for line in found["stack"]]
    if not late:
        return lines
    behind = min((found["step"], found["count"]) for found in late.values())
    first = [found for found in late.values() if (found["step"], found["count"]) == behind]
    waiting = [found for found in late.values() if found not in first]
    for found in first[:4]:  # of thousands that stand at one place, four stacks say as much
        lines += [_line(found, found["age"]), *(f"  {line}" for line in found["stack"])]
    if first[4:]:
        lines.append(f"so are ranks {_some(first[4:])}")
    if waiting:
        places = sorted({f"{found['where']} of step {found['step']}" for found in waiting})
        lines.append(f"waiting for {'it' if len(first) == 1 else 'them'}: ranks {_some(waiting)} "
                     f"(in {', '.join(places)})")
    elif len(first) == world > 1:
        lines.append("all ranks stand at the same place: the network or a device, rather than one rank")
    return lines


def _line(found: dict, age: float) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    return (f"rank {found['rank']} on {found['host']} is late: in {found['where']} of step {found['step']} "
            f"since {since}, {age:,.0f} seconds")


def _some(found: list[dict]) -> str:
    names = [str(each["rank"]) for each in found]
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if names[16:] else "")
