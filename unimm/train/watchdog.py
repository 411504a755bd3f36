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
from pathlib import Path
from typing import Literal

from unimm.disk import DiskError, replace_file

Where = Literal["start", "data", "forward", "backward", "collective", "update", "save", "preview", "end"]
FOLDER = "heartbeats"


class Watchdog:
    """One rank's heartbeat. `start` and `stop` run the thread; `look` is one round of it.

    seconds   without a beat until a rank counts as late; 0: nothing is watched
    end       called after half as long again with what to tell, to end the process; None: it may hang
    """

    def __init__(self, folder: Path, rank: int, world: int, seconds: float, end: Callable[[str], None] | None = None,
                 say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
                 clock: Callable[[], float] = time.monotonic):
        self.folder, self.rank, self.world, self.seconds = folder / FOLDER, rank, world, seconds
        self.end, self.say, self.clock = end, say, clock
        self.watched = threading.get_ident()
        # Step and beats within it, which order ranks by how far they are; place, time, clock.
        self.now: tuple[list[int], str, float, float] = ([0, 0], "start", time.time(), clock())
        # What rank 0 knows of another: its newest file, and when by rank 0's own clock that was first seen.
        self.others: dict[int, tuple[dict, float]] = {each: ({"rank": each}, clock()) for each in range(1, world)}
        self.told: tuple[list, list] = ([], [])
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def beat(self, step: int, where: Where) -> None:
        before, beats = self.now[0]
        self.now = ([step, beats + 1 if step == before else 0], where, time.time(), self.clock())

    def start(self) -> "Watchdog":
        """Begin to watch the thread that made this. Raises DiskError where the folder can't be written."""
        if self.seconds:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.stack = open(self._path("stack.txt"), "w")
            replace_file(self._path("json"), json.dumps(self._facts(), indent=1).encode())
            faulthandler.dump_traceback_later(self.seconds, file=self.stack)
            self.thread.start()
        return self

    def stop(self) -> None:
        """Leave off and take the files away."""
        if self.seconds:
            self.stopping.set()
            self.thread.join()
            faulthandler.cancel_dump_traceback_later()
            self.stack.close()
            for kind in ("json", "stack.txt"):
                self._path(kind).unlink(missing_ok=True)

    def _run(self) -> None:
        while not self.stopping.wait(self.seconds / 8):
            # Puts off what comes true only if this thread, too, gets no turn.
            faulthandler.dump_traceback_later(self.seconds, file=self.stack)
            self.look()

    def look(self) -> None:
        """One round: write this rank's file, tell who is late, end the process where it is time.

        Rank 0 tells of all ranks, the others of themselves, in their own logs; each place once.
        """
        own = self._facts()
        with suppress(DiskError):  # a full disk stops saving, loudly; watching goes on without files
            replace_file(self._path("json"), json.dumps(own, indent=1).encode())
        late, silent = [own] if own["age"] > self.seconds else [], []
        for rank in self.others if self.rank == 0 else ():
            found = {"rank": rank}  # before it began, or after it ended
            with suppress(FileNotFoundError):
                found = json.loads(self._path("json", rank).read_bytes())
            if found != self.others[rank][0]:
                self.others[rank] = found, self.clock()
            if self.clock() - self.others[rank][1] > self.seconds:
                stack = self._path("stack.txt", rank)  # what faulthandler wrote where threads get no turn
                text = stack.read_text(errors="replace") if stack.is_file() else ""
                silent.append(found | {"stack": text.splitlines()})
            elif found.get("age", 0) > self.seconds:
                late.append(found)
        hangs = [found["rank"] for found in silent], [(found["rank"], found["at"]) for found in late]
        if hangs != self.told:
            self.told = hangs
            if self.rank == 0:
                self.say("\n".join(_report(late, silent, self.world)))
            elif late:
                self.say("\n".join(_described(own)))
        if self.end and own["age"] > 1.5 * self.seconds:
            self.end(_described(own)[0])

    def _facts(self) -> dict:
        at, where, since, clock = self.now
        age = self.clock() - clock
        frame = sys._current_frames().get(self.watched) if age > self.seconds else None
        return {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), "at": at, "where": where,
                "since": since, "age": age,
                "stack": "".join(traceback.format_stack(frame)).splitlines() if frame else []}

    def _path(self, kind: str, rank: int | None = None) -> Path:
        return self.folder / f"rank-{self.rank if rank is None else rank:05d}.{kind}"


def _report(late: list[dict], silent: list[dict], world: int) -> list[str]:
    """Who does not move: those furthest behind first, with their stacks."""
    if not (late or silent):
        return [f"watchdog: all {world} ranks move again"]
    lines = [f"watchdog: {len(late) + len(silent)} of {world} ranks do not move"]
    for found in silent:
        last = f" on {found['host']}, last seen in {_place(found)}" if "at" in found else ""
        lines.append(f"rank {found['rank']}{last}: no sign of life; its process or node is gone or frozen")
        lines += [f"  {line}" for line in found["stack"]]
    behind = min((found["at"] for found in late), default=None)
    first, waiting = ([found for found in late if (found["at"] == behind) == so] for so in (True, False))
    for found in first[:4]:  # of thousands that stand at one place, four stacks say as much
        lines += _described(found)
    if first[4:]:
        lines.append(f"so are ranks {_some(first[4:])}")
    if waiting:
        places = ", ".join(sorted({_place(found) for found in waiting}))
        lines.append(f"waiting for {'it' if len(first) == 1 else 'them'}: ranks {_some(waiting)} (in {places})")
    elif len(first) == world > 1:
        lines.append("all ranks stand at the same place: the network or a device, rather than one rank")
    return lines


def _place(found: dict) -> str:
    return f"{found['where']} of step {found['at'][0]}"


def _described(found: dict) -> list[str]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
    return [f"rank {found['rank']} on {found['host']} is late: in {_place(found)} since {since}, "
            f"{found['age']:,.0f} seconds", *(f"  {line}" for line in found["stack"])]


def _some(found: list[dict]) -> str:
    names = [str(each["rank"]) for each in found]
    return ", ".join(names[:16]) + (f" and {len(names) - 16} more" if names[16:] else "")
